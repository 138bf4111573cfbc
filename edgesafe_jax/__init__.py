"""edgesafe_jax: safe on-device language models and real-time planning, as pure functions in JAX."""

__version__ = "0.1.0"
