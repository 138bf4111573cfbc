"""Which axes of parameters, adapters and activations are split over which axes of a mesh: the one table of it.

Every array has logical axes by its name, and every logical axis is split over axes of the mesh by `RULES`. Fully
sharded data parallelism splits weights along the residual stream over "fsdp" (Zhao et al., arXiv 2304.11277); tensor
parallelism splits heads, feed-forward layer and vocabulary over "tensor" (Shoeybi et al., arXiv 1909.08053). Batches
are split over "data" and "fsdp". `jax.jit` inserts the collectives.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from edgesafe_jax.errors import ConfigError
from edgesafe_jax.models.decoder_config import DecoderConfig
from edgesafe_jax.typing import Array, PyTree

DATA, FSDP, TENSOR = "data", "fsdp", "tensor"

RULES: Mapping[str, tuple[str, ...]] = {
    "batch": (DATA, FSDP),
    "embed": (FSDP,),
    "vocab": (TENSOR,),
    "rows": (TENSOR, FSDP),  # of tables, which are never whole: looked up, sums of parts are exchanged
    "heads": (TENSOR,),
    "kv_heads": (TENSOR,),
    "mlp": (TENSOR,),
}
"""From logical axis to the axes of the mesh that it is split over."""

_MATRICES: Mapping[str, tuple[str, str]] = {
    "attention/query": ("embed", "heads"),
    "attention/key": ("embed", "kv_heads"),
    "attention/value": ("embed", "kv_heads"),
    "attention/out": ("heads", "embed"),
    "mlp/gate": ("embed", "mlp"),
    "mlp/up": ("embed", "mlp"),
    "mlp/down": ("mlp", "embed"),
}
"""Inputs and outputs of the matrices of a layer."""

LOGICAL_AXES: Mapping[str, tuple[str | None, ...]] = {
    "embedding": ("rows", None),
    "head": (None, "rows"),
    "positions": ("rows", None),
    **{f"layers/{name}": (None, *axes) for name, axes in _MATRICES.items()},
    **{f"layers/{name}_bias": (None, axes[1]) for name, axes in _MATRICES.items() if axes[1] != "embed"},
    # LoRA, soft prompt, prefix, steering
    **{f"down/{name}": (None, axes[0], None) for name, axes in _MATRICES.items()},
    **{f"up/{name}": (None, None, axes[1]) for name, axes in _MATRICES.items()},
    "embeddings": (None, "embed"),
    "keys": (None, "kv_heads", None, None),
    "values": (None, "kv_heads", None, None),
    "vectors": (None, "embed"),
}
"""Logical axes by the end of an array's name; an array of another name is whole on every device."""

_QUANTIZED = ("codes", "scales", "lows")


def check_mesh(config: DecoderConfig, mesh: Mesh | None) -> None:
    """Checks that the sizes of a decoder can be split over a mesh, before anything is loaded.

    Args:
      config: of the decoder.
      mesh: the devices; None for one.

    Raises:
      ConfigError: heads, feed-forward width or residual stream do not divide; the message names all that do.
    """
    sizes = {} if mesh is None else dict(mesh.shape)
    for axis, names in ((TENSOR, ("num_heads", "num_kv_heads", "mlp_dim")), (FSDP, ("embed_dim",))):
        count = sizes.get(axis, 1)
        values = {name: getattr(config, name) for name in names}
        if uneven := {name: value for name, value in values.items() if value % count}:
            common = math.gcd(*values.values())
            fitting = ", ".join(str(number) for number in range(1, common + 1) if common % number == 0)
            raise ConfigError(
                f"{axis}={count} does not divide {', '.join(f'{name}={value}' for name, value in uneven.items())} of "
                f"the model: expected one of {fitting if common <= 64 else f'the divisors of {common}'}."
            )


def spec_of(axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Returns how an array with logical axes is split; an axis that does not divide is split over fewer, or whole."""
    found = []
    for axis, size in zip(axes, shape, strict=True):
        names = tuple(name for name in RULES.get(axis or "", ()) if mesh.shape.get(name, 1) > 1)
        while size % math.prod(mesh.shape[name] for name in names):
            names = names[:-1]
        found.append(names if len(names) > 1 else names[0] if names else None)
    while found and found[-1] is None:
        found.pop()
    return PartitionSpec(*found)


def sharding_of(name: str, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Returns how an array of a name is split, see `LOGICAL_AXES`.

    Args:
      name: path in a tree, joined by slashes; what stands before the part that the table knows does not matter, so
        that the moments of an optimiser are split as the parameters are.
      shape: of the array.
      mesh: the devices.

    Returns:
      The sharding.
    """
    head, _, leaf = name.rpartition("/")
    quantized = leaf in _QUANTIZED
    parts = (head if quantized else name).split("/")
    keys = ("/".join(parts[start:]) for start in range(len(parts)))
    key = next((key for key in keys if key in LOGICAL_AXES), None)
    axes = LOGICAL_AXES[key] if key is not None else ()
    if quantized and key != "embedding":  # stored outputs first
        axes = (*axes[:-2], *axes[:-3:-1])
    if len(axes) != len(shape):
        axes = (None,) * len(shape)
    return NamedSharding(mesh, spec_of(axes, shape, mesh))


def shardings_of(tree: PyTree, mesh: Mesh) -> PyTree:
    """Returns a tree of the shardings of a tree of arrays or of shapes: parameters, an adapter, a training state."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: sharding_of(path_name(path), jnp.shape(leaf), mesh), tree
    )


def path_name(path: tuple[Any, ...]) -> str:
    """The path of a leaf as `sharding_of` takes it."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def put(name: str, leaf: Any, mesh: Mesh | None, convert: Callable[[Array], Array]) -> Array:
    """Converts an array and puts each part of it on its devices; of an array in a file no other parts are read.

    Args:
      name: see `sharding_of`.
      leaf: a NumPy or jax array.
      mesh: the devices of this process; None for the default device.
      convert: what is done to the numbers, one by one.

    Returns:
      The array, split.
    """
    if mesh is None:
        return convert(jnp.asarray(leaf))
    sharding = sharding_of(name, leaf.shape, mesh)
    if isinstance(leaf, jax.Array):
        return jax.device_put(convert(leaf), sharding)
    return jax.make_array_from_callback(leaf.shape, sharding, lambda index: convert(jnp.asarray(leaf[index])))


def constrain(x: Array, mesh: Mesh | None, *axes: str | None) -> Array:
    """Says how an activation with logical axes is split; does nothing where there is no mesh."""
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec_of(axes, x.shape, mesh)))
