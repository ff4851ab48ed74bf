"""``.caffemodel`` and ``.solverstate`` to arrays: what a Caffe run left behind, binary or HDF5, of any fork.

The two messages share a handful of fields among all forks (names, types, blobs); everything else, where forks clash,
is skipped. Arrays are in the mapped file: reading costs no memory before the numbers are used, and the file must
stay as it is until then.

Source: ``net.cpp`` (``Net::ToProto``, ``Net::ToHDF5``), ``sgd_solver.cpp`` (``SnapshotSolverStateTo...``).
"""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Protocol

from caffe2torch.errors import InputError, SnapshotError
from caffe2torch.snapshot.contents import Blobs, LayerWeights, SolverState, Weights, solver_state
from caffe2torch.snapshot.wire import Array, DamagedError, Wire, WireField, fields, read_blob, signed, text

__all__ = ["LayerWeights", "SolverState", "Weights", "find_learned_net", "read_caffemodel", "read_solverstate"]


def read_caffemodel(path: str | os.PathLike[str]) -> Weights:
    """Read a ``.caffemodel``: binary of any fork and age (``layer``, V1 and V0 ``layers``), or HDF5.

    Args:
        path: The file, which must stay as it is while the arrays are used.

    Returns:
        Its layers that have blobs, as float arrays in Caffe's shapes.

    Raises:
        InputError: The file cannot be read.
        SnapshotError: It is damaged, or something else.
        MissingExtraError: It is HDF5, and h5py is not installed.
    """
    data, reader = _open(path)
    if reader is not None:
        return reader.read_caffemodel(path)
    layers: list[LayerWeights] = []
    net_name = ""
    try:
        for field in fields(data):
            match field.number, field.wire:
                case (1, Wire.BYTES):
                    net_name = text(data, field)
                case (1, Wire.VARINT) if not layers:
                    raise SnapshotError(
                        "holds a solver's state, not weights",
                        where=str(path),
                        hint="its weights are in the .caffemodel",
                    )
                case (100, Wire.BYTES):
                    layers.append(_layer(data, field, name=1, blobs=7))
                case (2, Wire.BYTES):
                    layers.append(_layer(data, field, name=4, blobs=6, inner=1))
    except DamagedError as error:
        raise _damaged(path, data, error, f"layer {len(layers) + 1} of the file") from None
    if not layers:
        raise SnapshotError("holds no layers: it is no .caffemodel", where=str(path))
    return Weights(str(path), net_name, tuple(layer for layer in layers if len(layer.blobs)))


def read_solverstate(path: str | os.PathLike[str]) -> SolverState:
    """Read a ``.solverstate``, binary or HDF5; the weights that belong to it are in another file (``learned_net``).

    Args:
        path: The file, which must stay as it is while the arrays are used.

    Returns:
        Its counters and its history.

    Raises:
        InputError: The file cannot be read.
        SnapshotError: It is damaged, or something else.
        MissingExtraError: It is HDF5, and h5py is not installed.
    """
    data, reader = _open(path)
    if reader is not None:
        return reader.read_solverstate(path)
    iteration: int | None = None
    current_step: int | None = None
    learned_net: str | None = None
    history: list[Array] = []
    try:
        for field in fields(data):
            match field.number, field.wire:
                case (1, Wire.VARINT):
                    iteration = signed(field.value)
                case (2, Wire.BYTES):
                    learned_net = text(data, field)
                case (3, Wire.BYTES):
                    history.append(read_blob(data, field.start, field.end))
                case (4, Wire.VARINT):
                    current_step = signed(field.value)
                case (1 | 100, Wire.BYTES):
                    raise SnapshotError(
                        "holds weights, not a solver's state", where=str(path), hint="the state is in a .solverstate"
                    )
    except DamagedError as error:
        raise _damaged(path, data, error, f"history {len(history)}") from None
    if iteration is None:
        raise SnapshotError("holds no iteration: it is no .solverstate", where=str(path))
    return solver_state(str(path), iteration, current_step, learned_net, Blobs.of(history))


def find_learned_net(state: SolverState) -> Path:
    """Where the weights that belong to ``state`` are: at its own path, else beside the state file under that name.

    Raises:
        SnapshotError: The state names no file, or one that is at neither place.
    """
    if not state.learned_net:
        raise SnapshotError("names no file of weights", where=state.file, hint="say which .caffemodel belongs to it")
    # A path written on Windows has backslashes; a backslash in a POSIX file name is not something Caffe's users do.
    name = PurePosixPath(PureWindowsPath(state.learned_net).as_posix()).name
    places = [Path(state.learned_net), Path(state.file).parent / name]
    for place in places:
        if place.is_file():
            return place
    raise SnapshotError(
        f"its weights, {state.learned_net!r}, are not there",
        where=state.file,
        expected=" or ".join(dict.fromkeys(str(place) for place in places)),
        hint="put the .caffemodel beside the state, or say where it is (--weights)",
    )


class Reader(Protocol):
    """A module that reads one format, in a file that is known to have it."""

    def read_caffemodel(self, path: str | os.PathLike[str]) -> Weights:
        """The weights."""

    def read_solverstate(self, path: str | os.PathLike[str]) -> SolverState:
        """The solver's state."""


def _hdf5() -> Reader:
    from caffe2torch.snapshot import hdf5

    return hdf5


_FORMATS = ((b"\x89HDF\r\n\x1a\n", (0, 512, 1024, 2048), _hdf5),)  # HDF5 lets its user put bytes before it
"""Formats other than protobuf: what their files begin with, at which byte, and the module that reads them."""

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def _open(path: str | os.PathLike[str]) -> tuple[memoryview, Reader | None]:
    """The file mapped into memory, and what reads it where it is not binary protobuf.

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
    for signature, places, reader in _FORMATS:
        if any(bytes(data[start : start + len(signature)]) == signature for start in places):
            return data, reader()
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
    return data, None


def _layer(data: memoryview, message: WireField, *, name: int, blobs: int, inner: int | None = None) -> LayerWeights:
    """A layer message: the field numbers of its name and its blobs, and of the V0 layer that a V1 layer may wrap."""
    found, arrays = "", []
    for field in fields(data, message.start, message.end):
        if field.wire is not Wire.BYTES:
            continue
        if field.number == name:
            found = text(data, field)
        elif field.number == blobs:
            try:
                arrays.append(read_blob(data, field.start, field.end))
            except DamagedError as error:
                raise DamagedError(error.offset, f"layer {found!r}, blob {len(arrays)}: {error}") from None
        elif field.number == inner:
            wrapped = _layer(data, field, name=1, blobs=50)
            found, arrays = wrapped.name or found, [*arrays, *wrapped.blobs]
    return LayerWeights(found, Blobs.of(arrays))


def _damaged(path: str | os.PathLike[str], data: memoryview, error: DamagedError, what: str) -> SnapshotError:
    return SnapshotError(
        f"is damaged or cut off at byte {error.offset:,} of {len(data):,}, in {what}: {error}",
        where=str(path),
        hint="fetch or copy the file again, and compare its size",
    )
