"""Grouped-query attention over blocks of past keys and values."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from edgesafe_jax.models.decoder_config import DecoderConfig
from edgesafe_jax.models.layers import Factors, RMSNorm, add_bias, product, softcap, weight
from edgesafe_jax.models.rope import View, rotate
from edgesafe_jax.typing import Array

MASKED = -1e30
"""Attention score of a position that must not be seen; finite, so that an all-masked row stays finite."""


@flax.struct.dataclass
class Block:
    """Keys and values of a block of positions in one layer.

    Attributes:
      keys: `[B | 1, K, S, E]`.
      values: the same.
    """

    keys: Array
    values: Array

    @property
    def size(self) -> int:
        """S."""
        return self.keys.shape[2]

    def scores(self, query: Array) -> Array:
        """Products of queries `[B, K, G, T, E]` and keys: `[B, K, G, T, S]` float32."""
        return _scores(query, self.keys)

    def mix(self, weights: Array) -> Array:
        """Sums of values with weights `[B, K, G, T, S]`: `[B, K, G, T, E]`."""
        return _mix(weights, self.values)


@flax.struct.dataclass
class CachedBlock:
    """A `Block` within a cache of all layers: pieces of Q positions, of which only the first few are read.

    A row's sums do not depend on how many pieces other rows have filled. There is no gradient.

    Attributes:
      keys: `[L, P, B, K, Q, E]`, S = P Q positions.
      values: the same.
      layer: `[]` int32, which of the layers.
      filled: `[]` int32, positions that are read, up to the end of a piece; those behind them must be masked.
    """

    keys: Array
    values: Array
    layer: Array
    filled: Array

    @property
    def size(self) -> int:
        """S."""
        return self.keys.shape[1] * self.keys.shape[4]

    def scores(self, query: Array) -> Array:
        """As `Block.scores`; zero in pieces that are not read."""

        def put(number: Array, scores: Array) -> Array:
            found = _scores(query, self._piece(self.keys, number))
            return jax.lax.dynamic_update_slice_in_dim(scores, found, number * self.keys.shape[4], axis=4)

        return self._over_pieces(put, jnp.zeros((*query.shape[:4], self.size), jnp.float32))

    def mix(self, weights: Array) -> Array:
        """As `Block.mix`."""
        length = self.keys.shape[4]

        def add(number: Array, mixed: Array) -> Array:
            part = jax.lax.dynamic_slice_in_dim(weights, number * length, length, axis=4)
            return mixed + _mix(part, self._piece(self.values, number))

        return self._over_pieces(add, jnp.zeros((*weights.shape[:4], self.values.shape[5]), weights.dtype))

    def _piece(self, cache: Array, number: Array) -> Array:
        """`[B, K, Q, E]`."""
        zero = jnp.int32(0)
        start = (self.layer, number, *(zero,) * 4)
        return jax.lax.dynamic_slice(cache, start, (1, 1, *cache.shape[2:]))[0, 0]

    def _over_pieces(self, body: Callable[[Array, Array], Array], carry: Array) -> Array:
        count, length = self.keys.shape[1], self.keys.shape[4]
        if count == 1:
            return body(jnp.int32(0), carry)
        return jax.lax.fori_loop(0, (self.filled + length - 1) // length, body, carry)


Past: TypeAlias = Block | CachedBlock


def causal_mask(where: Array) -> Array:
    """Returns which key each query may see, `[B, T, T]`: earlier or equal, and existing.

    Args:
      where: `[B, T]` bool, which positions exist.
    """
    num_positions = where.shape[-1]
    return jnp.tril(jnp.ones((num_positions, num_positions), bool))[None] & where[:, None, :]


class Attention(nn.Module):
    """Grouped-query attention over past blocks and the new positions."""

    config: DecoderConfig
    matmul_dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        x: Array,
        view: View,
        past: Sequence[Past],
        low_rank: Factors,
    ) -> tuple[Array, tuple[Array, Array]]:
        """Mixes values; returns `[B, T, D]` and the new positions' keys and values, each `[B, K, T, E]`."""
        c = self.config
        batch, length = x.shape[:2]
        groups = c.num_heads // c.num_kv_heads
        init = nn.initializers.lecun_normal()

        def project(name: str, num_heads: int) -> Array:
            kernel = weight(self, name, init, (c.embed_dim, num_heads * c.head_dim))
            y = product(x, kernel, low_rank.get(name), dtype=self.matmul_dtype)
            if c.qkv_bias:
                y = add_bias(y, self.param(f"{name}_bias", nn.initializers.zeros, (num_heads * c.head_dim,)))
            if c.qk_norm == "projection" and name != "value":
                y = RMSNorm(c.norm_eps, name=f"{name}_norm")(y)
            return y.reshape(batch, length, num_heads, c.head_dim)

        query, key = project("query", c.num_heads), project("key", c.num_kv_heads)
        if c.qk_norm == "head":
            query, key = RMSNorm(c.norm_eps, name="query_norm")(query), RMSNorm(c.norm_eps, name="key_norm")(key)
        query, key = (rotate(x, view.cos, view.sin) for x in (query, key))
        value = project("value", c.num_kv_heads)
        query = query.reshape(batch, length, c.num_kv_heads, groups, c.head_dim).transpose(0, 2, 3, 1, 4)
        key, value = key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3)

        blocks = [*past, Block(key, value)]
        scores = []
        for block, mask in zip(blocks, view.masks, strict=True):
            # mask: [B | 1, T | 1, S] -> [B | 1, 1, 1, T | 1, S]
            score = block.scores(query) * (c.head_dim**-0.5 if c.attention_scale is None else c.attention_scale)
            score = softcap(score, c.attention_softcap)
            scores.append(jnp.where(mask[:, None, None], score, MASKED))
        weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1).astype(x.dtype)

        sizes = [block.size for block in blocks]
        splits = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
        parts = jnp.split(weights, splits, axis=-1)
        mixed = sum(block.mix(part) for part, block in zip(parts, blocks, strict=True))

        out = weight(self, "out", init, (c.num_heads * c.head_dim, c.embed_dim))
        mixed = jnp.asarray(mixed).transpose(0, 3, 1, 2, 4).reshape(batch, length, c.num_heads * c.head_dim)
        mixed = product(mixed, out, low_rank.get("out"), dtype=self.matmul_dtype)
        if c.linear_bias:
            mixed = add_bias(mixed, self.param("out_bias", nn.initializers.zeros, (c.embed_dim,)))
        return mixed, (key, value)


def _scores(query: Array, key: Array) -> Array:
    """Products of queries `[B, K, G, T, E]` and keys `[B | 1, K, S, E]`: `[B, K, G, T, S]` float32."""
    if key.shape[0] == 1:
        return jnp.einsum("bkgte,kse->bkgts", query, key[0], preferred_element_type=jnp.float32)
    if query.shape[3] == 1:
        # One new position: the products are bound by memory, and a fused multiply and sum reads the keys once.
        products = query.astype(jnp.float32) * key.astype(jnp.float32)[:, :, None]
        return jnp.sum(products, axis=-1)[:, :, :, None, :]
    return jnp.einsum("bkgte,bkse->bkgts", query, key, preferred_element_type=jnp.float32)


def _mix(weights: Array, value: Array) -> Array:
    """Weighted sums of values: weights `[B, K, G, T, S]`, values `[B | 1, K, S, E]`, result `[B, K, G, T, E]`."""
    if value.shape[0] == 1:
        return jnp.einsum("bkgts,kse->bkgte", weights, value[0])
    if weights.shape[3] == 1:
        return jnp.sum(weights[:, :, :, 0, :, None] * value[:, :, None], axis=-2)[:, :, :, None, :]
    return jnp.einsum("bkgts,bkse->bkgte", weights, value)
