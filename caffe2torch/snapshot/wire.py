"""Protobuf's wire format, read in place: which fields a message has and where their bytes are.

A snapshot is a few hundred fields around hundreds of megabytes of numbers. Protobuf's own parser copies the numbers
twice on their way to an array (measured on 504 MB: three times the file in memory, and three times the time of
reading it); here they stay where the operating system mapped them. Only what proto2 files of Caffe use is known:
varints, fixed-size numbers and length-delimited fields. Everything else is damage.

Source: protobuf's documentation, "Encoding".
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "DamagedError", "Wire", "WireField", "fields", "read_blob", "signed", "text"]


class Wire(IntEnum):
    """How a field's value is laid out."""

    VARINT = 0
    FIXED64 = 1
    BYTES = 2
    FIXED32 = 5


_SIZE = {Wire.FIXED64: 8, Wire.FIXED32: 4}


class DamagedError(Exception):
    """Bytes that are no protobuf message; ``offset`` counts from the start of the file."""

    def __init__(self, offset: int, message: str) -> None:
        super().__init__(message)
        self.offset = offset


class WireField(NamedTuple):
    """One field: ``value`` of a varint, else the bytes from ``start`` to ``end``.

    Fixed-size numbers that follow each other under one tag, as old protobufs write a repeated field, are one
    ``WireField``: records of ``tag`` bytes and a number, from ``start`` to ``end``.
    """

    number: int
    wire: Wire
    value: int
    start: int
    end: int
    tag: int


def fields(data: memoryview, start: int = 0, end: int | None = None) -> Iterator[WireField]:
    """Yield the fields of a message in order.

    Args:
        data: The bytes of a file.
        start: Where the message begins.
        end: Where it ends; ``None`` for the end of ``data``.

    Raises:
        DamagedError: The bytes stop being a message, or reach past ``end``.

    >>> list(fields(memoryview(b"\\x08\\x96\\x01")))[0].value
    150
    """
    end = len(data) if end is None else end
    while start < end:
        key, body = _varint(data, start, end)
        number, code = key >> 3, key & 7
        if not 0 < number < 1 << 29 or code not in (0, 1, 2, 5):
            raise DamagedError(start, f"no protobuf field starts with the bytes {bytes(data[start:body]).hex(' ')}")
        wire = Wire(code)
        if wire is Wire.VARINT:
            value, stop = _varint(data, body, end)
            yield WireField(number, wire, value, body, stop, 0)
        elif wire is Wire.BYTES:
            size, body = _varint(data, body, end)
            stop = body + size
            if stop > end:
                raise DamagedError(start, f"a field of {size:,} bytes begins where only {end - body:,} are left")
            yield WireField(number, wire, 0, body, stop, 0)
        else:
            stop = start + _run(data, start, end, body - start, _SIZE[wire])
            if stop == start:
                raise DamagedError(start, "a number is cut off")
            yield WireField(number, wire, 0, start, stop, body - start)
        start = stop


def varints(data: memoryview, field: WireField) -> list[int]:
    """The numbers of a repeated varint field: one, or many where they are packed."""
    if field.wire is Wire.VARINT:
        return [field.value]
    numbers, position = [], field.start
    while position < field.end:
        number, position = _varint(data, position, field.end)
        numbers.append(number)
    return numbers


def signed(value: int) -> int:
    """A varint as the two's-complement number that proto2's ``int32`` and ``int64`` mean by it.

    >>> signed(2**64 - 1)
    -1
    """
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def text(data: memoryview, field: WireField) -> str:
    """A string field. Caffe writes any bytes; those that are no UTF-8 read as Latin-1."""
    raw = bytes(data[field.start : field.end])
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _varint(data: memoryview, start: int, end: int) -> tuple[int, int]:
    """The number at ``start``, and the place of the next byte."""
    value = 0
    for shift in range(0, 70, 7):
        if start >= end:
            raise DamagedError(start, "a number is cut off")
        byte = data[start]
        start += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, start
    raise DamagedError(start, "a number takes more than ten bytes")


def _run(data: memoryview, start: int, end: int, tag: int, size: int) -> int:
    """How many bytes, from ``start`` on, are whole records of the same tag and a number of ``size`` bytes.

    Looks ahead by chunks that double, so that a run costs in proportion to its length however many runs there are.
    """
    record, chunk, found = tag + size, 1, 0
    first = np.frombuffer(data, np.uint8, tag, start)
    while (ahead := min(chunk, (end - start) // record - found)) > 0:
        rows = np.frombuffer(data, np.uint8, ahead * record, start + found * record).reshape(ahead, record)
        same = (rows[:, :tag] == first).all(axis=1)
        if not same.all():
            return (found + int(same.argmin())) * record
        found += ahead
        chunk = min(2 * chunk, 1 << 20)
    return found * record


# A ``BlobProto`` to an array: every way in which Caffe and its forks have written numbers.
#
# Source: ``caffe.proto`` (``BlobProto``, ``BlobShape``) and ``blob.cpp`` (``Blob::FromProto``).

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

    Raises:
        DamagedError: It is no blob, or has not as many numbers as its shape asks for.
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
    """The numbers of a field where they are: side by side when packed, else with their tags between them."""
    size = field.end - field.start
    if field.wire is not Wire.BYTES:
        records = np.dtype([("tag", np.uint8, (field.tag,)), ("number", dtype)])
        tagged: Array = np.frombuffer(data, records, size // records.itemsize, field.start)["number"]
        return tagged
    item = np.dtype(dtype).itemsize
    if size % item:
        raise DamagedError(field.start, f"{size:,} bytes of numbers that take {item} each")
    return np.frombuffer(data, dtype, size // item, field.start)
