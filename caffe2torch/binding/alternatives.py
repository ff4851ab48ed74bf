"""Units of the model that are left over and could as well be the counterpart of a unit that has one.

Where the model has units that the net does not have, leaving out other ones may give the same wiring: of two equal
blocks in a row, either can be the one too many. If u could stand for a, then everything that a's value comes from has
a counterpart before u, and everything that it goes to has one after u. So u comes into question only if each kind of
unit occurs at least as often before u as before a, and after u as after a. Where no unit that is left over passes,
no other choice of what to leave out is possible.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence

from caffe2torch.binding.graph import Wiring
from caffe2torch.binding.signatures import Sizes, signatures

__all__ = ["alternatives"]


def alternatives(net: Wiring, model: Wiring, left: Collection[int]) -> dict[int, list[int]]:
    """For units of the net the units among ``left`` (of the model) that could be their counterparts, if any could."""
    labels = signatures(net.units, model.units, Sizes.STRICT)
    wanted = {labels[1][other] for other in left}
    ones = [number for number, label in enumerate(labels[0]) if label in wanted]
    if not ones:
        return {}
    kinds = list(dict.fromkeys(labels[0]))
    ours, theirs = _Around(net, labels[0], kinds), _Around(model, labels[1], kinds)
    found = {
        one: [other for other in left if labels[0][one] == labels[1][other] and theirs.has(other, ours.counts(one))]
        for one in ones
    }
    return {one: others for one, others in found.items() if others}


class _Around:
    """For each unit the units before and after it, as sets of bits, counted by kind."""

    def __init__(self, wiring: Wiring, labels: Sequence[Hashable], kinds: Sequence[Hashable]) -> None:
        self.masks = [sum(1 << number for number, label in enumerate(labels) if label == kind) for kind in kinds]
        own = [0 if node.unit is None else 1 << node.unit for node in wiring.nodes]
        before, after = [0] * len(own), [0] * len(own)
        for number, node in enumerate(wiring.nodes):
            for source in node.inputs:
                before[number] |= before[source] | own[source]
        for number in range(len(own) - 1, -1, -1):
            for source in wiring.nodes[number].inputs:
                after[source] |= after[number] | own[number]
        self.sides: list[tuple[int, int]] = [(0, 0)] * len(wiring.units)
        for number, node in enumerate(wiring.nodes):
            if node.unit is not None:
                so_far = self.sides[node.unit]
                self.sides[node.unit] = (so_far[0] | before[number], so_far[1] | after[number])

    def counts(self, unit: int) -> list[int]:
        """How many units of each kind are before, and after, a unit."""
        return [(side & mask).bit_count() for side in self.sides[unit] for mask in self.masks]

    def has(self, unit: int, counts: Sequence[int]) -> bool:
        """Whether a unit has at least so many of each kind before and after it."""
        return all(own >= wanted for own, wanted in zip(self.counts(unit), counts, strict=True))
