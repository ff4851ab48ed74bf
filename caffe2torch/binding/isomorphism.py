"""Counterparts by structure: which unit of the model stands where a unit of the net stands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from math import prod

from caffe2torch.binding.branches import Marks, MarksOf, Side, no_marks
from caffe2torch.binding.colours import Colours, Graph, Palette, refine, unit_colours
from caffe2torch.binding.graph import Node, Op, Unit, UnitKind, Wiring, rebuild, without_units
from caffe2torch.binding.layout import fit
from caffe2torch.recipe import Shape

__all__ = [
    "Matching",
    "Sizes",
    "explain",
    "match_rest",
    "match_whole",
    "signatures",
    "untied",
    "without_tails",
]


# Which units could be counterparts by what they are: kind, groups and sizes, before any surroundings are compared.

_Pair = tuple[list[Hashable], list[Hashable]]
_Label = tuple[UnitKind, int, Shape | None]


class Sizes(StrEnum):
    """How strictly sizes are compared."""

    STRICT = "strict"  # a 1x1 convolution equals a linear layer, nothing else is reshaped
    FLAT = "flat"  # only outputs and inputs per output count: a full-size convolution equals a linear layer
    COMMON = "common"  # sizes that one side has more often than the other are hidden


def signatures(net: Sequence[Unit], model: Sequence[Unit], sizes: Sizes) -> _Pair:
    """A label for each unit of the net and of the model; units with different labels are no counterparts.

    A size that the net leaves open takes on whatever sizes of the model fit it: their labels become one.
    """
    labels = [[_label(unit, sizes) for unit in units] for units in (net, model)]
    merged = _merge_open(labels[0], labels[1])
    sides = [[merged[label] for label in side] for side in labels]
    counts = [Counter(side) for side in sides]
    if sizes is not Sizes.COMMON:
        return list(sides[0]), list(sides[1])
    common = {label for label in counts[0] if counts[0][label] == counts[1][label]}
    mine, theirs = ([label if label in common else _hidden(label) for label in side] for side in sides)
    return [*mine], [*theirs]


def _hidden(label: _Label) -> UnitKind:
    """What is left of a label where sizes are hidden: a convolution may be a transposed one in a port."""
    return UnitKind.MAP if label[0] is UnitKind.TRANSPOSED else label[0]


def _label(unit: Unit, sizes: Sizes) -> _Label:
    shape = unit.shape
    if shape is not None and unit.kind is UnitKind.MAP and len(shape) > 1:
        if sizes is Sizes.FLAT:
            rest = shape[1:]
            shape = (shape[0], None if None in rest else prod(size for size in rest if size is not None))
        elif all(size == 1 for size in shape[2:]):
            shape = shape[:2]
    return unit.kind, unit.groups, shape


def _merge_open(net: list[_Label], model: list[_Label]) -> dict[_Label, _Label]:
    """Labels that an open size makes one, to the first of them."""
    merged: dict[_Label, _Label] = {}

    def root(label: _Label) -> _Label:
        while (up := merged.get(label, label)) != label:
            label = up
        return label

    open_labels = {label for label in net if label[2] is None or None in label[2]}
    for label in open_labels:
        for other in set(model):
            if other[:2] == label[:2] and fit(label[2], tuple(size or 0 for size in other[2] or ())):
                merged[root(other)] = root(label)
    return {label: root(label) for label in (*net, *model)}


Pairs = Mapping[int, int]

Tie = tuple[tuple[int, ...], tuple[int, ...]]
"""Units of the net and of the model that are alike."""


@dataclass(frozen=True, slots=True)
class Matching:
    """Units of the net to units of the model.

    Attributes:
        pairs: The pairs.
        ties: Sets of units that nothing distinguishes, or that one thing pairs otherwise than another; net and model
            side; they are paired in one of the ways that fit.
        leads: For each tie the one whose decision decides it, too: one of them, by its number.
        by_name: Units of the net that only a name distinguished.
        sizes: How strictly sizes were compared.
    """

    pairs: dict[int, int]
    ties: tuple[Tie, ...] = ()
    leads: tuple[int, ...] = ()
    by_name: frozenset[int] = frozenset()
    sizes: Sizes = Sizes.STRICT


def match_whole(
    net: Wiring,
    model: Wiring,
    named: Pairs,
    hints: Sequence[Pairs] = (),
    marks: MarksOf = no_marks,
    *,
    same_ends: bool = False,
    same_order: bool = False,
    any_size: tuple[Collection[int], Collection[int]] = ((), ()),
) -> Matching | None:
    """The counterparts of all units where the two wirings are equal as a whole, else ``None``.

    The order in which branches are concatenated may differ, but for ``same_order``. Between units that the rest of
    the wiring does not distinguish the first of these decides that can: ``marks``, as far as the units of net and
    model have the same ones; the order in concatenations, where all of it agrees and nothing speaks against it;
    ``hints``, names say, the first that decides. ``named`` are pairs that stand.

    The wirings may end differently (losses, heads that are added up): junctions that feed no unit are left out where
    they differ, but for ``same_ends``. Sizes are compared strictly, then with axes flattened, at last only as far as
    both sides have them equally often: the wirings agree then, and which sizes differ is for the caller to check. Units
    of ``any_size`` are compared by the sizes of their kernels at most.
    """
    trimmed = [] if same_ends else [(without_tails(net), without_tails(model))]
    for sizes in Sizes:
        for one, other in ((net, model), *trimmed):
            found = _Isomorphism(one, other, sizes, named, any_size, ordered=same_order).matching(hints, marks)
            if found is not None:
                return found
    return None


def match_rest(
    net: Wiring,
    model: Wiring,
    kept: tuple[Collection[int], Collection[int]],
    fixed: Pairs,
    hints: Sequence[Pairs] = (),
    marks: MarksOf = no_marks,
    *,
    same_ends: bool = False,
    same_order: bool = False,
    any_size: tuple[Collection[int], Collection[int]] = ((), ()),
) -> Matching | None:
    """As ``match_whole`` once all units but those ``kept`` are left out, with the pairs ``fixed``."""
    ones, others = sorted(kept[0]), sorted(kept[1])
    mine, theirs = ({unit: place for place, unit in enumerate(units)} for units in (ones, others))
    found = match_whole(
        without_units(net, set(range(len(net.units))) - mine.keys()),
        without_units(model, set(range(len(model.units))) - theirs.keys()),
        {mine[one]: theirs[other] for one, other in fixed.items()},
        [{mine[a]: theirs[b] for a, b in hint.items() if a in mine and b in theirs} for hint in hints],
        marks,
        same_ends=same_ends,
        same_order=same_order,
        any_size=([mine[one] for one in any_size[0]], [theirs[other] for other in any_size[1]]),
    )

    def back(tie: Tie) -> Tie:
        return tuple(ones[one] for one in tie[0]), tuple(others[other] for other in tie[1])

    return found and replace(
        found,
        pairs={ones[one]: others[other] for one, other in found.pairs.items()},
        ties=tuple(map(back, found.ties)),
        by_name=frozenset(ones[one] for one in found.by_name),
    )


def explain(net: Wiring, model: Wiring) -> Iterator[str]:
    """Sentences on what differs between two wirings that are not equal: how many units of a kind, sharing, order."""
    counts = [Counter(str(unit.kind) for unit in wiring.units) for wiring in (net, model)]
    for kind in sorted(counts[0].keys() | counts[1].keys()):
        if counts[0][kind] != counts[1][kind]:
            yield f"{kind}: {counts[0][kind]} in the net, {counts[1][kind]} in the model"
    shared = _shared(net), _shared(model)
    if shared != ("nothing", "nothing") and match_whole(untied(net), untied(model), {}) is not None:
        yield f"the wirings are equal but for what is shared: {shared[0]} in the net, {shared[1]} in the model"


def _shared(wiring: Wiring) -> str:
    """The units that are used more than once, by the names of all their parts."""
    uses = Counter(node.unit for node in wiring.nodes)
    units = [" with ".join(map(repr, unit.parts)) for number, unit in enumerate(wiring.units) if uses[number] > 1]
    more = f" and {len(units) - 3} more" if len(units) > 3 else ""
    return ", ".join(units[:3]) + more if units else "nothing"


def untied(wiring: Wiring) -> Wiring:
    """The wiring with a unit of its own for every use."""
    units: list[Unit] = []
    nodes: list[Node] = []
    for node in wiring.nodes:
        if node.unit is None:
            nodes.append(node)
        else:
            nodes.append(Node(node.op, node.inputs, len(units)))
            units.append(wiring.units[node.unit])
    return Wiring(tuple(units), tuple(nodes))


def without_tails(wiring: Wiring) -> Wiring:
    """The wiring without junctions that no unit reads, directly or through other junctions."""
    needed = [node.op is Op.UNIT for node in wiring.nodes]
    for number in range(len(needed) - 1, -1, -1):
        if needed[number]:
            for source in wiring.nodes[number].inputs:
                needed[source] = True
    if all(needed[1:]):
        return wiring
    kept = iter(needed[1:])
    return rebuild(
        wiring,
        lambda builder, node, inputs: (
            (builder.use(node.unit, inputs) if node.unit is not None else builder.join(node.op, inputs))
            if next(kept)
            else (inputs[0] if inputs else 0)
        ),
    )


class _Isomorphism:
    """Two wirings, coloured together, and pairs of units that are taken as equal on the way."""

    def __init__(
        self,
        net: Wiring,
        model: Wiring,
        sizes: Sizes,
        named: Pairs,
        any_size: tuple[Collection[int], Collection[int]],
        *,
        ordered: bool,
    ) -> None:
        self.sizes = sizes
        self.graphs = (Graph(net, ordered=ordered), Graph(model, ordered=ordered))
        self.palette = Palette()
        self.picks = 0
        labels = signatures(net.units, model.units, sizes)
        kernels = [
            {number: (wiring.units[number].kind, (wiring.units[number].shape or ())[2:]) for number in numbers}
            for wiring, numbers in zip((net, model), any_size, strict=True)
        ]
        if Counter(kernels[0].values()) != Counter(kernels[1].values()):
            kernels = [{number: (kind, ()) for number, (kind, _) in side.items()} for side in kernels]
        for label, kernel in zip(labels, kernels, strict=True):
            for number, look in kernel.items():
                label[number] = ("any size", look)
        for pick, (one, other) in enumerate(named.items()):
            labels[0][one] = labels[1][other] = ("named", pick)
        self.colours = self._refined(
            [
                [(node.op, None if node.unit is None else side[node.unit]) for node in graph.wiring.nodes]
                for graph, side in zip(self.graphs, labels, strict=True)
            ]
        )

    def matching(self, hints: Sequence[Pairs], marks: MarksOf) -> Matching | None:
        """The matching, with ties that stay decided arbitrarily; ``None`` if the wirings differ."""
        if self.colours is None:
            return None
        disputed = any(self._ties()) and self._by_marks_and_order(
            hints, marks(*(graph.wiring for graph in self.graphs))
        )
        ties = tuple(self._ties())
        tied = {one for ones, _ in ties for one in ones}
        undecided = self.colours
        for hint in hints:
            for one in sorted(tied & hint.keys()):
                self._pick(one, hint[one])
        if not disputed:
            ties, undecided = tuple(self._ties()), self.colours
        by_name = frozenset(tied.difference(*(ones for ones, _ in ties)))
        decided, self.colours = self.colours, undecided
        leads = self._decide(ties)
        if disputed:  # names, and then the order, show the likeliest way
            self.colours = decided
            self._take_order()
            if self._decide(tuple(self._ties())) is None:
                return None
        if leads is None:
            return None
        mine, theirs = self._unit_colours()
        where = {colour: number for number, colour in enumerate(theirs)}
        pairs = {number: where[colour] for number, colour in enumerate(mine) if self.graphs[0].uses[number]}
        return Matching(pairs, ties, tuple(leads[number] for number in range(len(ties))), by_name, self.sizes)

    def _decide(self, ties: Sequence[Tie]) -> dict[int, int] | None:
        """Decide ties arbitrarily; for each the one whose decision decides it. ``None`` if none does."""
        leads: dict[int, int] = {}
        while len(leads) < len(ties):
            lead = next(number for number in range(len(ties)) if number not in leads)
            while (tie := next((tie for tie in self._ties() if tie[0][0] in ties[lead][0]), None)) is not None:
                if not any(self._pick(tie[0][0], other) for other in tie[1]):
                    return None
            still = {one for ones, _ in self._ties() for one in ones}
            for number, (ones, _) in enumerate(ties):
                if number not in leads and (number == lead or still.isdisjoint(ones)):
                    leads[number] = lead
        return leads

    def _by_marks_and_order(self, hints: Sequence[Pairs], marks: Marks) -> bool:
        """Distinguish by marks and by the order in concatenations; whether names or marks dispute what that gives.

        Names and the order together outweigh marks: the port has a setting of its own then. Names that are equal, and
        other candidates that differ in less, dispute.
        """
        if marks.blind:
            return False
        start = self.graphs, self.colours
        alike = {one: set(others) for ones, others in self._ties() for one in ones}
        named = {one: {hint[one] for hint in hints if one in hint} & others for one, others in alike.items()}
        if all(named.values()) and self._take_order():
            same = self._same()
            if all(len(same[one]) == 1 and same[one] <= others for one, others in named.items()):
                return False
        self.graphs, self.colours = start
        for kind in marks.kinds:
            self._mark(kind)
        self._mark_unknown(marks)
        same = self._same()
        equal = {one: {hint[one] for hint in hints[:-1] if one in hint} & others for one, others in alike.items()}
        if any(others.isdisjoint(same[one]) for one, others in equal.items() if others):
            self.graphs, self.colours = start
            return True
        before = self.graphs, self.colours
        ties = list(self._ties())
        if not ties or not self._take_order():
            return False
        same = self._same()
        if any(self._disputed(tie, named, same, marks) for tie in ties):
            self.graphs, self.colours = before
            return True
        return False

    def _disputed(self, tie: Tie, named: Mapping[int, set[int]], same: Sequence[set[int]], marks: Marks) -> bool:
        """Whether names, or other candidates that differ in less, speak against what units are the ``same``."""
        net, model = (
            [graph.wiring.units[number] for number in side] for graph, side in zip(self.graphs, tie, strict=True)
        )
        if marks.unread(net, model) and not all(named[one] for one in tie[0]):
            return True
        ranks = list(marks.ranks(net, model))
        for place, one in enumerate(tie[0]):
            if named[one]:
                if named[one].isdisjoint(same[one]):
                    return True
                continue
            differing = {
                other: marks.differing(net[place], model[at]) + sum(ours[place] != theirs[at] for ours, theirs in ranks)
                for at, other in enumerate(tie[1])
            }
            if min(differing[other] for other in same[one]) > min(differing.values()):
                return True
        return False

    def _same(self) -> list[set[int]]:
        """For each unit of the net those of the model that have its colour."""
        mine, theirs = self._unit_colours()
        of_colour: dict[int, set[int]] = {}
        for other, colour in enumerate(theirs):
            of_colour.setdefault(colour, set()).add(other)
        return [of_colour.get(colour, set()) for colour in mine]

    def _mark_unknown(self, marks: Marks) -> None:
        """Distinguish units by whether something unknown is computed there, if nothing that is known differs then."""
        before = self.colours
        self._mark(marks.unknown)
        net, model = (graph.wiring.units for graph in self.graphs)
        if self.colours is not before and any(
            marks.differing(net[one], model[other]) for one, others in enumerate(self._same()) for other in others
        ):
            self.colours = before

    def _mark(self, kind: tuple[Side, Side]) -> None:
        """Distinguish uses of units by what is to be seen there, wherever the same is seen at those of both sides."""
        colours = self.colours or []
        alike: list[dict[int, list[int]]] = [{}, {}]
        seen: list[dict[int, Hashable]] = [{}, {}]
        for graph, side, found, at, one in zip(self.graphs, kind, alike, seen, colours, strict=True):
            for number, uses in enumerate(graph.uses):
                for place, use in enumerate(uses):
                    found.setdefault(one[use], []).append(use)
                    at[use] = Marks.at(graph.wiring.units[number], place, side)
        labels = [list(one) for one in colours]
        differ = False
        for colour in alike[0]:
            marks = [Counter(at[use] for use in found.get(colour, ())) for at, found in zip(seen, alike, strict=True)]
            if len(marks[0]) > 1 and marks[0] == marks[1]:
                differ = True
                for at, found, label in zip(seen, alike, labels, strict=True):
                    for use in found[colour]:
                        label[use] = self.palette(("seen", label[use], at[use]))
        if differ:
            self.colours = self._refined(labels) or self.colours

    def _take_order(self) -> bool:
        """Let the order in concatenations count; ``False``, and nothing changed, where it differs."""
        before = self.graphs
        self.graphs = (Graph(before[0].wiring), Graph(before[1].wiring))
        refined = self._refined(self.colours or ())
        if refined is None:
            self.graphs = before
            return False
        self.colours = refined
        return True

    def _ties(self) -> Iterator[Tie]:
        """Sets of units, more than one on each side, that have one colour."""
        sides: list[dict[int, list[int]]] = [{}, {}]
        for side, graph, colours in zip(sides, self.graphs, self._unit_colours(), strict=True):
            for number, colour in enumerate(colours):
                if graph.uses[number]:
                    side.setdefault(colour, []).append(number)
        for colour, units in sides[0].items():
            if len(units) > 1:
                yield tuple(units), tuple(sides[1][colour])

    def _pick(self, one: int, other: int) -> bool:
        """Take two units as equal; ``False``, and nothing changed, where the wirings would then differ."""
        colours = [list(side) for side in self.colours or ()]
        uses = (self.graphs[0].uses[one], self.graphs[1].uses[other])
        if sorted(colours[0][use] for use in uses[0]) != sorted(colours[1][use] for use in uses[1]):
            return False
        self.picks += 1
        for side, marked in zip(colours, uses, strict=True):
            for use in marked:
                side[use] = self.palette(("picked", self.picks, side[use]))
        refined = self._refined(colours)
        if refined is None:
            return False
        self.colours = refined
        return True

    def _refined(self, labels: Sequence[Sequence[Hashable]]) -> list[Colours] | None:
        """Colours finer than ``labels``; ``None`` if the two sides do not have the same."""
        colours = refine(self.graphs, labels, self.palette)
        return colours if Counter(colours[0][1:]) == Counter(colours[1][1:]) else None

    def _unit_colours(self) -> list[Colours]:
        return [
            unit_colours(graph, colours, self.palette)
            for graph, colours in zip(self.graphs, self.colours or (), strict=True)
        ]
