"""Which precision the matrix products of a model are fastest in on this machine: measured once, then kept."""

import dataclasses
import functools
import hashlib
import json
import logging
import math
import os
import platform
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax import assets
from edgesafe_jax.errors import ConfigError
from edgesafe_jax.models.decoder_config import DecoderConfig
from edgesafe_jax.models.loading import LanguageModel, with_precision
from edgesafe_jax.models.matmul import matmul, pack_bfloat16
from edgesafe_jax.typing import Array

_log = logging.getLogger(__name__)

FACTORS: Mapping[str, jnp.dtype] = {"float32": jnp.dtype(jnp.float32), "bfloat16": jnp.dtype(jnp.bfloat16)}
"""Dtypes of the factors of matrix products among which `choose_precision` chooses."""

ROWS: Mapping[str, tuple[int, ...]] = {"training": (128,), "decoding": (1, 32)}
"""Rows of the products that are measured: a slice of a training batch; one position of an answer alone, and of each
answer of a batch. The times of several numbers of rows are added up."""

LARGEST = 2048
"""Largest number of rows and of columns of a matrix that is measured; of larger ones a part is."""

MARGIN = 0.95
"""bfloat16 is chosen where it takes less than this fraction of the time of float32."""

NUM_RUNS = 4


@dataclasses.dataclass(frozen=True)
class Precision:
    """Dtypes of the factors of matrix products.

    Attributes:
      training: `"float32"` or `"bfloat16"`, for passes over whole sequences.
      decoding: the same for one new position per row.
    """

    training: str
    decoding: str

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if value not in FACTORS:
                raise ConfigError(f"{name}={value!r}: expected one of {', '.join(FACTORS)}.")


def choose_precision(config: DecoderConfig) -> Precision:
    """Chooses the dtypes of the factors by measuring the products of two feed-forward layers in both.

    The choice is kept in the cache folder by machine (processor, vector instructions, device), jax version and sizes
    of the layers, so that each is measured once.

    Args:
      config: of the model, for the sizes of its layers.

    Returns:
      The faster dtype for training (forward and backward pass) and for decoding (forward passes of one row and of
      32).
    """
    shapes, machine = _shapes(config), _machine()
    name = hashlib.sha256(json.dumps([machine, shapes, ROWS]).encode()).hexdigest()[:16]
    file = assets.cache_dir() / "precision" / f"{name}.json"
    try:
        return Precision(**json.loads(file.read_text(encoding="utf-8"))["chosen"])
    except (OSError, ValueError, KeyError, TypeError):
        times = _measure(shapes)
    chosen = Precision(**{use: _faster(found) for use, found in times.items()})
    record = {"machine": machine, "shapes": shapes, "seconds": times, "chosen": dataclasses.asdict(chosen)}
    assets.write_atomically(file, lambda part: part.write_text(json.dumps(record, indent=2), encoding="utf-8"))
    shown = ", ".join(
        f"{use} {_faster(found)} (" + ", ".join(f"{1e3 * found[name]:.1f} ms in {name}" for name in FACTORS) + ")"
        for use, found in times.items()
    )
    _log.info(f"factors of matrix products, measured on two feed-forward layers: {shown}")
    return chosen


def with_chosen(model: LanguageModel, precision: Precision) -> LanguageModel:
    """Returns the model with the factors of matrix products in chosen dtypes.

    Where training and decoding differ, generation makes a copy of the parameters on first use.
    """
    training, decoding = (FACTORS[name] for name in (precision.training, precision.decoding))
    model = with_precision(model, dtype=model.dtype, matmul_dtype=None if training == model.dtype else training)
    return dataclasses.replace(model, decoding_dtype=None if decoding == training else decoding)


def _faster(seconds: Mapping[str, float]) -> str:
    return "bfloat16" if seconds["bfloat16"] < MARGIN * seconds["float32"] else "float32"


def _shapes(config: DecoderConfig) -> dict[str, list[int]]:
    """Rows and columns of the matrices that are measured, no more than `LARGEST`."""
    embed_dim, mlp_dim = min(config.embed_dim, LARGEST), min(config.mlp_dim, LARGEST)
    return {"up": [embed_dim, mlp_dim], "down": [mlp_dim, embed_dim]}


def _machine() -> dict[str, str]:
    """What the times depend on."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "processor": _processor() if device.platform == "cpu" else "",
        "cpus": str(os.cpu_count()),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "jax": jax.__version__,
    }


def _processor() -> str:
    """Model and instructions of the processor, where the system tells them."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = [line.strip() for line in file if line.startswith(("model name", "flags", "Features"))]
    except OSError:
        lines = []
    return "; ".join(dict.fromkeys(lines)) or f"{platform.machine()} {platform.processor()}"


def _layers(dtype: jnp.dtype, kernels: Mapping[str, Array], x: Array) -> Array:
    """The products of two layers, scanned as the decoder scans them; from x `[N, D]` to `[N, D]`."""

    def layer(x: Array, kernel: Mapping[str, Array]) -> tuple[Array, None]:
        return matmul(jnp.tanh(matmul(x, kernel["up"], dtype=dtype)), kernel["down"], dtype=dtype), None

    return jax.lax.scan(layer, x, kernels)[0]


def _measure(shapes: Mapping[str, list[int]]) -> dict[str, dict[str, float]]:
    """Least seconds of the products by use and dtype; the dtypes take turns, so that other work slows both."""
    runs: dict[tuple[str, int, str], Callable[[], Any]] = {}
    for name, dtype in FACTORS.items():
        kernels: Any = {key: jnp.asarray(np.full((2, *shape), 0.01, dtype)) for key, shape in shapes.items()}
        if name == "bfloat16":
            kernels = jax.tree.map(pack_bfloat16, kernels)
        forward = functools.partial(_layers, dtype)
        backward = jax.grad(lambda kernels, x, forward=forward: jnp.sum(forward(kernels, x)), argnums=1)
        for use, run in (("training", backward), ("decoding", forward)):
            for rows in ROWS[use]:
                x = jnp.asarray(np.full((rows, shapes["up"][0]), 0.01, np.float32))
                runs[use, rows, name] = functools.partial(jax.jit(run), kernels, x)
                jax.block_until_ready(runs[use, rows, name]())
    least = dict.fromkeys(runs, math.inf)
    for _ in range(NUM_RUNS):
        for which, run in runs.items():
            begun = time.perf_counter()
            jax.block_until_ready(run())
            least[which] = min(time.perf_counter() - begun, least[which])
    return {use: {name: sum(least[use, rows, name] for rows in ROWS[use]) for name in FACTORS} for use in ROWS}
