"""Caffe's losses as torch modules, each with the divisor and the gradient of its Caffe layer.

Every module gives the unweighted loss of its layer, a scalar, from the layer's bottoms. A ``loss_weight`` is the net's
matter (``caffe2torch.models.net_loss``). Labels may have Caffe's shape and type: axes of size 1 do not count, and
fractions are cut off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - as all of torch's own documents write it
from torch import Tensor, nn

from caffe2torch.errors import Caffe2TorchError
from caffe2torch.models.loss_functions import contrastive_loss, infogain_sum, value_of
from caffe2torch.models.loss_inputs import class_numbers, classes_first, in_range, no_gradient, shaped, sizes
from caffe2torch.net.normalization import Normalization

__all__ = [
    "CaffeSoftmaxLoss",
    "ContrastiveLoss",
    "EuclideanLoss",
    "HingeLoss",
    "InfogainLoss",
    "MultinomialLogisticLoss",
    "SigmoidCrossEntropyLoss",
    "SmoothL1Loss",
]

_LOG_FLT_MIN = math.log(torch.finfo(torch.float32).tiny)  # Caffe takes the logarithm of max(probability, FLT_MIN)
_FLOOR = 1e-20  # kLOG_THRESHOLD
_NOTHING_IGNORED = torch.iinfo(torch.int64).min  # torch's own default ignores -100


class _Loss(nn.Module):
    """A loss that shows what it is made with."""

    def extra_repr(self) -> str:
        """Its settings, for ``print``."""
        return ", ".join(f"{k}={v}" for k, v in vars(self).items() if not k.startswith("_") and k != "training")


class CaffeSoftmaxLoss(nn.Module):
    """The layer ``SoftmaxWithLoss`` (``softmax_loss_layer.cpp``), with the SegNet fork's class weights.

    The loss is the sum of ``-class_weights[label] * log(p[label])`` over all labels that are not ``ignore_label``,
    divided as ``normalization`` says. ``VALID``, the default of Caffe and of the fork (``normalize: true``), divides
    by the **count** of kept labels; torch's weighted ``mean`` divides by the sum of their weights, another loss and so
    another learning rate. ``normalize: false`` is ``BATCH_SIZE``.

    A batch without a kept label costs 0 (the fork divides 0 by 0 there, and the NaN ends its training). A probability
    counts as at least ``FLT_MIN`` in the loss, though not in its gradient.

    Args:
        class_weights: One factor per class; ``None`` for 1.
        ignore_label: The label that costs nothing; ``None`` if every label counts.
        normalization: The divisor.
        axis: The axis of ``scores`` that holds the classes, from 1 or negative.

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
        axis: int = 1,
    ) -> None:
        super().__init__()
        weights = None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)  # settings, not something learned
        self.ignore_label = ignore_label
        self.normalization = Normalization(normalization)
        self.axis = axis

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            scores: ``(N, C, ...)``, before the softmax.
            labels: ``(N, ...)``, class numbers: the shape of ``scores`` without the class axis.

        Raises:
            Caffe2TorchError: Class weights or labels do not fit the scores.
            IndexError: A label is no class.
        """
        scores, outer = classes_first(scores, self.axis)
        labels = class_numbers(labels, (scores.shape[0], *scores.shape[2:]))
        if self.class_weights is not None and len(self.class_weights) != scores.shape[1]:
            raise Caffe2TorchError(
                "the class weights do not fit the scores",
                found=f"{len(self.class_weights)} weights",
                expected=f"{scores.shape[1]}, one a class",
            )
        log_p = F.log_softmax(scores, dim=1)
        log_p = value_of(log_p.clamp_min(_LOG_FLT_MIN), gradient_of=log_p)
        weights = None if self.class_weights is None else self.class_weights.to(scores.dtype)
        ignored = _NOTHING_IGNORED if self.ignore_label is None else self.ignore_label
        total = F.nll_loss(log_p, labels, weights, ignore_index=ignored, reduction="sum")
        return total / _divisor(self.normalization, labels != ignored, outer)

    def extra_repr(self) -> str:
        """What the loss is made with, for ``print``."""
        weights = None if self.class_weights is None else [round(w, 6) for w in self.class_weights.tolist()]
        axis = "" if self.axis == 1 else f", axis={self.axis}"
        return f"class_weights={weights}, ignore_label={self.ignore_label}, normalization={self.normalization}{axis}"


class SigmoidCrossEntropyLoss(_Loss):
    """The layer ``SigmoidCrossEntropyLoss`` (``sigmoid_cross_entropy_loss_layer.cpp``).

    ``F.binary_cross_entropy_with_logits``, summed and divided by N: for 256x256 scores a gradient 65,536 times that
    of torch's default, which divides by every element.

    Args:
        ignore_label: The target (its whole part) that costs nothing; ``None`` if every target counts.
        normalization: The divisor. ``FULL`` and ``VALID`` count elements, ``BATCH_SIZE`` images.

    >>> loss = SigmoidCrossEntropyLoss()
    >>> round(loss(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)).item() / math.log(2), 4)  # 32 elements / 2
    16.0
    """

    def __init__(
        self, ignore_label: int | None = None, normalization: Normalization = Normalization.BATCH_SIZE
    ) -> None:
        super().__init__()
        self.ignore_label = ignore_label
        self.normalization = Normalization(normalization)

    def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            scores: ``(N, ...)``, before the sigmoid.
            targets: Probabilities in the shape of ``scores``. Caffe gives them no gradient.

        Raises:
            Caffe2TorchError: The two shapes differ, or a gradient is wanted for the targets.
        """
        targets = shaped(no_gradient(targets, "targets"), tuple(scores.shape), "targets").to(scores.dtype)
        costs = F.binary_cross_entropy_with_logits(scores, targets, reduction="none")
        kept = torch.ones_like(scores, dtype=torch.bool)
        if self.ignore_label is not None:
            kept = targets.trunc() != self.ignore_label
            costs = costs.where(kept, 0)
        return costs.sum() / _divisor(self.normalization, kept, scores.shape[0])


class EuclideanLoss(nn.Module):
    """The layer ``EuclideanLoss`` (``euclidean_loss_layer.cpp``): ``F.mse_loss(a, b, reduction="sum") / (2 * N)``.

    >>> EuclideanLoss()(torch.ones(2, 3), torch.zeros(2, 3)).item()  # 6 / 4
    1.5
    """

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The loss of a batch, a scalar; both ``a`` and ``b``, of one shape ``(N, ...)``, get a gradient.

        Raises:
            Caffe2TorchError: The two shapes differ.
        """
        b = shaped(b, tuple(a.shape), "second input").to(a.dtype)
        return F.mse_loss(a, b, reduction="sum") / (2 * a.shape[0])


class HingeLoss(_Loss):
    """The layer ``HingeLoss`` (``hinge_loss_layer.cpp``), one against all: no torch call is the same.

    Every score costs ``max(0, 1 - score)`` for the label's class and ``max(0, 1 + score)`` for any other, or the
    square of it; the sum is divided by N. ``torch.nn.MultiMarginLoss`` compares with the label's score instead.

    Args:
        norm: ``"L1"`` or ``"L2"`` (the square).

    >>> HingeLoss()(torch.tensor([[0.5, -2.0]]), torch.tensor([0])).item()  # 1 - 0.5
    0.5
    """

    def __init__(self, norm: str = "L1") -> None:
        super().__init__()
        if norm not in ("L1", "L2"):
            raise Caffe2TorchError(f"no hinge norm {norm!r}", expected="L1 or L2")
        self.norm = norm

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            scores: ``(N, C)``; further axes are flattened into the classes, as in Caffe.
            labels: ``(N,)``, class numbers.

        Raises:
            Caffe2TorchError: The labels do not fit the scores.
        """
        scores = scores.flatten(1)
        labels = in_range(class_numbers(labels, (scores.shape[0],)), scores.shape[1])
        sign = 1 - 2 * F.one_hot(labels, scores.shape[1]).to(scores)
        margins = F.relu(1 + sign * scores)
        return (margins if self.norm == "L1" else margins.square()).sum() / scores.shape[0]


class ContrastiveLoss(_Loss):
    """The layer ``ContrastiveLoss`` (``contrastive_loss_layer.cpp``): no torch call is the same.

    With the distance d of a pair, a similar one costs d^2 and another one ``max(margin - d, 0)^2``, with
    ``legacy_version`` ``max(margin - d^2, 0)``; the sum is divided by 2N. Caffe's gradient of a pair that is not
    similar divides by ``d + 1e-4`` where the derivative has d, and so does this one.

    >>> loss = ContrastiveLoss(margin=2.0)
    >>> loss(torch.tensor([[1.0], [1.0]]), torch.tensor([[0.0], [0.0]]), torch.tensor([1, 0])).item()  # (1 + 1) / 4
    0.5
    """

    def __init__(self, margin: float = 1.0, legacy_version: bool = False) -> None:
        super().__init__()
        self.margin = margin
        self.legacy_version = legacy_version

    def forward(self, a: Tensor, b: Tensor, similar: Tensor) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            a: ``(N, C)``, or with further axes of size 1.
            b: The other half of each pair, in the shape of ``a``.
            similar: ``(N,)``, 1 for a similar pair, else 0.

        Raises:
            Caffe2TorchError: The shapes differ.
        """
        if a.dim() < 2 or a.numel() != a.shape[0] * a.shape[1]:
            raise Caffe2TorchError("ContrastiveLoss compares vectors", found=sizes(a.shape), expected="(N, C)")
        b = shaped(b, tuple(a.shape), "second input").flatten(1)
        similar = class_numbers(similar, (a.shape[0],))
        return contrastive_loss(a.flatten(1), b, similar, self.margin, self.legacy_version)


class InfogainLoss(_Loss):
    """The layer ``InfogainLoss`` (``infogain_loss_layer.cpp``): no torch call is the same.

    The loss is the sum over the labels of ``-H[label] @ log(p)``, with p the softmax of the scores, divided as for
    ``SoftmaxWithLoss``. A probability counts as at least 1e-20 in the loss, though not in its gradient.

    Args:
        matrix: H, ``(C, C)``; ``None`` if it comes as the third input.
        ignore_label: The label that costs nothing; ``None`` if every label counts.
        normalization: The divisor.
        axis: The axis of ``scores`` that holds the classes, from 1 or negative.

    >>> loss = InfogainLoss(2 * torch.eye(3))
    >>> round(loss(torch.zeros(1, 3), torch.tensor([1])).item() / math.log(3), 4)
    2.0
    """

    matrix: Tensor | None

    def __init__(
        self,
        matrix: Tensor | None = None,
        ignore_label: int | None = None,
        normalization: Normalization = Normalization.VALID,
        axis: int = 1,
    ) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix, persistent=False)
        self.ignore_label = ignore_label
        self.normalization = Normalization(normalization)
        self.axis = axis

    def forward(self, scores: Tensor, labels: Tensor, matrix: Tensor | None = None) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            scores: ``(N, C, ...)``, before the softmax.
            labels: ``(N, ...)``, class numbers.
            matrix: H, ``(C, C)``, or with axes of size 1 before it; ``None`` for the module's own.

        Raises:
            Caffe2TorchError: There is no matrix, or it or the labels do not fit the scores.
        """
        matrix = self.matrix if matrix is None else matrix
        if matrix is None:
            raise Caffe2TorchError(
                "InfogainLoss has no matrix H",
                hint="give it as the third input, or set the module's `matrix` to what the layer's `source` holds",
            )
        scores, outer = classes_first(scores, self.axis)
        classes = scores.shape[1]
        matrix = shaped(no_gradient(matrix, "matrix H"), (classes, classes), "matrix H").to(scores.dtype)
        labels = class_numbers(labels, (scores.shape[0], *scores.shape[2:]))
        kept = torch.ones_like(labels, dtype=torch.bool) if self.ignore_label is None else labels != self.ignore_label
        in_range(labels[kept], classes)
        total = infogain_sum(scores, labels, matrix, self.ignore_label)
        return total / _divisor(self.normalization, kept, outer)


class MultinomialLogisticLoss(nn.Module):
    """The layer ``MultinomialLogisticLoss`` (``multinomial_logistic_loss_layer.cpp``), which takes probabilities.

    The sum of ``-log(max(p[label], 1e-20))`` divided by N: ``F.nll_loss`` of the logarithm, except that here the
    gradient of a probability below 1e-20 is that at 1e-20.

    >>> loss = MultinomialLogisticLoss()
    >>> round(loss(torch.tensor([[0.25, 0.75]]), torch.tensor([0])).item() / math.log(4), 4)
    1.0
    """

    def forward(self, probabilities: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            probabilities: ``(N, C)``; further axes are flattened into the classes, as in Caffe.
            labels: ``(N,)``, class numbers.

        Raises:
            Caffe2TorchError: The labels do not fit the probabilities.
            IndexError: A label is no class.
        """
        p = probabilities.flatten(1)
        floored = p.detach().clamp_min(_FLOOR)
        log_p = value_of(floored.log(), gradient_of=p / floored)
        labels = class_numbers(labels, (p.shape[0],))
        return F.nll_loss(log_p, labels, ignore_index=_NOTHING_IGNORED, reduction="sum") / p.shape[0]


class SmoothL1Loss(_Loss):
    """The layer ``SmoothL1Loss`` of the Fast R-CNN fork (``smooth_L1_loss_layer.cu``).

    With ``d = inside * (a - b)`` the sum of ``outside * smooth_l1(d)`` divided by N, where ``smooth_l1`` is torch's
    with ``beta = 1 / sigma**2``. torch's default divides by every element.

    >>> SmoothL1Loss()(torch.tensor([[0.5, 2.0]]), torch.zeros(1, 2)).item()  # 0.125 + 1.5
    1.625
    """

    def __init__(self, sigma: float = 1.0) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, a: Tensor, b: Tensor, inside: Tensor | None = None, outside: Tensor | None = None) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            a: ``(N, ...)``, what is predicted.
            b: The targets, in the shape of ``a``.
            inside: Weights of the differences, in the shape of ``a``.
            outside: Weights of the costs, in the shape of ``a``.

        Raises:
            Caffe2TorchError: The shapes differ.
        """
        shape = tuple(a.shape)
        difference = a - shaped(b, shape, "targets").to(a.dtype)
        if inside is not None:
            weighted = shaped(no_gradient(inside, "inside weights"), shape, "inside weights") * difference
            # the fork's first version, without outside weights, leaves the inside ones out of the gradient
            difference = value_of(weighted, gradient_of=difference) if outside is None else weighted
        zero = torch.zeros_like(difference)
        costs = F.smooth_l1_loss(difference, zero, beta=1 / self.sigma**2, reduction="none")
        if outside is not None:
            costs = shaped(no_gradient(outside, "outside weights"), shape, "outside weights") * costs
        return costs.sum() / a.shape[0]


def _divisor(normalization: Normalization, kept: Tensor, outer: int) -> Tensor | int:
    """What a sum is divided by, of labels that count where ``kept`` is true (``GetNormalizer``)."""
    match normalization:
        case Normalization.VALID:
            return kept.sum().clamp_min(1)
        case Normalization.FULL:
            return max(kept.numel(), 1)
        case Normalization.BATCH_SIZE:
            return max(outer, 1)
        case Normalization.NONE:
            return 1
