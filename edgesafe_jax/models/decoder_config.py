"""Sizes and constants of a decoder, and what one forward step costs."""

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax

from edgesafe_jax.errors import ConfigError, Range
from edgesafe_jax.models.quantised import QuantizedMatrix
from edgesafe_jax.typing import Params

ACTIVATIONS = {"silu": nn.silu, "gelu_tanh": functools.partial(nn.gelu, approximate=True)}
"""Activations of the feed-forward layer."""


NORMS = ("rms", "layer")
"""Kinds of norms: root-mean-square with a scale, or LayerNorm with a scale and a bias."""

QK_NORMS = (None, "head", "projection")
"""What of the queries and keys is normed: nothing, each head, or all heads together."""


MAX_LAYERS, MAX_WIDTH, MAX_HEADS = 4096, 2**20, 2**16
"""More than any model has: beyond them a file is damaged, or made to take all memory."""

_SIZE = Range(1, 10_000_000, integer=True, expected="at least 1, and at most 10,000,000")
_FACTOR = Range(0, 1e9, above=True, expected="above 0, and at most 1e9")
_RANGES = {
    "vocab_size": _SIZE,
    "num_layers": Range(0, MAX_LAYERS, integer=True),
    "embed_dim": Range(1, MAX_WIDTH, integer=True),
    "mlp_dim": _SIZE,
    **dict.fromkeys(("num_heads", "num_kv_heads", "head_dim"), Range(1, MAX_HEADS, integer=True)),
    **dict.fromkeys(("rope_base", "local_rope_base"), Range(0, 1e15, above=True)),
    "norm_eps": Range(0, 1),
    "max_context": Range(1, 2**31 - 1, integer=True, expected="at least 1, and less than 2**31"),
    **dict.fromkeys(("attention_softcap", "logit_softcap", "attention_scale", "rope_magnitude"), _FACTOR),
    **dict.fromkeys(("embedding_scale", "residual_scale", "logit_scale"), Range(-1e9, 1e9)),
    "window": Range(1, 2**31 - 1, integer=True, expected="at least 1, or None"),
}
"""Ranges of the numbers of a `DecoderConfig`."""


@dataclasses.dataclass(frozen=True, order=True)
class LayerKind:
    """What sets the attention of one layer apart from that of another.

    Attributes:
      slides: whether a position sees only the last `window` positions.
      rotates: whether queries and keys are rotated (RoPE).
    """

    slides: bool = False
    rotates: bool = True


PLAIN = LayerKind()
"""The kind of layer that all layers of most models are."""


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes and constants of a decoder.

    Attributes:
      vocab_size: V, rows of the embedding table.
      num_layers: L.
      embed_dim: D, width of the residual stream.
      mlp_dim: F, width of the feed-forward layer.
      num_heads: H.
      num_kv_heads: K; H must be a multiple of it.
      head_dim: E.
      rope_base: base of the rotary frequencies.
      norm_eps: epsilon of the norms.
      max_context: longest sequence, in positions, that the model was trained for.
      tie_embeddings: whether the output head is the transposed embedding table.
      qkv_bias: whether queries, keys and values have a bias (Qwen2).
      activation: of the feed-forward layer, a key of `ACTIVATIONS`.
      qk_norm: what of the queries and keys is normed before they are rotated: None, "head" (Qwen3) or "projection",
        all heads together (OLMo 2).
      post_norms: whether the outputs of attention and feed-forward are normed (Gemma 2).
      pre_norms: whether their inputs are (not in OLMo 2).
      attention_scale: factor of the attention scores; None for `E ** -0.5`.
      attention_softcap: c of `c tanh(score / c)` before the mask, or None (Gemma 2).
      logit_softcap: the same for the logits of the vocabulary, or None (Gemma 2).
      embedding_scale: factor of all input embeddings, virtual ones included (Gemma 2, Granite).
      residual_scale: factor of what each sublayer adds to the residual stream (Granite).
      logit_scale: factor of the logits (Granite: one over its `logits_scaling`).
      rope_divisors: R / 2 divisors of the rotary frequencies, by which a model is stretched to longer contexts; empty
        for none. See `families.rope`.
      rope_magnitude: factor of the rotated queries and keys (LongRoPE).
      rotary_dim: R, how many numbers of a head are rotated; None for all (Phi-4-mini), 0 for none (GPT-2).
      local_rope_base: base of the frequencies, without divisors, of the layers that slide; None for the same as the
        others (Gemma 3).
      window: w of the layers that slide: a position sees itself and the w - 1 positions before it; or None.
      sliding_layers: L flags, which layers slide; empty for none.
      rotary_layers: L flags, which layers rotate queries and keys; empty for all (SmolLM3).
      norm: kind of the norms, of `NORMS`.
      gated: whether the feed-forward layer has a gate (not in GPT-2).
      linear_bias: whether attention's output and the feed-forward layer have biases (GPT-2).
      learned_positions: whether positions are rows of a table that are added to the embeddings (GPT-2).
    """

    vocab_size: int
    num_layers: int
    embed_dim: int
    mlp_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_base: float = 10_000.0
    norm_eps: float = 1e-5
    max_context: int = 2048
    tie_embeddings: bool = True
    qkv_bias: bool = False
    activation: str = "silu"
    qk_norm: str | None = None
    post_norms: bool = False
    pre_norms: bool = True
    attention_scale: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    rope_divisors: tuple[float, ...] = ()
    rope_magnitude: float = 1.0
    rotary_dim: int | None = None
    local_rope_base: float | None = None
    window: int | None = None
    sliding_layers: tuple[bool, ...] = ()
    rotary_layers: tuple[bool, ...] = ()
    norm: str = "rms"
    gated: bool = True
    linear_bias: bool = False
    learned_positions: bool = False

    def __post_init__(self):
        for name, allowed in _RANGES.items():
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise ConfigError(f"{name}={value}: expected {allowed.describe()}.")
        if self.activation not in ACTIVATIONS:
            raise ConfigError(f"activation={self.activation!r}: expected one of {', '.join(ACTIVATIONS)}.")
        for name, allowed in (("norm", NORMS), ("qk_norm", QK_NORMS)):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(map(repr, allowed))}.")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}.")
        if self.rotary_size % 2 or not 0 <= self.rotary_size <= self.head_dim:
            raise ConfigError(f"rotary_dim={self.rotary_size}: expected an even number of at most {self.head_dim}.")
        if self.rope_divisors and len(self.rope_divisors) != self.rotary_size // 2:
            raise ConfigError(
                f"rope_divisors has {len(self.rope_divisors)} numbers: expected {self.rotary_size // 2}, one for each "
                "rotary frequency."
            )
        if any(divisor not in _FACTOR for divisor in self.rope_divisors):
            raise ConfigError(f"rope_divisors has a number that is not {_FACTOR.describe()}.")
        for name in ("sliding_layers", "rotary_layers"):
            if (flags := getattr(self, name)) and len(flags) != self.num_layers:
                raise ConfigError(f"{name} has {len(flags)} flags: expected one for each of {self.num_layers} layers.")

    @property
    def rotary_size(self) -> int:
        """R, how many numbers of a head are rotated."""
        return self.head_dim if self.rotary_dim is None else self.rotary_dim

    @property
    def layer_kinds(self) -> tuple[LayerKind, ...]:
        """The kind of each layer."""
        slides = self.sliding_layers if self.window is not None and self.sliding_layers else [False] * self.num_layers
        rotates = self.rotary_layers or [True] * self.num_layers
        return tuple(LayerKind(bool(s), bool(r)) for s, r in zip(slides, rotates, strict=True))

    def with_layers(self, kept: slice, **changes: Any) -> "DecoderConfig":
        """Returns the config of a decoder with some of the layers only, and other changes."""
        return dataclasses.replace(
            self,
            num_layers=len(range(self.num_layers)[kept]),
            sliding_layers=self.sliding_layers[kept],
            rotary_layers=self.rotary_layers[kept],
            **changes,
        )


def num_params(params: Params) -> int:
    """Counts the numbers in a parameter tree."""
    leaves = jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, QuantizedMatrix))
    return sum(math.prod(leaf.shape) for leaf in leaves)


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
    per_layer = attention + (3 if c.gated else 2) * c.embed_dim * c.mlp_dim
    head = c.vocab_size * c.embed_dim if with_head else 0
    products = 2.0 * (c.num_layers * per_layer + head)
    return products + 4.0 * c.num_layers * c.num_heads * c.head_dim * context
