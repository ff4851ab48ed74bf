"""Layers of Caffe's forks that take more than a few lines; each names the fork and its source file.

Each was written after that source; there is no recorded number to compare with.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - as all of torch's own documents write it
from torch import Tensor, nn

from caffe2torch.models.layers import LSTM
from caffe2torch.models.loss_functions import value_of

__all__ = [
    "ContinuationIndicator",
    "DenseBlock",
    "InnerDistance",
    "Lstm",
    "MarginInnerProduct",
    "SegAccuracy",
    "label_sequence_accuracy",
]


def label_sequence_accuracy(scores: Tensor, labels: Tensor, blank_label: int = 0) -> Tensor:
    """xmfbit's ``labelsequence_accuracy_layer.cpp``: the share of sequences read without a fault.

    Of scores ``(N, T, C)`` the best class at each time is read, repetitions once and blanks not at all; of labels
    ``(N, L)`` all that are not blank.
    """
    read = scores.detach().argmax(2)
    read = read.where(read != F.pad(read, (1, 0), value=blank_label)[:, :-1], blank_label)
    length = max(read.shape[1], labels.flatten(1).shape[1])
    sides = [F.pad(one, (0, length - one.shape[1]), value=blank_label) for one in (read, labels.flatten(1).long())]
    left, right = (one.gather(1, (one == blank_label).long().argsort(dim=1, stable=True)) for one in sides)
    return (left == right).all(1).to(scores.dtype).mean()


class SegAccuracy(nn.Module):
    """DeepLab's ``seg_accuracy_layer.cpp``, ``confusion_matrix.cpp``: accuracy, mean recall, mean overlap.

    A class without a pixel counts as 1 in the last and not at all in the second. Without ``reset`` the pixels of all
    batches add up.
    """

    def __init__(self, ignore_label: tuple[int, ...] = (), reset: bool = True) -> None:
        super().__init__()
        self.ignore_label, self.reset = ignore_label, reset
        self.counts: Tensor | None = None

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        """``(N, C, H, W)`` and ``(N, 1, H, W)`` to ``(1, 1, 1, 3)``."""
        classes = scores.shape[1]
        found = classes - 1 - scores.detach().flip(1).argmax(1).flatten()  # of equal scores the last class
        labels = labels.flatten().long()
        kept = (labels >= 0) & (labels < classes)
        for label in self.ignore_label:
            kept = kept & (labels != label)
        cells = labels.where(kept, 0) * classes + found
        counts = scores.new_zeros(classes**2, dtype=torch.float64).index_add(0, cells, kept.double())
        if not self.reset:
            self.counts = counts = counts if self.counts is None else self.counts.to(counts) + counts
        counts = counts.reshape(classes, classes)
        right, actual, union = counts.diagonal(), counts.sum(1), counts.sum(0) + counts.sum(1) - counts.diagonal()
        recall = (right / actual.clamp_min(1)).sum() / (actual > 0).sum().clamp_min(1)
        overlap = torch.where(right == union, 1, right / union.clamp_min(1)).mean()
        shares = torch.stack([right.sum() / counts.sum().clamp_min(1), recall, overlap])
        return shares.reshape(1, 1, 1, 3).to(scores.dtype)


class ContinuationIndicator(nn.Module):
    """xmfbit's ``continuation_indicator_layer.cpp``: ``(T, N)``, 0 at the first time, where sequences begin, then 1."""

    indicator: Tensor

    def __init__(self, time_step: int, batch_size: int) -> None:
        super().__init__()
        indicator = torch.ones(time_step, batch_size)
        indicator[:1] = 0
        self.register_buffer("indicator", indicator, persistent=False)

    def forward(self) -> Tensor:
        """The indicators."""
        return self.indicator


class Lstm(LSTM):
    """junhyukoh's ``lstm_layer.cu``: ``(T * N, ...)`` and indicators ``clip``, ``(T * N,)``, to ``(T * N, hidden)``.

    The same arithmetic as BVLC's LSTM, except that gradients at the gates are kept within ``clipping_threshold``.
    Without ``clip`` every batch begins new sequences. A third bottom is not looked at.
    """

    def __init__(self, inputs: int, hidden: int, batch_size: int = 1, clipping_threshold: float = 0.0) -> None:
        super().__init__(inputs, hidden)
        self.batch_size, self.clipping_threshold = batch_size, clipping_threshold

    def forward(self, x: Tensor, clip: Tensor | None = None, *_: Tensor) -> Tensor:
        """The hidden states."""
        steps = x.reshape(-1, self.batch_size, x[0].numel())
        if clip is None:
            clip = x.new_ones(steps.shape[:2])
            clip[:1] = 0
        hidden = super().forward(steps, clip.reshape(steps.shape[:2]))
        assert isinstance(hidden, Tensor)
        return hidden.flatten(0, 1)

    def step(self, gates: Tensor, goes_on: Tensor, state: list[Tensor]) -> list[Tensor]:
        """Hidden and cell state."""
        if self.clipping_threshold > 0 and gates.requires_grad:
            bound = self.clipping_threshold
            gates.register_hook(lambda gradient: gradient.clamp(-bound, bound))  # type: ignore[no-untyped-call]  # torch annotates it in part
        return super().step(gates, goes_on, state)


class InnerDistance(nn.Module):
    """happynear's ``inner_distance_layer.cpp`` (NormFace): distances of rows to centers, squared (``L2``) or ``L1``.

    The centers are a blob, or without a ``shape`` the second bottom.
    """

    def __init__(self, shape: tuple[int, int] | None = None, distance_type: str = "L2") -> None:
        super().__init__()
        self.distance_type = distance_type
        self.centers = None if shape is None else nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor, centers: Tensor | None = None) -> Tensor:
        """``(M, ...)`` and ``(N, ...)`` to ``(M, N)``."""
        centers = self.centers if centers is None else centers
        assert centers is not None
        if self.distance_type == "L1":
            return torch.cdist(x.flatten(1), centers.flatten(1), 1.0)
        distances = torch.cdist(x.flatten(1), centers.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
        return distances.square()


class MarginInnerProduct(nn.Module):
    """SphereFace's ``margin_inner_product_layer.cpp``: scores, with an angular margin for the label's class.

    The rows of the weight have length 1: training passes write them back so. The score of the label's class is
    ``|x| * psi(angle)``, mixed with its plain one, which weighs lambda; lambda falls with the training passes. It is
    the second top. The fork's gradient is not the derivative: that of the weight has no margin, and that of the
    label's score is scaled to length 1 in two coefficients.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        margin: int = 1,
        base: float = 1.0,
        gamma: float = 0.0,
        power: float = 1.0,
        lambda_min: float = 0.0,
        iteration: int = 0,
    ) -> None:
        super().__init__()
        self.margin, self.base, self.gamma, self.power = margin, base, gamma, power
        self.lambda_min, self.iteration = lambda_min, iteration
        self.weight = nn.Parameter(torch.zeros(outputs, inputs))

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Scores ``(N, outputs)`` of ``(N, ...)`` and class numbers ``(N,)``; and lambda."""
        x, labels = x.flatten(1), labels.flatten().long()
        with torch.no_grad():
            unit = self.weight / self.weight.norm(dim=1, keepdim=True)
            if self.training:
                self.iteration += 1
                self.weight.copy_(unit)
        plain = max(self.base * (1 + self.gamma * self.iteration) ** -self.power, self.lambda_min)
        scores = F.linear(x, unit)
        learned = scores + F.linear(x.detach(), self.weight)
        if self.margin > 1:
            own, towards = labels.unsqueeze(1), unit[labels]
            length = x.detach().norm(dim=1, keepdim=True)
            cosine = scores.detach().gather(1, own) / length
            psi, slope = self.psi(cosine)
            pull = (psi - slope * cosine) / length
            size = (slope * slope + pull * pull).sqrt()
            along = (slope / size - 1) * (x * towards).sum(1, keepdim=True)
            along = along + pull / size * (x * x).sum(1, keepdim=True) / 2
            learned = learned.scatter_add(1, own, along / (1 + plain))
            mixed = length * (psi + plain * cosine) / (1 + plain)
            scores = scores.scatter(1, own, mixed)
        return value_of(scores, gradient_of=learned), x.new_full((1,), plain)

    def psi(self, cosine: Tensor) -> tuple[Tensor, Tensor]:
        """What stands for the cosine, and its slope: cos(margin * angle) as far as that falls, and on from there."""
        sign, square = cosine.sign(), cosine * cosine
        if self.margin == 2:
            return 2 * sign * square - 1, 4 * sign * cosine
        if self.margin == 3:
            outer = (cosine.abs() - 0.5).sign()
            psi = outer * (4 * square - 3) * cosine + sign * (1 + outer) - 2
            return psi, outer * (12 * square - 3)
        outer = sign * (2 * square - 1).sign()
        psi = outer * (8 * square * square - 8 * square + 1) + 2 * sign + outer - 3
        return psi, outer * (32 * square - 16) * cosine


class DenseBlock(nn.Module):
    """Tongcheng's ``DenseBlock_layer.cu``: steps of BN, ReLU and a convolution, each of which adds its channels.

    With ``bottleneck``, a convolution of 1x1, BN and ReLU come before that of 3x3. The filters are those of a true
    convolution, which turns them round. Names have the number of the blob: all filters come first, then all scales.
    """

    factor: Tensor

    def __init__(
        self,
        steps: int,
        channels: int,
        growth: int,
        bottleneck: bool = False,
        moving_average_fraction: float = 0.1,
        dropout_amount: float = 0.0,
    ) -> None:
        super().__init__()
        self.steps, self.bottleneck = steps, bottleneck
        self.moving_average_fraction, self.dropout_amount = moving_average_fraction, dropout_amount
        widths = [channels + step * growth for step in range(steps)]
        wide = [4 * growth] * steps
        self._add(0, [(growth, width, 3, 3) for width in (wide if bottleneck else widths)], widths)
        if bottleneck:
            self._add(5 * steps, [(4 * growth, width, 1, 1) for width in widths], wide)
        self.register_buffer("factor", torch.zeros(1))  # the GPU's code does not use it

    def _add(self, first: int, filters: list[tuple[int, ...]], channels: list[int]) -> None:
        for step, (shape, width) in enumerate(zip(filters, channels, strict=True), first):
            self.register_parameter(f"weight_{step}", nn.Parameter(torch.zeros(shape)))
            self.register_parameter(f"scale_{step + self.steps}", nn.Parameter(torch.ones(1, width, 1, 1)))
            self.register_parameter(f"shift_{step + 2 * self.steps}", nn.Parameter(torch.zeros(1, width, 1, 1)))
            self.register_buffer(f"mean_{step + 3 * self.steps}", torch.zeros(1, width, 1, 1))
            self.register_buffer(f"variance_{step + 4 * self.steps}", torch.ones(1, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """``(N, channels, H, W)`` to ``(N, channels + steps * growth, H, W)``."""
        for step in range(self.steps):
            y = self._norm(x, step)
            if self.bottleneck:
                y = F.conv2d(y, self.get_parameter(f"weight_{step + 5 * self.steps}"))
                y = self._norm(y, step + 5 * self.steps)
            y = F.conv2d(y, self.get_parameter(f"weight_{step}").flip(2, 3), padding=1)
            x = torch.cat([x, F.dropout(y, self.dropout_amount, self.training)], 1)
        return x

    def _norm(self, x: Tensor, step: int) -> Tensor:
        roles = ("scale", "shift", "mean", "variance")
        scale, shift, mean, variance = (
            getattr(self, f"{role}_{step + place * self.steps}").flatten() for place, role in enumerate(roles, 1)
        )
        fraction = self.moving_average_fraction
        return F.relu(F.batch_norm(x, mean, variance, scale, shift, self.training, fraction, 1e-5))
