"""Snapshots written byte by byte, so that tests can make what today's protobuf would not: old, forked, broken ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from caffe2torch.errors import Caffe2TorchError


def complaint(read: Callable[[Path], object], path: Path) -> str:
    """What ``read`` says against ``path``: one of our errors in its words, or nothing; any other is a failure."""
    try:
        read(path)
    except Caffe2TorchError as error:
        return str(error)
    return ""


def varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def block(field: int, payload: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(payload)) + payload


def shape(dims: Iterable[int]) -> bytes:
    return block(7, block(1, b"".join(varint(size) for size in dims)))


def legacy(dims: Sequence[int]) -> bytes:
    """The four sizes of before BlobShape, padded on the left as Caffe did."""
    return b"".join(number(i + 1, size) for i, size in enumerate((1,) * (4 - len(dims)) + tuple(dims)))


def unpacked(values: np.ndarray) -> bytes:
    """Repeated floats as protobuf wrote them before ``[packed = true]``: a tag before each."""
    return b"".join(varint(5 << 3 | 5) + value.tobytes() for value in values.astype("<f4").reshape(-1))


def blob(values: np.ndarray) -> bytes:
    return shape(values.shape) + block(5, values.astype("<f4").tobytes())


def layer(name: str, *blobs: bytes, type_: str = "InnerProduct") -> bytes:
    return block(100, block(1, name.encode()) + block(2, type_.encode()) + b"".join(block(7, b) for b in blobs))


def caffemodel(path: Path, layers: Mapping[str, Sequence[np.ndarray]], net: str = "net") -> Path:
    """A binary ``.caffemodel`` as BVLC's Caffe writes it."""
    body = b"".join(layer(name, *map(blob, blobs)) for name, blobs in layers.items())
    path.write_bytes(block(1, net.encode()) + body)
    return path


def solverstate(
    path: Path, iteration: int, history: Iterable[np.ndarray], *, learned_net: str | None = None, current_step: int = 0
) -> Path:
    """A binary ``.solverstate`` as BVLC's Caffe writes it."""
    named = b"" if learned_net is None else block(2, learned_net.encode())
    body = b"".join(block(3, blob(values)) for values in history)
    path.write_bytes(number(1, iteration) + named + body + number(4, current_step))
    return path
