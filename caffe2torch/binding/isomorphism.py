"""Counterparts by structure: which unit of the model stands where a unit of the net stands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from caffe2torch.binding.graph import Op, Wiring
from caffe2torch.binding.refinement import Colours, Graph, Palette, refine, unit_colours
from caffe2torch.binding.rewiring import rebuild
from caffe2torch.binding.signatures import Sizes, signatures

__all__ = ["Matching", "match_whole", "without_tails"]

Pairs = Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Matching:
    """Units of the net to units of the model. ``ties`` are sets of units that nothing tells apart, net and model side;
    they are paired all the same, in one of the ways that fit. ``by_name`` are those that only a name told apart.
    """

    pairs: dict[int, int]
    ties: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = ()
    by_name: frozenset[int] = frozenset()
    sizes: Sizes = Sizes.STRICT


def match_whole(net: Wiring, model: Wiring, said: Pairs, hints: Sequence[Pairs] = ()) -> Matching | None:
    """The counterparts of all units where the two wirings are equal as a whole, else ``None``.

    ``said`` are pairs that stand; ``hints`` decide between units that the structure cannot tell apart, the first that
    decides wins. The wirings may end differently (losses, heads that are added up): junctions that feed no unit are
    left out if they stand in the way. Sizes are compared strictly, then with axes flattened, at last only as far as
    both sides have them equally often: the wirings agree then, and which sizes do not is for the caller to see.
    """
    trimmed = (without_tails(net), without_tails(model))
    for sizes in Sizes:
        for one, other in ((net, model), trimmed):
            found = _Isomorphism(one, other, sizes, said).pairs(hints)
            if found is not None:
                return found
    return None


def without_tails(wiring: Wiring) -> Wiring:
    """The wiring without junctions that no unit looks at, directly or through other junctions."""
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

    def __init__(self, net: Wiring, model: Wiring, sizes: Sizes, said: Pairs) -> None:
        self.sizes = sizes
        self.graphs = (Graph(net), Graph(model))
        self.palette = Palette()
        self.picks = 0
        labels = signatures(net.units, model.units, sizes)
        for pick, (one, other) in enumerate(said.items()):
            labels[0][one] = labels[1][other] = ("said", pick)
        self.colours = self._refined(
            [
                [(node.op, None if node.unit is None else side[node.unit]) for node in graph.wiring.nodes]
                for graph, side in zip(self.graphs, labels, strict=True)
            ]
        )

    def pairs(self, hints: Sequence[Pairs]) -> Matching | None:
        """The matching, with ties decided by hints and then arbitrarily; ``None`` if the wirings differ."""
        if self.colours is None:
            return None
        tied = {one for ones, _ in self._ties() for one in ones}
        for hint in hints:
            for one in sorted(tied & hint.keys()):
                self._pick(one, hint[one])
        ties = tuple(self._ties())
        by_name = frozenset(tied.difference(*(ones for ones, _ in ties)))
        while (tie := next(self._ties(), None)) is not None:
            if not any(self._pick(tie[0][0], other) for other in tie[1]):
                return None
        mine, theirs = self._unit_colours()
        where = {colour: number for number, colour in enumerate(theirs)}
        pairs = {number: where[colour] for number, colour in enumerate(mine) if self.graphs[0].uses[number]}
        return Matching(pairs, ties, by_name, self.sizes)

    def _ties(self) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
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
