"""SegNetBasic, as its fork of Caffe computes it: same layers, same names, same numbers."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - as all of torch's own documents write it
from torch import Tensor, nn
from torch.fx import wrap

from caffe2torch.errors import Caffe2TorchError
from caffe2torch.models.functions import unpool

__all__ = ["BN", "SegNetBasic"]


class SegNetBasic(nn.Module):
    """SegNetBasic (Badrinarayanan, Handa and Cipolla, 2015), faithful to the SegNet tutorial's net and its Caffe.

    Maps images ``(N, in_channels, H, W)`` to class scores ``(N, num_classes, H, W)`` for any ``H`` and ``W``: Caffe's
    pooling rounds sizes up, and each unpooling returns to the size that its encoder had. ``width`` is the number of
    feature channels, 64 in the published net. Modules carry Caffe's layer names; ``parameters()`` yields the 34
    learnable blobs in Caffe's order.

    Easily missed when porting it: the local response normalization at the input, ReLU in the encoder only, and BN's
    epsilon of 1e-9. New weights are drawn as the net's fillers say (``filler.hpp``: ``msra`` is normal with standard
    deviation ``sqrt(2 / fan_in)``; biases 0, scales 1, shifts 0.001).

    **train() and eval().** With the batch's own statistics, which is ``train()``, it computes what Caffe does in
    *both* phases, so compare with Caffe in ``train()``. For inference Caffe's users average the statistics over the
    training images (SegNet's ``compute_bn_statistics.py``); ``torch.optim.swa_utils.update_bn(batches, model)`` does
    the same here, for ``eval()`` to use. Training alone collects them too, as a moving average. A weights file of
    Caffe holds none: after loading one, ``eval()`` is right only if its weights come from that script.

    Raises ``Caffe2TorchError`` for a size below 1, for images that are not ``(N, in_channels, H, W)``, and in
    ``train()`` for a single image of at most 8 x 8 pixels, whose deepest features are one pixel without a variance.

    >>> model = SegNetBasic(in_channels=4, num_classes=3, width=8)
    >>> model(torch.zeros(1, 4, 45, 60)).shape
    torch.Size([1, 3, 45, 60])
    >>> len(list(model.parameters()))
    34
    """

    def __init__(self, in_channels: int, num_classes: int, width: int = 64) -> None:
        super().__init__()
        for name, size in (("in_channels", in_channels), ("num_classes", num_classes), ("width", width)):
            if size < 1:
                raise Caffe2TorchError(f"SegNetBasic needs a positive {name}", found=str(size), expected="1 or more")
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.width = width
        self.norm = nn.LocalResponseNorm(size=5, alpha=1e-4, beta=0.75, k=1.0)
        self.conv1, self.conv1_bn = _conv(in_channels, width), BN(width)
        self.conv2, self.conv2_bn = _conv(width, width), BN(width)
        self.conv3, self.conv3_bn = _conv(width, width), BN(width)
        self.conv4, self.conv4_bn = _conv(width, width), BN(width)
        self.conv_decode4, self.conv_decode4_bn = _conv(width, width), BN(width)
        self.conv_decode3, self.conv_decode3_bn = _conv(width, width), BN(width)
        self.conv_decode2, self.conv_decode2_bn = _conv(width, width), BN(width)
        self.conv_decode1, self.conv_decode1_bn = _conv(width, width), BN(width)
        self.conv_classifier = _conv(width, num_classes, kernel_size=1)

    def forward(self, images: Tensor) -> Tensor:
        """Score every pixel for every class: ``(N, in_channels, H, W)`` to ``(N, num_classes, H, W)``."""
        _check(images, self.in_channels, self.training)
        x = self.norm(images)
        x, mask1, size1 = _encode(x, self.conv1, self.conv1_bn)
        x, mask2, size2 = _encode(x, self.conv2, self.conv2_bn)
        x, mask3, size3 = _encode(x, self.conv3, self.conv3_bn)
        x, mask4, size4 = _encode(x, self.conv4, self.conv4_bn)
        x = _decode(x, mask4, size4, self.conv_decode4, self.conv_decode4_bn)
        x = _decode(x, mask3, size3, self.conv_decode3, self.conv_decode3_bn)
        x = _decode(x, mask2, size2, self.conv_decode2, self.conv_decode2_bn)
        x = _decode(x, mask1, size1, self.conv_decode1, self.conv_decode1_bn)
        scores: Tensor = self.conv_classifier(x)
        return scores


def _conv(channels: int, features: int, kernel_size: int = 7) -> nn.Conv2d:
    conv = nn.Conv2d(channels, features, kernel_size, padding=kernel_size // 2)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def _encode(x: Tensor, conv: nn.Conv2d, bn: BN) -> tuple[Tensor, Tensor, torch.Size]:
    """Convolve and pool; also where each maximum was, and how large the features were before pooling."""
    x = F.relu(bn(conv(x)))
    pooled, mask = F.max_pool2d(x, kernel_size=2, stride=2, ceil_mode=True, return_indices=True)
    return pooled, mask, x.shape[-2:]


def _decode(x: Tensor, mask: Tensor, size: torch.Size, conv: nn.Conv2d, bn: BN) -> Tensor:
    """Put each value back where its maximum was, zeros elsewhere, and convolve; there is no ReLU."""
    normalized: Tensor = bn(conv(unpool(x, mask, size)))
    return normalized


def _check(images: Tensor, in_channels: int, training: bool) -> None:
    expected = f"(N, {in_channels}, H, W)"
    found = str(tuple(images.shape))
    if images.dim() != 4 or images.shape[1] != in_channels:
        raise Caffe2TorchError("SegNetBasic was given something else than its images", found=found, expected=expected)
    if training and images.shape[0] == 1 and max(images.shape[-2:]) <= 8:
        raise Caffe2TorchError(
            "SegNetBasic cannot train on a single image this small: its deepest features are one pixel",
            found=found,
            expected=f"{expected} with more than one image, or with more than 8 pixels on a side",
        )


wrap("_check")  # torch.fx then records one call instead of following branches that depend on sizes


# BN as the SegNet fork of Caffe computes it.


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
