"""Caffe's HDF5 snapshots: one group a layer, one data set a blob.

HDF5 files can do more than hold numbers: link to other files, keep a data set's bytes in any file of the machine, nest
without end, and claim sizes that take a thousand times the file to unpack. Caffe writes none of this. Links and foreign
storage are refused, names are looked at down to a depth and up to a number, and compressed numbers are unpacked only
when they are asked for (``Blobs``), which is after their shape was compared with the net's.

Source: ``net.cpp`` (``Net::ToHDF5``), ``sgd_solver.cpp`` (``SnapshotSolverStateToHDF5``), ``util/hdf5.cpp``.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from caffe2torch.errors import MissingExtraError, SnapshotError
from caffe2torch.recipe import Shape
from caffe2torch.snapshot.contents import Blobs, LayerWeights, SolverState, Weights, solver_state
from caffe2torch.snapshot.wire import Array

if TYPE_CHECKING:
    import h5py  # type: ignore[import-untyped]  # h5py ships no types

__all__ = ["read_caffemodel", "read_solverstate"]

_DEFLATE_LIMIT = 1100  # deflate, HDF5's usual filter, shrinks at most 1032 times: more is damage, not data
_CHUNK_SLACK = 1 << 20  # bytes; HDF5's own default for the chunks of small data sets
_DEEPEST = 32  # groups; a layer's name with "/" is a group within a group, and real ones have up to three
_MOST = 20_000  # objects, which take a second to look at; the largest nets have some thousands
_LONGEST_PATH = 1 << 16  # bytes of learned_net

_Blob = tuple[Shape, Callable[[], Array]]
"""A data set's shape, and what reads its numbers."""


def read_caffemodel(path: str | os.PathLike[str]) -> Weights:
    """As ``files.read_caffemodel``, for a file that is known to be HDF5. A name with ``/`` is a group in a group."""
    with _file(path) as file:
        data = _child(path, file, "data")
        if data is None:
            if "iter" in file:
                raise SnapshotError(
                    "holds a solver's state, not weights", where=str(path), hint="its weights are in the .caffemodel"
                )
            raise SnapshotError("holds no group 'data': it is no .caffemodel", where=str(path))
        mapped = _mapped(path)
        layers: dict[str, dict[int, _Blob]] = {}
        for name, item in _data_sets(path, data):  # by name, not in the file's order; the net says which comes first
            layer, _, index = name.rpartition("/")
            if layer and index.isdecimal():
                layers.setdefault(layer, {})[int(index)] = _blob(path, item, mapped)
    if not layers:
        raise SnapshotError("holds no layers with blobs", where=str(path))
    return Weights(str(path), "", tuple(LayerWeights(name, _in_order(path, blobs)) for name, blobs in layers.items()))


def read_solverstate(path: str | os.PathLike[str]) -> SolverState:
    """As ``files.read_solverstate``, for a file that is known to be HDF5."""
    with _file(path) as file:
        group = _child(path, file, "history")
        iteration = _integer(path, file, "iter")
        if iteration is None or group is None:
            if "data" in file:
                raise SnapshotError(
                    "holds weights, not a solver's state", where=str(path), hint="the state is in a .solverstate"
                )
            raise SnapshotError("holds no 'iter' and 'history': it is no .solverstate", where=str(path))
        current_step = _integer(path, file, "current_step")
        learned_net = _string(path, file, "learned_net")
        mapped = _mapped(path)
        found = {
            int(name): _blob(path, item, mapped)
            for name, item in _data_sets(path, group, deepest=1)
            if name.isdecimal()
        }
    return solver_state(str(path), iteration, current_step, learned_net, _in_order(path, found))


@contextmanager
def _file(path: str | os.PathLike[str]) -> Iterator[h5py.File]:
    """The file, open; whatever h5py raises on damaged content becomes one ``SnapshotError``."""
    try:
        import h5py
    except ImportError:
        raise MissingExtraError(
            "is an HDF5 file, which needs h5py to read",
            where=str(path),
            hint="pip install h5py",
        ) from None
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise SnapshotError(
            f"is damaged or cut off: {error}", where=str(path), hint="fetch or copy the file again"
        ) from None


def _child(path: str | os.PathLike[str], group: Any, name: str) -> Any:
    """The group or data set ``name`` of a group, ``None`` where there is none; a link to anywhere is refused."""
    import h5py

    link = group.get(name, getlink=True)
    if link is None:
        return None
    place = f"{group.name.rstrip('/')}/{name}"
    if not isinstance(link, h5py.HardLink):
        raise SnapshotError(f"holds a link at {place!r}; Caffe writes none, and none is followed", where=str(path))
    item = group[name]
    if isinstance(item, h5py.Dataset):
        if item.external or item.is_virtual:
            raise SnapshotError(f"holds {place!r}, whose numbers are in another file; none is opened", where=str(path))
        if item.chunks and prod(item.chunks) * item.dtype.itemsize > 2 * item.nbytes + _CHUNK_SLACK:
            raise SnapshotError(f"is damaged: {place!r} is in pieces larger than itself", where=str(path))
    return item


def _data_sets(path: str | os.PathLike[str], group: Any, deepest: int = _DEEPEST) -> Iterator[tuple[str, Any]]:
    """Every data set below a group, by its name from there. No group is visited twice, so that a loop ends."""
    import h5py

    seen = {_address(group)}
    below = [("", group, 1)]
    count = 0
    while below:
        prefix, parent, depth = below.pop()
        if depth > deepest:
            raise SnapshotError(f"nests groups more than {deepest} deep", where=str(path))
        for name in parent:
            if (count := count + 1) > _MOST:
                raise SnapshotError(f"holds more than {_MOST:,} objects", where=str(path))
            item = _child(path, parent, name)
            if isinstance(item, h5py.Dataset):
                yield prefix + name, item
            elif isinstance(item, h5py.Group) and (address := _address(item)) not in seen:
                seen.add(address)
                below.append((f"{prefix}{name}/", item, depth + 1))


def _address(group: Any) -> int:
    import h5py

    return int(h5py.h5o.get_info(group.id).addr)


def _blob(path: str | os.PathLike[str], dataset: Any, mapped: mmap.mmap) -> _Blob:
    """A data set of floats: where it is in the mapped file, if it is there in one piece, as Caffe writes it.

    One in several pieces, or compressed, is read when it is asked for, if the file can really hold the size that it
    claims.
    """
    if dataset.dtype.kind != "f":
        raise SnapshotError(f"holds {dataset.dtype} in {dataset.name!r}, where Caffe writes floats", where=str(path))
    if dataset.shape is None or dataset.nbytes > dataset.id.get_storage_size() * _DEFLATE_LIMIT:
        raise SnapshotError(f"is damaged: {dataset.name!r} claims {dataset.nbytes:,} bytes", where=str(path))
    offset = dataset.id.get_offset()
    if offset is None or dataset.file.userblock_size:
        return dataset.shape, partial(_unpacked, path, dataset.name, dataset.shape)
    array: Array = np.ndarray(dataset.shape, dataset.dtype, mapped, offset)
    return dataset.shape, lambda: array


def _unpacked(path: str | os.PathLike[str], name: str, shape: Shape) -> Array:
    """The numbers of a data set that was looked at before."""
    with _file(path) as file:
        parent = file
        *groups, last = name.strip("/").split("/")
        for group in groups:
            parent = _child(path, parent, group)
        dataset = _child(path, parent, last)
        if dataset.shape != shape:
            raise SnapshotError(f"has changed since it was opened: {name!r}", where=str(path))
        array: Array = np.asarray(dataset[()])
    return array


def _mapped(path: str | os.PathLike[str]) -> mmap.mmap:
    with Path(path).open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _integer(path: str | os.PathLike[str], file: Any, name: str) -> int | None:
    item = _child(path, file, name)
    if item is None:
        return None
    if not _is_dataset(item) or item.dtype.kind not in "iu" or item.size != 1:
        raise SnapshotError(f"is damaged: {name!r} is not one whole number", where=str(path))
    return int(np.asarray(item[()]).item())


def _string(path: str | os.PathLike[str], file: Any, name: str) -> str | None:
    item = _child(path, file, name)
    if item is None:
        return None
    value = item[()] if _is_dataset(item) and item.shape == () and item.dtype.itemsize < _LONGEST_PATH else None
    if not isinstance(value, bytes):
        raise SnapshotError(f"is damaged: {name!r} is not a string", where=str(path))
    return value.rstrip(b"\0").decode("utf-8", "replace")


def _is_dataset(item: object) -> bool:
    import h5py

    return isinstance(item, h5py.Dataset)


def _in_order(path: str | os.PathLike[str], found: dict[int, _Blob]) -> Blobs:
    """The blobs by number; one that is left out would move all after it."""
    missing = sorted(set(range(len(found))) - found.keys())
    if missing:
        raise SnapshotError(
            f"is damaged: {len(found)} numbered blobs, but none with number {missing[0]}", where=str(path)
        )
    blobs = [found[index] for index in range(len(found))]
    return Blobs((shape for shape, _ in blobs), (read for _, read in blobs))
