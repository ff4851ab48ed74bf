"""Files written whole or not at all, and never over an existing one unless that was asked for."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

from caffe2torch.errors import OutputError

__all__ = ["check_writable", "whole_file", "write_files"]

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
