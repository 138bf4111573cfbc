"""What every launcher does before it starts: quiet logs and a cache of compiled programs."""

import logging

import jax

from edgesafe_jax import assets


def configure() -> None:
    """Sets the process up; called by launchers only, never by the library."""
    logging.getLogger("absl").setLevel(logging.WARNING)
    jax.config.update("jax_compilation_cache_dir", str(assets.cache_dir() / "compiled"))
