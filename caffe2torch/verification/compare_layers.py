"""What the net has and the model has not: two computations held against each other, layer by layer.

A layer that binding paired is compared with its module, what stands between two pairs with what the model computes
there. Where either side cannot be read with certainty, nothing is claimed: the layer counts as not seen.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from math import isclose
from typing import Any

from caffe2torch.binding.computation import UNKNOWN, Chain, Computation, Edge, Operation, never_negative
from caffe2torch.binding.graph import INPUT, Op, Unit, UnitKind
from caffe2torch.net.shape_arithmetic import MisfitError, pool_length
from caffe2torch.recipe import Shape, SourceLocation
from caffe2torch.wording import shape_text

__all__ = ["Comparison", "Difference", "Sizes", "compare_layers"]


@dataclass(frozen=True, slots=True)
class Difference:
    """A setting that the model has otherwise.

    Attributes:
        setting: Its name: ``stride``.
        yours: What the model has, as text: ``stride 1``.
        caffes: What the net has: ``2``.
        module: The module; empty for a call of a function.
        layer: The net's layer.
        where: The layer's place.
        effect: What it does to a size.
        at: The node that it belongs to, or leads to.
    """

    setting: str
    yours: str
    caffes: str
    module: str
    layer: str
    where: SourceLocation | None
    effect: str = ""
    at: int | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """The name by which it is accepted: ``features.3.stride``."""
        return f"{self.module or self.layer}.{self.setting.replace(' ', '_')}"

    def matches(self, pattern: str) -> bool:
        """Whether a name or a regular expression means it; the layer's name is as good as the module's."""
        names = (self.name, f"{self.layer}.{self.setting.replace(' ', '_')}")
        return pattern in names or any(re.fullmatch(pattern, name) for name in names)

    def to_dict(self) -> dict[str, object]:
        """As JSON has it."""
        return {
            "name": self.name,
            "setting": self.setting,
            "module": self.module or None,
            "layer": self.layer,
            "yours": self.yours,
            "caffes": self.caffes,
            "effect": self.effect,
            "where": None if self.where is None else str(self.where),
        }


@dataclass(slots=True)
class Comparison:
    """What was found.

    Attributes:
        differences: What differs.
        seen: The layers that were compared.
        unseen: Those that could not be.
        averages: Of batch norms, how much of each batch your moving average takes, and Caffe's.
    """

    differences: list[Difference] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    unseen: dict[str, None] = field(default_factory=dict)
    averages: list[tuple[float, float]] = field(default_factory=list)


class Sizes(Enum):
    """How a net's shapes came about."""

    STATED = 1  # the file states them, and the model was run at that size
    GIVEN = 2  # the file states none; they follow from the size that the model was run at
    OTHER = 3  # the model was run at another size


# One row for each kind of layer: its settings in the order in which they are compared.

_SETTINGS: Mapping[str, tuple[str, ...]] = {
    "convolution": ("kernel", "stride", "padding", "dilation", "output padding", "groups", "bias"),
    "linear": ("bias",),
    "batch norm": ("eps", "statistics", "updates"),
    "slope": (),
    "embedding": (),
    "pooling": ("pooling", "kernel", "stride", "padding", "dilation", "divides by", "rounding"),
    "LRN": ("size", "alpha", "beta", "k"),
    "dropout": ("ratio", "drops"),
    "activation": ("function", "slope", "alpha"),
    "softmax": ("axis",),
}

_SPATIAL = ("kernel", "stride", "padding", "dilation", "output padding", "rounding", "output size")
_MAY_LACK = ("dropout", "LRN", "activation")
"""Kinds of which it is certain, where all else is known, that one side has none."""

_SAID: Mapping[tuple[str, object], tuple[str, str]] = {  # a setting and its value: what you have, what Caffe has
    ("bias", True): ("a bias", "one"),
    ("bias", False): ("no bias", "none"),
    ("statistics", "the batch's"): ("the batch's statistics", "the batch's"),
    ("statistics", "kept"): ("kept statistics", "kept ones"),
    ("updates", True): ("statistics that each batch updates", "updated ones"),
    ("updates", False): ("statistics that no batch updates", "ones that stay"),
    ("rounding", "up"): ("sizes rounded up", "sizes rounded up"),
    ("rounding", "down"): ("sizes rounded down", "sizes rounded down"),
}
_WORDS = {"ratio": "dropout ratio", "axis": "softmax over axis", "divides by": "an average over"}


def _said(kind: str, setting: str, value: object) -> tuple[str, str]:
    """A value as it is said of the model, and of Caffe."""
    if (setting, value) in _SAID:
        return _SAID[setting, value]
    text = _text(value)
    if setting == "function":
        return text, text
    if setting == "pooling":
        return f"{text} pooling", f"{text} pooling"
    if setting == "drops":
        return f"dropout of {text}", f"dropout of {text}"
    words = _WORDS.get(setting, f"LRN {setting}" if kind == "LRN" else setting)
    return f"{words} {text}", text


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return str(value[0]) if len(set(value)) == 1 else "x".join(map(str, value))
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def compare_layers(
    net: Computation,
    model: Computation,
    bound: Iterable[tuple[int, str]],
    *,
    sizes: Sizes = Sizes.STATED,
    cancelled: Collection[int] = (),
) -> Comparison:
    """Hold a model's computation against a net's.

    Args:
        net: What the net computes.
        model: What the model was seen to compute.
        bound: Blobs (indices) and the tensors that stand for them.
        sizes: How the net's shapes came about.
        cancelled: Blobs (indices) of biases that a batch norm subtracts again: it is no difference to have none.
    """
    return _Comparing(net, model, list(bound), sizes, frozenset(cancelled)).run()


OUTPUT = -1


class _Comparing:
    """Both sides with one set of names for their nodes, and what was found so far."""

    def __init__(
        self,
        net: Computation,
        model: Computation,
        bound: list[tuple[int, str]],
        sizes: Sizes,
        cancelled: frozenset[int],
    ) -> None:
        self.found = Comparison()
        self.sized, self.stated = sizes is not Sizes.OTHER, sizes is Sizes.STATED
        self.cancelled, self.training = cancelled, model.training
        pairs = _pairs(net, model, bound)
        shared = {pair for side, own in zip((net, model), pairs, strict=True) for pair in _used_twice(side, own)}
        palette: dict[Hashable, int] = {("input",): INPUT}
        self.net, self.model = (
            _Side(side, own, shared, palette) for side, own in zip((net, model), pairs, strict=True)
        )

    def run(self) -> Comparison:
        for pair, ours in self.net.units.items():
            self._unit(ours, self.model.units.get(pair, []))
        for key, edges in self.net.edges.items():
            self._way(key, edges, self.model.edges.get(key, []))
        if self.sized:
            self._sizes()
        every = [*self.net.of.own.values(), *(one for edge in self.net.of.edges for one in edge.chain)]
        left = [one for one in every if one.name and one.name not in self.found.seen]
        for one in sorted(left, key=lambda one: (one.where.line, one.where.column) if one.where else (0, 0)):
            self.found.unseen[one.name] = None
        distinct = {(one.setting, one.layer, one.module): one for one in reversed(self.found.differences)}
        self.found.differences = list(reversed(distinct.values()))
        return self.found

    # What a layer and its module compute themselves.

    def _unit(self, ours: list[int], theirs: list[int]) -> None:
        owns = [own for node in theirs if (own := self.model.of.own.get(node)) is not None]
        module = next((self.model.name_of(node) for node in theirs), "")
        for node in ours:
            own = self.net.of.own.get(node)
            family = [one for one in owns if own is not None and _family(one) == _family(own)]
            if own is None or not family or any(one.settings != family[0].settings for one in family):
                continue
            lacks_bias = any(tensor.key in self.cancelled for tensor in self.net.unit_of(node).tensors)
            self._pair(own, replace(family[0], name=module), self.net.names[node], but=("bias",) if lacks_bias else ())
            averages = [one.settings.get("moving average") for one in (family[0], own)]
            if None not in averages and not _same(*averages):
                self.found.averages.append((averages[0], averages[1]))  # type: ignore[arg-type]  # neither is None

    def _pair(self, net: Operation, model: Operation, at: int, but: Collection[str] = ()) -> None:
        """Compare the settings that both have, ``but`` some."""
        ours, theirs = net.settings, model.settings
        if net.kind == "pooling":
            poolings = _poolings(net, model)
            if poolings is None:
                return
            ours, theirs = poolings
        elif net.kind == "softmax" and ours["axes"] != theirs["axes"]:
            return
        self.found.seen.add(net.name)
        names = _SETTINGS[net.kind]
        if ours.get("transposed") != theirs.get("transposed") or len(ours.get("kernel") or ()) != len(
            theirs.get("kernel") or ()
        ):
            names = tuple(name for name in names if name in ("groups", "bias"))  # the same map, otherwise written
        if not self.training:
            but = (*but, "statistics", "updates")
        for name in names:
            if name in but or name not in ours or name not in theirs or _same(ours[name], theirs[name]):
                continue
            yours, caffes = _said(net.kind, name, theirs[name])[0], _said(net.kind, name, ours[name])[1]
            self._differs(name, yours, caffes, net, model, at)
            if name in ("function", "statistics"):
                break  # what follows belongs to it

    def _differs(self, setting: str, yours: str, caffes: str, net: Operation, model: Operation, at: int | None) -> None:
        self.found.differences.append(Difference(setting, yours, caffes, model.name, net.name, net.where, at=at))

    # What is computed between two layers.

    def _way(self, key: tuple[int, int], ours: list[Edge], theirs: list[Edge]) -> None:
        chains = [_distinct(ours), _distinct(theirs)]
        if len(chains[0]) != 1 or len(chains[1]) != 1:
            return
        net, model = (_plain(one[0]) for one in chains)
        for kind in dict.fromkeys(operation.kind for operation in (*net, *model)):
            xs, ys = ([one for one in side if one.kind == kind] for side in (net, model))
            if kind in _SETTINGS and len(xs) == len(ys):
                for x, y in zip(xs, ys, strict=True):
                    changed = kind == "pooling" and x.input != y.input and UNKNOWN in model[: model.index(y)]
                    if not changed:  # what is not known before it may have made the image another one
                        self._pair(x, y, key[1])
            elif kind in _MAY_LACK and not (xs and ys):
                self._lacks(kind, key, xs, ys, net, model)

    def _lacks(
        self, kind: str, key: tuple[int, int], xs: list[Operation], ys: list[Operation], net: Chain, model: Chain
    ) -> None:
        """Say that one side has none of a kind, where that is certain."""
        if any(side.elsewhere(kind, key) for side in (self.net, self.model)):
            return
        if (kind == "activation" and (OUTPUT in key or INPUT in key)) or (kind == "dropout" and not self.training):
            return
        if any(one.kind == "unknown" for one in (model if xs else net)):
            return
        place = self._between(key)
        for x in xs:
            self._differs(x.kind, f"no {_whole(x).split()[0]}{place}", _whole(x), x, Operation(kind), key[1])
            self.found.seen.add(x.name)
        for y in ys:
            layer = self.net.layer_at(key)
            self._differs(y.kind, _whole(y), f"none{place}", replace(layer, kind=y.kind), y, key[1])

    def _between(self, key: tuple[int, int]) -> str:
        names = [self.model.label(name) for name in key]
        if names[0] and names[1]:
            return f" between {names[0]} and {names[1]}"
        return f" after {names[0]}" if names[0] else f" before {names[1]}" if names[1] else ""

    # Sizes: where a layer's output has another one, and all that it comes from has the same.

    def _sizes(self) -> None:
        wrong: dict[int, tuple[Shape, Shape]] = {}
        for name, node in self.net.single.items():
            other = self.model.single.get(name)
            own = self.net.of.own.get(node)
            if other is None or own is None or own.kind not in ("convolution", "linear", "batch norm"):
                continue
            sizes = _spatial(self.net.of.shapes.get(node), self.model.of.shapes.get(other))
            if sizes is None or sizes[0] == sizes[1]:
                continue
            units, junctions = self.net.behind(node)
            if not units & wrong.keys() and (self.stated or self._certain({name, *junctions})):
                self._size(sizes, {name, *junctions}, own, self.model.name_of(other))
            wrong[name] = sizes
        for key, edges in self.net.edges.items():
            theirs = self.model.edges.get(key, [])
            if key[1] != OUTPUT or len(edges) != 1 or len(theirs) != 1:
                continue
            sizes = _spatial(edges[0].shape, theirs[0].shape)
            if sizes is None or sizes[0] == sizes[1] or self.net.origins(key[0]) & wrong.keys():
                continue
            if not (self.stated or self._certain({OUTPUT})):
                continue
            last = self.net.layer_at((key[0], key[0]))
            self._size(sizes, {OUTPUT, key[0]}, last, "")

    def _certain(self, names: set[int]) -> bool:
        """Whether the net's layers before these are all known: another one may give a size that the file fixes."""
        edges = [edge for name in names for _, edge in self.net.into.get(name, ())]
        return not any(operation.kind == "unknown" for edge in edges for operation in edge.chain)

    def _size(self, sizes: tuple[Shape, Shape], at: set[int], layer: Operation, module: str) -> None:
        """A size that differs: an effect of a setting that does, or a difference of its own."""
        caffes, yours = map(shape_text, sizes)
        for place, one in enumerate(self.found.differences):
            if one.at in at and one.setting in _SPATIAL:
                if not one.effect:
                    text = f"the output of {module or layer.name} is {yours}, Caffe's is {caffes}"
                    self.found.differences[place] = replace(one, effect=text)
                return
        self._differs("output size", f"an output of {yours}", caffes, layer, Operation("", name=module), None)


class _Side:
    """One side's nodes, by names that are equal where the two sides correspond."""

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
        unit = self.of.nodes[node].unit
        assert unit is not None
        return self.of.units[unit]

    def name_of(self, node: int) -> str:
        return self.unit_of(node).name

    def label(self, name: int) -> str:
        """The unit of a name; empty for anything else."""
        node = self.nodes_of.get(name)
        return self.name_of(node) if node is not None and self.of.nodes[node].unit is not None else ""

    def elsewhere(self, kind: str, way: tuple[int, int]) -> bool:
        """Whether an operation of a kind may stand on the other side of a junction, where it comes to the same."""
        for end, name in enumerate(way):
            if self.ops.get(name) in (Op.JOINT, Op.MAX):
                return True
            beyond = (
                operation.kind
                for key, edges in self.edges.items()
                if self.ops.get(name) is Op.CONCAT and key[1 - end] == name
                for edge in edges
                for operation in edge.chain
            )
            if any(one in (kind, "unknown") for one in beyond):
                return True
        return False

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


def _family(operation: Operation) -> str:
    """A fully connected layer and a convolution may be the same map."""
    return "linear" if operation.kind == "convolution" else operation.kind


def _distinct(edges: Sequence[Edge]) -> list[Chain]:
    found: list[Chain] = []
    for edge in edges:
        if edge.chain not in found:
            found.append(edge.chain)
    return found


def _plain(chain: Chain) -> Chain:
    """The chain without a ReLU of what is not negative anyway."""
    return tuple(
        UNKNOWN if operation.kind == "padding" else operation
        for place, operation in enumerate(chain)
        if operation.settings.get("slope") != 0 or not never_negative(chain[:place])
    )


def _whole(operation: Operation) -> str:
    """An operation in a word or two."""
    if operation.kind == "dropout":
        return f"dropout {_text(operation.settings['ratio'])}"
    return str(operation.settings["function"]) if operation.kind == "activation" else operation.kind


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float | int) and isinstance(other, float | int) and not isinstance(one, bool):
        return isclose(one, other, rel_tol=1e-6, abs_tol=1e-12)
    return bool(one == other)


def _spatial(net: Shape | None, model: Shape | None) -> tuple[Shape, Shape] | None:
    """The two sizes of images; ``None`` where they cannot be compared."""
    if net is None or model is None or len(model) < 3 or None in net[2:]:
        return None
    if len(net) == 2:
        return (1,) * (len(model) - 2), model[2:]
    return (net[2:], model[2:]) if len(net) == len(model) else None


def _poolings(net: Operation, model: Operation) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The settings of two poolings as far as they make a difference at the net's own size.

    ``None`` where that cannot be said: a pooling that adapts its windows was seen at another size.
    """
    ours, theirs = dict(net.settings), dict(model.settings)
    given, output = model.input or (), model.output
    size: Shape = given if net.input is None or None in net.input else net.input
    if len(size) != len(given) or len(theirs["kernel"]) != len(given):
        return None
    if ours.get("global"):
        ours["kernel"] = ours["stride"] = size
        ours["padding"] = (0,) * len(size)
    if len(ours["kernel"]) != len(size):
        return None
    whole = [one["kernel"] == own and not any(one["padding"]) for one, own in ((ours, size), (theirs, given))]
    if all(whole):
        return {"pooling": ours["pooling"]}, {"pooling": theirs["pooling"]}
    if size != given and "rounding" not in theirs:
        return None
    if ours["padding"] != theirs["padding"] and "without" in theirs.get("divides by", ""):
        del theirs["divides by"]
    axes = list(zip(size, ours["kernel"], ours["padding"], ours["stride"], strict=True))
    try:
        down, up = (
            tuple(pool_length(*axis, ceil=ceil, clip=any(ours["padding"])) for axis in axes) for ceil in (False, True)
        )
    except MisfitError:
        return None
    alike = all(ours[name] == theirs[name] for name in ("kernel", "stride", "padding", "dilation"))
    due = up if ours["rounding"] == "up" else down
    if down == up or (alike and size == given and due == output):
        del ours["rounding"]
    return ours, theirs
