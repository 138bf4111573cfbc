"""Grouped-query attention over blocks of past keys and values."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from edgesafe_jax.models.decoder_config import DecoderConfig
from edgesafe_jax.models.layers import Factors, RMSNorm, add_bias, product, softcap, weight
from edgesafe_jax.models.rope import View, rotate
from edgesafe_jax.typing import Array

MASKED = -1e30
"""Attention score of a position that must not be seen; finite, so that an all-masked row stays finite."""


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
        past: Sequence[tuple[Array, Array]],
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

        blocks = [*past, (key, value)]
        scores = []
        for (block_key, _), mask in zip(blocks, view.masks, strict=True):
            # mask: [B | 1, T | 1, S] -> [B | 1, 1, 1, T | 1, S]
            score = _scores(query, block_key) * (c.head_dim**-0.5 if c.attention_scale is None else c.attention_scale)
            score = softcap(score, c.attention_softcap)
            scores.append(jnp.where(mask[:, None, None], score, MASKED))
        weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1).astype(x.dtype)

        sizes = [block_value.shape[2] for _, block_value in blocks]
        splits = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
        parts = jnp.split(weights, splits, axis=-1)
        mixed = sum(_mix(part, block_value) for part, (_, block_value) in zip(parts, blocks, strict=True))

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
