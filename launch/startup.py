"""What every launcher does before it starts, and what several name.

It connects the processes of a run on several hosts, makes logs quiet and keeps compiled programs.
"""

import logging
from typing import Any

import jax
import jax.numpy as jnp

from edgesafe_jax import assets
from edgesafe_jax.parallel import initialize_multihost


def configure() -> None:
    """Sets the process up; called by launchers only, never by the library.

    Raises:
      RuntimeError: the environment is that of one process of several, and they cannot be connected.
    """
    initialize_multihost()
    logging.getLogger("absl").setLevel(logging.WARNING)
    # What the library says of its progress goes to stderr, as it stands.
    package = logging.getLogger("edgesafe_jax")
    if not package.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        package.addHandler(handler)
    package.setLevel(logging.INFO)
    jax.config.update("jax_compilation_cache_dir", str(assets.cache_dir() / "compiled"))


MATMUL_DTYPES: dict[str, Any] = {"float32": None, "bfloat16": jnp.dtype(jnp.bfloat16)}
"""What `config.matmul_dtype` may name: dtypes of the factors of matrix products."""
