"""Heads that a port does without: layers that lead only to ends of the net that the model does not have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import combinations, groupby, islice

from caffe2torch.binding.attempt import Attempt
from caffe2torch.binding.closest import differences
from caffe2torch.binding.graph import Wiring
from caffe2torch.binding.isomorphism import without_tails

__all__ = ["without_ends"]

_MOST_TRIED = 12


def without_ends(attempt: Attempt, attempted: Callable[[frozenset[int]], Attempt]) -> Attempt:
    """The attempt as it is, or one without ends, if every other layer then has a place and no other ends would do.

    Args:
        attempt: One that leaves something over.
        attempted: The attempt without some blobs (indices).
    """
    model = attempt.model.wiring
    if model is None or attempt.model.ended or not attempt.missing:
        return attempt
    if all(unit.name in attempt.findings.conflicting for unit in attempt.unbound):
        return attempt  # every layer has a place, though not one only
    ways = islice(_without_counterpart(attempt.net.wiring, model), _MOST_TRIED)
    for _, alike in groupby(sorted(ways), key=lambda way: way[0]):
        tried = sorted(filter(_explains, (attempted(frozenset(blobs)) for _, blobs in alike)), key=_rest)
        if tried:
            unique = len(tried) == 1 or _rest(tried[0]) != _rest(tried[1])
            return tried[0] if unique else attempt
    return attempt


def _explains(attempt: Attempt) -> bool:
    """Whether all that is kept has a place, and no module is left that could be one of the layers that are not."""
    gone = [unit for unit in attempt.net.units if not set(attempt.ends).isdisjoint(unit.parts)]
    return not attempt.missing and all(differences(unit, module) for unit in gone for module in attempt.idle)


def _rest(attempt: Attempt) -> tuple[int, int]:
    return len(attempt.parameters), len(attempt.assignment.misfits)


def _without_counterpart(net: Wiring, model: Wiring) -> Iterator[tuple[int, list[int]]]:
    """Blobs of as many ends as the net has more than the model, in every way; and how far counts of units then differ.

    Kinds of units that the model has not do not count.
    """
    ends, wanted = _ends(net), Counter(unit.kind for unit in model.units)
    more = len(ends) - len(_ends(model))
    if more <= 0:
        return
    for left_out in combinations(ends, more):
        kept = set[int]().union(*(ends[end] for end in ends if end not in left_out))
        only = set[int]().union(*(ends[end] for end in left_out)) - kept
        found = Counter(net.units[unit].kind for unit in kept)
        away = sum(abs(found[kind] - count) for kind, count in wanted.items() if kind in found)
        yield away, sorted(int(tensor.key) for unit in only for tensor in net.units[unit].tensors)


def _ends(wiring: Wiring) -> dict[int, set[int]]:
    """Units (indices) that no other one reads, each with all units that it depends on."""
    nodes = without_tails(wiring).nodes
    behind: list[set[int]] = []
    read = {source for node in nodes for source in node.inputs}
    for node in nodes:
        behind.append(set[int]().union(*(behind[source] for source in node.inputs)))
        if node.unit is not None:
            behind[-1].add(node.unit)
    return {node.unit: behind[n] for n, node in enumerate(nodes) if n not in read and node.unit is not None}
