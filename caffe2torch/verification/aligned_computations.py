"""Two computations with one set of names for their nodes: what corresponds has the same name on both sides."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from caffe2torch.binding.computation import UNKNOWN, Computation, Edge, Operation, never_negative
from caffe2torch.binding.graph import INPUT, Op, Unit, UnitKind

__all__ = ["OUTPUT", "Side", "align"]

OUTPUT = -1
Origin = int | tuple[Any, ...]
"""The name of a unit or of the input; or an ``Op`` and the origins that it joins."""

_LINEAR = ("pooling", "scaling")
"""Kinds of operations that may be the same before a sum and after it."""


def align(net: Computation, model: Computation, bound: Sequence[tuple[int, str]]) -> tuple[Side, Side]:
    """Both sides, where ``bound`` has blobs (indices) and the tensors that stand for them."""
    pairs = _pairs(net, model, bound)
    shared = {pair for side, own in zip((net, model), pairs, strict=True) for pair in _used_twice(side, own)}
    palette: dict[Hashable, int] = {("input",): INPUT}
    return Side(net, pairs[0], shared, palette), Side(model, pairs[1], shared, palette)


class Side:
    """The nodes of one side, by names that are equal where the two sides correspond."""

    def __init__(
        self, of: Computation, pairs: Sequence[int | None], shared: Collection[int], palette: dict[Hashable, int]
    ) -> None:
        self.of = of
        self.names: list[int] = [INPUT]
        self.units: dict[int, list[int]] = {}  # pair -> nodes
        self.single: dict[int, int] = {}  # name -> the one node
        self.ops: dict[int, Op] = {INPUT: Op.INPUT}
        self.nodes_of: dict[int, int] = {INPUT: INPUT}  # name -> its first node
        doubtful: set[int] = set()  # nodes after something that has no counterpart
        for number, node in enumerate(of.nodes[1:], start=1):
            inputs = [self.names[source] for source in node.inputs]
            pair = None if node.unit is None else pairs[node.unit]
            if node.unit is not None and pair is None:
                self.names.append(inputs[0] if inputs else INPUT)
                doubtful.add(number)
                continue
            if pair is not None:
                self.units.setdefault(pair, []).append(number)
                key: Hashable = ("unit", pair, *inputs) if pair in shared else ("unit", pair)
            else:
                key = (node.op, *(inputs if node.op.ordered else sorted(inputs)))
            merged = pair is not None and _continues(of, pairs, number)
            same = pair is None and len(set(inputs)) == 1
            name = inputs[0] if merged or same else palette.setdefault(key, len(palette))
            if same:
                doubtful.add(number)
            self.names.append(name)
            self.ops.setdefault(name, node.op)
            self.nodes_of.setdefault(name, number)
            self.single.setdefault(name, number)
        self.edges: dict[tuple[int, int], list[Edge]] = {}
        self.into: dict[int, list[tuple[int, Edge]]] = {}  # name -> what comes there, and from which name
        for edge in of.edges:
            target = OUTPUT if edge.target is None else self.names[edge.target]
            source = self.names[edge.source]
            if source == target or edge.target in doubtful:
                continue
            if edge.source in doubtful:
                edge = replace(edge, chain=(UNKNOWN, *edge.chain))  # noqa: PLW2901  # the same edge, with what is known
            arriving = [(source, edge)]
            if self.ops.get(source) is self.ops.get(target) is Op.CONCAT and not edge.chain:
                arriving += self.into.get(source, ())  # a concatenation of concatenations is one
            self.into.setdefault(target, []).extend(arriving)
            for origin, one in arriving:
                self.edges.setdefault((origin, target), []).append(one)

    def unit_of(self, node: int) -> Unit:
        """The unit that a node uses."""
        unit = self.of.nodes[node].unit
        assert unit is not None
        return self.of.units[unit]

    def name_of(self, node: int) -> str:
        """Its name."""
        return self.unit_of(node).name

    def label(self, name: int) -> str:
        """The unit of a name; empty for anything else."""
        node = self.nodes_of.get(name)
        return self.name_of(node) if node is not None and self.of.nodes[node].unit is not None else ""

    def near_junction(self, kind: str, way: tuple[int, int]) -> bool:
        """Whether an operation of a kind may stand beside or behind a junction, where it comes to the same."""
        for end, name in enumerate(way):
            op = self.ops.get(name)
            if op in (Op.JOINT, Op.MAX):
                return True
            beside = kind in _LINEAR and op in (Op.SUM, Op.PRODUCT)
            near = (
                operation.kind
                for key, edges in self.edges.items()
                if key != way and ((op is Op.CONCAT and key[1 - end] == name) or (beside and name in key))
                for edge in edges
                for operation in edge.chain
            )
            if any(one in (kind, "unknown") for one in near):
                return True
        return False

    def never_negative(self, name: int) -> bool:
        """Whether what a junction gives is known not to be below 0, since nothing that comes there is."""
        arriving = self.into.get(name, []) if self.ops.get(name) in (Op.SUM, Op.CONCAT, Op.MAX, Op.PRODUCT) else []
        return bool(arriving) and all(never_negative(edge.chain) for _, edge in arriving)

    def origin(self, name: int) -> Origin | None:
        """What a name stands for: itself where it is a unit or the input, else a junction of such; else not known."""
        op = self.ops.get(name)
        if op in (Op.UNIT, Op.INPUT):
            return name
        if op is None or op is Op.JOINT:
            return None
        parts: list[Origin] = []
        arriving = dict(self.into.get(name, ()))
        for source in (self.names[one] for one in self.of.nodes[self.nodes_of[name]].inputs):
            part = self.origin(source)
            if part is None or source not in arriving or UNKNOWN in arriving[source].chain:
                return None
            nested = not arriving[source].chain and isinstance(part, tuple) and part[0] is op
            parts += part[1:] if nested and isinstance(part, tuple) else [part]
        return (op, *(parts if op.ordered else sorted(parts, key=str)))

    def described(self, origin: Origin) -> str:
        """What it stands for in words."""
        if isinstance(origin, tuple):
            words = [self.described(part) for part in origin[1:]]
            return f"the {origin[0]} of {', '.join(words[:-1])} and {words[-1]}"
        if origin == INPUT:
            return "the input"
        node = self.nodes_of[origin]
        own = self.name_of(node)
        unit, inputs = self.of.nodes[node].unit, self.of.nodes[node].inputs
        before = self.origin(self.names[inputs[0]]) if inputs else None
        twice = sum(one.unit == unit for one in self.of.nodes) > 1
        return f"{own} of {self.described(before)}" if twice and before is not None and before != origin else own

    def layer_at(self, key: tuple[int, int]) -> Operation:
        """The layer nearest to an edge, for its name and place."""
        for name in (key[1], key[0]):
            node = self.nodes_of.get(name)
            if node is not None and (own := self.of.own.get(node)) is not None:
                return own
        return Operation("", name=self.label(key[1]) or self.label(key[0]) or "the output")

    def behind(self, node: int) -> tuple[set[int], set[int]]:
        """The names of the units that a node's value comes from, and of the junctions in between."""
        units: set[int] = set()
        junctions: set[int] = set()
        waiting, met = [node], {INPUT}
        while waiting:
            one = waiting.pop()
            for source in self.of.nodes[one].inputs:
                if source in met:
                    continue
                met.add(source)
                name = self.names[source]
                if self.of.nodes[source].unit is not None and name != self.names[node]:
                    units.add(name)
                    continue
                junctions.add(name)
                waiting.append(source)
        return units, junctions

    def origins(self, name: int) -> set[int]:
        """The name itself where it is a unit, else the units that it joins."""
        node = self.nodes_of[name]
        return {name} if self.of.nodes[node].unit is not None else self.behind(node)[0]


def _continues(of: Computation, pairs: Sequence[int | None], number: int) -> bool:
    """Whether a unit is the rest of the one before it, as a Scale is of its BatchNorm."""
    node = of.nodes[number]
    before = of.nodes[node.inputs[0]] if node.inputs else None
    if before is None or before.unit is None or node.unit is None or before.unit == node.unit:
        return False
    return pairs[before.unit] is not None and pairs[before.unit] == pairs[node.unit]


def _used_twice(of: Computation, pairs: Sequence[int | None]) -> Iterator[int]:
    seen: set[int] = set()
    for number, node in enumerate(of.nodes):
        pair = None if node.unit is None else pairs[node.unit]
        if pair is None or _continues(of, pairs, number):
            continue
        if pair in seen:
            yield pair
        seen.add(pair)


def _pairs(
    net: Computation, model: Computation, bound: Sequence[tuple[int, str]]
) -> tuple[list[int | None], list[int | None]]:
    """For each unit of either side a number that those have in common whose tensors stand for each other."""
    places: tuple[dict[object, int], dict[object, int]] = ({}, {})
    for place, side in zip(places, (net, model), strict=True):
        for number, unit in enumerate(side.units):
            place.update((tensor.key, number) for tensor in unit.tensors)
    leader: dict[tuple[str, int], tuple[str, int]] = {}

    def first(one: tuple[str, int]) -> tuple[str, int]:
        while (up := leader.get(one, one)) != one:
            one = up
        return one

    for blob, tensor in bound:
        if blob in places[0] and tensor in places[1]:
            ours, theirs = ("net", places[0][blob]), ("model", places[1][tensor])
            leader.setdefault(ours, ours)
            leader.setdefault(theirs, theirs)
            leader[first(ours)] = first(theirs)
    numbers: dict[tuple[str, int], int] = {}
    sides = []
    for name, side in (("net", net), ("model", model)):
        keys = [(name, number) for number in range(len(side.units))]
        pairs = [numbers.setdefault(first(key), len(numbers)) if key in leader else None for key in keys]
        for node in side.nodes:  # a norm whose statistics have no counterpart belongs to the scale after it
            before = side.nodes[node.inputs[0]].unit if node.inputs else None
            if node.unit is None or before is None or pairs[before] is not None:
                continue
            if (side.units[before].kind, side.units[node.unit].kind) == (UnitKind.NORM, UnitKind.SCALE):
                pairs[before] = pairs[node.unit]
        sides.append(pairs)
    return sides[0], sides[1]
