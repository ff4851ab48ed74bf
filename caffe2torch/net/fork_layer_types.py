"""Forks' layers to their learnable blobs. Each rule was read in the fork's own source; it says which fork's."""

from __future__ import annotations

from collections.abc import Mapping

from caffe2torch.net.layer_context import ONES, ZEROS, BlobRule, Forced, Node
from caffe2torch.net.layer_settings import flag, integer
from caffe2torch.net.layer_types import Rule, convolution, kernel, outputs, with_bias
from caffe2torch.net.shape_arithmetic import MisfitError, canonical, product
from caffe2torch.recipe import Shape

__all__ = ["FORK_BLOBLESS", "FORK_BLOBS"]

_MOST_TRANSITIONS = 10_000  # beyond any net, and below any harm
FROZEN, FIXED = Forced(0.0, 0.0), Forced(1.0, 1.0)


def _bn(node: Node) -> tuple[BlobRule, ...]:
    """``BN`` of SegNet's Caffe (two blobs), of yjxiong's and PSPNet's (four), of happynear's and weiliu89's (four)."""
    channels = node.size(1)
    if (clue := node.dialect.of("happynear")) is not None:
        node.remarks.append(f"read as happynear's BN (4 blobs, none of them forced), because of {clue}")
        return _four((1, channels, 1, 1), "scale_filler", "shift_filler", None, None)
    if (clue := node.dialect.of("yjxiong")) is not None or node.param_blocks > 2:
        pspnet = node.dialect.of("PSPNet")
        why = clue or f"its {node.param_blocks} param blocks"
        as_written = node.param_blocks > 2 and "frozen" not in node.settings
        node.remarks.append(
            f"read as {'PSPNet' if pspnet else 'yjxiong'}'s BN (4 blobs), because of {why}"
            + (f" and {pspnet}" if pspnet else "")
            + (": multipliers as the file says" if as_written else ": its statistics are at (0,0)")
        )
        shape = (1, channels, 1, 1) if pspnet else (1, channels)
        own = FROZEN if flag(node.settings, "frozen") else None
        return _four(shape, "slope_filler", "bias_filler", own, None if as_written else FROZEN)
    node.remarks.append("read as SegNet's BN: 2 blobs, scale and shift, which learn as their param blocks say")
    shape = (1, channels, 1, 1)
    return BlobRule("scale", shape, "scale_filler"), BlobRule("shift", shape, "shift_filler")


def _four(shape: Shape, scale: str, shift: str, own: Forced | None, statistics: Forced | None) -> tuple[BlobRule, ...]:
    return (
        BlobRule("scale", shape, scale, forced=own),
        BlobRule("shift", shape, shift, forced=own),
        BlobRule("mean", shape, forced=statistics),
        BlobRule("variance", shape, default=None, forced=statistics),
    )


def _normalize(node: Node) -> tuple[BlobRule, ...]:
    """SSD's (a learned scale) or NormFace's and yjxiong's (none)."""
    ssd, normface = node.dialect.of("SSD"), node.dialect.of("NormFace")
    if normface is not None or (ssd is None and not node.param_blocks):
        node.remarks.append("read as a Normalize without blobs (NormFace's); SSD's, told by norm_param, has a scale")
        return ()
    shape: Shape = () if flag(node.settings, "channel_shared", True) else (node.size(1),)
    return (BlobRule("scale", shape, "scale_filler", ONES),)


def _depthwise(node: Node) -> tuple[BlobRule, ...]:
    """yonghenglh6's ``ConvolutionDepthwise``: one filter for each channel."""
    return with_bias(node, (outputs(node), 1, *kernel(node)))


def _rows(node: Node, role: str, filler: str) -> tuple[BlobRule, ...]:
    """One row of inputs for each output, no bias: CenterLoss, MarginInnerProduct, LargeMarginInnerProduct."""
    bottom = node.bottom()
    inputs = None if bottom is None else product(bottom[canonical(integer(node.settings, "axis", 1), len(bottom)) :])
    return (BlobRule(role, (outputs(node), inputs), filler),)


def _inner_distance(node: Node) -> tuple[BlobRule, ...]:
    """NormFace's ``InnerDistance``: its centers are a blob unless a second bottom gives them."""
    only_centers = flag(node.settings, "update_center_only")
    if len(node.bottoms) > 1 and not only_centers:
        return ()
    (rule,) = _rows(node, "centers", "center_filler")
    assert rule.shape is not None
    rows = rule.shape[0]
    if only_centers and (second := node.bottom(1)) is not None and second:
        rows = second[0]
    shape = (rows, rule.shape[1])
    return (BlobRule("centers", shape[::-1] if flag(node.settings, "transpose") else shape, "center_filler"),)


def _lstm(node: Node) -> tuple[BlobRule, ...]:
    """junhyukoh's ``Lstm``: the bias comes last, unlike BVLC's LSTM."""
    hidden, bottom = outputs(node), node.bottom()
    wide = product((4, hidden))
    inputs = None if bottom is None else product(bottom[1:])
    return (
        BlobRule("input_weight", (wide, inputs), "weight_filler"),
        BlobRule("hidden_weight", (wide, hidden), "weight_filler"),
        BlobRule("bias", (wide,), "bias_filler"),
    )


def _dense_block(node: Node) -> tuple[BlobRule, ...]:
    """Tongcheng's ``DenseBlock`` (master): all blobs of one kind, then all of the next, and an averaging factor."""
    if node.param_blocks:
        raise MisfitError("DenseBlock refuses param blocks: its multipliers are fixed")
    steps, growth = integer(node.settings, "numTransition"), integer(node.settings, "growthRate")
    if not 1 <= steps <= _MOST_TRANSITIONS:
        raise MisfitError(f"numTransition is {steps}")
    widths = [integer(node.settings, "initChannel") + step * growth for step in range(steps)]
    bottleneck = flag(node.settings, "use_BC")

    def filters(inputs: list[int], count: int, size: int) -> list[BlobRule]:
        return [BlobRule("weight", (count, i, size, size), "Filter_Filler", forced=FIXED) for i in inputs]

    def norms(channels: list[int]) -> list[BlobRule]:
        shapes: list[Shape] = [(1, c, 1, 1) for c in channels]
        return [
            *(BlobRule("scale", shape, "BN_Scaler_Filler", ONES, FIXED) for shape in shapes),
            *(BlobRule("shift", shape, "BN_Bias_Filler", ZEROS, FIXED) for shape in shapes),
            *(BlobRule("mean", shape, forced=FROZEN) for shape in shapes),
            *(BlobRule("variance", shape, default=None, forced=FROZEN) for shape in shapes),
        ]

    node.remarks.append("read as the DenseBlock of Tongcheng's master branch: a factor comes last, statistics at (0,0)")
    rules = filters([4 * growth] * steps if bottleneck else widths, growth, 3) + norms(widths)
    if bottleneck:
        rules += filters(widths, 4 * growth, 1) + norms([4 * growth] * steps)
    return (*rules, BlobRule("factor", (1,), forced=FROZEN))


def _meanfield(node: Node) -> tuple[BlobRule, ...]:
    """crfasrnn's ``MultiStageMeanfield``; a table file fills the first two."""
    shape = (1, 1, node.size(1), node.size(1))
    roles = ("spatial_weight", "bilateral_weight", "compatibility")
    return tuple(BlobRule(role, shape, default=None) for role in roles)


FORK_BLOBS: Mapping[str, Rule] = {
    "BN": _bn,
    "CenterLoss": lambda node: _rows(node, "centers", "center_filler"),
    "ConvolutionDepthwise": _depthwise,
    "DeformableConvolution": convolution,
    "DenseBlock": _dense_block,
    "DepthwiseConvolution": convolution,
    "InnerDistance": _inner_distance,
    "LargeMarginInnerProduct": lambda node: _rows(node, "weight", "weight_filler"),
    "Lstm": _lstm,
    "MarginInnerProduct": lambda node: _rows(node, "weight", "weight_filler"),
    "MultiStageMeanfield": _meanfield,
    "Normalize": _normalize,
}
"""Forks' layers that have blobs of their own."""

_BLOBLESS = """
    AnnotatedData Axpy BoxAnnotatorOHEM ChannelShuffle ContinuationIndicator CtcLoss DenseImageData
    DetectionEvaluate DetectionOutput EuclideanLossWithTV Gather GlobalSumPooling ImageLabelmapData ImageSegData
    Interp LiftedStructSimilaritySoftmaxLoss MultiBoxLoss MulticlassCrossEntropyLoss PSROIPooling Permute PriorBox
    ROIAlign ROIPooling ReLU6 RegionLoss Reorg SegAccuracy ShuffleChannel SmoothL1Loss SmoothL1LossOHEM
    SoftmaxWithLossOHEM TripletLoss Upsample VideoData WeightedSoftmaxWithLoss XCovLoss YoloSeg Yolov3
"""
FORK_BLOBLESS = frozenset(_BLOBLESS.split())
"""Forks' layers that have none."""
