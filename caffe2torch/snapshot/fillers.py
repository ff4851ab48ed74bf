"""Caffe's fillers: how a blob is filled before training. Emitted files carry this text; it needs torch alone.

Shapes are Caffe's own, so that the fans are: ``fan_in`` is the count over the first size and ``fan_out`` over the
second, whatever the layer is; a Deconvolution (inputs x outputs x kernel) has them the other way round than torch's
``init`` functions would. Numbers come from torch's generator: the distributions are Caffe's, the numbers are not.

Source: ``include/caffe/filler.hpp``.
"""

from __future__ import annotations

import math

import torch

__all__ = ["fill"]


def fill(
    shape: tuple[int, ...],
    type: str = "constant",
    *,
    value: float = 0.0,
    min: float = 0.0,
    max: float = 1.0,
    mean: float = 0.0,
    std: float = 1.0,
    sparse: int = -1,
    variance_norm: str = "FAN_IN",
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """A float32 tensor of Caffe's ``shape``, filled as a ``FillerParameter`` of these fields fills a blob.

    ==================  ===================================================================================
    constant            ``value``
    uniform             U(``min``, ``max``)
    gaussian            N(``mean``, ``std``); with ``sparse`` >= 0 each is kept with probability sparse/shape[0]
    positive_unitball   U(0, 1), each slice of the first axis divided by its sum
    xavier              U(-s, s), s = sqrt(3 / n)
    msra                N(0, sqrt(2 / n))
    bilinear            a square kernel that interpolates linearly, the same for every pair of channels
    ==================  ===================================================================================

    n is the fan that ``variance_norm`` names: ``FAN_IN``, ``FAN_OUT`` or ``AVERAGE``. ``generator`` is on the CPU.

    >>> fill((1, 1, 4, 4), "bilinear")[0, 0, 0].tolist()
    [0.0625, 0.1875, 0.1875, 0.0625]
    """
    blob = torch.empty(shape, dtype=torch.float32, device="cpu")
    match type:
        case "constant":
            return blob.fill_(value)
        case "uniform":
            return blob.uniform_(min, max, generator=generator)
        case "gaussian":
            blob.normal_(mean, std, generator=generator)
            if sparse < 0:
                return blob
            return blob.mul_(torch.empty_like(blob).bernoulli_(sparse / shape[0], generator=generator))
        case "positive_unitball":
            slices = blob.uniform_(0, 1, generator=generator).view(shape[0], -1)
            return slices.div_(slices.sum(dim=1, keepdim=True)).view(shape)
        case "xavier":
            bound = math.sqrt(3 / fan(shape, variance_norm))
            return blob.uniform_(-bound, bound, generator=generator)
        case "msra":
            return blob.normal_(0, math.sqrt(2 / fan(shape, variance_norm)), generator=generator)
        case "bilinear":
            return blob.copy_(bilinear(shape[-1]))
    raise ValueError(f"Caffe knows no filler {type!r}")


def fan(shape: tuple[int, ...], variance_norm: str) -> float:
    """What a filler divides its variance by."""
    count = math.prod(shape)
    fan_in = count / shape[0]
    fan_out = count / shape[1] if len(shape) > 1 else count
    return {"FAN_IN": fan_in, "FAN_OUT": fan_out, "AVERAGE": (fan_in + fan_out) / 2}[variance_norm]


def bilinear(size: int) -> torch.Tensor:
    """The kernel that interpolates linearly when a Deconvolution strides by half its size (rounded up)."""
    step = math.ceil(size / 2)
    places = torch.arange(size, dtype=torch.float32, device="cpu") / step
    weight = 1 - (places - torch.tensor((size - 1) / (2 * step), dtype=torch.float32, device="cpu")).abs()
    return weight[:, None] * weight[None, :]
