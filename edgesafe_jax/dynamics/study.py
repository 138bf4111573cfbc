"""Evaluation of the symmetry test against the true simulator: power and false acceptance by tolerance."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax.dynamics.equivalence_report import episode_interval
from edgesafe_jax.dynamics.equivariance import Equivalence, Verdict, calibrate, check_group, equivalence_test
from edgesafe_jax.dynamics.groups import Element, GroupAction
from edgesafe_jax.dynamics.transitions import DynamicsError, Segments, Transitions, as_segments
from edgesafe_jax.dynamics.world_model import WorldModel
from edgesafe_jax.metrics.intervals import Interval
from edgesafe_jax.typing import Array

StepFn = Callable[[Array, Array], Array]
"""The true dynamics: from a state `[S]` and an action `[A]` to the next state `[S]`."""


def true_gaps(step: StepFn, group: GroupAction, elements: Element, data: Transitions | Segments) -> np.ndarray:
    """Measures how far transformed transitions, or segments, end from the true world.

    Args:
      step: the true dynamics, from a state `[S]` and an action `[A]` to the next state.
      group: the group.
      elements: leaves `[N, M, ...]`.
      data: N transitions, or segments of several steps.

    Returns:
      `[N, M, S]`, |g.s' - step(g.s, g.a)|, or the same after all steps of the segment.
    """

    def gap(element: Element, states: Array, actions: Array) -> Array:
        acted = jax.vmap(group.action, in_axes=(None, 0))(element, actions)
        truth, _ = jax.lax.scan(lambda s, a: (step(s, a), None), group.state(element, states[0]), acted)
        return jnp.abs(truth - group.state(element, states[-1]))

    check_group(group, data, elements)
    segments = as_segments(data)
    _check_step(step, segments)
    over_elements = jax.vmap(gap, in_axes=(0, None, None))
    return np.asarray(jax.jit(jax.vmap(over_elements))(elements, segments.states, segments.actions))


def _check_step(step: StepFn, data: Segments) -> None:
    state, action = jnp.asarray(data.states[0, 0]), jnp.asarray(data.actions[0, 0])
    after = jax.eval_shape(step, state, action)
    if getattr(after, "shape", None) != state.shape:
        raise DynamicsError(
            f"the simulator turns a state of shape {list(state.shape)} into {after}: expected one of its shape"
        )


def is_wrong(
    step: StepFn, group: GroupAction, elements: Element, data: Transitions, *, tolerance: Sequence[float] | np.ndarray
) -> np.ndarray:
    """Returns `[N, M]` whether any of the `true_gaps` is above the tolerance `[S]`."""
    return np.any(true_gaps(step, group, elements, data) > np.asarray(tolerance, np.float32), axis=-1)


@dataclasses.dataclass(frozen=True)
class Study:
    """The result of a test of one transformation beside the truth of the simulator.

    Attributes:
      curve: one row per tolerance: fractions of the samples that are verified and wrong, power (of the right samples,
        how many are verified), false acceptance (of the wrong ones), and what a model without an error could verify or
        reject of the tested samples; None where no sample is of the kind.
      result: the test at scale 1, the tolerance as it is given.
      false: fraction of the verified samples that are wrong at scale 1, with an interval over episodes; None if none
        is verified.
    """

    curve: list[dict[str, Any]]
    result: Equivalence
    false: Interval | None

    @property
    def at_tolerance(self) -> dict[str, Any]:
        """The row of `curve` at scale 1."""
        return next(row for row in self.curve if row["scale"] == 1.0)


def study_transformation(
    model: WorldModel,
    group: GroupAction,
    elements: Element,
    data: Segments,
    *,
    true_step: StepFn,
    tolerance: Sequence[float],
    scales: Sequence[float] = (1.0,),
    alpha: float = 0.05,
) -> Study:
    """Tests one transformation on a learned model and compares the verdicts with the simulator.

    Args:
      model: the world model; it is calibrated again at each scale, on its part ``calibration``.
      group: the transformation.
      elements: one element a segment, leaves `[N, ...]`.
      data: N segments that neither fit nor calibration saw.
      true_step: the simulator.
      tolerance: `[S]`, in the units of the state.
      scales: multiples of the tolerance at which the test is repeated.
      alpha: level of the calibration.

    Returns:
      The study.

    Raises:
      DynamicsError: if 1 is not among the scales, or the segments are of another length than the test's.
    """
    if 1.0 not in scales:
        raise DynamicsError(f"scales={tuple(scales)}: expected 1, the tolerance as it is given, among them")
    gaps = true_gaps(true_step, group, jax.tree.map(lambda leaf: leaf[:, None], elements), data)[:, 0]
    curve: list[dict[str, Any]] = []
    at_tolerance: Equivalence | None = None
    false = None
    for scale in scales:
        limits = scale * np.array(tolerance)
        calibration = calibrate(
            model.ensemble, model.parts["calibration"], tolerance=limits, alpha=alpha, horizon=data.horizon
        )
        result = equivalence_test(model.ensemble, calibration, model.support, group, elements, data)
        wrong = np.any(gaps > limits, axis=1)
        verdicts = np.asarray(result.verdicts)
        verified, tested = verdicts == Verdict.VERIFIED, verdicts != Verdict.EXTRAPOLATED
        curve.append(
            {
                "scale": float(scale),
                "verified": float(verified.mean()),
                "power": mean_or_none(verified[~wrong]),
                "false acceptance": mean_or_none(verified[wrong]),
                "wrong among verified": mean_or_none(wrong[verified]),
                "wrong": float(wrong.mean()),
                # The verdicts that a model without error could give on the tested samples.
                "could be verified": mean_or_none(np.all(gaps < 0.5 * limits, axis=1)[tested]),
                "could be rejected": mean_or_none(np.any(gaps > 1.5 * limits, axis=1)[tested]),
            }
        )
        if scale == 1.0:
            at_tolerance = result
            false = interval_or_none(wrong[verified], np.asarray(result.episodes)[verified])
    assert at_tolerance is not None  # 1 is among the scales
    return Study(curve=curve, result=at_tolerance, false=false)


def mean_or_none(values: np.ndarray) -> float | None:
    """Returns the mean, or None of nothing."""
    return float(values.mean()) if len(values) else None


def interval_or_none(hits: np.ndarray, episodes: np.ndarray) -> Interval | None:
    """Returns `episode_interval`, or None of nothing."""
    return episode_interval(hits, episodes) if len(hits) else None
