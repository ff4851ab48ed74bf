"""Losses that are mistaken for Caffe's: what a port's gradient is tried against, for each loss layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch.nn.functional as F  # noqa: N812 - as all of torch's own documents write it
from torch import Tensor, nn

from caffe2torch.models.loss_modules import (
    CaffeSoftmaxLoss,
    ContrastiveLoss,
    HingeLoss,
    InfogainLoss,
    MultinomialLogisticLoss,
    SigmoidCrossEntropyLoss,
    SmoothL1Loss,
)
from caffe2torch.models.losses import LOSSES
from caffe2torch.models.net_loss import LossTerm
from caffe2torch.net.loss_settings import class_axis, class_weights
from caffe2torch.verification.loss_divisors import divisor_of

__all__ = ["Variant", "variants"]


@dataclass(frozen=True)
class Variant:
    """A loss of the same inputs; ``words`` say what it does otherwise, ``None`` for Caffe's own.

    ``ignores`` is whether it ignores the labels that Caffe's ignores; ``tolerance`` how far a gradient may be from it,
    where Caffe's own is not the derivative.
    """

    words: str | None
    loss: Callable[[Mapping[str, Tensor]], Tensor]
    ignores: bool = True
    tolerance: float = 0.0


def variants(term: LossTerm, blobs: Mapping[str, Tensor], gradient: Tensor) -> Iterator[Variant]:
    """Caffe's own loss and then those that it is mistaken for, each without its ``loss_weight``.

    Args:
        term: Caffe's loss.
        blobs: Its inputs.
        gradient: What the port gave for the first of them: classes that it ignores show in it.
    """
    if not term.loss_layer:
        yield Variant(None, lambda b: b[term.blobs[0]].sum())
        return
    module = LOSSES[term.layer.type](term.layer)
    match module:
        case CaffeSoftmaxLoss():
            yield from _softmax(term, module, blobs, gradient)
        case SigmoidCrossEntropyLoss():
            yield from _sigmoid(term, module)
        case ContrastiveLoss():
            yield from _contrastive(term, module)
        case SmoothL1Loss():
            yield from _smooth_l1(term, module)
        case HingeLoss():
            other = "L2" if module.norm == "L1" else "L1"
            yield _of(term, module)
            yield _of(term, HingeLoss(other), f"yours is the {other} hinge loss, Caffe's {module.norm}")
            yield _by(term, "yours compares with the label's score (multi-margin)", _multi_margin)
            yield _by(term, "yours is a softmax cross-entropy", F.cross_entropy)
        case InfogainLoss():
            yield _of(term, module)
            plain = CaffeSoftmaxLoss(None, module.ignore_label, module.normalization, module.axis)
            yield _of(term, plain, "yours leaves out the matrix H", inputs=2)
        case MultinomialLogisticLoss():
            yield _of(term, module)
            yield _by(term, "yours takes the probabilities for scores and applies a softmax to them", F.cross_entropy)
            yield _by(term, "yours lacks the logarithm of the probabilities", F.nll_loss)
        case _:
            yield _of(term, module)
            yield _by(term, "yours sums absolute differences, Caffe's squares", F.l1_loss)
            yield _by(term, "yours is a smooth L1 loss, Caffe's sums squares", F.smooth_l1_loss)


def _of(term: LossTerm, loss: nn.Module, words: str | None = None, inputs: int | None = None) -> Variant:
    return Variant(words, lambda b: loss(*(b[blob] for blob in term.blobs[:inputs])))


def _by(term: LossTerm, words: str, loss: Callable[..., Tensor]) -> Variant:
    """Another loss of the first two inputs, divided as Caffe's module divides: the images."""
    return Variant(words, lambda b: loss(*_flat(b, term), reduction="sum") / b[term.blobs[0]].shape[0])


def _flat(blobs: Mapping[str, Tensor], term: LossTerm) -> Sequence[Tensor]:
    return [blobs[blob] for blob in term.blobs[:2]]


def _multi_margin(scores: Tensor, labels: Tensor, reduction: str) -> Tensor:
    return F.multi_margin_loss(scores, labels, reduction=reduction) * scores.shape[1]


def _softmax(
    term: LossTerm, module: CaffeSoftmaxLoss, blobs: Mapping[str, Tensor], gradient: Tensor
) -> Iterator[Variant]:
    weights = class_weights(term.layer)
    ignoring: dict[str | None, int | None] = {None: module.ignore_label}
    if module.ignore_label is not None:
        ignoring[f"yours does not ignore label {module.ignore_label}"] = None
    silent = _silent_classes(term, blobs, gradient)
    if len(silent) == 1:
        ignoring[f"yours ignores label {silent[0]}, Caffe's {_or_none(module.ignore_label)}"] = silent[0]
    weighting: dict[str | None, tuple[float, ...] | None] = {None: weights}
    if weights is not None:
        weighting["yours leaves out the class weights"] = None
    axis = class_axis(term.layer)
    for (how, reads), (ignores, label), (weighs, factors) in product(
        _READINGS.items(), ignoring.items(), weighting.items()
    ):
        loss = CaffeSoftmaxLoss(factors, label, module.normalization, axis)
        words = "; ".join(one for one in (how, ignores, weighs) if one is not None)
        yield Variant(words or None, _reading(term, loss, reads, axis), ignores is None)
    for how, logs in _LOGARITHMS.items():
        yield Variant(how, lambda b, logs=logs: _negative_log(term, module, logs(b[term.blobs[0]], axis), b))  # type: ignore[misc]


def _negative_log(term: LossTerm, module: CaffeSoftmaxLoss, logs: Tensor, blobs: Mapping[str, Tensor]) -> Tensor:
    """What NLLLoss makes of these, in place of log-probabilities."""
    ignored = -100 if module.ignore_label is None else module.ignore_label
    logs = logs.movedim(module.axis, 1)
    total = F.nll_loss(logs, blobs[term.blobs[1]], module.class_weights, ignore_index=ignored, reduction="sum")
    return total / divisor_of(term, blobs).value


def _reading(
    term: LossTerm, loss: CaffeSoftmaxLoss, reads: Callable[[Tensor, int], Tensor] | None, axis: int
) -> Callable[[Mapping[str, Tensor]], Tensor]:
    scores, labels = term.blobs
    if reads is None:
        return lambda b: loss(b[scores], b[labels])
    return lambda b: loss(reads(b[scores], axis), b[labels])


_READINGS: dict[str | None, Callable[[Tensor, int], Tensor] | None] = {
    None: None,
    "yours applies the softmax twice: it takes probabilities for scores": lambda x, axis: x.softmax(axis),
    "yours applies a sigmoid to the scores before the softmax": lambda x, _: x.sigmoid(),
}


_LOGARITHMS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "yours lacks the log-softmax: it takes scores for log-probabilities": lambda x, _: x,
    "yours lacks the logarithm: it takes probabilities for log-probabilities": lambda x, axis: x.softmax(axis),
}


def _silent_classes(term: LossTerm, blobs: Mapping[str, Tensor], gradient: Tensor) -> list[int]:
    """The classes whose labels cost nothing in the port, as far as the sample has them."""
    axis = class_axis(term.layer) % gradient.dim()
    moves = gradient.ne(0).any(axis)
    labels = blobs[term.blobs[1]].reshape(moves.shape)
    return [int(label) for label in sorted(set(labels.flatten().tolist())) if not bool(moves[labels == label].any())]


def _or_none(label: int | None) -> str:
    return "none" if label is None else str(label)


def _sigmoid(term: LossTerm, module: SigmoidCrossEntropyLoss) -> Iterator[Variant]:
    every = SigmoidCrossEntropyLoss(None, module.normalization)
    losses: list[tuple[str | None, nn.Module, bool]] = [(None, module, True)]
    if module.ignore_label is not None:
        losses.append((f"yours does not ignore label {module.ignore_label}", every, False))
    scores, targets = term.blobs
    for words, loss, ignores in losses:
        yield replace(_of(term, loss, words), ignores=ignores)
    for words, loss, ignores in losses:
        twice = "yours applies the sigmoid twice: it takes probabilities for scores"
        both = twice if words is None else f"{twice}; {words}"
        yield Variant(both, lambda b, loss=loss: loss(b[scores].sigmoid(), b[targets]), ignores)  # type: ignore[misc]


def _contrastive(term: LossTerm, module: ContrastiveLoss) -> Iterator[Variant]:
    a, b, similar = term.blobs
    own = replace(_of(term, module), tolerance=1e-2)  # a port's exact derivative is as good
    yield own
    other = ContrastiveLoss(module.margin, not module.legacy_version)
    square = "the margin minus the squared distance (legacy_version)"
    plain = "the square of the margin minus the distance"
    words = f"yours costs {plain if module.legacy_version else square}"
    yield replace(_of(term, other, words), tolerance=1e-2)
    flipped = "yours takes 1 for a pair that is not similar"
    yield Variant(flipped, lambda x: module(x[a], x[b], 1 - x[similar]), tolerance=1e-2)


def _smooth_l1(term: LossTerm, module: SmoothL1Loss) -> Iterator[Variant]:
    sigmas = {None: module, f"yours lacks sigma {module.sigma:g}: torch's beta is 1 / sigma^2": SmoothL1Loss(1.0)}
    inputs = {None: 4, "yours leaves out the outside weights": 3, "yours leaves out the weights": 2}
    for (sigma, loss), (left, count) in product(
        list(sigmas.items())[: 1 if module.sigma == 1 else 2], list(inputs.items())[: max(1, len(term.blobs) - 1)]
    ):
        words = "; ".join(one for one in (sigma, left) if one is not None)
        yield _of(term, loss, words or None, inputs=count)
    yield _by(
        term,
        "yours sums squares, Caffe's is smooth L1",
        lambda a, b, reduction: F.mse_loss(a, b, reduction=reduction) / 2,
    )
