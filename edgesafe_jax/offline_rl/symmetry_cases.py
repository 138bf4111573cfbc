"""Transformations of known worlds, true symmetries and false ones, and their study on learned models."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax import reporting
from edgesafe_jax.dynamics import (
    Element,
    EquivalenceReport,
    GroupAction,
    NestedResult,
    PlanarRotation,
    Study,
    Translation,
    Verdict,
    WorldModel,
    WorldModelSettings,
    fit_hidden,
    fit_world_model,
    make_segments,
    model_quality,
    nested_test,
    sample_elements,
    study_transformation,
    summarize,
    verdict_map,
)
from edgesafe_jax.offline_rl import ant, maze, tasks
from edgesafe_jax.offline_rl.datasets import OfflineDataset
from edgesafe_jax.offline_rl.report import RunReport

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Case:
    """One transformation of one world.

    Attributes:
      task: makes the world.
      make_group: the transformation; None: the joint translation of the task.
      expected: what the test should say.
      unseen: walls that stand in the world, but not where the data are.
      horizon: steps of the segments that are tested.
    """

    task: Callable[[], tasks.Task]
    make_group: Callable[[tasks.Task], GroupAction] | None
    expected: str
    unseen: tuple[tasks.Wall, ...] = ()
    horizon: int = 1

    def group(self, task: tasks.Task) -> GroupAction:
        """Returns the transformation of the task."""
        return task.group if self.make_group is None else self.make_group(task)


def _velocity_shift(task: tasks.Task) -> Translation:
    return dataclasses.replace(task.group, state_axes=((2,), (3,)), goal_axes=((), ()))


def _object_alone(task: tasks.Task) -> Translation:
    return dataclasses.replace(task.group, state_axes=((4,), (5,)))


def _height(task: tasks.Task) -> Translation:
    """Lifts the torso: the ground stays where it was."""
    return dataclasses.replace(task.group, state_axes=((2,),), goal_axes=((),), low=(-0.3,), high=(0.3,))


def _rotation(task: tasks.Task) -> PlanarRotation:
    return PlanarRotation(task.sizes, state_pairs=((0, 1), (2, 3)), action_pairs=((0, 1),), goal_pairs=((0, 1),))


def _fine(task: tasks.Task) -> tasks.Task:
    """The task with a quarter of its tolerance, for a break that the whole tolerance covers almost everywhere."""
    return dataclasses.replace(task, tolerance=tuple(limit / 4 for limit in task.tolerance))


_CENTRE = tasks.Stratum(((-1.2, -1.2), (1.2, 1.2)), ((-1.2, -1.2), (1.2, 1.2)))
_LEFT = tasks.Stratum(((-2.0, -2.0), (-0.6, 2.0)), ((-2.0, -2.0), (-0.6, 2.0)))
_WALL = (tasks.Wall(axis=0, at=0.0, low=-1.0, high=2.0),)

_DRAG_RAMP = tasks.Law(drag=lambda place: tasks.DRAG + 1.6 * place[0])
_GRAVITY_RAMP = tasks.Law(field=lambda place: jnp.stack([-3.0 * place[0], jnp.zeros(())]))
_scripted = functools.partial(tasks.make_point_mass, explores=False)
_point_mass = functools.partial(_scripted, data=_CENTRE)

CASES: dict[str, Case] = {
    "translation": Case(_point_mass, None, "verified"),
    "rotation": Case(_point_mass, _rotation, "verified"),
    "velocity_shift": Case(_point_mass, _velocity_shift, "rejected"),
    "drag_by_place": Case(lambda: _fine(_point_mass(law=_DRAG_RAMP)), None, "rejected"),
    "gravity_ramp": Case(functools.partial(_point_mass, law=_GRAVITY_RAMP), None, "rejected"),
    "walls": Case(tasks.make_walled_point_mass, None, "partly"),
    "unseen_wall": Case(functools.partial(_scripted, data=_LEFT), None, "extrapolated", unseen=_WALL),
    "underfitted": Case(_point_mass, None, "inconclusive"),
    "pusher_joint": Case(tasks.make_pusher, None, "verified"),
    "pusher_object_alone": Case(tasks.make_pusher, _object_alone, "rejected", horizon=5),
    "reacher": Case(tasks.make_reacher, None, "rejected"),
    "point_maze": Case(maze.make_point_maze, None, "partly"),
    "ant": Case(ant.make_ant, None, "verified"),
    "ant_height": Case(ant.make_ant, _height, "rejected"),
}
"""The cases by name; another one is an entry at the end, for a case's random numbers follow from its place."""


@dataclasses.dataclass(frozen=True)
class CaseResult:
    """The results of one case.

    Attributes:
      case: the case.
      task: its world.
      study: verdicts by tolerance, against the simulator.
      report: the verdicts at the task's tolerance, summed up.
      quality: of the model, on fresh episodes.
      nested: what it costs to hide what a translation moves, see `edgesafe_jax.dynamics.nested_test`; None of another
        transformation.
    """

    case: Case
    task: tasks.Task
    study: Study
    report: EquivalenceReport
    quality: Mapping[str, float]
    nested: NestedResult | None


def draw_elements(seed: int, case: Case, group: GroupAction, dataset: OfflineDataset, starts: np.ndarray) -> Element:
    """Draws one element for each state: a translation to where another transition is, or beyond an unseen wall.

    Args:
      seed: of the draws.
      case: the case.
      group: its transformation.
      dataset: where translations lead to.
      starts: `[N, S]`.

    Returns:
      The elements, leaves `[N, ...]`.
    """
    if not isinstance(group, Translation):
        return sample_elements(jax.random.key(seed), group, len(starts))
    rng = np.random.default_rng(seed)
    first = [indices[0] for indices in group.state_axes]
    places = dataset.states[rng.integers(dataset.num_transitions, size=len(starts))][:, first]
    if case.unseen:
        places = places * np.array([-1.0, 1.0])  # on the other side
    return jnp.asarray(places - starts[:, first], jnp.float32)


def study_case(
    name: str,
    settings: WorldModelSettings,
    *,
    seed: int = 0,
    num_episodes: int,
    scales: Sequence[float] = (1.0,),
) -> CaseResult:
    """Generates the data of a case, fits a model, and tests the transformation against the simulator.

    Args:
      name: of `CASES`.
      settings: of the world model, with a part ``fresh`` on which the test is measured; the case sets its horizon.
      seed: of data and fits; cases of one seed draw different numbers.
      num_episodes: episodes of the data.
      scales: multiples of the task's tolerance, 1 among them.

    Returns:
      The result.
    """
    case, number = CASES[name], list(CASES).index(name)
    task = case.task()
    group = case.group(task)
    dataset = tasks.generate(jax.random.key(seed + number), task, num_episodes=num_episodes)
    model: WorldModel = fit_world_model(
        seed,
        dataset.transitions(),
        dataclasses.replace(settings, horizon=case.horizon),
        moved=group.moved,
        tolerance=task.tolerance,
        relations=task.relations,
    )
    data = make_segments(model.parts["fresh"], case.horizon)
    study = study_transformation(
        model,
        group,
        draw_elements(number, case, group, dataset, np.asarray(data.states)[:, 0]),
        data,
        true_step=tasks.make_point_mass(walls=case.unseen).step if case.unseen else task.step,
        tolerance=task.tolerance,
        scales=scales,
        alpha=settings.alpha,
    )
    quality = model_quality(model.ensemble, model.parts["fresh"], tolerance=task.tolerance)
    nested = None
    if isinstance(group, Translation):
        parts = (model.parts["training"], model.parts["validation"])
        hidden = fit_hidden(seed, group, *parts, settings.ensemble, relations=task.relations)
        nested = nested_test(model.ensemble, hidden, group, model.parts["fresh"], tolerance=task.tolerance)[0]
    _log.info("%s: %s", name, {key: value for key, value in study.at_tolerance.items() if key in ("verified", "wrong")})
    return CaseResult(case, task, study, summarize(study.result), quality, nested)


def report_cases(results: Mapping[str, CaseResult]) -> RunReport:
    """Puts studies into tables: verdicts, models, power and false acceptance by tolerance, maps of the verdicts."""
    rows, models, nested, curve, values = [], [], [], [], {}
    section = reporting.Section("Tests of symmetries", order=10)
    for name, found in results.items():
        study, report, at = found.study, found.report, found.study.at_tolerance
        curve += [{"case": name, **line} for line in study.curve]
        for line in study.curve:
            values |= {f"{name}/scale_{line['scale']:g}/{key}": line[key] for key in line if key != "scale"}
        rows.append(
            {
                "case": name,
                "expected": found.case.expected,
                "overall": report.overall.name.lower(),
                "because": report.reason,
                **report.fractions,
                "wrong": at["wrong"],
                "wrong among verified": study.false,
                "could be verified": at["could be verified"],
                "could be rejected": at["could be rejected"],
            }
        )
        values |= {f"{name}/{verdict}": fraction for verdict, fraction in report.fractions.items()}
        if study.false is not None:
            values |= {f"{name}/wrong_among_verified_high": study.false.high}
        if found.nested is not None:
            hiding = dataclasses.asdict(found.nested)
            nested.append({"case": name, **hiding, "verdict": found.nested.verdict.name.lower()})
            values |= {f"{name}/nested/{key}": float(value) for key, value in hiding.items() if key != "verdict"}
            values |= {f"{name}/nested/verified": float(found.nested.verdict == Verdict.VERIFIED)}
        models.append({"case": name, **found.quality})
        values |= {f"{name}/model/{key}": value for key, value in found.quality.items()}
        section.table(report.dimensions or [{"dimension": "none was tested"}], caption=f"{name}: by dimension")
    section.table(
        rows,
        caption="Verdicts at the tolerance of the task; interval over episodes. Wrong: by the true simulator. "
        "What could be verified or rejected: of the tested samples, by a model without an error.",
        digits=3,
    )
    if nested:
        caption = (
            "The nested test: what it costs, in tolerances, to hide from a model what the translation moves; verified "
            "if the upper bound is at most 0.1."
        )
        section.table(nested, caption=caption, digits=3)
    section.table(models, caption="The models, on episodes that they were not fitted on.", digits=3)
    section.table(curve, caption="Power and false acceptance by tolerance.", digits=3)
    _curve_figures(section, results)
    for name, found in results.items():
        low, high = found.task.domain
        cells = verdict_map(found.study.result, dims=(0, 1), low=low, high=high)
        shown = {v: cells[v] for v in ("verified", "rejected", "inconclusive")}
        png = reporting.grid_maps(shown, low=low, high=high, title=name)
        section.figure(png, alt=f"{name}: fraction of verdicts by the place that the transformed states reach")
    tables = [reporting.make_table(each) for each in (rows, nested) if each]
    return RunReport(section, values, tables)


def _curve_figures(section: reporting.Section, results: Mapping[str, CaseResult]) -> None:
    for quantity in ("power", "false acceptance"):
        series: dict[str, Any] = {name: [r[quantity] for r in found.study.curve] for name, found in results.items()}
        series = {name: line for name, line in series.items() if any(value is not None for value in line)}
        if series:
            scales = [line["scale"] for line in next(iter(results.values())).study.curve]
            png = reporting.lines(scales, series, xlabel="tolerance / default", ylabel=quantity, log_x=True)
            section.figure(png, alt=f"{quantity} by tolerance")
