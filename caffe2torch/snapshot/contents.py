"""What a snapshot holds, whichever format it was written in."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from caffe2torch.errors import InputError, SnapshotError
from caffe2torch.recipe import Shape
from caffe2torch.snapshot.wire import Array

__all__ = ["Blobs", "LayerWeights", "SolverState", "Weights", "open_snapshot", "solver_state"]

_LARGEST_COUNT = (1 << 31) - 1  # Caffe counts iterations and steps as int


class Blobs(Sequence[Array]):
    """Arrays of a snapshot in order, whose shapes are known before their numbers are read.

    The numbers of an array are read when it is asked for, where they are not in the mapped file as they are. So a file
    costs what the net takes of it, whatever else it holds.
    """

    def __init__(self, shapes: Iterable[Shape], read: Iterable[Callable[[], Array]]) -> None:
        self.shapes = tuple(shapes)
        self._read = tuple(read)

    @classmethod
    def of(cls, arrays: Iterable[Array]) -> Blobs:
        """Arrays that are there already."""
        held = tuple(arrays)
        return cls((array.shape for array in held), (lambda array=array: array for array in held))  # type: ignore[misc]  # mypy does not infer lambdas with defaults

    def __len__(self) -> int:
        return len(self.shapes)

    @overload
    def __getitem__(self, index: int) -> Array: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Array, ...]: ...

    def __getitem__(self, index: int | slice) -> Array | tuple[Array, ...]:
        if isinstance(index, slice):
            return tuple(read() for read in self._read[index])
        return self._read[index]()


@dataclass(frozen=True, slots=True, eq=False)
class LayerWeights:
    """A layer's blobs as its file has them: Caffe's order, layout and shape (old files: always four axes)."""

    name: str
    blobs: Blobs


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

    ``iteration`` counts the updates done; ``current_step`` those of the multistep policy, ``None`` where the file does
    not say (Caffe takes 0). ``learned_net`` is the ``.caffemodel``'s path as the solver wrote it, relative to the
    folder it ran in. ``history`` is in the order of the learnable blobs, once or (Adam, AdaDelta) twice through.
    """

    file: str
    iteration: int
    current_step: int | None
    learned_net: str | None
    history: Blobs


def solver_state(
    file: str, iteration: int, current_step: int | None, learned_net: str | None, history: Blobs
) -> SolverState:
    """A state whose counters Caffe can have written.

    Raises:
        SnapshotError: A counter is negative, or larger than Caffe's ``int``.
    """
    for name, count in (("iteration", iteration), ("step", current_step or 0)):
        if not 0 <= count <= _LARGEST_COUNT:
            raise SnapshotError(
                f"is damaged: {name} {count}", where=file, expected=f"a count from 0 to {_LARGEST_COUNT:,}"
            )
    return SolverState(file, iteration, current_step, learned_net, history)


# A snapshot's file, mapped into memory, or why it is none.

_HDF5 = b"\x89HDF\r\n\x1a\n"
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_HDF5_PLACES = (0, 512, 1024, 2048)  # the bytes before it are its user's


def open_snapshot(path: str | os.PathLike[str]) -> memoryview | None:
    """The file mapped into memory, or ``None`` when it is HDF5.

    Raises:
        InputError: The file cannot be read.
        SnapshotError: It is plainly something else.
    """
    place = Path(path)
    try:
        mode = place.stat().st_mode
        if stat.S_ISDIR(mode):
            raise InputError("is a folder", where=str(path), hint="name the file in it")
        if not stat.S_ISREG(mode):  # a pipe would be waited for, and cannot be mapped
            raise InputError("is no ordinary file", where=str(path), hint="write it to a file first")
        with place.open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise InputError("is empty", where=str(path), expected="a .caffemodel or .solverstate")
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", where=str(path)) from None
    except ValueError:  # a null character in the path
        raise InputError("is no file name", where=str(path)) from None
    head = bytes(data[:512])
    if any(bytes(data[start : start + len(_HDF5)]) == _HDF5 for start in _HDF5_PLACES):
        return None
    if head.startswith(b"PK\x03\x04"):
        raise SnapshotError(
            "is a zip archive, perhaps a checkpoint of PyTorch, and no file of Caffe's", where=str(path)
        )
    if head.startswith(_LFS_POINTER):
        raise SnapshotError(
            "is a Git LFS pointer: it says where the file is, and is not the file",
            where=str(path),
            hint="fetch the file itself, in its repository: git lfs pull",
        )
    if all(byte >= 32 or byte in b"\t\n\r\f" for byte in head):
        raise SnapshotError(
            "is text; Caffe's snapshots are binary",
            where=str(path),
            hint="a prototxt holds no weights; give the .caffemodel or .solverstate itself",
        )
    return data
