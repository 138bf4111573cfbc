"""Signals to, and the end of, one process of several."""

import json
import signal
import time

import pytest

from tests.processes import TIMEOUT, connected, run_connected
from tests.training.multihost_run import NUM_STEPS

MODULE = "tests.training.multihost_run"


def test_a_signal_to_one_process_stops_all_after_the_same_step_and_the_same_call_continues(tmp_path):
    for output in run_connected(MODULE, str(tmp_path), "signals"):
        found = json.loads(output.splitlines()[-1])
        (code, stopped_at), (code_at_the_end, last) = found["stops"]
        assert code == code_at_the_end == 128 + signal.SIGTERM
        assert 4 <= stopped_at < NUM_STEPS
        assert last == NUM_STEPS
        assert found["same"]
        assert found["steps"] == list(range(NUM_STEPS))


@pytest.mark.parametrize(("kind", "number"), [("KILL", 0), ("KILL", 1), ("FAIL", 0)])
def test_the_end_of_one_process_ends_the_other_with_one_line(tmp_path, kind, number):
    with connected(MODULE, str(tmp_path), f"{kind}:{number}") as processes:
        gone, other = processes[number], processes[1 - number]
        _, errors = gone.communicate(timeout=TIMEOUT)
        ended = time.monotonic()
        _, seen = other.communicate(timeout=TIMEOUT)
        assert time.monotonic() - ended < 30
    lines = [line for line in seen.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, seen
    place = f"error: process {number} of 2 (pid {gone.pid} on host "
    assert lines[0].startswith(place), seen
    assert lines[0].endswith("the same command continues from the last checkpoint.")
    assert other.returncode == 1
    if kind == "FAIL":
        assert gone.returncode == 2
        assert errors.splitlines()[-1] == "error: the disk is full"
        assert ") failed: the disk is full. " in lines[0]
    else:
        assert gone.returncode == -signal.SIGKILL
        assert ") ended. " in lines[0]
