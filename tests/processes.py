"""Processes that are connected as the hosts of one run are."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.compiling import FEWER_PASSES

TIMEOUT = 240  # seconds


@contextlib.contextmanager
def connected(module: str, *arguments: str, num_processes: int = 2) -> Iterator[list[subprocess.Popen[str]]]:
    """Starts `python -m MODULE ADDRESS NUM_PROCESSES PROCESS_ID ARGUMENTS`, each with two CPU devices."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    # Programs that run once: how fast they are matters less than how fast they are compiled.
    settings = f"--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0 {FEWER_PASSES}"
    environment = os.environ | {"XLA_FLAGS": settings, "JAX_PLATFORMS": "cpu"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", module, address, str(num_processes), str(number), *arguments],
            cwd=Path(__file__).parents[1],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(num_processes)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def run_connected(module: str, *arguments: str, num_processes: int = 2) -> list[str]:
    """Runs connected processes to their end.

    Returns:
      What each of them wrote to stdout; one that fails is an error.
    """
    outputs = []
    with connected(module, *arguments, num_processes=num_processes) as processes:
        for process in processes:
            output, errors = process.communicate(timeout=TIMEOUT)
            assert process.returncode == 0, errors
            outputs.append(output)
    return outputs
