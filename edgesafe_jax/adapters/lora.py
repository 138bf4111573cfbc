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

from edgesafe_jax.models.decoder import DecoderConfig
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
    """Low-rank factors for some matrices of every layer; a pytree of trained numbers.

    Unlike a soft prompt it changes every position: it is given to each forward pass (`Decoder(..., low_rank=)`) or
    merged into the weights, and has no virtual positions.

    Attributes:
      down: A by target, `[L, inputs, R]` float32.
      up: B by target, `[L, R, outputs]` float32.
      scale: alpha / R.
    """

    down: dict[str, Array]
    up: dict[str, Array]
    scale: float = flax.struct.field(pytree_node=False)

    def low_rank(self) -> LowRank:
        """The factors as a decoder takes them, the scale multiplied onto B."""
        factors: dict[str, dict[str, tuple[Array, Array]]] = {}
        for target, down in self.down.items():
            module, leaf = target.split("/")
            factors.setdefault(module, {})[leaf] = (down, self.up[target] * self.scale)
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
) -> LoRA:
    """Makes a LoRA that changes nothing yet: A is Gaussian with variance one over its inputs, B is zero.

    Args:
      config: of the decoder.
      key: random key of A.
      rank: R.
      alpha: the scale is alpha / R; default R, a scale of one.
      targets: matrices to adapt, of `TARGETS`.

    Returns:
      The LoRA.

    Raises:
      ValueError: a rank below one or above the smallest side of a matrix, no targets or an unknown one.
    """
    sizes = _sizes(config)
    if not targets or set(targets) - set(TARGETS):
        raise ValueError(f"targets={list(targets)}: expected some of {', '.join(TARGETS)}.")
    if not 1 <= rank <= min(min(sizes[target]) for target in targets):
        raise ValueError(f"rank={rank}: expected 1 to {min(min(sizes[target]) for target in targets)}.")
    down, up = {}, {}
    for number, target in enumerate(targets):
        inputs, outputs = sizes[target]
        shape = (config.num_layers, inputs, rank)
        down[target] = jax.random.normal(jax.random.fold_in(key, number), shape, jnp.float32) * inputs**-0.5
        up[target] = jnp.zeros((config.num_layers, rank, outputs), jnp.float32)
    return LoRA(down, up, scale=1.0 if alpha is None else alpha / rank)


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
            layers[module][leaf] = (weight.astype(jnp.float32) + down @ up).astype(weight.dtype)
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
    digest.update(str(lora.scale).encode())
    return dataclasses.replace(
        model, name=f"{model.name} + LoRA", params=merge_params(model.params, lora), hash=digest.hexdigest()
    )
