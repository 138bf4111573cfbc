r"""LoRA: a trained low-rank addition to the matrices of a frozen decoder.

.. math:: y = x W + \frac{\alpha}{r} (x A) B

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, section 4.1 and equation 3.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax.adapters.kind import AdapterError, AdapterKind, Cost, Option
from edgesafe_jax.errors import COUNT, POSITIVE, POSITIVE_COUNT, ConfigError, Range
from edgesafe_jax.models.decoder_config import DecoderConfig
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.models.matmul import pack_bfloat16, unpack_bfloat16
from edgesafe_jax.models.quantised import QuantizedMatrix
from edgesafe_jax.typing import Adapter, Array, LowRank, Params, PRNGKey

TARGETS = (
    "attention/query",
    "attention/key",
    "attention/value",
    "attention/out",
    "mlp/gate",
    "mlp/up",
    "mlp/down",
)
"""The matrices of a layer that can be adapted."""


@flax.struct.dataclass
class LoRA(Adapter):
    """Low-rank factors for some matrices of the upper layers, or of all; a pytree of trained numbers.

    Unlike a soft prompt it changes every position: every forward pass needs it (`Decoder(..., adapter=)` or, behind
    past blocks, `low_rank=`), or it is merged into the weights. It has no virtual positions.

    Attributes:
      down: A by target, `[L - first_layer, inputs, R]` float32.
      up: B by target, `[L - first_layer, R, outputs]` float32.
      scale: alpha / R.
      first_layer: how many layers below stay as they are.
    """

    down: dict[str, Array]
    up: dict[str, Array]
    scale: float = flax.struct.field(pytree_node=False)
    first_layer: int = flax.struct.field(pytree_node=False, default=0)

    def low_rank(self, from_layer: int = 0) -> LowRank:
        """The factors as a decoder takes them, the scale multiplied onto B.

        Args:
          from_layer: layers that the decoder leaves out, see `decoder.remainder`; at most `first_layer`. The layers
            from there to `first_layer` have factors of zero.
        """
        below = self.first_layer - from_layer
        if below < 0:
            raise ConfigError(f"from_layer={from_layer}: expected at most {self.first_layer}, where the LoRA begins.")
        factors: dict[str, dict[str, tuple[Array, Array]]] = {}
        for target, down in self.down.items():
            if target not in TARGETS:  # the decoder would not ask for it, and it would do nothing
                raise AdapterError(f"The LoRA adapts {target!r}: expected one of {', '.join(TARGETS)}.")
            module, leaf = target.split("/")
            pair = (down, self.up[target] * self.scale)
            padded = [jnp.pad(factor, ((below, 0), (0, 0), (0, 0))) for factor in pair]
            factors.setdefault(module, {})[leaf] = (padded[0], padded[1])
        return factors

    def slots(self) -> frozenset[str]:
        """The adapted matrices."""
        return frozenset(self.down)


def _sizes(config: DecoderConfig) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of each target."""
    d, f = config.embed_dim, config.mlp_dim
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return dict(zip(TARGETS, ((d, q), (d, kv), (d, kv), (q, d), (d, f), (d, f), (f, d)), strict=True))


def _check_options(config: DecoderConfig, rank: int, targets: Sequence[str], first_layer: int) -> None:
    sizes = _sizes(config)
    if not targets or set(targets) - set(TARGETS):
        raise ConfigError(f"targets={list(targets)}: expected some of {', '.join(TARGETS)}.")
    largest = min(min(sizes[target]) for target in targets)
    if rank not in Range(1, largest, integer=True):
        raise ConfigError(f"rank={rank}: expected 1 to {largest}.")
    if first_layer not in Range(0, config.num_layers - 1, integer=True):
        raise ConfigError(f"first_layer={first_layer}: expected 0 to {config.num_layers - 1}.")


def init_lora(
    key: PRNGKey,
    config: DecoderConfig,
    *,
    rank: int,
    alpha: float | None = None,
    targets: Sequence[str] = ("attention/query", "attention/value"),
    first_layer: int = 0,
) -> LoRA:
    """Makes a LoRA that changes nothing yet: A is Gaussian with variance one over its inputs, B is zero.

    Args:
      key: random key of A.
      config: of the decoder.
      rank: R.
      alpha: the scale is alpha / R; default R, a scale of one.
      targets: matrices to adapt, of `TARGETS`.
      first_layer: layers below that stay as they are.

    Returns:
      The LoRA.

    Raises:
      ConfigError: a rank below one or above the smallest side of a matrix, no targets or an unknown one, or no layer to
        adapt.
    """
    _check_options(config, rank, targets, first_layer)
    sizes = _sizes(config)
    down, up = {}, {}
    for number, target in enumerate(targets):
        inputs, outputs = sizes[target]
        shape = (config.num_layers - first_layer, inputs, rank)
        down[target] = jax.random.normal(jax.random.fold_in(key, number), shape, jnp.float32) * inputs**-0.5
        up[target] = jnp.zeros((shape[0], rank, outputs), jnp.float32)
    return LoRA(down, up, scale=1.0 if alpha is None else float(alpha) / rank, first_layer=first_layer)


def merge_params(params: Params, lora: LoRA) -> dict[str, Any]:
    """Adds a LoRA to the weights: `W + scale A B`, in float32.

    Args:
      params: parameters of the decoder.
      lora: the LoRA.

    Returns:
      Parameters of the same shapes and dtypes; the same decoder computes with them what it computed with the factors.
    """
    layers = {module: dict(leaves) for module, leaves in params["layers"].items()}
    for module, leaves in lora.low_rank().items():
        for leaf, (down, up) in leaves.items():
            weight = layers[module][leaf]
            if isinstance(weight, QuantizedMatrix):
                raise ConfigError(
                    f"{module}/{leaf} is quantised: a LoRA can be merged into floats only. Load the model without "
                    "quantization."
                )
            matrix = unpack_bfloat16(weight)
            merged = (matrix.astype(jnp.float32) + down @ up).astype(matrix.dtype)
            layers[module][leaf] = pack_bfloat16(merged) if weight.dtype == jnp.uint16 else merged
    return {**params, "layers": layers}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MergedModel(LanguageModel):
    """A language model with a LoRA in its weights.

    Attributes:
      base: the model without it; matrices that are not adapted are its own, in memory once.
    """

    base: LanguageModel = dataclasses.field(repr=False)


def merge_lora(model: LanguageModel, lora: LoRA) -> MergedModel:
    """Makes the language model with a LoRA in its weights; generation and guards take it like any other.

    Args:
      model: the base model, which stays as it is.
      lora: the LoRA.

    Returns:
      A model of its own hash; `unmerge_lora` gives the base model back.

    Raises:
      ConfigError: a quantised matrix.
    """
    digest = hashlib.sha256(model.hash.encode())
    for leaf in jax.tree.leaves(lora):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    digest.update(f"{lora.scale} {lora.first_layer}".encode())
    fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(LanguageModel)}
    fields |= {"name": f"{model.name} + LoRA", "params": merge_params(model.params, lora), "hash": digest.hexdigest()}
    return MergedModel(**fields, base=model)


def unmerge_lora(model: LanguageModel) -> LanguageModel:
    """Returns the model that a LoRA was merged into, bit for bit: nothing is subtracted, so nothing is rounded.

    Args:
      model: of `merge_lora`.

    Raises:
      AdapterError: no LoRA was merged into the model.
    """
    if not isinstance(model, MergedModel):
        raise AdapterError(f"Nothing was merged into the model {model.name!r}: expected what merge_lora returned.")
    return model.base


def _to_arrays(lora: LoRA) -> tuple[dict[str, Any], dict[str, Any]]:
    parts = (("down", lora.down), ("up", lora.up))
    arrays = {f"{target}/{part}": leaf for part, factors in parts for target, leaf in factors.items()}
    ranks = {leaf.shape[-1] for leaf in lora.down.values()}
    return arrays, {"rank": ranks.pop() if ranks else 0, "scale": float(lora.scale), "first_layer": lora.first_layer}


def _shapes(
    model: LanguageModel, arrays: Mapping[str, np.ndarray], fields: Mapping[str, Any]
) -> dict[str, tuple[int, ...]]:
    targets = sorted({name.rpartition("/")[0] for name in arrays})
    if set(arrays) != {f"{target}/{part}" for target in targets for part in ("down", "up")}:
        raise AdapterError(f"it holds {sorted(arrays)}; expected a down and an up for each matrix.")
    rank = fields["rank"]
    if rank is None:  # a file that does not say it: all factors must agree
        downs = (arrays[f"{target}/down"] for target in targets)
        rank = max((factor.shape[2] for factor in downs if factor.ndim == 3), default=0)
    _check_options(model.config, rank, targets, fields["first_layer"])
    layers = model.config.num_layers - fields["first_layer"]
    shapes: dict[str, tuple[int, ...]] = {}
    for target in targets:
        inputs, outputs = _sizes(model.config)[target]
        shapes |= {f"{target}/down": (layers, inputs, rank), f"{target}/up": (layers, rank, outputs)}
    return shapes


def _from_arrays(arrays: Mapping[str, np.ndarray], fields: Mapping[str, Any]) -> LoRA:
    factors = {
        part: {name.removesuffix(part)[:-1]: jnp.asarray(arrays[name]) for name in arrays if name.endswith(f"/{part}")}
        for part in ("down", "up")
    }
    return LoRA(factors["down"], factors["up"], scale=float(fields["scale"]), first_layer=int(fields["first_layer"]))


def _match(config: DecoderConfig, parameters: int) -> dict[str, Any]:
    """Rank and number of upper layers of the default targets; of equally near ones that with the most layers."""
    sizes = [_sizes(config)[target] for target in LORA.options["targets"].default]
    per_rank = sum(inputs + outputs for inputs, outputs in sizes)
    largest = min(min(size) for size in sizes)

    def nearest(first_layer: int) -> tuple[int, dict[str, Any]]:
        per_layer = per_rank * (config.num_layers - first_layer)
        rank = min(max(1, round(parameters / per_layer)), largest)
        return abs(rank * per_layer - parameters), {"rank": rank, "first_layer": first_layer}

    return min(map(nearest, range(config.num_layers)), key=lambda found: found[0])[1]


LORA = AdapterKind(
    type=LoRA,
    init=lambda key, model, **options: init_lora(key, model.config, **options),
    options={
        "rank": Option(allowed=Range(1, 4096, integer=True, expected="at least 1, and at most 4096")),
        "alpha": Option(None, POSITIVE),
        "targets": Option(("attention/query", "attention/value")),
        "first_layer": Option(0, COUNT),
    },
    to_arrays=_to_arrays,
    shapes=_shapes,
    from_arrays=_from_arrays,
    fields={
        "rank": Option(None, POSITIVE_COUNT),
        "scale": Option(allowed=Range()),
        "first_layer": Option(allowed=COUNT),
    },
    cost=lambda lora, config, prompt_tokens: Cost(2.0 * sum(leaf.size for leaf in jax.tree.leaves(lora))),
    match=_match,
)
