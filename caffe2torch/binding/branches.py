"""What tells branches apart besides their order in a concatenation: the input that they read, and their settings."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from caffe2torch.binding.computation import MAIN, UNKNOWN, Computation, Edge, Operation
from caffe2torch.binding.graph import Node, Op, Unit, UnitKind, Wiring
from caffe2torch.binding.names import normalised
from caffe2torch.binding.net_computation import net_computation
from caffe2torch.recipe import NetRecipe

__all__ = [
    "Marks",
    "MarksOf",
    "Side",
    "branch_marks",
    "inputs_joined_otherwise",
    "joined_otherwise",
    "no_marks",
    "unseen",
]

Side = Mapping[str, Sequence[Hashable]]
"""By the name of a layer or a module what is to be seen at each of its uses; ``None`` for nothing."""


@dataclass(frozen=True, slots=True)
class Marks:
    """What is to be seen at the units of the net and of the model.

    Attributes:
        kinds: One pair of sides for each kind of thing that is looked at, the one that proves most first.
        inputs: In which order units read inputs and their slices, where these could not be paired.
        unknown: Where something is computed that could not be read.
        blind: Whether nothing was seen of the model but its wiring.
    """

    kinds: Sequence[tuple[Side, Side]] = ()
    inputs: tuple[Side, Side] = ({}, {})
    unknown: tuple[Side, Side] = ({}, {})
    blind: bool = False

    @staticmethod
    def at(unit: Unit, use: int, side: Side) -> Hashable:
        """What is to be seen at a use of a unit, whichever of its parts it is at; ``None`` for nothing."""
        found = [side[part][use] for part in unit.parts if use < len(side.get(part, ()))]
        return tuple(mark for mark in found if mark is not None) or None

    def differing(self, one: Unit, other: Unit) -> int:
        """In how many kinds of things a unit of the net and one of the model differ; what is not known may be equal."""
        return sum(
            _every(one, mine) != _every(other, theirs)
            and not (_every(one, mine) is None and _every(one, self.unknown[0]))
            and not (_every(other, theirs) is None and _every(other, self.unknown[1]))
            for mine, theirs in (*self.kinds, self.inputs)
        )

    def unread(self, net: Sequence[Unit], model: Sequence[Unit]) -> bool:
        """Whether something that tells these units of the net apart could be read of none of the model."""
        if not all(_every(unit, self.unknown[1]) for unit in model):
            return False
        return any(
            len({_every(unit, mine) for unit in net}) == len(net) and not any(_every(unit, theirs) for unit in model)
            for mine, theirs in self.kinds
        )

    def ranks(self, net: Sequence[Unit], model: Sequence[Unit]) -> Iterator[tuple[list[int], list[int]]]:
        """For each kind of which all these differ, on either side: which place each has from the least to the most.

        A pyramid of other dilations still has the least where the net has its least.
        """
        for mine, theirs in self.kinds:
            sides = [[_every(unit, side) for unit in units] for units, side in ((net, mine), (model, theirs))]
            if any(None in side or len(set(side)) < len(side) for side in sides) or set(sides[0]) == set(sides[1]):
                continue
            with contextlib.suppress(TypeError):  # names of functions, say, beside sizes
                first, second = ([sorted(side).index(mark) for mark in side] for side in sides)  # type: ignore[type-var]
                yield first, second


def _every(unit: Unit, side: Side) -> Hashable:
    """What is to be seen at all uses of a unit."""
    return tuple(tuple(side[part]) for part in unit.parts if any(one is not None for one in side.get(part, ()))) or None


MarksOf = Callable[[Wiring, Wiring], Marks]
"""The marks of the units of a net and of a model."""


def no_marks(net: Wiring, model: Wiring) -> Marks:
    """Where only the wirings count."""
    del net, model
    return Marks()


def unseen(net: Wiring, model: Wiring) -> Marks:
    """Where nothing was seen of the model but its wiring."""
    del net, model
    return Marks(blind=True)


def branch_marks(recipe: NetRecipe, model: Computation) -> MarksOf:
    """What is to be seen on both sides: inputs and their slices, windows, poolings, activations, and the rest.

    Of a wiring without some units what they let pass is seen at those that are left.
    """
    computed = cache(lambda: net_computation(recipe))

    def marks(mine: Wiring, theirs: Wiring) -> Marks:
        net = computed()
        sides = _left(net, mine), _left(model, theirs)
        pairs = _paired(net.input_names, model.input_names)
        number = {name: place for place, name in enumerate(pairs)}
        kinds = [(_inputs(sides[0], number), _inputs(sides[1], {pairs[name]: place for name, place in number.items()}))]
        kinds.append((_slices(sides[0]), _slices(sides[1])))
        for look in _LOOKS:
            kinds += zip(_seen(sides[0], look), _seen(sides[1], look), strict=True)
        known = len(pairs) == len(net.input_names)
        places = ({}, {}) if known else (_places(sides[0]), _places(sides[1]))
        unknown = [_gathered(side, ((node, seen[:1]) for node, seen, _ in _around(side, _not_known))) for side in sides]
        return Marks(kinds, places, (unknown[0], unknown[1]))

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
    """Inputs of the net to inputs of the model, as far as names pair them: ``data_rgb`` and ``rgb``; then the last."""
    pairs: dict[str, str] = {}
    ours, theirs = list(net), list(model)
    for equal in (True, False):
        found = [pair for pair in itertools.product(ours, theirs) if _alike(*pair, equal=equal)]
        ones, others = Counter(one for one, _ in found), Counter(other for _, other in found)
        pairs |= {one: other for one, other in found if ones[one] == others[other] == 1}
        ours = [name for name in ours if name not in pairs]
        theirs = [name for name in theirs if name not in pairs.values()]
    if len(ours) == len(theirs) == 1:
        pairs[ours[0]] = theirs[0]
    return pairs


def _alike(one: str, other: str, *, equal: bool) -> bool:
    short, long = sorted((normalised(one), normalised(other)), key=len)
    return short == long if equal else bool(short) and (long.startswith(short) or long.endswith(short))


def _inputs(computation: Computation, number: Mapping[str, int]) -> Side:
    """The numbers of the inputs that a unit reads."""
    return _gathered(
        computation,
        (
            (edge.target, tuple(number[name] for name in edge.given))
            for edge in computation.edges
            if edge.given and all(name in number for name in edge.given)
        ),
    )


def _slices(computation: Computation) -> Side:
    """Where a unit's input begins in what another gives, if not at its beginning."""
    return _gathered(computation, ((edge.target, edge.begins) for edge in computation.edges))


def _places(computation: Computation) -> Side:
    """Which of the inputs and slices that are read, in their order, a unit reads."""
    order = {name: place for place, name in enumerate(computation.input_names)}
    read = [
        (edge.target, (tuple(order[name] for name in edge.given), edge.begins))
        for edge in computation.edges
        if edge.given
    ]
    rank = {what: place for place, what in enumerate(sorted({what for _, what in read}))}
    return _gathered(computation, ((node, rank[what]) for node, what in read))


Look = Callable[[Operation], Hashable]


def _seen(computation: Computation, look: Look) -> list[Side]:
    """What ``look`` sees of the operations of a unit, of those right before it, and of those after it."""
    own = ((node, look(operation)) for node, operation in computation.own.items())
    around = list(_around(computation, look))
    before, after = ([(node, seen) for node, seen, here in around if here is where] for where in (False, True))
    return [_gathered(computation, marks) for marks in (own, before, after)]


def _around(computation: Computation, look: Look) -> Iterator[tuple[int, tuple[Hashable, ...], bool]]:
    """What is seen on the ways to each node (``False``) and from it (``True``), also beyond a junction next to it."""
    into: dict[int, list[Edge]] = {}
    out: dict[int, list[Edge]] = {}
    for edge in computation.edges:
        out.setdefault(edge.source, []).append(edge)
        if edge.target is not None:
            into.setdefault(edge.target, []).append(edge)
    junction = [node.op not in (Op.UNIT, Op.INPUT) for node in computation.nodes]
    for number, node in enumerate(computation.nodes):
        if node.unit is None:
            continue
        for edge in into.get(number, ()):
            further = into[edge.source] if junction[edge.source] and edge.source in into else []
            for chain in (edge.chain, *(one.chain + edge.chain for one in further)):
                yield number, tuple(filter(None, map(look, chain))), False
        every = out.get(number, [])
        inner = [edge for edge in every if edge.target is not None] or every
        for edge in inner:
            joined = edge.target is not None and junction[edge.target]
            further = out.get(edge.target or 0, []) if joined else []
            for chain in (edge.chain, *(edge.chain + one.chain for one in further)):
                yield number, tuple(filter(None, map(look, chain))), True


def _gathered(computation: Computation, marks: Iterable[tuple[int | None, Hashable]]) -> Side:
    """Marks of nodes by the names of their units, for each use in turn."""
    at: dict[int, set[Hashable]] = {}
    for place, mark in marks:
        if place is not None and mark not in (None, ()):
            at.setdefault(place, set()).add(mark)
    found: dict[str, list[Hashable]] = {}
    for number, node in enumerate(computation.nodes):
        if node.unit is not None:
            seen = tuple(sorted(at.get(number, ()), key=repr)) or None
            found.setdefault(computation.units[node.unit].name, []).append(seen)
    return found


# What ports keep of an operation.


def _window(operation: Operation) -> Hashable:
    """Strides and dilations, but of axes along which it looks at single numbers."""
    if operation.kind != "convolution":
        return None
    axes = zip(*(operation.settings[name] for name in ("kernel", "stride", "dilation")), strict=True)
    return tuple(axis for axis in axes if axis != (1, 1, 1))


def _padding(operation: Operation) -> Hashable:
    return tuple(operation.settings["padding"]) if operation.kind == "convolution" else None


def _pooling(operation: Operation) -> Hashable:
    return operation.settings["pooling"] if operation.kind == "pooling" else None


def _pooled_by(operation: Operation) -> Hashable:
    settings = operation.settings
    if operation.kind != "pooling" or not settings["kernel"]:
        return None
    return tuple(settings["kernel"]), tuple(settings["stride"] or ())


def _pooled_to(operation: Operation) -> Hashable:
    return operation.output if operation.kind == "pooling" else None


def _activation(operation: Operation) -> Hashable:
    return operation.settings.get("function") if operation.kind == "activation" else None


def _rest(operation: Operation) -> Hashable:
    return None if operation.kind in (*MAIN, "pooling", "activation", UNKNOWN.kind) else operation.kind


def _settings(operation: Operation) -> Hashable:
    if operation.kind in (*MAIN, "pooling", UNKNOWN.kind):
        return None
    return operation.kind, tuple(sorted((name, _rounded(value)) for name, value in operation.settings.items()))


def _rounded(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float | int) else repr(value)


def _not_known(operation: Operation) -> Hashable:
    return operation.kind if operation.kind == UNKNOWN.kind else None


_LOOKS: tuple[Look, ...] = (
    _window,
    _pooling,
    _activation,
    _rest,
    _pooled_by,
    _pooled_to,
    _settings,
    _padding,
)
"""From what ports keep surely to what they may write otherwise."""


# Where the model joins branches, or inputs, in another order.

_BY_CHANNEL = (UnitKind.NORM, UnitKind.SCALE, UnitKind.SLOPE)


def joined_otherwise(net: Wiring, model: Wiring, pairs: Mapping[str, str]) -> dict[str, bool]:
    """The layers that read channels which the model concatenates in another order, with ``pairs`` of their names.

    The value says whether what they give meets such channels, so that it stands in another order, too.

    Units without a counterpart are transparent. Nothing is said of a concatenation that only one side has.
    """
    ids: dict[Hashable, int] = {}
    mine, orders = _orders(net, pairs, ids)
    _, others = _orders(model, dict(zip(pairs.values(), pairs.values(), strict=True)), ids)
    differing = {value for value, order in orders.items() if value in others and order.isdisjoint(others[value])}
    if not differing:
        return {}
    moved = [False] * len(net.nodes)
    for number, node in enumerate(net.nodes):
        moved[number] = mine[number] in differing or (
            any(moved[source] for source in node.inputs) and _keeps_channels(net, node, pairs)
        )
    for number in range(len(net.nodes) - 1, 0, -1):  # what meets moved channels gives its own in their order
        node = net.nodes[number]
        if moved[number] and mine[number] not in differing and _keeps_channels(net, node, pairs):
            for source in node.inputs:
                moved[source] = True
    readers: dict[str, bool] = {}
    for number, node in enumerate(net.nodes):
        name = "" if node.unit is None else net.units[node.unit].name
        if name in pairs and (moved[number] or any(moved[source] for source in node.inputs)):
            readers[name] = readers.get(name, False) or moved[number]
    return readers


def _keeps_channels(net: Wiring, node: Node, pairs: Mapping[str, str]) -> bool:
    """Whether a node works channel by channel: a sum, a batch norm, a unit that the model does without."""
    if node.unit is None:
        return True
    unit = net.units[node.unit]
    return unit.kind in _BY_CHANNEL or unit.groups > 1 or unit.name not in pairs


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
    both = {layer: (set(mine.get(layer, ())), set(theirs.get(module, ()))) for layer, module in pairs.items()}
    known = {layer: sides for layer, sides in both.items() if all(sides) and None not in sides[0] | sides[1]}
    return [layer for layer, (ours, others) in known.items() if ours != others]
