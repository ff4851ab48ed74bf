"""Tensors of a model that is sharded over processes (FSDP2): as whole tensors, and from whole tensors.

Every process calls these functions for the same tensors in the same order, since they exchange parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["assign", "is_first_process", "like", "whole"]


def whole(content: Any) -> Any:
    """Plain data with each sharded tensor as a whole one, on every process."""
    match content:
        case Tensor():
            return content.full_tensor() if hasattr(content, "full_tensor") else content
        case Mapping():
            return {key: whole(value) for key, value in content.items()}
        case list() | tuple():
            return type(content)(whole(value) for value in content)
    return content


def like(values: Tensor, tensor: Tensor) -> Tensor:
    """``values``, a whole tensor, sharded as ``tensor`` is; itself where that is not sharded."""
    if not hasattr(tensor, "device_mesh") or hasattr(values, "device_mesh"):
        return values
    from torch.distributed.tensor import distribute_tensor

    placements: Any = tensor.placements  # type: ignore[attr-defined]  # a DTensor
    sharded: Tensor = distribute_tensor(values.to(tensor.device), tensor.device_mesh, placements)
    return sharded


def assign(tensor: Tensor, values: Tensor) -> None:
    """Copy ``values``, a whole tensor, into ``tensor``."""
    tensor.copy_(like(values, tensor))


def is_first_process() -> bool:
    """Whether this process is the one that writes files."""
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0
