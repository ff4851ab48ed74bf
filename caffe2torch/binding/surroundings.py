"""Where net and model differ somewhere: what still agrees from one end, or for some way around."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from caffe2torch.binding.colours import Colours, Graph, Palette, backward, forward, rounds, unit_colours
from caffe2torch.binding.graph import Wiring
from caffe2torch.binding.isomorphism import Sizes, signatures, without_tails

__all__ = ["PartialMatching", "match_parts"]

_RADIUS = 12


@dataclass(frozen=True, slots=True)
class PartialMatching:
    """Units of the net to units of the model.

    Attributes:
        pairs: The pairs.
        conflicting: Units for which the two ends of the net claim different counterparts, with all that were claimed.
    """

    pairs: dict[int, int]
    conflicting: dict[int, frozenset[int]] = field(default_factory=dict)


def match_parts(net: Wiring, model: Wiring, known: Mapping[int, int], *, ordered: bool = True) -> PartialMatching:
    """Extend ``known`` by every pair that is unique in what surrounds it, strongest evidence first.

    A unit is paired by everything that its value comes from, up to the next pair that is known, or by everything that
    it goes to; then by what is within 12 steps, 11, ... down to 1. Never by its own sizes alone. Where the way from
    the input and the way from the output lead to different counterparts (a chain of equal blocks that is longer on
    one side), neither is taken. Without ``ordered`` the order in concatenations counts for nothing.
    """
    graphs = Graph(without_tails(net), ordered=ordered), Graph(without_tails(model), ordered=ordered)
    search = _Search(graphs, dict(known))
    while search.extend():
        pass
    return PartialMatching(search.pairs, {one: frozenset(others) for one, others in search.conflicting.items()})


class _Search:
    """The pairs so far, and the units that two claims compete for."""

    def __init__(self, graphs: tuple[Graph, Graph], known: dict[int, int]) -> None:
        self.graphs = graphs
        self.signatures = signatures(graphs[0].wiring.units, graphs[1].wiring.units, Sizes.STRICT)
        self.pairs = known
        self.conflicting: dict[int, set[int]] = {}

    def extend(self) -> bool:
        """Add the pairs of the strongest evidence that still yields some; ``False`` when none does."""
        self.palette = Palette()
        self.labels = self._labels()
        return self._take([self._unique(self._swept(forward)), self._unique(self._swept(backward))]) or self._near()

    def _near(self) -> bool:
        history = rounds(self.graphs, self.labels, self._pinned(), _RADIUS, self.palette)
        return any(self._take([self._unique(colours)]) for colours in reversed(history[1:]))

    def _take(self, claims: Sequence[Mapping[int, int]]) -> bool:
        """Accept what no two claims contradict, note what they do; whether anything was accepted."""
        ones: dict[int, set[int]] = {}
        others: dict[int, set[int]] = {}
        for claim in claims:
            for one, other in claim.items():
                ones.setdefault(one, set()).add(other)
                others.setdefault(other, set()).add(one)
        taken = False
        for one, wanted in ones.items():
            rivals = set().union(*(others[other] for other in wanted))
            if len(wanted) == 1 and len(rivals) == 1 and one not in self.conflicting:
                self.pairs[one] = next(iter(wanted))
                taken = True
            elif len(wanted) > 1 or len(rivals) > 1:
                self.conflicting.setdefault(one, set()).update(wanted)
        return taken

    def _unique(self, colours: Sequence[Colours]) -> dict[int, int]:
        """Units, not paired yet, whose colour no other unit has on its own side and exactly one on the other."""
        sides: list[dict[int, list[int]]] = [{}, {}]
        for side, graph, one in zip(sides, self.graphs, colours, strict=True):
            for number, colour in enumerate(unit_colours(graph, one, self.palette)):
                if graph.uses[number]:
                    side.setdefault(colour, []).append(number)
        done = set(self.pairs.values())
        return {
            ones[0]: sides[1][colour][0]
            for colour, ones in sides[0].items()
            if len(ones) == len(sides[1].get(colour, ())) == 1
            and ones[0] not in self.pairs
            and sides[1][colour][0] not in done
        }

    def _swept(self, sweep: Callable[[Graph, Colours, Palette, set[int]], Colours]) -> list[Colours]:
        return [
            sweep(graph, [self.palette(label) for label in labels], self.palette, pinned)
            for graph, labels, pinned in zip(self.graphs, self.labels, self._pinned(), strict=True)
        ]

    def _labels(self) -> list[list[Hashable]]:
        sides = [list(side) for side in self.signatures]
        for one, other in self.pairs.items():
            sides[0][one] = sides[1][other] = ("pair", one)
        return [
            [(node.op, None if node.unit is None else side[node.unit]) for node in graph.wiring.nodes]
            for graph, side in zip(self.graphs, sides, strict=True)
        ]

    def _pinned(self) -> list[set[int]]:
        """The nodes of known pairs: what is behind them adds nothing."""
        paired = (list(self.pairs), list(self.pairs.values()))
        return [
            {use for unit in units for use in graph.uses[unit]}
            for graph, units in zip(self.graphs, paired, strict=True)
        ]
