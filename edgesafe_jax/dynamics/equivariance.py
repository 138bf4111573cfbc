r"""Is a transformation a symmetry of the world? An equivalence test on a learned model, sample by sample.

**What is asked.** For an observed transition (s, a, s') and an element g: does the transformed transition
(g.s, g.a, g.s') differ from what the world would have done at (g.s, g.a) by less than a tolerance that the user sets,
in every dimension and in its physical units? The burden of proof is on the symmetry, so this is a test of equivalence:
that no difference was found is not evidence that there is none.

**The statistic.** The residual is anchored to the *observed* next state, so that the model's error at s does not enter.
Half of each tolerance is for the model, half for the symmetry:

.. math:: r = \hat f(g s, g a) - g s', \qquad u = \max_j \sigma_j(g s, g a) / \tau_j, \qquad
          u < \lambda \;\text{and}\; |r_j| < \tau_j / 2 \ \ \forall j \;\Rightarrow\; \text{verified}

`sigma` is the ensemble's spread and u the error that it expects, in tolerances. `lambda` says up to which expected
error the model is trusted to be right within half of the tolerance. It is chosen by conformal risk control on
calibration episodes that had no part in the fit: with K episodes of n_k transitions, S' the observed next state,

.. math:: L_k(\lambda) = \frac1{n_k} \sum_i
              \mathbf 1\{u_{ki} < \lambda,\ \exists j: |S'_j - \hat f_j| > \tau_j / 2\}, \qquad
          \lambda = \sup\Bigl\{\lambda : \frac{1 + \sum_k L_k(\lambda)}{K + 1} \le \alpha\Bigr\} .

One number is calibrated, for all dimensions at once, so no correction for their number is due. Where the spread
foresees an error (next to a wall) the model is not trusted and nothing is claimed; a margin c * sigma with one c for
all places has instead to be as wide everywhere as the worst surprise anywhere demands.

A difference that no single step makes large, such as a push that is missed, shows over several: with a horizon of K
steps the same is done with segments (s_0, a_0, ..., a_{K-1}, s_K). f becomes the open-loop prediction of s_K, u the
largest along its path, and the path as a whole has to be inside the support.

**What is guaranteed.** Let episodes be exchangeable: the calibration episodes and the one from which a transition
(S, A, S') is drawn at random. L_k lies in [0, 1] and grows with lambda, so for any sample size, model and distribution

.. math:: P\bigl( u(S, A) < \lambda \ \text{and}\ \exists j: |S'_j - \hat f(S, A)_j| > \tau_j / 2 \bigr) \le \alpha .

A sample that is verified although g.s' is further than the tolerance from the next state that the world draws at
(g.s, g.a) needs this event at (g.s, g.a): the model has to be wrong by more than half of the tolerance, and trusted.
For transformed inputs whose law is that of the calibration inputs, therefore, P(verified and wrong) <= alpha, and
likewise P(rejected and right) <= alpha.

**What is not.** (1) A transformed input follows another law than the data. Within the support (`fit_support`) the
guarantee is an approximation; outside it nothing is claimed and the verdict is `EXTRAPOLATED`, whatever the residual.
(2) The bound is marginal: over the draw of the calibration episodes too, not conditional on a place, and not on being
verified: P(wrong | verified) is at most alpha / P(verified). (3) Transitions of one episode are dependent: intervals
for shares are over episodes. (4) It is per sample; verdicts of many samples are not jointly covered.

Reference:
  Angelopoulos, Bates, Fisch, Lei and Schuster, "Conformal Risk Control", 2022, equation 4 and theorem 1.
  Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005 (split conformal; the support).
  Lee, Barber and Willett, "Distribution-free inference with hierarchical data", 2023 (episodes as groups).
  Schuirmann, "A comparison of the two one-sided tests procedure", 1987 (equivalence).
"""

import dataclasses
import enum
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from edgesafe_jax.dynamics.ensemble import Ensemble, rollout_many
from edgesafe_jax.dynamics.groups import Element, GroupAction
from edgesafe_jax.dynamics.transitions import (
    DynamicsError,
    Segments,
    Transitions,
    as_segments,
    check_dims,
    make_segments,
)
from edgesafe_jax.metrics import bootstrap_interval, wilson_interval
from edgesafe_jax.metrics.intervals import Interval
from edgesafe_jax.typing import Array


class Verdict(enum.IntEnum):
    """What the test says of one sample."""

    VERIFIED = 0
    """The model is trusted there, and the difference is below half of the tolerance in every dimension."""
    EXTRAPOLATED = 1
    """The transformed input lies outside the support of the data: no test of the data can tell."""
    REJECTED = 2
    """The model is trusted there, and the difference is above one and a half tolerances in some dimension."""
    INCONCLUSIVE = 3
    """Neither: the model is too poor there to be trusted, or the difference is about the tolerance."""


class CalibrationError(DynamicsError):
    """Calibration data that cannot give the level that is asked for."""


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

    segments = as_segments(data)
    return jax.vmap(one)(elements, jnp.asarray(segments.states), jnp.asarray(segments.actions))


def _moved(group: GroupAction, element: Element, states: Array, actions: Array) -> tuple[Array, Array]:
    """Acts with one element on the states and the actions of a segment."""
    act = (jax.vmap(group.state, in_axes=(None, 0)), jax.vmap(group.action, in_axes=(None, 0)))
    return act[0](element, states), act[1](element, actions)


class Calibration(struct.PyTreeNode):
    """Where the model is trusted to be right within half of the tolerance.

    Attributes:
      tolerance: `[S]` differences that do not matter, in the units of the state.
      threshold: lambda, the expected error in tolerances below which the model is trusted.
      alpha: bound on the share of trusted predictions that are wrong by more than half of a tolerance.
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
        return jnp.max(spread / jnp.broadcast_to(self.tolerance, spread.shape), axis=-1)


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
    if num < _fewest_episodes(alpha):
        raise CalibrationError(
            f"{num} calibration episodes with alpha={alpha}: expected at least {_fewest_episodes(alpha)} "
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


def episode_quantile(scores: np.ndarray, episodes: np.ndarray, alpha: float) -> float:
    """The conformal quantile of scores that come in episodes, each episode of the same weight.

    Args:
      scores: `[N]`.
      episodes: `[N]` the episode of each score.
      alpha: the level.

    Returns:
      The smallest score q such that the scores up to q weigh at least 1 - alpha, where each of the K episodes weighs
      1 / (K + 1) in all; infinity if there is none.

    Example:
      >>> episode_quantile(np.arange(19.0), np.arange(19), 0.1)   # the 18th smallest of 19: ceil(20 * 0.9)
      17.0
    """
    _, inverse, counts = np.unique(episodes, return_inverse=True, return_counts=True)
    weights = 1.0 / ((len(counts) + 1) * counts[inverse])
    order = np.argsort(scores, kind="stable")
    reached = np.cumsum(weights[order]) >= 1 - alpha - 1e-9
    return float(scores[order[np.argmax(reached)]]) if reached.any() else math.inf


def _fewest_episodes(alpha: float) -> int:
    """The smallest K with 1 / (K + 1) <= alpha."""
    return math.ceil(1 / alpha - 1e-9) - 1


class Support(struct.PyTreeNode):
    """Where the model has seen data: the distance to the nearest training input, in one or several views of the input.

    Attributes:
      references: `[R, M]` normalised training inputs.
      thresholds: `[V]` largest distance of each view that is still inside.
      views: for each view its dimensions of the input (state, action, differences).
    """

    references: Array
    thresholds: Array
    views: tuple[tuple[int, ...], ...] = struct.field(pytree_node=False)

    def distances(self, inputs: Array) -> Array:
        """Returns how far normalised inputs `[N, M]` are, in thresholds, `[V, N]`."""
        near = jnp.stack([_nearest(inputs, self.references, view) for view in self.views])
        return near / self.thresholds[:, None]

    def contains(self, inputs: Array) -> Array:
        """Returns whether normalised inputs `[N, M]` are inside, `[N]`."""
        return jnp.all(self.distances(inputs) <= 1, axis=0)


def fit_support(
    ensemble: Ensemble,
    training: Transitions,
    calibration: Transitions,
    *,
    moved: Sequence[int],
    alpha: float = 0.05,
    max_references: int = 8192,
) -> Support:
    """Finds how near to a training input a fresh input of the same world is.

    Two views or three: the dimensions of the state that the group moves, in which the shift happens; the whole input of
    the model; and the differences of dimensions among its inputs (`Ensemble.relations`), if there are any, such as the
    place of an object seen from the agent. Where a group moves one body alone, each body may be where the data are and
    both together nowhere near them, one inside the other, say; the whole input, in many dimensions, is too coarse to
    tell. The thresholds are conformal quantiles over the calibration episodes, alpha over the number of views each: at
    most a share `alpha` of fresh data is called outside.

    Args:
      ensemble: its normaliser is the metric.
      training: what the ensemble was fitted on.
      calibration: other episodes.
      moved: the state dimensions of the first view, such as `GroupAction.moved`.
      alpha: share of fresh data that may be called outside.
      max_references: at most so many training inputs are kept, evenly spaced.

    Returns:
      The support.

    Raises:
      CalibrationError: if there are fewer calibration episodes than V / alpha - 1, for V views.
      DynamicsError: if a dimension is named that the state lacks.
    """
    check_dims("moved", moved, training.states.shape[1])
    size = len(ensemble.input_mean)
    views = [tuple(moved), tuple(range(size))]
    if ensemble.relations:
        views.append(tuple(range(size - len(ensemble.relations), size)))
    level = alpha / len(views)
    num = len(np.unique(np.asarray(calibration.episodes)))
    if num < _fewest_episodes(level):
        raise CalibrationError(
            f"{num} calibration episodes for a support with alpha={alpha}: expected at least {_fewest_episodes(level)}"
        )
    rows = np.unique(np.linspace(0, len(training.states) - 1, max_references).astype(int))
    normalize = jax.vmap(ensemble.normalize)
    references = normalize(jnp.asarray(training.states)[rows], jnp.asarray(training.actions)[rows])
    fresh = normalize(jnp.asarray(calibration.states), jnp.asarray(calibration.actions))
    near = [np.asarray(_nearest(fresh, references, view)) for view in views]
    thresholds = [episode_quantile(each, np.asarray(calibration.episodes), level) for each in near]
    return Support(references=references, thresholds=jnp.asarray(thresholds, jnp.float32), views=tuple(views))


@functools.partial(jax.jit, static_argnums=2)
def _nearest(inputs: Array, references: Array, view: tuple[int, ...]) -> Array:
    """Distance of each input to the nearest reference, `[N]`, over some dimensions."""
    dims = jnp.array(view)
    x, y = inputs[:, dims], references[:, dims]
    lengths = jnp.sum(y**2, axis=1)

    def near(block: Array) -> Array:
        squared = jnp.sum(block**2, 1)[:, None] + lengths[None] - 2 * block @ y.T
        return jnp.sqrt(jnp.maximum(jnp.min(squared, axis=1), 1e-12))

    size = min(256, len(x))
    padded = jnp.pad(x, ((0, -len(x) % size), (0, 0)))
    return jax.lax.map(near, padded.reshape(-1, size, x.shape[1])).reshape(-1)[: len(x)]


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
      elements: one element a transition or segment, leaves `[N, ...]`.
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
        raise DynamicsError(f"tolerance has shape {limits.shape}: expected [{size}], one a dimension of the state")
    bad = np.flatnonzero(~(limits > 0))
    if len(bad):
        raise DynamicsError(
            f"tolerance[{bad[0]}]={limits[bad[0]]}: expected above 0, the difference that does not matter, in the "
            "units of the state; no model can show a difference to be zero"
        )
    return limits


@dataclasses.dataclass(frozen=True)
class BoxDomain:
    """Where the user declares the dynamics to be the same as in the data: a box over some dimensions of the state.

    A declaration, not a finding: a break outside the support of the data cannot be found by any test of them.

    Attributes:
      dims: dimensions of the state.
      low: lower ends, one a dimension.
      high: upper ends.
    """

    dims: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self):
        lengths = {len(self.dims), len(self.low), len(self.high)}
        if len(lengths) != 1 or any(not low < high for low, high in zip(self.low, self.high, strict=True)):
            raise DynamicsError(
                f"dims {self.dims}, low {self.low}, high {self.high}: expected one low below one high for each"
            )

    def excess(self, state: Array) -> Array:
        """Returns how far a state `[S]` is outside, as a share of the box's size, the largest; 0 inside."""
        check_dims("dims", self.dims, state.shape[-1])
        low, high = jnp.asarray(self.low, jnp.float32), jnp.asarray(self.high, jnp.float32)
        values = state[jnp.array(self.dims)]
        return jnp.max(jnp.maximum(jnp.maximum(low - values, values - high), 0.0) / (high - low))

    def contains(self, state: Array) -> Array:
        """Returns whether a state `[S]` is inside."""
        return self.excess(state) == 0


def accept(verdicts: np.ndarray, *, declared: np.ndarray | None = None) -> np.ndarray:
    """Which of several elements each transition may be transformed by.

    Without a declared domain the verified elements are accepted. With one, nothing is accepted that leaves it, verified
    or not: the support reaches a little beyond the data, and where these end at a bound, so does the law. An
    extrapolated element that stays in it is accepted only for a transition that the test knows as regular: verified
    under at least one element inside the support and rejected under none. (A transition that a wall has stopped is
    rejected inside the support, so it is not carried into free space beyond it.)

    Args:
      verdicts: `[N, M]` of N transitions under M elements each.
      declared: `[N, M]` whether the transformed transition lies in the declared domain; None: nothing is declared, and
        nothing extrapolated is accepted.

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
    regular = verified.any(1) & ~(verdicts == Verdict.REJECTED).any(1)
    return declared & (verified | ((verdicts == Verdict.EXTRAPOLATED) & regular[:, None]))


@dataclasses.dataclass(frozen=True)
class EquivalenceReport:
    """The result over all samples.

    Attributes:
      shares: from verdict name to its share of the samples.
      overall: the verdict on the transformation as a whole: `REJECTED` if the share of rejected among the tested
        samples (inside the support) is above the allowed exceptions, by the lower end of its interval; `VERIFIED` if
        the share of not verified is at most that, by the upper end; `EXTRAPOLATED` if too few samples could be tested;
        else `INCONCLUSIVE`.
      rejected: the share of rejected among the tested samples, with an interval over episodes; None if none was tested.
      verified: the share of verified among them.
      dimensions: one row a dimension: tolerance, median error among the tested, shares of tested samples in which the
        model is trusted and the dimension alone would verify or reject.
    """

    shares: dict[str, float]
    overall: Verdict
    rejected: Interval | None
    verified: Interval | None
    dimensions: list[dict[str, float]]


def summarize(
    result: Equivalence,
    *,
    exceptions: float = 0.05,
    confidence: float = 0.95,
    min_tested: float = 0.05,
    min_episodes: int = 20,
) -> EquivalenceReport:
    """Sums up an equivalence test.

    Args:
      result: from `equivalence_test`.
      exceptions: share of tested samples that a verdict on the whole may leave out.
      confidence: of the intervals, which are over episodes because transitions of one episode are alike. However alike
        the episodes are, an interval reaches as far as Wilson's of as many episodes without an exception: with
        `exceptions` 0.05, nothing is verified by fewer than 73 episodes.
      min_tested: share of the samples that have to be tested for a verdict on the whole other than `EXTRAPOLATED`.
      min_episodes: number of episodes from which they have to come.

    Returns:
      The report.
    """
    verdicts = np.asarray(result.verdicts)
    shares = {verdict.name.lower(): float(np.mean(verdicts == verdict)) for verdict in Verdict}
    tested = verdicts != Verdict.EXTRAPOLATED
    if not tested.any():
        return EquivalenceReport(shares, Verdict.EXTRAPOLATED, None, None, [])
    episodes = np.asarray(result.episodes)[tested]
    intervals = {
        verdict: episode_interval(verdicts[tested] == verdict, episodes, confidence=confidence)
        for verdict in (Verdict.REJECTED, Verdict.VERIFIED)
    }
    if tested.mean() < min_tested or len(np.unique(episodes)) < min_episodes:
        overall = Verdict.EXTRAPOLATED
    elif intervals[Verdict.REJECTED].low > exceptions:
        overall = Verdict.REJECTED
    elif 1 - intervals[Verdict.VERIFIED].low <= exceptions:
        overall = Verdict.VERIFIED
    else:
        overall = Verdict.INCONCLUSIVE
    errors, trusted = np.asarray(result.errors)[tested], np.asarray(result.trusted)[tested]
    limits = np.asarray(result.tolerance)
    dimensions = [
        {
            "dimension": j,
            "tolerance": float(limits[j]),
            "median error": float(np.median(errors[:, j])),
            "verified": float(np.mean(trusted & (errors[:, j] < 0.5 * limits[j]))),
            "rejected": float(np.mean(trusted & (errors[:, j] > 1.5 * limits[j]))),
        }
        for j in range(len(limits))
    ]
    return EquivalenceReport(shares, overall, intervals[Verdict.REJECTED], intervals[Verdict.VERIFIED], dimensions)


def episode_interval(hits: np.ndarray, episodes: np.ndarray, *, confidence: float = 0.95) -> Interval:
    """Interval of a share of samples that come in episodes: bootstrap over episodes, with ends that have a width.

    Where all episodes are alike the bootstrap has no width, however few they are. So the interval reaches as far as
    Wilson's of as many episodes without a hit, and without a miss.

    Args:
      hits: `[N]` booleans, at least one.
      episodes: `[N]` the episode of each.
      confidence: coverage aimed at.

    Returns:
      The share of hits and its interval.

    Example:
      >>> interval = episode_interval(np.zeros(200, bool), np.arange(200) // 10)
      >>> interval.estimate, interval.low, round(interval.high, 3)  # of 20 episodes
      (0.0, 0.0, 0.161)
    """
    found = bootstrap_interval(np.asarray(hits, np.float64), clusters=episodes, confidence=confidence, num_samples=500)
    reach = wilson_interval(0, len(np.unique(episodes)), confidence=confidence).high
    return dataclasses.replace(found, low=min(found.low, 1 - reach), high=max(found.high, reach))


def verdict_map(
    result: Equivalence, *, dims: tuple[int, int], low: Sequence[float], high: Sequence[float], num_cells: int = 20
) -> dict[str, np.ndarray]:
    """Where the symmetry breaks: shares of verdicts by the place that the transformed states reach.

    Args:
      result: from `equivalence_test`.
      dims: the two dimensions of the state that span the map.
      low: `[2]` its lower corner.
      high: `[2]` its upper corner.
      num_cells: along each side.

    Returns:
      From verdict name to its share in each cell `[num_cells, num_cells]`, first index along `dims[0]`; NaN in empty
      cells; and under ``"count"`` the samples of each cell.
    """
    places = np.asarray(result.states)[:, list(dims)]
    edges = [np.linspace(low[i], high[i], num_cells + 1) for i in range(2)]
    count = np.histogram2d(places[:, 0], places[:, 1], bins=edges)[0]
    cells: dict[str, np.ndarray] = {"count": count}
    for verdict in Verdict:
        chosen = places[np.asarray(result.verdicts) == verdict]
        found = np.histogram2d(chosen[:, 0], chosen[:, 1], bins=edges)[0]
        cells[verdict.name.lower()] = np.divide(found, count, out=np.full_like(count, np.nan), where=count > 0)
    return cells
