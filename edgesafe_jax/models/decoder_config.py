"""Sizes and constants of a decoder, and what one forward step costs."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax

from edgesafe_jax.errors import ConfigError
from edgesafe_jax.typing import Params

ACTIVATIONS = {"silu": nn.silu, "gelu_tanh": functools.partial(nn.gelu, approximate=True)}
"""Activations of the gated feed-forward layer."""


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3's rescaling of rotary frequencies for contexts beyond the original one.

    Attributes:
      factor: divisor of the low frequencies.
      low_freq_factor: wavelengths above `original_context / low_freq_factor` are divided by `factor`.
      high_freq_factor: wavelengths below `original_context / high_freq_factor` are left alone.
      original_context: context length, in positions, of the first training stage.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes and constants of a decoder.

    Attributes:
      vocab_size: V, rows of the embedding table.
      num_layers: L.
      embed_dim: D, width of the residual stream.
      mlp_dim: F, width of the gated feed-forward layer.
      num_heads: H.
      num_kv_heads: K; H must be a multiple of it.
      head_dim: E.
      rope_base: base of the rotary frequencies.
      rms_eps: epsilon of the root-mean-square norms.
      max_context: longest sequence, in positions, that the model was trained for.
      tie_embeddings: whether the output head is the transposed embedding table.
      qkv_bias: whether queries, keys and values have a bias (Qwen2).
      rope_scaling: Llama 3's frequency rescaling, or None.
      activation: of the gated feed-forward layer, a key of `ACTIVATIONS`.
      qk_norm: whether queries and keys are normed per head before they are rotated (Qwen3).
      post_norms: whether the outputs of attention and feed-forward are normed too (Gemma 2).
      attention_scale: factor of the attention scores; None for `E ** -0.5`.
      attention_softcap: c of `c tanh(score / c)` before the mask, or None (Gemma 2).
      logit_softcap: the same for the logits of the vocabulary, or None (Gemma 2).
      embedding_scale: factor of all input embeddings, virtual ones included (Gemma 2, Granite).
      residual_scale: factor of what each sublayer adds to the residual stream (Granite).
      logit_scale: factor of the logits (Granite: one over its `logits_scaling`).
    """

    vocab_size: int
    num_layers: int
    embed_dim: int
    mlp_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_base: float = 10_000.0
    rms_eps: float = 1e-5
    max_context: int = 2048
    tie_embeddings: bool = True
    qkv_bias: bool = False
    rope_scaling: RopeScaling | None = None
    activation: str = "silu"
    qk_norm: bool = False
    post_norms: bool = False
    attention_scale: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0

    def __post_init__(self):
        if self.activation not in ACTIVATIONS:
            raise ConfigError(f"activation={self.activation!r}: expected one of {', '.join(ACTIVATIONS)}.")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}.")


def num_params(params: Params) -> int:
    """Counts the numbers in a parameter tree."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def flops_per_token(config: DecoderConfig, *, context: int, with_head: bool = True) -> float:
    """Floating-point operations of one forward step for one token.

    Two per weight that takes part in a matrix product, plus the scores and the mixing of attention:
    `2 * (matrix weights) + 4 * L * H * E * context`.

    Args:
      config: sizes.
      context: number of positions that the token sees, itself included.
      with_head: whether the logits are computed.

    Returns:
      Operations (a multiply-add counts as two).
    """
    c = config
    attention = c.embed_dim * c.head_dim * (2 * c.num_heads + 2 * c.num_kv_heads)
    per_layer = attention + 3 * c.embed_dim * c.mlp_dim
    head = c.vocab_size * c.embed_dim if with_head else 0
    products = 2.0 * (c.num_layers * per_layer + head)
    return products + 4.0 * c.num_layers * c.num_heads * c.head_dim * context
