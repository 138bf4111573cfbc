"""Several hosts: their start, and how their processes agree and take turns."""

import collections
import contextlib
import os
import re
import socket
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from edgesafe_jax.errors import ConfigError, EdgesafeError
from edgesafe_jax.models.sharding import DATA
from edgesafe_jax.parallel.meshes import make_data_mesh
from edgesafe_jax.processes import start_limit, watch_peers

_OPEN_MPI, _OPEN_MPI_ADDRESS = "OMPI_COMM_WORLD_SIZE", "OMPI_MCA_orte_hnp_uri"

START_SECONDS = 300
"""Longest time that the processes of a run wait for one another at the start."""


class MultihostError(EdgesafeError, RuntimeError):
    """The processes of a run cannot be connected, or one of them has failed."""


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
            mesh = make_data_mesh()
            self._split = NamedSharding(mesh, PartitionSpec(DATA))
            self._any = jax.jit(jnp.any, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __call__(self, flag: bool) -> bool:
        """Returns whether any process had set its flag two calls ago; on one process, the flag itself."""
        if jax.process_count() == 1:
            return flag
        flags = np.full(jax.local_device_count(), flag)
        self._asked.append(self._any(jax.make_array_from_process_local_data(self._split, flags)))
        return len(self._asked) > self._LAG and bool(np.asarray(self._asked.popleft()))


def initialize_multihost(
    coordinator_address: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> bool:
    """Connects the processes of a run on several hosts; does nothing on one.

    It acts when an argument is given, or when the environment is that of a cluster with more than one process:
    ``JAX_COORDINATOR_ADDRESS`` (with ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID`` where the cluster does not tell
    them), Slurm, Open MPI or several TPU hosts. Kubernetes tells nothing by itself: the job sets the three variables,
    as ``launch/gke_jobset.yaml`` does. Open MPI 5 does not tell the address. A process that Slurm or Open MPI starts
    alone on its host takes all devices of it, where `jax.distributed` takes one. It must come before the first jax
    computation; a second call does nothing.

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
    num_processes = _number("JAX_NUM_PROCESSES", _OPEN_MPI) if num_processes is None else num_processes
    process_id = _number("JAX_PROCESS_ID", "OMPI_COMM_WORLD_RANK") if process_id is None else process_id
    told = {
        "JAX_COORDINATOR_ADDRESS": coordinator_address,
        "JAX_NUM_PROCESSES": num_processes,
        "JAX_PROCESS_ID": process_id,
    }
    if not is_cluster(os.environ) and (all(value is None for value in told.values()) or num_processes == 1):
        return False
    _check_start(told)
    try:
        # JAX's service for preemption would take SIGTERM away from the training loop, and from every other phase.
        jax.config.update("jax_enable_preemption_service", False)
        with start_limit(START_SECONDS, coordinator_address or "process 0"):
            jax.distributed.initialize(
                coordinator_address,
                num_processes,
                process_id,
                local_device_ids=[] if is_alone_on_host(os.environ) else None,  # none: all of them
                initialization_timeout=START_SECONDS + 30,
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
    if address is None and _OPEN_MPI in os.environ and _OPEN_MPI_ADDRESS not in os.environ:
        raise MultihostError(
            "this version of Open MPI does not tell the address of process 0: set JAX_COORDINATOR_ADDRESS=HOST:PORT to "
            "its host and a free port, the same in each process (mpirun -x JAX_COORDINATOR_ADDRESS ...)"
        )
    has_cluster = is_cluster({name: text for name, text in os.environ.items() if name not in told})
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


def is_cluster(environment: Mapping[str, str]) -> bool:
    """Returns whether the environment is that of one process of several."""
    if "JAX_COORDINATOR_ADDRESS" in environment:
        return True
    # The tasks of the step, not of the allocation: a shell inside an allocation of many is one process.
    if any(int(environment.get(name) or 1) > 1 for name in ("SLURM_STEP_NUM_TASKS", _OPEN_MPI)):
        return True
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES") or ""
    return "," in hosts


def is_alone_on_host(environment: Mapping[str, str]) -> bool:
    """Returns whether Slurm or Open MPI has started one process on each host."""
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") or ""
    return set(re.sub(r"\(x\d+\)", "", tasks).split(",")) == {"1"}  # of Slurm "1(x3)", or "2(x2),1"


def _number(name: str, of_cluster: str) -> int | None:
    value = os.environ.get(name, os.environ.get(of_cluster))
    if value is None:
        return None
    try:
        return int(value)
    except ValueError:
        raise MultihostError(f"{name}={value}: expected a whole number") from None
