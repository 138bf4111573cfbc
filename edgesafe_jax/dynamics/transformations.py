r"""Learned translations: for every state a distribution over translations, as wide as the test allows.

Around a state s the translation is uniform between two ends that a network gives, one downward and one upward for each
axis, so that the reach is asymmetric and depends on the place. Its entropy is maximised under a bound on the violation,

.. math:: \max_q \; E_s H(q(\cdot | s)) \quad\text{s.t.}\quad P_{s,\, d \sim q}(\text{violation}) \le \epsilon ,

by dual ascent: the distribution descends on :math:`-H + \lambda\, E \log(1 + v)`, the multiplier follows
:math:`\log\lambda \mathrel{+}= \eta (P - \epsilon)`. The violation v is how far the equivalence test is from passing,
in tolerances, and 0 where it passes; its logarithm keeps gradients alive near the bound and bounded far from it. It
starts from narrow intervals, where the data are.

The level of the test does not cover learned translations, because they are fitted to pass it: their reach is maximised
against the score and the threshold that `make_bank` applies afterwards, on transitions that include those of the
calibration. P(verified and wrong) <= alpha is therefore not guaranteed for them. Check what a bank accepts on fresh
episodes.

The paper enlarges the equivariant set by an entropy regulariser; its equations were not available, and the above is
this project's form of it.

Reference:
  Pinneri et al., "Equivariant Data Augmentation for Generalization in Offline Reinforcement Learning", 2023.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from edgesafe_jax.dynamics.ensemble import Ensemble
from edgesafe_jax.dynamics.equivariance import Calibration, accept, check_group, equivalence_test
from edgesafe_jax.dynamics.groups import Translation
from edgesafe_jax.dynamics.kinds import Kinds
from edgesafe_jax.dynamics.support import BoxDomain, Support
from edgesafe_jax.dynamics.transitions import DynamicsError, Transitions, check_settings, largest, standardizer
from edgesafe_jax.errors import POSITIVE, POSITIVE_COUNT, Range, check_counts
from edgesafe_jax.typing import Array, Params, PRNGKey


class _Reach(nn.Module):
    """From a normalised state `[S]` to the fractions `[2, K]` of the group's range downward and upward."""

    num_axes: int
    hidden: tuple[int, ...]

    @nn.compact
    def __call__(self, state: Array) -> Array:
        x = state
        for width in self.hidden:
            x = nn.swish(nn.Dense(width)(x))
        start = nn.initializers.constant(-3.0)  # the warm start: a twentieth of the range
        out = nn.Dense(2 * self.num_axes, kernel_init=nn.initializers.zeros, bias_init=start)(x)
        return nn.sigmoid(out).reshape(2, self.num_axes)


class TranslationDistribution(struct.PyTreeNode):
    """Translations that depend on the state: uniform between `interval(state)`.

    Attributes:
      params: of the network.
      state_mean: `[S]`.
      state_std: `[S]`.
      group: the translations; its `low` and `high` bound the reach.
      hidden: widths of the hidden layers.
    """

    params: Params
    state_mean: Array
    state_std: Array
    group: Translation = struct.field(pytree_node=False)
    hidden: tuple[int, ...] = struct.field(pytree_node=False)

    def interval(self, state: Array) -> tuple[Array, Array]:
        """Returns the ends, each `[K]`, around a state `[S]`."""
        network = _Reach(len(self.group.low), self.hidden)
        reach: Array = network.apply({"params": self.params}, (state - self.state_mean) / self.state_std)  # type: ignore[assignment]
        ends = reach * jnp.stack([jnp.asarray(self.group.low, jnp.float32), jnp.asarray(self.group.high, jnp.float32)])
        return ends[0], ends[1]

    def sample(self, key: PRNGKey, state: Array) -> Array:
        """Draws a translation `[K]` for a state `[S]`, differentiable in the parameters."""
        low, high = self.interval(state)
        return low + jax.random.uniform(key, low.shape) * (high - low)

    def log_prob(self, element: Array, state: Array) -> Array:
        """Returns the log-density of a translation `[K]` at a state `[S]`; -inf outside the interval."""
        low, high = self.interval(state)
        inside = jnp.all((element >= low) & (element <= high))
        return jnp.where(inside, -self.entropy(state), -jnp.inf)

    def entropy(self, state: Array) -> Array:
        """Returns the differential entropy at a state `[S]`, in nats."""
        low, high = self.interval(state)
        return jnp.sum(jnp.log(high - low))


class DomainTranslations(struct.PyTreeNode):
    """Translations that lead each state to a place drawn uniformly from a box, whatever the law there.

    Attributes:
      group: the translations.
      domain: the box, over the dimensions that the group moves.
    """

    group: Translation = struct.field(pytree_node=False)
    domain: BoxDomain = struct.field(pytree_node=False)

    def sample(self, key: PRNGKey, state: Array) -> Array:
        """Draws a translation `[K]` for a state `[S]`."""
        moved = [axes[0] for axes in self.group.state_axes]
        where = [self.domain.dims.index(dim) for dim in moved]
        low, high = (jnp.array([ends[i] for i in where], jnp.float32) for ends in (self.domain.low, self.domain.high))
        return jax.random.uniform(key, low.shape, minval=low, maxval=high) - state[jnp.array(moved)]


class ReachLog(struct.PyTreeNode):
    """The log of a fit, by step.

    Attributes:
      entropy: `[T]` mean entropy over the batch.
      violation: `[T]` fraction of the batch that violates.
      multiplier: `[T]` lambda.
    """

    entropy: Array
    violation: Array
    multiplier: Array


@dataclasses.dataclass(frozen=True)
class ReachSettings:
    """Settings of `fit_translations`.

    Attributes:
      max_violation: epsilon, the fraction of samples that may violate, inside (0, 1).
      hidden: widths of the network's hidden layers.
      num_steps: steps of Adam.
      batch_size: transitions of a step.
      learning_rate: of Adam.
      dual_rate: eta.

    Raises:
      DynamicsError: if a number is out of range.
    """

    max_violation: float = 0.1
    hidden: tuple[int, ...] = (64, 64)
    num_steps: int = 1500
    batch_size: int = 256
    learning_rate: float = 3e-3
    dual_rate: float = 0.05

    def __post_init__(self):
        object.__setattr__(self, "hidden", tuple(self.hidden))
        check_settings(self, _RANGES)


_RANGES = {
    "max_violation": Range(0, 1, above=True, below=True, expected="a fraction inside (0, 1)"),
    "hidden": POSITIVE_COUNT,
    "num_steps": POSITIVE_COUNT,
    "batch_size": POSITIVE_COUNT,
    "learning_rate": POSITIVE,
    "dual_rate": POSITIVE,
}


def fit_translations(
    key: PRNGKey,
    ensemble: Ensemble,
    calibration: Calibration,
    support: Support,
    group: Translation,
    data: Transitions,
    settings: ReachSettings | None = None,
    *,
    domain: BoxDomain | None = None,
    along: tuple[int, ...] = (),
    kinds: Kinds | None = None,
) -> tuple[TranslationDistribution, ReachLog]:
    r"""Learns how far each state may be translated.

    Inside the support of the data the violation of a sample is
    :math:`v = [\max(\max_j |r_j| / (\tau_j / 2),\ u / \lambda) - 1]_+`, with residual, tolerance and trust of the test
    (`edgesafe_jax.dynamics.equivariance`). Outside it, how far it leaves the support, in thresholds. A declared domain
    takes the place of the support there, and inside counts beside the test, the larger of both: how far the transformed
    transition leaves the domain, in tenths of its size. With axes along which the law is declared to go on, test and
    support are those of the element's counterpart in the data, see `make_bank`; with kinds those of one counterpart of
    each kind, weighed by the memberships of the place that the element leads to.

    Args:
      key: a typed random key.
      ensemble: the model.
      calibration: where it is trusted, and the tolerance.
      support: of its data; a few thousand references are enough here.
      group: the translations; `low` below 0 and `high` above 0 bound the reach.
      data: transitions whose states are translated.
      settings: bound on the violation and optimiser; None: `ReachSettings()`.
      domain: where the user declares the dynamics to be the same; None: nowhere beyond the data.
      along: axes of the group along which the law is declared to go on as in the data, within the domain.
      kinds: what is seen of places, through which alone the law is declared to depend on them, within the domain.

    Returns:
      The distribution and the log of its fit.

    Raises:
      DynamicsError: if the group cannot move both ways, the calibration is one for several steps, or the fit
        failed.
    """
    settings = settings or ReachSettings()
    check_group(group, data)
    check_along(group, along, domain, kinds)
    if calibration.horizon != 1:
        raise DynamicsError(f"a calibration for {calibration.horizon} steps: expected one for single transitions")
    for axis, (low, high) in enumerate(zip(group.low, group.high, strict=True)):
        if not low < 0 < high:
            raise DynamicsError(f"axis {axis} of the group reaches from {low} to {high}: expected below 0 to above 0")
    params, stats, log = _fit((group, domain, along, settings), key, ensemble, calibration, support, data, kinds)
    if not all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves((params, log))):
        raise DynamicsError(
            f"the fit failed: weights, entropy or multiplier are not finite after {settings.num_steps} steps; try a "
            "smaller learning rate"
        )
    return TranslationDistribution(params, *stats, group=group, hidden=settings.hidden), log


@functools.partial(jax.jit, static_argnums=0)
def _fit(
    static: tuple[Translation, BoxDomain | None, tuple[int, ...], ReachSettings],
    key: PRNGKey,
    ensemble: Ensemble,
    calibration: Calibration,
    support: Support,
    data: Transitions,
    kinds: Kinds | None,
) -> tuple[Params, tuple[Array, Array], ReachLog]:
    group, domain, along, settings = static
    axes = tuple(range(len(group.low))) if kinds is not None else along
    states = jnp.asarray(data.states)
    mean, std = standardizer(states)
    optimizer = optax.adam(settings.learning_rate)

    def margins(element: Array, row: Transitions, others: Array) -> tuple[Array, Array, Array, Array]:
        """Margins of the test at each counterpart `[C]` and of the declaration, inputs `[C, M]`, weights `[C]`."""
        state, after = group.state(element, row.states), group.state(element, row.next_states)
        declared = jnp.zeros(()) if domain is None else 10 * jnp.maximum(domain.excess(state), domain.excess(after))
        weights = jnp.ones(1) if kinds is None else kinds.weights(state)
        test, inputs = jax.vmap(lambda other: judged(counterpart(group, axes, element, row.states, other), row))(others)
        return test, declared, inputs, weights

    def judged(element: Array, row: Transitions) -> tuple[Array, Array]:
        state, after = group.state(element, row.states), group.state(element, row.next_states)
        action = group.action(element, row.actions)
        prediction = ensemble.predict(state, action)
        error = largest(jnp.abs(prediction.mean - after) / (0.5 * calibration.tolerance))
        doubt = calibration.expected_error(prediction.spread) / calibration.threshold
        test = jnp.maximum(jnp.maximum(error, doubt) - 1, 0.0)
        return test, ensemble.normalize(state, action)

    def loss(params: Params, multiplier: Array, rows: Transitions, keys: Array) -> tuple[Array, tuple[Array, Array]]:
        q = TranslationDistribution(params, mean, std, group, settings.hidden)
        elements = jax.vmap(q.sample)(keys, rows.states)
        if kinds is None:
            others = jnp.roll(rows.states, 1, axis=0)[:, None]
        else:
            draw = kinds.draw
            others = jax.vmap(lambda each: draw(jax.random.fold_in(each, 1)))(keys)
        test, declared, inputs, weights = jax.vmap(margins)(elements, rows, others)
        distances = support.distances(inputs.reshape(-1, inputs.shape[-1])).reshape(-1, *test.shape)
        known, declared = jnp.all(distances <= 1, axis=0), declared[:, None]
        outside = declared if domain is not None and not axes else jnp.maximum(largest(distances, 0) - 1, declared)
        amount = jnp.where(known, jnp.maximum(test, declared), outside)
        if kinds is not None:  # of what is unclear or not in the data nothing is known
            amount = jnp.where(kinds.present[None], amount, jnp.maximum(1.0, declared))
        entropy = jnp.mean(jax.vmap(q.entropy)(rows.states))
        rate = jnp.mean(jnp.sum(weights * (amount > 0).astype(weights.dtype), axis=1))
        return -entropy + multiplier * jnp.mean(jnp.sum(weights * jnp.log1p(amount), axis=1)), (entropy, rate)

    def step(carry: tuple, key: PRNGKey) -> tuple[tuple, tuple[Array, Array, Array]]:
        params, opt_state, log_multiplier = carry
        key_rows, key_draws = jax.random.split(key)
        rows = jax.random.randint(key_rows, (settings.batch_size,), 0, len(states))
        batch = jax.tree.map(lambda x: jnp.asarray(x)[rows], data)
        multiplier = jnp.exp(log_multiplier)
        gradient, (entropy, rate) = jax.grad(loss, has_aux=True)(
            params, multiplier, batch, jax.random.split(key_draws, settings.batch_size)
        )
        with jax.numpy_dtype_promotion("standard"):  # Optax itself relies on it: decay ** count.
            updates, opt_state = optimizer.update(gradient, opt_state, params)
            params = optax.apply_updates(params, updates)
        log_multiplier = jnp.clip(log_multiplier + settings.dual_rate * (rate - settings.max_violation), -5.0, 8.0)
        return (params, opt_state, log_multiplier), (entropy, rate, multiplier)

    params = _Reach(len(group.low), settings.hidden).init(key, states[0])["params"]
    start = (params, optimizer.init(params), jnp.zeros(()))
    (params, _, _), (entropy, rate, multiplier) = jax.lax.scan(step, start, jax.random.split(key, settings.num_steps))
    return params, (mean, std), ReachLog(entropy=entropy, violation=rate, multiplier=multiplier)


class TransformBank(struct.PyTreeNode):
    """For every transition of a data set several elements, and which of them may be used.

    Attributes:
      elements: `[N, M, K]`.
      accepted: `[N, M]` booleans.
      verdicts: `[N, M]` int8, see `Verdict`.
    """

    elements: Array
    accepted: Array
    verdicts: Array


def make_bank(
    key: PRNGKey,
    ensemble: Ensemble,
    calibration: Calibration,
    support: Support,
    distribution: TranslationDistribution | DomainTranslations,
    data: Transitions,
    *,
    domain: BoxDomain | None = None,
    along: tuple[int, ...] = (),
    kinds: Kinds | None = None,
    num_elements: int = 64,
) -> TransformBank:
    """Draws elements for every transition and tests them one by one, so that training only has to look them up.

    A declared domain says that the dynamics is the same in all of it. Where that is false, as of a river that crosses
    it, `along` declares less: that the law goes on along some axes as in the data. An element that leaves the support
    is then accepted if its counterpart is verified: the element that agrees with it in the other axes, and along the
    declared ones leads to where another transition of the data is. With `kinds` the law is declared to depend on the
    place only through what is seen of it, and the counterpart leads to where the data are at a place of the same kind.
    If the declaration is true, both are right or both are wrong, and P(accepted and wrong) is bounded as that of the
    test is.

    Args:
      key: a typed random key.
      ensemble: the model.
      calibration: where it is trusted, and the tolerance.
      support: of its data.
      distribution: where the elements come from.
      data: N transitions, those that training uses.
      domain: where the user declares the dynamics to be the same; both ends of the transformed transition have to lie
        in it.
      along: axes of the group along which the law is declared to go on as in the data, within the domain.
      kinds: what is seen of places; nothing is accepted that starts at, or leads to, a place of a kind which the data
        lack or which is unclear.
      num_elements: M, elements per transition.

    Returns:
      The bank.
    """
    check_counts(num_elements=num_elements)
    group = distribution.group
    check_group(group, data)
    check_along(group, along, domain, kinds)
    draw = jax.jit(jax.vmap(distribution.sample))
    elements, verdicts, declared, inner = [], [], [], []
    match = jax.jit(functools.partial(_counterparts, group, along))
    inside = jax.jit(jax.vmap(lambda e, s: domain.contains(group.state(e, s)))) if domain else None
    for number in range(num_elements):
        keys = jax.random.split(jax.random.fold_in(key, number), len(data.states))
        drawn = draw(keys, data.states)
        result = equivalence_test(ensemble, calibration, support, group, drawn, data)
        elements.append(drawn)
        verdicts.append(result.verdicts)
        known = jnp.array(True)
        if along or kinds is not None:
            tested, known = match(jax.random.fold_in(key, num_elements + number), drawn, data.states, kinds)
            result = equivalence_test(ensemble, calibration, support, group, tested, data)
            inner.append(result.verdicts)
        if inside is not None:
            declared.append(inside(drawn, data.states) & inside(drawn, data.next_states) & known)
    table = np.stack(verdicts, 1)
    accepted = accept(
        table,
        declared=np.stack(declared, 1) if declared else None,
        counterparts=np.stack(inner, 1) if inner else None,
    )
    return TransformBank(elements=jnp.stack(elements, 1), accepted=jnp.asarray(accepted), verdicts=jnp.asarray(table))


def _counterparts(
    group: Translation, along: tuple[int, ...], key: PRNGKey, elements: Array, states: Array, kinds: Kinds | None
) -> tuple[Array, Array]:
    """Counterparts of elements `[N, K]` on states `[N, S]`, and whether both places are of known kinds, `[N]`."""
    states = jnp.asarray(states)
    match = functools.partial(counterpart, group, along if kinds is None else tuple(range(len(group.low))))
    if kinds is None:
        return jax.vmap(match)(elements, states, jax.random.permutation(key, states)), jnp.ones(len(states), bool)
    moved = jax.vmap(group.state)(elements, states)
    before, after = (jnp.argmax(jax.vmap(kinds.weights)(each), axis=1) for each in (states, moved))
    drawn = jax.vmap(kinds.draw)(jax.random.split(key, len(states)))
    tested = jax.vmap(lambda e, s, d, k: match(e, s, d[k]))(elements, states, drawn, after)
    return tested, kinds.present[before] & kinds.present[after]


def check_along(group: Translation, along: tuple[int, ...], domain: BoxDomain | None, kinds: Kinds | None) -> None:
    """Refuses axes that a group lacks, both axes and kinds, and one of them without a domain that ends it.

    Raises:
      DynamicsError: one of these is so.
    """
    if kinds is not None and (along or domain is None):
        what = f"along={along}" if along else "no domain"
        raise DynamicsError(f"kinds of places with {what}: expected the box in which they are seen, and no axes")
    bad = [axis for axis in along if not 0 <= axis < len(group.low)]
    if bad:
        raise DynamicsError(
            f"along names axis {bad[0]} of the group, which has {len(group.low)}: expected 0 to {len(group.low) - 1}"
        )
    if along and domain is None:
        raise DynamicsError(f"along={along} without a domain: expected the box in which the law goes on along them")


def counterpart(group: Translation, along: tuple[int, ...], element: Array, state: Array, other: Array) -> Array:
    """Returns the element that leads a state along some axes to where another state is, and is the same in the rest.

    Args:
      group: the translations.
      along: the axes that are replaced; none returns the element.
      element: `[K]`.
      state: `[S]` the state that it acts on.
      other: `[S]` the other state.

    Returns:
      `[K]`.
    """
    for axis in along:
        first = group.state_axes[axis][0]
        element = element.at[axis].set(other[first] - state[first])
    return element


def coverage(positions: np.ndarray, *, low: tuple[float, ...], high: tuple[float, ...], num_cells: int = 20) -> float:
    """The fraction of the cells of a grid that at least one position visits.

    Args:
      positions: `[N, D]`.
      low: `[D]` lower corner of the grid.
      high: `[D]` upper corner.
      num_cells: along each side.

    Returns:
      The fraction, in [0, 1].

    Example:
      >>> coverage(np.array([[0.1, 0.1], [0.9, 0.9]]), low=(0, 0), high=(1, 1), num_cells=2)
      0.5
    """
    check_counts(num_cells=num_cells)
    edges = [np.linspace(a, b, num_cells + 1) for a, b in zip(low, high, strict=True)]
    return float(np.mean(np.histogramdd(np.asarray(positions), bins=edges)[0] > 0))
