"""Meshes of devices, and arrays that are split over them or copied to all of them."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from edgesafe_jax.errors import POSITIVE_COUNT, ConfigError, check_ranges
from edgesafe_jax.models.sharding import DATA, FSDP, RULES, TENSOR, path_name, shardings_of, spec_of
from edgesafe_jax.typing import PyTree


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a model is split; what remains of the devices are copies that share the batch.

    Attributes:
      fsdp: devices over which weights are split along the residual stream, which share the batch too.
      tensor: devices over which heads, feed-forward layer and vocabulary are split.

    Raises:
      ConfigError: a number below 1.
    """

    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        check_ranges(dataclasses.asdict(self), {"fsdp": POSITIVE_COUNT, "tensor": POSITIVE_COUNT}, "parallel.")

    @property
    def size(self) -> int:
        """Devices that hold one copy of the model."""
        return self.fsdp * self.tensor


def make_mesh(layout: Layout, *, batch_size: int | None = None, num_devices: int | None = None) -> Mesh:
    """Makes the mesh of a training run, with the axes ``data``, ``fsdp`` and ``tensor``.

    One process takes as many devices as divide the batch; several take all, and each holds whole copies of the model.

    Args:
      layout: how the model is split.
      batch_size: rows of a batch; None where nothing is known of it.
      num_devices: devices of one process to use at most; None for all.

    Returns:
      The mesh.

    Raises:
      ConfigError: the model needs more devices than there are, or than a process has, or the batch does not divide.

    Example:
      >>> dict(make_mesh(Layout()).shape)["tensor"]
      1
    """
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))[:num_devices]
    copies = _copies(layout, len(devices))
    if jax.process_count() > 1:
        _copies(layout, jax.local_device_count(), " in each process")
        if batch_size is not None and batch_size % (copies * layout.fsdp):
            raise ConfigError(
                f"batch_size={batch_size}: expected a multiple of {copies * layout.fsdp}, over which the batch is "
                f"split ({len(devices)} devices, tensor={layout.tensor})."
            )
    elif batch_size is not None:
        if batch_size % layout.fsdp:
            raise ConfigError(f"batch_size={batch_size}: expected a multiple of parallel.fsdp={layout.fsdp}.")
        copies = math.gcd(batch_size // layout.fsdp, copies)
    return _mesh(devices[: copies * layout.size], layout)


def make_model_mesh(layout: Layout) -> Mesh | None:
    """Makes the mesh over which this process loads and runs a model; None for a model that is whole on one device.

    Raises:
      ConfigError: the model needs more devices than this process has.
    """
    if layout.size == 1:
        return None
    devices = jax.local_devices()
    return _mesh(devices[: _copies(layout, len(devices)) * layout.size], layout)


def _copies(layout: Layout, num_devices: int, where: str = "") -> int:
    """How many copies of a model there is room for."""
    copies, rest = divmod(num_devices, layout.size)
    if not copies or (rest and jax.process_count() > 1):
        expected = "a divisor of it" if jax.process_count() > 1 else "at most as many"
        raise ConfigError(
            f"parallel.fsdp={layout.fsdp} x parallel.tensor={layout.tensor} needs {layout.size} devices; there are "
            f"{num_devices}{where} ({jax.devices()[0].platform}): expected {expected}. For more CPU devices set "
            "XLA_FLAGS=--xla_force_host_platform_device_count=N before Python starts"
        )
    return copies


def _mesh(devices: Sequence[Any], layout: Layout) -> Mesh:
    return Mesh(np.array(devices).reshape(-1, layout.fsdp, layout.tensor), (DATA, FSDP, TENSOR))


def make_data_mesh(num_devices: int | None = None, *, local: bool = False) -> Mesh:
    """Makes a mesh of one axis, ``data``, over which a batch is split.

    Args:
      num_devices: number of devices; None uses all, those of other hosts included.
      local: whether only devices of this process are used.

    Returns:
      The mesh.

    Raises:
      ConfigError: there are fewer devices, or a part of them is asked for on several hosts.

    Example:
      >>> make_data_mesh(1).shape["data"]
      1
    """
    devices = jax.local_devices() if local else jax.devices()
    count = len(devices) if num_devices is None else num_devices
    if not 1 <= count <= len(devices):
        raise ConfigError(
            f"num_devices={count}: there are {len(devices)} ({devices[0].platform}); ask for 1 to {len(devices)}. "
            "For more CPU devices set XLA_FLAGS=--xla_force_host_platform_device_count=N before Python starts"
        )
    if jax.process_count() > 1 and not local and count != len(devices):
        raise ConfigError(
            f"num_devices={count}: on {jax.process_count()} hosts all {len(devices)} devices take part; leave it out"
        )
    return Mesh(np.array(devices[:count]), (DATA,))


def shard_batch(batch: PyTree, mesh: Mesh) -> PyTree:
    """Splits a batch along its first axis over the devices of a mesh.

    On several hosts each passes the same whole batch and keeps the rows of its own devices.

    Args:
      batch: a pytree of arrays `[B, ...]`.
      mesh: from `make_mesh` or `make_data_mesh`; devices that differ in "tensor" alone get the same rows.

    Returns:
      The batch with each array split; on one device, the batch unchanged.

    Raises:
      ConfigError: an array is a scalar, or its first axis is not a multiple of the number of parts.

    Example:
      >>> shard_batch({"tokens": np.zeros((8, 16))}, make_data_mesh(1))["tokens"].shape
      (8, 16)
    """
    parts = math.prod(mesh.shape.get(name, 1) for name in RULES["batch"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        shape = np.shape(leaf)
        if not shape or shape[0] % parts:
            raise ConfigError(
                f"batch leaf {path_name(path) or '(root)'!r} has shape {list(shape)}: its first axis does not split "
                f"over {parts} devices; use a batch size that is a multiple of {parts}, or another number of devices"
            )
    if mesh.size == 1:
        return batch
    return place(batch, NamedSharding(mesh, spec_of(("batch",), (parts,), mesh)))


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Copies a tree to every device of a mesh.

    On several hosts each passes the same values.

    Args:
      tree: a pytree of arrays and typed random keys, such as a training state.
      mesh: from `make_data_mesh`.

    Returns:
      The tree, whole on each device; on one device, the tree unchanged.
    """
    if mesh.size == 1:
        return tree
    return place(tree, NamedSharding(mesh, PartitionSpec()))


def place(tree: PyTree, sharding: Sharding) -> PyTree:
    """Puts arrays and typed random keys on devices by a sharding, which may span several hosts.

    Args:
      tree: a pytree of them; on several hosts each passes the same whole values and keeps its part.
      sharding: of every leaf.

    Returns:
      The tree; it shares no memory with the numpy arrays passed in.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding, may_alias=False)

    # device_put would compare the values of all hosts at each call; each host cuts out its part instead.
    def cut(leaf: jax.typing.ArrayLike) -> jax.Array:
        if isinstance(leaf, jax.Array) and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = cut(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(data, impl=str(jax.random.key_impl(leaf)))
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(cut, tree)


def distribute(tree: PyTree, mesh: Mesh) -> PyTree:
    """Splits parameters, an adapter or a training state over a mesh by the names of their arrays.

    On several hosts each passes the same values, or a model that is split over its own devices; of such a model nothing
    is copied.

    Args:
      tree: a pytree of arrays and typed random keys; what `models.sharding.LOGICAL_AXES` does not name is copied to
        all devices.
      mesh: from `make_mesh`.

    Returns:
      The tree; on one device, the tree unchanged.
    """
    if mesh.size == 1:
        return tree
    return jax.tree.map(_put, tree, shardings_of(tree, mesh))


def _put(leaf: jax.typing.ArrayLike, sharding: NamedSharding) -> jax.Array:
    if jax.process_count() == 1:
        return jax.device_put(leaf, sharding)
    if not _is_local_copy(leaf, sharding):
        return place(leaf, sharding)
    assert isinstance(leaf, jax.Array)
    shards = [shard.data for shard in leaf.addressable_shards]
    return jax.make_array_from_single_device_arrays(leaf.shape, sharding, shards)


def _is_local_copy(leaf: jax.typing.ArrayLike, sharding: NamedSharding) -> bool:
    """Whether an array is split over the devices of this process as a sharding splits it there."""
    here = leaf.sharding if isinstance(leaf, jax.Array) else None
    if not isinstance(here, NamedSharding) or here.spec != sharding.spec:
        return False
    local, whole = here.mesh, sharding.mesh
    assert isinstance(local, Mesh)
    assert isinstance(whole, Mesh)
    mine = [device for device in whole.devices.flat if device.process_index == jax.process_index()]
    same_split = all(local.shape.get(axis, 1) == whole.shape.get(axis, 1) for axis in (FSDP, TENSOR))
    return same_split and list(local.devices.flat) == mine


def to_local(tree: PyTree) -> PyTree:
    """Copies arrays of which this process has every part, for work that it does alone.

    Args:
      tree: a pytree of arrays as `replicate` or `distribute` made them.

    Returns:
      The tree; on several processes its leaves are numpy arrays.
    """
    return tree if jax.process_count() == 1 else jax.tree.map(to_host, tree)


def to_host(leaf: jax.Array) -> np.ndarray:
    """Gathers an array of which this process has every part."""
    if leaf.is_fully_addressable or leaf.is_fully_replicated:
        return np.asarray(leaf)
    whole = np.empty(leaf.shape, leaf.dtype)
    for shard in leaf.addressable_shards:
        whole[shard.index] = np.asarray(shard.data)
    return whole
