"""Caffe's HDF5 snapshots: one group a layer, one data set a blob.

Source: ``net.cpp`` (``Net::ToHDF5``), ``sgd_solver.cpp`` (``SnapshotSolverStateToHDF5``), ``util/hdf5.cpp``.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from caffe2torch.errors import MissingExtraError, SnapshotError
from caffe2torch.snapshot.contents import LayerWeights, SolverState, Weights
from caffe2torch.snapshot.wire import Array

if TYPE_CHECKING:
    import h5py  # type: ignore[import-untyped]  # h5py ships no types

__all__ = ["read_caffemodel_hdf5", "read_solverstate_hdf5"]

_DEFLATE_LIMIT = 1100  # deflate, HDF5's usual filter, shrinks at most 1032 times: more is damage, not data


def read_caffemodel_hdf5(path: str | os.PathLike[str]) -> Weights:
    """As ``read_caffemodel``, for a file that is known to be HDF5. A name with ``/`` is a group within a group."""
    with _file(path) as file:
        if "data" not in file:
            if "iter" in file:
                raise SnapshotError(
                    "holds a solver's state, not weights", where=str(path), hint="its weights are in the .caffemodel"
                )
            raise SnapshotError("holds no group 'data': it is no .caffemodel", where=str(path))
        layers: dict[str, dict[int, Array]] = {}

        def visit(name: str, item: object) -> None:
            layer, _, index = name.rpartition("/")
            if layer and index.isdecimal() and _is_dataset(item):
                layers.setdefault(layer, {})[int(index)] = _array(path, item)

        # Visits each object once and follows only hard links, so neither a loop nor a link to another file is gone
        # into. It goes by name; the net says which layer comes first.
        file["data"].visititems(visit)
    if not layers:
        raise SnapshotError("holds no layers with blobs", where=str(path))
    return Weights(str(path), "", tuple(LayerWeights(name, _in_order(path, blobs)) for name, blobs in layers.items()))


def read_solverstate_hdf5(path: str | os.PathLike[str]) -> SolverState:
    """As ``read_solverstate``, for a file that is known to be HDF5."""
    with _file(path) as file:
        if "iter" not in file or "history" not in file:
            if "data" in file:
                raise SnapshotError(
                    "holds weights, not a solver's state", where=str(path), hint="the state is in a .solverstate"
                )
            raise SnapshotError("holds no 'iter' and 'history': it is no .solverstate", where=str(path))
        iteration = _integer(path, file, "iter")
        current_step = _integer(path, file, "current_step") if "current_step" in file else 0
        learned_net = _string(path, file, "learned_net") if "learned_net" in file else None
        group = file["history"]
        found: dict[int, Array] = {}
        for name in group:
            item = group.get(name) if name.isdecimal() else None
            if _is_dataset(item):
                found[int(name)] = _array(path, item)
    if iteration < 0 or current_step < 0:
        raise SnapshotError(f"is damaged: iteration {iteration}, step {current_step}", where=str(path))
    return SolverState(str(path), iteration, current_step, learned_net, _in_order(path, found))


@contextmanager
def _file(path: str | os.PathLike[str]) -> Iterator[h5py.File]:
    """The file, open; whatever h5py raises on damaged content becomes one ``SnapshotError``."""
    try:
        import h5py
    except ImportError:
        raise MissingExtraError(
            "is an HDF5 file, which needs h5py to read",
            where=str(path),
            hint="pip install 'caffe2torch[hdf5]'",
        ) from None
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise SnapshotError(
            f"is damaged or cut off: {error}", where=str(path), hint="fetch or copy the file again"
        ) from None


def _is_dataset(item: object) -> bool:
    import h5py

    return isinstance(item, h5py.Dataset)


def _array(path: str | os.PathLike[str], dataset: Any) -> Array:
    """A data set of floats: where it lies in the mapped file, if it lies there in one piece, as Caffe writes it.

    One in several pieces, or compressed, is read, if the file can really hold the size that it claims.
    """
    if dataset.dtype.kind != "f":
        raise SnapshotError(f"holds {dataset.dtype} in {dataset.name!r}, where Caffe writes floats", where=str(path))
    if dataset.shape is None or dataset.nbytes > dataset.id.get_storage_size() * _DEFLATE_LIMIT:
        raise SnapshotError(f"is damaged: {dataset.name!r} claims {dataset.nbytes:,} bytes", where=str(path))
    offset = dataset.id.get_offset()
    array: Array
    if offset is None or dataset.external or dataset.file.userblock_size:
        array = np.asarray(dataset[()])
    else:
        array = np.ndarray(dataset.shape, dataset.dtype, _mapped(path), offset)
    return array


def _mapped(path: str | os.PathLike[str]) -> mmap.mmap:
    with Path(path).open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _integer(path: str | os.PathLike[str], file: Any, name: str) -> int:
    item = file[name]
    if not _is_dataset(item) or item.dtype.kind not in "iu" or item.size != 1:
        raise SnapshotError(f"is damaged: {name!r} is not one whole number", where=str(path))
    return int(np.asarray(item[()]).item())


def _string(path: str | os.PathLike[str], file: Any, name: str) -> str:
    item = file[name]
    value = item[()] if _is_dataset(item) and item.shape == () and item.dtype.itemsize < 1 << 16 else None
    if not isinstance(value, bytes):
        raise SnapshotError(f"is damaged: {name!r} is not a string", where=str(path))
    return value.rstrip(b"\0").decode("utf-8", "replace")


def _in_order(path: str | os.PathLike[str], found: dict[int, Array]) -> tuple[Array, ...]:
    """The arrays by number; one that is left out would move all after it."""
    missing = sorted(set(range(len(found))) - found.keys())
    if missing:
        raise SnapshotError(
            f"is damaged: {len(found)} numbered blobs, but none with number {missing[0]}", where=str(path)
        )
    return tuple(found[index] for index in range(len(found)))
