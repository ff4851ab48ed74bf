"""Layer names as module names, and names that differ only in how they are written.

Caffe allows any text as a layer's name; torch refuses a module name that is empty, holds a dot, or hides an attribute
of ``nn.Module``. What torch refuses is written with ``%`` as in a URL:

========================  ===========================================================
``.`` and ``%``           ``%2E`` and ``%25``
the empty name            ``%``
an attribute's name       with ``%`` after it: ``type`` is ``type%``
the 2nd layer of a name   with ``%_2`` after it, the 3rd with ``%_3``, ...
========================  ===========================================================
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from torch import nn

__all__ = ["layer_name", "module_name", "module_names", "normalised", "unwrapped"]

_WRAPPERS = frozenset(
    {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "_original_module"}
)
"""Names under which DataParallel, compile, FSDP, activation checkpointing and Fabric keep what they wrap."""

_TAKEN = frozenset(dir(nn.Module())) | _WRAPPERS


def module_name(layer: str, occurrence: int = 1) -> str:
    """The name of the skeleton's submodule for a layer, given that it is the n-th layer of that name.

    >>> module_name("conv1/7x7_s2"), module_name("res.1"), module_name("type"), module_name(""), module_name("ip", 2)
    ('conv1/7x7_s2', 'res%2E1', 'type%', '%', 'ip%_2')
    """
    name = layer.replace("%", "%25").replace(".", "%2E") or "%"
    if name in _TAKEN:
        name += "%"
    return name if occurrence == 1 else f"{name}%_{occurrence}"


def layer_name(module: str) -> str:
    """The layer's name that ``module_name`` wrote.

    >>> [layer_name(module_name(name, 2)) for name in ("a.b", "100%", "", "type", "x%_2")]
    ['a.b', '100%', '', 'type', 'x%_2']
    """
    bare = re.sub(r"%_\d+$", "", module).removesuffix("%")
    return bare.replace("%2E", ".").replace("%25", "%")


def module_names(layers: Iterable[str]) -> list[str]:
    """``module_name`` for each layer in turn, counting the layers that share a name.

    >>> module_names(["ip", "relu", "ip"])
    ['ip', 'relu', 'ip%_2']
    """
    seen: dict[str, int] = {}
    names = []
    for layer in layers:
        seen[layer] = seen.get(layer, 0) + 1
        names.append(module_name(layer, seen[layer]))
    return names


def unwrapped(path: str) -> str:
    """A module's path without the segments that wrappers add.

    >>> unwrapped("module.features._orig_mod.conv1")
    'features.conv1'
    """
    return ".".join(segment for segment in path.split(".") if segment not in _WRAPPERS)


def normalised(path: str, prefix: Sequence[str] = ()) -> str:
    """A name in lower case without separators, wrappers and the leading segments ``prefix``.

    >>> normalised("module.Conv1_1.bn"), normalised("backbone.conv1", ["backbone"]), normalised("conv1/1.BN")
    ('conv11bn', 'conv1', 'conv11bn')
    """
    segments = unwrapped(path).split(".")
    if prefix and segments[: len(prefix)] == list(prefix):
        segments = segments[len(prefix) :]
    return re.sub(r"[\W_]", "", "".join(segments).casefold())
