"""Several connected processes of one machine."""

import sys

import pytest

from edgesafe_jax.errors import ConfigError
from edgesafe_jax.processes import divide_gpus, run_local

SUM = (
    "import jax, sys; from edgesafe_jax.parallel import initialize_multihost; assert initialize_multihost(); "
    "from jax.experimental import multihost_utils as utils; import numpy as np; "
    "found = utils.process_allgather(np.array([jax.process_index() + 1])); "
    "open(sys.argv[1] + str(jax.process_index()), 'w').write(str(int(found.sum())))"
)


def test_processes_are_connected(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=1")
    assert run_local(["2", sys.executable, "-c", SUM, f"{tmp_path}/sum"]) == 0
    assert [(tmp_path / f"sum{number}").read_text() for number in range(2)] == ["3", "3"]


def test_the_status_of_the_process_that_fails_is_returned():
    code = "import os, sys; sys.exit(3 * int(os.environ['JAX_PROCESS_ID']))"
    assert run_local(["2", sys.executable, "-c", code]) == 3


def test_gpus_are_divided_between_the_processes():
    assert divide_gpus(["0", "1", "4", "5"], 2) == [{"CUDA_VISIBLE_DEVICES": "0,1"}, {"CUDA_VISIBLE_DEVICES": "4,5"}]
    assert divide_gpus([], 2) == [{}, {}]
    with pytest.raises(ConfigError, match="2 processes for 3 GPUs: expected a divisor of 3"):
        divide_gpus(["0", "1", "2"], 2)


@pytest.mark.parametrize("arguments", [[], ["2"], ["two", "python"], ["0", "python"]])
def test_arguments_that_mean_nothing_are_refused(arguments):
    with pytest.raises(ConfigError, match="expected a number of processes and a command"):
        run_local(arguments)
