"""Compilation is counted, and a second process reads what the first one compiled."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp

from edgesafe_jax.benchmarks.compilation import Compilations, profiled

PROGRAM = """
import logging, sys, jax
logging.basicConfig(level=logging.INFO)
from edgesafe_jax.benchmarks.compilation import keep_compiled
keep_compiled(sys.argv[1])
jax.jit(lambda x: x * 3 + 1)(2.0).block_until_ready()
"""


def test_programs_are_counted_between_start_and_stop():
    x = jnp.arange(3.0)
    counted = Compilations().start()
    triple = jax.jit(lambda x: 3 * x)
    triple(x), triple(x)
    counted.stop()
    jax.jit(lambda x: 5 * x)(x)
    assert counted.num_programs - counted.num_read in (0, 1)  # a cache folder of the environment may have it
    assert counted.num_programs == 1
    assert counted.seconds > 0


def test_a_second_process_compiles_nothing(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION")}
    said = [
        subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path)], env=environment, capture_output=True, text=True, check=True
        ).stderr
        for _ in range(2)
    ]
    assert "0 read from the cache folder" in said[0]
    assert "0 programs compiled" in said[1]


def test_a_profile_is_written_where_it_is_asked_for(tmp_path):
    with profiled(None), profiled(tmp_path):
        jax.block_until_ready(jnp.ones(3) + 1)
    assert list(tmp_path.rglob("perfetto_trace.json.gz"))
