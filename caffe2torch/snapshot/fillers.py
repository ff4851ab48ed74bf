"""Caffe's fillers: how a blob is filled before training. Emitted files carry this text; it needs torch alone.

Shapes are Caffe's own, so that the fans are: ``fan_in`` is the count over the first size and ``fan_out`` over the
second, whatever the layer is; a Deconvolution (inputs x outputs x kernel) has them the other way round than torch's
``init`` functions would. Numbers come from torch's generator: the distributions are Caffe's, the numbers are not.

Source: ``include/caffe/filler.hpp``.
"""

from __future__ import annotations

import math
from math import prod

import torch
from torch import nn

from caffe2torch.binding.layout import caffe_shape, layout_of, second_bias, to_torch
from caffe2torch.binding.plan import Binding, Filling, Kind
from caffe2torch.binding.wrappers import named_modules, named_tensors
from caffe2torch.errors import BindingError, NetError, UnsupportedError
from caffe2torch.recipe import Filler, LearnableBlob, NetRecipe, Note, Severity
from caffe2torch.snapshot.sharding import assign
from caffe2torch.snapshot.weights import check

__all__ = ["fill", "initialize", "plan_fillings"]


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


# Fill a bound model as Caffe fills a net before training.

_KNOWN = ("constant", "uniform", "gaussian", "positive_unitball", "xavier", "msra", "bilinear")


def initialize(
    model: nn.Module, recipe: NetRecipe, binding: Binding, generator: torch.Generator | None = None
) -> tuple[Note, ...]:
    """Fill every bound parameter with its blob's filler, in Caffe's order of blobs: all of them, or on an error none.

    ``generator`` (on the CPU) makes it repeatable; without one, torch's own is used. The second bias of ``nn.LSTM``
    and ``nn.RNN``, which Caffe has not, becomes 0. Buffers keep what they have: Caffe's statistics begin empty,
    torch's as mean 0 and variance 1, and training replaces both.

    Returns a note on blobs that no filler of Caffe's fills (a fork's layer) and that keep their values. Raises
    ``UnsupportedError`` for a filler that BVLC's Caffe does not know, ``NetError`` for one that it refuses.
    """
    fillings, notes = plan_fillings(model, recipe, binding)
    tensors = dict(named_tensors(model))
    for filling in fillings:
        check(filling.parameter, tensors[filling.parameter], prod(filling.shape), binding.model)
    with torch.no_grad():
        for filling in fillings:
            tensor = tensors[filling.parameter]
            values = fill(filling.shape, generator=generator, **filling.fields)
            assign(tensor, to_torch(values, filling.layout, tuple(tensor.shape)))
    return notes


def plan_fillings(
    model: nn.Module, recipe: NetRecipe, binding: Binding
) -> tuple[tuple[Filling, ...], tuple[Note, ...]]:
    """What ``initialize`` would fill and how, checked, with nothing touched yet; the model may be without numbers."""
    tensors, modules = dict(named_tensors(model)), dict(named_modules(model))
    claimed = {bound.name for bound in binding.blobs}
    fillings: list[Filling] = []
    kept: list[str] = []
    for bound in binding.blobs:
        blob = bound.blob
        if bound.kind is not Kind.PARAMETER or bound.name is None:
            continue
        if blob.filler is None:
            kept.append(blob.name)
            continue
        layout, tensor = layout_of(recipe, bound, modules), tensors[bound.name]
        shape = caffe_shape(bound, layout, tensor)
        _check_filler(blob, blob.filler, shape)
        if not tensor.is_meta and (problem := check(bound.name, tensor, prod(shape), str(blob.where))):
            raise BindingError(problem, where=blob.where)
        fillings.append(Filling(bound.name, shape, str(layout), blob.filler))
        second = second_bias(bound)
        if second in tensors and second not in claimed:
            fillings.append(Filling(second, tuple(tensors[second].shape), "same", Filler()))
    if not kept:
        return tuple(fillings), ()
    message = f"no filler is known for {', '.join(kept)}: they keep the model's own values"
    return tuple(fillings), (Note(None, Severity.WARNING, message),)


def _check_filler(blob: LearnableBlob, filler: Filler, shape: tuple[int, ...]) -> None:
    """Refuse what Caffe's ``CHECK``s refuse (``filler.hpp``)."""
    where = filler.where or blob.where
    if filler.type not in _KNOWN:
        hint = f"it knows {', '.join(_KNOWN)}"
        raise UnsupportedError(f"{blob.name}: Caffe knows no filler {filler.type!r}", where=where, hint=hint)
    written = "x".join(map(str, shape)) or "no axes"
    problem = None
    if filler.sparse != -1 and filler.type != "gaussian":
        problem = "does not know 'sparse', only 'gaussian' does"
    elif filler.type == "uniform" and filler.min > filler.max:
        problem = f"has min {filler.min:g} above max {filler.max:g}"
    elif filler.type == "gaussian" and filler.std <= 0:
        problem = f"needs a std above 0, not {filler.std:g}"
    elif not shape and (filler.sparse != -1 or filler.type in ("positive_unitball", "xavier", "msra")):
        problem = "cannot fill a blob without axes"
    elif filler.sparse != -1 and not 0 <= filler.sparse <= shape[0]:
        problem = f"cannot keep {filler.sparse} of {shape[0]}"
    elif filler.type == "bilinear" and (len(shape) != 4 or shape[2] != shape[3]):
        problem = f"needs a square kernel, not a blob of {written}"
    if problem is not None:
        raise NetError(f"{blob.name}: filler {filler.type!r} {problem}", where=where)
