"""A file to text, as Caffe would see it: bytes that are no UTF-8 are kept, what is no text at all is refused."""

from __future__ import annotations

import re
from os import PathLike, fspath
from pathlib import Path

from caffe2torch.errors import InputError
from caffe2torch.recipe import Source

__all__ = ["read_text"]

_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
_BOM = "\N{ZERO WIDTH NO-BREAK SPACE}"
_SMUGGLED = {0xDC00 + byte: byte for byte in range(0x80, 0x100)}  # surrogateescape's stand-ins, read as latin-1
_KINDS = (
    (b"\x89HDF", "an HDF5 file (a .caffemodel.h5 or .solverstate.h5, perhaps)"),
    (b"PK\x03\x04", "a zip archive (a torch checkpoint, perhaps)"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\xff\xfe", "UTF-16 text"),
    (b"\xfe\xff", "UTF-16 text"),
)


def read_text(path: str | PathLike[str]) -> Source:
    """Read a prototxt's text. A byte that is no UTF-8 (cp1252 in an old comment) is taken as latin-1.

    Line ends stay as they are; a byte order mark is dropped.

    Raises:
        InputError: the file is missing, a directory, not readable, empty, or not text.
    """
    name = fspath(path)
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError("no such file", where=name) from None
    except IsADirectoryError:
        raise InputError("a directory", where=name, expected="a prototxt file") from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=name) from None
    for magic, kind in _KINDS:
        if data.startswith(magic):
            raise InputError("not a text file", where=name, found=kind, expected="a prototxt, which is UTF-8 text")
    text = data.decode("utf-8", "surrogateescape").translate(_SMUGGLED).removeprefix(_BOM)
    if not text.strip():
        raise InputError("the file is empty", where=name, expected="a net or a solver as text")
    if (control := _CONTROL.search(text)) is not None:
        line = text.count("\n", 0, control.start()) + 1
        raise InputError(
            "not a text file",
            where=name,
            found=f"the control character {ascii(control[0])} in line {line}",
            expected="a prototxt, which is UTF-8 text",
            hint="a .caffemodel or .solverstate holds weights, not the net's description",
        )
    return Source(name, text)
