"""What a snapshot holds, whichever format it was written in."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from pathlib import Path

from caffe2torch.errors import InputError, SnapshotError
from caffe2torch.snapshot.wire import Array

__all__ = ["LayerWeights", "SolverState", "Weights", "open_snapshot"]


@dataclass(frozen=True, slots=True, eq=False)
class LayerWeights:
    """A layer's blobs as its file has them: Caffe's order, layout and shape (old files: always four axes)."""

    name: str
    blobs: tuple[Array, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """What a ``.caffemodel`` holds: the layers that have blobs, in the file's order.

    A blob that several layers share stands under each of them in a binary file, under the first in an HDF5 file.
    """

    file: str
    net_name: str
    layers: tuple[LayerWeights, ...]


@dataclass(frozen=True, slots=True, eq=False)
class SolverState:
    """What a ``.solverstate`` holds.

    ``iteration`` counts the updates done; ``current_step`` those of the multistep policy. ``learned_net`` is the
    ``.caffemodel``'s path as the solver wrote it, relative to the folder it ran in. ``history`` is in the order of
    the learnable blobs, once or (Adam, AdaDelta) twice through.
    """

    file: str
    iteration: int
    current_step: int
    learned_net: str | None
    history: tuple[Array, ...]


# A snapshot's file, mapped into memory, or why it is none.

_HDF5 = b"\x89HDF\r\n\x1a\n"
_HDF5_PLACES = (0, 512, 1024, 2048)  # what lies before it is its user's


def open_snapshot(path: str | os.PathLike[str]) -> memoryview | None:
    """The file mapped into memory, or ``None`` when it is HDF5.

    Raises ``InputError`` for what cannot be read, ``SnapshotError`` for what is plainly something else.
    """
    place = Path(path)
    if place.is_dir():
        raise InputError("is a folder", where=str(path), hint="name the file in it")
    if place.exists() and not place.is_file():  # a pipe would be waited for, and cannot be mapped
        raise InputError("is no ordinary file", where=str(path), hint="write it to a file first")
    try:
        with place.open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise InputError("is empty", where=str(path))
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", where=str(path)) from None
    head = bytes(data[:512])
    if any(bytes(data[start : start + len(_HDF5)]) == _HDF5 for start in _HDF5_PLACES):
        return None
    if head.startswith(b"PK\x03\x04"):
        raise SnapshotError(
            "is a zip archive, perhaps a checkpoint of PyTorch, and no file of Caffe's", where=str(path)
        )
    if all(byte >= 32 or byte in b"\t\n\r\f" for byte in head):
        raise SnapshotError(
            "is text; Caffe's snapshots are binary",
            where=str(path),
            hint="a prototxt holds no weights; give the .caffemodel or .solverstate itself",
        )
    return data
