"""Scalars of every training step, as JSON lines and for TensorBoard."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np

from edgesafe_jax.errors import ConfigError
from edgesafe_jax.training.workdir import WorkdirError, to_json, write_text

METRICS = "metrics.jsonl"
_RESERVED = ("step", "time")


class MetricWriter:
    """Appends scalars to ``metrics.jsonl`` and to TensorBoard.

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

    def __init__(self, workdir: str | os.PathLike[str], *, tensorboard: bool = True):
        """Prepares a writer; no file is touched before the first `resume` or `write`.

        Args:
          workdir: the run's directory.
          tensorboard: whether to write ``tensorboard/`` too.
        """
        self._workdir = Path(workdir)
        self._use_tensorboard = tensorboard
        self._file: IO[str] | None = None
        self._board: Any = None

    def resume(self, step: int) -> None:
        """Drops, atomically, what an interrupted run wrote for this step and later ones.

        Args:
          step: the first step that will be written next; 0 for a run from the start.
        """
        self.close()
        self._open(step)

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
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, number in numbers.items():
                self._board.add_scalar(name, float(number), step, walltime=now)

    def sync(self) -> None:
        """Waits until everything written is on the disk.

        Raises:
          WorkdirError: the file was moved or deleted since it was opened.
        """
        if self._file is not None:
            os.fsync(self._file.fileno())
            file = self._workdir / METRICS
            if not file.exists() or not os.path.samestat(os.fstat(self._file.fileno()), file.stat()):
                raise WorkdirError(
                    f"{file} was moved or deleted while the run was writing it: the run stops before it writes half of "
                    "its files there. Start the same command with the directory's new place; it continues from the "
                    "last checkpoint"
                )
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        """Closes the files; a later `write` opens them again."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()
        self._file = self._board = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self, step: int | None) -> None:
        file = self._workdir / METRICS
        if file.exists():
            kept = [raw for raw, line in _lines(file) if step is None or line["step"] < step]
            text = "".join(raw + "\n" for raw in kept)
            if len(text.encode()) != file.stat().st_size:
                write_text(file, text)
        self._workdir.mkdir(parents=True, exist_ok=True)
        self._file = file.open("a", encoding="utf-8")
        if self._use_tensorboard:
            from tensorboardX import SummaryWriter

            # TensorBoard itself drops the points of earlier files from purge_step on.
            # The suffix, because the name alone has whole seconds and a second file would replace the first.
            suffix = f".{time.time_ns()}"
            self._board = SummaryWriter(str(self._workdir / "tensorboard"), purge_step=step, filename_suffix=suffix)


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
