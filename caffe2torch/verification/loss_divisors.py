"""What a loss may divide by: the sizes of its inputs, with the words for each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from caffe2torch.models.net_loss import LossTerm
from caffe2torch.net.loss_settings import class_axis, class_weights, ignore_label, normalization
from caffe2torch.net.normalization import Normalization

__all__ = ["Divisor", "divisor_of", "divisors"]

_BY_LABELS = ("InfogainLoss", "SigmoidCrossEntropyLoss", "SoftmaxWithLoss")


@dataclass(frozen=True, slots=True)
class Divisor:
    """A number that a sum is divided by, and what it counts."""

    value: float
    words: str


def divisor_of(term: LossTerm, blobs: Mapping[str, Tensor] | None = None) -> Divisor:
    """What Caffe divides by, without the 1/2 of a Euclidean or contrastive loss; in words alone without blobs."""
    names = {
        Normalization.FULL: "all",
        Normalization.VALID: "all" if ignore_label(term.layer) is None else "kept",
        Normalization.BATCH_SIZE: "outer",
        Normalization.NONE: "one",
    }
    if not term.loss_layer:
        name = "one"
    else:
        name = names[normalization(term.layer)] if term.layer.type in _BY_LABELS else "images"
    if name == "outer" and (term.layer.type == "SigmoidCrossEntropyLoss" or class_axis(term.layer) == 1):
        name = "images"
    return _all(term, blobs, True)[name]


def divisors(term: LossTerm, blobs: Mapping[str, Tensor], ignores: bool) -> list[Divisor]:
    """What another loss may divide by instead, the likely ones first.

    Args:
        term: Caffe's loss.
        blobs: Its inputs.
        ignores: Whether the other loss ignores the labels that Caffe's ignores.
    """
    return list(_all(term, blobs, ignores).values())


def _all(term: LossTerm, blobs: Mapping[str, Tensor] | None, ignores: bool) -> dict[str, Divisor]:
    layer = term.layer
    sigmoid = layer.type == "SigmoidCrossEntropyLoss"
    unit = "elements" if sigmoid else "labels"
    if blobs is None:
        words = {"images": "the batch", "one": "1", "all": f"all {unit}", "kept": f"the {unit} that are not ignored"}
        return {name: Divisor(math.nan, text) for name, text in {**words, "outer": "all before the class axis"}.items()}
    scores = blobs[term.blobs[0]]
    images = scores.shape[0] if scores.dim() else 1
    found = {"images": Divisor(images, f"{images:,} images"), "one": Divisor(1, "1")}
    if layer.type in _BY_LABELS and term.loss_layer:
        labels = blobs[term.blobs[1]]
        ignored = ignore_label(layer)
        kept = (
            torch.ones_like(labels, dtype=torch.bool) if ignored is None or not ignores else labels.trunc() != ignored
        )
        count = int(kept.sum())
        outer = math.prod(scores.shape[: class_axis(layer)])
        found["all"] = Divisor(labels.numel(), f"{labels.numel():,} {unit}")
        found["kept"] = Divisor(max(count, 1), f"{count:,} {unit} that are not ignored")
        found["outer"] = Divisor(outer, f"{outer:,}, the product of the axes before the classes")
        weights = class_weights(layer)
        if weights is not None:
            total = float(torch.tensor(weights)[labels[kept].long()].sum())
            found["weights"] = Divisor(total, f"{total:,.4g}, the sum of the class weights of the labels")
    found["elements"] = Divisor(scores.numel(), f"{scores.numel():,} elements")
    return found
