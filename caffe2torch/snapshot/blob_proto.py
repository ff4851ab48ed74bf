"""A ``BlobProto`` to an array: every way in which Caffe and its forks have written numbers.

Source: ``caffe.proto`` (``BlobProto``, ``BlobShape``) and ``blob.cpp`` (``Blob::FromProto``).
"""

from __future__ import annotations

from enum import IntEnum
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffe2torch.snapshot.wire import DamagedError, Wire, WireField, fields, signed, varints

__all__ = ["Array", "read_blob"]

Array = NDArray[np.floating[Any]]


class _Blob(IntEnum):
    """Field numbers of ``BlobProto``, those of NVIDIA's and the OpenCL forks included (they clash only in 10 to 13)."""

    NUM = 1
    CHANNELS = 2
    HEIGHT = 3
    WIDTH = 4
    DATA = 5
    SHAPE = 7
    DOUBLE_DATA = 8
    NVIDIA_RAW_DATA_TYPE = 10
    OPENCL_PACKED_DATA = 11
    NVIDIA_RAW_DATA = 12


_NVIDIA_TYPES = {0: "<f8", 1: "<f4", 2: "<f2"}  # enum Type: DOUBLE, FLOAT, FLOAT16
_MOST_AXES = 32  # blob.hpp, kMaxBlobAxes
_LONGEST_SHAPE = 1024  # bytes; 32 axes take 352 at most


def read_blob(data: memoryview, start: int, end: int) -> Array:
    """The blob in ``data[start:end]`` as a read-only array of its shape that shares ``data``'s memory.

    ``num``, ``channels``, ``height`` and ``width``, where a file has them, give a shape of four axes, as they do in
    Caffe. Numbers come from ``data`` (packed or not), ``double_data``, or NVIDIA's ``raw_data``; only a blob whose
    numbers stand in several pieces is copied. Little-endian, float32 unless the file says otherwise, not
    necessarily aligned.

    Raises ``DamagedError`` for what is no blob, or has not as many numbers as its shape asks for.
    """
    legacy: list[int] | None = None
    dims: list[int] = []
    single: list[Array] = []
    double: list[Array] = []
    raw: WireField | None = None
    raw_type = 0
    for field in fields(data, start, end):
        match field.number, field.wire:
            case (_Blob.NUM | _Blob.CHANNELS | _Blob.HEIGHT | _Blob.WIDTH, Wire.VARINT):
                legacy = legacy or [0, 0, 0, 0]
                legacy[field.number - _Blob.NUM] = signed(field.value)
            case (_Blob.SHAPE, Wire.BYTES):
                dims += _dims(data, field)
            case (_Blob.DATA, Wire.BYTES | Wire.FIXED32):
                single.append(_numbers(data, field, "<f4"))
            case (_Blob.DOUBLE_DATA, Wire.BYTES | Wire.FIXED64):
                double.append(_numbers(data, field, "<f8"))
            case (_Blob.NVIDIA_RAW_DATA_TYPE, Wire.VARINT):
                raw_type = field.value
            case (_Blob.NVIDIA_RAW_DATA, Wire.BYTES):
                raw = field
            case (_Blob.OPENCL_PACKED_DATA, Wire.BYTES):
                raise DamagedError(field.start, "its numbers are packed as only the OpenCL branch of Caffe reads them")
            case (_Blob.DATA | _Blob.SHAPE | _Blob.DOUBLE_DATA, _):
                raise DamagedError(field.start, f"field {field.number} of a blob is of another kind than Caffe's")
    shape = tuple(dims if legacy is None else legacy)
    written = "x".join(map(str, shape)) or "no axes"
    if len(shape) > _MOST_AXES or min(shape, default=0) < 0:
        raise DamagedError(start, f"a blob cannot have the shape {written}")
    pieces = double or single
    if raw is not None:
        if raw_type not in _NVIDIA_TYPES:
            raise DamagedError(raw.start, f"raw_data of type {raw_type} is not read, only double, float and float16")
        pieces = [_numbers(data, raw, _NVIDIA_TYPES[raw_type])]
    count = sum(piece.size for piece in pieces)
    if count != prod(shape):
        raise DamagedError(start, f"a blob holds {count:,} numbers for the shape {written}, which has {prod(shape):,}")
    if not pieces:
        pieces = [np.zeros(0, "<f4")]
    array = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    array.flags.writeable = False
    return array.reshape(shape)


def _dims(data: memoryview, shape: WireField) -> list[int]:
    """The sizes in a ``BlobShape``."""
    if shape.end - shape.start > _LONGEST_SHAPE:
        raise DamagedError(shape.start, f"a blob's shape takes {shape.end - shape.start:,} bytes")
    dims: list[int] = []
    for field in fields(data, shape.start, shape.end):
        if field.number == 1 and field.wire in (Wire.VARINT, Wire.BYTES):
            dims += [signed(number) for number in varints(data, field)]
    if max(dims, default=0) >= 1 << 31:
        raise DamagedError(shape.start, f"a blob has an axis of {max(dims):,}; Caffe counts up to {(1 << 31) - 1:,}")
    return dims


def _numbers(data: memoryview, field: WireField, dtype: str) -> Array:
    """The numbers of a field where they lie: side by side when packed, else with their tags between them."""
    size = field.end - field.start
    if field.wire is not Wire.BYTES:
        records = np.dtype([("tag", np.uint8, (field.tag,)), ("number", dtype)])
        tagged: Array = np.frombuffer(data, records, size // records.itemsize, field.start)["number"]
        return tagged
    item = np.dtype(dtype).itemsize
    if size % item:
        raise DamagedError(field.start, f"{size:,} bytes of numbers that take {item} each")
    return np.frombuffer(data, dtype, size // item, field.start)
