"""Tests of symmetries and offline policies, as `launch.train` runs them."""

import dataclasses
import functools
import inspect
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax import dynamics, reporting
from edgesafe_jax.dynamics import Verdict
from edgesafe_jax.metrics.intervals import Interval
from edgesafe_jax.offline_rl import (
    Agent,
    Episodes,
    Learner,
    OfflineDataset,
    SamplerData,
    Sampling,
    ant,
    baselines,
    concatenate,
    formats,
    make_awr,
    make_bc,
    make_evaluator,
    make_iql,
    make_sampler,
    make_sampler_data,
    make_td3_bc,
    make_trainer,
    maze,
    reward_recomputed,
    seed_interval,
    tasks,
    worlds,
)
from edgesafe_jax.training import Checkpoints, MetricWriter, TrainState, open_workdir, write_summary
from edgesafe_jax.training import train as run_training
from edgesafe_jax.typing import PRNGKey
from launch import errors

Config = Mapping[str, Any]

LEARNERS: dict[str, Callable[..., Learner]] = {
    "td3_bc": make_td3_bc,
    "iql": make_iql,
    "awr": make_awr,
    "bc": make_bc,
}
"""What `config.learner.name` may name."""


def make_learner(settings: Config) -> Learner:
    """Makes the learner that `config.learner` names, of those of its other entries that it has (cloning: no discount).

    Raises:
      ConfigError: there is no such learner.
    """
    make = errors.lookup(LEARNERS, settings["name"], "config.learner.name")
    known = inspect.signature(make).parameters
    return make(**{name: value for name, value in settings.items() if name in known})


@dataclasses.dataclass(frozen=True)
class World:
    """A task with its data, the model of it and what the test of a symmetry needs."""

    task: tasks.Task
    dataset: OfflineDataset
    parts: dict[str, dynamics.Transitions]
    ensemble: dynamics.Ensemble
    calibration: dynamics.Calibration
    support: dynamics.Support


def fit_world(
    config: Config,
    task: tasks.Task,
    dataset: OfflineDataset,
    *,
    group: dynamics.GroupAction,
    model: Mapping[str, Any],
    alpha: float,
    horizon: int = 1,
) -> World:
    """Splits the data by episode, fits the ensemble and calibrates it."""
    transitions = dataset.transitions()
    rows = dynamics.split_episodes(transitions.episodes, config["data"]["shares"], seed=int(config["seed"]))
    parts = {name: transitions.take(chosen) for name, chosen in rows.items()}
    ensemble, _ = dynamics.fit_ensemble(
        parts["training"],
        parts["validation"],
        key=jax.random.key(int(config["seed"])),
        relations=task.relations,
        **model,
    )
    return World(
        task=task,
        dataset=dataset,
        parts=parts,
        ensemble=ensemble,
        calibration=dynamics.calibrate(
            ensemble,
            parts["calibration"],
            tolerance=task.tolerance,
            alpha=alpha,
            horizon=horizon,
        ),
        support=dynamics.fit_support(
            ensemble,
            parts["training"],
            parts["calibration"],
            moved=group.moved,
            max_references=4096,
        ),
    )


@dataclasses.dataclass(frozen=True)
class Case:
    """One transformation of one world.

    Attributes:
      task: the world.
      make_group: the transformation; None: the joint translation of the task.
      expected: what the test should say.
      model: what is changed in the fit of the model.
      unseen: walls that stand in the world, but not where the data are.
      horizon: steps of the segments that are tested.
      num_episodes: episodes of the data; None: those of the config.
    """

    task: Callable[[], tasks.Task]
    make_group: Callable[[tasks.Task], dynamics.GroupAction] | None
    expected: str
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    unseen: tuple[tasks.Wall, ...] = ()
    horizon: int = 1
    num_episodes: int | None = None


def _velocity_shift(task: tasks.Task) -> dynamics.GroupAction:
    return dataclasses.replace(task.group, state_axes=((2,), (3,)), goal_axes=((), ()))


def _object_alone(task: tasks.Task) -> dynamics.GroupAction:
    return dataclasses.replace(task.group, state_axes=((4,), (5,)))


def _height(task: tasks.Task) -> dynamics.GroupAction:
    """Lifts the torso: the ground stays where it was."""
    return dataclasses.replace(task.group, state_axes=((2,),), goal_axes=((),), low=(-0.3,), high=(0.3,))


def _rotation(task: tasks.Task) -> dynamics.GroupAction:
    return dynamics.PlanarRotation(
        task.sizes, state_pairs=((0, 1), (2, 3)), action_pairs=((0, 1),), goal_pairs=((0, 1),)
    )


def _fine(task: tasks.Task) -> tasks.Task:
    """The task with a quarter of its tolerance, for a break that the whole tolerance covers almost everywhere."""
    return dataclasses.replace(task, tolerance=tuple(limit / 4 for limit in task.tolerance))


_CENTRE = tasks.Stratum(((-1.2, -1.2), (1.2, 1.2)), ((-1.2, -1.2), (1.2, 1.2)))
_LEFT = tasks.Stratum(((-2.0, -2.0), (-0.6, 2.0)), ((-2.0, -2.0), (-0.6, 2.0)))
_WALL = (tasks.Wall(axis=0, at=0.0, low=-1.0, high=2.0),)

# Contacts are rare, abrupt, and take more data and depth than drag.
_CONTACTS = {"hidden": (128, 128, 128), "num_epochs": 80, "num_members": 5}
_BODY = {"batch_size": 256}

_scripted = functools.partial(tasks.make_point_mass, explores=False)
_point_mass = functools.partial(_scripted, data=_CENTRE)

CASES: dict[str, Case] = {
    "translation": Case(_point_mass, None, "verified"),
    "rotation": Case(_point_mass, _rotation, "verified"),
    "velocity_shift": Case(_point_mass, _velocity_shift, "rejected"),
    "drag_by_place": Case(lambda: _fine(_point_mass(drag_slope=1.6)), None, "rejected"),
    "gravity_ramp": Case(functools.partial(_point_mass, field_slope=3.0), None, "rejected"),
    "walls": Case(tasks.make_walled_point_mass, None, "partly"),
    "unseen_wall": Case(functools.partial(_scripted, data=_LEFT), None, "extrapolated", unseen=_WALL),
    "underfitted": Case(_point_mass, None, "inconclusive", {"hidden": (4,), "num_epochs": 2}),
    "pusher_joint": Case(tasks.make_pusher, None, "verified", _CONTACTS, num_episodes=2500),
    "pusher_object_alone": Case(tasks.make_pusher, _object_alone, "rejected", _CONTACTS, num_episodes=2500, horizon=5),
    "reacher": Case(tasks.make_reacher, None, "rejected"),
    "point_maze": Case(maze.make_point_maze, None, "partly", {**_CONTACTS, "batch_size": 128}, num_episodes=1500),
    "ant": Case(ant.make_ant, None, "verified", _BODY),
    "ant_height": Case(ant.make_ant, _height, "rejected", _BODY),
}
"""What `config.cases` may name."""


def draw_elements(world: World, case: Case, group: dynamics.GroupAction, starts: np.ndarray, seed: int) -> Any:
    """One element for each state `[N, S]`: a translation to where another transition is, or beyond an unseen wall."""
    if not isinstance(group, dynamics.Translation):
        return dynamics.sample_elements(group, jax.random.key(seed), len(starts))
    rng = np.random.default_rng(seed)
    first = [indices[0] for indices in group.state_axes]
    places = world.dataset.states[rng.integers(world.dataset.num_transitions, size=len(starts))][:, first]
    if case.unseen:
        places = places * np.array([-1.0, 1.0])  # on the other side
    return jnp.asarray(places - starts[:, first], jnp.float32)


def train_dynamics(config: Config, workdir: str | Path) -> Path:
    """Tests the cases of configs/dynamics_equivariance.py. Returns the report."""
    chosen = {name: errors.lookup(CASES, name, "config.cases") for name in config["cases"]}
    workdir = open_workdir(workdir, config)
    rows: list[dict[str, Any]] = []
    curve: list[dict[str, Any]] = []
    models: list[dict[str, Any]] = []
    values: dict[str, float] = {}
    section = reporting.Section("Tests of symmetries", order=10)
    maps: dict[str, tuple[dict[str, np.ndarray], tasks.Box]] = {}
    for name, case in chosen.items():
        number = list(CASES).index(name)  # a case draws the same numbers, whichever others are chosen
        task = case.task()
        group = task.group if case.make_group is None else case.make_group(task)
        key = jax.random.key(int(config["seed"]) + number)
        dataset = tasks.generate(task, key, num_episodes=case.num_episodes or int(config["data"]["num_episodes"]))
        alpha = float(config["alpha"])
        model = {**config["model"], **case.model}
        world = fit_world(config, task, dataset, group=group, model=model, alpha=alpha, horizon=case.horizon)
        data = dynamics.make_segments(world.parts["fresh"], case.horizon)
        elements = draw_elements(world, case, group, np.asarray(data.states)[:, 0], seed=number)
        true_step = tasks.make_point_mass(walls=case.unseen).step if case.unseen else task.step
        gaps = baselines.true_gaps(true_step, group, jax.tree.map(lambda e: e[:, None], elements), data)[:, 0]
        for scale in config["scales"]:
            calibration = dynamics.calibrate(
                world.ensemble,
                world.parts["calibration"],
                tolerance=scale * np.array(task.tolerance),
                alpha=alpha,
                horizon=case.horizon,
            )
            result = dynamics.equivalence_test(world.ensemble, calibration, world.support, group, elements, data)
            limits = scale * np.array(task.tolerance)
            wrong = np.any(gaps > limits, axis=1)
            verdicts = np.asarray(result.verdicts)
            verified, tested = verdicts == Verdict.VERIFIED, verdicts != Verdict.EXTRAPOLATED
            line = {
                "case": name,
                "scale": float(scale),
                "verified": float(verified.mean()),
                "power": _mean(verified[~wrong]),
                "false acceptance": _mean(verified[wrong]),
                "wrong among verified": _mean(wrong[verified]),
                "wrong": float(wrong.mean()),
                # What a model without an error could say of the tested samples.
                "could be verified": _mean(np.all(gaps < 0.5 * limits, axis=1)[tested]),
                "could be rejected": _mean(np.any(gaps > 1.5 * limits, axis=1)[tested]),
            }
            curve.append(line)
            values |= {f"{name}/scale_{scale:g}/{key}": line[key] for key in line if key not in ("case", "scale")}
            if scale == 1.0:
                report = dynamics.summarize(result)
                false = _interval(wrong[verified], np.asarray(result.episodes)[verified])
                rows.append(
                    {
                        "case": name,
                        "expected": case.expected,
                        "overall": report.overall.name.lower(),
                        **report.shares,
                        "wrong": line["wrong"],
                        "wrong among verified": false,
                        "could be verified": line["could be verified"],
                        "could be rejected": line["could be rejected"],
                    }
                )
                values |= {f"{name}/{verdict}": share for verdict, share in report.shares.items()}
                if false is not None:
                    values |= {f"{name}/wrong_among_verified_high": false.high}
                quality = model_quality(world, world.parts["fresh"])
                models.append({"case": name, **quality})
                values |= {f"{name}/model/{key}": value for key, value in quality.items()}
                section.table(report.dimensions or [{"dimension": "none was tested"}], caption=f"{name}: by dimension")
                cells = dynamics.verdict_map(result, dims=(0, 1), low=task.domain[0], high=task.domain[1])
                maps[name] = ({v: cells[v] for v in ("verified", "rejected", "inconclusive")}, task.domain)
    print(reporting.make_table(rows).to_text())
    section.table(
        rows,
        caption="Verdicts at the tolerance of the task; interval over episodes. Wrong: by the true simulator. "
        "What could be verified or rejected: of the tested samples, by a model without an error.",
        digits=3,
    )
    section.table(models, caption="The models, on episodes that they were not fitted on.", digits=3)
    section.table(curve, caption="Power and false acceptance by tolerance.", digits=3)
    for quantity in ("power", "false acceptance"):
        series = {name: [r[quantity] for r in curve if r["case"] == name] for name in chosen}
        series = {name: line for name, line in series.items() if any(value is not None for value in line)}
        if series:
            png = reporting.lines(
                list(config["scales"]), series, xlabel="tolerance / default", ylabel=quantity, log_x=True
            )
            section.figure(png, alt=f"{quantity} by tolerance")
    for name, (cells, (low, high)) in maps.items():
        png = reporting.grid_maps(cells, low=low, high=high, title=name)
        section.figure(png, alt=f"{name}: share of verdicts by the place that the transformed states reach")
    write_summary(workdir, "dynamics", values)
    reporting.write_fragment(workdir, "dynamics", section)
    return reporting.build_report(workdir, "edgesafe_jax", subtitle="Tests of symmetries")


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _interval(hits: np.ndarray, episodes: np.ndarray) -> Interval | None:
    return dynamics.episode_interval(hits, episodes) if len(hits) else None


def model_quality(world: World, data: dynamics.Transitions) -> dict[str, float]:
    """How good a model is on some transitions, in its worst dimension: errors in tolerances and in spreads."""
    length = min(5, int(np.bincount(np.asarray(data.episodes)).max()))
    segments = dynamics.make_segments(data, length)
    errors = np.asarray(dynamics.prediction_error(world.ensemble, segments.states, segments.actions))
    errors = np.max(errors / np.array(world.task.tolerance), axis=1)
    spread = dynamics.variance_calibration(world.ensemble, data)
    return {
        "error of 1 step": float(errors[0]),
        f"error of {length} steps": float(errors[-1]),
        "error / spread": float(np.max(np.asarray(spread.z_rms))),
        "inside the 90 % interval": float(np.min(np.asarray(spread.coverage[2]))),
    }


def run_key(config: Config, number: int) -> PRNGKey:
    """The key of one kind of draws; runs of other seeds draw others. The data and the fits have the seed's own key."""
    return jax.random.fold_in(jax.random.key(int(config["seed"])), 1000 + number)


def load_data(config: Config, task: tasks.Task) -> OfflineDataset:
    """Reads `config.data.path`, or generates data where it is empty.

    A file without goals, such as OGBench's own, is given some: each trajectory pursued where it ended, and rewards are
    minus the distance to there.

    Raises:
      ConfigError: the file's states, actions or goals have other sizes than the task's.
    """
    path = config["data"]["path"]
    if not path:
        return tasks.generate(
            task, jax.random.key(int(config["seed"])), num_episodes=int(config["data"]["num_episodes"])
        )
    dataset = formats.read_ogbench(path) if str(path).endswith(".npz") else formats.read_minari(path)
    sizes = {"states": task.sizes.state, "actions": task.sizes.action, "goals": task.sizes.goal}
    if not dataset.goals.shape[1]:
        del sizes["goals"]
    for name, wanted in sizes.items():
        size = getattr(dataset, name).shape[1]
        if size != wanted:
            raise errors.ConfigError(
                f"{name} of {path} have {size} dimensions, config.world={task.name!r} has {wanted}: expected the same"
            )
    if dataset.goals.shape[1]:
        return dataset
    goals = jax.vmap(task.achieved)(jnp.asarray(dataset.next_states)[dataset.last_rows()])
    rewards = jax.vmap(task.reward)(jnp.asarray(dataset.next_states), goals)
    return dataset.replace(goals=np.asarray(goals), rewards=np.asarray(rewards))


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What the methods draw on, made once."""

    config: Config
    world: World
    learned: Callable[[], dynamics.TransformBank]
    untested: Callable[[], dynamics.TransformBank]


def _data(inputs: Inputs, bank: dynamics.TransformBank | None = None, **settings: Any) -> SamplerData:
    return make_sampler_data(inputs.world.dataset, bank=bank, **settings)


def _oracle(inputs: Inputs) -> SamplerData:
    world, bank = inputs.world, inputs.untested()
    wrong = baselines.is_wrong(
        world.task.step,
        world.task.group,
        bank.elements,
        world.dataset.transitions(),
        tolerance=world.task.tolerance,
    )
    return _data(inputs, bank.replace(accepted=bank.accepted & ~jnp.asarray(wrong)))


def _model(inputs: Inputs) -> SamplerData:
    world = inputs.world
    rolled = baselines.model_rollouts(
        world.ensemble,
        world.dataset,
        world.task.reward,
        key=run_key(inputs.config, 5),
        num_rollouts=world.dataset.num_transitions // 5,
        length=5,
    )
    return make_sampler_data(concatenate([world.dataset, rolled]))


def _full_coverage(inputs: Inputs) -> SamplerData:
    task = inputs.world.task
    everywhere = tasks.Stratum(task.domain, task.domain)
    num = inputs.world.dataset.num_episodes
    return make_sampler_data(tasks.generate(task, run_key(inputs.config, 6), num_episodes=num, stratum=everywhere))


@dataclasses.dataclass(frozen=True)
class Method:
    """What a policy is trained on.

    Attributes:
      data: what batches are drawn from.
      her: whether goals are relabelled.
      symmetry: whether elements of the bank act.
      noise: whether states get noise.
      goal_fixed: whether the elements act on the state alone, which is false: goals do not move with it.
    """

    data: Callable[[Inputs], SamplerData]
    her: bool = False
    symmetry: bool = False
    noise: bool = False
    goal_fixed: bool = False


FRESH_EPISODES = 100
"""On which learned translations are checked."""

METHODS: dict[str, Method] = {
    "none": Method(_data),
    "s4rl": Method(lambda inputs: _data(inputs, noise_scale=float(inputs.config["noise_scale"])), noise=True),
    "her": Method(_data, her=True),
    "translation": Method(lambda inputs: _data(inputs, inputs.untested()), symmetry=True),
    "her_translation": Method(lambda inputs: _data(inputs, inputs.untested()), her=True, symmetry=True),
    "her_state_only": Method(lambda inputs: _data(inputs, inputs.untested()), her=True, symmetry=True, goal_fixed=True),
    "her_learned": Method(lambda inputs: _data(inputs, inputs.learned()), her=True, symmetry=True),
    "her_oracle": Method(_oracle, her=True, symmetry=True),
    "her_model": Method(_model, her=True),
    "full_coverage": Method(_full_coverage, her=True),
}
"""What `config.methods` may name."""


def learn_translations(config: Config, world: World) -> dynamics.TranslationDistribution:
    """Learns how far translations reach, on all transitions of the data."""
    settings, task = config["symmetry"], world.task
    few = world.support.replace(references=world.support.references[::2])
    distribution, _ = dynamics.fit_translations(
        world.ensemble,
        world.calibration,
        few,
        task.group,
        world.dataset.transitions(),
        key=run_key(config, 2),
        domain=_declared(config, task),
        max_violation=float(settings["max_violation"]),
        num_steps=int(settings["num_steps"]),
    )
    return distribution


def draw_bank(
    config: Config,
    world: World,
    distribution: dynamics.TranslationDistribution,
    data: dynamics.Transitions,
    *,
    number: int = 3,
) -> dynamics.TransformBank:
    """Tests what learned translations propose for some transitions."""
    return dynamics.make_bank(
        world.ensemble,
        world.calibration,
        world.support,
        distribution,
        data,
        key=run_key(config, number),
        domain=_declared(config, world.task),
        num_elements=int(config["symmetry"]["num_elements"]),
    )


def _declared(config: Config, task: tasks.Task) -> dynamics.BoxDomain | None:
    return tasks.arena_domain(task) if config["symmetry"]["declare_domain"] else None


def train_policies(config: Config, workdir: str | Path, *, report: str | Path | None = None) -> Path:
    """Trains and compares the methods of configs/offline_rl.py.

    Args:
      config: that of configs/offline_rl.py.
      workdir: where the run is kept; an interrupted one continues there.
      report: the directory of summary and report, with other sections; default `workdir`.

    Returns:
      The report.

    Raises:
      ConfigError: a name or a count of the config means nothing.
      WorkdirError: the work directory holds a run with another config.
    """
    make_task = errors.lookup(worlds.WORLDS, config["world"], "config.world")
    chosen = {name: errors.lookup(METHODS, name, "config.methods") for name in config["methods"]}
    learner = make_learner(config["learner"])
    if int(config["num_updates"]) % int(config["updates_per_step"]):
        raise errors.ConfigError(
            f"config.num_updates={config['num_updates']}: expected a multiple of config.updates_per_step, "
            f"{config['updates_per_step']}"
        )
    workdir = open_workdir(workdir, config)
    started = time.monotonic()
    task = make_task()
    world = fit_world(
        config, task, load_data(config, task), group=task.group, model=config["model"], alpha=float(config["alpha"])
    )
    print(f"model ready after {time.monotonic() - started:.0f} s")
    distribution = functools.cache(lambda: learn_translations(config, world))
    inputs = Inputs(
        config,
        world,
        learned=functools.cache(lambda: draw_bank(config, world, distribution(), world.dataset.transitions())),
        untested=functools.cache(
            lambda: baselines.uniform_bank(
                task.group,
                world.dataset.transitions(),
                tasks.arena_domain(task),
                key=run_key(config, 4),
                num_elements=int(config["symmetry"]["num_elements"]),
            )
        ),
    )
    evaluate = make_evaluator(task, learner, num_episodes=int(config["num_episodes"]))
    results: dict[str, dict[str, Episodes]] = {}
    for name, method in chosen.items():
        begun = time.monotonic()
        agents = _train_method(config, workdir / "methods" / name, learner, method, inputs)
        results[name] = {s: evaluate(agents, run_key(config, 1), stratum) for s, stratum in task.strata.items()}
        rates = {s: round(float(np.mean(np.asarray(e.success))), 3) for s, e in results[name].items()}
        print(f"{name}: {rates} after {time.monotonic() - begun:.0f} s")
    banks: dict[str, tuple[dynamics.TransformBank, dynamics.Transitions]] = {}
    if "her_learned" in chosen:
        banks["symmetry"] = inputs.learned(), world.dataset.transitions()
        # Episodes of the same law that neither model nor translations have seen: of a file there are none.
        if not config["data"]["path"]:
            fresh = tasks.generate(task, run_key(config, 7), num_episodes=FRESH_EPISODES).transitions()
            banks["symmetry_fresh"] = draw_bank(config, world, distribution(), fresh, number=8), fresh
    return _report(config, Path(report or workdir), world, banks, results)


def _train_method(config: Config, workdir: Path, learner: Learner, method: Method, inputs: Inputs) -> Agent:
    """Trains all seeds of a method at once; resumes from its checkpoints."""
    workdir.mkdir(parents=True, exist_ok=True)
    task = inputs.world.task
    axes = tuple(() if method.goal_fixed else indices for indices in task.group.goal_axes)
    sampling = Sampling(
        achieved=task.achieved,
        reward_fn=task.reward,
        reward_policy=reward_recomputed(task.reward),
        group=dataclasses.replace(task.group, goal_axes=axes) if method.symmetry else None,
        domain=tasks.goal_domain(task) if method.symmetry else None,
        her_share=float(config["her_share"]) if method.her else 0.0,
        augment_share=float(config["augment_share"]) if method.symmetry else 0.0,
        add_noise=method.noise,
    )
    trainer = make_trainer(
        learner,
        make_sampler(sampling),
        num_updates=int(config["updates_per_step"]),
        batch_size=int(config["batch_size"]),
        normalize=bool(config["normalize"]),
    )
    data = method.data(inputs)
    keys = jax.random.split(jax.random.key(int(config["seed"])), int(config["num_seeds"]))

    @jax.jit
    def step(state: TrainState, data: SamplerData) -> tuple[TrainState, dict[str, Any]]:
        folded = jax.vmap(jax.random.fold_in, in_axes=(0, None))(state.key, state.step)
        agents, metrics = jax.vmap(trainer.run, in_axes=(0, None, 0))(state.params, data, folded)
        means = {name: jnp.mean(values) for name, values in metrics.items()}
        return state.replace(step=state.step + 1, params=agents), {"loss": means["actor_loss"], **means}

    # One key for the start, one for the updates: a key split and a key folded with 0 would be the same.
    first, later = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    agents = jax.jit(jax.vmap(trainer.init, in_axes=(0, None)))(first, data)
    start = TrainState(step=jnp.zeros((), jnp.int32), params=agents, opt_state=(), key=later)
    with MetricWriter(workdir) as writer, Checkpoints(workdir / "checkpoints", keep=1, save_interval=4) as checkpoints:
        trained = run_training(
            step,
            start,
            lambda _: data,
            num_steps=int(config["num_updates"]) // int(config["updates_per_step"]),
            writer=writer,
            checkpoints=checkpoints,
        )
    return trained.params


def _report(
    config: Config,
    directory: Path,
    world: World,
    banks: Mapping[str, tuple[dynamics.TransformBank, dynamics.Transitions]],
    results: Mapping[str, Mapping[str, Episodes]],
) -> Path:
    """Writes summary, figures and report into a directory."""
    task = world.task
    values: dict[str, float] = {}
    rows = []
    for name, strata in results.items():
        intervals = {s: seed_interval(np.asarray(episodes.success)) for s, episodes in strata.items()}
        rows.append({"method": name, **intervals})
        for stratum, interval in intervals.items():
            values |= interval.named(f"{name}/{stratum.replace(' ', '_')}")
    section = reporting.Section(f"Offline RL: {task.name.replace('_', ' ')}", order=20)
    section.table(
        rows,
        caption=f"Success, interquartile mean over {config['num_seeds']} seeds of the policy with bootstrap 95 % "
        "intervals: all share one data set, one model and one bank of translations.",
        digits=3,
    )
    print(reporting.make_table(rows, digits=3).to_text())
    quality = model_quality(world, world.parts["calibration"])
    section.table([quality], caption="The model, on the calibration episodes; errors in tolerances.", digits=3)
    values |= {f"model/{name}": value for name, value in quality.items()}
    if banks:
        rows = [{"episodes": name, **_bank_numbers(world, *bank)} for name, bank in banks.items()]
        print(reporting.make_table(rows, digits=4).to_text())
        caption = "Learned translations, of the data and of fresh episodes; intervals over episodes."
        section.table(rows, caption=caption, digits=4)
        for row in rows:
            for name, value in row.items():
                if isinstance(value, Interval):
                    values |= value.named(f"{row['episodes']}/{name}")
                elif isinstance(value, float):
                    values[f"{row['episodes']}/{name}"] = value
        _symmetry_figures(section, world, banks["symmetry"][0])
    # Seeds and strata together; every method meets the same episodes.
    distances = [np.asarray(episodes.goal_distance) for episodes in next(iter(results.values())).values()]
    distance = np.concatenate(distances, 1).reshape(-1)
    edges = np.linspace(0, distance.max() + 1e-6, 9)
    bins = np.digitize(distance, edges) - 1
    series = {}
    for name, strata in results.items():
        success = np.concatenate([np.asarray(episodes.success) for episodes in strata.values()], 1).reshape(-1)
        series[name] = [_mean(success[bins == b]) for b in range(8)]
    png = reporting.lines(
        ((edges[1:] + edges[:-1]) / 2).tolist(), series, xlabel="distance to the goal", ylabel="success"
    )
    section.figure(png, alt="success by goal distance", caption="Success by goal distance, all strata.")
    write_summary(directory, "offline_rl", values)
    reporting.write_fragment(directory, "offline_rl", section)
    report = reporting.build_report(directory, "edgesafe_jax")
    print(f"report: {report}")
    return report


def _bank_numbers(world: World, bank: dynamics.TransformBank, data: dynamics.Transitions) -> dict[str, Any]:
    """What a bank accepts, what of it is wrong in the true world, and how many cells it visits."""
    task, accepted, verdicts = world.task, np.asarray(bank.accepted), np.asarray(bank.verdicts)
    wrong = baselines.is_wrong(task.step, task.group, bank.elements, data, tolerance=task.tolerance)
    episodes = np.broadcast_to(np.asarray(data.episodes)[:, None], accepted.shape)
    first = [indices[0] for indices in task.group.state_axes]
    cover = functools.partial(dynamics.coverage, low=task.domain[0], high=task.domain[1])
    return {
        "accepted": float(accepted.mean()),
        "wrong_among_accepted": _interval(wrong[accepted], episodes[accepted]),
        "wrong_among_proposed": float(wrong.mean()),
        "coverage_before": cover(np.asarray(data.states)[:, first]),
        "coverage_after": cover(_places(world, bank, data)[accepted]),
        **{v.name.lower(): float(np.mean(verdicts == v)) for v in Verdict},
    }


def _places(world: World, bank: dynamics.TransformBank, data: dynamics.Transitions) -> np.ndarray:
    """Where the elements of a bank lead, `[N, M, 2]`."""
    first = [indices[0] for indices in world.task.group.state_axes]
    return np.asarray(data.states)[:, None, first] + np.asarray(bank.elements)


def _symmetry_figures(section: reporting.Section, world: World, bank: dynamics.TransformBank) -> None:
    """Draws where learned translations lead, accepted or not, and the cells that are visited."""
    task, data, accepted = world.task, world.dataset.transitions(), np.asarray(bank.accepted)
    first = [indices[0] for indices in task.group.state_axes]
    places, (low, high) = _places(world, bank, data), task.domain
    # A few of all that were proposed, by what was said of them.
    chosen = np.random.default_rng(0).permutation(accepted.size)[:4000]
    verified = (np.asarray(bank.verdicts) == Verdict.VERIFIED).reshape(-1)[chosen]
    points, taken = places.reshape(-1, 2)[chosen], accepted.reshape(-1)[chosen]
    shown = {
        "accepted, declared": points[taken & ~verified],
        "accepted, verified": points[taken & verified],
        "not accepted": points[~taken],
    }
    walls = [_ends(wall) for wall in task.walls]
    # The data lie beneath; a margin shows what leaves the domain.
    margin = 0.1 * (np.array(high) - np.array(low))
    png = reporting.point_map(
        {"data": np.asarray(data.states)[::10, first], **{name: each for name, each in shown.items() if len(each)}},
        low=(np.array(low) - margin).tolist(),
        high=(np.array(high) + margin).tolist(),
        walls=walls,
    )
    section.figure(
        png,
        alt="arena with accepted and rejected translations",
        caption="Where translations lead, some of those proposed. Declared: beyond the data, in the domain.",
    )
    edges = [np.linspace(low[i], high[i], 21) for i in range(2)]
    grids = {
        name: (np.histogram2d(*points.reshape(-1, 2).T, bins=edges)[0] > 0).astype(float)
        for name, points in (("before", np.asarray(data.states)[:, first]), ("after", places[accepted]))
    }
    section.figure(reporting.grid_maps(grids, low=low, high=high), alt="cells visited before and after augmentation")


def _ends(wall: tasks.Wall) -> tuple[tuple[float, float], tuple[float, float]]:
    if wall.axis == 0:
        return (wall.at, wall.low), (wall.at, wall.high)
    return (wall.low, wall.at), (wall.high, wall.at)
