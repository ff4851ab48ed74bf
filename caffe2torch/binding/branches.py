"""What tells branches apart besides their order in a concatenation: the input that they read, and their settings."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from caffe2torch.binding.computation import Computation, Edge, Operation
from caffe2torch.binding.graph import Op, Unit, UnitKind, Wiring
from caffe2torch.binding.names import normalised
from caffe2torch.binding.net_computation import net_computation
from caffe2torch.recipe import NetRecipe

__all__ = ["Marks", "MarksOf", "Side", "branch_marks", "inputs_joined_otherwise", "joined_otherwise", "no_marks"]

Side = Mapping[str, Hashable]
"""By the name of a layer or a module what is to be seen there."""


@dataclass(frozen=True, slots=True)
class Marks:
    """What is to be seen at the units of the net and of the model.

    Attributes:
        kinds: One pair of sides for each kind of thing that is looked at, the one that proves most first.
        inputs: The number of the input that a unit reads, where inputs could not be paired by name.
    """

    kinds: Sequence[tuple[Side, Side]] = ()
    inputs: tuple[Side, Side] = ({}, {})

    @staticmethod
    def of(unit: Unit, side: Side) -> Hashable:
        """What is to be seen at a unit, whichever of its parts it is at; ``None`` for nothing."""
        return tuple(mark for part in unit.parts if (mark := side.get(part)) is not None) or None


MarksOf = Callable[[Wiring, Wiring], Marks]
"""The marks of the units of a net and of a model."""


def no_marks(net: Wiring, model: Wiring) -> Marks:
    """Where only the wirings count."""
    del net, model
    return Marks()


def branch_marks(recipe: NetRecipe, model: Computation) -> MarksOf:
    """What is to be seen on both sides: inputs and their slices, windows, poolings, activations, factors.

    Of a wiring without some units what they let pass is seen at those that are left.
    """

    computed = cache(lambda: net_computation(recipe))

    def marks(mine: Wiring, theirs: Wiring) -> Marks:
        net = computed()
        sides = _left(net, mine), _left(model, theirs)
        pairs = _paired(net.input_names, model.input_names)
        number = {name: place for place, name in enumerate(net.input_names)}
        by_name = _inputs(sides[0], number), _inputs(sides[1], {other: number[one] for one, other in pairs.items()})
        places = {name: place for place, name in enumerate(model.input_names)}
        by_place = _inputs(sides[0], number), _inputs(sides[1], places)
        several = min(len(net.input_names), len(model.input_names)) > 1
        settings = [(_slices(sides[0]), _slices(sides[1]))]
        for look in (_window, _pooling, _activation, _factor):
            settings += zip(_seen(sides[0], look), _seen(sides[1], look), strict=True)
        if not several:
            return Marks(settings)
        return Marks([by_name, *settings]) if pairs else Marks(settings, by_place)

    return marks


def _left(computation: Computation, wiring: Wiring) -> Computation:
    """The computation between the units of a wiring, by way of the others."""
    kept = {part for unit in wiring.units for part in unit.parts}
    gone = {
        number
        for number, node in enumerate(computation.nodes)
        if node.unit is not None and computation.units[node.unit].name not in kept
    }
    into: dict[int, list[Edge]] = {number: [] for number in gone}
    left: list[Edge] = []
    for edge in sorted(computation.edges, key=lambda edge: (edge.target is None, edge.target)):
        ways = [edge]
        if edge.source in gone:
            ways = [replace(one, target=edge.target, chain=one.chain + edge.chain) for one in into[edge.source]]
        (left if edge.target not in gone else into[edge.target]).extend(ways)
    return replace(computation, edges=left)


def _paired(net: Sequence[str], model: Sequence[str]) -> dict[str, str]:
    """Inputs of the net to inputs of the model, if names pair them all: ``data_rgb`` and ``rgb``."""
    exact, nearly = set(), set()
    for one, other in itertools.product(net, model):
        short, long = sorted((normalised(one), normalised(other)), key=len)
        if short == long:
            exact.add((one, other))
        if short and (long.startswith(short) or long.endswith(short)):
            nearly.add((one, other))
    for found in (exact, nearly):
        if len(found) == len(net) == len(dict(found)) == len({other for _, other in found}):
            return dict(found)
    return {}


def _inputs(computation: Computation, number: Mapping[str, int]) -> Side:
    """The numbers of the inputs that a unit reads."""
    return _gathered(
        computation,
        (
            (edge.target, tuple(number[name] for name in edge.given))
            for edge in computation.edges
            if all(name in number for name in edge.given)
        ),
    )


def _slices(computation: Computation) -> Side:
    """The first channel that a unit reads of what another gives."""
    return _gathered(computation, ((edge.target, edge.channel) for edge in computation.edges))


def _seen(computation: Computation, look: Callable[[Operation], Hashable]) -> list[Side]:
    """What ``look`` sees of the operations of a unit, of those right before it, and of those after it."""
    own = ((node, look(operation)) for node, operation in computation.own.items())
    edges = [(edge, tuple(filter(None, map(look, edge.chain)))) for edge in computation.edges]
    before = ((edge.target, seen) for edge, seen in edges)
    after = ((edge.source, seen) for edge, seen in edges)
    return [_gathered(computation, marks) for marks in (own, before, after)]


def _gathered(computation: Computation, marks: Iterable[tuple[int | None, Hashable]]) -> Side:
    found: dict[str, list[Hashable]] = {}
    for node, mark in marks:
        unit = None if node is None else computation.nodes[node].unit
        if unit is not None and mark not in (None, ()):
            found.setdefault(computation.units[unit].name, []).append(mark)
    return {name: tuple(sorted(marks, key=repr)) for name, marks in found.items()}


# What ports keep of an operation: not how it pads or rounds.


def _window(operation: Operation) -> Hashable:
    settings = operation.settings
    if operation.kind != "convolution":
        return None
    return tuple(settings["kernel"]), tuple(settings["stride"]), tuple(settings["dilation"])


def _pooling(operation: Operation) -> Hashable:
    return (operation.settings["pooling"], operation.output) if operation.kind == "pooling" else None


def _activation(operation: Operation) -> Hashable:
    return operation.settings.get("function") if operation.kind == "activation" else None


def _factor(operation: Operation) -> Hashable:
    settings = operation.settings
    return (settings["factor"], settings["shift"]) if operation.kind == "scaling" else None


# Where the model joins branches, or inputs, in another order.

_BY_CHANNEL = (UnitKind.NORM, UnitKind.SCALE, UnitKind.SLOPE)


def joined_otherwise(net: Wiring, model: Wiring, pairs: Mapping[str, str]) -> list[str]:
    """The layers that read channels which the model concatenates in another order, with ``pairs`` of their names.

    Units without a counterpart are transparent. Nothing is said of a concatenation that only one side has.
    """
    ids: dict[Hashable, int] = {}
    mine, orders = _orders(net, pairs, ids)
    _, others = _orders(model, dict(zip(pairs.values(), pairs.values(), strict=True)), ids)
    differing = {value for value, order in orders.items() if value in others and order.isdisjoint(others[value])}
    readers: dict[str, None] = {}
    moved = [False]
    for number, node in enumerate(net.nodes[1:], start=1):
        reads = mine[number] in differing or any(moved[source] for source in node.inputs)
        if node.unit is not None and net.units[node.unit].name in pairs:
            unit = net.units[node.unit]
            if any(moved[source] for source in node.inputs):
                readers[unit.name] = None
            reads = reads and (unit.kind in _BY_CHANNEL or unit.groups > 1)
        moved.append(reads)
    return list(readers)


def _orders(
    wiring: Wiring, known: Mapping[str, str], ids: dict[Hashable, int]
) -> tuple[list[int], dict[int, set[tuple[int, ...]]]]:
    """For each node what its value is, whatever the order in concatenations; for each of these its orders."""
    values, orders = [ids.setdefault("input", 0)], dict[int, set[tuple[int, ...]]]()
    flat: dict[int, tuple[int, ...]] = {}
    uses = Counter(node.unit for node in wiring.nodes)
    for node in wiring.nodes[1:]:
        inputs = tuple(values[source] for source in node.inputs)
        if node.unit is not None:
            name = known.get(wiring.units[node.unit].name)
            which = ("unit", name, *(inputs if uses[node.unit] > 1 else ()))
            value = (*inputs, 0)[0] if name is None else ids.setdefault(which, len(ids))
        elif node.op is Op.CONCAT:
            order = tuple(part for one in inputs for part in flat.get(one, (one,)))
            value = ids.setdefault((node.op, *sorted(order)), len(ids))
            flat[value] = order
            orders.setdefault(value, set()).add(order)
        else:
            value = ids.setdefault((node.op, *sorted(inputs)), len(ids))
        values.append(value)
    return values, orders


def inputs_joined_otherwise(recipe: NetRecipe, model: Computation, pairs: Mapping[str, str]) -> list[str]:
    """The layers that read inputs of the net which the model concatenates in another order, by the inputs' names."""
    if all(len(edge.given) < 2 for edge in model.edges):
        return []
    net = net_computation(recipe)
    names = _paired(net.input_names, model.input_names)
    number = {name: place for place, name in enumerate(net.input_names)}
    mine, theirs = _inputs(net, number), _inputs(model, {other: number[one] for one, other in names.items()})
    return [
        layer
        for layer, module in pairs.items()
        if names and module in theirs and layer in mine and mine[layer] != theirs[module]
    ]
