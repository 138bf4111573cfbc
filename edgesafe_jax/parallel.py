"""Devices and hosts: meshes, sharded batches, replicated states, pmapped planners and the start on several hosts.

Training is data-parallel: the batch is split along its first axis, parameters and optimiser state are replicated, and
`jax.jit` inserts the reductions over devices, so that a step function is written for one device. On one device every
function here returns arrays unchanged.

Planning uses `jax.pmap`: over problems (`pmap_problems`), or over the population of one problem (`split_population`
with `pmap_population`).
"""

import collections
import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from edgesafe_jax.errors import ConfigError, EdgesafeError
from edgesafe_jax.planning.planner import Outcomes, Simulator
from edgesafe_jax.processes import start_limit, watch_peers
from edgesafe_jax.typing import Array, PyTree

DATA_AXIS = "data"
POPULATION_AXIS = "population"
START_SECONDS = 300
"""Longest time that the processes of a run wait for one another at the start."""


class MultihostError(EdgesafeError, RuntimeError):
    """The processes of a run cannot be connected, or one of them has failed."""


def make_data_mesh(num_devices: int | None = None) -> Mesh:
    """Makes a mesh of one axis, ``data``, over which a batch is split.

    Args:
      num_devices: number of devices; None uses all, those of other hosts included.

    Returns:
      The mesh.

    Raises:
      ConfigError: there are fewer devices, or a part of them is asked for on several hosts.

    Example:
      >>> make_data_mesh(1).shape["data"]
      1
    """
    devices = jax.devices()
    count = len(devices) if num_devices is None else num_devices
    if not 1 <= count <= len(devices):
        raise ConfigError(
            f"num_devices={count}: there are {len(devices)} ({devices[0].platform}); ask for 1 to {len(devices)}. "
            "For more CPU devices set XLA_FLAGS=--xla_force_host_platform_device_count=N before Python starts"
        )
    if jax.process_count() > 1 and count != len(devices):
        raise ConfigError(
            f"num_devices={count}: on {jax.process_count()} hosts all {len(devices)} devices take part; leave it out"
        )
    return Mesh(np.array(devices[:count]), (DATA_AXIS,))


def shard_batch(batch: PyTree, mesh: Mesh) -> PyTree:
    """Splits a batch along its first axis over the devices of a mesh.

    On several hosts each passes the same whole batch and keeps the rows of its own devices.

    Args:
      batch: a pytree of arrays `[B, ...]`.
      mesh: from `make_data_mesh`.

    Returns:
      The batch with each array split; on one device, the batch unchanged.

    Raises:
      ConfigError: an array is a scalar, or its first axis is not a multiple of the number of devices.

    Example:
      >>> shard_batch({"tokens": np.zeros((8, 16))}, make_data_mesh(1))["tokens"].shape
      (8, 16)
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        shape = np.shape(leaf)
        if not shape or shape[0] % mesh.size:
            name = jax.tree_util.keystr(path, simple=True, separator="/") or "(root)"
            raise ConfigError(
                f"batch leaf {name!r} has shape {list(shape)}: its first axis does not split over {mesh.size} "
                f"devices; use a batch size that is a multiple of {mesh.size}, or another number of devices"
            )
    if mesh.size == 1:
        return batch
    return place(batch, NamedSharding(mesh, PartitionSpec(DATA_AXIS)))


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Copies a tree to every device of a mesh.

    On several hosts each passes the same values.

    Args:
      tree: a pytree of arrays and typed random keys, such as a training state.
      mesh: from `make_data_mesh`.

    Returns:
      The tree, whole on each device; on one device, the tree unchanged.
    """
    if mesh.size == 1:
        return tree
    return place(tree, NamedSharding(mesh, PartitionSpec()))


def place(tree: PyTree, sharding: Sharding) -> PyTree:
    """Puts arrays and typed random keys on devices by a sharding, which may span several hosts.

    Args:
      tree: a pytree of them; on several hosts each passes the same whole values and keeps its part.
      sharding: of every leaf.

    Returns:
      The tree; it shares no memory with the numpy arrays passed in.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding, may_alias=False)

    # device_put would compare the values of all hosts at each call; each host cuts out its part instead.
    def cut(leaf: jax.typing.ArrayLike) -> jax.Array:
        if isinstance(leaf, jax.Array) and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = cut(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(data, impl=str(jax.random.key_impl(leaf)))
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(cut, tree)


def is_main_process() -> bool:
    """Returns whether this is process 0, the one that writes files and shows progress."""
    # Asking jax for the number starts its backend, which a process of its own does not need for it.
    return not jax.distributed.is_initialized() or jax.process_index() == 0


@contextlib.contextmanager
def main_process_first(name: str) -> Iterator[None]:
    """Runs a block in process 0 first and in the other processes after it, on a shared file system.

    Process 0 computes and writes an expensive file; the others then find it. On one process it does nothing.

    Args:
      name: of the block, for the message.

    Raises:
      MultihostError: in the other processes, when the block failed in process 0.
    """
    if not is_main_process():
        if any_process(False):
            raise MultihostError(
                f"{name} failed in process 0, whose own error says why; process {jax.process_index()} stops too."
            )
        yield
        return
    failed = True
    try:
        yield
        failed = False
    finally:
        any_process(failed)


def any_process(flag: bool) -> bool:
    """Returns whether a flag is set in any process; all processes must call this at the same point."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


class StopVote:
    """Agrees on a stop between the processes of a run, at each step and without waiting for the device.

    Each call asks all processes for their flag and returns the answer to the call before the last, so that all return
    the same at the same call and a step is always under way.
    """

    _LAG = 2

    def __init__(self):
        """Prepares the question; all processes must make their votes at the same point."""
        self._asked: collections.deque[jax.Array] = collections.deque()
        if jax.process_count() > 1:
            mesh = Mesh(np.array(jax.devices()), (DATA_AXIS,))
            self._split = NamedSharding(mesh, PartitionSpec(DATA_AXIS))
            self._any = jax.jit(jnp.any, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __call__(self, flag: bool) -> bool:
        """Returns whether any process had set its flag two calls ago; on one process, the flag itself."""
        if jax.process_count() == 1:
            return flag
        flags = np.full(jax.local_device_count(), flag)
        self._asked.append(self._any(jax.make_array_from_process_local_data(self._split, flags)))
        return len(self._asked) > self._LAG and bool(np.asarray(self._asked.popleft()))


def to_local(tree: PyTree) -> PyTree:
    """Copies replicated arrays to this process, for work that it does alone.

    Args:
      tree: a pytree of arrays as `replicate` made them.

    Returns:
      The tree; on several processes its leaves are numpy arrays.
    """
    return tree if jax.process_count() == 1 else jax.tree.map(np.asarray, tree)


def pmap_problems(plan: Callable[..., Any], *, num_devices: int | None = None) -> Callable[..., Any]:
    """Plans for a batch of problems on several devices: `jax.pmap` over devices of `jax.vmap` over problems.

    Args:
      plan: of one problem, such as `Planner.plan`.
      num_devices: number of devices; None uses all.

    Returns:
      The same function of arguments whose leaves have a leading axis B, a multiple of the number of devices; so have
      the results.

    Raises:
      ConfigError: there are fewer devices, or (at the call) B is not a multiple of their number.

    Example:
      >>> pmap_problems(lambda x, y: x + y, num_devices=1)(jnp.arange(3.0), jnp.ones(3)).tolist()
      [1.0, 2.0, 3.0]
    """
    devices = make_data_mesh(num_devices).devices.tolist()
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
    num = make_data_mesh(num_devices).size

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
      num_devices: number of devices; None uses all.

    Returns:
      The same function, of the same arguments, with the same results.

    Raises:
      ConfigError: there are fewer devices.
    """
    devices = make_data_mesh(num_devices).devices.tolist()
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


def initialize_multihost(
    coordinator_address: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> bool:
    """Connects the processes of a run on several hosts; does nothing on one.

    It acts when an argument is given, or when the environment is that of a cluster with more than one process:
    ``JAX_COORDINATOR_ADDRESS`` (with ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID`` where the cluster does not tell
    them), Slurm, Open MPI or several TPU hosts. It must come before the first jax computation; a second call does
    nothing.

    Args:
      coordinator_address: host and port of process 0, ``"host:1234"``.
      num_processes: processes in all.
      process_id: which of them this is, from 0.

    Returns:
      Whether this process is one of several that are connected.

    Raises:
      MultihostError: they cannot be connected.
    """
    state = distributed.global_state  # What jax offers by a public name starts its backend.
    if jax.distributed.is_initialized():
        return state.num_processes > 1
    coordinator_address = coordinator_address or os.environ.get("JAX_COORDINATOR_ADDRESS")
    num_processes = _number("JAX_NUM_PROCESSES") if num_processes is None else num_processes
    process_id = _number("JAX_PROCESS_ID") if process_id is None else process_id
    told = {
        "JAX_COORDINATOR_ADDRESS": coordinator_address,
        "JAX_NUM_PROCESSES": num_processes,
        "JAX_PROCESS_ID": process_id,
    }
    if not _is_cluster(os.environ) and (all(value is None for value in told.values()) or num_processes == 1):
        return False
    _check_start(told)
    try:
        # JAX's service for preemption would take SIGTERM away from the training loop, and from every other phase.
        jax.config.update("jax_enable_preemption_service", False)
        with start_limit(START_SECONDS, coordinator_address or "process 0"):
            jax.distributed.initialize(
                coordinator_address, num_processes, process_id, initialization_timeout=START_SECONDS + 30
            )
    except Exception as error:  # jax raises errors of many types here.
        raise MultihostError(
            f"cannot connect the hosts with coordinator_address={coordinator_address}, num_processes={num_processes}, "
            f"process_id={process_id}: {_first_line(error)}. Call this before any other use of jax, and give all "
            "three values (or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID) where the cluster does "
            "not tell them"
        ) from error
    if state.num_processes > 1:
        watch_peers(state.client, str(state.coordinator_address), state.process_id, state.num_processes)
    return state.num_processes > 1


def check_platform() -> None:
    """Checks that the platform that JAX_PLATFORMS asks for can be used; it starts JAX.

    Raises:
      ConfigError: it cannot.
    """
    if asked := os.environ.get("JAX_PLATFORMS"):
        try:
            jax.devices()
        except RuntimeError as error:
            raise ConfigError(
                f"JAX_PLATFORMS={asked}: jax cannot start there ({_first_line(error)}). Expected cpu, cuda or tpu, "
                "with the extra package installed, or leave JAX_PLATFORMS out"
            ) from error


def _check_start(told: Mapping[str, str | int | None]) -> None:
    """Checks what is told of the start on several hosts, before jax waits minutes for it."""
    address, count, number = told.values()
    has_cluster = _is_cluster({name: text for name, text in os.environ.items() if name not in told})
    missing = [name for name, value in told.items() if value is None]
    if missing and not has_cluster:
        given = ", ".join(f"{name}={value}" for name, value in told.items() if value is not None)
        raise MultihostError(
            f"{given} given without {' and '.join(missing)}: several processes need all three (the address is "
            "HOST:PORT of process 0, the same in each); one process needs none"
        )
    if isinstance(count, int) and count < 1:
        raise MultihostError(f"JAX_NUM_PROCESSES={count}: expected at least 1")
    if isinstance(number, int) and (number < 0 or (isinstance(count, int) and number >= count)):
        highest = count - 1 if isinstance(count, int) else "the number of processes less one"
        raise MultihostError(f"JAX_PROCESS_ID={number}: expected 0 to {highest}, another one in each process")
    if address is None:
        return
    host, colon, port = str(address).rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise MultihostError(f"JAX_COORDINATOR_ADDRESS={address}: expected HOST:PORT of process 0, such as host0:1234")
    try:
        socket.getaddrinfo(host.strip("[]"), int(port))
    except OSError as error:
        raise MultihostError(
            f"JAX_COORDINATOR_ADDRESS={address}: the host {host} is not known here ({error.strerror or error}). Give "
            "the name or the IP address of the host of process 0"
        ) from error
    if number == 0 and "JAX_COORDINATOR_BIND_ADDRESS" not in os.environ:
        try:  # JAX ends without a message here.
            socket.create_server(("", int(port))).close()
        except OSError as error:
            raise MultihostError(
                f"JAX_COORDINATOR_ADDRESS={address}: port {port} cannot be used on this host ({error.strerror}). Give "
                "a port that is free on the host of process 0"
            ) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")


def _is_cluster(environment: Mapping[str, str]) -> bool:
    """Returns whether the environment is that of one process of several."""
    if "JAX_COORDINATOR_ADDRESS" in environment:
        return True
    # The tasks of the step, not of the allocation: a shell inside an allocation of many is one process.
    if any(int(environment.get(name) or 1) > 1 for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")):
        return True
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES") or ""
    return "," in hosts


def _number(name: str) -> int | None:
    value = os.environ.get(name)
    if value is None:
        return None
    try:
        return int(value)
    except ValueError:
        raise MultihostError(f"{name}={value}: expected a whole number") from None
