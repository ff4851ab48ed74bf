"""Files read as text, and a progress bar for big ones."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike, fspath
from pathlib import Path
from typing import BinaryIO

from caffe2torch.errors import InputError, visible
from caffe2torch.recipe import Source

__all__ = ["Counted", "bar", "read_text"]

# A progress bar for big files, on a terminal only.

_WORTH_SHOWING = 128 << 20  # bytes; less is done before a bar could be read


@contextmanager
def bar(description: str, total: int, *, unit: str = "bytes") -> Iterator[Callable[[int], None]]:
    """Show on a terminal how much of ``total`` is done: the function given back is called with each portion.

    Nothing is shown, and rich is not loaded, when stderr is no terminal or few bytes are to be moved.

    >>> with bar("reading", 10) as advance:
    ...     advance(10)
    """
    small = unit == "bytes" and total < _WORTH_SHOWING
    if small or sys.stderr is None or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    done = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), done, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(visible(description), total=total)
        yield lambda portion: progress.advance(task, portion)


class Counted:
    """A file that reports how much is written to it."""

    def __init__(self, file: BinaryIO, advance: Callable[[int], None]) -> None:
        self.file, self.advance = file, advance

    def write(self, data: bytes) -> int:
        """Write, and report how much."""
        self.advance(len(data))
        return self.file.write(data)

    def flush(self) -> None:
        """Flush the file."""
        self.file.flush()


# A file to text, as Caffe would see it: bytes that are no UTF-8 are kept, what is no text at all is refused.

_HEAD = 1 << 16  # enough to see that a file is binary before all of a .caffemodel is read
_BOM = "\N{ZERO WIDTH NO-BREAK SPACE}"
_STRAY = {0xDC00 + byte: byte for byte in range(0x80, 0x100)}  # surrogateescape's stand-ins, to latin-1
_BINARY = {
    b"\x89HDF": "HDF5 (a .caffemodel.h5 or .solverstate.h5?)",
    b"PK\x03\x04": "a zip archive (a PyTorch checkpoint?)",
    b"\x1f\x8b": "a gzip archive",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}


def read_text(path: str | PathLike[str], *, expected: str = "a net or a solver as text") -> Source:
    """Read a text file. A byte that is no UTF-8 (cp1252 in an old comment) is taken as latin-1.

    Line ends stay as they are; a byte order mark is dropped.

    Args:
        path: The file.
        expected: What the caller looks for in it, for the error that says it is something else.

    Raises:
        InputError: the file is missing, a directory, not readable, empty, or not text.
    """
    name = fspath(path)
    try:
        with Path(path).open("rb") as file:
            data = file.read(_HEAD)
            _check_is_text(data, name, expected)
            data += file.read()
    except FileNotFoundError:
        raise InputError("there is no such file", where=name, hint=_near(Path(path))) from None
    except IsADirectoryError:
        raise InputError("this is a directory", where=name, expected=expected) from None
    except OSError as error:
        raise InputError(f"the file cannot be read: {error.strerror}", where=name) from None
    except ValueError:  # a null character in the path
        raise InputError("this is no file name", where=ascii(name)) from None
    text = data.decode("utf-8", "surrogateescape").translate(_STRAY).removeprefix(_BOM)
    if not text.strip():
        raise InputError("the file is empty", where=name, expected=expected)
    return Source(name, text)


def _near(path: Path) -> str | None:
    """The files of the same folder that may be meant."""
    from caffe2torch.wording import did_you_mean

    try:
        return did_you_mean(path.name, (one.name for one in path.parent.iterdir() if one.is_file()), 0.6)
    except OSError:
        return None


def _check_is_text(head: bytes, name: str, expected: str) -> None:
    found = next((kind for magic, kind in _BINARY.items() if head.startswith(magic)), None)
    if found is None and b"\0" in head:
        found = "binary data (a .caffemodel or .solverstate?)"
    if found is not None:
        raise InputError("this is not a text file", where=name, found=found, expected=expected)
