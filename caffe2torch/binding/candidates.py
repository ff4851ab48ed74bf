"""Where the model has units that the net does not have: which of its units each unit of the net could be.

Units that are left out are transparent, so a value of the model can stand for what lies before it, up to the first
unit that must stay. A pair is dropped as soon as what feeds it, or what it feeds, has no pair left, until nothing
changes any more (arc consistency: Mackworth, 1977). What is dropped is impossible; what is left alone is certain.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence

from caffe2torch.binding.colours import Graph
from caffe2torch.binding.graph import Op, UnitKind, Wiring
from caffe2torch.binding.isomorphism import Sizes, match_rest, signatures

__all__ = ["bits", "candidates", "possible"]

_MOST_TRIED = 64  # candidates that are tried one by one
_MOST_NODES = 2000  # nodes of the model that are looked at for each in further tries


def candidates(
    net: Wiring, model: Wiring, known: Mapping[int, int], reshaped: Collection[int] = (), *, ordered: bool = True
) -> dict[int, list[int]]:
    """For each unit of the net the units of the model that it could be, if the model holds the whole net.

    Args:
        net: The net.
        model: The model, which may have more units.
        known: Pairs that stand.
        reshaped: Units of the net that may have other sizes in the model.
        ordered: Whether the model concatenates branches in the order of the net.
    """
    return _Candidates((Graph(net, ordered=ordered), Graph(model, ordered=ordered)), known, frozenset(reshaped)).found()


def possible(
    net: Wiring,
    model: Wiring,
    known: Mapping[int, int],
    reshaped: Collection[int],
    found: Mapping[int, list[int]],
    *,
    ordered: bool,
) -> dict[int, list[int]]:
    """The candidates that are still possible when taken as known; as they are, where there are very many.

    Where some way makes even what no unit reads the same, the others count for nothing.
    """
    if sum(len(others) for others in found.values() if len(others) > 1) > _MOST_TRIED:
        return dict(found)
    kept: dict[int, list[int]] = {}
    for same_ends in (True, False):
        for one, others in found.items():
            tries = iter(range(_MOST_NODES // len(model.nodes)))
            kept[one] = [
                other
                for other in others
                if len(others) == 1 or _holds(net, model, {**known, one: other}, reshaped, tries, same_ends, ordered)
            ]
        if all(kept.values()):
            break
    return kept


def _holds(
    net: Wiring,
    model: Wiring,
    known: Mapping[int, int],
    reshaped: Collection[int],
    tries: Iterator[int],
    same_ends: bool,
    ordered: bool,
) -> bool:
    """Whether these pairs can stand together: whether some way to pair the rest does, as far as there are tries."""
    trial = candidates(net, model, known, reshaped, ordered=ordered)
    if not all(trial.values()):
        return False
    undecided = [one for one, others in trial.items() if len(others) > 1]
    if not undecided:
        pairs = {one: others[0] for one, others in trial.items()}
        kept = pairs, set(pairs.values())
        return match_rest(net, model, kept, pairs, same_ends=same_ends, same_order=ordered) is not None
    one = min(undecided, key=lambda one: len(trial[one]))
    return any(
        next(tries, None) is None or _holds(net, model, {**known, one: other}, reshaped, tries, same_ends, ordered)
        for other in trial[one]
    )


class _Candidates:
    """Sets of nodes and units as bits of numbers."""

    def __init__(self, graphs: tuple[Graph, Graph], known: Mapping[int, int], reshaped: Collection[int]) -> None:
        self.net, self.model = graphs
        net, model = (graph.wiring for graph in graphs)
        self.known, taken = known, set(known.values())
        labels = signatures(net.units, model.units, Sizes.STRICT)
        of_label: dict[Hashable, list[int]] = {}
        of_kind: dict[UnitKind, list[int]] = {}
        for other, label in enumerate(labels[1]):
            if self.model.uses[other] and other not in taken:
                of_label.setdefault(label, []).append(other)
                of_kind.setdefault(model.units[other].kind, []).append(other)
        self.units: list[set[int]] = []
        for one, label in enumerate(labels[0]):
            wanted = of_kind.get(net.units[one].kind, []) if one in reshaped else of_label.get(label, [])
            self.units.append({known[one]} if one in known else set(wanted))
        self.unread = [number for number, uses in enumerate(self.net.uses) if not uses]
        everywhere = {
            op: sum(1 << number for number, node in enumerate(model.nodes) if node.op is op)
            for op in {node.op for node in net.nodes}
        }
        self.nodes = [everywhere[node.op] for node in net.nodes]
        self.concats = everywhere.get(Op.CONCAT, 0)
        self._follow_units()

    def found(self) -> dict[int, list[int]]:
        while True:
            before = (list(self.nodes), [len(others) for others in self.units])
            self._reach()
            self._sweep()
            self._follow_nodes()
            self._follow_units()
            if before == (self.nodes, [len(others) for others in self.units]):
                break
        return {one: sorted(others) for one, others in enumerate(self.units) if one not in self.unread}

    def _reach(self) -> None:
        """For each node of the model the values that it can stand for once units are left out."""
        must_stay = {next(iter(others)) for others in self.units if len(others) == 1}
        self.reach, self.parts = [1], [1]  # the parts: what it adds to a junction of its own kind
        for number, node in enumerate(self.model.wiring.nodes[1:], start=1):
            reach = 1 << number
            sources = [self.reach[source] for source in node.inputs]
            if node.unit is None:
                common = sources[0]
                for source in sources:
                    common &= source
                reach |= common
            elif node.unit not in must_stay:
                reach |= sources[0] if sources else 0
            self.reach.append(reach)
            parts = 0
            for source in node.inputs if node.unit is None else ():
                parts |= self.parts[source] | self.reach[source]
            passed = self.parts[node.inputs[0]] if node.unit is not None and reach != 1 << number else 0
            self.parts.append(reach | parts | passed)

    def _sweep(self) -> None:
        """Drop nodes whose inputs have no pair, then nodes that feed no pair."""
        for number, node in enumerate(self.net.wiring.nodes[1:], start=1):
            inputs = [self.nodes[source] for source in node.inputs]
            self.nodes[number] = sum(1 << other for other in bits(self.nodes[number]) if self._fed(other, inputs))
        for number in range(len(self.nodes) - 1, 0, -1):
            node = self.net.wiring.nodes[number]
            reached = [0] * len(node.inputs)
            for other in bits(self.nodes[number]):
                sources = self.model.inputs[other]
                for place in range(len(node.inputs)):
                    if self._in_order(other):
                        reached[place] |= self.reach[sources[place]] if place < len(sources) else 0
                    else:
                        reached[place] |= self.parts[other]
            for source, mask in zip(node.inputs, reached, strict=True):
                self.nodes[source] &= mask

    def _fed(self, other: int, inputs: Sequence[int]) -> bool:
        if not self._in_order(other):
            return all(self.parts[other] & wanted for wanted in inputs)
        sources = self.model.inputs[other]
        return len(sources) == len(inputs) and all(
            self.reach[source] & wanted for source, wanted in zip(sources, inputs, strict=True)
        )

    def _in_order(self, other: int) -> bool:
        """Whether a node keeps its inputs as they are: no other concatenation becomes a part of it."""
        if self.model.wiring.nodes[other].op is not Op.CONCAT or not self.model.ordered[other]:
            return self.model.ordered[other]
        return not any(self.reach[source] & self.concats for source in self.model.inputs[other])

    def _follow_nodes(self) -> None:
        """A unit of the model comes into question if each use of the net's unit can be a use of it."""
        for one, uses in enumerate(self.net.uses):
            for use in uses:
                nodes = self.model.wiring.nodes
                self.units[one] &= {unit for other in bits(self.nodes[use]) if (unit := nodes[other].unit) is not None}
        read = [others for others, uses in zip(self.units, self.net.uses, strict=True) if uses]
        for group, size in Counter(map(frozenset, read)).items():  # as many as they have candidates: none is another's
            for others in read if len(group) <= size else ():
                if others != group or len(group) < size:
                    others.difference_update(group)

    def _follow_units(self) -> None:
        for one, uses in enumerate(self.net.uses):
            mask = sum(1 << use for other in self.units[one] for use in self.model.uses[other])
            for use in uses:
                self.nodes[use] &= mask


def bits(mask: int) -> Iterator[int]:
    """The numbers of the bits that are set, the lowest first."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low
