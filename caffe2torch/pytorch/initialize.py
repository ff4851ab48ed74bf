"""Fill a bound model as Caffe fills a net before training."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import torch
from torch import nn

from caffe2torch.errors import BindingError, NetError, UnsupportedError
from caffe2torch.plan import Binding, Kind
from caffe2torch.pytorch.fillers import fill
from caffe2torch.pytorch.layout import caffe_shape, layout_of, second_bias
from caffe2torch.pytorch.transfer import Copy, check, copy_all
from caffe2torch.pytorch.wrappers import named_modules, named_tensors
from caffe2torch.recipe import LearnableBlob, Note, Severity, TrainingRecipe

__all__ = ["initialize"]


def initialize(
    model: nn.Module, recipe: TrainingRecipe, binding: Binding, generator: torch.Generator | None = None
) -> tuple[Note, ...]:
    """Fill every bound parameter with its blob's filler, in Caffe's order of blobs: all of them, or on an error none.

    ``generator`` (on the CPU) makes it repeatable; without one, torch's own is used. Buffers keep what they have:
    Caffe's statistics begin empty, torch's as mean 0 and variance 1, and training replaces both.

    Returns a note for each blob that no filler of Caffe's fills (a fork's layer) and that keeps its values. Raises
    ``UnsupportedError`` for a filler that BVLC's Caffe does not know, ``NetError`` for one that it refuses.
    """
    tensors, modules = dict(named_tensors(model)), dict(named_modules(model))
    claimed = {bound.name for bound in binding.blobs}
    copies: list[Copy] = []
    kept: list[str] = []
    for bound in binding.blobs:
        blob = bound.blob
        if bound.kind is not Kind.PARAMETER or bound.name is None:
            continue
        if blob.filler is None:
            kept.append(blob.name)
            continue
        layout = layout_of(recipe, bound, modules)
        tensor = tensors[bound.name]
        filled = _filled(blob, caffe_shape(blob, layout, tensor), generator)
        copies.append(Copy(bound.name, tensor, filled.numpy(), layout))
        second = second_bias(bound)
        if second in tensors and second not in claimed:
            copies.append(Copy(second, tensors[second], np.zeros(tensors[second].shape, "f4")))
    for copy in copies:
        if problem := check(copy, recipe.net_name):
            raise BindingError(f"{problem}, by its prototxt")
    copy_all(copies, "fillers")
    if not kept:
        return ()
    return (
        Note(None, Severity.WARNING, f"no filler is known for {', '.join(kept)}: they keep the model's own values"),
    )


def _filled(blob: LearnableBlob, shape: tuple[int, ...], generator: torch.Generator | None) -> torch.Tensor:
    filler = blob.filler
    assert filler is not None
    fields = {name: value for name, value in asdict(filler).items() if name != "where"}
    try:
        return fill(shape, generator=generator, **fields)
    except ValueError as error:
        kind = UnsupportedError if "knows no filler" in str(error) else NetError
        raise kind(f"{blob.name}: {error}", where=filler.where or blob.where) from None
