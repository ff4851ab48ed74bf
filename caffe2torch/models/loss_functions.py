"""The losses that take more than one line of torch. Emitted files copy these functions as they are."""

from __future__ import annotations

import math

import torch

__all__ = ["contrastive_loss", "infogain_sum", "value_of"]


def value_of(value: torch.Tensor, gradient_of: torch.Tensor) -> torch.Tensor:
    """``value`` with the gradient of another tensor."""
    return value.detach() + (gradient_of - gradient_of.detach())


def contrastive_loss(
    a: torch.Tensor, b: torch.Tensor, similar: torch.Tensor, margin: float = 1.0, legacy: bool = False
) -> torch.Tensor:
    """Caffe's ContrastiveLoss of pairs of rows; ``similar`` is not 0 for a similar pair.

    The gradient of a pair that is not similar is Caffe's: it divides by the distance + 1e-4.
    """
    squares = (a - b).square().sum(1)
    distance = squares.detach().sqrt()
    if legacy:
        apart = (margin - squares.detach()).clamp_min(0)
        slope = -(apart > 0).to(apart)
    else:
        gap = (margin - distance).clamp_min(0)
        apart, slope = gap.square(), -gap / (distance + 1e-4)
    costs = torch.where(similar != 0, squares, value_of(apart, gradient_of=slope * squares))
    return costs.sum() / (2 * a.shape[0])


def infogain_sum(
    scores: torch.Tensor, labels: torch.Tensor, matrix: torch.Tensor, ignore_label: int | None = None
) -> torch.Tensor:
    """The sum over the labels of ``-matrix[label] @ log(p)``, with p the softmax over axis 1, as Caffe floors it."""
    log_p = torch.log_softmax(scores, 1).movedim(1, -1)
    log_p = value_of(log_p.clamp_min(math.log(1e-20)), gradient_of=log_p)
    kept = torch.ones_like(labels, dtype=torch.bool) if ignore_label is None else labels != ignore_label
    rows = matrix[labels.where(kept, 0)] * kept.unsqueeze(-1)
    return -(rows * log_p).sum()
