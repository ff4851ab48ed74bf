"""Caffe's fillers: how a blob is filled before training. This file needs torch alone, and an emitted file may carry it.

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

    ==================  ==============================================================================
    constant            ``value``
    uniform             U(``min``, ``max``)
    gaussian            N(``mean``, ``std``); with ``sparse`` >= 0 each is kept with probability sparse/shape[0]
    positive_unitball   U(0, 1), each slice of the first axis divided by its sum
    xavier              U(-s, s), s = sqrt(3 / n)
    msra                N(0, sqrt(2 / n))
    bilinear            a square kernel that interpolates linearly, the same for every pair of channels
    ==================  ==============================================================================

    n is the fan that ``variance_norm`` names: ``FAN_IN``, ``FAN_OUT`` or ``AVERAGE``. ``generator`` is on the CPU.
    Raises ``ValueError`` for what Caffe refuses.

    >>> fill((1, 1, 4, 4), "bilinear")[0, 0, 0].tolist()
    [0.0625, 0.1875, 0.1875, 0.0625]
    """
    blob = torch.empty(shape, dtype=torch.float32)
    if type != "gaussian" and sparse != -1:
        raise ValueError(f"filler {type!r} does not know 'sparse', only 'gaussian' does")
    match type:
        case "constant":
            return blob.fill_(value)
        case "uniform":
            if min > max:
                raise ValueError(f"filler 'uniform' has min {min:g} above max {max:g}")
            return blob.uniform_(min, max, generator=generator)
        case "gaussian":
            return gaussian(blob, mean, std, sparse, generator)
        case "positive_unitball":
            blob.uniform_(0, 1, generator=generator)
            slices = blob.view(first(shape, type), -1)
            return slices.div_(slices.sum(dim=1, keepdim=True)).view(shape)
        case "xavier":
            bound = math.sqrt(3 / fan(shape, type, variance_norm))
            return blob.uniform_(-bound, bound, generator=generator)
        case "msra":
            return blob.normal_(0, math.sqrt(2 / fan(shape, type, variance_norm)), generator=generator)
        case "bilinear":
            return blob.copy_(bilinear(shape))
        case _:
            raise ValueError(f"Caffe knows no filler {type!r}")


def fan(shape: tuple[int, ...], type: str, variance_norm: str) -> float:
    """What a filler divides its variance by."""
    count = math.prod(shape)
    fan_in = count / first(shape, type)
    fan_out = count / shape[1] if len(shape) > 1 else count
    return {"FAN_IN": fan_in, "FAN_OUT": fan_out, "AVERAGE": (fan_in + fan_out) / 2}[variance_norm]


def first(shape: tuple[int, ...], type: str) -> int:
    """The first size; Caffe stops on a blob that has none."""
    if not shape:
        raise ValueError(f"filler {type!r} cannot fill a blob without axes")
    return shape[0]


def gaussian(
    blob: torch.Tensor, mean: float, std: float, sparse: int, generator: torch.Generator | None
) -> torch.Tensor:
    """Normal numbers, all but about ``sparse`` in each column set to 0."""
    if std <= 0:
        raise ValueError(f"filler 'gaussian' needs a std above 0, not {std:g}")
    blob.normal_(mean, std, generator=generator)
    if sparse == -1:
        return blob
    kept = sparse / first(tuple(blob.shape), "gaussian")
    if not 0 <= kept <= 1:
        raise ValueError(f"filler 'gaussian' cannot keep {sparse} of {blob.shape[0]}")
    return blob.mul_(torch.empty_like(blob).bernoulli_(kept, generator=generator))


def bilinear(shape: tuple[int, ...]) -> torch.Tensor:
    """The kernel that interpolates linearly when a Deconvolution strides by half its size (rounded up)."""
    if len(shape) != 4 or shape[2] != shape[3]:
        raise ValueError(
            f"filler 'bilinear' needs a square kernel, not a blob of {'x'.join(map(str, shape)) or 'no axes'}"
        )
    size = shape[3]
    step = math.ceil(size / 2)
    centre = torch.tensor(size - 1, dtype=torch.float32) / (2.0 * step)
    weight = 1 - (torch.arange(size, dtype=torch.float32) / step - centre).abs()
    return weight[:, None] * weight[None, :]
