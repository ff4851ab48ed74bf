"""What tells branches apart besides their order in a concatenation: the input that they read, and their settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from caffe2torch.binding.computation import Computation, Operation
from caffe2torch.binding.graph import Op, Unit, UnitKind, Wiring
from caffe2torch.binding.names import normalised

__all__ = ["Marks", "Side", "branch_marks", "joined_otherwise"]

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


def branch_marks(net: Computation, model: Computation) -> Marks:
    """What is to be seen on both sides: inputs and their slices, windows, poolings, activations, factors."""
    pairs = _paired(net.input_names, model.input_names)
    number = {name: place for place, name in enumerate(net.input_names)}
    numbers = {name: place for place, name in enumerate(model.input_names)}
    by_place = _inputs(net, number), _inputs(model, numbers)
    by_name = _inputs(net, number), _inputs(model, {other: number[one] for one, other in pairs.items()})
    several = min(len(net.input_names), len(model.input_names)) > 1
    looks = (_window, _pooling, _activation, _factor)
    settings = [(_slices(net), _slices(model)), *((_seen(net, look), _seen(model, look)) for look in looks)]
    if not several:
        return Marks(settings)
    return Marks([by_name, *settings]) if pairs else Marks(settings, by_place)


def _paired(net: Sequence[str], model: Sequence[str]) -> dict[str, str]:
    """Inputs of the net to inputs of the model, if names pair them all: ``data_rgb`` and ``rgb``."""
    spelled = {name: normalised(name) for name in (*net, *model)}
    pairs = {
        (one, other)
        for one in net
        for other in model
        if spelled[one] and spelled[other] and (spelled[one] in spelled[other] or spelled[other] in spelled[one])
    }
    exact = {(one, other) for one, other in pairs if spelled[one] == spelled[other]}
    for found in (exact, pairs):
        if len(found) == len(net) == len(model) == len(dict(found)) == len({other for _, other in found}):
            return dict(found)
    return {}


def _inputs(computation: Computation, number: Mapping[str, int]) -> Side:
    """The number of the input that a unit reads."""
    return _gathered(
        computation,
        ((edge.target, number[edge.given]) for edge in computation.edges if edge.given in number),
    )


def _slices(computation: Computation) -> Side:
    """The first channel that a unit reads of what another gives."""
    return _gathered(computation, ((edge.target, edge.channel) for edge in computation.edges))


def _seen(computation: Computation, look: Callable[[Operation], Hashable]) -> Side:
    """What ``look`` sees of the operations of a unit, of those right before it and of those after it."""
    own = ((node, ("in", look(operation))) for node, operation in computation.own.items())
    between = (
        (node, (where, look(operation)))
        for edge in computation.edges
        for where, node in (("before", edge.target), ("after", edge.source))
        for operation in edge.chain
    )
    return _gathered(computation, (one for one in (*own, *between) if one[1][1] is not None))


def _gathered(computation: Computation, marks: Iterable[tuple[int | None, Hashable]]) -> Side:
    found: dict[str, list[Hashable]] = {}
    for node, mark in marks:
        unit = None if node is None else computation.nodes[node].unit
        if unit is not None:
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


# Where the model joins branches in another order.

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
