"""A file to text, as Caffe would see it: bytes that are no UTF-8 are kept, what is no text at all is refused."""

from __future__ import annotations

from os import PathLike, fspath
from pathlib import Path

from caffe2torch.errors import InputError
from caffe2torch.recipe import Source

__all__ = ["read_text"]

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
