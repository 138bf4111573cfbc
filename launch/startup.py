"""What every launcher does before it starts, quiet logs and a cache of compiled programs, and what several name."""

import logging
from typing import Any

import jax
import jax.numpy as jnp

from edgesafe_jax import assets


def configure() -> None:
    """Sets the process up; called by launchers only, never by the library."""
    logging.getLogger("absl").setLevel(logging.WARNING)
    jax.config.update("jax_compilation_cache_dir", str(assets.cache_dir() / "compiled"))

MATMUL_DTYPES: dict[str, Any] = {"float32": None, "bfloat16": jnp.dtype(jnp.bfloat16)}
"""What `config.matmul_dtype` may name: dtypes of the factors of matrix products."""
