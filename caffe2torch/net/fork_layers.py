"""Layer types of Caffe's forks: one row each. Every rule was read in the fork's own source; it names the fork."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from caffe2torch.net import blob_rules as blobs
from caffe2torch.net import data_tops as data
from caffe2torch.net import top_rules as tops
from caffe2torch.net.layer_rules import (
    ONES,
    ZEROS,
    BlobRule,
    Forced,
    LayerType,
    Node,
    flag,
    integer,
    integers,
    losses,
    nested,
    same,
)
from caffe2torch.net.shape_arithmetic import MisfitError, broadcast, canonical, known, product
from caffe2torch.recipe import Shape

__all__ = ["FORK_LAYERS"]

_MOST_TRANSITIONS = 10_000  # beyond any net, and below any harm
FROZEN, FIXED = Forced(0.0, 0.0), Forced(1.0, 1.0)


def _bn(node: Node) -> tuple[BlobRule, ...]:
    """``BN`` of SegNet's Caffe (two blobs), of yjxiong's and PSPNet's (four), of happynear's and weiliu89's (four)."""
    channels = node.size(1)
    if (clue := node.dialect.of("happynear")) is not None:
        node.assumptions.append(f"read as happynear's BN (4 blobs, none of them forced), because of {clue}")
        return _four((1, channels, 1, 1), "scale_filler", "shift_filler", None, None)
    if (clue := node.dialect.of("yjxiong")) is not None or node.param_blocks > 2:
        pspnet = node.dialect.of("PSPNet")
        why = clue or f"its {node.param_blocks} param blocks"
        as_written = node.param_blocks > 2 and "frozen" not in node.settings
        node.assumptions.append(
            f"read as {'PSPNet' if pspnet else 'yjxiong'}'s BN (4 blobs), because of {why}"
            + (f" and {pspnet}" if pspnet else "")
            + (": multipliers as the file states them" if as_written else ": its statistics are at (0,0)")
        )
        shape = (1, channels, 1, 1) if pspnet else (1, channels)
        own = FROZEN if flag(node.settings, "frozen") else None
        return _four(shape, "slope_filler", "bias_filler", own, None if as_written else FROZEN)
    node.assumptions.append("read as SegNet's BN: 2 blobs, scale and shift, which learn as their param blocks say")
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
        node.assumptions.append("read as a Normalize without blobs (NormFace's); SSD's, with norm_param, has a scale")
        return ()
    shape: Shape = () if flag(node.settings, "channel_shared", True) else (node.size(1),)
    return (BlobRule("scale", shape, "scale_filler", ONES),)


def _depthwise(node: Node) -> tuple[BlobRule, ...]:
    """yonghenglh6's ``ConvolutionDepthwise``: one filter for each channel."""
    return blobs.with_bias(node, (blobs.outputs(node), 1, *blobs.kernel(node)))


def _rows(node: Node, role: str, filler: str) -> tuple[BlobRule, ...]:
    """One row of inputs for each output, no bias: CenterLoss, MarginInnerProduct, LargeMarginInnerProduct."""
    bottom = node.bottom()
    inputs = None if bottom is None else product(bottom[canonical(integer(node.settings, "axis", 1), len(bottom)) :])
    return (BlobRule(role, (blobs.outputs(node), inputs), filler),)


def _inner_distance_blobs(node: Node) -> tuple[BlobRule, ...]:
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


def _lstm_blobs(node: Node) -> tuple[BlobRule, ...]:
    """junhyukoh's ``Lstm``: the bias comes last, unlike BVLC's LSTM."""
    if node.type == "LSTM":
        clue = node.dialect.of("junhyukoh")
        node.assumptions.append(f"read as junhyukoh's Lstm, whose bias comes last, because of {clue}")
    if len(node.bottoms) > 2:
        second = node.bottom_names[1]
        node.assumptions.append(
            f"its second bottom, {second!r}, is taken for the indicators, and no further one counts"
        )
    hidden, bottom = blobs.outputs(node), node.bottom()
    wide = product((4, hidden))
    inputs = None if bottom is None else product(bottom[1:])
    return (
        BlobRule("input_weight", (wide, inputs), "weight_filler"),
        BlobRule("hidden_weight", (wide, hidden), "weight_filler"),
        BlobRule("bias", (wide,), "bias_filler"),
    )


def _dense_block_blobs(node: Node) -> tuple[BlobRule, ...]:
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

    node.assumptions.append(
        "read as the DenseBlock of Tongcheng's master branch: a factor comes last, statistics at (0,0)"
    )
    rules = filters([4 * growth] * steps if bottleneck else widths, growth, 3) + norms(widths)
    if bottleneck:
        rules += filters(widths, 4 * growth, 1) + norms([4 * growth] * steps)
    return (*rules, BlobRule("factor", (1,), forced=FROZEN))


def _meanfield(node: Node) -> tuple[BlobRule, ...]:
    """crfasrnn's ``MultiStageMeanfield``; a table file fills the first two."""
    shape = (1, 1, node.size(1), node.size(1))
    roles = ("spatial_weight", "bilateral_weight", "compatibility")
    return tuple(BlobRule(role, shape, default=None) for role in roles)


def _none(node: Node) -> tuple[BlobRule, ...] | None:
    """No blobs, unless the file has ``param`` blocks: then it is another fork's layer of this name."""
    return None if node.param_blocks else ()


def _triplet(node: Node) -> tuple[BlobRule, ...] | None:
    """Two pull requests' and many forks'."""
    if len(node.bottoms) == 3:
        node.assumptions.append(
            "read as the TripletLoss of cherrm's pull request: the mean over the batch; some forks' is half of that"
        )
    return _none(node)


def _centers(node: Node) -> tuple[BlobRule, ...]:
    """caffe-face's ``CenterLoss``."""
    return _rows(node, "centers", "center_filler")


def _margin_weight(node: Node) -> tuple[BlobRule, ...]:
    """sphereface's ``MarginInnerProduct`` and its like: no bias."""
    return _rows(node, "weight", "weight_filler")


def _volume(node: Node) -> Node:
    """A 3-d layer in BVLC's terms: time is the first of three spatial axes.

    C3D's first version adds ``kernel_depth``, ``temporal_pad`` and ``temporal_stride`` to the numbers of a plane; its
    second one states ``kernel_shape``, ``pad_shape`` and ``stride_shape``.
    """
    settings = dict(node.settings)
    for name, shape, depth, default in (
        ("kernel_size", "kernel_shape", "kernel_depth", None),
        ("pad", "pad_shape", "temporal_pad", 0),
        ("stride", "stride_shape", "temporal_stride", 1),
    ):
        plane = integers(settings, name)
        if stated := integers(nested(settings, shape), "dim"):
            settings[name] = stated
        elif len(plane) < 3 and not (default is None and flag(settings, "global_pooling")):
            settings[name] = (integer(settings, depth, default), *broadcast(plane, 2, default or 0, name))
    bottoms = tuple(known(bottom, 5) if i == 0 else bottom for i, bottom in enumerate(node.bottoms))
    return replace(node, settings=settings, bottoms=bottoms)


def _volume_blobs(node: Node) -> tuple[BlobRule, ...]:
    return blobs.convolution(_volume(node))


def _volume_tops(node: Node) -> tuple[Shape | None, ...]:
    return tops.convolution(_volume(node))


def _volume_pooling(node: Node) -> tuple[Shape | None, ...]:
    return tops.pooling(_volume(node))


# The shapes of their tops.


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
        return ((None, blobs.outputs(node)), (1,))
    return (*bottom[: canonical(integer(node.settings, "axis", 1), len(bottom))], blobs.outputs(node)), (1,)


def _inner_distance_tops(node: Node) -> tuple[Shape | None, ...]:
    second = node.bottom(1)
    if len(node.bottoms) > 1:
        return ((node.size(0), second[0] if second else None),)
    return ((node.size(0), blobs.outputs(node)),)


def _general_contrastive(_: Node) -> tuple[Shape | None, ...]:
    """The loss, and the mean distances to the label's center and to the others."""
    return (), (2,)


def _seg_accuracy(_: Node) -> tuple[Shape | None, ...]:
    """DeepLab's three shares."""
    return ((1, 1, 1, 3),)


def _continuation(node: Node) -> tuple[Shape | None, ...]:
    return ((integer(node.settings, "time_step"), integer(node.settings, "batch_size")),)


def _gather(node: Node) -> tuple[Shape | None, ...]:
    """yjxiong's Gather: the batches of all processes as one."""
    return tuple(None if bottom is None else (None, *bottom[1:]) for bottom in node.bottoms)


def _lstm_tops(node: Node) -> tuple[Shape | None, ...]:
    return ((node.size(0), blobs.outputs(node)),)


def _dense_block_tops(node: Node) -> tuple[Shape | None, ...]:
    settings, (batch, _, height, width) = node.settings, _image(node)
    grown = integer(settings, "initChannel") + integer(settings, "numTransition") * integer(settings, "growthRate")
    return ((batch, grown, height, width),)


FORK_LAYERS: Mapping[str, LayerType] = {
    "AnnotatedData": LayerType(_none, data.annotated),
    "Axpy": LayerType(_none, _axpy),
    "BatchNormInference": LayerType(settings="batchnorm"),
    "BilateralInterp": LayerType(settings="interp"),
    "BN": LayerType(_bn, same),
    "BoxAnnotatorOHEM": LayerType(_none),
    "CenterLoss": LayerType(_centers),
    "ChannelShuffle": LayerType(_none, same),
    "ContinuationIndicator": LayerType(_none, _continuation),
    "Convolution3D": LayerType(_volume_blobs, _volume_tops, "convolution"),
    "ConvolutionDepthwise": LayerType(_depthwise, tops.convolution, "convolution"),
    "CtcLoss": LayerType(_none, losses),
    "DeformableConvolution": LayerType(blobs.convolution, tops.convolution),
    "DenseBlock": LayerType(_dense_block_blobs, _dense_block_tops),
    "DenseImageData": LayerType(_none, data.dense),
    "DepthwiseConvolution": LayerType(blobs.convolution, tops.convolution, "convolution", counts_outputs=True),
    "DetectionEvaluate": LayerType(_none),
    "DetectionOutput": LayerType(_none),
    "EuclideanLossWithTV": LayerType(_none, losses, "euclideanwithtv"),
    "Gather": LayerType(_none, _gather),
    "GeneralContrastiveLoss": LayerType(_none, _general_contrastive),
    "GlobalSumPooling": LayerType(_none),
    "HardSwish": LayerType(tops=same),
    "ImageLabelmapData": LayerType(_none, data.dense),
    "ImageSegData": LayerType(_none, data.dense),
    "InnerDistance": LayerType(_inner_distance_blobs, _inner_distance_tops),
    "Interp": LayerType(_none, _interp),
    "LargeMarginInnerProduct": LayerType(_margin_weight, _margin_inner_product),
    "LabelsequenceAccuracy": LayerType(_none, losses),
    "LiftedStructSimilaritySoftmaxLoss": LayerType(_none, losses, "liftedstructsimsoftmaxloss"),
    "Lstm": LayerType(_lstm_blobs, _lstm_tops),
    "MarginInnerProduct": LayerType(_margin_weight, _margin_inner_product),
    "Mish": LayerType(tops=same),
    "MultiBoxLoss": LayerType(_none),
    "MulticlassCrossEntropyLoss": LayerType(_none),
    "MultiStageMeanfield": LayerType(_meanfield, same),
    "NdConvolution": LayerType(_volume_blobs, _volume_tops, "convolution"),
    "Noise": LayerType(tops=same),
    "Normalize": LayerType(_normalize, same, "norm"),
    "Permute": LayerType(_none, _permute),
    "Pooling3D": LayerType(_none, _volume_pooling, "pooling"),
    "PriorBox": LayerType(_none, _prior_box),
    "PSROIPooling": LayerType(_none, _psroi),
    "RegionLoss": LayerType(_none, losses),
    "ReLU6": LayerType(_none, same),
    "Reorg": LayerType(_none, _reorg),
    "ROIAlign": LayerType(_none, _rois),
    "ROIPooling": LayerType(_none, _rois),
    "RReLU": LayerType(tops=same),
    "SegAccuracy": LayerType(_none, _seg_accuracy),
    "ShuffleChannel": LayerType(_none, same),
    "SmoothL1Loss": LayerType(_none),
    "SmoothL1LossOHEM": LayerType(_none, losses),
    "SoftmaxWithLossOHEM": LayerType(_none),
    "SpatialDropout": LayerType(tops=same),
    "SVRLoss": LayerType(_none, losses),
    "TripletLoss": LayerType(_triplet, losses),
    "Upsample": LayerType(_none, _upsample),
    "VideoData": LayerType(_none, data.video),
    "WeightedSoftmaxWithLoss": LayerType(_none),
    "XCovLoss": LayerType(_none, losses),
    "YoloSeg": LayerType(_none, losses),
    "Yolov3": LayerType(_none, losses),
}
