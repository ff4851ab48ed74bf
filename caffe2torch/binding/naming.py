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
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from caffe2torch.binding.graph import Unit

__all__ = ["layer_name", "module_name", "module_names", "name_hints", "normalised", "unwrapped"]

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


# Units whose names are equal, or equal but for how they are written.


def name_hints(net: Sequence[Unit], model: Sequence[Unit]) -> tuple[dict[int, int], dict[int, int]]:
    """Pairs of units (indices) by equal names, and by names that are equal after ``normalised``.

    A name counts where exactly one unit on each side bears it. The leading segments that all modules share, or that
    one part of the model has (``backbone.``), are left out for the second if more names are equal without them.
    """
    spelled = {module_name(part) for unit in net for part in unit.parts}
    exact = [{module_name(part) for part in unit.parts} | (set(unit.parts) - spelled) for unit in net]
    equal = _agreeing(exact, [set(unit.parts) for unit in model])
    ours = [{normalised(part.replace(".", "_")) for part in unit.parts} - {""} for unit in net]
    found = [
        _agreeing(ours, [{normalised(part, prefix) for part in unit.parts} - {""} for unit in model])
        for prefix in _prefixes(part for unit in model for part in unit.parts)
    ]
    return equal, max(found, key=len, default={})


def _agreeing(net: Sequence[set[str]], model: Sequence[set[str]]) -> dict[int, int]:
    sides: list[Mapping[str, int]] = []
    for units in (net, model):
        count = Counter(name for names in units for name in names)
        sides.append({name: number for number, names in enumerate(units) for name in names if count[name] == 1})
    pairs = {(number, sides[1][name]) for name, number in sides[0].items() if name in sides[1]}
    ones, others = Counter(one for one, _ in pairs), Counter(other for _, other in pairs)
    return {one: other for one, other in sorted(pairs) if ones[one] == others[other] == 1}


def _prefixes(paths: Iterable[str]) -> list[list[str]]:
    """No prefix, what all paths begin with, and that with one segment more, as far as several paths have it."""
    split = [unwrapped(path).split(".")[:-1] for path in paths]
    if not split:
        return []
    common: list[str] = []
    for segments in zip(*split, strict=False):
        if len(set(segments)) > 1:
            break
        common.append(segments[0])
    longer = dict.fromkeys(path[len(common)] for path in split if len(path) > len(common))
    return [[], common, *([*common, segment] for segment in longer)]
