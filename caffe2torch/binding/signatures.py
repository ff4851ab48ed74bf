"""Which units could be counterparts by what they are: kind, groups and sizes, before any surroundings are looked at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from enum import StrEnum
from math import prod

from caffe2torch.binding.fitting import fit
from caffe2torch.binding.graph import Unit, UnitKind
from caffe2torch.recipe import Shape

__all__ = ["Sizes", "signatures"]

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
    mine, theirs = (tuple[Hashable, ...](label if label in common else label[0] for label in side) for side in sides)
    return list(mine), list(theirs)


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
