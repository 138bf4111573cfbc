"""Random kills of an alignment run: does it end with the parameters of a run that nothing interrupts?

The command is run once to its end, and once with `NUM_KILLS` random ends of its process: SIGKILL, SIGTERM, SIGKILL with
every file of the newest checkpoint cut in half, and a disk that takes no more bytes (Linux). Each comes at a random
step, or at a random second of the start, and the same command continues.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.numpy

from edgesafe_jax.training import Checkpoints, TrainingError, read_metrics

NUM_KILLS = 20
NUM_STEPS = 60
KINDS = ("kill", "terminate", "damage", *(("full disk",) if sys.platform == "linux" else ()))
RESULT = Path("adapter", "adapter.safetensors")
FINISHED = "finished before"
START_SECONDS = 20.0
"""The part of a start in which a process is ended without a step."""


def run(command: Sequence[str]) -> dict[str, Any]:
    """Compares the stored adapters and the lines of metrics of the two runs.

    Args:
      command: the module that trains and its arguments; the number of steps and the work directory are added.

    Returns:
      `rows` of how often each end happened, and `values`; an end that the run forestalled by finishing is no kill.

    Raises:
      TrainingError: the command fails when nothing interrupts it.
    """
    command = ["-m", *command, f"--config.num_steps={NUM_STEPS}", "--config.save_every=5"]
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        steady, killed = Path(folder, "steady"), Path(folder, "killed")
        if _start(command, steady).wait():
            raise TrainingError("the run that nothing interrupts failed: see its message above")
        ends = [_interrupt(command, killed, rng.choice(KINDS), rng) for _ in range(NUM_KILLS)]
        if _start(command, killed).wait():
            raise TrainingError("the killed run did not continue: see its message above")
        pair = [safetensors.numpy.load_file(workdir / RESULT) for workdir in (steady, killed)]
        same = {name: array.tobytes() for name, array in pair[0].items()} == {
            name: array.tobytes() for name, array in pair[1].items()
        }
        lines = [[line["step"] for line in read_metrics(workdir)] for workdir in (steady, killed)]
    rows = [{"end": kind, "times": ends.count(kind)} for kind in sorted(set(ends))]
    num_kills = len(ends) - ends.count(FINISHED)
    values = {"num_kills": num_kills, "same_parameters": int(same), "same_steps_logged": int(lines[0] == lines[1])}
    return {"rows": [*rows, *({"end": name, "times": value} for name, value in values.items())], "values": values}


def _start(command: Sequence[str], workdir: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, *command, f"--workdir={workdir}"])


def _interrupt(command: Sequence[str], workdir: Path, kind: str, rng: random.Random) -> str:
    """Starts the command, ends it in one way, and returns what happened."""
    in_start = rng.random() < 0.25
    limit = time.monotonic() + (rng.uniform(0, START_SECONDS) if in_start else 3600)
    done = len(read_metrics(workdir))
    step = min(done + rng.randrange(1, 2 + NUM_STEPS // NUM_KILLS), NUM_STEPS)
    process = _start(command, workdir)
    while process.poll() is None and time.monotonic() < limit and not done < step <= len(read_metrics(workdir)):
        time.sleep(0.02)
    if process.poll() is not None:
        return FINISHED
    if kind == "full disk":
        import resource

        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    else:
        process.send_signal(signal.SIGTERM if kind == "terminate" else signal.SIGKILL)
    process.wait()
    steps = Checkpoints(workdir / "checkpoints").steps()
    if kind == "damage" and len(steps) > 1:
        for file in (workdir / "checkpoints" / str(steps[-1])).rglob("*"):
            if file.is_file():
                os.truncate(file, file.stat().st_size // 2)
    return kind
