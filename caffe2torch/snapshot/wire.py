"""Protobuf's wire format, read in place: which fields a message has and where their bytes lie.

A snapshot is a few hundred fields around hundreds of megabytes of numbers. Protobuf's own parser copies the numbers
twice on their way to an array (measured on 504 MB: three times the file in memory, and three times the time of
reading it); here they stay where the operating system mapped them. Only what proto2 files of Caffe use is known:
varints, fixed-size numbers and length-delimited fields. Everything else is damage.

Source: protobuf's documentation, "Encoding".
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

import numpy as np

__all__ = ["DamagedError", "Wire", "WireField", "fields", "signed", "text", "varints"]


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
    """Yield the fields of the message that lies in ``data[start:end]``, in order.

    Raises ``DamagedError`` where the bytes stop being a message, or reach past ``end``.

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


def signed(value: int, bits: int = 64) -> int:
    """A varint as the two's-complement number that proto2's ``int32`` and ``int64`` mean by it.

    >>> signed(2**64 - 1)
    -1
    """
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def text(data: memoryview, field: WireField) -> str:
    """A string field. Caffe writes any bytes; those that are no UTF-8 read as Latin-1."""
    raw = bytes(data[field.start : field.end])
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _varint(data: memoryview, start: int, end: int) -> tuple[int, int]:
    """The number at ``start``, and where the next byte lies."""
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
