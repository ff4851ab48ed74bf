"""Losses of Caffe's forks and of pull requests to it; each names the fork and its source file.

Each was written after that source; there is no recorded number to compare with.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - as all of torch's own documents write it
from torch import Tensor, nn

from caffe2torch.models.loss_functions import value_of

__all__ = [
    "CenterLoss",
    "ctc_loss",
    "euclidean_loss_with_tv",
    "general_contrastive_loss",
    "lifted_struct_loss",
    "svr_loss",
    "triplet_loss",
    "triplet_sets_loss",
    "xcov_loss",
]


def svr_loss(a: Tensor, b: Tensor) -> Tensor:
    """``svr_loss_layer.cpp`` of the pull request with ``IQA_CNN``: absolute differences over N; targets learn nothing.

    >>> svr_loss(torch.tensor([[1.0], [4.0]]), torch.tensor([[2.0], [2.0]])).item()
    1.5
    """
    return F.l1_loss(a, b.detach().reshape(a.shape).to(a.dtype), reduction="sum") / a.shape[0]


def euclidean_loss_with_tv(a: Tensor, b: Tensor, weight: float = 0.1) -> Tensor:
    """Jallet's ``euclidean_loss_with_tv_layer.cpp``: EuclideanLoss, plus ``weight`` times the total variation over N.

    That is the sum of absolute differences of neighbours in ``a``. Where two are equal, the gradient is -1, not 0.
    """
    steps = (a[..., :-1, :] - a[..., 1:, :], a[..., 1:] - a[..., :-1])
    variation = torch.stack([torch.where(one > 0, one, -one).sum() for one in steps]).sum()
    squares = F.mse_loss(a, b.detach().reshape(a.shape).to(a.dtype), reduction="sum")
    return (squares / 2 + weight * variation) / a.shape[0]


def xcov_loss(a: Tensor, b: Tensor) -> Tensor:
    """Brian Cheung's ``xcov_loss_layer.cpp``: half the squares of the cross-covariances of two blobs over the batch.

    >>> xcov_loss(torch.tensor([[1.0], [3.0]]), torch.tensor([[1.0], [-1.0]])).item()  # (-1) ** 2 / 2
    0.5
    """
    a, b = a.flatten(1), b.flatten(1)
    return ((a - a.mean(0)).T @ (b - b.mean(0)) / a.shape[0]).square().sum() / 2


def triplet_loss(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float = 1.0) -> Tensor:
    """``triplet_loss_layer.cpp`` of cherrm's pull request: squared distances, the mean over the batch (not half of it).

    >>> triplet_loss(torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([[1.0, 0.0]])).item()  # 2 - 1 + 1
    2.0
    """
    near, far = ((anchor - other).flatten(1).square().sum(1) for other in (positive, negative))
    return F.relu(near - far + margin).mean()


def triplet_sets_loss(features: Tensor, similar: Tensor, margin: float = 1.0, num_triplets: int = 3) -> Tensor:
    """``triplet_loss_layer.cpp`` of Bin Wang's pull request, ``losstype: 0``; ``similar`` is not looked at.

    The batch holds sets of an anchor, a positive and ``num_triplets`` negatives, in this order. A set costs the squared
    distance of the first two, plus what each negative lacks to the margin; the sum is divided by twice the sets.
    """
    del similar
    sets = features.reshape(-1, 2 + num_triplets, features[0].numel())
    distances = (sets[:, :1] - sets[:, 1:]).square().sum(2)
    near, far = distances[:, 0], distances[:, 1:]
    return (near.sum() + F.relu(margin + near.unsqueeze(1) - far).sum()) / (2 * len(sets))


def lifted_struct_loss(features: Tensor, labels: Tensor, margin: float = 1.0) -> Tensor:
    """``lifted_struct_similarity_softmax_layer.cpp`` of Song's Deep-Metric-Learning-CVPR16.

    A pair of one label costs the square of its distance plus the soft maximum, over everything of another label than
    either has, of the margin less the distance, if that is above 0; the sum is divided by twice the pairs.
    """
    x, labels = features.flatten(1), labels.flatten()
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    alike = labels.unsqueeze(1) == labels
    hardest = (margin - distances).masked_fill(alike, -torch.inf).logsumexp(1)
    costs = F.relu(torch.logaddexp(hardest.unsqueeze(1), hardest) + distances).square()
    pairs = alike.triu(1)
    return costs.masked_fill(~pairs, 0).sum() / (2 * pairs.sum())


def ctc_loss(scores: Tensor, labels: Tensor, time_step: int, blank_label: int = 0) -> Tensor:
    """xmfbit's ``ctc_loss_layer.cpp`` on Baidu's warp-ctc: scores ``(T, N, C)``, labels ``(N, L)``; the mean over N.

    The first ``time_step`` times count. Blanks among the labels do not: sequences of any length stand in one blob.
    """
    targets = labels.flatten(1).long()
    counts = (targets != blank_label).sum(1)
    # labels first, in their order, then the blanks
    targets = targets.gather(1, (targets == blank_label).long().argsort(dim=1, stable=True))
    times = torch.full_like(counts, time_step)
    log_p = scores.log_softmax(2)
    return F.ctc_loss(log_p, targets, times, counts, blank_label, reduction="sum", zero_infinity=True) / len(counts)


def general_contrastive_loss(
    distances: Tensor,
    labels: Tensor,
    positive_margin: float = 0.0,
    negative_margin: float = 1.0,
    positive_weight: float = 1.0,
    negative_weight: float = 1.0,
    positive_outlier_thresh: float = 4.0,
) -> tuple[Tensor, Tensor]:
    """happynear's ``general_contrastive_loss_layer.cpp`` (NormFace) of distances ``(N, C)`` to the classes' centers.

    The label's distance costs what is above its margin (at most the threshold, beyond which its gradient is 0), any
    other what is below the other margin. The second top has both means; it gets no gradient.
    """
    distances, labels = distances.flatten(1), labels.flatten().long()
    n, classes = distances.shape
    own = labels.unsqueeze(1) == torch.arange(classes, device=labels.device)
    far = F.relu(distances - positive_margin)
    learns = distances.detach() < positive_outlier_thresh
    far = value_of(far.clamp_max(positive_outlier_thresh), gradient_of=far * learns)
    near = F.relu(negative_margin - distances)
    loss = torch.where(own, far * positive_weight, near * negative_weight).sum() / n
    means = torch.stack([far.where(own, 0).sum() / n, near.masked_fill(own, 0).sum() / (n * (classes - 1))])
    return loss, means.detach()


class CenterLoss(nn.Module):
    """caffe-face's ``center_loss_layer.cpp``: squared distances of rows to the centers of their classes, over 2N.

    The gradient of a center is not the derivative: the sum of what it is away from the rows of its class, divided by
    their number plus 1. No ``loss_weight`` and no other factor on the loss counts in it.
    """

    def __init__(self, classes: int, features: int) -> None:
        super().__init__()
        self.centers = nn.Parameter(torch.zeros(classes, features))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch, a scalar, of ``(N, ...)`` and class numbers ``(N,)``."""
        x, labels = x.flatten(1), labels.flatten().long()
        own = self.centers[labels]
        counts = x.new_zeros(len(self.centers)).index_add(0, labels, torch.ones_like(labels, dtype=x.dtype))
        away = ((own - x.detach()).square().sum(1) / (2 * (counts[labels] + 1))).sum()
        if away.requires_grad:
            # its gradient is 1, whatever the loss is multiplied with
            away.register_hook(torch.ones_like)  # type: ignore[no-untyped-call]  # torch annotates it in part
        loss = (x - own.detach()).square().sum() / (2 * len(x))
        return value_of(loss, gradient_of=loss + away)
