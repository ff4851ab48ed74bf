"""Layers without blobs that torch has no module for, as functions of their bottoms; each names its source in Caffe.

A function needs torch alone, so that an emitted ``model.py`` can hold its text. It gives the layer's tops: a tensor, or
a tuple where there are several. Settings are keyword arguments, with Caffe's defaults.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - as all of torch's own documents write it
from torch import Tensor, nn

Tops = tuple[Tensor, ...]
Sizes = tuple[int, ...]


class Apply(nn.Module):
    """A function with its settings as a module."""

    def __init__(self, function: Callable[..., Tensor | Tops], **settings: object) -> None:
        super().__init__()
        self.function, self.settings = function, settings

    def forward(self, *bottoms: Tensor) -> Tensor | Tops:
        """The function of the layer's bottoms."""
        return self.function(*bottoms, **self.settings)

    def extra_repr(self) -> str:
        """The function and its settings."""
        return ", ".join([self.function.__name__, *(f"{name}={value}" for name, value in self.settings.items())])


# Windows over images: ``(N, C, H, W)`` to ``(N, C, H', W')``.


def max_pool_with_mask(x: Tensor, kernel_size: Sizes, stride: Sizes, padding: Sizes, ceil_mode: bool = True) -> Tops:
    """``pooling_layer.cpp`` with two tops: the maxima, and where in its plane (row * width + column) each was."""
    y, mask = F.max_pool2d(x, kernel_size, stride, padding, 1, ceil_mode, return_indices=True)
    return y, mask.to(x.dtype)


def wide_pool(
    x: Tensor, kernel_size: Sizes, stride: Sizes, padding: Sizes, pool: str = "MAX", ceil_mode: bool = True
) -> Tensor:
    """``pooling_layer.cpp`` where the padding is more than half a window, which torch's modules refuse."""
    sizes: list[int] = []
    around: list[int] = []
    for size, kernel, step, pad in zip(x.shape[2:], kernel_size, stride, padding, strict=True):
        room = size + 2 * pad - kernel
        length = (-(-room // step) if ceil_mode else room // step) + 1
        sizes.append(length - int((length - 1) * step >= size + pad))  # a window that would start in the padding
        around[:0] = [pad, pad]
    padded = F.pad(x, around, value=-math.inf if pool == "MAX" else 0.0)
    pooled: Tensor = (F.max_pool2d if pool == "MAX" else F.avg_pool2d)(padded, kernel_size, stride, ceil_mode=ceil_mode)
    return pooled[:, :, : sizes[0], : sizes[1]]


def min_pool(x: Tensor, kernel_size: Sizes, stride: Sizes, ceil_mode: bool = True) -> Tensor:
    """``pooling_layer.cpp`` of the pull request with ``IQA_CNN``, ``MIN``: the least number of each window."""
    return -F.max_pool2d(-x, kernel_size, stride, ceil_mode=ceil_mode)


def spp(x: Tensor, pyramid_height: int, pool: str = "MAX") -> Tensor:
    """``spp_layer.cpp``: pooling to 1, 2 x 2, 4 x 4, ... windows, side by side; one level alone keeps its 4 axes."""
    levels = []
    for level in range(pyramid_height):
        kernel = tuple(-(-size // 2**level) for size in x.shape[2:])
        pad = tuple((k * 2**level - size + 1) // 2 for k, size in zip(kernel, x.shape[2:], strict=True))
        levels.append(wide_pool(x, kernel, kernel, pad, pool))
    return levels[0] if pyramid_height == 1 else torch.cat([level.flatten(1) for level in levels], 1)


def within_channel_lrn(x: Tensor, local_size: int = 5, alpha: float = 1.0, beta: float = 0.75) -> Tensor:
    """``lrn_layer.cpp``, ``WITHIN_CHANNEL``: over a square of pixels; its constant is 1, whatever ``k`` says."""
    mean = F.avg_pool2d(x * x, local_size, 1, (local_size - 1) // 2)
    return x * (1 + alpha * mean) ** -beta


def im2col(x: Tensor, kernel_size: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes) -> Tensor:
    """``im2col_layer.cpp``: the pixels of every window as channels."""
    columns = F.unfold(x, kernel_size, dilation, padding, stride)
    sides = zip(x.shape[2:], kernel_size, stride, padding, dilation, strict=True)
    sizes = [(size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in sides]
    return columns.reshape(*columns.shape[:2], *sizes)


def unpool(x: Tensor, mask: Tensor, size: Sizes | None = None, scale: Sizes = (2, 2), less: Sizes = (0, 0)) -> Tensor:
    """SegNet's ``upsample_layer.cpp``: every value back to where the mask says, zeros elsewhere.

    The new size is ``size``, or ``scale`` times the old one less ``less``. A mask that says more raises ``ValueError``.
    """
    # What F.max_unpool2d gives; but that one refuses to run under torch.use_deterministic_algorithms.
    if size is None:
        size = x.shape[2] * scale[0] - less[0], x.shape[3] * scale[1] - less[1]
    images, channels, height, width = x.shape[0], x.shape[1], size[0], size[1]
    zeros = x.new_zeros(images, channels, height * width)
    try:
        placed = zeros.scatter(2, mask.flatten(2).long(), x.flatten(2))
    except RuntimeError as error:
        values, places = ("x".join(map(str, one.shape)) for one in (x, mask))
        raise ValueError(
            f"a mask of {places}, up to place {int(mask.max())}, does not put {values} into images of "
            f"{height}x{width}, which have {height * width} places"
        ) from error
    return placed.reshape(images, channels, height, width)


def interp(
    x: Tensor,
    like: Tensor | None = None,
    height: int = 0,
    width: int = 0,
    shrink_factor: int = 1,
    zoom_factor: int = 1,
    pad_beg: int = 0,
    pad_end: int = 0,
) -> Tensor:
    """DeepLab's and PSPNet's ``interp_layer.cpp``: bilinear, corners on corners; negative padding crops first."""
    x = F.pad(x, (pad_beg, pad_end) * 2)
    if height and width:
        size = [height, width]
    elif like is not None:
        size = list(like.shape[2:])
    else:
        size = [((side - 1) // shrink_factor) * zoom_factor + 1 for side in x.shape[2:]]
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


def reorg(x: Tensor, stride: int, reverse: bool = False) -> Tensor:
    """YOLO's ``reorg_layer.cpp``: ``stride`` x ``stride`` pixels to channels, or back."""
    n, c, h, w = x.shape
    if reverse:
        x = x.reshape(n, stride, stride, c // stride**2, h, w).permute(0, 3, 4, 1, 5, 2)
        return x.reshape(n, c // stride**2, h * stride, w * stride)
    x = x.reshape(n, c, h // stride, stride, w // stride, stride).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(n, c * stride**2, h // stride, w // stride)


# Element by element: any shape to the same shape.


def power(x: Tensor, power: float = 1.0, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    """``power_layer.cpp``: ``(shift + scale * x) ** power``."""
    y = shift + scale * x
    return y if power == 1 else y**power


def exponential(x: Tensor, base: float = -1.0, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    """``exp_layer.cpp``: ``base ** (shift + scale * x)``; base -1 stands for e."""
    return torch.exp((1.0 if base == -1 else math.log(base)) * (shift + scale * x))


def logarithm(x: Tensor, base: float = -1.0, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    """``log_layer.cpp``: the logarithm to ``base`` of ``shift + scale * x``; base -1 stands for e."""
    return torch.log(shift + scale * x) / (1.0 if base == -1 else math.log(base))


def swish(x: Tensor, beta: float = 1.0) -> Tensor:
    """``swish_layer.cpp``: ``x * sigmoid(beta * x)``."""
    return x * torch.sigmoid(beta * x)


def threshold(x: Tensor, threshold: float = 0.0) -> Tensor:
    """``threshold_layer.cpp``: 1 above the threshold, else 0; no gradient."""
    return (x > threshold).to(x.dtype)


def mvn(x: Tensor, normalize_variance: bool = True, across_channels: bool = False, eps: float = 1e-9) -> Tensor:
    """``mvn_layer.cpp``: less the mean, over the standard deviation plus ``eps``, by channel or by image."""
    axes = tuple(range(1 if across_channels else 2, x.dim()))
    centred = x - x.mean(axes, keepdim=True)
    if not normalize_variance:
        return centred
    with torch.no_grad():
        deviation = (centred * centred).mean(axes, keepdim=True).sqrt() + eps
        direction = centred / deviation
    # Caffe's gradient of the deviation is y / count, eps or no eps: this term is 0 and has that gradient.
    slope = (direction * (x - x.detach())).mean(axes, keepdim=True)
    return centred / (deviation + slope)


def eltwise(*bottoms: Tensor, operation: str = "SUM", coeff: Sequence[float] = ()) -> Tensor:
    """``eltwise_layer.cpp``: a sum with coefficients, a product, or a maximum.

    Where values are equal, the gradient of the maximum goes to the second of the first two, else to the earlier one.
    """
    terms = [x if factor == 1 else x * factor for x, factor in zip(bottoms, coeff or [1] * len(bottoms), strict=True)]
    y = terms[0]
    for number, x in enumerate(terms[1:]):
        if operation == "SUM":
            y = y + x
        elif operation == "PROD":
            y = y * x
        else:
            y = torch.where(y > x if number == 0 else y >= x, y, x)
    return y


def axpy(a: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """SENet's ``axpy_layer.cpp``: a factor for each channel, ``(N, C, 1, 1)``, times ``x`` plus ``y``."""
    return a.reshape(*x.shape[:2], 1, 1) * x + y


# Along axes.


def concat(*bottoms: Tensor, axis: int = 1) -> Tensor:
    """``concat_layer.cpp``."""
    return torch.cat(bottoms, axis)


def slice_tops(x: Tensor, tops: int, slice_point: Sizes = (), axis: int = 1) -> Tops:
    """``slice_layer.cpp``: cut at points, or into ``tops`` equal parts."""
    return torch.tensor_split(x, tuple(slice_point) or tops, axis)


def split(x: Tensor, tops: int) -> Tops:
    """``split_layer.cpp``: the same values several times."""
    return (x,) * tops


def gather(*bottoms: Tensor) -> Tensor | Tops:
    """yjxiong's ``gather_layer.cpp``, of one process: every bottom as it is."""
    return bottoms[0] if len(bottoms) == 1 else bottoms


def global_sum_pool(x: Tensor) -> Tensor:
    """OICR's ``global_sum_pooling``: ``(N, C, H, W)`` to ``(N, C, 1, 1)``."""
    return x.sum((2, 3), keepdim=True)


def silence(*_: Tensor) -> Tops:
    """``silence_layer.cpp``: takes bottoms, gives nothing."""
    return ()


def reshape(x: Tensor, dims: Sizes, axis: int = 0, num_axes: int = -1) -> Tensor:
    """``reshape_layer.cpp``: other axes from ``axis`` on; a size of 0 is copied, -1 is inferred."""
    start = axis if axis >= 0 else x.dim() + axis + 1
    end = x.dim() if num_axes == -1 else start + num_axes
    middle = [x.shape[start + i] if size == 0 else size for i, size in enumerate(dims)]
    return x.reshape([*x.shape[:start], *middle, *x.shape[end:]])


def permute(x: Tensor, order: Sizes) -> Tensor:
    """SSD's ``permute_layer.cpp``: axes in another order; those it does not name come last."""
    return x.permute(*order, *(axis for axis in range(x.dim()) if axis not in order)).contiguous()


def crop(x: Tensor, like: Tensor, axis: int = 2, offset: Sizes = ()) -> Tensor:
    """``crop_layer.cpp``: the axes from ``axis`` on as long as those of the second bottom, from ``offset`` on."""
    first = axis % x.dim()
    for place in range(first, x.dim()):
        start = 0 if not offset else offset[0 if len(offset) == 1 else place - first]
        x = x.narrow(place, start, like.shape[place])
    return x


def tile(x: Tensor, tiles: int, axis: int = 1) -> Tensor:
    """``tile_layer.cpp``: an axis several times over."""
    return torch.cat([x] * tiles, axis)


def reduction(x: Tensor, operation: str = "SUM", axis: int = 0, coeff: float = 1.0) -> Tensor:
    """``reduction_layer.cpp``: SUM, ASUM, SUMSQ or MEAN over all axes from ``axis`` on, times ``coeff``."""
    x = x.reshape(*x.shape[: axis % x.dim()], -1)
    if operation == "MEAN":
        return x.mean(-1) * coeff
    return {"ASUM": x.abs(), "SUMSQ": x * x}.get(operation, x).sum(-1) * coeff


def arg_max(x: Tensor, top_k: int = 1, out_max_val: bool = False, axis: int | None = None) -> Tensor:
    """``argmax_layer.cpp``: places (or values) of the largest along ``axis``; without one, of each image.

    Then the shape is ``(N, 1, top_k, 1, ...)``, or with values as well ``(N, 2, top_k, ...)``.
    """
    if axis is not None:
        values, places = x.detach().topk(top_k, axis)
        return values if out_max_val else places.to(x.dtype)
    values, places = x.detach().flatten(1).topk(top_k, 1)
    kept = [places.to(x.dtype), values] if out_max_val else [places.to(x.dtype)]
    return torch.stack(kept, 1).reshape(x.shape[0], len(kept), top_k, *(1,) * max(0, x.dim() - 3))


def accuracy(
    scores: Tensor,
    labels: Tensor,
    top_k: int = 1,
    axis: int = 1,
    ignore_label: int | None = None,
    by_class: bool = False,
    min_is_better: bool = False,
) -> Tensor | Tops:
    """``accuracy_layer.cpp``: the share of labels among the ``top_k`` largest scores; a second top has it by class.

    happynear's knows ``min_is_better``: the least scores count.
    """
    scores = (-scores if min_is_better else scores).detach().movedim(axis, -1)
    classes = scores.shape[-1]
    scores, labels = scores.reshape(-1, classes), labels.reshape(-1).long()
    kept = labels == labels if ignore_label is None else labels != ignore_label
    labels = labels.where(kept, 0)
    # A score that equals the label's own counts as better, except the label's itself.
    better = (scores >= scores.gather(1, labels.unsqueeze(1))).sum(1) - 1
    right = (better < top_k) & kept
    share = right.sum().to(scores.dtype) / kept.sum().clamp_min(1)
    if not by_class:
        return share
    counts = scores.new_zeros(classes).index_add(0, labels, kept.to(scores.dtype))
    return share, scores.new_zeros(classes).index_add(0, labels, right.to(scores.dtype)) / counts.clamp_min(1)


def batch_reindex(x: Tensor, indices: Tensor) -> Tensor:
    """``batch_reindex_layer.cpp``: images by the indices of the second bottom."""
    return x[indices.flatten().long()]


def filtered(*bottoms: Tensor) -> Tops:
    """``filter_layer.cpp``: of every bottom the items for which the last one, the selector, is not 0."""
    chosen = bottoms[-1].flatten() != 0
    return tuple(x[chosen] for x in bottoms[:-1])
