"""The net as a strip: a column for each layer that learns, a box for each of its blobs, coloured by what speeds it.

A deep net stands in stages, and the layers that only normalize stand below the one that they follow.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from os.path import commonprefix

from caffe2torch.binding.plan import Kind
from caffe2torch.verification.report import WRONG, Report, ReportRow

__all__ = ["Box", "Column", "Speed", "Stage", "Strip", "speeds", "strip"]

TINTS = 6
"""Colours that the page has; more different multipliers than these share the last one, and their numbers differ."""
_MANY = 60  # layers; of more, the names would take more room than the boxes
_TINY = 600  # blobs; of more, the numbers would
_FOLLOWERS = ("BatchNorm", "BN", "Scale", "Bias", "PReLU", "Normalize")  # layer types without weights of their own
_RUN = 12  # columns of a stage, where the names say nothing of stages
_SEPARATORS = re.compile(r".*[/_.-]")


@dataclass(frozen=True, slots=True)
class Speed:
    """An effective ``lr_mult``: its text, the tint of its boxes (0: frozen), how many blobs have it."""

    value: float
    text: str
    tint: int
    count: int


@dataclass(frozen=True, slots=True)
class Box:
    """One blob: what stands in its box, and what is said of it in words."""

    href: str
    text: str
    group: str
    tint: int
    decays: bool
    ok: bool
    says: str


@dataclass(frozen=True, slots=True)
class Column:
    """A layer's boxes; in a deep net also those of the layers after it that only normalize."""

    layer: str
    boxes: tuple[Box, ...]


@dataclass(frozen=True, slots=True)
class Stage:
    """Neighbouring columns under one label, and how many blobs they have. A net of few layers is one, not labelled."""

    label: str
    columns: tuple[Column, ...]
    blobs: int


@dataclass(frozen=True, slots=True)
class Strip:
    """All layers with learnable blobs, in the net's order. ``size`` is that of the boxes: named, dense or tiny."""

    stages: tuple[Stage, ...]
    speeds: tuple[Speed, ...]
    size: str

    @property
    def labels(self) -> list[str]:
        """The label of each blob's stage, in the order of the blobs."""
        return [stage.label for stage in self.stages for _ in range(stage.blobs)]


def speeds(report: Report) -> tuple[Speed, ...]:
    """Every effective multiplier of the rate, the smallest first; 0 is what is frozen."""
    counts = Counter(_lr_mult(row) for row in report.rows)
    moving = sorted(value for value in counts if value != 0)
    tints = {value: min(rank, TINTS) for rank, value in enumerate(moving, start=1)}
    return tuple(
        Speed(value, f"{value:g}", tints.get(value, 0), counts[value])
        for value in ([0.0] if 0.0 in counts else []) + moving
    )


def strip(report: Report) -> Strip:
    """The strip of a report."""
    found = speeds(report)
    tints = {speed.value: speed.tint for speed in found}
    boxes = [_box(index, row, tints) for index, row in enumerate(report.rows)]
    layers = [
        Column(layer, tuple(boxes[index] for index, _ in rows))
        for layer, rows in groupby(enumerate(report.rows), key=lambda pair: pair[1].blob.layer)
    ]
    if len(layers) <= _MANY:
        return Strip((Stage("", tuple(layers), len(boxes)),), found, "named")
    types = {row.blob.layer: row.blob.layer_type for row in report.rows}
    columns: list[Column] = []
    for layer in layers:
        if columns and types[layer.layer] in _FOLLOWERS:
            columns[-1] = Column(columns[-1].layer, (*columns[-1].boxes, *layer.boxes))
        else:
            columns.append(layer)
    stages = tuple(
        Stage(label, tuple(run), sum(len(column.boxes) for column in run)) for label, run in _stages(columns)
    )
    return Strip(stages, found, "tiny" if len(boxes) > _TINY else "dense")


def _stages(columns: Sequence[Column]) -> list[tuple[str, list[Column]]]:
    """Runs of columns whose layers' names begin alike, up to their first number; else runs of one length.

    >>> names = ["conv1", *(f"res{k}{unit}_branch{b}" for k in (2, 3) for unit in "abc" for b in (1, 2))]
    >>> [(label, len(run)) for label, run in _stages([Column(name, ()) for name in names])]
    [('conv1', 1), ('res2', 6), ('res3', 6)]
    """
    names = [column.layer for column in columns]
    common = _SEPARATORS.match(commonprefix(names))  # noqa: RUF071 - they are no paths: letter by letter is meant
    after = common.end() if common else 0

    def begins(column: Column) -> str:
        return column.layer[:after] + re.match(r"\D*\d*", column.layer[after:]).group()  # type: ignore[union-attr] # it always matches

    found = [(label, list(run)) for label, run in groupby(columns, key=begins)]
    if 1 < len(found) <= len(columns) / 3:
        return found
    runs = [list(columns[k : k + _RUN]) for k in range(0, len(columns), _RUN)]
    return [(" … ".join(dict.fromkeys((run[0].layer, run[-1].layer))), run) for run in runs]


def _box(index: int, row: ReportRow, tints: dict[float, int]) -> Box:
    value = _lr_mult(row)
    groups = " ".join(map(str, row.groups))
    words = [
        f"{row.blob.name} {row.blob.role}",
        f"lr ×{value:g}" if value else "frozen",
        f"decay ×{row.blob.decay_mult:g}",
        f"group {groups}" if groups else "buffer" if row.kind is Kind.BUFFER else "in no group",
        str(row.verdict),
    ]
    return Box(
        href=f"#row-{index}",
        text=f"{value:g}",
        group=groups,
        tint=tints[value],
        decays=row.blob.decay_mult != 0,
        ok=row.verdict not in WRONG,
        says=", ".join(words),
    )


def _lr_mult(row: ReportRow) -> float:
    return row.blob.lr_mult * row.factor
