"""Distillation of a 1B and an 8B model on 8 and on 256 devices, compiled ahead of time for simulated devices.

No weight exists and nothing runs: the step of `large` is lowered from shapes, split by `models.sharding`, and compiled
by XLA for CPU devices. Read from the program: memory per device, and the collectives of a step with their bytes. XLA
for CPU widens bfloat16 products to float32, so that both are up to twice those of an accelerator.

The roofline assumes H100 nodes of 8: 40 % of 989 TFLOP/s, 450 GB/s each way between the devices of a node and 50 GB/s
per device between nodes, rings, collectives of floats in bfloat16 (half of the program's bytes), and neither overlap of
communication with arithmetic nor latency. "rows to balance" are the rows per device at which communication takes as
long as arithmetic: weights are gathered once whatever the rows, so that with more of them a step is bound by
arithmetic. Activations that tensor parallelism exchanges grow with the rows: there it is none.
"""

import dataclasses
import json
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from edgesafe_jax.adapters import SoftPrompt
from edgesafe_jax.benchmarks import large
from edgesafe_jax.benchmarks.collectives import Collective, collectives
from edgesafe_jax.errors import EdgesafeError
from edgesafe_jax.models import sharding
from edgesafe_jax.models.decoder import Decoder
from edgesafe_jax.models.decoder_config import DecoderConfig
from edgesafe_jax.parallel import Layout, make_mesh
from edgesafe_jax.typing import PyTree

CONFIGS: dict[str, DecoderConfig] = {
    "1B": large.CONFIG,
    "8B": dataclasses.replace(
        large.CONFIG, num_layers=32, embed_dim=4096, mlp_dim=14336, head_dim=128, tie_embeddings=False
    ),
}
"""Sizes of Llama-3.2-1B and Llama-3.1-8B."""

LAYOUTS: tuple[tuple[str, int, Layout], ...] = (
    ("1B", 8, Layout()),
    ("1B", 8, Layout(fsdp=8)),
    ("1B", 256, Layout()),
    ("1B", 256, Layout(fsdp=8)),
    ("8B", 8, Layout(fsdp=8)),
    ("8B", 8, Layout(fsdp=2, tensor=4)),
    ("8B", 8, Layout(tensor=8)),
    ("8B", 256, Layout(fsdp=8)),
    ("8B", 256, Layout(fsdp=256)),
    ("8B", 256, Layout(fsdp=32, tensor=8)),
)
"""Model, number of devices, and how the model is split; the rest of the devices are copies."""

ROWS, PROMPT, ANSWER = 8, 384, 128
"""Rows per device that holds rows, and tokens of each."""

HOST, FLOPS, NODE_BANDWIDTH, BANDWIDTH = 8, 0.4 * 989e12, 450e9, 50e9
"""Devices of a node, FLOP/s of a device, and bytes per second within a node and between nodes."""

_BFLOAT16 = 0.5  # of the bytes in float32


def run() -> dict[str, Any]:
    """Compiles all layouts in a process with as many simulated devices; returns rows of a table and flat numbers."""
    most = max(devices for _, devices, _ in LAYOUTS)
    # What the machine code of the CPU is like does not matter.
    flags = f"--xla_force_host_platform_device_count={most} --xla_backend_optimization_level=0"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", __name__], env=environment, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise EdgesafeError(f"the compilation for {most} simulated devices ended with status {done.returncode}")
    return summarise(json.loads(done.stdout.splitlines()[-1]))


def summarise(measured: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the rows, without columns that are zero in all of them, and as flat numbers of four digits."""
    shown = [name for name in measured[0] if any(row[name] for row in measured)]
    rows = [{name: row[name] for name in shown} for row in measured]
    values = {
        f"{row['model']}/{row['devices']} devices, {row['split']}/{name}": float(f"{value:.4g}")
        for row in rows
        for name, value in row.items()
        if name not in ("model", "devices", "split") and value is not None
    }
    return {"rows": rows, "values": values}


def measure(name: str, num_devices: int, layout: Layout) -> dict[str, Any]:
    """Compiles one step and returns a row of the table."""
    config = CONFIGS[name]
    mesh = make_mesh(layout, num_devices=num_devices)
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    compiled = lower_step(config, mesh, batch=ROWS * parts).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    text = compiled.as_text()
    assert text is not None
    found = collectives(text, num_devices)
    flops = large.step_flops(config, batch=ROWS * parts, prompt=PROMPT, answer=ANSWER) / num_devices
    arithmetic, communication = flops / FLOPS, sum(map(_seconds, found))
    fixed = sum(_seconds(each) for each in found if each.kind == "all-gather") if layout.tensor == 1 else None
    row = {
        "model": name,
        "devices": num_devices,
        "split": f"data {mesh.shape['data']} x fsdp {layout.fsdp} x tensor {layout.tensor}",
        "arguments GB": memory.argument_size_in_bytes / 1e9,
        "temporary GB": memory.temp_size_in_bytes / 1e9,
    }
    for kind in ("all-gather", "all-reduce", "reduce-scatter", "all-to-all"):
        chosen = [each for each in found if each.kind == kind]
        row[f"{kind}s"] = sum(each.times for each in chosen)
        row[f"{kind} GB"] = sum(each.times * each.num_bytes for each in chosen) / 1e9
    return row | {
        "between nodes GB": sum(each.times * each.num_bytes for each in found if each.spans(HOST)) / 1e9,
        "arithmetic ms": arithmetic * 1e3,
        "communication ms": communication * 1e3,
        "fraction of ideal": arithmetic / (arithmetic + communication),
        "rows to balance": None if fixed is None else ROWS * fixed / arithmetic,
    }


def lower_step(config: DecoderConfig, mesh: jax.sharding.Mesh, *, batch: int) -> jax.stages.Lowered:
    """Lowers the loss and the gradient of a soft prompt from shapes alone, split over a mesh."""
    low = jnp.dtype(jnp.bfloat16)
    decoder = Decoder(config, dtype=low, matmul_dtype=low, mesh=mesh)
    shapes = jax.eval_shape(decoder.clone(mesh=None).init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    params = _split(jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, low), shapes), mesh)
    adapter = _split(SoftPrompt(_shape((large.VIRTUAL, config.embed_dim), jnp.float32)), mesh)  # type: ignore[arg-type]
    rows = NamedSharding(mesh, PartitionSpec((sharding.DATA, sharding.FSDP)))
    return jax.jit(large.make_step(decoder, ANSWER)).lower(
        adapter,
        params,
        _shape((large.HEAD,), jnp.int32, NamedSharding(mesh, PartitionSpec())),
        _shape((batch, PROMPT + ANSWER), jnp.int32, rows),
        _shape((batch, ANSWER, config.embed_dim), low, rows),
    )


def _shape(shape: tuple[int, ...], dtype: Any, split: NamedSharding | None = None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=split)


def _split(tree: PyTree, mesh: jax.sharding.Mesh) -> PyTree:
    return jax.tree.map(
        lambda leaf, split: _shape(leaf.shape, leaf.dtype, split), tree, sharding.shardings_of(tree, mesh)
    )


def _seconds(collective: Collective) -> float:
    return _BFLOAT16 * collective.seconds(BANDWIDTH if collective.spans(HOST) else NODE_BANDWIDTH)


if __name__ == "__main__":
    measured = []
    for model, number, split in LAYOUTS:
        measured.append(measure(model, number, split))
        print(measured[-1], file=sys.stderr, flush=True)
    print(json.dumps(measured))
