"""Test-wide settings: strict promotion, eight CPU devices, warnings are errors."""

import gc
import os
import tempfile
from pathlib import Path

from tests.compiling import FEWER_PASSES

# Eight CPU devices must be asked for before jax initialises its backend.
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count=8 {FEWER_PASSES}")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of a test is compilation, and without optimisations it takes half the time. Commands that tests start inherit it.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Tests of several processes, and the commands that they start, compile many programs alike: once for a run of pytest.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _compiled = tempfile.TemporaryDirectory(prefix="edgesafe_jax_compiled_", ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import chex
import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


MAX_MAPPINGS = 25_000
"""Of memory, after which compiled programs are dropped. Linux gives a process 65,530; XLA crashes at the limit."""


@pytest.fixture(autouse=True, scope="module")
def _drop_compiled_programs():
    """Every compiled program holds some mappings of memory, and the suite compiles thousands."""
    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > MAX_MAPPINGS:
        jax.clear_caches()
        gc.collect()


def pytest_collection_finish():
    """What modules hold stays to the end: the garbage collector need not look at it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _count_traces_anew():
    """`chex.assert_max_traces` counts the traces of a function over the whole process."""
    chex.clear_trace_counter()


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A byte-level BPE with a ChatML template, see `tests.tiny`."""
    from tests.tiny import make_tiny_tokenizer

    return make_tiny_tokenizer()


@pytest.fixture(scope="session")
def tiny_model():
    """A language model of three layers with random weights, see `tests.tiny`."""
    from tests.tiny import make_tiny_model

    return make_tiny_model()


@pytest.fixture(scope="session")
def smollm2():
    """SmolLM2-135M-Instruct, fetched on first use."""
    from edgesafe_jax.models.loading import load_model

    return load_model()
