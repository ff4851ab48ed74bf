"""A progress bar for big files, on a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

__all__ = ["Counted", "bar"]

_WORTH_SHOWING = 128 << 20  # bytes; less is done before a bar could be read


@contextmanager
def bar(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show how many of ``total`` bytes are done: the function given back is called with each portion.

    Nothing is shown, and rich is not loaded, when stderr is no terminal or the work is small.

    >>> with bar("reading", 10) as advance:
    ...     advance(10)
    """
    if total < _WORTH_SHOWING or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(description, total=total)
        yield lambda portion: progress.advance(task, portion)


class Counted:
    """A file that tells how much is written to it."""

    def __init__(self, file: BinaryIO, advance: Callable[[int], None]) -> None:
        self.file, self.advance = file, advance

    def write(self, data: bytes) -> int:
        """Write, and say so."""
        self.advance(len(data))
        return self.file.write(data)

    def flush(self) -> None:
        """Hand on what was written."""
        self.file.flush()
