"""Planning on several devices by `jax.pmap`: over problems, or over the population of one problem.

On several hosts each plans on its own devices, for problems of its own: nothing is communicated. Process p of n takes
the problems `problems[p::n]`, by `jax.process_index()` and `jax.process_count()`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax.errors import ConfigError
from edgesafe_jax.parallel.meshes import make_data_mesh
from edgesafe_jax.planning.planner import Outcomes, Simulator
from edgesafe_jax.typing import Array, PyTree

POPULATION_AXIS = "population"


def pmap_problems(plan: Callable[..., Any], *, num_devices: int | None = None) -> Callable[..., Any]:
    """Plans for a batch of problems on several devices: `jax.pmap` over devices of `jax.vmap` over problems.

    Args:
      plan: of one problem, such as `Planner.plan`.
      num_devices: number of devices of this process; None uses all.

    Returns:
      The same function of arguments whose leaves have a leading axis B, a multiple of the number of devices; so have
      the results.

    Raises:
      ConfigError: there are fewer devices, or (at the call) B is not a multiple of their number.

    Example:
      >>> pmap_problems(lambda x, y: x + y, num_devices=1)(jnp.arange(3.0), jnp.ones(3)).tolist()
      [1.0, 2.0, 3.0]
    """
    devices = make_data_mesh(num_devices, local=True).devices.tolist()
    num = len(devices)
    spread = jax.pmap(jax.vmap(plan), devices=devices)

    def split(leaf: Array) -> Array:
        shape = jnp.shape(leaf)
        if not shape or shape[0] % num:
            raise ConfigError(f"problems of shape {list(shape)} do not split over {num} devices: pad their number")
        return jnp.reshape(jnp.asarray(leaf), (num, shape[0] // num, *shape[1:]))

    def run(*arguments: PyTree) -> PyTree:
        results = spread(*jax.tree.map(split, arguments))
        return jax.tree.map(lambda leaf: jnp.reshape(leaf, (-1, *leaf.shape[2:])), results)

    return run


def split_population(simulator: Simulator, *, num_devices: int | None = None) -> Simulator:
    """Makes each device simulate its part of the population and gathers the outcomes of all.

    Every device draws the same population from the same key, so that only costs and violations are communicated.
    It works inside `pmap_population` only.

    Args:
      simulator: of one device.
      num_devices: as for `pmap_population`; None for all.

    Returns:
      The simulator for a planner that `pmap_population` runs.

    Raises:
      ConfigError: there are fewer devices.
    """
    num = make_data_mesh(num_devices, local=True).size

    def simulate(env_state: PyTree, actions: Array) -> Outcomes:
        size = actions.shape[0]
        per_device = -(-size // num)
        padding = jnp.broadcast_to(actions[-1:], (per_device * num - size, *actions.shape[1:]))
        start = jax.lax.axis_index(POPULATION_AXIS) * per_device
        mine = jax.lax.dynamic_slice_in_dim(jnp.concatenate([actions, padding]), start, per_device)
        gathered = jax.lax.all_gather(simulator(env_state, mine), POPULATION_AXIS, tiled=True)
        return jax.tree.map(lambda leaf: leaf[:size], gathered)

    return simulate


def pmap_population(plan: Callable[..., Any], *, num_devices: int | None = None) -> Callable[..., Any]:
    """Plans for one problem on several devices, each of which simulates a part of the population.

    Args:
      plan: of a planner over a simulator from `split_population`.
      num_devices: number of devices of this process; None uses all.

    Returns:
      The same function, of the same arguments, with the same results.

    Raises:
      ConfigError: there are fewer devices.
    """
    devices = make_data_mesh(num_devices, local=True).devices.tolist()
    # pmap needs one mapped argument: the devices' numbers.
    spread = jax.pmap(
        lambda number, *arguments: plan(*arguments),
        axis_name=POPULATION_AXIS,
        in_axes=(0, None, None, None),
        out_axes=None,
        devices=devices,
    )
    numbers = np.arange(len(devices))
    return lambda key, state, env_state: spread(numbers, key, state, env_state)
