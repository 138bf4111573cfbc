"""The progress bar of all long work: on stderr, removed when the work is done."""

import sys
from types import TracebackType
from typing import Self

from tqdm import tqdm


class ProgressBar:
    """A bar that is called with (done, total) and shows an estimate of the remaining time."""

    def __init__(self, what: str):
        self._bar = tqdm(desc=what, unit="", file=sys.stderr, dynamic_ncols=True, leave=False, mininterval=0.5)

    def __call__(self, done: int, total: int) -> None:
        """Moves the bar to `done` of `total`."""
        self._bar.total = total
        self._bar.n = done
        self._bar.refresh()

    def __enter__(self) -> Self:
        """Shows the bar."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Removes the bar."""
        self._bar.close()
