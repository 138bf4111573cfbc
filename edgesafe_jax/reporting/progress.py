"""One progress bar for all long work: on stderr, gone when it is done, silent where nobody looks."""

import sys
from types import TracebackType
from typing import Self

from tqdm import tqdm


class ProgressBar:
    """A bar that is called with (done, total) and shows how long the rest will take."""

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
        """Takes the bar away."""
        self._bar.close()
