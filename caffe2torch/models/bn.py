"""BN as the SegNet fork of Caffe computes it."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 - as all of torch's own documents write it
from torch import Tensor, nn

__all__ = ["BN"]


class BN(nn.BatchNorm2d):
    """The layer ``BN`` of SegNet's Caffe (``bn_layer.cpp``): ``(N, C, H, W)`` to ``(N, C, H, W)``.

    Its blobs are ``weight`` (scale) and ``bias`` (shift); epsilon is 1e-9, a constant of the fork's code, and new
    shifts are 0.001, as every SegNet prototxt fills them.

    In ``train()`` it is the fork's mode ``LEARN``: normalize by the batch's mean and biased variance, then scale, then
    shift. The last two are steps of their own, as in the fork; ``nn.BatchNorm2d`` folds them into the first, rounds
    differently, and strays a little further from recorded runs. The fork writes the variance as E[x^2] - E[x]^2; torch
    sums squared deviations, which is the same number and keeps its digits where the mean is large.

    ``eval()`` uses ``running_mean`` and ``running_var``, collected as in ``nn.BatchNorm2d``. The fork has no such
    thing; with the 0 and 1 that they start from, ``eval()`` is its mode ``INFERENCE``: scale and shift, nothing else.

    >>> import torch
    >>> bn = BN(1)
    >>> bn(torch.tensor([[[[0.0, 4.0]]]])).detach()
    tensor([[[[-0.9990,  1.0010]]]])
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-9)

    def reset_parameters(self) -> None:
        """Scale 1, shift 0.001, and statistics that were never collected."""
        super().reset_parameters()
        nn.init.constant_(self.bias, 0.001)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize, scale and shift; in ``train()`` also note the batch's statistics for ``eval()``."""
        momentum = 0.0
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            # Without a momentum the statistics are the plain average over all batches, as in torch's own class.
            momentum = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        by_batch = self.training or self.running_mean is None
        x = F.batch_norm(x, self.running_mean, self.running_var, training=by_batch, momentum=momentum, eps=self.eps)
        return x * self.weight[:, None, None] + self.bias[:, None, None]
