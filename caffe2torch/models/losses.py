"""Caffe's softmax loss, with the class weights of the SegNet fork."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum

import torch
import torch.nn.functional as F  # noqa: N812 - as all of torch's own documents write it
from torch import Tensor, nn

from caffe2torch.errors import Caffe2TorchError

__all__ = ["CaffeSoftmaxLoss", "Normalization"]

_LOG_FLT_MIN = math.log(torch.finfo(torch.float32).tiny)  # Caffe takes the logarithm of max(probability, FLT_MIN)
_NOTHING_IGNORED = torch.iinfo(torch.int64).min  # torch ignores -100 unless told otherwise


class Normalization(StrEnum):
    """What the summed loss is divided by (``LossParameter.NormalizationMode``)."""

    FULL = "FULL"  # the number of labels, ignored ones included
    VALID = "VALID"  # the number of labels that are not ignored
    BATCH_SIZE = "BATCH_SIZE"  # the number of images
    NONE = "NONE"  # 1


class CaffeSoftmaxLoss(nn.Module):
    """The layer ``SoftmaxWithLoss`` (``softmax_loss_layer.cpp``), with the SegNet fork's class weights.

    ``scores`` is ``(N, C, ...)``, ``labels`` ``(N, ...)`` or, as Caffe shapes them, ``(N, 1, ...)``: class numbers of
    any number type. The loss is the sum of ``-class_weights[label] * log(p[label])`` over all labels that are not
    ``ignore_label``, divided as ``normalization`` says. ``VALID``, the default of Caffe and of the fork
    (``normalize: true``), divides by the **count** of kept labels; torch's weighted ``mean`` divides by the sum of
    their weights, another loss and so another learning rate. ``normalize: false`` is ``BATCH_SIZE``.

    As in Caffe the divisor is at least 1, so a batch without a kept label costs 0 (the fork divides 0 by 0 there, and
    the NaN ends its training); and a probability counts as at least ``FLT_MIN`` in the loss, though not in its
    gradient.

    Raises ``Caffe2TorchError`` if class weights or labels do not fit the scores; a label that is no class is torch's
    ``IndexError``.

    >>> loss = CaffeSoftmaxLoss(class_weights=[1.0, 3.0], ignore_label=2)
    >>> round(loss(torch.zeros(1, 2, 4), torch.tensor([[0, 1, 1, 2]])).item() / math.log(2), 4)  # (1 + 3 + 3) / 3
    2.3333
    """

    class_weights: Tensor | None

    def __init__(
        self,
        class_weights: Sequence[float] | Tensor | None = None,
        ignore_label: int | None = None,
        normalization: Normalization = Normalization.VALID,
    ) -> None:
        super().__init__()
        weights = None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)  # settings, not something learned
        self.ignore_label = ignore_label
        self.normalization = Normalization(normalization)

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch, a scalar."""
        labels = self._fitted(scores, labels)
        log_p = F.log_softmax(scores, dim=1)
        log_p = log_p + (log_p.clamp_min(_LOG_FLT_MIN) - log_p).detach()
        weights = None if self.class_weights is None else self.class_weights.to(scores.dtype)
        ignored = _NOTHING_IGNORED if self.ignore_label is None else self.ignore_label
        total = F.nll_loss(log_p, labels, weights, ignore_index=ignored, reduction="sum")
        match self.normalization:
            case Normalization.VALID:
                return total / (labels != ignored).sum().clamp_min(1)
            case Normalization.FULL:
                return total / max(labels.numel(), 1)
            case Normalization.BATCH_SIZE:
                return total / max(labels.shape[0], 1)
            case Normalization.NONE:
                return total

    def extra_repr(self) -> str:
        """What the loss is made with, for ``print``."""
        weights = None if self.class_weights is None else [round(w, 6) for w in self.class_weights.tolist()]
        return f"class_weights={weights}, ignore_label={self.ignore_label}, normalization={self.normalization}"

    def _fitted(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The labels as torch wants them; complains unless they and the class weights fit the scores."""
        expected = (scores.shape[0], *scores.shape[2:])
        if labels.dim() == scores.dim() and labels.shape[1] == 1:
            labels = labels.squeeze(1)
        if tuple(labels.shape) != expected:
            raise Caffe2TorchError(
                "the labels do not fit the scores", found=str(tuple(labels.shape)), expected=str(expected)
            )
        if self.class_weights is not None and len(self.class_weights) != scores.shape[1]:
            raise Caffe2TorchError(
                "the class weights do not fit the scores",
                found=f"{len(self.class_weights)} weights",
                expected=f"{scores.shape[1]}, one a class",
            )
        return labels.long()
