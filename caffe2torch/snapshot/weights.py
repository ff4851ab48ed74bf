"""A ``.caffemodel``'s numbers into a bound model: everything checked first, then everything copied."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from caffe2torch.binding.layout import Layout, layout_of, second_bias, to_torch
from caffe2torch.binding.plan import Binding, Kind, Storage
from caffe2torch.binding.wrappers import named_modules, named_tensors
from caffe2torch.errors import BindingError, ModelError, SnapshotError
from caffe2torch.files import bar
from caffe2torch.recipe import NetRecipe, Note, Severity
from caffe2torch.snapshot.files import Weights
from caffe2torch.snapshot.match_blobs import blob_weights
from caffe2torch.snapshot.sharding import assign
from caffe2torch.snapshot.wire import Array
from caffe2torch.wording import matches

__all__ = ["Copy", "check", "copy_all", "load_weights", "plan_weights", "tensor_like"]


def load_weights(
    model: nn.Module, recipe: NetRecipe, binding: Binding, weights: Weights, *, new_layers: Collection[str] = ()
) -> tuple[Note, ...]:
    """Copy the weights of a ``.caffemodel`` into ``model``: all of them, or on an error none.

    A layer of the net that the file lacks, or has with other shapes, is an error unless ``new_layers`` names it (its
    name, or a regular expression that matches all of it): then it keeps what the model has, with a note. BatchNorm's
    mean and variance are divided by its factor, or 0 where that is 0 (``batch_norm_layer.cpp``). The second bias of
    ``nn.LSTM`` and ``nn.RNN``, which Caffe has not, becomes 0.

    Returns notes: what was passed over (layers that net or model have not), what was kept, NaNs that were loaded.
    Raises ``SnapshotError`` when the file does not belong to the net (every blob that differs is named),
    ``ModelError`` for a model without storage, ``BindingError`` where nothing tells two tensors from each other.

    >>> from caffe2torch.snapshot.files import read_caffemodel
    >>> load_weights(model, recipe, binding, read_caffemodel("lenet.caffemodel"))  # doctest: +SKIP
    ()
    """
    copies, notes = plan_weights(model, recipe, binding, weights, new_layers=new_layers)
    return notes + copy_all(copies, weights.file)


def plan_weights(
    model: nn.Module, recipe: NetRecipe, binding: Binding, weights: Weights, *, new_layers: Collection[str] = ()
) -> tuple[tuple[Copy, ...], tuple[Note, ...]]:
    """What ``load_weights`` would copy, checked, with nothing touched yet."""
    _refuse_undecided(binding)
    here = {bound.blob.layer for bound in binding.blobs if bound.kind is not Kind.NONE}
    held = replace(recipe, blobs=tuple(blob for blob in recipe.blobs if blob.layer in here))
    reshaped = _own_layers(binding, new_layers)
    arrays, found = blob_weights(held, weights, (*new_layers, *reshaped))
    notes = list(found)
    kept = [layer for layer in reshaped if any(blob.layer == layer and blob.name in arrays for blob in recipe.blobs)]
    if kept:
        message = (
            f"{weights.file}: {', '.join(map(repr, kept))} has another shape or order in the model and keeps its values"
        )
        notes.append(Note(None, Severity.INFO, message))
    tensors, modules = dict(named_tensors(model)), dict(named_modules(model))
    claimed = {bound.name for bound in binding.blobs}
    factors = {blob.layer: arrays.get(blob.name) for blob in recipe.blobs if blob.role == "factor"}
    copies: list[Copy] = []
    for bound in binding.blobs:
        blob, array = bound.blob, arrays.get(bound.blob.name)
        if array is None or blob.layer in reshaped:
            continue
        if bound.kind is Kind.NONE or bound.name is None:
            if blob.role != "factor" and np.any(array):
                message = f"{weights.file}: {blob.name} ({blob.role}) is not zero, and the model has no place for it"
                notes.append(Note(None, Severity.WARNING, message))
            continue
        divisor = _divisor(factors.get(blob.layer)) if blob.role in ("mean", "variance") else 1.0
        copies.append(Copy(bound.name, tensors[bound.name], array, layout_of(recipe, bound, modules), divisor))
        second = second_bias(bound)
        if second in tensors and second not in claimed:
            copies.append(Copy(second, tensors[second], np.zeros(tensors[second].shape, "f4")))
    problems = [problem for copy in copies if (problem := check(copy.name, copy.tensor, copy.array.size, weights.file))]
    if problems:
        raise SnapshotError(f"does not fit the model {binding.model}: {'; '.join(problems[:8])}", where=weights.file)
    return tuple(copies), tuple(notes)


def _refuse_undecided(binding: Binding) -> None:
    """Where either of two tensors would learn alike the optimizer needs no decision, but their values do."""
    undecided = [bound for bound in binding.blobs if bound.rivals]
    if undecided:
        first = undecided[0]
        raise BindingError(
            f"{len(undecided)} blobs could as well be others' tensors, and weights must not be guessed: "
            f"{first.blob.name} is {first.name} or {', '.join(first.rivals)}",
            where=first.blob.where,
            hint=f"decide in a names file which module layer {first.blob.layer!r} is",
        )


def _own_layers(binding: Binding, new_layers: Collection[str]) -> dict[str, None]:
    """Layers whose parameters have another shape, or an unknown order and their user's word that they are new."""
    layers = dict.fromkeys(bound.blob.layer for bound in binding.blobs)
    found = (matches(key, layers, what="new_layers", of="layer that learns", error=BindingError) for key in new_layers)
    new = {name for names in found for name, _ in names}
    unknown = [bound.blob for bound in binding.blobs if bound.storage is Storage.UNDECIDED]
    undecided = [blob for blob in unknown if blob.layer not in new]
    if undecided:
        raise BindingError(
            f"the numbers of {undecided[0].name} may stand in another order in the model, or its weight be computed "
            "from others, and weights must not be guessed",
            where=undecided[0].where,
            hint=f"load the others, with new_layers=[{undecided[0].layer!r}], and copy this one yourself",
        )
    others = [bound.blob for bound in binding.blobs if bound.storage is Storage.OTHER]
    return dict.fromkeys(blob.layer for blob in (*others, *unknown))


def _divisor(factor: Array | None) -> float:
    """What BatchNorm divides its running sums by. Layers that keep means (other forks' BN) have no factor."""
    value = 1.0 if factor is None else float(factor.reshape(-1)[0])
    return math.inf if value == 0 else value


# Copies that have been checked: arrays of Caffe's into tensors, in the tensors' layout, all of them or none.

_NUMPY_HOLDS = (torch.float32, torch.float64, torch.float16)
_PORTION = 1 << 22  # numbers; what cannot be copied in one go passes through this many at a time


@dataclass(frozen=True, slots=True, eq=False)
class Copy:
    """The tensor ``name`` gets ``array``, which is in Caffe's order, divided by ``divisor``."""

    name: str
    tensor: Tensor
    array: Array
    layout: Layout = Layout.SAME
    divisor: float = 1.0


def check(name: str, tensor: Tensor, count: int, where: str) -> str | None:
    """What keeps ``count`` numbers from going into a tensor, if anything does."""
    if tensor.is_meta:
        raise ModelError(
            f"the tensor {name!r} is on the meta device and holds no numbers",
            where=where,
            hint="give the model storage first: model.to_empty(device='cpu')",
        )
    return None if count == tensor.numel() else f"{name} has {tensor.numel():,} numbers, {count:,} should go into it"


def copy_all(copies: Sequence[Copy], source: str) -> tuple[Note, ...]:
    """Make copies that have been checked. Returns a note for each tensor that now holds NaN or infinity."""
    notes = []
    total = sum(copy.array.nbytes for copy in copies)
    with torch.no_grad(), bar(f"loading {Path(source).name}", total) as advance:
        for copy in copies:
            _write(copy.tensor.detach(), copy)
            advance(copy.array.nbytes)
            if bad := _not_finite(copy.tensor.detach()):
                notes.append(
                    Note(None, Severity.WARNING, f"{source}: {bad:,} of the numbers of {copy.name} are NaN or infinite")
                )
    return tuple(notes)


def tensor_like(copy: Copy) -> Tensor:
    """A new tensor of ``copy``'s shape, type and device with the numbers of ``copy``."""
    tensor = torch.empty_like(copy.tensor, requires_grad=False)
    _write(tensor, copy)
    return tensor


def _write(tensor: Tensor, copy: Copy) -> None:
    if hasattr(tensor, "device_mesh"):  # sharded
        values = torch.empty(tensor.shape, dtype=tensor.dtype)
        _write(values, copy)
        assign(tensor, values)
        return
    array = to_torch(copy.array, copy.layout, tuple(tensor.shape))
    if tensor.device.type == "cpu" and tensor.dtype in _NUMPY_HOLDS:
        # numpy copies whatever alignment, stride and width the file has, without a copy between.
        np.copyto(tensor.numpy(), array, casting="same_kind")
    else:
        _write_by_portions(tensor, array.reshape(-1))
    if copy.divisor != 1.0:
        tensor.div_(copy.divisor)


def _write_by_portions(tensor: Tensor, flat: Array) -> None:
    staged = tensor if tensor.is_contiguous() else torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    for start in range(0, flat.size, _PORTION):
        portion = torch.from_numpy(flat[start : start + _PORTION].astype(flat.dtype.newbyteorder("=")))
        staged.view(-1)[start : start + portion.numel()].copy_(portion)
    if staged is not tensor:
        tensor.copy_(staged)


def _not_finite(tensor: Tensor) -> int:
    """How many numbers are NaN or infinite. A sum tells that there is none, and allocates nothing."""
    if torch.isfinite(tensor.sum(dtype=torch.float32)):
        return 0
    return int((~torch.isfinite(tensor)).sum())
