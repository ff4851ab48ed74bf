"""Seeded scores and labels on which two losses can be compared, and the ways in which a user's loss takes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from caffe2torch.models.losses import LOSSES
from caffe2torch.models.net_loss import LossTerm
from caffe2torch.net.layer_rules import number
from caffe2torch.net.loss_settings import class_axis, ignore_label
from caffe2torch.recipe import NetRecipe, Shape

__all__ = ["call", "predictions", "sample", "stated_batch"]

_MOST = 2**22  # elements of a blob: beyond, the batch of the sample is smaller than the net's
_UNKNOWN = (2, 5, 6, 7)  # sizes for what the file does not state: batch, channels, height, width


def sample(recipe: NetRecipe, terms: Sequence[LossTerm], *, larger: int = 0, ignored: bool = True) -> dict[str, Tensor]:
    """A tensor for every blob of the loss, in the net's own sizes and with at least 2 images.

    Labels are as torch wants them. About one in four is ignored where the net ignores a label.

    Args:
        recipe: The net, for the sizes of its blobs.
        terms: What its loss adds up.
        larger: By how many images the batch is larger than the net's.
        ignored: Whether the labels that the net ignores occur.
    """
    generator = torch.Generator().manual_seed(0)
    first = {blob: _filled(shape) for blob, shape in _sizes(recipe, terms).items()}
    rest = max(math.prod(shape[1:]) for shape in first.values())
    batch = stated_batch(recipe, terms) or _UNKNOWN[0]
    batch = max(2, min(batch, _MOST // rest)) + larger
    blobs: dict[str, Tensor] = {}
    for term in terms:
        shape = first[term.blobs[0]]
        made = _inputs(term, (batch, *shape[1:]) if shape else (), ignored, generator)
        for blob, tensor in zip(term.blobs, made, strict=False):
            blobs.setdefault(blob, tensor)
    return blobs


def stated_batch(recipe: NetRecipe, terms: Sequence[LossTerm]) -> int | None:
    """The batch of the net's loss, as far as the files and the stated inputs give it."""
    return max((shape[0] or 0 for shape in _sizes(recipe, terms).values() if shape), default=0) or None


def _sizes(recipe: NetRecipe, terms: Sequence[LossTerm]) -> dict[str, Shape]:
    """The shape of what each loss takes first."""
    sizes = {
        top: shape
        for layer in recipe.layers
        for top, shape in zip(layer.tops, layer.top_shapes, strict=False)
        if shape is not None
    }
    return {term.blobs[0]: sizes.get(term.blobs[0], (None, None)) for term in terms}


def _filled(shape: Sequence[int | None]) -> tuple[int, ...]:
    return tuple(_UNKNOWN[min(i, 3)] if size is None else size for i, size in enumerate(shape))


def _inputs(term: LossTerm, shape: tuple[int, ...], ignored: bool, generator: torch.Generator) -> list[Tensor]:
    """The bottoms of a loss layer, or the one top that counts."""
    layer = term.layer
    scores = torch.randn(shape, generator=generator)
    if not term.loss_layer:
        return [scores]
    others = torch.randn(shape, generator=generator)
    weights = [torch.rand(shape, generator=generator) for _ in range(2)]
    match layer.type:
        case "EuclideanLoss":
            return [scores, others]
        case "SmoothL1Loss":
            return [scores, others, *weights]
        case "ContrastiveLoss":
            similar = (torch.rand(shape[0], generator=generator) < 0.5).long()
            similar[:2] = torch.tensor([0, 1])[: shape[0]]
            margin = number(layer.settings, "margin", 1.0)
            scale = margin / math.sqrt(2 * math.prod(shape[1:]))  # half of them inside the margin
            return [scale * scores, scale * others, similar]
        case "SigmoidCrossEntropyLoss":
            targets = (others > 0).float()
            return [scores, _with_ignored(targets, ignore_label(layer) if ignored else None, generator)]
    axis = class_axis(layer) % len(shape) if layer.type in ("SoftmaxWithLoss", "InfogainLoss") else 1
    classes = shape[axis]
    spatial = () if layer.type in ("HingeLoss", "MultinomialLogisticLoss") else shape[1:axis] + shape[axis + 1 :]
    labels = torch.randint(classes, (shape[0], *spatial), generator=generator)
    label = ignore_label(layer)
    labels = _with_ignored(labels, label if ignored else None, generator)
    if label is not None and not ignored and 0 <= label < classes:
        labels[labels == label] = (label + 1) % classes
    if layer.type == "MultinomialLogisticLoss":
        return [scores.flatten(1).softmax(1).reshape(shape), labels]
    return [scores, labels, torch.rand(classes, classes, generator=generator)]


def _with_ignored(labels: Tensor, label: int | None, generator: torch.Generator) -> Tensor:
    if label is not None:
        labels[torch.rand(labels.shape, generator=generator) < 0.25] = label
        labels.view(-1)[0] = label  # at least one
        labels.view(-1)[-1] = 0 if label != 0 else 1  # and one that counts
    return labels


def predictions(recipe: NetRecipe, terms: Sequence[LossTerm]) -> dict[str, list[LossTerm]]:
    """The blobs that the net predicts and its loss needs a gradient for, with the terms that take each."""
    computed = {top for layer in recipe.layers if layer.bottoms for top in layer.tops}
    found: dict[str, list[LossTerm]] = {}
    for term in terms:
        learns = LOSSES[term.layer.type].learns if term.loss_layer else 1
        for blob in [blob for blob in term.blobs[:learns] if blob in computed] or term.blobs[:1]:
            found.setdefault(blob, []).append(term)
    return found


def call(loss: Callable[..., object], terms: Sequence[LossTerm], blobs: Mapping[str, Tensor]) -> object:
    """What the user's loss gives for these blobs, in the first of the usual ways to call it that does not fail.

    Of one loss layer: ``loss(*bottoms)``, ``loss(scores, labels)``. Of several: ``loss({blob: tensor, ...})``,
    ``loss((scores, ...), labels)`` with the labels once where they are one blob, ``loss(scores, ..., labels)``.

    Raises:
        Exception: What the loss raised, if it fails in every way: the error of the way that came furthest.
    """
    errors = []
    for arguments in _ways(terms, blobs):
        try:
            return loss(*arguments)
        except Exception as error:  # the user's code may raise anything
            errors.append(error)
    raise next((error for error in errors if not isinstance(error, TypeError)), errors[0])


def _ways(terms: Sequence[LossTerm], blobs: Mapping[str, Tensor]) -> Iterator[tuple[object, ...]]:
    if len(terms) == 1:
        tensors = tuple(blobs[blob] for blob in terms[0].blobs)
        yield tensors
        yield (dict(blobs),)
        if len(tensors) > 2:
            yield tensors[:2]
        if len(tensors) > 1 and tensors[0].dim() == tensors[1].dim() + 1 and tensors[0].dim() > 2:
            yield (tensors[0], tensors[1].unsqueeze(1), *tensors[2:])  # as Caffe shapes labels
        return
    yield (dict(blobs),)
    scores = list(dict.fromkeys(term.blobs[0] for term in terms))
    labels = list(dict.fromkeys(blob for term in terms for blob in term.blobs[1:]))
    outputs, targets = tuple(blobs[blob] for blob in scores), tuple(blobs[blob] for blob in labels)
    yield (outputs, *targets) if len(targets) == 1 else (outputs, targets)
    yield (*outputs, *targets)
