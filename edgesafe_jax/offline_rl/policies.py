"""A Gaussian policy for the learners that weigh log-likelihoods."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from edgesafe_jax.offline_rl.learning import MLP
from edgesafe_jax.typing import Array


class GaussianPolicy(nn.Module):
    """A normal distribution with its mean in [-1, 1] and a standard deviation that does not depend on the observation.

    Attributes:
      hidden: widths of the hidden layers.
      action_size: A.
    """

    hidden: tuple[int, ...]
    action_size: int

    @nn.compact
    def __call__(self, observations: Array) -> tuple[Array, Array]:
        """From `[..., M]` to the mean `[..., A]` and the log standard deviation `[A]`, in [-5, 1]."""
        mean = jnp.tanh(MLP((*self.hidden, self.action_size))(observations))
        log_std = self.param("log_std", nn.initializers.zeros, (self.action_size,))
        return mean, jnp.clip(log_std, -5.0, 1.0)


def log_likelihood(mean: Array, log_std: Array, actions: Array) -> Array:
    r"""Returns :math:`\log N(a; \mu, \sigma)`, `[...]`, of actions `[..., A]`."""
    log_std = jnp.broadcast_to(log_std, actions.shape)
    terms = -0.5 * ((actions - mean) * jnp.exp(-log_std)) ** 2 - log_std - 0.5 * jnp.log(2 * jnp.pi)
    return jnp.sum(terms, axis=-1)


def draw_actions(key: jax.Array, mean: Array, log_std: Array) -> Array:
    """Draws actions `[..., A]`, clipped to [-1, 1]."""
    noise = jax.random.normal(key, mean.shape)
    return jnp.clip(mean + jnp.exp(jnp.broadcast_to(log_std, mean.shape)) * noise, -1.0, 1.0)
