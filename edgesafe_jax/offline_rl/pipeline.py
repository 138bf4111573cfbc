"""A data set made into policies: fit a world model, learn translations, train by several methods, evaluate by stratum.

    results = run_pipeline(task, dataset, make_td3_bc(), PipelineSettings(), "runs/mine", methods=["her", "none"])

The task says what is measured: the goal that a state achieves, the reward, the strata of evaluation and, for the
evaluation alone, the true dynamics.
"""

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax.dynamics import (
    BoxDomain,
    DomainTranslations,
    Kinds,
    ReachSettings,
    TransformBank,
    Transitions,
    TranslationDistribution,
    WorldModel,
    WorldModelSettings,
    find_kinds,
    fit_translations,
    fit_world_model,
    make_bank,
)
from edgesafe_jax.dynamics.transitions import check_settings
from edgesafe_jax.errors import COUNT, FRACTION, NON_NEGATIVE, POSITIVE_COUNT, check_texts, lookup
from edgesafe_jax.offline_rl import baselines, tasks
from edgesafe_jax.offline_rl.datasets import OfflineDataset
from edgesafe_jax.offline_rl.evaluation import Episodes, make_evaluator
from edgesafe_jax.offline_rl.learning import Agent, Learner, make_trainer
from edgesafe_jax.offline_rl.methods import METHODS, Method, MethodInputs, draw_key
from edgesafe_jax.offline_rl.planned import PLANNED, PlanSettings, make_plan_evaluator, seconds_per_plan
from edgesafe_jax.offline_rl.relabelling import (
    LearningError,
    SamplerData,
    Sampling,
    make_sampler,
    reward_recomputed,
)
from edgesafe_jax.training import Checkpoints, MetricWriter, TrainState
from edgesafe_jax.training import train as run_training

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class SymmetrySettings:
    """Settings of learning and testing translations.

    Attributes:
      declare_domain: whether the task's domain is declared to have one law, beyond the data too.
      along: axes of the task's translations along which alone the law is declared to go on; empty: in all directions.
      by_kind: whether the law is declared to depend on the place only through what is seen of it, `Task.kinds`.
      num_elements: translations that are proposed for each transition.
      reach: of the fit.
    """

    declare_domain: bool = True
    along: tuple[int, ...] = ()
    by_kind: bool = False
    num_elements: int = 32
    reach: ReachSettings = dataclasses.field(default_factory=ReachSettings)

    def __post_init__(self):
        check_settings(self, {"num_elements": POSITIVE_COUNT}, LearningError)
        if self.by_kind and (self.along or not self.declare_domain):
            found = f"along={self.along}" if self.along else "declare_domain=False"
            raise LearningError(f"symmetry.by_kind=True with symmetry.{found}: expected a declared domain and no axes")


@dataclasses.dataclass(frozen=True)
class PolicySettings:
    """Settings of training and evaluating policies.

    Attributes:
      her_fraction: of the rows, of methods with hindsight goals.
      augment_fraction: of the rows, of methods with a symmetry.
      noise_scale: of state noise, in standard deviations of the states.
      rollouts_per_row: rollouts of the model for each row of the data.
      rollout_length: steps of each.
      normalize: whether observations are normalised.
      batch_size: rows of a batch.
      num_updates: updates in all.
      updates_per_step: updates between two lines of metrics, in one scan; divides `num_updates`.
      num_seeds: policies of each method, trained at once.
      num_episodes: episodes of each stratum, for every policy.

    Raises:
      LearningError: if a number is out of range.
    """

    her_fraction: float = 0.8
    augment_fraction: float = 0.8
    noise_scale: float = 0.01
    rollouts_per_row: float = 0.2
    rollout_length: int = 5
    normalize: bool = False
    batch_size: int = 256
    num_updates: int = 8000
    updates_per_step: int = 1000
    num_seeds: int = 10
    num_episodes: int = 200

    def __post_init__(self):
        check_settings(self, _RANGES, LearningError)
        if self.num_updates % self.updates_per_step:
            raise LearningError(
                f"num_updates={self.num_updates}: expected a multiple of updates_per_step, {self.updates_per_step}"
            )


_RANGES = {
    "her_fraction": FRACTION,
    "augment_fraction": FRACTION,
    "noise_scale": NON_NEGATIVE,
    "rollouts_per_row": NON_NEGATIVE,
    "rollout_length": POSITIVE_COUNT,
    "batch_size": POSITIVE_COUNT,
    "num_updates": POSITIVE_COUNT,
    "updates_per_step": POSITIVE_COUNT,
    "num_seeds": POSITIVE_COUNT,
    "num_episodes": POSITIVE_COUNT,
}


@dataclasses.dataclass(frozen=True)
class PipelineSettings:
    """A whole run.

    Attributes:
      seed: of the split, the fits, the policies and the evaluation.
      model: of the world model.
      symmetry: of the translations.
      policies: of training and evaluation.
      plan: of planning to goals on the model.
      fresh_episodes: episodes that the task generates to check learned translations on; 0 for none, where the data
        are not those of the task's behaviour.
    """

    seed: int = 0
    model: WorldModelSettings = dataclasses.field(default_factory=WorldModelSettings)
    symmetry: SymmetrySettings = dataclasses.field(default_factory=SymmetrySettings)
    policies: PolicySettings = dataclasses.field(default_factory=PolicySettings)
    plan: PlanSettings = dataclasses.field(default_factory=PlanSettings)
    fresh_episodes: int = 0

    def __post_init__(self):
        check_settings(self, {"fresh_episodes": COUNT}, LearningError)


@dataclasses.dataclass(frozen=True)
class PipelineResults:
    """The results of a run.

    Attributes:
      task: the task.
      dataset: its data.
      replaced: see `tasks.compare_rules`; rewards and terminals of all rows, in all methods, are the task's.
      model: the world model.
      banks: tested translations with the transitions that they belong to: ``symmetry`` of the data and
        ``symmetry_fresh`` of fresh episodes where they are learned, ``tested`` and ``tested_fresh`` where they are
        proposed uniformly; empty where no method tests any.
      agents: from method to its trained agents, a leading axis of seeds.
      episodes: from method and stratum to the evaluation, `[num_seeds, num_episodes]`; of planners, one seed.
      plan_seconds: from planner to the seconds that one plan takes.
    """

    task: tasks.Task
    dataset: OfflineDataset
    replaced: Mapping[str, float]
    model: WorldModel
    banks: Mapping[str, tuple[TransformBank, Transitions]]
    agents: Mapping[str, Agent]
    episodes: Mapping[str, Mapping[str, Episodes]]
    plan_seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)


def choose_methods(names: Sequence[str]) -> dict[str, Method]:
    """Returns the named entries of `METHODS`.

    Raises:
      ConfigError: there is no method of a name.
    """
    return {name: lookup(METHODS, name, "methods") for name in check_texts("methods", names)}


def run_pipeline(
    task: tasks.Task,
    dataset: OfflineDataset,
    learner: Learner,
    settings: PipelineSettings,
    workdir: str | Path,
    *,
    methods: Sequence[str] = ("none", "her", "her_learned"),
    planners: Sequence[str] = (),
) -> PipelineResults:
    """Trains and evaluates policies by several methods on one data set; an interrupted run continues in its directory.

    Args:
      task: the task.
      dataset: its data; see `tasks.fit_dataset`. Rewards and terminals are computed anew, by the task's rules.
      learner: the algorithm.
      settings: of all stages.
      workdir: where metrics and checkpoints of the policies are kept, in ``methods/NAME``.
      methods: names of `METHODS`.
      planners: names of `planned.PLANNED`, which are evaluated beside the methods.

    Returns:
      The world model, the banks, the agents and the evaluation.

    Raises:
      ConfigError: there is no method of a name.
      LearningError: a method, or the fresh episodes, need a simulator and the task has none; or the law is declared by
        kinds of places, of which the task has no map.
      DynamicsError: the data are too few for the model or its calibration.
    """
    for name in planners:
        lookup(PLANNED, name, "planners")
    chosen, started, seed = choose_methods(methods), time.monotonic(), settings.seed
    tasks.check_task(task)
    lacking = [] if task.simulated else [*planners, *(name for name in chosen if chosen[name].simulated)]
    if lacking or (settings.fresh_episodes and not task.simulated):
        asked = f"{lacking[0]!r}" if lacking else f"fresh_episodes={settings.fresh_episodes}"
        raise LearningError(f"{asked} needs a simulator, which the task {task.name!r} lacks: leave it out")
    dataset = tasks.fit_dataset(task, dataset)
    replaced = tasks.compare_rules(task, dataset)
    for name, fraction in replaced.items():
        if fraction:
            what = name.removesuffix("_replaced")
            _log.info("%s of %.3g of the rows are not the task's: the task's are used in all rows", what, fraction)
    kinds = see_kinds(task, dataset.transitions(), settings.symmetry)
    model = fit_world_model(
        seed,
        dataset.transitions(),
        settings.model,
        moved=task.group.moved,
        tolerance=task.tolerance,
        relations=task.relations,
    )
    _log.info("model ready after %.0f s", time.monotonic() - started)
    banks = _Banks(task, dataset, model, kinds, settings)
    inputs = MethodInputs(
        seed=seed,
        task=task,
        dataset=dataset,
        model=model,
        learned=lambda: banks.of_data("symmetry"),
        tested=lambda: banks.of_data("tested"),
        untested=functools.cache(
            lambda: baselines.uniform_bank(
                draw_key(seed, 4),
                task.group,
                dataset.transitions(),
                tasks.arena_domain(task),
                num_elements=settings.symmetry.num_elements,
            )
        ),
        noise_scale=settings.policies.noise_scale,
        rollouts_per_row=settings.policies.rollouts_per_row,
        rollout_length=settings.policies.rollout_length,
    )
    evaluate = make_evaluator(task, learner, num_episodes=settings.policies.num_episodes)
    agents: dict[str, Agent] = {}
    episodes: dict[str, dict[str, Episodes]] = {}
    for name, method in chosen.items():
        begun = time.monotonic()
        agents[name] = train_method(method, learner, inputs, settings.policies, Path(workdir) / "methods" / name)
        key = draw_key(seed, 1)
        strata = task.strata if task.simulated else {}  # without a simulator nothing is evaluated
        episodes[name] = {s: evaluate(key, agents[name], stratum) for s, stratum in strata.items()}
        rates = {s: round(float(np.mean(np.asarray(e.success))), 3) for s, e in episodes[name].items()}
        _log.info("%s: %s after %.0f s", name, rates, time.monotonic() - begun)
    planned, plan_seconds = evaluate_plans(task, dataset, model, settings, planners)
    return PipelineResults(
        task=task,
        dataset=dataset,
        replaced=replaced,
        model=model,
        banks=banks.used([name for name, method in _TESTED.items() if method in chosen]),
        agents=agents,
        episodes=episodes | planned,
        plan_seconds=plan_seconds,
    )


_TESTED = {"symmetry": "her_learned", "tested": "her_tested"}
"""The methods whose banks are reported, by the bank's name."""


class _Banks:
    """The tested translations of a run by name, each bank made when it is first asked for."""

    def __init__(
        self,
        task: tasks.Task,
        dataset: OfflineDataset,
        model: WorldModel,
        kinds: Kinds | None,
        settings: PipelineSettings,
    ):
        self.task, self.data, self.settings = task, dataset.transitions(), settings
        self.draw = functools.partial(draw_bank, task=task, model=model, settings=settings.symmetry, kinds=kinds)
        self.proposals: dict[str, Callable[[], TranslationDistribution | DomainTranslations]] = {
            "symmetry": functools.cache(lambda: learn_translations(task, dataset, model, settings, kinds=kinds)),
            "tested": lambda: DomainTranslations(task.group, tasks.arena_domain(task)),
        }
        self.of_data = functools.cache(self._of_data)

    def _of_data(self, name: str) -> TransformBank:
        key = draw_key(self.settings.seed, {"symmetry": 3, "tested": 9}[name])
        return self.draw(key, distribution=self.proposals[name](), data=self.data)

    def used(self, names: Sequence[str]) -> dict[str, tuple[TransformBank, Transitions]]:
        """Returns some banks of the data and, if the settings ask for them, of fresh episodes."""
        number, seed = self.settings.fresh_episodes, self.settings.seed
        fresh = None
        if names and number:  # of the same law, which neither model nor translations have seen
            fresh = tasks.generate(draw_key(seed, 7), self.task, num_episodes=number).transitions()
        found: dict[str, tuple[TransformBank, Transitions]] = {}
        for name in names:
            found[name] = self.of_data(name), self.data
            if fresh is not None:
                bank = self.draw(draw_key(seed, 8), distribution=self.proposals[name](), data=fresh)
                found[f"{name}_fresh"] = bank, fresh
        return found


def evaluate_plans(
    task: tasks.Task, dataset: OfflineDataset, model: WorldModel, settings: PipelineSettings, planners: Sequence[str]
) -> tuple[dict[str, dict[str, Episodes]], dict[str, float]]:
    """Plans to the goals of every stratum with what `planned.PLANNED` names.

    Returns:
      From name and stratum to episodes, and from name to the seconds of one plan.
    """
    evaluate = make_plan_evaluator(task, settings.plan)
    episodes: dict[str, dict[str, Episodes]] = {}
    seconds: dict[str, float] = {}
    for name in planners:
        begun, simulated = time.monotonic(), PLANNED[name](task, model, dataset.transitions(), settings.plan)
        key = draw_key(settings.seed, 1)
        episodes[name] = {s: evaluate(key, simulated, stratum) for s, stratum in task.strata.items()}
        rates = {s: round(float(np.mean(np.asarray(e.success))), 3) for s, e in episodes[name].items()}
        seconds[name] = seconds_per_plan(task, simulated, settings.plan)
        _log.info("%s: %s after %.0f s", name, rates, time.monotonic() - begun)
        _log.info("%s: a plan takes %.1f ms of a step of %.3g ms", name, 1e3 * seconds[name], 1e3 * task.control_step)
    return episodes, seconds


def learn_translations(
    task: tasks.Task,
    dataset: OfflineDataset,
    model: WorldModel,
    settings: PipelineSettings,
    *,
    kinds: Kinds | None = None,
) -> TranslationDistribution:
    """Learns how far translations reach, on all transitions of the data."""
    few = model.support.replace(references=model.support.references[::2])
    distribution, _ = fit_translations(
        draw_key(settings.seed, 2),
        model.ensemble,
        model.calibration,
        few,
        task.group,
        dataset.transitions(),
        settings.symmetry.reach,
        domain=_declared(task, settings.symmetry),
        along=settings.symmetry.along,
        kinds=kinds,
    )
    return distribution


def see_kinds(task: tasks.Task, data: Transitions, settings: SymmetrySettings) -> Kinds | None:
    """Returns the kinds of places that the task's map shows, or None where the law is not declared by them.

    Raises:
      LearningError: it is, and the task has no map.
    """
    if not settings.by_kind:
        return None
    if task.kinds is None:
        raise LearningError(f"symmetry.by_kind needs `Task.kinds`, which the task {task.name!r} lacks: leave it out")
    return find_kinds(task.kinds, task.group, data)


def draw_bank(
    key: jax.Array,
    task: tasks.Task,
    model: WorldModel,
    distribution: TranslationDistribution | DomainTranslations,
    data: Transitions,
    settings: SymmetrySettings,
    *,
    kinds: Kinds | None = None,
) -> TransformBank:
    """Tests what a distribution of translations proposes for some transitions."""
    return make_bank(
        key,
        model.ensemble,
        model.calibration,
        model.support,
        distribution,
        data,
        domain=_declared(task, settings),
        along=settings.along,
        kinds=kinds,
        num_elements=settings.num_elements,
    )


def _declared(task: tasks.Task, settings: SymmetrySettings) -> BoxDomain | None:
    return tasks.arena_domain(task) if settings.declare_domain else None


def train_method(
    method: Method, learner: Learner, inputs: MethodInputs, settings: PolicySettings, workdir: str | Path
) -> Agent:
    """Trains all seeds of a method at once; continues from its checkpoints.

    Args:
      method: what the policies are trained on.
      learner: the algorithm.
      inputs: the data and what the method may draw on.
      settings: of training.
      workdir: where metrics and checkpoints are kept.

    Returns:
      The agents, with a leading axis of seeds.
    """
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    trainer = make_trainer(
        learner,
        make_sampler(_sampling(method, inputs.task, settings)),
        num_updates=settings.updates_per_step,
        batch_size=settings.batch_size,
        normalize=settings.normalize,
    )
    data = method.data(inputs)
    keys = jax.random.split(jax.random.key(inputs.seed), settings.num_seeds)

    @jax.jit
    def step(state: TrainState, data: SamplerData) -> tuple[TrainState, dict[str, Any]]:
        folded = jax.vmap(jax.random.fold_in, in_axes=(0, None))(state.key, state.step)
        agents, metrics = jax.vmap(trainer.run, in_axes=(0, 0, None))(folded, state.params, data)
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
            num_steps=settings.num_updates // settings.updates_per_step,
            writer=writer,
            checkpoints=checkpoints,
        )
    return trained.params


def _sampling(method: Method, task: tasks.Task, settings: PolicySettings) -> Sampling:
    group = task.group.without_goal() if method.goal_fixed else task.group
    return Sampling(
        achieved=task.achieved,
        reward_fn=task.reward,
        reward_policy=reward_recomputed(task.reward),
        group=group if method.symmetry else None,
        domain=tasks.goal_domain(task) if method.symmetry else None,
        her_fraction=settings.her_fraction if method.her else 0.0,
        augment_fraction=settings.augment_fraction if method.symmetry else 0.0,
        add_noise=method.noise,
        terminal_fn=task.ends,
        recompute=True,  # so that all methods learn from the same rewards
    )
