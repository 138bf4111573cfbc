r"""Nested test of a translation: a model that is not shown what the group moves, against one that is.

Every transition is carried by the group to where the first dimension of each axis is 0. A model fitted on the carried
transitions cannot know the place, so it is invariant, :math:`h(g s, g a) = g h(s, a)` for every g. If the world has the
symmetry, hiding the place costs nothing, however poor both models are: what they get wrong alike cancels. The test of
`edgesafe_jax.dynamics.equivariance` asks the model to be right within half of a tolerance and is inconclusive where it
is not.

**Statistic.** With errors in tolerances, cut at `cap`, and the episodes k of data that neither model has seen,

.. math:: e_i(f) = \min\Bigl(\max_j |s'_{ij} - f_j(s_i, a_i)| / \tau_j,\ \text{cap}\Bigr), \qquad
          D_k = \frac1{n_k} \sum_{i \in k} \bigl(e_i(h) - e_i(f)\bigr), \qquad c = E[D_k] ,

and an equivalence test over episodes: verified if the upper one-sided bound of level alpha for c (Student's t over the
K episode means) is at most `limit`, rejected if the lower one is above it, else inconclusive.

**Guarantee.** Given the two models, and for independent episodes of one law, D_k are independent draws from
[-cap, cap] with mean c, and P(verified and c > limit) <= alpha up to the error of Student's approximation, which
vanishes as K grows. At most alpha of the tests err likewise by rejecting.

**Limits.** (1) It speaks of the law of the data as a whole, or of each region by itself (`regions`), not of single
transitions: a break in a few places can cost less than the limit on average. (2) It speaks of what the models can see:
where the shown model is too poor to use the place, hiding it costs nothing and says nothing. Compare the cost with the
error of the shown model, which the result holds, and plant a break to see whether it would be found. (3) As of every
test of data, nothing is said beyond their support.

Reference:
  Schuirmann, "A comparison of the two one-sided tests procedure", 1987 (equivalence).
  Williamson et al., "A general framework for inference on algorithm-agnostic variable importance", 2023 (the loss with
  and without an input).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from edgesafe_jax.dynamics.ensemble import Ensemble, EnsembleSettings, fit_ensemble, predict_many
from edgesafe_jax.dynamics.equivariance import Verdict, check_group, check_tolerance
from edgesafe_jax.dynamics.groups import Translation
from edgesafe_jax.dynamics.transitions import DynamicsError, Transitions
from edgesafe_jax.errors import POSITIVE, PROBABILITY, ConfigError, check_ranges


@dataclasses.dataclass(frozen=True)
class NestedResult:
    """The result of a nested test.

    Attributes:
      verdict: `VERIFIED`, `REJECTED` or `INCONCLUSIVE`.
      cost: mean over episodes of what hiding costs, in tolerances.
      low: lower one-sided bound of its mean.
      high: upper one-sided bound.
      error: mean error of the model that is shown all, in tolerances.
      num_episodes: K.
    """

    verdict: Verdict
    cost: float
    low: float
    high: float
    error: float
    num_episodes: int


def hide(group: Translation, data: Transitions) -> Transitions:
    """Carries every transition to where the first dimension of each axis of a group is 0 before the step.

    Args:
      group: the translations.
      data: N transitions.

    Returns:
      The transitions, which show nothing of what the group moves.
    """
    check_group(group, data)
    first = [indices[0] for indices in group.state_axes]

    def carry(state: jax.Array, after: jax.Array) -> tuple[jax.Array, jax.Array]:
        element = -state[jnp.array(first)]
        return group.state(element, state), group.state(element, after)

    states, after = jax.vmap(carry)(jnp.asarray(data.states), jnp.asarray(data.next_states))
    return data.replace(states=np.asarray(states), next_states=np.asarray(after))


def fit_hidden(
    seed: int,
    group: Translation,
    training: Transitions,
    validation: Transitions,
    settings: EnsembleSettings | None = None,
    *,
    relations: tuple[tuple[int, int], ...] = (),
) -> Ensemble:
    """Fits the model that is not shown what a group moves; arguments as of `fit_ensemble`."""
    parts = (hide(group, training), hide(group, validation))
    return fit_ensemble(jax.random.key(seed), *parts, settings, relations=relations)[0]


def nested_test(
    shown: Ensemble,
    hidden: Ensemble,
    group: Translation,
    data: Transitions,
    *,
    tolerance: tuple[float, ...],
    limit: float = 0.1,
    alpha: float = 0.05,
    cap: float = 4.0,
    regions: np.ndarray | None = None,
) -> dict[int, NestedResult]:
    """Tests whether hiding what a group moves costs less than a limit.

    Args:
      shown: a model of all dimensions.
      hidden: from `fit_hidden`, of the same training episodes.
      group: the translations.
      data: N transitions of episodes that neither model has seen.
      tolerance: `[S]` the unit of the errors of each dimension.
      limit: the cost that does not matter, in tolerances.
      alpha: level of each one-sided bound, over all regions together.
      cap: largest error that counts, in tolerances.
      regions: `[N]` the number of each transition's region; None: one region, 0.

    Returns:
      From region to its result. A region of fewer than two episodes is inconclusive.

    Raises:
      DynamicsError: sizes differ, or a number is out of its range.
    """
    check_group(group, data)
    limits = check_tolerance(tolerance, data.states.shape[1])
    try:
        ranges = {"limit": POSITIVE, "alpha": PROBABILITY, "cap": POSITIVE}
        check_ranges({"limit": limit, "alpha": alpha, "cap": cap}, ranges, prefix="")
    except ConfigError as error:
        raise DynamicsError(str(error)) from None
    regions = np.zeros(len(data.states), int) if regions is None else np.asarray(regions)
    if regions.shape != (len(data.states),):
        raise DynamicsError(f"regions of shape {regions.shape} for {len(data.states)} transitions: expected one each")
    carried = hide(group, data)
    errors = []
    for model, rows in ((shown, data), (hidden, carried)):
        predicted = np.asarray(predict_many(model, jnp.asarray(rows.states), jnp.asarray(rows.actions)).mean)
        errors.append(np.minimum(np.max(np.abs(predicted - rows.next_states) / limits, axis=1), cap))
    names = np.unique(regions)
    results = {}
    for name in names:
        chosen = regions == name
        _, episode, counts = np.unique(np.asarray(data.episodes)[chosen], return_inverse=True, return_counts=True)
        means = np.bincount(episode, (errors[1] - errors[0])[chosen]) / counts
        num, cost = len(means), float(means.mean())
        reach = np.inf
        if num > 1:
            reach = float(stats.t.ppf(1 - alpha / len(names), num - 1) * means.std(ddof=1) / np.sqrt(num))
        low, high = cost - reach, cost + reach
        verdict = Verdict.VERIFIED if high <= limit else Verdict.REJECTED if low > limit else Verdict.INCONCLUSIVE
        results[int(name)] = NestedResult(verdict, cost, low, high, float(errors[0][chosen].mean()), num)
    return results
