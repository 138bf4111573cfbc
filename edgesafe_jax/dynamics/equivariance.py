r"""Equivalence test of a transformation on a learned model, sample by sample: is it a symmetry of the world?

**Question.** For an observed transition (s, a, s') and an element g: does the transformed transition
(g.s, g.a, g.s') differ from what the world would have done at (g.s, g.a) by less than a tolerance that the user sets,
in every dimension and in its physical units? This is a test of equivalence: the symmetry has to be shown, and a
difference that was not found is no evidence that there is none.

**Statistic.** The residual is anchored to the *observed* next state, so that the model's error at s does not enter.
Half of each tolerance is for the model, half for the symmetry:

.. math:: r = \hat f(g s, g a) - g s', \qquad u = \max_j \sigma_j(g s, g a) / \tau_j, \qquad
          u < \lambda \;\text{and}\; |r_j| < \tau_j / 2 \ \ \forall j \;\Rightarrow\; \text{verified}

`sigma` is the ensemble's spread and u the error that it expects, in tolerances. `lambda` says up to which expected
error the model is trusted to be right within half of the tolerance. It is chosen by conformal risk control on
calibration episodes that had no part in the fit: with K episodes of n_k transitions, S' the observed next state,

.. math:: L_k(\lambda) = \frac1{n_k} \sum_i
              \mathbf 1\{u_{ki} < \lambda,\ \exists j: |S'_j - \hat f_j| > \tau_j / 2\}, \qquad
          \lambda = \sup\Bigl\{\lambda : \frac{1 + \sum_k L_k(\lambda)}{K + 1} \le \alpha\Bigr\} .

One number is calibrated for all dimensions, so no correction for their number is needed. Where the spread predicts an
error (next to a wall) the model is not trusted and nothing is claimed. A margin c * sigma with one c for all places
would have to be as wide everywhere as the largest unexpected error anywhere.

A difference that is small in a single step, such as a missed push, grows over several: with a horizon of K steps the
same is done with segments (s_0, a_0, ..., a_{K-1}, s_K). f becomes the open-loop prediction of s_K, u the
largest along its path, and the path as a whole has to be inside the support.

**Guarantee.** Let episodes be exchangeable: the calibration episodes and the one from which a transition
(S, A, S') is drawn at random. L_k lies in [0, 1] and grows with lambda, so for any sample size, model and distribution

.. math:: P\bigl( u(S, A) < \lambda \ \text{and}\ \exists j: |S'_j - \hat f(S, A)_j| > \tau_j / 2 \bigr) \le \alpha .

A sample that is verified although g.s' is further than the tolerance from the next state that the world draws at
(g.s, g.a) needs this event at (g.s, g.a): the model has to be wrong by more than half of the tolerance, and trusted.
For transformed inputs whose law is that of the calibration inputs, therefore, P(verified and wrong) <= alpha, and
likewise P(rejected and right) <= alpha.

**Limits.** (1) A transformed input follows another law than the data. Within the support (`fit_support`) the
guarantee is an approximation; outside it nothing is claimed and the verdict is `EXTRAPOLATED`, whatever the residual.
(2) The bound is marginal: over the draw of the calibration episodes too, not conditional on a place, and not on being
verified: P(wrong | verified) is at most alpha / P(verified). (3) Transitions of one episode are dependent: intervals
for fractions are over episodes. (4) It is per sample; verdicts of many samples are not jointly covered.

Reference:
  Angelopoulos, Bates, Fisch, Lei and Schuster, "Conformal Risk Control", 2022, equation 4 and theorem 1.
  Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005 (split conformal; the support).
  Lee, Barber and Willett, "Distribution-free inference with hierarchical data", 2023 (episodes as groups).
  Schuirmann, "A comparison of the two one-sided tests procedure", 1987 (equivalence).
"""

import enum
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from edgesafe_jax.dynamics.ensemble import Ensemble, rollout_many
from edgesafe_jax.dynamics.groups import Element, GroupAction
from edgesafe_jax.dynamics.support import CalibrationError, Support, fewest_episodes
from edgesafe_jax.dynamics.transitions import DynamicsError, Segments, Transitions, as_segments, largest, make_segments
from edgesafe_jax.typing import Array


class Verdict(enum.IntEnum):
    """The verdict of the test on one sample."""

    VERIFIED = 0
    """The model is trusted there, and the difference is below half of the tolerance in every dimension."""
    EXTRAPOLATED = 1
    """The transformed input lies outside the support of the data: no test of the data can tell."""
    REJECTED = 2
    """The model is trusted there, and the difference is above one and a half tolerances in some dimension."""
    INCONCLUSIVE = 3
    """Neither: the model is too poor there to be trusted, or the difference is about the tolerance."""


def residuals(
    ensemble: Ensemble, group: GroupAction, elements: Element, data: Transitions | Segments
) -> tuple[Array, Array]:
    r"""Residuals of open-loop predictions over K steps, anchored to the observed states.

    .. math:: r_k = \hat f^k(g s_0, g a_{0:k}) - g s_k

    Args:
      ensemble: the model.
      group: the group.
      elements: one element a segment, leaves `[N, ...]`.
      data: N segments, or N transitions: segments of one step.

    Returns:
      The residuals and the spreads of each step alone, both `[N, K, S]` in the units of the state.
    """

    def one(element: Element, states: Array, actions: Array) -> tuple[Array, Array]:
        moved, acted = _moved(group, element, states, actions)
        prediction = ensemble.rollout(moved[0], acted)
        return prediction.mean - moved[1:], prediction.spread

    check_group(group, data, elements)
    segments = as_segments(data)
    return jax.vmap(one)(elements, jnp.asarray(segments.states), jnp.asarray(segments.actions))


def check_group(group: GroupAction, data: Transitions | Segments, elements: Element = None) -> None:
    """Refuses a group over vectors of other lengths than the data's, and elements of another number.

    Raises:
      DynamicsError: if sizes or numbers differ; the message says which.
    """
    for name, wanted in (("state", group.sizes.state), ("action", group.sizes.action)):
        size = (data.states if name == "state" else data.actions).shape[-1]
        if size != wanted:
            raise DynamicsError(f"the group acts on a {name} of {wanted}, the data have {size}: expected the same")
    for leaf in jax.tree.leaves(elements):
        if not leaf.shape or leaf.shape[0] != len(data.states):
            raise DynamicsError(f"elements of shape {leaf.shape} for {len(data.states)} samples: expected one a sample")


def _moved(group: GroupAction, element: Element, states: Array, actions: Array) -> tuple[Array, Array]:
    """Acts with one element on the states and the actions of a segment."""
    act = (jax.vmap(group.state, in_axes=(None, 0)), jax.vmap(group.action, in_axes=(None, 0)))
    return act[0](element, states), act[1](element, actions)


class Calibration(struct.PyTreeNode):
    """Calibration of the model: when it is trusted to err by less than half of the tolerance.

    Attributes:
      tolerance: `[S]` differences that do not matter, in the units of the state.
      threshold: lambda, the expected error in tolerances below which the model is trusted.
      alpha: bound on the fraction of trusted predictions that are wrong by more than half of a tolerance.
      num_episodes: calibration episodes.
      horizon: K, steps of the segments that are judged.
    """

    tolerance: Array
    threshold: Array
    alpha: float = struct.field(pytree_node=False)
    num_episodes: int = struct.field(pytree_node=False)
    horizon: int = struct.field(pytree_node=False, default=1)

    def expected_error(self, spread: Array) -> Array:
        """Returns u, the largest spread `[..., S]` in tolerances, `[...]`."""
        return largest(spread / jnp.broadcast_to(self.tolerance, spread.shape))


def calibrate(
    ensemble: Ensemble,
    data: Transitions,
    *,
    tolerance: Sequence[float] | np.ndarray,
    alpha: float = 0.05,
    horizon: int = 1,
) -> Calibration:
    """Finds where the model may be trusted, by conformal risk control with episodes as the exchangeable unit.

    Args:
      ensemble: the model.
      data: transitions of calibration episodes, which had no part in the fit, its early stopping included.
      tolerance: `[S]` differences after `horizon` steps that do not matter, above 0, in the units of the state.
      alpha: the level, over all dimensions together.
      horizon: K; more than one step shows differences that a single step is too short for.

    Returns:
      The calibration. Its threshold is at most the largest expected error of the data: of larger ones nothing is known.

    Raises:
      CalibrationError: if `alpha` is not inside (0, 1), or there are fewer episodes than 1 / alpha - 1, so that nothing
        could be trusted.
      DynamicsError: if `tolerance` has another length or an entry that is not above 0, or no episode is as long as
        `horizon`.
    """
    limits = check_tolerance(tolerance, data.states.shape[1])
    if not 0 < alpha < 1:
        raise CalibrationError(f"alpha={alpha}: expected a number inside (0, 1)")
    segments = make_segments(data, horizon)
    num = len(np.unique(segments.episodes))
    if num < fewest_episodes(alpha):
        raise CalibrationError(
            f"{num} calibration episodes with alpha={alpha}: expected at least {fewest_episodes(alpha)} "
            "(1 / alpha - 1); take more episodes or a larger alpha"
        )
    prediction = rollout_many(ensemble, segments.states[:, 0], segments.actions)
    wrong = np.any(np.abs(segments.states[:, -1] - np.asarray(prediction.mean)[:, -1]) > limits / 2, axis=1)
    scores = np.max(np.asarray(prediction.spread) / limits, axis=(1, 2))
    return Calibration(
        tolerance=jnp.asarray(limits),
        threshold=jnp.float32(trust_threshold(scores, wrong, np.asarray(segments.episodes), alpha)),
        alpha=alpha,
        num_episodes=num,
        horizon=horizon,
    )


def trust_threshold(scores: np.ndarray, wrong: np.ndarray, episodes: np.ndarray, alpha: float) -> float:
    """The largest threshold for which scores strictly below it are wrong at most as often as `alpha` allows.

    Args:
      scores: `[N]` expected errors.
      wrong: `[N]` booleans.
      episodes: `[N]` the episode of each; all K episodes weigh the same, and one more counts as wholly wrong.
      alpha: the level.

    Returns:
      The supremum of `lambda` in the formula above, or the largest score if that is smaller.

    Example:
      >>> scores = np.arange(1.0, 20.0)     # of 19 episodes; with one more, one of 20 may be wrong in a tenth of them
      >>> trust_threshold(scores, scores > 10, np.arange(19), 0.1)
      12.0
    """
    _, inverse, counts = np.unique(episodes, return_inverse=True, return_counts=True)
    losses = wrong / ((len(counts) + 1.0) * counts[inverse])
    order = np.argsort(scores, kind="stable")
    exceeded = 1 / (len(counts) + 1) + np.cumsum(losses[order]) > alpha + 1e-9
    return float(scores[order[np.argmax(exceeded)]] if exceeded.any() else scores.max())


class Equivalence(struct.PyTreeNode):
    """The test's result, sample by sample.

    Attributes:
      verdicts: `[N]` int8, see `Verdict`.
      errors: `[N, S]` |residual|.
      expected: `[N]` expected errors, in tolerances.
      trusted: `[N]` whether the model is trusted there.
      states: `[N, S]` the transformed states; of a segment, its first.
      tolerance: `[S]`.
      episodes: `[N]`.
    """

    verdicts: Array
    errors: Array
    expected: Array
    trusted: Array
    states: Array
    tolerance: Array
    episodes: Array


@functools.partial(jax.jit, static_argnums=3)
def equivalence_test(
    ensemble: Ensemble,
    calibration: Calibration,
    support: Support,
    group: GroupAction,
    elements: Element,
    data: Transitions | Segments,
) -> Equivalence:
    """Tests whether each transition, or segment of several, may be transformed by its element.

    Outside the support, `EXTRAPOLATED`; else, where the model is not trusted, `INCONCLUSIVE`; else |residual| below
    half of the tolerance in all dimensions, `VERIFIED`; above one and a half tolerances in one, `REJECTED`; otherwise
    `INCONCLUSIVE`.

    Args:
      ensemble: the model.
      calibration: from `calibrate`, with the tolerance.
      support: from `fit_support`.
      group: the group.
      elements: one element per transition or segment, leaves `[N, ...]`.
      data: N transitions, or N segments of as many steps as the calibration's.

    Returns:
      Verdicts with errors. A segment is inside the support if all of its transformed states and actions are; its
      expected error is the largest along the predicted path, its error that of the last state.

    Raises:
      DynamicsError: if the segments are of another length than those of the calibration.
    """
    segments = as_segments(data)
    if segments.horizon != calibration.horizon:
        raise DynamicsError(
            f"segments of {segments.horizon} steps, a calibration for {calibration.horizon}: expected the same "
            "(`make_segments`)"
        )
    residual, spread = residuals(ensemble, group, elements, segments)
    errors, tolerance = jnp.abs(residual[:, -1]), calibration.tolerance
    expected = jnp.max(calibration.expected_error(spread), axis=1)
    trusted = expected < calibration.threshold
    states, actions = jax.vmap(functools.partial(_moved, group))(
        elements, jnp.asarray(segments.states), jnp.asarray(segments.actions)
    )
    inputs = jax.vmap(jax.vmap(ensemble.normalize))(states[:, :-1], actions)
    known = jnp.all(support.contains(inputs.reshape(-1, inputs.shape[-1])).reshape(inputs.shape[:2]), axis=1)
    verified = trusted & jnp.all(errors < 0.5 * tolerance[None], axis=1)
    rejected = trusted & jnp.any(errors > 1.5 * tolerance[None], axis=1)
    tested = jnp.where(verified, Verdict.VERIFIED, jnp.where(rejected, Verdict.REJECTED, Verdict.INCONCLUSIVE))
    return Equivalence(
        verdicts=jnp.where(known, tested, Verdict.EXTRAPOLATED).astype(jnp.int8),
        errors=errors,
        expected=expected,
        trusted=trusted,
        states=states[:, 0],
        tolerance=tolerance,
        episodes=jnp.asarray(segments.episodes),
    )


def check_tolerance(tolerance: Sequence[float] | np.ndarray, size: int) -> np.ndarray:
    """Returns the tolerance as float32 `[S]`.

    Raises:
      DynamicsError: if it has another length or an entry that is not above 0.
    """
    limits = np.asarray(tolerance, np.float32)
    if limits.shape != (size,):
        raise DynamicsError(f"tolerance has shape {limits.shape}: expected [{size}], one per dimension of the state")
    bad = np.flatnonzero(~(limits > 0))
    if len(bad):
        raise DynamicsError(
            f"tolerance[{bad[0]}]={limits[bad[0]]}: expected above 0, the difference that does not matter, in the "
            "units of the state; no model can show a difference to be zero"
        )
    return limits


def accept(
    verdicts: np.ndarray, *, declared: np.ndarray | None = None, counterparts: np.ndarray | None = None
) -> np.ndarray:
    """Chooses the elements by which each transition may be transformed.

    Without a declared domain the verified elements are accepted. With one, nothing is accepted that leaves it, verified
    or not: the support reaches slightly beyond the data, and the dynamics may change where the data end at a bound. An
    extrapolated element that stays in it is accepted only for a transition that is verified under at least one element
    inside the support and rejected under none. (A transition that a wall has stopped is rejected inside the support, so
    it is not moved into free space beyond it.)

    Args:
      verdicts: `[N, M]` of N transitions under M elements each.
      declared: `[N, M]` whether the transformed transition lies in the declared domain; None: nothing is declared, and
        nothing extrapolated is accepted.
      counterparts: `[N, M]` verdicts on the elements' counterparts in the data, see `make_bank`: with them an
        extrapolated element is accepted if its counterpart is verified.

    Returns:
      `[N, M]` booleans.

    Example:
      >>> v = np.array([[Verdict.VERIFIED, Verdict.EXTRAPOLATED], [Verdict.REJECTED, Verdict.EXTRAPOLATED]])
      >>> accept(v, declared=np.ones((2, 2), bool)).tolist()
      [[True, True], [False, False]]
    """
    verified = verdicts == Verdict.VERIFIED
    if declared is None:
        return verified
    if counterparts is not None:
        return declared & (verified | ((verdicts == Verdict.EXTRAPOLATED) & (counterparts == Verdict.VERIFIED)))
    regular = verified.any(1) & ~(verdicts == Verdict.REJECTED).any(1)
    return declared & (verified | ((verdicts == Verdict.EXTRAPOLATED) & regular[:, None]))
