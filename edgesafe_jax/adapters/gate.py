r"""A gate: it decides from the base model's own representation of a prompt whether the adapter beside it is used.

.. math:: \text{adapter on} \iff w^\top f(h_l(x)) + b > t

h_l(x) is the hidden state after layer l of the bare model at the last position of the prompt, and f the identity or one
hidden layer. Prompts below the threshold run the untouched model, bit for bit. The gate is fitted before the training,
on what the teacher does with each prompt, and is not trained by gradients of the model.

Cost: the prompt is read once more, by the bare model, up to layer l.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize

from edgesafe_jax.adapters.kind import AdapterKind, Cost, Examples, Option
from edgesafe_jax.adapters.states import check_layers, prompt_states
from edgesafe_jax.errors import COUNT, POSITIVE, ConfigError, Range
from edgesafe_jax.models.chats import Chat, check_chats
from edgesafe_jax.models.decoder_config import DecoderConfig, flops_per_token
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.typing import Adapter, Array, PRNGKey

_log = logging.getLogger(__name__)

SELECTION = 5
"""One in so many prompts of each kind is not fitted on: the threshold is chosen on these."""


@flax.struct.dataclass
class Gate(Adapter):
    """A linear map, or one hidden layer, of a hidden state of the bare model; composed with the adapter that it gates.

    Attributes:
      inner: `[D, W]`, of the hidden layer; W = 0 for none.
      inner_bias: `[W]`.
      weights: `[W]`, or `[D]` where there is no hidden layer.
      bias: scalar.
      threshold: scalar t, of the log-odds of a refusal.
      layer: l, counted from 0.
      penalty: factor of the squared weights in the fit.
      recall: fraction of the refused prompts that shall be above the threshold.
    """

    inner: Array
    inner_bias: Array
    weights: Array
    bias: Array
    threshold: Array
    layer: int = flax.struct.field(pytree_node=False)
    penalty: float = flax.struct.field(pytree_node=False, default=1e-3)
    recall: float = flax.struct.field(pytree_node=False, default=0.98)

    def slots(self) -> frozenset[str]:
        """The gate."""
        return frozenset({"gate"})

    def log_odds(self, states: Array) -> Array:
        """Log-odds `[N]` of a refusal, of hidden states `[N, D]`."""
        if self.inner.shape[1]:
            states = jnp.tanh(states @ self.inner + self.inner_bias[None])
        return states @ self.weights + self.bias

    def opens(self, model: LanguageModel, prompts: Sequence[str | Chat]) -> np.ndarray:
        """Returns whether each of N prompts is above the threshold, `[N]` bool."""
        names = [json.dumps(prompt) for prompt in check_chats("prompts", prompts)]
        distinct = dict(zip(names, prompts, strict=True))
        states = prompt_states(model, list(distinct.values()), layers=(self.layer,))[:, 0]
        above = np.asarray(self.log_odds(jnp.asarray(states)) > self.threshold)
        found = dict(zip(distinct, above.tolist(), strict=True))
        return np.array([found[name] for name in names], bool)


def init_gate(
    key: PRNGKey,
    model: LanguageModel,
    *,
    layer: int = -1,
    width: int = 0,
    penalty: float = 1e-3,
    recall: float = 0.98,
) -> Gate:
    """Makes a gate that is open until it is fitted, see `fit_adapter`.

    Args:
      key: random key of the hidden layer.
      model: the frozen language model.
      layer: l, counted from 0; -1 for the one at two thirds of the depth.
      width: W of the hidden layer; 0 for a linear gate.
      penalty: factor of the squared weights in the fit.
      recall: fraction of the refused prompts on which the gate shall open; the threshold is chosen by it.

    Returns:
      The gate.

    Raises:
      ConfigError: a layer that does not exist.
    """
    config = model.config
    [layer] = check_layers(config, (2 * config.num_layers // 3 if layer == -1 else layer,))
    inner = jax.random.normal(key, (config.embed_dim, width), jnp.float32) * config.embed_dim**-0.5
    zeros = (jnp.zeros(size, jnp.float32) for size in ((width,), (width or config.embed_dim,), ()))
    inner_bias, weights, bias = zeros
    return Gate(inner, inner_bias, weights, bias, jnp.full((), -1.0, jnp.float32), layer, penalty, recall)


def fit_gate(gate: Gate, model: LanguageModel, examples: Examples) -> Gate:
    r"""Fits a gate to a teacher: logistic loss on four fifths of the prompts, the threshold on the others.

    .. math:: \min_\theta \; \mathrm{mean}_i \, \mathrm{BCE}(\sigma(g_\theta(z_i)), p_i) + \lambda \lVert\theta\rVert^2

    z is the standardised hidden state, p the teacher's P(refuse), and the norm is that of the weights without biases.
    The standardisation is folded into the weights. The threshold is the largest with the gate's recall. Prompts that
    ask for the same are all fitted on, or none of them.

    Args:
      gate: as `init_gate` made it.
      model: the frozen language model.
      examples: prompts with the teacher's P(refuse).

    Returns:
      The fitted gate.

    Raises:
      ConfigError: fewer than two prompts that the teacher refuses, or that it answers.
    """
    target = np.asarray(examples.refusal_prob, np.float32)
    request = np.arange(len(target)) if examples.request is None else np.asarray(examples.request)
    refused, first = target > 0.5, np.unique(request, return_index=True)[1]
    kinds = [np.intersect1d(np.flatnonzero(mask), first) for mask in (refused, ~refused)]
    if min(map(len, kinds)) < 2:
        raise ConfigError(
            f"A gate needs two prompts that the teacher refuses and two that it answers: it has {len(kinds[0])} and "
            f"{len(kinds[1])}."
        )
    rng = np.random.default_rng(0)
    kept = np.concatenate([rng.permutation(kind)[: max(1, len(kind) // SELECTION)] for kind in kinds])
    is_kept = np.isin(request, request[kept])
    kept, fitted_on = np.flatnonzero(is_kept), np.flatnonzero(~is_kept)
    states = prompt_states(model, examples.prompts, layers=(gate.layer,))[:, 0]
    mean = states[fitted_on].mean(axis=0)
    std = np.maximum(states[fitted_on].std(axis=0), 1e-6 * np.abs(states).max() + 1e-12)
    inputs, labels = jnp.asarray((states[fitted_on] - mean) / std), jnp.asarray(target[fitted_on])

    def loss(gate: Gate) -> Array:
        weights = jnp.sum(jnp.square(gate.weights)) + jnp.sum(jnp.square(gate.inner))
        return jnp.mean(optax.sigmoid_binary_cross_entropy(gate.log_odds(inputs), labels)) + gate.penalty * weights

    fitted = _folded(_minimised(loss, gate), mean, std)
    odds = np.asarray(fitted.log_odds(jnp.asarray(states[kept])))
    # Halfway to the next prompt below, so that rounding does not shut out the last one that is counted.
    above = np.sort(odds[refused[kept]])[::-1][: int(np.ceil(gate.recall * np.sum(refused[kept])))]
    below = odds[odds < above[-1]]
    threshold = (above[-1] + below.max()) / 2 if len(below) else above[-1] - 1.0
    opened = odds > threshold
    _log.info(
        f"the gate opens on {np.mean(opened[refused[kept]]):.2f} of the prompts that the teacher refuses and on "
        f"{np.mean(opened[~refused[kept]]):.2f} of the others, of {len(kept)} that it was not fitted on"
    )
    return fitted.replace(threshold=jnp.asarray(threshold, jnp.float32))  # type: ignore[attr-defined]


def _minimised(loss: Any, start: Gate) -> Gate:
    flat, unflatten = jax.flatten_util.ravel_pytree(start)
    step = jax.jit(jax.value_and_grad(lambda flat: loss(unflatten(flat))))

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = step(jnp.asarray(x, jnp.float32))
        return float(value), np.asarray(gradient, np.float64)

    found = scipy.optimize.minimize(
        objective, np.asarray(flat, np.float64), jac=True, method="L-BFGS-B", options={"maxiter": 500}
    )
    return unflatten(jnp.asarray(found.x, jnp.float32))


def _folded(gate: Gate, mean: np.ndarray, std: np.ndarray) -> Gate:
    """The gate of standardised states as one of the states themselves."""
    if gate.inner.shape[1]:
        inner = gate.inner / std[:, None]
        return gate.replace(inner=inner, inner_bias=gate.inner_bias - mean @ inner)  # type: ignore[attr-defined]
    weights = gate.weights / std
    return gate.replace(weights=weights, bias=gate.bias - mean @ weights)  # type: ignore[attr-defined]


def _shapes(
    model: LanguageModel, arrays: Mapping[str, np.ndarray], fields: Mapping[str, Any]
) -> dict[str, tuple[int, ...]]:
    del arrays
    check_layers(model.config, (fields["layer"],))
    dim, width = model.config.embed_dim, fields["width"]
    return {
        "inner": (dim, width),
        "inner_bias": (width,),
        "weights": (width or dim,),
        "bias": (),
        "threshold": (),
    }


_ARRAYS = ("inner", "inner_bias", "weights", "bias", "threshold")


def _to_arrays(gate: Gate) -> tuple[dict[str, Any], dict[str, Any]]:
    fields = {"layer": gate.layer, "width": gate.inner.shape[1], "penalty": gate.penalty, "recall": gate.recall}
    return {name: getattr(gate, name) for name in _ARRAYS}, fields


def _from_arrays(arrays: Mapping[str, np.ndarray], fields: Mapping[str, Any]) -> Gate:
    leaves = (jnp.asarray(arrays[name]) for name in _ARRAYS)
    return Gate(*leaves, layer=fields["layer"], penalty=fields["penalty"], recall=fields["recall"])


def _cost(gate: Gate, config: DecoderConfig, prompt_tokens: int) -> Cost:
    """The bare model reads the prompt up to the gate's layer."""
    read = flops_per_token(config, context=prompt_tokens, with_head=False) * (gate.layer + 1) / config.num_layers
    return Cost(0.0, prompt_tokens * read)


def _match(config: DecoderConfig, parameters: int) -> dict[str, Any]:
    """The width of the hidden layer; none where a linear gate is nearer."""
    width = max(1, round((parameters - 2) / (config.embed_dim + 2)))
    hidden, linear = width * (config.embed_dim + 2) + 2, config.embed_dim + 2
    return {"width": 0 if abs(linear - parameters) <= abs(hidden - parameters) else width}


GATE = AdapterKind(
    type=Gate,
    init=init_gate,
    options={
        "layer": Option(-1, Range(0, 4096, integer=True, also=(-1,))),
        "width": Option(0, Range(0, 65_536, integer=True)),
        "penalty": Option(1e-3, POSITIVE),
        "recall": Option(0.98, Range(0, 1, above=True)),
    },
    to_arrays=_to_arrays,
    shapes=_shapes,
    from_arrays=_from_arrays,
    fields={
        "layer": Option(allowed=COUNT),
        "width": Option(allowed=COUNT),
        "penalty": Option(allowed=POSITIVE),
        "recall": Option(allowed=Range(0, 1, above=True)),
    },
    cost=_cost,
    match=_match,
    fit=fit_gate,
    alone=False,
)
