"""Arithmetic of blob shapes in which a size may be unknown, with C++'s rounding where Caffe's is C++'s."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from caffe2torch.recipe import Shape
from caffe2torch.wording import shape_text

__all__ = [
    "MAX_AXES",
    "MAX_COUNT",
    "MisfitError",
    "agree",
    "canonical",
    "conv_length",
    "deconv_length",
    "known",
    "pool_length",
    "product",
    "replace_axis",
    "total",
    "unknown",
]

Size = int | None

MAX_AXES = 32
"""A blob's axes, at most (``blob.hpp``, ``kMaxBlobAxes``)."""

MAX_COUNT = 2**31 - 1
"""A blob's numbers, at most, and so each of its sizes (``blob.cpp``, ``Reshape``)."""


class MisfitError(Exception):
    """A layer whose settings and bottoms do not fit together; whoever knows the layer's place makes an error of it."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def product(sizes: Iterable[Size]) -> Size:
    """The product, unknown as soon as one factor is.

    >>> product((2, 3)), product((2, None)), product(())
    (6, None, 1)
    """
    result = 1
    for size in sizes:
        if size is None:
            return None
        result *= size
    return result


def total(sizes: Iterable[Size]) -> Size:
    """The sum, unknown as soon as one term is."""
    result = 0
    for size in sizes:
        if size is None:
            return None
        result += size
    return result


def unknown(axes: int) -> Shape:
    """A shape of so many axes, of which nothing else is known."""
    if axes > MAX_AXES:
        raise MisfitError(f"a blob of {axes} axes; Caffe allows {MAX_AXES}")
    return (None,) * axes


def known(shape: Shape | None, axes: int) -> Shape:
    """A shape, or one of so many axes where there is none."""
    return unknown(axes) if shape is None else shape


def canonical(axis: int, axes: int) -> int:
    """An axis counted from the front; -1 is the last one (``Blob::CanonicalAxisIndex``); else ``MisfitError``."""
    if not -axes <= axis < axes:
        raise MisfitError(f"axis {axis} is out of range for a blob of {axes} axes")
    return axis + axes if axis < 0 else axis


def agree(first: Shape | None, second: Shape | None) -> Shape | None:
    """The shape of two blobs that must be equal (else ``MisfitError``), each knowing what the other may not.

    >>> agree((2, None), (None, 3))
    (2, 3)
    """
    if first is None or second is None:
        return second if first is None else first
    if first == second:
        return first
    if len(first) != len(second) or any(
        a != b and a is not None and b is not None for a, b in zip(first, second, strict=True)
    ):
        raise MisfitError(f"shapes {shape_text(first)} and {shape_text(second)} differ where they must be equal")
    return tuple(b if a is None else a for a, b in zip(first, second, strict=True))


def replace_axis(shape: Shape, axis: int, size: Size) -> Shape:
    """The shape with one size changed."""
    return (*shape[:axis], size, *shape[axis + 1 :])


def conv_length(size: Size, kernel: int, pad: int, stride: int, dilation: int) -> Size:
    """Positions of a window over one axis, rounded down (``conv_layer.cpp``, ``compute_output_shape``)."""
    if size is None:
        return None
    room = size + 2 * pad - (dilation * (kernel - 1) + 1)
    return _at_least_one(math.trunc(room / stride) + 1, "the kernel is larger than its padded input")


def deconv_length(size: Size, kernel: int, pad: int, stride: int, dilation: int) -> Size:
    """The length whose convolution would have ``size`` positions (``deconv_layer.cpp``)."""
    if size is None:
        return None
    return _at_least_one(
        stride * (size - 1) + dilation * (kernel - 1) + 1 - 2 * pad, "the padding eats the whole output"
    )


def pool_length(size: Size, kernel: int, pad: int, stride: int, *, ceil: bool, clip: bool) -> Size:
    """Positions of a pooling window, rounded up unless the layer states otherwise (``pooling_layer.cpp``, ``Reshape``).

    ``clip``: a last window that would start outside the image is dropped; Caffe does so if there is any padding.
    """
    if size is None:
        return None
    room = (size + 2 * pad - kernel) / stride
    length = (math.ceil(room) if ceil else math.floor(room)) + 1
    if clip and (length - 1) * stride >= size + pad:
        length -= 1
    return _at_least_one(length, "the kernel is larger than its padded input")


def _at_least_one(length: int, reason: str) -> int:
    if length < 1:
        raise MisfitError(f"the output would have {length} rows or columns: {reason}")
    return length


def broadcast(values: Sequence[int], axes: int, default: int, what: str) -> tuple[int, ...]:
    """One value per spatial axis, as Caffe's repeated ``pad``, ``stride``, ``dilation`` and ``kernel_size`` mean it."""
    if not values:
        return (default,) * axes
    if len(values) == 1:
        return (values[0],) * axes
    if len(values) != axes:
        raise MisfitError(
            f"{what} is given {len(values)} times for {axes} spatial axes", f"give {what} once, or {axes} times"
        )
    return tuple(values)
