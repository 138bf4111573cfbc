"""Rates of the device, measured beside what is compared with them: matrix products, copies and reads of memory."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from edgesafe_jax.benchmarks.harness import in_turn

NUM_RUNS, REPEATS = 5, 10
READ_SHAPE = (49_152, 576)
"""Of the float32 matrix whose product with one row measures how fast memory is read: 113 MB, beyond the caches."""


def median_seconds(function: Callable[..., Any], *arguments: Any) -> float:
    """Median time of a compiled call, waiting for the device."""
    return in_turn({"run": lambda: function(*arguments)}, num_runs=NUM_RUNS)["run"].median


def square_products(dtype: Any, size: int) -> tuple[Callable[[], Any], float]:
    """Products of square matrices with factors of one dtype and sums in float32: what runs them, and their FLOPs."""
    matrix = jax.random.normal(jax.random.key(0), (size, size), dtype)

    def multiply(_: Any, y: jax.Array, x: jax.Array) -> jax.Array:
        return (jnp.matmul(y, x, preferred_element_type=jnp.float32) * jnp.float32(size**-0.5)).astype(dtype)

    products = jax.jit(lambda x: jax.lax.fori_loop(0, REPEATS, functools.partial(multiply, x=x), x))
    return functools.partial(products, matrix), 2.0 * size**3 * REPEATS


def product_rate(dtype: Any, size: int) -> float:
    """FLOP/s of these products."""
    run, flops = square_products(dtype, size)
    return flops / median_seconds(run)


def copy_rate(num_bytes: int) -> float:
    """Bytes per second, read and written, of a copy of a large array."""
    array = jnp.zeros(num_bytes // 4, jnp.float32)
    return 2.0 * num_bytes / median_seconds(jax.jit(lambda x: x + 1.0), array)


def read_rate() -> float:
    """Bytes per second of the fastest run of a product of a large matrix with one row, which is bound by memory."""
    matrix, row = jnp.ones(READ_SHAPE, jnp.float32), jnp.ones((1, READ_SHAPE[1]), jnp.float32)
    product = jax.jit(lambda x, y: jax.lax.dot_general(y, x, (((1,), (1,)), ((), ()))))
    return matrix.nbytes / min(in_turn({"run": lambda: product(matrix, row)}, num_runs=NUM_RUNS)["run"].wall)
