"""Files written whole or not at all, and never over an existing one unless that was asked for."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike, fspath
from pathlib import Path
from typing import BinaryIO, TypeVar

from caffe2torch.errors import InputError, OutputError
from caffe2torch.recipe import Source

__all__ = ["Counted", "bar", "check_writable", "read_text", "whole_file", "write_files"]

AnyPath = TypeVar("AnyPath", bound=str | os.PathLike[str])


def check_writable(path: str | os.PathLike[str], *, force: bool = False) -> None:
    """Refuse, before any work is done, an output that could not be written afterwards.

    Raises ``OutputError`` when ``path`` exists and ``force`` is not set, when it is a directory, or when the folder
    that should hold it is missing or cannot be written to. A device or a pipe (``/dev/stdout``) is always allowed.
    """
    target = Path(path)
    if target.is_dir():
        raise OutputError("is a directory; name a file in it", where=str(path))
    if target.exists():
        if target.is_file() and not force:
            raise OutputError(
                "exists already", where=str(path), hint="choose another name, or pass --force to replace it"
            )
        return
    folder = target.parent
    if not folder.is_dir():
        raise OutputError(f"the folder {str(folder)!r} does not exist", where=str(path), hint="create it first")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"the folder {str(folder)!r} cannot be written to", where=str(path))


def write_files(contents: Mapping[AnyPath, str], *, force: bool = False) -> None:
    """Write every text of ``contents`` (path to text), UTF-8, all of them checked before the first is written.

    Each file is written beside its place, flushed to disk and moved there in one step, so that a reader, or a crash,
    finds the old file or the new one and nothing between. Raises ``OutputError`` as ``check_writable`` does, and when
    the system refuses.
    """
    for path in contents:
        check_writable(path, force=force)
    for path, text in contents.items():
        try:
            with whole_file(path) as file:
                file.write(text.encode("utf-8"))
        except OSError as error:
            raise OutputError(f"cannot be written: {error.strerror or error}", where=str(path)) from None


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write ``path``'s new content to, which takes its place in one step when the block ends.

    It lies beside ``path``, and is flushed to disk before it is moved. When the block raises, or the process is
    killed, what ``path`` was before is still there. Raises ``OSError`` as the system does.
    """
    target = Path(path).resolve()
    if target.exists() and not target.is_file():  # a device or a pipe: moving a file over it would destroy it
        with target.open("wb") as device:
            yield device
        return
    descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())  # mkstemp makes files private; an output is an ordinary file
        Path(temporary).replace(target)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


# A progress bar for big files, on a terminal only.

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


def read_text(path: str | PathLike[str]) -> Source:
    """Read a prototxt's text. A byte that is no UTF-8 (cp1252 in an old comment) is taken as latin-1.

    Line ends stay as they are; a byte order mark is dropped.

    Raises:
        InputError: the file is missing, a directory, not readable, empty, or not text.
    """
    name = fspath(path)
    try:
        with Path(path).open("rb") as file:
            data = file.read(_HEAD)
            _check_is_text(data, name)
            data += file.read()
    except FileNotFoundError:
        raise InputError("there is no such file", where=name) from None
    except IsADirectoryError:
        raise InputError("this is a directory", where=name, expected="a prototxt file") from None
    except OSError as error:
        raise InputError(f"the file cannot be read: {error.strerror}", where=name) from None
    except ValueError:  # a null character in the path
        raise InputError("this is no file name", where=ascii(name)) from None
    text = data.decode("utf-8", "surrogateescape").translate(_STRAY).removeprefix(_BOM)
    if not text.strip():
        raise InputError("the file is empty", where=name, expected="a net or a solver as text")
    return Source(name, text)


def _check_is_text(head: bytes, name: str) -> None:
    found = next((kind for magic, kind in _BINARY.items() if head.startswith(magic)), None)
    if found is None and b"\0" in head:
        found = "binary data (a .caffemodel or .solverstate?)"
    if found is not None:
        raise InputError("this is not a text file", where=name, found=found, expected="a prototxt as UTF-8 text")
