"""A copy of a model to run in its place: same modules, other tensors, nothing of the user's model touched."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from caffe2torch.binding.wrappers import bare

__all__ = ["meta_stand_in", "real_stand_in"]

_KEEP_THE_SHAPE = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.LocalResponseNorm)
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
)


def meta_stand_in(model: nn.Module) -> nn.Module:
    """The model on the meta device: shapes and types, no numbers, hence no memory and no arithmetic.

    Batch norms only pass on the shape that they are given. That is all they do here anyway, at most of the cost of a
    forward pass, and ``SyncBatchNorm`` would insist on a GPU.
    """
    stand_in = _stand_in(model, _on_meta)
    for module in stand_in.modules():
        if type(module) in _KEEP_THE_SHAPE:
            module.forward = _same_shape
    return stand_in


def _same_shape(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)  # ``empty_like`` is slow on meta, and imports sympy


def real_stand_in(model: nn.Module) -> nn.Module:
    """The model with its own numbers: parameters share the model's memory, buffers are copies that may change."""
    return _stand_in(model, _on_its_device)


def _stand_in(model: nn.Module, substitute: Callable[[Tensor], Tensor]) -> nn.Module:
    """Copy every module by hand, so that classes which refuse ``deepcopy`` are copied too and no tensor ever is.

    Hooks are left behind, since they may write into what is the user's; those by which torch itself computes a
    weight (``weight_norm``, ``spectral_norm``) stay. An attribute that cannot be copied is shared.
    """
    model = bare(model)
    modules = list(model.modules())
    memo: dict[int, Any] = {}
    for module in modules:
        memo[id(module)] = object.__new__(_own_class(module))
        for tensor in _tensors(vars(module)):
            if id(tensor) not in memo:
                memo[id(tensor)] = substitute(tensor)
        for name in _HOOKS:
            hooks = vars(module).get(name)
            if hooks is not None:
                memo[id(hooks)] = OrderedDict((key, hook) for key, hook in hooks.items() if _is_torchs(hook))
    for module in modules:
        shell = memo[id(module)]
        for name, value in vars(module).items():
            try:
                shell.__dict__[name] = copy.deepcopy(value, memo)
            except Exception:  # whatever a user's object raises: locks, files, generators
                shell.__dict__[name] = value
    stand_in: nn.Module = memo[id(model)]
    for module in stand_in.modules():
        for name, child in module._modules.items():
            if child is not None:
                module._modules[name] = bare(child)
    return stand_in


def _own_class(module: nn.Module) -> type:
    """The class that the user wrote: ``fully_shard`` puts one in front of it that gathers shards in ``forward``."""
    bases = type(module).__bases__
    if any(base.__name__ == "FSDPModule" for base in bases):
        return next(base for base in bases if base.__name__ != "FSDPModule")
    return type(module)


def _tensors(value: object, depth: int = 3) -> list[Tensor]:
    """The tensors among a module's attributes, inside lists and dicts too."""
    if isinstance(value, Tensor):
        return [value]
    if depth == 0 or not isinstance(value, dict | list | tuple):
        return []
    return [
        tensor for one in (value.values() if isinstance(value, dict) else value) for tensor in _tensors(one, depth - 1)
    ]


def _on_meta(tensor: Tensor) -> Tensor:
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype  # inputs are float32, whatever the model is
    empty = torch.empty(tensor.shape, dtype=dtype, device="meta")
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty


def _on_its_device(tensor: Tensor) -> Tensor:
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(tensor.detach(), requires_grad=False)
    return tensor.detach().clone()


def _is_torchs(hook: object) -> bool:
    return type(hook).__module__.startswith("torch.nn.utils")
