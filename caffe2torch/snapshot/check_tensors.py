"""Whether a checkpoint's file holds plain data: asked before anything is computed from it.

``torch.load(weights_only=True)`` runs no code, but it builds every kind of tensor that torch knows: sparse ones, ones
without storage, one number that claims to be 10^12, lists that hold themselves. None of these is a weight.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping

import torch
from torch import Tensor

from caffe2torch.errors import SnapshotError

__all__ = ["check_archive", "check_tensors", "kind_problem"]

_DEEPEST = 16  # containers; a checkpoint of ours has five
_MOST = 1_000_000  # values


def check_archive(path: str | os.PathLike[str]) -> None:
    """Refuse a zip archive with compressed members, which torch never writes, and which grow without bound when read.

    Raises:
        SnapshotError: The file is no zip archive, or has such a member.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [info.filename for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise SnapshotError(f"is damaged, or no checkpoint: {error}", where=str(path)) from None
    if packed:
        raise SnapshotError(f"holds the compressed member {packed[0]!r}; torch writes none", where=str(path))


def check_tensors(path: str | os.PathLike[str], content: object) -> None:
    """Refuse data that is not what ``save`` writes: dicts, lists, texts, numbers, and dense tensors that hold theirs.

    Args:
        path: The file, for the message.
        content: What ``torch.load`` gave.

    Raises:
        SnapshotError: With the place of the first value that is something else.
    """
    below: list[tuple[str, object, int]] = [("", content, 0)]
    for _ in range(_MOST):
        if not below:
            return
        place, value, depth = below.pop()
        if depth > _DEEPEST:
            raise SnapshotError(f"is damaged: {place} is nested more than {_DEEPEST} deep", where=str(path))
        match value:
            case Tensor():
                if problem := _problem(value):
                    raise SnapshotError(f"is damaged: {place} {problem}", where=str(path))
            case Mapping():
                below += [(f"{place}[{key!r}]", item, depth + 1) for key, item in value.items()]
            case list() | tuple():
                below += [(f"{place}[{index}]", item, depth + 1) for index, item in enumerate(value)]
            case str() | bytes() | int() | float() | None:
                pass
            case _:
                raise SnapshotError(f"is damaged: {place} is a {type(value).__name__}", where=str(path))
    raise SnapshotError(f"is damaged: it holds more than {_MOST:,} values", where=str(path))


def kind_problem(saved: Tensor, now: Tensor) -> str | None:
    """What keeps a saved tensor from taking the place of one that the model has, besides its shape.

    >>> kind_problem(torch.zeros(2, dtype=torch.int64), torch.zeros(2))
    'holds int64, where the model has float32'
    """
    if saved.is_floating_point() == now.is_floating_point() and saved.is_complex() == now.is_complex():
        return None
    kinds = [str(tensor.dtype).removeprefix("torch.") for tensor in (saved, now)]
    return f"holds {kinds[0]}, where the model has {kinds[1]}"


def _problem(tensor: Tensor) -> str | None:
    if tensor.layout is not torch.strided:
        return "is a sparse tensor"
    if tensor.is_meta:
        return "is a tensor without numbers, of the meta device"
    if tensor.is_quantized:
        return "is a quantized tensor"
    if tensor.is_complex():
        return "is a tensor of complex numbers"
    held = tensor.untyped_storage().nbytes()
    if tensor.numel() * tensor.element_size() > held:
        return f"is a tensor of {tensor.numel():,} numbers in {held:,} bytes"
    return None
