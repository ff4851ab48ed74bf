"""Copies that have been checked: arrays of Caffe's into tensors, in the tensors' layout, all of them or none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from caffe2torch.binding.layout import Layout, to_torch
from caffe2torch.errors import ModelError
from caffe2torch.progress import bar
from caffe2torch.recipe import Note, Severity
from caffe2torch.snapshot.blob_proto import Array

__all__ = ["Copy", "check", "copy_all", "tensor_like"]

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
