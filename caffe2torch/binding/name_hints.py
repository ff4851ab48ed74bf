"""Units whose names are equal, or equal but for how they are written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from caffe2torch.binding.graph import Unit
from caffe2torch.binding.naming import module_name, normalised, unwrapped

__all__ = ["name_hints"]


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
