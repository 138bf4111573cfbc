"""The start of every launcher: connects the hosts of a run, sets up logging and caches compiled programs."""

import logging
from typing import Any

import jax
import jax.numpy as jnp

from edgesafe_jax import assets
from edgesafe_jax.parallel import check_platform, initialize_multihost
from launch.errors import reported


def configure() -> None:
    """Sets the process up; called by launchers only. An environment that cannot work ends in one message."""
    with reported():
        initialize_multihost()
        check_platform()
    logging.getLogger("absl").setLevel(logging.WARNING)
    # The library's messages go to stderr unchanged.
    package = logging.getLogger("edgesafe_jax")
    if not package.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        package.addHandler(handler)
    package.setLevel(logging.INFO)
    jax.config.update("jax_compilation_cache_dir", str(assets.cache_dir() / "compiled"))


MATMUL_DTYPES: dict[str, Any] = {"float32": None, "bfloat16": jnp.dtype(jnp.bfloat16)}
"""What `config.matmul_dtype` may name: dtypes of the factors of matrix products."""
