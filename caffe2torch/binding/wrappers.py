"""Names without wrappers: DataParallel, ``torch.compile``, FSDP, activation checkpointing, Lightning's Fabric.

A wrapper holds the module that it wraps under a name of its own, which then stands in the names of all parameters.
Everything here sees the model as if nothing were wrapped. Wrappers are known by what they are, not by how their
names read: a user's own submodule called ``module`` stays.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

__all__ = ["WRAPPER_NAMES", "bare", "named_modules", "named_tensors", "unwrapped"]

_HOLDS = {
    ("_orig_mod",): "_orig_mod",
    ("_fsdp_wrapped_module",): "_fsdp_wrapped_module",
    ("_checkpoint_wrapped_module",): "_checkpoint_wrapped_module",
    ("_forward_module", "_original_module"): "_original_module",
}
"""By the names of all its submodules, under which of them a wrapper holds what it wraps."""

WRAPPER_NAMES = frozenset({"module", *(name for names in _HOLDS for name in names)})
"""Names under which DataParallel, compile, FSDP, activation checkpointing and Fabric hold what they wrap."""


def bare(model: nn.Module) -> nn.Module:
    """The outermost module that is no wrapper.

    >>> bare(nn.DataParallel(nn.Linear(2, 2)))
    Linear(in_features=2, out_features=2, bias=True)
    """
    while (inner := _wrapped(model)) is not None:
        model = inner
    return model


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """As ``nn.Module.named_modules`` (each module once), without wrappers and their names."""
    seen: set[int] = set()
    pending = [("", bare(model))]
    while pending:
        path, module = pending.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield path, module
        children = [(name, bare(child)) for name, child in module._modules.items() if child is not None]
        pending += [(f"{path}.{name}" if path else name, child) for name, child in reversed(children)]


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers, each once under its first name, as a binding names them; parameters first."""
    seen: set[int] = set()
    modules = list(named_modules(model))
    for kind in ("_parameters", "_buffers"):
        for path, module in modules:
            for name, tensor in getattr(module, kind).items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield (f"{path}.{name}" if path else name), tensor


def unwrapped(path: str) -> str:
    """A module's path as text without the segments that wrappers add.

    >>> unwrapped("module.features._orig_mod.conv1")
    'features.conv1'
    """
    return ".".join(segment for segment in path.split(".") if segment not in WRAPPER_NAMES)


def _wrapped(module: nn.Module) -> nn.Module | None:
    if not module._modules:
        return None
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inner: nn.Module = module.module
        return inner
    held = _HOLDS.get(tuple(name for name, _ in module._modules.items()))  # a scripted module's iterate by items alone
    return module._modules[held] if held else None
