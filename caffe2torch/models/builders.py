"""Layer types to what computes them: one row a type, keyed as the tables in ``net/`` are.

A row gives a module's class, or a function, and its arguments, so that one table builds a net and prints it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from inspect import signature
from typing import Any

import torch
from torch import nn

from caffe2torch.models import fork_layers, fork_losses, functions, layers
from caffe2torch.models.meanfield import MultiStageMeanfield
from caffe2torch.models.segnet_basic import BN
from caffe2torch.net.blob_rules import kernel
from caffe2torch.net.forks import Dialect
from caffe2torch.net.layer_rules import Node, flag, integer, integers, nested, number, text
from caffe2torch.net.shape_arithmetic import MisfitError, broadcast
from caffe2torch.net.top_rules import axis_of, per_axis, pool_window
from caffe2torch.recipe import Layer, NetRecipe, Shape

__all__ = ["BUILDERS", "Site", "Spec", "blob_shapes", "spec", "spec_of"]


@dataclass(frozen=True, slots=True)
class Spec:
    """What computes a layer: a module's class with its arguments, or a function of the bottoms with its settings."""

    target: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_module(self) -> bool:
        """Whether the target is a module's class."""
        return isinstance(self.target, type)

    def build(self) -> nn.Module:
        """The module."""
        module: nn.Module = (
            self.target(*self.args, **self.kwargs) if self.is_module else functions.Apply(self.target, **self.kwargs)
        )
        return module


@dataclass(slots=True)
class Site(Node):
    """A layer, and the shapes of its blobs by role, in which sizes that nothing states are 1."""

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


Builder = Callable[[Site], Spec]


def spec_of(recipe: NetRecipe, layer: Layer, bottoms: tuple[Shape | None, ...] | None = None) -> Spec:
    """What computes a layer; ``bottoms`` are shapes, where they are known.

    Raises:
        MisfitError: nothing here does, and why.
    """
    if layer.type not in BUILDERS:
        raise MisfitError("there is no such layer in BVLC's Caffe, and none here")
    shapes = (None,) * len(layer.bottoms) if bottoms is None else bottoms
    names, blobs = (layer.bottoms, layer.tops), blob_shapes(recipe, layer)
    return BUILDERS[layer.type](
        Site(layer.name, layer.type, layer.settings, shapes, *names, 0, Dialect(), shapes=blobs)
    )


def blob_shapes(recipe: NetRecipe, layer: Layer) -> dict[str, tuple[int, ...]]:
    """Role to shape of a layer's blobs, sizes that nothing states as 1."""
    blobs = [recipe.blobs[number] for number in layer.blobs]
    roles = Counter(blob.role for blob in blobs)
    return {
        blob.role if roles[blob.role] == 1 else f"{blob.role}_{index}": tuple(size or 1 for size in blob.shape or ())
        for index, blob in enumerate(blobs)
    }


_signature = cache(signature)


def spec(target: Callable[..., Any], *args: Any, **kwargs: Any) -> Spec:
    """A spec without the keyword arguments that are the target's defaults."""
    known = _signature(target).parameters
    return Spec(target, args, {k: v for k, v in kwargs.items() if k not in known or known[k].default != v})


def _settings(target: Callable[..., Any], *names: str, **renamed: str) -> Builder:
    """A row for a target whose arguments are settings; ``ours=caffes`` where they have another name in Caffe."""
    return lambda site: spec(target, **_given(site, *names, **renamed))


def _given(site: Site, *names: str, **renamed: str) -> dict[str, Any]:
    """Those settings that the layer has."""
    pairs = {**dict(zip(names, names, strict=True)), **renamed}
    return {ours: site.settings[caffes] for ours, caffes in pairs.items() if caffes in site.settings}


def _plain(target: Callable[..., Any], *args: Any, **kwargs: Any) -> Builder:
    return lambda _: Spec(target, args, kwargs)


def _short(sizes: tuple[int, ...]) -> int | tuple[int, ...]:
    """One number where all axes have the same."""
    return sizes[0] if len(set(sizes)) == 1 else sizes


# Layers with blobs.

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_DECONVOLUTIONS = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def _convolution(site: Site, classes: Mapping[int, type[nn.Module]] = _CONVOLUTIONS) -> Spec:
    outputs, inputs, *sizes = site.shapes["weight"]
    count, axis = len(sizes), integer(site.settings, "axis", 1)
    if count not in classes or axis not in (1, -count - 1):
        raise MisfitError(f"a convolution over {count} axes from axis {axis} on is not built")
    group = outputs if site.type == "ConvolutionDepthwise" else integer(site.settings, "group", 1)
    dilation = integers(site.settings, "dilation") or integers(site.settings, "hole")
    return spec(
        classes[count],
        *((inputs * group, outputs) if classes is _CONVOLUTIONS else (outputs, inputs * group)),
        _short(tuple(sizes)),
        stride=_short(per_axis(site, "stride", count, 1)),
        padding=_short(per_axis(site, "pad", count, 0)),
        dilation=_short(broadcast(dilation, count, 1, "dilation")),
        groups=group,
        bias="bias" in site.shapes,
    )


def _inner_product(site: Site) -> Spec:
    outputs, inputs = site.shapes["weight"][:: -1 if flag(site.settings, "transpose") else 1]
    axis, bottom = integer(site.settings, "axis", 1), site.bottom()
    if axis == -1 or (bottom is not None and axis == len(bottom) - 1):
        return spec(nn.Linear, inputs, outputs, bias="bias" in site.shapes)
    return spec(layers.InnerProduct, inputs, outputs, bias="bias" in site.shapes, axis=axis)


def _batch_norm(site: Site) -> Spec:
    channels, eps = max(site.shapes["mean"]), number(site.settings, "eps", 1e-5)
    fraction = number(site.settings, "moving_average_fraction", 0.999)
    if "factor" not in site.shapes:  # Tongcheng's, by cuDNN
        return spec(nn.BatchNorm2d, channels, eps=eps, momentum=fraction)
    stated = site.settings.get("use_global_stats")
    affine = "scale" in site.shapes
    return spec(layers.BatchNorm, channels, eps=eps, fraction=fraction, use_global_stats=stated, affine=affine)


def _bn(site: Site) -> Spec:
    """SegNet's, or another fork's with statistics among its blobs."""
    channels, eps = max(site.shapes["scale"]), number(site.settings, "eps", 1e-5)
    if "mean" not in site.shapes:
        return Spec(BN, (channels,))
    if flag(site.settings, "frozen"):
        return spec(layers.FrozenBatchNorm, channels, eps=eps)
    kept = number(site.settings, "momentum", number(site.settings, "decay", 0.9))
    return spec(nn.BatchNorm2d, channels, eps=eps, momentum=round(1 - kept, 9))


def _scale(site: Site) -> Spec:
    axis, shapes = integer(site.settings, "axis", 1), site.shapes
    return spec(layers.Scale, shapes.get("scale"), bias_shape=shapes.get("shift"), axis=axis)


def _recurrent(target: type[nn.Module], gates: int) -> Builder:
    def build(site: Site) -> Spec:
        if list(site.shapes)[:2] != ["input_weight", "bias"]:
            return _lstm(site)
        wide, inputs = site.shapes["input_weight"]
        static = site.shapes.get("static_weight", (0, None))[1]
        return spec(target, inputs, wide // gates, static=static, expose_hidden=flag(site.settings, "expose_hidden"))

    return build


def _lstm(site: Site) -> Spec:
    """junhyukoh's."""
    wide, inputs = site.shapes["input_weight"]
    return spec(fork_layers.Lstm, inputs, wide // 4, **_given(site, "batch_size", "clipping_threshold"))


def _margin_inner_product(site: Site) -> Spec:
    margin = {"SINGLE": 1, "DOUBLE": 2, "TRIPLE": 3, "QUADRUPLE": 4}.get(text(site.settings, "type") or "SINGLE")
    if integer(site.settings, "axis", 1) != 1 or len(site.top_names) != 2 or margin is None:
        raise MisfitError("MarginInnerProduct is built for axis 1, two tops and its own four types")
    given = _given(site, "base", "gamma", "power", "lambda_min", "iteration")
    return spec(fork_layers.MarginInnerProduct, *site.shapes["weight"][::-1], margin=margin, **given)


def _inner_distance(site: Site) -> Spec:
    _refuse(site, "update_center_only", "normalize", "transpose")
    kind = text(site.settings, "distance_type") or "L2"
    if kind not in ("L1", "L2") or integer(site.settings, "axis", 1) != 1:
        raise MisfitError("InnerDistance is built for L1 and L2, from axis 1 on")
    return spec(fork_layers.InnerDistance, site.shapes.get("centers"), distance_type=kind)


def _dense_block(site: Site) -> Spec:
    sizes = (integer(site.settings, name) for name in ("numTransition", "initChannel", "growthRate"))
    given = _given(site, "moving_average_fraction", *["dropout_amount"] * flag(site.settings, "use_dropout"))
    return spec(fork_layers.DenseBlock, *sizes, bottleneck=flag(site.settings, "use_BC"), **given)


def _general_contrastive(site: Site) -> Spec:
    _refuse(site, "max_negative_only", "max_positive_only", "positive_first", "exp_negative_weight", "add_intra_mae")
    if "normalize_negative" in site.settings or len(site.bottoms) != 2 or len(site.top_names) != 2:
        raise MisfitError("GeneralContrastiveLoss is built for two bottoms and two tops, without normalize_negative")
    names = ("positive_margin", "negative_margin", "positive_weight", "negative_weight", "positive_outlier_thresh")
    return spec(fork_losses.general_contrastive_loss, **_given(site, *names))


def _triplet(site: Site) -> Spec:
    """cherrm's of three bottoms, or Bin Wang's of sets in one."""
    if len(site.bottoms) == 3:
        return spec(fork_losses.triplet_loss, **_given(site, "margin"))
    if len(site.bottoms) == 2 and site.settings.get("losstype") == 0 and "num_triplets" in site.settings:
        return spec(fork_losses.triplet_sets_loss, **_given(site, "margin", "num_triplets"))
    raise MisfitError(f"no public source of a TripletLoss of {len(site.bottoms)} bottoms with these settings is known")


def _meanfield(site: Site) -> Spec:
    thetas = (number(site.settings, f"theta_{name}", 10.0) for name in ("alpha", "beta", "gamma"))
    classes = site.shapes["compatibility"][-1]
    return spec(MultiStageMeanfield, classes, integer(site.settings, "num_iterations", 1), *thetas)


def _refuse(site: Site, *switches: str) -> None:
    if on := [name for name in switches if flag(site.settings, name)]:
        raise MisfitError(f"{', '.join(on)} is not built")


def _normalize(site: Site) -> Spec:
    """SSD's with its learned scale, or NormFace's without."""
    across, eps = bool(site.shapes) and flag(site.settings, "across_spatial", True), number(site.settings, "eps", 1e-10)
    return spec(layers.Normalize, site.shapes.get("scale"), across_spatial=across, eps=eps)


# Windows over images.


def _pooling(site: Site) -> Spec:
    pool, masked = text(site.settings, "pool") or "MAX", len(site.top_names) > 1
    if flag(site.settings, "global_pooling") and pool in ("MAX", "AVE") and not masked:
        return Spec(nn.AdaptiveMaxPool2d if pool == "MAX" else nn.AdaptiveAvgPool2d, (1,))
    sizes, stride, pad, ceil = pool_window(site)
    count = len(sizes)
    wide = any(2 * p > k for p, k in zip(pad, sizes, strict=True))
    match pool, masked:
        case "MAX" | "AVE", False if wide and count == 2:
            return spec(functions.wide_pool, kernel_size=sizes, stride=stride, padding=pad, pool=pool, ceil_mode=ceil)
        case "MAX" | "AVE", False if not wide and count in _POOLS:
            target = _POOLS[count][pool == "AVE"]
            step = {} if stride == sizes else {"stride": _short(stride)}
            return spec(target, _short(sizes), **step, padding=_short(pad), ceil_mode=ceil)
        case "MAX", True if not wide and count == 2:
            return spec(functions.max_pool_with_mask, kernel_size=sizes, stride=stride, padding=pad, ceil_mode=ceil)
        case "MIN", False if not any(pad) and count == 2:
            return spec(functions.min_pool, kernel_size=sizes, stride=stride, ceil_mode=ceil)
        case "STOCHASTIC", False if ceil and not any(pad) and count == 2:
            return Spec(layers.StochasticPool, (sizes, stride))
    raise MisfitError(f"{pool} pooling over {count} axes with these settings is not built")


_POOLS = {2: (nn.MaxPool2d, nn.AvgPool2d), 3: (nn.MaxPool3d, nn.AvgPool3d)}


def _im2col(site: Site) -> Spec:
    sizes = kernel(site)
    if len(sizes) != 2:
        raise MisfitError(f"Im2col over {len(sizes)} axes is not built")
    stride, padding = per_axis(site, "stride", 2, 1), per_axis(site, "pad", 2, 0)
    dilation = broadcast(integers(site.settings, "dilation"), 2, 1, "dilation")
    return spec(functions.im2col, kernel_size=sizes, stride=stride, padding=padding, dilation=dilation)


def _lrn(site: Site) -> Spec:
    if text(site.settings, "norm_region") == "WITHIN_CHANNEL":
        return _settings(functions.within_channel_lrn, "local_size", "alpha", "beta")(site)
    usual = {"alpha": 1.0, "beta": 0.75, "k": 1.0}
    numbers = {name: number(site.settings, name, value) for name, value in usual.items()}
    return Spec(nn.LocalResponseNorm, (integer(site.settings, "local_size", 5),), numbers)


def _upsample(site: Site) -> Spec:
    """SegNet's by a mask, or darknet's."""
    scale, settings = integer(site.settings, "scale", 2), site.settings
    scales = integer(settings, "scale_h", scale), integer(settings, "scale_w", scale)
    if len(site.bottoms) < 2:
        return Spec(nn.Upsample, (), {"scale_factor": _short(scales)})
    size = integer(settings, "upsample_h", 0), integer(settings, "upsample_w", 0)
    less = int(flag(settings, "pad_out_h")), int(flag(settings, "pad_out_w"))
    return spec(functions.unpool, size=size) if all(size) else spec(functions.unpool, scale=scales, less=less)


# Element by element, and along axes.


def _relu(site: Site) -> Spec:
    slope = number(site.settings, "negative_slope", 0.0)
    return Spec(nn.LeakyReLU, (slope,)) if slope else Spec(nn.ReLU)


def _eltwise(site: Site) -> Spec:
    coeff, count = site.settings.get("coeff", ()), len(site.bottoms)
    coeff = coeff if isinstance(coeff, tuple) else (coeff,)
    if len(coeff) not in (0, count):
        raise MisfitError(f"{len(coeff)} coefficients for {count} bottoms")
    operation = text(site.settings, "operation") or "SUM"
    return spec(functions.eltwise, operation=operation, coeff=() if set(coeff) <= {1} else coeff)


def _slice(site: Site) -> Spec:
    points = integers(site.settings, "slice_point")
    return spec(functions.slice_tops, tops=len(site.top_names), slice_point=points, axis=axis_of(site, "slice_dim"))


def _reshape(site: Site) -> Spec:
    dims, settings = integers(nested(site.settings, "shape"), "dim"), site.settings
    return spec(
        functions.reshape, dims=dims, axis=integer(settings, "axis", 0), num_axes=integer(settings, "num_axes", -1)
    )


def _accuracy(site: Site) -> Spec:
    given = _given(site, "top_k", "axis", "ignore_label", "min_is_better")
    return spec(functions.accuracy, **given, by_class=len(site.top_names) > 1)


BUILDERS: Mapping[str, Builder] = {
    "AbsVal": _plain(torch.abs),
    "Accuracy": _accuracy,
    "ArgMax": _settings(functions.arg_max, "top_k", "out_max_val", "axis"),
    "Axpy": _plain(functions.axpy),
    "BN": _bn,
    "BNLL": _plain(nn.Softplus, threshold=50),
    "BatchNorm": _batch_norm,
    "BatchReindex": _plain(functions.batch_reindex),
    "Bias": lambda site: spec(layers.Bias, site.shapes.get("bias"), axis=integer(site.settings, "axis", 1)),
    "CenterLoss": lambda site: Spec(fork_losses.CenterLoss, site.shapes["centers"]),
    "ChannelShuffle": lambda site: Spec(nn.ChannelShuffle, (integer(site.settings, "group"),)),
    "Clip": lambda site: Spec(
        torch.clamp, (), {"min": number(site.settings, "min", 0.0), "max": number(site.settings, "max", 0.0)}
    ),
    "Concat": lambda site: spec(functions.concat, axis=axis_of(site, "concat_dim")),
    "ContinuationIndicator": lambda site: Spec(
        fork_layers.ContinuationIndicator, (integer(site.settings, "time_step"), integer(site.settings, "batch_size"))
    ),
    "Convolution": _convolution,
    "ConvolutionDepthwise": _convolution,
    "Crop": _settings(functions.crop, "axis", "offset"),
    "CtcLoss": lambda site: spec(
        fork_losses.ctc_loss, time_step=integer(site.settings, "time_step"), **_given(site, "blank_label")
    ),
    "Deconvolution": lambda site: _convolution(site, _DECONVOLUTIONS),
    "DenseBlock": _dense_block,
    "DepthwiseConvolution": _convolution,
    "Dropout": lambda site: Spec(nn.Dropout, (number(site.settings, "dropout_ratio", 0.5),)),
    "ELU": _settings(nn.ELU, "alpha"),
    "Eltwise": _eltwise,
    "Embed": lambda site: spec(layers.Embed, *site.shapes["weight"], bias="bias" in site.shapes),
    "EuclideanLossWithTV": _settings(fork_losses.euclidean_loss_with_tv, weight="lambda"),
    "Exp": _settings(functions.exponential, "base", "scale", "shift"),
    "Filter": _plain(functions.filtered),
    "Flatten": _settings(nn.Flatten, start_dim="axis", end_dim="end_axis"),
    "Gather": _plain(functions.gather),
    "GeneralContrastiveLoss": _general_contrastive,
    "GlobalSumPooling": _plain(functions.global_sum_pool),
    "HardSwish": _plain(nn.Hardswish),
    "Im2col": _im2col,
    "InnerDistance": _inner_distance,
    "InnerProduct": _inner_product,
    "Interp": _settings(functions.interp, "height", "width", "shrink_factor", "zoom_factor", "pad_beg", "pad_end"),
    "LRN": _lrn,
    "LSTM": _recurrent(layers.LSTM, 4),
    "LabelsequenceAccuracy": _settings(fork_layers.label_sequence_accuracy, "blank_label"),
    "LiftedStructSimilaritySoftmaxLoss": _settings(fork_losses.lifted_struct_loss, "margin"),
    "Log": _settings(functions.logarithm, "base", "scale", "shift"),
    "Lstm": _lstm,
    "MVN": _settings(functions.mvn, "normalize_variance", "across_channels", "eps"),
    "MarginInnerProduct": _margin_inner_product,
    "Mish": _plain(nn.Mish),
    "MultiStageMeanfield": _meanfield,
    "Normalize": _normalize,
    "PReLU": lambda site: spec(nn.PReLU, num_parameters=max(site.shapes["slope"], default=1)),
    "Parameter": lambda site: Spec(layers.Parameter, (site.shapes["weight"],)),
    "Permute": lambda site: spec(functions.permute, order=integers(site.settings, "order")),
    "Pooling": _pooling,
    "Power": _settings(functions.power, "power", "scale", "shift"),
    "RNN": _recurrent(layers.RNN, 1),
    "ReLU": _relu,
    "ReLU6": _plain(nn.ReLU6),
    "Reduction": _settings(functions.reduction, "operation", "axis", "coeff"),
    "Reorg": _settings(functions.reorg, "stride", "reverse"),
    "Reshape": _reshape,
    "SPP": _settings(functions.spp, "pyramid_height", "pool"),
    "SVRLoss": _plain(fork_losses.svr_loss),
    "Scale": _scale,
    "SegAccuracy": lambda site: spec(
        fork_layers.SegAccuracy, integers(site.settings, "ignore_label"), **_given(site, "reset")
    ),
    "ShuffleChannel": lambda site: Spec(nn.ChannelShuffle, (integer(site.settings, "group"),)),
    "Sigmoid": _plain(nn.Sigmoid),
    "Silence": _plain(functions.silence),
    "Slice": _slice,
    "Softmax": lambda site: Spec(nn.Softmax, (integer(site.settings, "axis", 1),)),
    "SpatialDropout": lambda site: Spec(nn.Dropout2d, (number(site.settings, "dropout_ratio", 0.5),)),
    "Split": lambda site: Spec(functions.split, (), {"tops": len(site.top_names)}),
    "Swish": _settings(functions.swish, "beta"),
    "TanH": _plain(nn.Tanh),
    "Threshold": _settings(functions.threshold, "threshold"),
    "Tile": _settings(functions.tile, "tiles", "axis"),
    "TripletLoss": _triplet,
    "Upsample": _upsample,
    "XCovLoss": _plain(fork_losses.xcov_loss),
}
"""One row a layer type; what has none (Python layers, detection heads) is known by its parameters alone."""
