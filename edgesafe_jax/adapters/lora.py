r"""LoRA: a trained low-rank addition to the matrices of a frozen decoder.

.. math:: y = x W + \frac{\alpha}{r} (x A) B

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, section 4.1 and equation 3.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax.models.decoder import DecoderConfig, pack_bfloat16, unpack_bfloat16
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.typing import Array, LowRank, Params, PRNGKey

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
class LoRA:
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

    @property
    def num_virtual(self) -> int:
        """0: a LoRA has no virtual positions."""
        return 0

    def virtual_embeddings(self) -> None:
        """Returns None."""

    def low_rank(self, from_layer: int = 0) -> LowRank:
        """The factors as a decoder takes them, the scale multiplied onto B.

        Args:
          from_layer: layers that the decoder leaves out, see `decoder.remainder`; at most `first_layer`. The layers
            from there to `first_layer` have factors of zero.
        """
        below = self.first_layer - from_layer
        if below < 0:
            raise ValueError(f"from_layer={from_layer}: expected at most {self.first_layer}, where the LoRA begins.")
        factors: dict[str, dict[str, tuple[Array, Array]]] = {}
        for target, down in self.down.items():
            module, leaf = target.split("/")
            pair = (down, self.up[target] * self.scale)
            padded = [jnp.pad(factor, ((below, 0), (0, 0), (0, 0))) for factor in pair]
            factors.setdefault(module, {})[leaf] = (padded[0], padded[1])
        return factors


def _sizes(config: DecoderConfig) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of each target."""
    d, f = config.embed_dim, config.mlp_dim
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return dict(zip(TARGETS, ((d, q), (d, kv), (d, kv), (q, d), (d, f), (d, f), (f, d)), strict=True))


def init_lora(
    config: DecoderConfig,
    key: PRNGKey,
    *,
    rank: int,
    alpha: float | None = None,
    targets: Sequence[str] = ("attention/query", "attention/value"),
    first_layer: int = 0,
) -> LoRA:
    """Makes a LoRA that changes nothing yet: A is Gaussian with variance one over its inputs, B is zero.

    Args:
      config: of the decoder.
      key: random key of A.
      rank: R.
      alpha: the scale is alpha / R; default R, a scale of one.
      targets: matrices to adapt, of `TARGETS`.
      first_layer: layers below that stay as they are.

    Returns:
      The LoRA.

    Raises:
      ValueError: a rank below one or above the smallest side of a matrix, no targets or an unknown one, or no layer to
        adapt.
    """
    sizes = _sizes(config)
    if not targets or set(targets) - set(TARGETS):
        raise ValueError(f"targets={list(targets)}: expected some of {', '.join(TARGETS)}.")
    if not 1 <= rank <= min(min(sizes[target]) for target in targets):
        raise ValueError(f"rank={rank}: expected 1 to {min(min(sizes[target]) for target in targets)}.")
    if not 0 <= first_layer < config.num_layers:
        raise ValueError(f"first_layer={first_layer}: expected 0 to {config.num_layers - 1}.")
    down, up = {}, {}
    for number, target in enumerate(targets):
        inputs, outputs = sizes[target]
        shape = (config.num_layers - first_layer, inputs, rank)
        down[target] = jax.random.normal(jax.random.fold_in(key, number), shape, jnp.float32) * inputs**-0.5
        up[target] = jnp.zeros((shape[0], rank, outputs), jnp.float32)
    return LoRA(down, up, scale=1.0 if alpha is None else alpha / rank, first_layer=first_layer)


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
            matrix = unpack_bfloat16(weight)
            merged = (matrix.astype(jnp.float32) + down @ up).astype(matrix.dtype)
            layers[module][leaf] = pack_bfloat16(merged) if weight.dtype == jnp.uint16 else merged
    return {**params, "layers": layers}


def merge_lora(model: LanguageModel, lora: LoRA) -> LanguageModel:
    """Makes the language model with a LoRA in its weights; generation and guards take it like any other.

    Args:
      model: the base model.
      lora: the LoRA.

    Returns:
      A model of its own hash.
    """
    digest = hashlib.sha256(model.hash.encode())
    for leaf in jax.tree.leaves(lora):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    digest.update(f"{lora.scale} {lora.first_layer}".encode())
    return dataclasses.replace(
        model, name=f"{model.name} + LoRA", params=merge_params(model.params, lora), hash=digest.hexdigest()
    )
