"""Losses and metrics: which layers they are, and what a loss's settings say (weights, divisor, labels, gradients)."""

from __future__ import annotations

from typing import Any

from caffe2torch.errors import NetError
from caffe2torch.net.layer_rules import Node, nested
from caffe2torch.net.normalization import Normalization
from caffe2torch.recipe import Layer

__all__ = [
    "METRICS",
    "class_axis",
    "class_weights",
    "ignore_label",
    "is_loss",
    "loss_weights",
    "normalization",
    "propagate_down",
]


METRICS = frozenset({"Accuracy", "LabelsequenceAccuracy", "SegAccuracy"})
"""Layers that judge what a net computes, and from which no gradient comes."""

_OTHER_LOSSES = frozenset({"YoloSeg", "Yolov3"})
"""Loss layers that are not called one."""


def is_loss(layer: Layer | Node) -> bool:
    """Whether this is a loss layer, whose first top counts without a ``loss_weight``; Caffe's forks have many more.

    A loss may be called ``SoftmaxWithLossOHEM``; ``Softmax`` is none.
    """
    return "Loss" in layer.type or layer.type in _OTHER_LOSSES


def loss_weights(layer: Layer) -> tuple[float, ...]:
    """The weight of each top in the net's loss, ``weight * top.sum()``: what ``loss_weight`` states.

    Where it states nothing, 1 for the first top of a loss layer and 0 for every other top.

    Raises:
        NetError: The layer states some weights, but not one per top.

    >>> from caffe2torch.errors import SourceLocation
    >>> layer = Layer("loss", "EuclideanLoss", ("a", "b"), ("loss",), {}, ((),), (), SourceLocation("net", 1, 1))
    >>> loss_weights(layer)
    (1.0,)
    """
    tops = max(len(layer.tops), is_loss(layer))  # Caffe makes a loss layer's top where the file names none
    if weights := _stated(layer, "loss_weight", tops, "tops"):
        return tuple(float(weight) for weight in weights)
    return (float(is_loss(layer)), *(0.0 for _ in range(1, tops))) if tops else ()


def propagate_down(layer: Layer) -> tuple[bool | None, ...]:
    """For each bottom whether the layer asks for a gradient or forbids it; ``None`` where it states nothing.

    Raises:
        NetError: It states some of them, but not one per bottom.
    """
    flags = _stated(layer, "propagate_down", len(layer.bottoms), "bottoms")
    return tuple(bool(flag) for flag in flags) or (None,) * len(layer.bottoms)


def _stated(layer: Layer, setting: str, count: int, of: str) -> tuple[Any, ...]:
    """What a layer states for each of its tops or bottoms; empty if it states nothing."""
    stated = layer.settings.get(setting, ())
    values = stated if isinstance(stated, tuple) else (stated,)
    if len(values) not in (0, count):
        raise NetError(
            f"layer {layer.name!r} states {setting} for some of its {of}",
            where=layer.where,
            found=f"{len(values)} values, {count} {of}",
            expected=f"none, or one per {of[:-1]}",
        )
    return values


def normalization(layer: Layer) -> Normalization:
    """The divisor that a layer's ``loss_param`` asks for; ``normalization``, where stated, wins over ``normalize``."""
    settings = nested(layer.settings, "loss_param")
    if (stated := settings.get("normalization")) is not None:
        try:
            return Normalization(str(stated))
        except ValueError:
            expected = ", ".join(Normalization)
            raise NetError(f"no normalization {stated!r}", where=layer.where, expected=expected) from None
    if (normalize := settings.get("normalize")) is not None:
        return Normalization.VALID if normalize else Normalization.BATCH_SIZE
    return Normalization.BATCH_SIZE if layer.type == "SigmoidCrossEntropyLoss" else Normalization.VALID


def class_weights(layer: Layer) -> tuple[float, ...] | None:
    """The SegNet fork's class weights; stated alone, without ``weight_by_label_freqs``, they do not count."""
    settings = nested(layer.settings, "loss_param")
    weights = settings.get("class_weighting", ())
    return weights if settings.get("weight_by_label_freqs") and isinstance(weights, tuple) else None


def ignore_label(layer: Layer) -> int | None:
    """The label that costs nothing, if there is one."""
    value = nested(layer.settings, "loss_param").get("ignore_label")
    return value if isinstance(value, int) else None


def class_axis(layer: Layer) -> int:
    """The axis of the scores that holds the classes."""
    value = layer.settings.get("axis", 1)
    return value if isinstance(value, int) else 1
