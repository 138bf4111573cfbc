r"""Is a transformation a symmetry of the world? An equivalence test on a learned model, sample by sample.

**What is asked.** For an observed transition (s, a, s') and an element g: does the transformed transition
(g.s, g.a, g.s') differ from what the world would have done at (g.s, g.a) by less than a tolerance that the user sets,
in every dimension and in its physical units? The burden of proof is on the symmetry, so this is a test of equivalence:
that no difference was found is not evidence that there is none.

**The statistic.** The residual is anchored to the *observed* next state, so that the model's error at s does not enter:

.. math:: r_j = \hat f(g s, g a)_j - (g s')_j, \qquad
          |r_j| + c_j\, \sigma_j(g s, g a) < \tau_j \ \ \forall j \;\Rightarrow\; \text{verified}

`sigma` is the ensemble's spread. `c_j` is a split-conformal quantile of |s'_j - f_j| / sigma_j over calibration
episodes that had no part in the fit, each episode weighing the same whatever its length, with the finite-sample
correction of one further episode at infinity, at level 1 - alpha / S (Bonferroni over the S dimensions).

**What is guaranteed.** Let episodes be exchangeable: the calibration episodes and the one from which a transition
(S, A, S') is drawn at random. Then, for any sample size, model and distribution,

.. math:: P\bigl( |S'_j - \hat f(S, A)_j| \le c_j \sigma_j(S, A) \ \ \forall j \bigr) \ge 1 - \alpha .

For transformed inputs whose law is that of the calibration inputs, therefore, P(verified and wrong) <= alpha, where
wrong means that g.s' is further than the tolerance from the next state that the world draws at (g.s, g.a).

**What is not.** (1) A transformed input follows another law than the data. Within the support (`fit_support`) the
guarantee is an approximation; outside it nothing is claimed and the verdict is `EXTRAPOLATED`, whatever the residual.
(2) The bound is marginal: not conditional on a place, and not on being verified: P(wrong | verified) is at most
alpha / P(verified). (3) Transitions of one episode are dependent: intervals for shares are over episodes. (4) It is
per sample; verdicts of many samples are not jointly covered.

Reference:
  Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005 (split conformal).
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

from edgesafe_jax.dynamics.ensemble import Ensemble, predict_many
from edgesafe_jax.dynamics.groups import Element, GroupAction
from edgesafe_jax.dynamics.transitions import Transitions
from edgesafe_jax.metrics import bootstrap_interval
from edgesafe_jax.metrics.intervals import Interval
from edgesafe_jax.typing import Array


class Verdict(enum.IntEnum):
    """What the test says of one sample."""

    VERIFIED = 0
    """The upper bound of the difference is below the tolerance in every dimension."""
    EXTRAPOLATED = 1
    """The transformed input lies outside the support of the data: no test of the data can tell."""
    REJECTED = 2
    """The lower bound of the difference is above the tolerance in some dimension."""
    INCONCLUSIVE = 3
    """Neither: the model is too poor there, as wherever c * sigma >= tolerance, or the difference is close to it."""


class CalibrationError(ValueError):
    """Calibration data that cannot give the level that is asked for."""


def residuals(ensemble: Ensemble, group: GroupAction, elements: Element, data: Transitions) -> tuple[Array, Array]:
    """One-step residuals, anchored to the observed next states.

    Args:
      ensemble: the model.
      group: the group.
      elements: one element a transition, leaves `[N, ...]`.
      data: N transitions.

    Returns:
      f(g.s, g.a) - g.s' and the spread at (g.s, g.a), each `[N, S]` in the units of the state.
    """

    def one(element: Element, state: Array, action: Array, after: Array) -> tuple[Array, Array]:
        prediction = ensemble.predict(group.state(element, state), group.action(element, action))
        return prediction.mean - group.state(element, after), prediction.spread

    return jax.vmap(one)(elements, data.states, data.actions, data.next_states)


def segment_residuals(
    ensemble: Ensemble, group: GroupAction, elements: Element, states: Array, actions: Array
) -> Array:
    r"""Residuals of open-loop predictions over K steps: :math:`\hat f^k(g s_0, g a_{0:k}) - g s_k`.

    Args:
      ensemble: the model.
      group: the group.
      elements: one element a segment, leaves `[N, ...]`.
      states: observed `[N, K+1, S]`.
      actions: `[N, K, A]`.

    Returns:
      `[N, K, S]`; horizon 1 is the residual of `residuals`.
    """

    def one(element: Element, states: Array, actions: Array) -> Array:
        moved = jax.vmap(group.state, in_axes=(None, 0))(element, states)
        acted = jax.vmap(group.action, in_axes=(None, 0))(element, actions)
        return ensemble.rollout(moved[0], acted).mean - moved[1:]

    return jax.vmap(one)(elements, states, actions)


class Calibration(struct.PyTreeNode):
    """How many spreads a residual may be away.

    Attributes:
      factors: `[S]`, c.
      alpha: the level over all dimensions.
      num_episodes: calibration episodes.
    """

    factors: Array
    alpha: float = struct.field(pytree_node=False)
    num_episodes: int = struct.field(pytree_node=False)


def calibrate(ensemble: Ensemble, data: Transitions, *, alpha: float = 0.05) -> Calibration:
    r"""Finds c by split conformal prediction with episodes as the exchangeable unit.

    With K episodes of n_k transitions and scores :math:`R_{ki} = |s' - \hat f| / \sigma`,

    .. math:: c = Q_{1 - \alpha/S}\Bigl( \sum_k \sum_i \tfrac{1}{(K+1)\, n_k} \delta_{R_{ki}}
              + \tfrac{1}{K+1} \delta_\infty \Bigr) .

    Args:
      ensemble: the model.
      data: transitions of calibration episodes, which had no part in the fit, its early stopping included.
      alpha: the level over all S dimensions together.

    Returns:
      The calibration.

    Raises:
      CalibrationError: if `alpha` is not inside (0, 1), or there are fewer episodes than S / alpha - 1, so that c would
        be infinite.
    """
    if not 0 < alpha < 1:
        raise CalibrationError(f"alpha={alpha}: expected a number inside (0, 1)")
    prediction = predict_many(ensemble, data.states, data.actions)
    scores = np.abs(np.asarray(data.next_states) - np.asarray(prediction.mean)) / np.asarray(prediction.spread)
    level = alpha / scores.shape[1]
    episodes = np.asarray(data.episodes)
    num = len(np.unique(episodes))
    if 1 / (num + 1) > level:
        raise CalibrationError(
            f"{num} calibration episodes with alpha={alpha} over {scores.shape[1]} dimensions: expected at least "
            f"{math.ceil(1 / level) - 1} (S / alpha - 1); take more episodes or a larger alpha"
        )
    factors = [episode_quantile(scores[:, j], episodes, level) for j in range(scores.shape[1])]
    return Calibration(factors=jnp.asarray(factors, jnp.float32), alpha=alpha, num_episodes=num)


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


class Support(struct.PyTreeNode):
    """Where the model has seen data: the distance to the nearest training input, in one or several views of the input.

    Attributes:
      references: `[R, S+A]` normalised training inputs.
      thresholds: `[V]` largest distance of each view that is still inside.
      views: for each view its dimensions of the input (state, then action).
    """

    references: Array
    thresholds: Array
    views: tuple[tuple[int, ...], ...] = struct.field(pytree_node=False)

    def distances(self, inputs: Array) -> Array:
        """Returns how far normalised inputs `[N, S+A]` are, in thresholds, `[V, N]`."""
        near = jnp.stack([_nearest(inputs, self.references, view) for view in self.views])
        return near / self.thresholds[:, None]

    def contains(self, inputs: Array) -> Array:
        """Returns whether normalised inputs `[N, S+A]` are inside, `[N]`."""
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

    Two views: the dimensions of the state that the group moves, in which the shift happens, and the whole input of the
    model. The thresholds are conformal quantiles over the calibration episodes, alpha / 2 each: at most a share `alpha`
    of fresh data is called outside.

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
      CalibrationError: if there are fewer calibration episodes than 2 / alpha - 1.
    """
    num = len(np.unique(np.asarray(calibration.episodes)))
    if 1 / (num + 1) > alpha / 2:
        raise CalibrationError(
            f"{num} calibration episodes for a support with alpha={alpha}: expected at least {math.ceil(2 / alpha) - 1}"
        )
    rows = np.unique(np.linspace(0, len(training.states) - 1, max_references).astype(int))
    normalize = jax.vmap(ensemble.normalize)
    references = normalize(jnp.asarray(training.states)[rows], jnp.asarray(training.actions)[rows])
    fresh = normalize(jnp.asarray(calibration.states), jnp.asarray(calibration.actions))
    views = (tuple(moved), tuple(range(references.shape[1])))
    near = [np.asarray(_nearest(fresh, references, view)) for view in views]
    thresholds = [episode_quantile(each, np.asarray(calibration.episodes), alpha / 2) for each in near]
    return Support(references=references, thresholds=jnp.asarray(thresholds, jnp.float32), views=views)


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
      margins: `[N, S]` c * spread.
      states: `[N, S]` the transformed states.
      tolerance: `[S]`.
      episodes: `[N]`.
      alpha: the level.
    """

    verdicts: Array
    errors: Array
    margins: Array
    states: Array
    tolerance: Array
    episodes: Array
    alpha: float = struct.field(pytree_node=False)


def equivalence_test(
    ensemble: Ensemble,
    calibration: Calibration,
    support: Support,
    group: GroupAction,
    elements: Element,
    data: Transitions,
    *,
    tolerance: Sequence[float] | np.ndarray,
) -> Equivalence:
    r"""Tests whether each transition may be transformed by its element.

    With e = |residual| and m = c * sigma in each dimension: outside the support, `EXTRAPOLATED`; else e + m < tolerance
    in all dimensions, `VERIFIED`; e - m > tolerance in one, `REJECTED`; otherwise `INCONCLUSIVE`. Where m >= tolerance
    nothing can be verified, whatever the error.

    Args:
      ensemble: the model.
      calibration: from `calibrate`.
      support: from `fit_support`.
      group: the group.
      elements: one element a transition, leaves `[N, ...]`.
      data: N transitions.
      tolerance: `[S]` differences that do not matter, above 0, in the units of the state.

    Returns:
      Verdicts with errors and margins.

    Raises:
      ValueError: if `tolerance` has another length or an entry that is not above 0.
    """
    limits = check_tolerance(tolerance, data.states.shape[1])
    return _test(ensemble, calibration, support, group, elements, data, jnp.asarray(limits))


def check_tolerance(tolerance: Sequence[float] | np.ndarray, size: int) -> np.ndarray:
    """Returns the tolerance as float32 `[S]`.

    Raises:
      ValueError: if it has another length or an entry that is not above 0.
    """
    limits = np.asarray(tolerance, np.float32)
    if limits.shape != (size,):
        raise ValueError(f"tolerance has shape {limits.shape}: expected [{size}], one a dimension of the state")
    bad = np.flatnonzero(~(limits > 0))
    if len(bad):
        raise ValueError(
            f"tolerance[{bad[0]}]={limits[bad[0]]}: expected above 0, the difference that does not matter, in the "
            "units of the state; no model can show a difference to be zero"
        )
    return limits


@functools.partial(jax.jit, static_argnums=3)
def _test(
    ensemble: Ensemble,
    calibration: Calibration,
    support: Support,
    group: GroupAction,
    elements: Element,
    data: Transitions,
    tolerance: Array,
) -> Equivalence:
    residual, spread = residuals(ensemble, group, elements, data)
    errors, margins = jnp.abs(residual), calibration.factors[None] * spread
    states = jax.vmap(group.state)(elements, jnp.asarray(data.states))
    actions = jax.vmap(group.action)(elements, jnp.asarray(data.actions))
    known = support.contains(jax.vmap(ensemble.normalize)(states, actions))
    verified = jnp.all(errors + margins < tolerance[None], axis=1)
    rejected = jnp.any(errors - margins > tolerance[None], axis=1)
    tested = jnp.where(verified, Verdict.VERIFIED, jnp.where(rejected, Verdict.REJECTED, Verdict.INCONCLUSIVE))
    return Equivalence(
        verdicts=jnp.where(known, tested, Verdict.EXTRAPOLATED).astype(jnp.int8),
        errors=errors,
        margins=margins,
        states=states,
        tolerance=tolerance,
        episodes=jnp.asarray(data.episodes),
        alpha=calibration.alpha,
    )


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
        if not len(self.dims) == len(self.low) == len(self.high) or any(
            not low < high for low, high in zip(self.low, self.high, strict=True)
        ):
            raise ValueError(
                f"dims {self.dims}, low {self.low}, high {self.high}: expected one low below one high for each"
            )

    def excess(self, state: Array) -> Array:
        """Returns how far a state `[S]` is outside, as a share of the box's size, the largest; 0 inside."""
        low, high = jnp.asarray(self.low, jnp.float32), jnp.asarray(self.high, jnp.float32)
        values = state[jnp.array(self.dims)]
        return jnp.max(jnp.maximum(jnp.maximum(low - values, values - high), 0.0) / (high - low))

    def contains(self, state: Array) -> Array:
        """Returns whether a state `[S]` is inside."""
        return self.excess(state) == 0


def accept(verdicts: np.ndarray, *, declared: np.ndarray | None = None) -> np.ndarray:
    """Which of several elements each transition may be transformed by.

    Verified elements are accepted. An extrapolated one is accepted only where the user has declared the domain that it
    leads to, and only for a transition that the test knows as regular: verified under at least one element inside the
    support and rejected under none. (A transition that a wall has stopped is rejected inside the support, so it is not
    carried into free space beyond it.)

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
    return verified | ((verdicts == Verdict.EXTRAPOLATED) & declared & regular[:, None])


@dataclasses.dataclass(frozen=True)
class EquivalenceReport:
    """The result over all samples.

    Attributes:
      shares: from verdict name to its share of the samples.
      overall: the verdict on the transformation as a whole: `REJECTED` if the share of rejected among the tested
        samples (inside the support) is above alpha, by the lower end of its interval; `VERIFIED` if the share of not
        verified is at most alpha, by the upper end; `EXTRAPOLATED` if no sample could be tested; else `INCONCLUSIVE`.
      rejected: the share of rejected among the tested samples, bootstrapped over episodes; None if none was tested.
      verified: the share of verified among them.
      dimensions: one row a dimension: tolerance, median error and margin among the tested, shares of tested samples
        that the dimension alone would verify or reject.
    """

    shares: dict[str, float]
    overall: Verdict
    rejected: Interval | None
    verified: Interval | None
    dimensions: list[dict[str, float]]


def summarize(result: Equivalence, *, confidence: float = 0.95) -> EquivalenceReport:
    """Sums up an equivalence test.

    Args:
      result: from `equivalence_test`.
      confidence: of the intervals, which are over episodes because transitions of one episode are alike.

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
        verdict: bootstrap_interval(
            (verdicts[tested] == verdict).astype(np.float64), clusters=episodes, confidence=confidence, num_samples=500
        )
        for verdict in (Verdict.REJECTED, Verdict.VERIFIED)
    }
    if intervals[Verdict.REJECTED].low > result.alpha:
        overall = Verdict.REJECTED
    elif 1 - intervals[Verdict.VERIFIED].low <= result.alpha:
        overall = Verdict.VERIFIED
    else:
        overall = Verdict.INCONCLUSIVE
    errors, margins = np.asarray(result.errors)[tested], np.asarray(result.margins)[tested]
    limits = np.asarray(result.tolerance)
    dimensions = [
        {
            "dimension": j,
            "tolerance": float(limits[j]),
            "median error": float(np.median(errors[:, j])),
            "median margin": float(np.median(margins[:, j])),
            "verified": float(np.mean(errors[:, j] + margins[:, j] < limits[j])),
            "rejected": float(np.mean(errors[:, j] - margins[:, j] > limits[j])),
        }
        for j in range(len(limits))
    ]
    return EquivalenceReport(shares, overall, intervals[Verdict.REJECTED], intervals[Verdict.VERIFIED], dimensions)


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
