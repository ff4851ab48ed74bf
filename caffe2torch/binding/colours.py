"""Colour refinement of several wirings at once (Weisfeiler and Leman, 1968): equal colours, equal surroundings.

Two nodes get one colour as long as nothing that can be reached from them, along inputs or against them, distinguishes
them. Colours are numbers; one palette serves all wirings, so that they can be compared across.
"""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterable, Sequence

from caffe2torch.binding.graph import INPUT, Op, Wiring

__all__ = ["Colours", "Graph", "Palette", "backward", "forward", "refine", "rounds", "unit_colours"]

Colours = list[int]


class Palette:
    """Numbers for things, the same number for equal things."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}

    def __call__(self, thing: Hashable) -> int:
        """The number of ``thing``."""
        return self._numbers.setdefault(thing, len(self._numbers))


class Graph:
    """A wiring with its edges in both directions, as refinement follows them.

    Without ``ordered`` the order in concatenations counts for nothing.
    """

    def __init__(self, wiring: Wiring, *, ordered: bool = True) -> None:
        self.wiring = wiring
        self.ordered = [node.op.ordered and (ordered or node.op is not Op.CONCAT) for node in wiring.nodes]
        self.inputs = [node.inputs for node in wiring.nodes]
        self.consumers: list[list[tuple[int, int]]] = [[] for _ in wiring.nodes]  # (position, consumer)
        for number, node in enumerate(wiring.nodes):
            for position, source in enumerate(node.inputs):
                self.consumers[source].append((position if self.ordered[number] else 0, number))
        self.uses: list[list[int]] = [[] for _ in wiring.units]
        for number, node in enumerate(wiring.nodes):
            if node.unit is not None:
                self.uses[node.unit].append(number)
        self.shared = [uses for uses in self.uses if len(uses) > 1]


def forward(graph: Graph, colours: Colours, palette: Palette, fixed: Container[int] = ()) -> Colours:
    """Colours by everything that a node's value comes from, at any distance: one pass, since inputs come first.

    Nodes in ``fixed`` keep their colour, so that what is behind them makes no difference.
    """
    new = list(colours)
    for number, inputs in enumerate(graph.inputs):
        if number != INPUT and number not in fixed:
            seen = [new[source] for source in inputs]
            new[number] = palette(("from", colours[number], *(seen if graph.ordered[number] else sorted(seen))))
    return new


def backward(graph: Graph, colours: Colours, palette: Palette, fixed: Container[int] = ()) -> Colours:
    """Colours by everything that a node's value goes to, at any distance; ``fixed`` as in ``forward``."""
    new = list(colours)
    for number in range(len(new) - 1, INPUT, -1):
        if number in fixed:
            continue
        seen = sorted((position, new[consumer]) for position, consumer in graph.consumers[number])
        new[number] = palette(("to", colours[number], *seen))
    return new


def refine(graphs: Sequence[Graph], labels: Sequence[Sequence[Hashable]], palette: Palette) -> list[Colours]:
    """The coarsest colouring finer than ``labels`` in which nodes of one colour have equal surroundings.

    Sweeping in the order of the nodes carries a difference through the whole graph at once, where the usual rounds
    carry it one step: a chain of n equal units takes a few sweeps, not n/2 rounds.
    """
    colours = [[palette(label) for label in one] for one in labels]
    count = 0
    while (found := len({colour for one in colours for colour in one})) > count:
        count = found
        for number, graph in enumerate(graphs):
            one = backward(graph, forward(graph, colours[number], palette), palette)
            for uses in graph.shared:
                together = palette(("uses", *sorted(one[use] for use in uses)))
                for use in uses:
                    one[use] = palette(("one of", one[use], together))
            colours[number] = one
    return colours


def rounds(
    graphs: Sequence[Graph],
    labels: Sequence[Sequence[Hashable]],
    fixed: Iterable[set[int]],
    radius: int,
    palette: Palette,
) -> list[list[Colours]]:
    """Colours by what is within 0, 1, ... ``radius`` steps; nodes in ``fixed`` keep their label's colour."""
    history = [[[palette(label) for label in one] for one in labels]]
    pinned = list(fixed)
    for _ in range(radius):
        last = history[-1]
        history.append([_round(graph, last[number], pinned[number], palette) for number, graph in enumerate(graphs)])
    return history


def _round(graph: Graph, colours: Colours, fixed: set[int], palette: Palette) -> Colours:
    new = list(colours)
    for number, inputs in enumerate(graph.inputs):
        if number != INPUT and number not in fixed:
            sources = [colours[source] for source in inputs]
            goals = sorted((position, colours[consumer]) for position, consumer in graph.consumers[number])
            before = tuple(sources if graph.ordered[number] else sorted(sources))
            new[number] = palette(("near", colours[number], before, tuple(goals)))
    return new


def unit_colours(graph: Graph, colours: Colours, palette: Palette) -> Colours:
    """A colour for each unit, from those of its uses."""
    return [palette(("unit", *sorted(colours[use] for use in uses))) for uses in graph.uses]
