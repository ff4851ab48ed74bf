"""Forks' layers to the shapes of their tops, where a later layer's blobs may hang on them."""

from __future__ import annotations

from collections.abc import Mapping

from caffe2torch.net.layer_context import Node
from caffe2torch.net.layer_settings import flag, integer, integers
from caffe2torch.net.layer_shapes import TopRule, conv_like, losses, same
from caffe2torch.net.layer_types import outputs
from caffe2torch.net.shape_arithmetic import MisfitError, canonical, known, product
from caffe2torch.recipe import Shape

__all__ = ["FORK_TOPS"]


def _upsample(node: Node) -> tuple[Shape | None, ...]:
    """SegNet's (two bottoms: the second holds where the maxima were) or darknet's (one: nearest neighbour)."""
    settings, (batch, channels, height, width) = node.settings, _image(node)
    if integer(settings, "upsample_h", 0) and integer(settings, "upsample_w", 0):
        return ((batch, channels, integer(settings, "upsample_h"), integer(settings, "upsample_w")),)
    scale = integer(settings, "scale", 2)
    up, across = integer(settings, "scale_h", scale), integer(settings, "scale_w", scale)
    less_h, less_w = (flag(settings, f"pad_out_{side}") for side in "hw")
    return (
        (
            batch,
            channels,
            None if height is None else height * up - less_h,
            None if width is None else width * across - less_w,
        ),
    )


def _image(node: Node) -> tuple[int | None, int | None, int | None, int | None]:
    """The first bottom as (N, C, H, W), which these layers demand."""
    bottom = known(node.bottom(), 4)
    if len(bottom) != 4:
        raise MisfitError(f"{node.type} needs a bottom of 4 axes; this one has {len(bottom)}")
    return bottom[0], bottom[1], bottom[2], bottom[3]


def _interp(node: Node) -> tuple[Shape | None, ...]:
    """DeepLab's Interp (``interp_layer.cpp``, ``LayerSetUp``): bilinear, to stated sizes or by factors."""
    settings, (batch, channels, *sides) = node.settings, _image(node)
    shrink, zoom = integer(settings, "shrink_factor", 1), integer(settings, "zoom_factor", 1)
    if shrink < 1 or zoom < 1:
        raise MisfitError("shrink_factor and zoom_factor must be at least 1")
    margin = integer(settings, "pad_beg", 0) + integer(settings, "pad_end", 0)
    stated = integer(settings, "height", 0), integer(settings, "width", 0)
    if all(stated):
        return ((batch, channels, *stated),)
    if len(node.bottoms) > 1:  # PSPNet's: sized like the second bottom
        return ((batch, channels, *known(node.bottom(1), 4)[2:]),)

    def length(side: int | None) -> int | None:
        if side is None:
            return None
        shrunk = (side + margin - 1) // shrink + 1
        return shrunk + (shrunk - 1) * (zoom - 1)

    return ((batch, channels, *(length(side) for side in sides)),)


def _permute(node: Node) -> tuple[Shape | None, ...]:
    bottom, order = node.bottom(), list(integers(node.settings, "order"))
    if bottom is None:
        return (None,)
    order += [axis for axis in range(len(bottom)) if axis not in order]
    if sorted(order) != list(range(len(bottom))):
        raise MisfitError(f"order {tuple(order)} is no order of {len(bottom)} axes")
    return (tuple(bottom[axis] for axis in order),)


def _numbers(node: Node, name: str) -> tuple[float, ...]:
    value = node.settings.get(name, ())
    values = value if isinstance(value, tuple) else (value,)
    return tuple(float(one) for one in values if isinstance(one, int | float))


def _prior_box(node: Node) -> tuple[Shape | None, ...]:
    """SSD's PriorBox: four corners of every box at every position (``prior_box_layer.cpp``, ``LayerSetUp``)."""
    _, _, height, width = _image(node)
    ratios = [1.0]
    for ratio in _numbers(node, "aspect_ratio"):
        if all(abs(ratio - known) >= 1e-6 for known in ratios):
            ratios += [ratio, 1 / ratio] if flag(node.settings, "flip", True) and ratio else [ratio]
    boxes = len(ratios) * len(_numbers(node, "min_size")) + len(_numbers(node, "max_size"))
    return ((1, 2, product((height, width, boxes, 4))),)


def _rois(node: Node) -> tuple[Shape | None, ...]:
    """ROIPooling and ROIAlign: one image for each region of the second bottom."""
    regions, size = node.bottom(1), integer(node.settings, "pooled_size", 0)
    height, width = (integer(node.settings, f"pooled_{side}", size) or None for side in "hw")
    return ((regions[0] if regions else None, node.size(1), height, width),)


def _psroi(node: Node) -> tuple[Shape | None, ...]:
    regions, group = node.bottom(1), integer(node.settings, "group_size")
    return ((regions[0] if regions else None, integer(node.settings, "output_dim"), group, group),)


def _axpy(node: Node) -> tuple[Shape | None, ...]:
    """SENet's ``scale * x + y``."""
    return (node.bottom(1) or node.bottom(2),)


def _reorg(node: Node) -> tuple[Shape | None, ...]:
    """YOLO's Reorg: ``stride`` x ``stride`` pixels to channels, or back."""
    batch, channels, height, width = _image(node)
    stride = integer(node.settings, "stride")
    if stride < 1:
        raise MisfitError("stride must be at least 1")
    if flag(node.settings, "reverse"):
        return (
            (
                batch,
                None if channels is None else channels // stride**2,
                product((height, stride)),
                product((width, stride)),
            ),
        )
    less = [None if side is None else side // stride for side in (height, width)]
    return ((batch, product((channels, stride * stride)), *less),)


def _margin_inner_product(node: Node) -> tuple[Shape | None, ...]:
    bottom = node.bottom()
    if bottom is None:
        return ((None, outputs(node)), (1,))
    return (*bottom[: canonical(integer(node.settings, "axis", 1), len(bottom))], outputs(node)), (1,)


def _inner_distance(node: Node) -> tuple[Shape | None, ...]:
    second = node.bottom(1)
    if len(node.bottoms) > 1:
        return ((node.size(0), second[0] if second else None),)
    return ((node.size(0), outputs(node)),)


def _gather(node: Node) -> tuple[Shape | None, ...]:
    """yjxiong's Gather: the batches of all processes as one."""
    return tuple(None if bottom is None else (None, *bottom[1:]) for bottom in node.bottoms)


def _lstm(node: Node) -> tuple[Shape | None, ...]:
    return ((node.size(0), outputs(node)),)


def _dense_block(node: Node) -> tuple[Shape | None, ...]:
    settings, (batch, _, height, width) = node.settings, _image(node)
    grown = integer(settings, "initChannel") + integer(settings, "numTransition") * integer(settings, "growthRate")
    return ((batch, grown, height, width),)


def _deformable(node: Node) -> tuple[Shape | None, ...]:
    return conv_like(node)


_SAME = """
    BN ChannelShuffle HardSwish Mish MultiStageMeanfield Noise Normalize RReLU ReLU6 ShuffleChannel SpatialDropout
"""
_LOSSES = "RegionLoss SegAccuracy SmoothL1LossOHEM YoloSeg Yolov3"

FORK_TOPS: Mapping[str, TopRule] = {
    **dict.fromkeys(_SAME.split(), same),
    **dict.fromkeys(_LOSSES.split(), losses),
    "Axpy": _axpy,
    "ConvolutionDepthwise": conv_like,
    "DeformableConvolution": _deformable,
    "DenseBlock": _dense_block,
    "DepthwiseConvolution": conv_like,
    "Gather": _gather,
    "InnerDistance": _inner_distance,
    "Interp": _interp,
    "LargeMarginInnerProduct": _margin_inner_product,
    "Lstm": _lstm,
    "MarginInnerProduct": _margin_inner_product,
    "PSROIPooling": _psroi,
    "Permute": _permute,
    "PriorBox": _prior_box,
    "ROIAlign": _rois,
    "ROIPooling": _rois,
    "Reorg": _reorg,
    "Upsample": _upsample,
}
