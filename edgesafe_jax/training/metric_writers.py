"""Scalars of every training step, as JSON lines, for TensorBoard and for Weights & Biases."""

import contextlib
import importlib
import json
import logging
import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

from edgesafe_jax.errors import ConfigError, storage_errors
from edgesafe_jax.training.workdir import WorkdirError, to_json, write_text

_log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
WANDB = "wandb_run.txt"
"""Where a work directory keeps the number of its run of Weights & Biases."""
FLUSH_SECONDS = 60
"""Longest time after which TensorBoard sees new points."""
_RESERVED = ("step", "time")


class MetricWriter:
    """Appends scalars to ``metrics.jsonl``, to TensorBoard and to Weights & Biases.

    A line is ``{"step": 7, "time": 1700000000.0, "loss": 0.25}``: the step counted from 0, the wall time in seconds
    since 1970 at which it was written, and the scalars, ``null`` where one is not finite. Each line is flushed to the
    operating system when it is written, so a killed process loses none; a half-written last line is removed when the
    file is opened again.

    Example:
      >>> import tempfile
      >>> workdir = tempfile.mkdtemp()
      >>> with MetricWriter(workdir, tensorboard=False) as writer:
      ...     writer.write(0, {"loss": 0.5})
      >>> [line["loss"] for line in read_metrics(workdir)]
      [0.5]
    """

    def __init__(self, workdir: str | os.PathLike[str], *, tensorboard: bool = True, wandb: str = ""):
        """Prepares a writer; no file is touched before the first `resume` or `write`.

        Args:
          workdir: the run's directory.
          tensorboard: whether to write ``tensorboard/`` too.
          wandb: project of Weights & Biases to log to; empty for none. What else its client needs, such as the key and
            whether it works offline, it takes from its own settings.

        Raises:
          ConfigError: a project is given and the package wandb is not installed.
        """
        self._workdir = Path(workdir)
        self._use_tensorboard = tensorboard
        self._project = wandb
        check_wandb(wandb)
        self._file: IO[str] | None = None
        self._boards: list[_Board | _Wandb] = []

    def resume(self, step: int) -> None:
        """Drops, atomically, what an interrupted run wrote for this step and later ones.

        A warning says how many lines of earlier steps are gone.

        Args:
          step: the first step that will be written next; 0 for a run from the start.
        """
        self.close()
        self._open(step)
        if missing := sorted(set(range(step)) - {line["step"] for line in read_metrics(self._workdir)}):
            _log.warning(
                "%s has no line for %d of the %d steps done (the first is step %d): it was changed since. Training "
                "goes on; the curves have a gap",
                self._workdir / METRICS,
                len(missing),
                step,
                missing[0],
            )

    def write(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Writes the scalars of one step.

        Args:
          step: the step, counted from 0.
          scalars: names to single numbers (Python, numpy or jax).

        Raises:
          ConfigError: a name is ``step`` or ``time``, or a value is not one number.
        """
        numbers = {}
        for name, value in scalars.items():
            number = np.asarray(value)
            if name in _RESERVED or number.size != 1 or number.dtype.kind not in "biufV":
                raise ConfigError(
                    f"metric {name!r}: expected one number under a name other than {_RESERVED}, "
                    f"got {type(value).__name__} of shape {number.shape}"
                )
            numbers[name] = number.item()
        if self._file is None:
            self._open(None)
        assert self._file is not None
        now = time.time()
        line = to_json({"step": int(step), "time": now, **numbers})
        with storage_errors(self._workdir / METRICS):
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
            self._file.flush()
            for board in self._boards:
                board.write(step, now, numbers)

    def sync(self) -> None:
        """Waits until everything written is on the disk.

        Raises:
          WorkdirError: the file was moved or deleted since it was opened.
        """
        file = self._workdir / METRICS
        if self._file is not None:
            with storage_errors(file):
                os.fsync(self._file.fileno())
            if not file.exists() or not os.path.samestat(os.fstat(self._file.fileno()), file.stat()):
                raise WorkdirError(
                    f"{file} was moved or deleted while the run was writing it: the run stops before it writes half of "
                    "its files there. Start the same command with the directory's new place; it continues from the "
                    "last checkpoint"
                )
        with storage_errors(self._workdir / "tensorboard"):
            for board in self._boards:
                board.flush()

    def close(self) -> None:
        """Closes the files; a later `write` opens them again."""
        file, boards, self._file, self._boards = self._file, self._boards, None, []
        with storage_errors(self._workdir / METRICS), contextlib.ExitStack() as opened:
            for one in (file, *boards):
                if one is not None:
                    opened.callback(one.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _open(self, step: int | None) -> None:
        file = self._workdir / METRICS
        if file.exists():
            kept = [raw for raw, line in _lines(file) if step is None or line["step"] < step]
            text = "".join(raw + "\n" for raw in kept)
            if len(text.encode()) != file.stat().st_size:
                write_text(file, text)
        with storage_errors(file):
            self._workdir.mkdir(parents=True, exist_ok=True)
            self._file = file.open("a", encoding="utf-8")
            if self._use_tensorboard:
                self._boards.append(_Board(self._workdir / "tensorboard", step))
            if self._project:
                self._boards.append(_Wandb(self._workdir, self._project))


def check_wandb(project: str) -> Any:
    """Imports the client of Weights & Biases, if there is a project to log to.

    Raises:
      ConfigError: the package wandb is not installed.
    """
    if not project:
        return None
    try:
        client = importlib.import_module("wandb")
        client.init  # noqa: B018 - a folder `wandb` can be imported too
    except (ImportError, AttributeError):
        raise ConfigError(
            f"wandb={project!r}: the package wandb is not installed; pip install 'edgesafe-jax[wandb]', or leave the "
            "project empty"
        ) from None
    return client


class _Wandb:
    """A run of Weights & Biases, the same one whenever its work directory is continued.

    Its curves are drawn over ``step``: what an interrupted run logged twice lies on the same points.
    """

    def __init__(self, workdir: Path, project: str):
        """Opens the run whose number the work directory keeps."""
        file = workdir / WANDB
        if not file.exists():
            write_text(file, uuid.uuid4().hex[:12])
        config = workdir / "config.json"
        self._run: Any = check_wandb(project).init(
            project=project,
            id=file.read_text(encoding="utf-8").strip(),
            resume="allow",
            dir=str(workdir),
            config=json.loads(config.read_text(encoding="utf-8")) if config.exists() else None,
        )
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, now: float, numbers: Mapping[str, float]) -> None:
        """Adds a point to each curve."""
        del now
        self._run.log({"step": step, **numbers})

    def flush(self) -> None:
        """Does nothing: the client sends what it has in a process of its own."""

    def close(self) -> None:
        """Ends the run, once everything is sent."""
        self._run.finish()


class _Board:
    """One file of TensorBoard events, written in the calling thread.

    tensorboardX's own `SummaryWriter` writes in a thread: on a full disk the thread ends and the next call waits for
    it without end.
    """

    def __init__(self, folder: Path, purge_step: int | None):
        """Opens a new file; TensorBoard drops the points of earlier files from `purge_step` on."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2

        # Protocol buffers make their classes at run time.
        self._events: Any = event_pb2
        self._summaries: Any = summary_pb2
        folder.mkdir(exist_ok=True)
        # The suffix, because the name alone has whole seconds and a second file would replace the first.
        self._writer = EventsWriter(str(folder / "events"), filename_suffix=f".{time.time_ns()}")
        self._flushed = 0.0
        if purge_step is not None:
            start = self._events.SessionLog(status=self._events.SessionLog.START)
            self._writer.write_event(self._events.Event(wall_time=time.time(), step=purge_step, session_log=start))

    def write(self, step: int, now: float, numbers: Mapping[str, float]) -> None:
        """Adds a point to each curve."""
        values = [self._summaries.Summary.Value(tag=name, simple_value=float(x)) for name, x in numbers.items()]
        summary = self._summaries.Summary(value=values)
        self._writer.write_event(self._events.Event(wall_time=now, step=step, summary=summary))
        if now - self._flushed > FLUSH_SECONDS:
            self.flush()
            self._flushed = now

    def flush(self) -> None:
        """Waits until everything written is on the disk."""
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()


def read_metrics(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads the metrics of a run, also while it is being written.

    Args:
      workdir: the run's directory.

    Returns:
      One dictionary per line, in the order of the steps; a half-written last line is left out; no lines if there
      is no file yet.

    Raises:
      WorkdirError: a line other than the last cannot be read.
    """
    file = Path(workdir) / METRICS
    return [line for _, line in _lines(file)] if file.exists() else []


def _lines(file: Path) -> list[tuple[str, dict[str, Any]]]:
    """Returns the complete lines, raw and parsed; a torn last one is left out."""
    raw_lines = file.read_bytes().split(b"\n")
    torn = raw_lines.pop()  # Empty when the last line is complete.
    lines = []
    for number, raw in enumerate(raw_lines, start=1):
        try:
            line = json.loads(raw)
            if not isinstance(line["step"], int):
                raise TypeError("a step is a whole number")
        except (ValueError, TypeError, KeyError) as error:
            if number == len(raw_lines) and not torn:
                break
            raise WorkdirError(
                f"{file}, line {number} is not a line of metrics: {raw[:80]!r}; delete the line, or the "
                "work directory to start afresh"
            ) from error
        lines.append((raw.decode(), line))
    return lines
