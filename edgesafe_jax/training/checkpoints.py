"""Atomic checkpoints, checked by digest and restored bit for bit.

A state is any pytree of jax arrays (typed random keys included), numpy arrays and Python numbers. Orbax stores the
arrays under the names of their leaves, and beside them a manifest: what each leaf was, and the SHA-256 of its bytes.
"""

import contextlib
import hashlib
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from edgesafe_jax.errors import EdgesafeError, StorageError, check_counts, describe_storage_problem, storage_errors
from edgesafe_jax.parallel import place, to_host
from edgesafe_jax.typing import PyTree

_log = logging.getLogger(__name__)


class CheckpointError(EdgesafeError, ValueError):
    """A checkpoint that cannot be read, or that does not fit."""


class Checkpoints:
    """The last few states of a run, in one directory.

    Reading changes nothing on the disk, so a run may be read while it trains.

    Example:
      >>> import tempfile
      >>> with Checkpoints(tempfile.mkdtemp(), save_interval=10) as checkpoints:
      ...     checkpoints.save(10, {"w": jnp.ones(3)})
      ...     step, state = checkpoints.restore_latest({"w": jnp.zeros(3)})
      >>> step, state["w"].tolist()
      (10, [1.0, 1.0, 1.0])
    """

    def __init__(self, directory: str | os.PathLike[str], *, keep: int = 3, save_interval: int = 100):
        """Sets the directory; no file is touched before the first `save`.

        Args:
          directory: of the checkpoints, which are one directory per step.
          keep: how many of the newest are kept.
          save_interval: steps between two saves, for `should_save`.

        Raises:
          ConfigError: `keep` or `save_interval` is less than 1.
        """
        check_counts(keep=keep, save_interval=save_interval)
        self.directory = Path(directory).absolute()
        self._keep = keep
        self._save_interval = save_interval
        self._bad_steps: set[int] = set()
        self._manager: ocp.CheckpointManager | None = None

    def should_save(self, step: int) -> bool:
        """Returns whether a checkpoint is due after `step` steps."""
        return step % self._save_interval == 0

    def steps(self) -> list[int]:
        """Returns the steps that have a checkpoint, oldest first, whether or not it can be read."""
        if not self.directory.is_dir():
            return []
        return sorted(int(path.name) for path in self.directory.iterdir() if path.name.isdigit())

    def save(self, step: int, state: PyTree) -> None:
        """Saves a state and waits until it is on the disk; a step that has a checkpoint is left as it is.

        Of several processes the first alone saves, and all may call this. The checkpoint appears under its name only
        when it is complete. A checkpoint that `restore_latest` found to be damaged is moved aside, to
        ``damaged-<step>``.

        Args:
          step: steps done when the state was reached.
          state: a pytree of jax arrays, numpy arrays and Python numbers.

        Raises:
          CheckpointError: the directory was moved or deleted since the last save.
          StorageError: the operating system refuses, for instance on a full disk; the checkpoints before stay.
          TypeError: if a leaf is something else.
        """
        leaves = {name: _encode(name, leaf) for name, leaf in _named_leaves(state).items()}
        if jax.process_index() != 0:
            return
        # Orbax does not store arrays without elements; the manifest has all there is to know of them.
        arrays = {name: array for name, (_, array) in leaves.items() if array.size}
        manifest = {name: _describe(kind, array) for name, (kind, array) in leaves.items()}
        with storage_errors(self.directory), _quiet_threads():
            self._save(step, arrays, manifest)

    def _save(self, step: int, arrays: dict[str, np.ndarray], manifest: dict[str, Any]) -> None:
        manager = self._open_manager()
        if step in manager.all_steps():
            return
        items = ocp.args.Composite(
            arrays=ocp.args.StandardSave(arrays),  # pyright: ignore[reportCallIssue]
            manifest=ocp.args.JsonSave(manifest),  # pyright: ignore[reportCallIssue]
        )
        manager.save(step, args=items, force=True)

    def restore_latest(self, like: PyTree) -> tuple[int, PyTree] | None:
        """Restores the newest checkpoint that is whole.

        A newer damaged one is skipped, with a warning that names both.

        Args:
          like: a state of the same structure; its leaves give the types, the random key implementation and the
            sharding of the restored ones, which may be of other devices and of more or fewer than it was saved on.

        Returns:
          The steps done and the state, equal bit for bit to what was saved; None if there is no checkpoint.

        Raises:
          CheckpointError: there are checkpoints and none is whole, or a whole one has other leaves, shapes or dtypes
            than `like`, or does not fit into the devices of `like`.
          StorageError: no permission to read one.
        """
        steps = self.steps()
        damaged: dict[int, str] = {}
        for step in reversed(steps):
            try:
                with _quiet_threads():
                    manifest, arrays = self._read(step)
            except Exception as error:  # Orbax and its storage raise errors of many types.
                if isinstance(error, PermissionError) or "PERMISSION_DENIED" in str(error):
                    raise StorageError(describe_storage_problem(error, self.directory / str(step))) from error
                damaged[step] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                continue
            state = self._fit(step, manifest, arrays, like)
            self._bad_steps |= damaged.keys()
            for bad, reason in damaged.items():
                _log.warning(
                    "checkpoint %s is damaged (%s); using the last good one, %s",
                    self.directory / str(bad),
                    reason,
                    self.directory / str(step),
                )
            return step, state
        if steps:
            reasons = "; ".join(f"{step}: {reason}" for step, reason in damaged.items())
            raise CheckpointError(
                f"none of the checkpoints in {self.directory} can be read ({reasons}). Delete that directory to start "
                "the training afresh, or put a good copy there"
            )
        return None

    def close(self) -> None:
        """Closes the directory; a later `save` opens it again."""
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _open_manager(self) -> ocp.CheckpointManager:
        for step in self._bad_steps:
            target = self.directory / f"damaged-{step}"
            shutil.rmtree(target, ignore_errors=True)
            (self.directory / str(step)).rename(target)
        if self._bad_steps:
            self._bad_steps.clear()
            self.close()
        if self._manager is not None and not self.directory.is_dir():
            raise CheckpointError(
                f"{self.directory} was moved or deleted while the run was writing checkpoints there. Start the same "
                "command with the directory's new place; it continues from the last checkpoint"
            )
        if self._manager is None:
            options = ocp.CheckpointManagerOptions(
                max_to_keep=self._keep,
                enable_async_checkpointing=False,
                create=jax.process_count() == 1,
                multiprocessing_options=_alone(),
            )
            self.directory.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(self.directory, options=options)
        return self._manager

    def _read(self, step: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Reads one checkpoint and compares it with its manifest."""
        path = self.directory / str(step)
        alone = _alone()
        handler = ocp.CompositeCheckpointHandler(composite_options=ocp.CompositeOptions(multiprocessing_options=alone))
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
            manifest = reader.restore(path, args=ocp.args.Composite(manifest=ocp.args.JsonRestore())).manifest
            blank = {name: np.empty(entry["shape"], jnp.dtype(entry["dtype"])) for name, entry in manifest.items()}
            stored = {name: array for name, array in blank.items() if array.size}
            wanted = ocp.args.StandardRestore(stored)  # pyright: ignore[reportCallIssue]
            arrays = blank | reader.restore(path, args=ocp.args.Composite(arrays=wanted)).arrays
        for name, entry in manifest.items():
            if _digest(arrays[name]) != entry["sha256"]:
                raise CheckpointError(f"the bytes of {name} do not have the digest they were saved with")
        return manifest, arrays

    def _fit(self, step: int, manifest: dict[str, Any], arrays: dict[str, np.ndarray], like: PyTree) -> PyTree:
        """Puts the arrays of a whole checkpoint into the structure of `like`."""
        where = f"checkpoint {self.directory / str(step)}"
        way_out = "it was saved by a run with another configuration or version: use another work directory"
        leaves = _named_leaves(like)
        if missing := sorted(leaves.keys() - manifest.keys()):
            raise CheckpointError(f"{where} has no leaf {missing[0]!r} ({len(missing)} missing); {way_out}")
        if unexpected := sorted(manifest.keys() - leaves.keys()):
            raise CheckpointError(
                f"{where} has an unexpected leaf {unexpected[0]!r} ({len(unexpected)} in all); {way_out}"
            )
        restored = []
        for name, leaf in leaves.items():
            entry = manifest[name]
            found = (entry["kind"], tuple(entry["shape"]), entry["dtype"])
            kind, array = _encode(name, leaf)
            if found != (kind, array.shape, array.dtype.name):
                raise CheckpointError(
                    f"{where}: leaf {name!r} is {found[0]} {found[2]}{list(found[1])}, expected {kind} "
                    f"{array.dtype.name}{list(array.shape)}; {way_out}"
                )
            try:
                restored.append(_decode(arrays.pop(name), leaf))
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                raise CheckpointError(
                    f"{where}: there is no room on the devices for the rest of it, from leaf {name!r} of "
                    f"{array.nbytes} bytes on. Split the run over more devices, by fsdp or tensor"
                ) from error
        return jax.tree.unflatten(jax.tree.structure(like), restored)


@contextlib.contextmanager
def _quiet_threads() -> Iterator[None]:
    """Keeps what Orbax's and TensorStore's threads print off the screen.

    Orbax raises an error of its threads again in the caller, whose message says what is wrong. TensorStore answers
    reads that were given up with a traceback of "Event loop is closed".
    """
    log = logging.getLogger("absl")
    former, former_threading = sys.excepthook, threading.excepthook

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if "Event loop is closed" not in str(error):
            former(kind, error, traceback)

    def is_shown(record: logging.LogRecord) -> bool:
        return "_SignalingThread" not in record.getMessage()

    sys.excepthook, threading.excepthook = hook, lambda arguments: None
    log.addFilter(is_shown)
    try:
        yield
    except Exception:
        time.sleep(0.2)  # The answers to reads that were given up come a little later.
        raise
    finally:
        sys.excepthook, threading.excepthook = former, former_threading
        log.removeFilter(is_shown)


def _alone() -> ocp.options.MultiprocessingOptions:
    """How Orbax reads and writes in this process without waiting for others."""
    if jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    number = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=number, active_processes={number}, barrier_sync_key_prefix=f"process{number}"
    )


def _named_leaves(tree: PyTree) -> dict[str, Any]:
    named = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/") or "(root)"
        if name in named:
            raise CheckpointError(f"two leaves of the state have the name {name!r}: rename one of the dictionary keys")
        named[name] = leaf
    return named


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _encode(name: str, leaf: Any) -> tuple[str, np.ndarray]:
    """Returns what a leaf is and its numbers."""
    if _is_key(leaf):
        return f"random key {jax.random.key_impl(leaf)}", np.asarray(jax.random.key_data(leaf))
    if isinstance(leaf, jax.Array):
        return "jax", to_host(leaf)
    if isinstance(leaf, (bool, int, float)) and not isinstance(leaf, np.generic):
        array = np.asarray(leaf)
        if array.dtype != object:
            return type(leaf).__name__, array
    if isinstance(leaf, (np.ndarray, np.generic)) and leaf.dtype != object and leaf.dtype.kind not in "US":
        return "numpy", np.asarray(leaf)
    raise TypeError(
        f"leaf {name!r} of the state is {leaf!r} of type {type(leaf).__name__}: expected a jax or numpy "
        "array of numbers or a Python number of at most 64 bits"
    )


def _decode(array: np.ndarray, leaf: Any) -> Any:
    """Makes of an array the kind of leaf that `leaf` is."""
    if _is_key(leaf):
        keys = jax.random.wrap_key_data(jnp.array(array), impl=str(jax.random.key_impl(leaf)))
        return place(keys, leaf.sharding) if leaf.committed else keys
    if isinstance(leaf, jax.Array):
        return place(array, leaf.sharding) if leaf.committed else jnp.array(array)
    if isinstance(leaf, np.generic):
        return array[()]
    return array if isinstance(leaf, np.ndarray) else array.item()


def _describe(kind: str, array: np.ndarray) -> dict[str, Any]:
    return {"kind": kind, "dtype": array.dtype.name, "shape": array.shape, "sha256": _digest(array)}


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
