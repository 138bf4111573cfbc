import json
import os
import socket
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from edgesafe_jax import parallel
from edgesafe_jax.errors import ConfigError
from edgesafe_jax.parallel import Layout, initialize_multihost, make_data_mesh, make_mesh, replicate, shard_batch
from tests import multihost_run
from tests.processes import run_connected


def test_mesh_has_the_devices_asked_for():
    assert make_data_mesh().shape == {"data": 8}
    assert make_data_mesh(3).shape == {"data": 3}
    for count in (0, 9):
        with pytest.raises(ValueError, match=rf"num_devices={count}: there are 8 \(cpu\); ask for 1 to 8\."):
            make_data_mesh(count)


def test_batch_is_split_and_state_is_copied():
    mesh = make_data_mesh()
    batch = {"tokens": np.arange(32, dtype=np.int32).reshape(16, 2), "keys": jax.random.split(jax.random.key(0), 8)}
    sharded = shard_batch(batch, mesh)
    assert sharded["tokens"].sharding.spec == PartitionSpec("data")
    assert [shard.data.shape for shard in sharded["tokens"].addressable_shards] == [(2, 2)] * 8
    np.testing.assert_array_equal(sharded["tokens"], batch["tokens"])
    assert [shard.data.shape for shard in sharded["keys"].addressable_shards] == [(1,)] * 8
    state = replicate({"w": jnp.ones(3), "key": jax.random.key(1)}, mesh)
    assert [shard.data.shape for shard in state["w"].addressable_shards] == [(3,)] * 8
    assert state["key"].sharding.is_fully_replicated


def test_a_batch_that_cannot_be_split_is_named():
    mesh = make_data_mesh(4)
    with pytest.raises(ValueError, match=r"leaf 'b/tokens' has shape \[6, 2\].*over 4 devices.*multiple of 4"):
        shard_batch({"a": np.zeros(8), "b": {"tokens": np.zeros((6, 2))}}, mesh)
    with pytest.raises(ValueError, match=r"leaf '\(root\)' has shape \[\]"):
        shard_batch(np.float32(1.0), make_data_mesh(1))


def test_one_device_leaves_arrays_alone():
    mesh = make_data_mesh(1)
    batch, state = {"x": np.zeros((3, 2))}, {"w": jnp.ones(2)}
    assert shard_batch(batch, mesh) is batch
    assert replicate(state, mesh) is state


@pytest.mark.parametrize("num_devices", [2, 8])
def test_sharded_gradient_step_equals_the_step_on_one_device(num_devices):
    generator = np.random.default_rng(0)
    batch = {
        "x": generator.normal(size=(16, 5)).astype(np.float32),
        "y": generator.normal(size=(16, 2)).astype(np.float32),
    }
    params = {"w": jnp.ones((5, 2)), "b": jnp.zeros((1, 2))}
    optimizer = optax.sgd(0.1, momentum=0.9)

    @jax.jit
    @chex.assert_max_traces(2)  # One for each layout of the arguments.
    def step(params, opt_state, batch):
        def loss_fn(params):
            error = jnp.tanh(batch["x"] @ params["w"] + params["b"]) - batch["y"]
            weight = (batch["x"][:, :1] > 0).astype(jnp.float32)  # A masked mean must be one over all devices.
            return jnp.sum(weight * error**2) / jnp.sum(weight)

        loss, gradients = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = optimizer.update(gradients, opt_state)
        return optax.apply_updates(params, updates), opt_state, loss

    def run(params, opt_state, place):
        for _ in range(3):
            params, opt_state, loss = step(params, opt_state, place(batch))
        return params, loss

    mesh = make_data_mesh(num_devices)
    opt_state = optimizer.init(params)
    expected, expected_loss = run(params, opt_state, lambda batch: batch)
    found, loss = run(*replicate((params, opt_state), mesh), lambda batch: shard_batch(batch, mesh))
    assert found["w"].sharding.is_fully_replicated
    assert len(found["w"].sharding.device_set) == num_devices
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"JAX_COORDINATOR_ADDRESS": "host:1"}, True),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4"}, False),  # A shell in an allocation, not a step of it.
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
    ],
)
def test_clusters_are_told_from_single_machines(environment, expected):
    assert parallel.hosts.is_cluster(environment) is expected


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x2)"}, True),
        ({"SLURM_STEP_TASKS_PER_NODE": "1"}, True),
        ({"SLURM_STEP_TASKS_PER_NODE": "2(x3),1"}, False),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, True),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, False),
    ],
)
def test_one_process_on_each_host_takes_all_its_devices(environment, expected):
    assert parallel.hosts.is_alone_on_host(environment) is expected


def test_open_mpi_tells_the_numbers_and_asks_for_the_address(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **options: calls.append((args, options)))
    for name, value in {"SIZE": "4", "RANK": "3", "LOCAL_SIZE": "1"}.items():
        monkeypatch.setenv(f"OMPI_COMM_WORLD_{name}", value)
    with pytest.raises(parallel.MultihostError, match="Open MPI does not tell the address of process 0: set JAX_COORD"):
        initialize_multihost()
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:34564")
    initialize_multihost()
    ((args, options),) = calls
    assert args == ("localhost:34564", 4, 3)
    assert options["local_device_ids"] == []


@pytest.mark.parametrize(
    ("layout", "batch_size", "message"),
    [
        (Layout(fsdp=4, tensor=4), None, r"parallel.fsdp=4 x parallel.tensor=4 needs 16 devices; there are 8 \(cpu\)"),
        (Layout(fsdp=4), 6, "batch_size=6: expected a multiple of parallel.fsdp=4"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(layout, batch_size, message):
    with pytest.raises(ConfigError, match=message):
        make_mesh(layout, batch_size=batch_size)
    with pytest.raises(ConfigError, match=r"parallel\.tensor=0"):
        Layout(tensor=0)


def test_copies_take_as_many_devices_as_divide_the_batch():
    assert dict(make_mesh(Layout(fsdp=2), batch_size=6).shape) == {"data": 1, "fsdp": 2, "tensor": 1}
    assert dict(make_mesh(Layout(fsdp=2), batch_size=8).shape) == {"data": 4, "fsdp": 2, "tensor": 1}
    assert dict(make_mesh(Layout(tensor=3)).shape) == {"data": 2, "fsdp": 1, "tensor": 3}
    mesh = make_mesh(Layout(fsdp=2, tensor=2))
    rows = shard_batch(np.zeros((8, 2)), mesh)
    assert {shard.data.shape for shard in rows.addressable_shards} == {(2, 2)}  # the same rows on two devices


def test_processes_hold_whole_copies(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "local_device_count", lambda: 4)
    with pytest.raises(ConfigError, match="needs 8 devices; there are 4 in each process"):
        make_mesh(Layout(fsdp=8))
    with pytest.raises(ConfigError, match=r"batch_size=12: expected a multiple of 8, .* \(8 devices, tensor=1\)"):
        make_mesh(Layout(fsdp=2), batch_size=12)


def test_each_process_plans_on_its_own_devices(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:2])
    assert parallel.pmap_problems(lambda x: 2 * x)(jnp.arange(4.0)).tolist() == [0, 2, 4, 6]


def test_one_machine_is_left_alone(monkeypatch):
    def never(*args):
        raise AssertionError("nothing to connect")

    for name in list(os.environ):
        if name.startswith(("JAX_COORDINATOR", "SLURM_", "OMPI_", "TPU_")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(jax.distributed, "initialize", never)
    assert initialize_multihost() is False


def test_environment_and_arguments_reach_jax(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **options: calls.append(args))
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:34561")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "4")
    monkeypatch.setenv("JAX_PROCESS_ID", "2")
    initialize_multihost()
    initialize_multihost("127.0.0.1:34562", 8, 0)
    assert calls == [("localhost:34561", 4, 2), ("127.0.0.1:34562", 8, 0)]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"NUM_PROCESSES": "2", "PROCESS_ID": "1"},
            r"PROCESSES=2, JAX_PROCESS_ID=1 given without JAX_COORDINATOR_ADDRE",
        ),
        ({"PROCESS_ID": "0"}, "JAX_PROCESS_ID=0 given without JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES"),
        ({"COORDINATOR_ADDRESS": "localhost:1"}, "given without JAX_NUM_PROCESSES and JAX_PROCESS_ID"),
        ({"COORDINATOR_ADDRESS": "localhost", "NUM_PROCESSES": "2", "PROCESS_ID": "1"}, "expected HOST:PORT"),
        ({"COORDINATOR_ADDRESS": ":1", "NUM_PROCESSES": "2", "PROCESS_ID": "1"}, "expected HOST:PORT"),
        ({"COORDINATOR_ADDRESS": "localhost:port", "NUM_PROCESSES": "2", "PROCESS_ID": "1"}, "expected HOST:PORT"),
        ({"COORDINATOR_ADDRESS": "localhost:99999", "NUM_PROCESSES": "2", "PROCESS_ID": "1"}, "expected HOST:PORT"),
        (
            {"COORDINATOR_ADDRESS": "no.invalid:1", "NUM_PROCESSES": "2", "PROCESS_ID": "1"},
            "the host no.invalid is not",
        ),
        ({"COORDINATOR_ADDRESS": "localhost:1", "NUM_PROCESSES": "2", "PROCESS_ID": "2"}, r"ID=2: expected 0 to 1"),
        ({"COORDINATOR_ADDRESS": "localhost:1", "NUM_PROCESSES": "2", "PROCESS_ID": "-1"}, r"ID=-1: expected 0 to 1"),
        ({"COORDINATOR_ADDRESS": "localhost:1", "NUM_PROCESSES": "0", "PROCESS_ID": "0"}, "PROCESSES=0: expected at l"),
        ({"NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES=two: expected a whole number"),
    ],
)
def test_a_start_that_cannot_work_is_refused_at_once(monkeypatch, environment, message):
    def never(*args, **options):
        raise AssertionError("jax would wait for minutes")

    monkeypatch.setattr(jax.distributed, "initialize", never)
    for name, value in environment.items():
        monkeypatch.setenv(f"JAX_{name}", value)
    with pytest.raises(parallel.MultihostError, match=message):
        initialize_multihost()


def test_a_port_in_use_is_named(monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **options: pytest.fail("jax would end here"))
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(parallel.MultihostError, match=rf"port {port} cannot be used on this host .*a port that is"):
            initialize_multihost(f"localhost:{port}", 2, 0)


def test_a_start_that_takes_too_long_ends_with_one_line():
    program = (
        "import time\nfrom edgesafe_jax.processes import start_limit\n"
        "with start_limit(0.4, 'host:1', hint_after=0.1):\n    time.sleep(60)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    waiting, error = ended.stderr.splitlines()
    assert waiting == "waiting for all processes of the run to connect to host:1"
    assert error.startswith("error: not all processes of the run have connected to host:1 within 0 s. Check that JAX_C")


def test_one_announced_process_is_one_process(monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "1")
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    assert initialize_multihost() is False


def test_an_unknown_platform_is_named(monkeypatch):
    parallel.check_platform()

    def refuse():
        raise RuntimeError("Unknown backend gpuu")

    monkeypatch.setenv("JAX_PLATFORMS", "gpuu")
    monkeypatch.setattr(jax, "devices", refuse)
    with pytest.raises(ConfigError, match=r"JAX_PLATFORMS=gpuu: jax cannot start there \(Unknown backend gpuu"):
        parallel.check_platform()


def test_a_vote_of_one_process_is_its_own():
    vote = parallel.StopVote()
    assert [vote(flag) for flag in (False, True)] == [False, True]


def test_a_failed_start_says_what_to_give():
    with pytest.raises(
        parallel.MultihostError, match=r"num_processes=2, process_id=0: .*before any other use of jax.*all three"
    ):
        initialize_multihost("localhost:34563", 2, 0)  # jax has computed in this process already.


def test_two_processes_compute_the_gradient_of_one():
    loss, gradients = multihost_run.value_and_grad(*multihost_run.make_problem())
    for output in run_connected("tests.multihost_run"):
        found = json.loads(output.splitlines()[-1])  # The lines before are the collectives' own.
        assert found["devices"] == 4
        np.testing.assert_allclose(found["loss"], loss, rtol=1e-6)
        np.testing.assert_allclose(found["gradient"], gradients["w"], rtol=1e-5)
