"""What the layers of a decoder are made of: norms, products with low-rank additions, and the feed-forward layer."""

from collections.abc import Mapping
from typing import TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp

from edgesafe_jax.models.decoder_config import ACTIVATIONS, DecoderConfig
from edgesafe_jax.models.matmul import Matrix, OutputsFirst, matmul
from edgesafe_jax.models.quantised import QuantizedMatrix
from edgesafe_jax.typing import Array

Factors: TypeAlias = Mapping[str, tuple[Array, Array]]
"""Low-rank factors of the matrices of one module in one layer, by the name of the matrix."""


class RMSNorm(nn.Module):
    """Root-mean-square norm with a scale, computed in float32."""

    eps: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalises the last axis of `[..., D]`."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        x32 = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        return (x32 * inverse * expand(scale.astype(jnp.float32), x.ndim)).astype(x.dtype)


class LayerNorm(nn.Module):
    """Norm to mean 0 and variance 1 with a scale and a bias, computed in float32."""

    eps: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalises the last axis of `[..., D]`."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        x32 = x.astype(jnp.float32)
        centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + self.eps)
        scale, bias = (expand(vector.astype(jnp.float32), x.ndim) for vector in (scale, bias))
        return (centred * inverse * scale + bias).astype(x.dtype)


def make_norm(config: DecoderConfig, name: str | None = None) -> nn.Module:
    """Makes a norm of the decoder's kind."""
    return (RMSNorm if config.norm == "rms" else LayerNorm)(config.norm_eps, name=name)


def expand(vector: Array, ndim: int) -> Array:
    """Returns the vector with axes of one in front, `ndim` in all."""
    return jnp.reshape(vector, (1,) * (ndim - vector.ndim) + vector.shape)


def weight(module: nn.Module, name: str, init: nn.initializers.Initializer, shape: tuple[int, int]) -> Matrix:
    """Declares a matrix that can also be a quantised one, or one that is stored outputs first."""
    if module.has_variable("params", name) and isinstance(
        found := module.get_variable("params", name), QuantizedMatrix | OutputsFirst
    ):
        return found
    return module.param(name, init, shape)


def product(x: Array, kernel: Matrix, factors: tuple[Array, Array] | None, *, dtype: jnp.dtype) -> Array:
    """Multiplies `[..., inputs]` by a matrix and, where there are factors, by their product too.

    Args:
      x: `[..., inputs]`.
      kernel: `[inputs, outputs]`, or in another form, see `matmul`.
      factors: `[inputs, R]` and `[R, outputs]`, or None.
      dtype: of the factors of the product with the matrix, see `matmul`.
    """
    y = matmul(x, kernel, dtype=dtype)
    if factors is None:
        return y
    down, up = (factor.astype(x.dtype) for factor in factors)
    return y + (x @ down) @ up


def add_bias(x: Array, bias: Array) -> Array:
    """Adds a vector to the last axis, in the dtype of `x`."""
    return x + expand(bias.astype(x.dtype), x.ndim)


def softcap(x: Array, cap: float | None) -> Array:
    """Bounds numbers smoothly, `cap tanh(x / cap)`; as they are where there is no cap."""
    return x if cap is None else cap * jnp.tanh(x / cap)


class FeedForward(nn.Module):
    """Feed-forward layer, with a gate or without one."""

    config: DecoderConfig
    matmul_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, low_rank: Factors) -> Array:
        """Maps `[B, T, D]` to `[B, T, D]`, position by position."""
        c = self.config
        init = nn.initializers.lecun_normal()
        activation = ACTIVATIONS[c.activation]

        def project(name: str, x: Array, outputs: int) -> Array:
            kernel = weight(self, name, init, (x.shape[-1], outputs))
            y = product(x, kernel, low_rank.get(name), dtype=self.matmul_dtype)
            if c.linear_bias:
                y = add_bias(y, self.param(f"{name}_bias", nn.initializers.zeros, (outputs,)))
            return y

        # Of the activation only its inputs are kept for the backward pass: on CPU memory costs more than arithmetic.
        if c.gated:
            gated = jax.checkpoint(lambda g, u: activation(g) * u, prevent_cse=False)
            hidden = gated(project("gate", x, c.mlp_dim), project("up", x, c.mlp_dim))
        else:
            hidden = jax.checkpoint(activation, prevent_cse=False)(project("up", x, c.mlp_dim))
        return project("down", hidden, c.embed_dim)
