r"""Learned dynamics: an ensemble of Gaussian networks that predict the change of the state.

Each member predicts mean and variance of :math:`\Delta = s' - s` from :math:`(s, a)`, inputs and targets normalised by
the statistics of the training episodes. Members differ by initialisation and by a bootstrap of the *episodes*; each
keeps the weights of its own best validation epoch and stops on its own; the best few (elites) predict. Training is one
compiled program, with the data as an argument.

Reference:
  Chua et al., "Deep Reinforcement Learning in a Handful of Trials using Probabilistic Dynamics Models", 2018 (PETS).
"""

import dataclasses
import functools
import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from edgesafe_jax.dynamics.transitions import DynamicsError, Transitions, check_dims, check_settings, standardizer
from edgesafe_jax.errors import NON_NEGATIVE, POSITIVE, POSITIVE_COUNT
from edgesafe_jax.typing import Array, Params, PRNGKey, PyTree


class GaussianMLP(nn.Module):
    """Mean and log-variance of a normalised target.

    The log-variance is bounded softly, by trained ends: `max - softplus(max - x)`, then `min + softplus(x - min)`.

    Attributes:
      target_size: numbers that are predicted.
      hidden: widths of the hidden layers.
    """

    target_size: int
    hidden: tuple[int, ...]

    @nn.compact
    def __call__(self, inputs: Array) -> tuple[Array, Array]:
        """From normalised inputs `[M]` to mean and log-variance, each `[target_size]`."""
        x = inputs
        for width in self.hidden:
            x = nn.swish(nn.Dense(width, kernel_init=nn.initializers.lecun_normal())(x))
        out = nn.Dense(2 * self.target_size)(x)
        mean, log_var = out[: self.target_size], out[self.target_size :]
        high = self.param("max_log_var", nn.initializers.constant(0.5), (self.target_size,))
        low = self.param("min_log_var", nn.initializers.constant(-10.0), (self.target_size,))
        log_var = high - nn.softplus(high - log_var)
        return mean, low + nn.softplus(log_var - low)


def apply_gaussian(network: GaussianMLP, params: Params, inputs: Array) -> tuple[Array, Array]:
    """Returns mean and log-variance of one normalised input `[M]`."""
    return network.apply({"params": params}, inputs)  # type: ignore[return-value]


class Prediction(struct.PyTreeNode):
    """The ensemble's next state, in the units of the state.

    Attributes:
      mean: `[S]`.
      spread: `[S]`, standard deviation: that of the noise and that among the members together.
      disagreement: `[S]`, standard deviation among the members alone.
    """

    mean: Array
    spread: Array
    disagreement: Array


class Ensemble(struct.PyTreeNode):
    """A fitted ensemble; only its elites are kept.

    Attributes:
      params: of the elites, every leaf with a leading axis `[E]`.
      input_mean: `[M]`, of state, action and the differences of `relations`: M = S + A + R.
      input_std: `[M]`.
      target_mean: `[S]`.
      target_std: `[S]`.
      hidden: widths of the hidden layers.
      relations: R pairs (i, j) of state dimensions whose differences s_i - s_j are inputs too.
    """

    params: Params
    input_mean: Array
    input_std: Array
    target_mean: Array
    target_std: Array
    hidden: tuple[int, ...] = struct.field(pytree_node=False)
    relations: tuple[tuple[int, int], ...] = struct.field(pytree_node=False, default=())

    @property
    def num_members(self) -> int:
        """E, how many networks there are."""
        return jax.tree.leaves(self.params)[0].shape[0]

    def member(self, index: Array | int) -> "Ensemble":
        """Returns one network as an ensemble of one; the index may be traced."""
        params = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=True), self.params)
        return self.replace(params=params)

    def normalize(self, state: Array, action: Array) -> Array:
        """Returns the normalised input, `[M]`, of one state and action."""
        return (model_inputs(state, action, self.relations) - self.input_mean) / self.input_std

    def predict(self, state: Array, action: Array) -> Prediction:
        r"""Predicts the next state of one state `[S]` and action `[A]`.

        .. math:: \hat f = s + \frac1E \sum_e \mu_e, \qquad
                  \sigma^2 = \frac1E \sum_e \sigma_e^2 + \mathrm{Var}_e(\mu_e)
        """
        network = GaussianMLP(state.shape[0], self.hidden)
        inputs = self.normalize(state, action)
        means, log_vars = jax.vmap(lambda params: apply_gaussian(network, params, inputs))(self.params)
        variance = jnp.var(means, axis=0)
        # The square root has no derivative at 0, where members agree, one of one elite always.
        disagreement = jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1.0)), 0.0)
        spread = jnp.sqrt(jnp.mean(jnp.exp(log_vars), axis=0) + disagreement**2)
        mean = state + self.target_mean + self.target_std * jnp.mean(means, axis=0)
        return Prediction(mean, self.target_std * spread, self.target_std * disagreement)

    def rollout(self, state: Array, actions: Array) -> Prediction:
        """Predicts the states after each of the actions `[T, A]`; leaves `[T, S]`, spreads of each step alone."""

        def step(state: Array, action: Array) -> tuple[Array, Prediction]:
            prediction = self.predict(state, action)
            return prediction.mean, prediction

        return jax.lax.scan(step, state, actions)[1]


def model_inputs(states: Array, actions: Array, relations: tuple[tuple[int, int], ...]) -> Array:
    """Inputs `[..., M]` of states `[..., S]` and actions `[..., A]`."""
    differences = [(states[..., i] - states[..., j])[..., None] for i, j in relations]
    return jnp.concatenate([states, actions, *differences], axis=-1)


@jax.jit
def predict_many(ensemble: Ensemble, states: Array, actions: Array) -> Prediction:
    """Predicts the next states of states `[N, S]` and actions `[N, A]`; leaves `[N, S]`."""
    return jax.vmap(ensemble.predict)(states, actions)


@jax.jit
def rollout_many(ensemble: Ensemble, states: Array, actions: Array) -> Prediction:
    """Predicts K steps open-loop from states `[N, S]` under actions `[N, K, A]`; leaves `[N, K, S]`."""
    return jax.vmap(ensemble.rollout)(states, actions)


class FitLog(struct.PyTreeNode):
    """The log of a fit.

    Attributes:
      validation: `[num_epochs, M]` mean squared normalised error of each member; NaN for epochs that were not run.
      num_epochs: epochs that were run.
      best: `[M]` each member's best validation error.
      elites: `[E]` the members that were kept, best first.
    """

    validation: Array
    num_epochs: Array
    best: Array
    elites: Array


@dataclasses.dataclass(frozen=True)
class EnsembleSettings:
    """Sizes and optimiser of an ensemble.

    Attributes:
      num_members: M, networks that are fitted.
      num_elites: E, networks that are kept, at most M.
      hidden: widths of the hidden layers.
      learning_rate: of AdamW; falls along a cosine to a hundredth over `num_epochs`.
      weight_decay: of AdamW.
      batch_size: transitions of a batch, for each member its own.
      num_epochs: most epochs.
      patience: epochs without a lower validation error after which a member stops.

    Raises:
      DynamicsError: if a number is out of range.
    """

    num_members: int = 7
    num_elites: int = 5
    hidden: tuple[int, ...] = (128, 128)
    learning_rate: float = 1e-3
    weight_decay: float = 1e-5
    batch_size: int = 256
    num_epochs: int = 60
    patience: int = 8

    def __post_init__(self):
        object.__setattr__(self, "hidden", tuple(self.hidden))
        check_settings(self, _RANGES)
        if self.num_elites > self.num_members:
            raise DynamicsError(f"num_elites={self.num_elites}: expected 1 to num_members={self.num_members}")


_RANGES = {
    "num_members": POSITIVE_COUNT,
    "num_elites": POSITIVE_COUNT,
    "hidden": POSITIVE_COUNT,
    "learning_rate": POSITIVE,
    "weight_decay": NON_NEGATIVE,
    "batch_size": POSITIVE_COUNT,
    "num_epochs": POSITIVE_COUNT,
    "patience": POSITIVE_COUNT,
}


def fit_ensemble(
    key: PRNGKey,
    training: Transitions,
    validation: Transitions,
    settings: EnsembleSettings | None = None,
    *,
    relations: tuple[tuple[int, int], ...] = (),
) -> tuple[Ensemble, FitLog]:
    r"""Fits an ensemble by maximum likelihood.

    .. math:: \mathcal L = \mathrm{mean}\, \tfrac12 \bigl( (\Delta - \mu)^2 e^{-\ell} + \ell \bigr)
              + 0.01 \sum_j (\ell^{max}_j - \ell^{min}_j)

    An epoch is as many batches as cover the data once. A member whose validation error has not fallen for `patience`
    epochs changes no more; training ends when none does.

    Args:
      key: a typed random key.
      training: transitions of the training episodes; a bootstrap draws episodes.
      validation: transitions of other episodes.
      settings: sizes and optimiser; None: `EnsembleSettings()`.
      relations: pairs (i, j) of state dimensions whose differences s_i - s_j are inputs beside the state, such as the
        place of an object seen from the agent: what a contact depends on is then an input, not learned.

    Returns:
      The ensemble of the elites and the log of the fit.

    Raises:
      DynamicsError: if a relation names a dimension that the state lacks, an episode is in both sets, a validation
        value lies so far from the training data that no error can be told beside it, or the fit failed: weights or
        validation errors that are not finite, or an error far above that of predicting the mean.
    """
    settings = settings or EnsembleSettings()
    if shared := np.intersect1d(training.episodes, validation.episodes).tolist():
        raise DynamicsError(f"episode {shared[0]} is in training and in validation: split by episode (split_episodes)")
    check_dims("relations", itertools.chain(*relations), training.states.shape[1])
    key_rows, key_fit = jax.random.split(key)
    rows = _bootstrap_rows(key_rows, np.asarray(training.episodes), settings.num_members)
    inputs = model_inputs(jnp.asarray(training.states), jnp.asarray(training.actions), relations)
    targets = jnp.asarray(training.next_states - training.states)
    stats: dict[str, Array] = dict(zip(("input_mean", "input_std"), standardizer(inputs), strict=True))
    # Changes are differences of states, whose rounding they have.
    sizes = jnp.max(jnp.abs(jnp.asarray(training.states)), 0)
    stats |= dict(zip(("target_mean", "target_std"), standardizer(targets, sizes), strict=True))
    for name, values in stats.items():
        if not bool(jnp.all(jnp.isfinite(values))):
            raise DynamicsError(
                f"{name} of the training data is {np.asarray(values)}: expected data of finite variance"
            )
    normalized = [_normalized(part, relations, stats) for part in (training, validation)]
    _check_validation(np.asarray(normalized[1][0]), np.asarray(normalized[1][1]))
    params, log = _fit(settings, key_fit, *normalized, rows)
    elites = jnp.argsort(log.best)[: settings.num_elites]
    kept = jax.tree.map(lambda leaf: leaf[elites], params)
    _check_fit(kept, np.asarray(log.best[elites]), np.asarray(normalized[1][1]))
    return Ensemble(params=kept, hidden=settings.hidden, relations=relations, **stats), log.replace(elites=elites)


_MAX_NORMALIZED = 1e6
"""A validation value this many standard deviations of the training data away hides all other errors."""
_MAX_RELATIVE_ERROR = 10.0
"""Validation error of a fit that diverged, over that of predicting the mean change."""


def _check_validation(inputs: np.ndarray, targets: np.ndarray) -> None:
    """Refuses validation values beside which no validation error can be told."""
    for name, values in (("inputs", inputs), ("changes of the state", targets)):
        bad = np.argwhere(~(np.abs(values) < _MAX_NORMALIZED))
        if len(bad):
            row, column = bad[0]
            raise DynamicsError(
                f"validation row {row}: dimension {column} of the {name} lies {abs(values[row, column]):.3g} standard "
                "deviations of the training data from their mean: expected data of the same world; remove or mend it"
            )


def _check_fit(params: Params, errors: np.ndarray, targets: np.ndarray) -> None:
    """Raises where a fit failed, so that its weights are not taken for a model."""
    finite = all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(params))
    mean_error = float(np.mean(targets**2))
    if not (finite and np.all(np.isfinite(errors)) and errors.max() <= _MAX_RELATIVE_ERROR * max(mean_error, 1.0)):
        raise DynamicsError(
            f"the fit failed: the best validation errors of the elites are {errors.tolist()} (predicting the mean has "
            f"{mean_error:.3g}){'' if finite else ' and weights are not finite'}; try a smaller learning rate or look "
            "at the data"
        )


def _bootstrap_rows(key: PRNGKey, episodes: np.ndarray, num_members: int) -> Array:
    """Rows `[M, N]` of each member: whole episodes drawn with replacement, cut or repeated to N rows."""
    num = len(episodes)
    names = np.unique(episodes)
    by_episode = [np.flatnonzero(episodes == name) for name in names]
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    members = []
    for _ in range(num_members):
        drawn = np.concatenate([by_episode[i] for i in rng.integers(len(names), size=len(names))])
        members.append(np.resize(drawn, num))
    return jnp.asarray(np.stack(members), jnp.int32)


def _normalized(
    data: Transitions, relations: tuple[tuple[int, int], ...], stats: dict[str, Array]
) -> tuple[Array, Array]:
    """Normalised inputs `[N, M]` and targets `[N, S]`."""
    inputs = model_inputs(jnp.asarray(data.states), jnp.asarray(data.actions), relations)
    targets = data.next_states - data.states
    return (
        (inputs - stats["input_mean"][None]) / stats["input_std"][None],
        (targets - stats["target_mean"][None]) / stats["target_std"][None],
    )


@functools.partial(jax.jit, static_argnums=0)
def _fit(
    settings: EnsembleSettings,
    key: PRNGKey,
    training: tuple[Array, Array],
    validation: tuple[Array, Array],
    rows: Array,
) -> tuple[Params, FitLog]:
    num_members, num_rows = rows.shape
    network = GaussianMLP(training[1].shape[1], settings.hidden)
    num_batches = -(-num_rows // settings.batch_size)
    optimizer = optax.adamw(
        optax.cosine_decay_schedule(settings.learning_rate, settings.num_epochs * num_batches, 0.01),
        weight_decay=settings.weight_decay,
    )
    many = jax.vmap(functools.partial(apply_gaussian, network), in_axes=(None, 0))

    def loss(params: Params, x: Array, y: Array) -> Array:
        mean, log_var = many(params, x)
        fit = 0.5 * jnp.mean((y - mean) ** 2 * jnp.exp(-log_var) + log_var)
        return fit + 0.01 * jnp.sum(params["max_log_var"] - params["min_log_var"])

    def member_step(params: Params, opt_state: optax.OptState, batch: Array) -> tuple[Params, optax.OptState]:
        gradient = jax.grad(loss)(params, training[0][batch], training[1][batch])
        with jax.numpy_dtype_promotion("standard"):  # Optax itself relies on it: decay ** count.
            updates, opt_state = optimizer.update(gradient, opt_state, params)
            return optax.apply_updates(params, updates), opt_state  # type: ignore[return-value]

    def step(carry: tuple[Params, optax.OptState], key: PRNGKey) -> tuple[tuple[Params, optax.OptState], None]:
        drawn = jax.random.randint(key, (num_members, settings.batch_size), 0, num_rows)
        return jax.vmap(member_step)(*carry, jnp.take_along_axis(rows, drawn, 1)), None

    def epoch(carry: Any) -> tuple:
        number, params, opt_state, best_params, best, worse, history = carry
        keys = jax.random.split(jax.random.fold_in(key, number), num_batches)
        (new_params, new_opt), _ = jax.lax.scan(step, (params, opt_state), keys)
        active = worse < settings.patience
        params, opt_state = _where(active, (new_params, new_opt), (params, opt_state))
        means = jax.vmap(many, in_axes=(0, None))(params, validation[0])[0]
        error = jnp.mean((means - validation[1][None]) ** 2, axis=(1, 2))
        better = active & (error < best)
        best_params = _where(better, params, best_params)
        worse = jnp.where(better, 0, worse + active.astype(jnp.int32))
        history = history.at[number].set(error)
        return number + 1, params, opt_state, best_params, jnp.where(better, error, best), worse, history

    def unfinished(carry: Any) -> Array:
        return (carry[0] < settings.num_epochs) & jnp.any(carry[5] < settings.patience)

    keys = jax.random.split(jax.random.fold_in(key, settings.num_epochs), num_members)
    params = jax.vmap(lambda k: network.init(k, training[0][0])["params"])(keys)
    start = (
        jnp.zeros((), jnp.int32),
        params,
        jax.vmap(optimizer.init)(params),
        params,
        jnp.full((num_members,), jnp.inf),
        jnp.zeros((num_members,), jnp.int32),
        jnp.full((settings.num_epochs, num_members), jnp.nan),
    )
    number, _, _, best_params, best, _, history = jax.lax.while_loop(unfinished, epoch, start)
    return best_params, FitLog(validation=history, num_epochs=number, best=best, elites=jnp.arange(num_members))


def _where(chosen: Array, new: PyTree, old: PyTree) -> PyTree:
    """Takes `new` for the members where `chosen` `[M]` is true."""
    return jax.tree.map(lambda n, o: jnp.where(chosen.reshape(-1, *[1] * (n.ndim - 1)), n, o), new, old)


@jax.jit
def prediction_error(ensemble: Ensemble, states: Array, actions: Array) -> Array:
    """Root mean squared error of open-loop predictions, by horizon.

    Args:
      ensemble: the ensemble.
      states: observed `[N, K+1, S]`.
      actions: `[N, K, A]`; K = 1 gives the one-step error.

    Returns:
      `[K, S]`, in the units of the state.
    """
    predicted = jax.vmap(lambda s, a: ensemble.rollout(s[0], a).mean)(states, actions)
    return jnp.sqrt(jnp.mean((predicted - states[:, 1:]) ** 2, axis=0))


class VarianceCalibration(struct.PyTreeNode):
    """The spread compared with the errors.

    Attributes:
      levels: `[L]` nominal coverage of central intervals.
      coverage: `[L, S]` the fraction of observed next states inside them.
      z_rms: `[S]` root mean square of error / spread: 1 if calibrated, above 1 if overconfident.
    """

    levels: Array
    coverage: Array
    z_rms: Array


@jax.jit
def variance_calibration(ensemble: Ensemble, data: Transitions) -> VarianceCalibration:
    r"""Compares the spread with the errors on held-out transitions, as Gaussian intervals.

    Coverage at level q is the fraction with :math:`|s' - \hat f| \le \Phi^{-1}((1+q)/2)\, \sigma`.

    Args:
      ensemble: the ensemble.
      data: transitions of episodes that it was not fitted on.

    Returns:
      Coverage by level and the size of the standardised error.
    """
    prediction = predict_many(ensemble, data.states, data.actions)
    z = jnp.abs(data.next_states - prediction.mean) / prediction.spread
    levels = jnp.array([0.5, 0.8, 0.9, 0.95, 0.99])
    width = jax.scipy.stats.norm.ppf((1 + levels) / 2)
    coverage = jnp.mean(z[None] <= width[:, None, None], axis=1)
    return VarianceCalibration(levels=levels, coverage=coverage, z_rms=jnp.sqrt(jnp.mean(z**2, axis=0)))
