"""The shapes of the tops of BVLC Caffe's layers, as each layer's ``Reshape`` makes them (``caffe/layers/*.cpp``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from typing import NamedTuple

from caffe2torch.net.blob_rules import kernel, outputs
from caffe2torch.net.layer_rules import Node, flag, integer, integers, nested, text
from caffe2torch.net.shape_arithmetic import (
    MAX_AXES,
    MisfitError,
    agree,
    broadcast,
    canonical,
    conv_length,
    deconv_length,
    known,
    pool_length,
    product,
    replace_axis,
    total,
    unknown,
)
from caffe2torch.recipe import Shape

__all__ = [
    "PoolWindow",
    "accuracy",
    "arg_max",
    "axis_of",
    "batch_reindex",
    "concat",
    "convolution",
    "crop",
    "deconvolution",
    "eltwise",
    "embed",
    "filter_",
    "flatten",
    "im2col",
    "inner_product",
    "lrn",
    "per_axis",
    "pool_window",
    "pooling",
    "recurrent",
    "reduction",
    "reshape",
    "slice_",
    "softmax_loss",
    "spp",
    "tile",
]


def softmax_loss(node: Node) -> tuple[Shape | None, ...]:
    """The loss, and the probabilities."""
    return (), node.bottom()


def convolution(node: Node) -> tuple[Shape | None, ...]:
    """Over any number of spatial axes, rounding down."""
    return _convolution(node, conv_length)


def deconvolution(node: Node) -> tuple[Shape | None, ...]:
    """The size whose convolution would have the bottom's."""
    return _convolution(node, deconv_length)


def _convolution(node: Node, length: Callable[..., int | None]) -> tuple[Shape | None, ...]:
    settings, sizes = node.settings, kernel(node)
    axes, axis = len(sizes), integer(settings, "axis", 1)
    if axis < 0 and node.bottom() is None:
        return (None,) * len(node.top_names)
    bottom = known(node.bottom(), 1 + axis + axes)
    axis = canonical(axis, len(bottom))
    steps = zip(
        bottom[axis + 1 :],
        sizes,
        per_axis(node, "pad", axes, 0),
        per_axis(node, "stride", axes, 1),
        # DeepLab's Caffe called it hole before BVLC's had dilation
        broadcast(integers(settings, "dilation") or integers(settings, "hole"), axes, 1, "dilation"),
        strict=True,
    )
    shape = (*bottom[:axis], outputs(node), *(length(*step) for step in steps))
    return (shape,) * len(node.top_names)


def per_axis(node: Node, what: str, axes: int, default: int) -> tuple[int, ...]:
    """``pad`` or ``stride``: one number, or one for each axis, or ``_h`` and ``_w``."""
    settings = node.settings
    if settings.get(f"{what}_h") or settings.get(f"{what}_w"):
        if axes != 2:
            raise MisfitError(f"{what}_h and {what}_w need two spatial axes; there are {axes}")
        result: tuple[int, ...] = (integer(settings, f"{what}_h", default), integer(settings, f"{what}_w", default))
    else:
        result = broadcast(integers(settings, what), axes, default, what)
    if default and not all(result):
        raise MisfitError(f"{what} must be at least 1")
    return result


def im2col(node: Node) -> tuple[Shape | None, ...]:
    """The columns that a convolution multiplies."""
    (shape,) = convolution(replace(node, settings={**node.settings, "num_output": 1}, top_names=("columns",)))
    if shape is None:
        return (None,)
    axis = canonical(integer(node.settings, "axis", 1), len(shape))
    return (replace_axis(shape, axis, product((node.size(axis), *kernel(node)))),)


class PoolWindow(NamedTuple):
    """The windows of a pooling, a number an axis, and whether their number rounds up."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    pad: tuple[int, ...]
    ceil: bool


def pool_window(node: Node, axes: int | None = None) -> PoolWindow:
    """The windows over so many axes; over two, or more where a fork's file lists its sizes, if that is not known."""
    settings = node.settings
    sizes = integers(settings, "kernel_size")
    if "kernel_h" in settings or "kernel_w" in settings:
        sizes = (integer(settings, "kernel_h"), integer(settings, "kernel_w"))
    if not sizes:
        raise MisfitError("kernel_size is missing")
    axes = max(2, len(sizes)) if axes is None else axes
    ceil = text(settings, "round_mode") != "FLOOR" and flag(settings, "ceil_mode", True)  # ceil_mode: some forks
    pad, stride = per_axis(node, "pad", axes, 0), per_axis(node, "stride", axes, 1)
    return PoolWindow(broadcast(sizes, axes, 0, "kernel_size"), stride, pad, ceil)


def pooling(node: Node) -> tuple[Shape | None, ...]:
    """Pooling, rounding up; a second top is the mask. Over more axes where a fork's file lists its sizes."""
    bottom = node.bottom()
    if bottom is not None and len(bottom) < 4:
        raise MisfitError(f"Pooling needs a bottom of 4 axes; this one has {len(bottom)}")
    if flag(node.settings, "global_pooling"):
        bottom = known(bottom, 4)
        return ((*bottom[:2], *(1,) * (len(bottom) - 2)),) * len(node.top_names)
    kernel, stride, pad, ceil = pool_window(node, None if bottom is None else len(bottom) - 2)
    bottom = known(bottom, 2 + len(kernel))
    steps = zip(bottom[2:], kernel, pad, stride, strict=True)
    shape = (*bottom[:2], *(pool_length(*step, ceil=ceil, clip=any(pad)) for step in steps))
    return (shape,) * len(node.top_names)


def inner_product(node: Node) -> tuple[Shape | None, ...]:
    """The axes before ``axis``, and ``num_output``."""
    axis, bottom = integer(node.settings, "axis", 1), node.bottom()
    if bottom is None:
        return ((*unknown(axis), outputs(node)),) if axis >= 0 else (None,)
    return ((*bottom[: canonical(axis, len(bottom))], outputs(node)),)


def embed(node: Node) -> tuple[Shape | None, ...]:
    """The axes of the indices, and ``num_output``."""
    bottom = node.bottom()
    if bottom is None:
        node.assumptions.append("the file does not show how many axes this layer's bottom has; taken as 2 (T, N)")
        bottom = (None, None)
    return ((*bottom, outputs(node)),)


def recurrent(node: Node) -> tuple[Shape | None, ...]:
    """LSTM and RNN: time, batch, ``num_output``; then the hidden states that are exposed."""
    time, batch, hidden = node.size(0), node.size(1), outputs(node)
    return (time, batch, hidden), *((1, batch, hidden),) * (len(node.top_names) - 1)


def concat(node: Node) -> tuple[Shape | None, ...]:
    """Sizes of one axis added up."""
    stated = [bottom for bottom in node.bottoms if bottom is not None]
    if not stated:
        return (None,)
    axis = canonical(axis_of(node, "concat_dim"), len(stated[0]))
    if any(len(bottom) != len(stated[0]) for bottom in stated):
        raise MisfitError("its bottoms have different numbers of axes")
    frame = reduce(_agreed, (replace_axis(bottom, axis, None) for bottom in stated))
    sizes = [None if bottom is None else bottom[axis] for bottom in node.bottoms]
    return (replace_axis(frame, axis, total(sizes)),)


def _agreed(first: Shape, second: Shape) -> Shape:
    result = agree(first, second)
    assert result is not None
    return result


def axis_of(node: Node, old_name: str) -> int:
    """``axis``, or its old spelling; the schema's default of the old one is not a statement."""
    old = integer(node.settings, old_name, 1)
    return old if old != 1 else integer(node.settings, "axis", 1)


def slice_(node: Node) -> tuple[Shape | None, ...]:
    """Parts of one axis, at ``slice_point`` or equal."""
    bottom, count = node.bottom(), len(node.top_names)
    if bottom is None or not count:
        return (None,) * count
    axis, points = canonical(axis_of(node, "slice_dim"), len(bottom)), integers(node.settings, "slice_point")
    size = bottom[axis]
    if points:
        if len(points) != count - 1:
            raise MisfitError(f"{len(points)} slice points make {len(points) + 1} tops, not {count}")
        ends = (*points, size)
        sizes = [None if b is None else b - a for a, b in zip((0, *points), ends, strict=True)]
    else:
        if size is not None and size % count:
            raise MisfitError(f"an axis of {size} does not divide into {count} tops")
        sizes = [None if size is None else size // count] * count
    return tuple(replace_axis(bottom, axis, one) for one in sizes)


def eltwise(node: Node) -> tuple[Shape | None, ...]:
    """The one shape of all bottoms."""
    return (reduce(agree, node.bottoms) if node.bottoms else None,)


def flatten(node: Node) -> tuple[Shape | None, ...]:
    """Axes ``axis`` to ``end_axis`` as one."""
    bottom = node.bottom()
    if bottom is None:
        return (None,)
    start = canonical(integer(node.settings, "axis", 1), len(bottom))
    end = canonical(integer(node.settings, "end_axis", -1), len(bottom))
    return ((*bottom[:start], product(bottom[start : end + 1]), *bottom[end + 1 :]),)


def reshape(node: Node) -> tuple[Shape | None, ...]:
    """``dim`` of 0 copies an axis, of -1 takes what is left."""
    settings, bottom = node.settings, node.bottom()
    dims = integers(nested(settings, "shape"), "dim")
    axis, axes = integer(settings, "axis", 0), integer(settings, "num_axes", -1)
    if bottom is None:
        whole = axis == 0 and axes == -1
        return (tuple(size if size > 0 else None for size in dims),) if whole else (None,)
    start = axis if axis >= 0 else len(bottom) + axis + 1
    end = len(bottom) if axes == -1 else start + axes
    if not 0 <= start <= end <= len(bottom):
        raise MisfitError(f"axis {axis} and num_axes {axes} do not fit a bottom of {len(bottom)} axes")
    middle: list[int | None] = []
    for i, size in enumerate(dims):
        if size == 0 and start + i >= len(bottom):
            raise MisfitError(f"dim 0 at position {i} copies an axis that the bottom does not have")
        middle.append(bottom[start + i] if size == 0 else size)
    if -1 in dims:
        hole = dims.index(-1)
        rest, whole_count = product(middle[:hole] + middle[hole + 1 :]), product(bottom[start:end])
        if rest and whole_count is not None and whole_count % rest:
            raise MisfitError(f"{whole_count} numbers do not divide into rows of {rest}")
        middle[hole] = whole_count // rest if rest and whole_count is not None else None
    return ((*bottom[:start], *middle, *bottom[end:]),)


def crop(node: Node) -> tuple[Shape | None, ...]:
    """Like the second bottom from ``axis`` on."""
    bottom, other = node.bottom(), node.bottom(1)
    if bottom is None:
        return (None,)
    axis = canonical(integer(node.settings, "axis", 2), len(bottom))
    return ((*bottom[:axis], *((None,) * (len(bottom) - axis) if other is None else other[axis:])),)


def tile(node: Node) -> tuple[Shape | None, ...]:
    """One axis repeated ``tiles`` times."""
    bottom = node.bottom()
    if bottom is None:
        return (None,)
    axis = canonical(integer(node.settings, "axis", 1), len(bottom))
    return (replace_axis(bottom, axis, product((bottom[axis], integer(node.settings, "tiles")))),)


def reduction(node: Node) -> tuple[Shape | None, ...]:
    """The axes before ``axis``."""
    axis, bottom = integer(node.settings, "axis", 0), node.bottom()
    if bottom is None:
        return (unknown(axis) if axis >= 0 else None,)
    return (bottom[: canonical(axis, len(bottom))],)


def arg_max(node: Node) -> tuple[Shape | None, ...]:
    """The best ``top_k`` along an axis, or of each image."""
    bottom, best = node.bottom(), integer(node.settings, "top_k", 1)
    if bottom is None:
        return (None,)
    if "axis" in node.settings:
        return (replace_axis(bottom, canonical(integer(node.settings, "axis"), len(bottom)), best),)
    rest = (1,) * max(0, len(bottom) - 3)
    return ((node.size(0), 2 if flag(node.settings, "out_max_val") else 1, best, *rest),)


def spp(node: Node) -> tuple[Shape | None, ...]:
    """A pyramid of poolings, flattened."""
    batch, channels, levels = node.size(0), node.size(1), integer(node.settings, "pyramid_height")
    if not 1 <= levels <= MAX_AXES:
        raise MisfitError(f"a pyramid of {levels} levels")
    if levels == 1:
        return ((batch, channels, 1, 1),)
    return ((batch, product((channels, sum(4**level for level in range(levels))))),)


def batch_reindex(node: Node) -> tuple[Shape | None, ...]:
    """As many rows as the second bottom has."""
    bottom, index = node.bottom(), node.bottom(1)
    return (None if bottom is None else replace_axis(bottom, 0, index[0] if index else None),)


def filter_(node: Node) -> tuple[Shape | None, ...]:
    """The rows that the last bottom selects: how many is unknown."""
    return tuple(None if bottom is None else replace_axis(bottom, 0, None) for bottom in node.bottoms[:-1])


def accuracy(node: Node) -> tuple[Shape | None, ...]:
    """One number, and one for each class."""
    return (), (node.size(integer(node.settings, "axis", 1)),)


def lrn(node: Node) -> tuple[Shape | None, ...]:
    """Like the bottom, which has 4 axes."""
    return (known(node.bottom(), 4),) * len(node.top_names)
