"""BVLC Caffe's layers to their learnable blobs, in the order in which the layer creates them.

Each rule gives role, shape and filler of every blob from the layer's settings and the shapes of its bottoms, as the
layer's ``LayerSetUp`` does (``src/caffe/layers/*.cpp``). A size that an unknown input decides is ``None``.
"""

from __future__ import annotations

from caffe2torch.net.layer_rules import ONES, ZEROS, BlobRule, Forced, Node, flag, integer, integers, nested
from caffe2torch.net.shape_arithmetic import MAX_AXES, MisfitError, broadcast, canonical, product
from caffe2torch.recipe import Filler, Shape

__all__ = [
    "batch_norm",
    "bias",
    "convolution",
    "deconvolution",
    "embed",
    "inner_product",
    "kernel",
    "lstm",
    "outputs",
    "parameter",
    "prelu",
    "rnn",
    "scale",
    "with_bias",
]


def kernel(node: Node) -> tuple[int, ...]:
    """Kernel sizes, one per spatial axis (``base_conv_layer.cpp``, ``LayerSetUp``).

    A bottom of which nothing is known is taken as an image, (N, C, H, W), where one ``kernel_size`` serves all axes.
    """
    settings, bottom = node.settings, node.bottom()
    sizes = integers(settings, "kernel_size")
    per_side = "kernel_h" in settings or "kernel_w" in settings
    if per_side and sizes:
        raise MisfitError("kernel_size and kernel_h/kernel_w are both given", "give one or the other")
    axis = integer(settings, "axis", 1)
    if bottom is not None:
        axes = len(bottom) - canonical(axis, len(bottom)) - 1
    elif axis < 0:
        axes = -axis - 1
    elif len(sizes) > 1:
        axes = len(sizes)
    else:
        axes = 2
    if per_side:
        if axes != 2:
            raise MisfitError(f"kernel_h and kernel_w need two spatial axes; there are {axes}")
        sizes = integer(settings, "kernel_h"), integer(settings, "kernel_w")
    elif bottom is None and len(sizes) == 1:
        node.assumptions.append("the file does not show how many axes this layer's bottom has; taken as 4 (N, C, H, W)")
    if not sizes:
        raise MisfitError("kernel_size is missing")
    result = broadcast(sizes, axes, 0, "kernel_size")
    if any(size < 1 for size in result):
        raise MisfitError("kernel_size must be at least 1")
    return result


def convolution(node: Node) -> tuple[BlobRule, ...]:
    """Weight and bias of a convolution, over any number of spatial axes, in groups."""
    channels, group = _channels_and_group(node)
    return with_bias(node, (outputs(node), None if channels is None else channels // group, *kernel(node)))


def deconvolution(node: Node) -> tuple[BlobRule, ...]:
    """Weight and bias of a transposed convolution: inputs first."""
    channels, group = _channels_and_group(node)
    count = outputs(node)
    return with_bias(node, (channels, None if count is None else count // group, *kernel(node)))


def _channels_and_group(node: Node) -> tuple[int | None, int]:
    channels, group = node.size(integer(node.settings, "axis", 1)), integer(node.settings, "group", 1)
    if group < 1:
        raise MisfitError("group must be at least 1")
    for count, what in ((channels, "input channels"), (outputs(node), "outputs")):
        if count is not None and count % group:
            raise MisfitError(f"{count} {what} do not divide into {group} groups")
    return channels, group


def outputs(node: Node) -> int | None:
    """``num_output``, which may not be 0; unknown where the file leaves it to a tool, as DIGITS lets its users do."""
    if "num_output" not in node.settings:
        return None
    count = integer(node.settings, "num_output")
    if count < 1:
        raise MisfitError("num_output must be at least 1")
    return count


def with_bias(node: Node, weight: Shape) -> tuple[BlobRule, ...]:
    """A weight, and one bias for each output unless ``bias_term`` is off."""
    rule = BlobRule("weight", weight, "weight_filler")
    if not flag(node.settings, "bias_term", True):
        return (rule,)
    return rule, BlobRule("bias", (outputs(node),), "bias_filler")


def inner_product(node: Node) -> tuple[BlobRule, ...]:
    """Weight and bias; the weight is inputs x outputs with ``transpose``."""
    bottom = node.bottom()
    inputs = None if bottom is None else product(bottom[canonical(integer(node.settings, "axis", 1), len(bottom)) :])
    weight = (inputs, outputs(node)) if flag(node.settings, "transpose") else (outputs(node), inputs)
    return with_bias(node, weight)


def embed(node: Node) -> tuple[BlobRule, ...]:
    """A row for each index, and a bias."""
    return with_bias(node, (integer(node.settings, "input_dim"), outputs(node)))


def _span(node: Node, other: Shape | None = None) -> Shape | None:
    """The axes of the first bottom that a Scale or Bias blob covers; those of a second bottom, where there is one."""
    bottom = node.bottom()
    axis, axes = integer(node.settings, "axis", 1), integer(node.settings, "num_axes", 1)
    if len(node.bottoms) > 1:
        if other is None:
            return None
        axes = len(other)
    if axes == 0:
        return ()
    if axes > MAX_AXES:
        raise MisfitError(f"num_axes {axes} is more than the {MAX_AXES} axes that a blob may have")
    if bottom is None:
        return (None,) * axes if axes > 0 else None
    start = canonical(axis, len(bottom))
    if axes > 0 and start + axes > len(bottom):
        raise MisfitError(f"axis {start} and the {axes - 1} after it do not fit a bottom of {len(bottom)} axes")
    return bottom[start:] if axes < 0 else bottom[start : start + axes]


def scale(node: Node) -> tuple[BlobRule, ...]:
    """A scale unless a second bottom is it, and a shift where ``bias_term`` asks for one."""
    span = _span(node, node.bottom(1))
    shift = (BlobRule("shift", span, "bias_filler"),) if flag(node.settings, "bias_term") else ()
    if len(node.bottoms) > 1:  # the scale is the second bottom
        return shift
    return BlobRule("scale", span, "filler", ONES), *shift


def bias(node: Node) -> tuple[BlobRule, ...]:
    """A bias unless a second bottom is it."""
    return () if len(node.bottoms) > 1 else (BlobRule("bias", _span(node), "filler"),)


def prelu(node: Node) -> tuple[BlobRule, ...]:
    """A slope for each channel, or one for all."""
    shape: Shape = () if flag(node.settings, "channel_shared") else (node.size(1),)
    return (BlobRule("slope", shape, "filler", Filler(value=0.25)),)


def batch_norm(node: Node) -> tuple[BlobRule, ...]:
    """BVLC's, or the fork's whose signs the net shows (``batch_norm_layer.cpp``; ``UpgradeNetBatchNorm``)."""
    bottom = node.bottom()
    if bottom is not None and len(bottom) < 2:
        raise MisfitError(f"BatchNorm needs a bottom of at least 2 axes; this one has {len(bottom)}")
    channels: Shape = (node.size(1),)
    settings = node.settings
    if (clue := node.dialect.of("Tongcheng")) is not None and settings.get("engine") == "CUDNN":
        node.assumptions.append(f"read as Tongcheng's BatchNorm (4 blobs, scale and shift first), because of {clue}")
        return _four_in_one(node, (1, *channels, 1, 1))
    nvidia, intel = node.dialect.of("NVIDIA"), node.dialect.of("Intel")
    affine = bool(settings.get("scale_bias")) or "scale_filler" in settings or ("bias_filler" in settings and not intel)
    if affine:
        node.assumptions.append(
            f"read as NVIDIA's BatchNorm (5 blobs), because of {nvidia or 'its scale_filler or bias_filler'}: whatever "
            "its param blocks say, its statistics are at (0,0), its scale and shift at (1,1)"
        )
        fixed = Forced(1.0, 1.0)
        return (
            *_statistics(channels, Forced(0.0, 0.0)),
            BlobRule("scale", channels, "scale_filler", ONES, fixed),
            BlobRule("shift", channels, "bias_filler", ZEROS, fixed),
        )
    if nvidia is not None:
        node.assumptions.append(
            f"read as BVLC's BatchNorm; NVIDIA's Caffe, at which {nvidia} hints, sets the decay of its statistics to 0 "
            "as well, which makes no difference where lr_mult is 0"
        )
    if intel is not None:
        node.assumptions.append(
            f"read as BVLC's BatchNorm with its Scale apart; Intel's MKL engines, at which {intel} hints, fold the two "
            "into one layer: the same multipliers, another order of blobs"
        )
    # Since 2017 Caffe's upgrade sets all three to (0,0) where all three are written; else a block may say its decay.
    forced = Forced(0.0, 0.0) if node.param_blocks == 3 else Forced(0.0, refuses=nvidia is None)
    return _statistics(channels, forced)


def _statistics(channels: Shape, forced: Forced) -> tuple[BlobRule, ...]:
    roles = (("mean", channels), ("variance", channels), ("factor", (1,)))
    return tuple(BlobRule(role, shape, forced=forced) for role, shape in roles)


def _four_in_one(node: Node, shape: Shape) -> tuple[BlobRule, ...]:
    if node.param_blocks:
        raise MisfitError("this fork's BatchNorm refuses param blocks: its multipliers are fixed")
    return (
        BlobRule("scale", shape, "scale_filler", ONES, Forced(1.0, 1.0)),
        BlobRule("shift", shape, "bias_filler", ZEROS, Forced(1.0, 1.0)),
        BlobRule("mean", shape, forced=Forced(0.0, 0.0)),
        BlobRule("variance", shape, forced=Forced(0.0, 0.0)),
    )


def lstm(node: Node) -> tuple[BlobRule, ...]:
    """BVLC's LSTM, which has four gates."""
    return _recurrent(node, gates=4, output=False)


def rnn(node: Node) -> tuple[BlobRule, ...]:
    """BVLC's RNN, which has weights to its output."""
    return _recurrent(node, gates=1, output=True)


def _recurrent(node: Node, gates: int, output: bool) -> tuple[BlobRule, ...]:
    """The unrolled net's own order, static input before the hidden weight."""
    hidden, bottom = outputs(node), node.bottom()
    wide = product((gates, hidden))
    exposed = (2 if gates == 4 else 1) if flag(node.settings, "expose_hidden") else 0
    inputs = None if bottom is None else product(bottom[2:])
    rules = [
        BlobRule("input_weight", (wide, inputs), "weight_filler"),
        BlobRule("bias", (wide,), "bias_filler"),
    ]
    if len(node.bottoms) > 2 + exposed:
        static = node.bottom(2)
        size = None if static is None else product(static[1:])
        rules.append(BlobRule("static_weight", (wide, size), "weight_filler"))
    rules.append(BlobRule("hidden_weight", (wide, hidden), "weight_filler"))
    if output:
        rules.append(BlobRule("output_weight", (hidden, hidden), "weight_filler"))
        rules.append(BlobRule("output_bias", (hidden,), "bias_filler"))
    return tuple(rules)


def parameter(node: Node) -> tuple[BlobRule, ...]:
    """A blob of the shape that the layer states."""
    return (BlobRule("weight", integers(nested(node.settings, "shape"), "dim")),)
