"""The net as a strip: a column for each layer that learns, a box for each of its blobs, coloured by what speeds it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import groupby

from caffe2torch.binding.plan import Kind
from caffe2torch.verification.report import WRONG, Report, ReportRow

__all__ = ["Box", "Column", "Speed", "Strip", "speeds", "strip"]

TINTS = 6
"""Colours that the page has; more different multipliers than these share the last one, and their numbers differ."""
_MANY = 60  # layers; from here on their names would take more room than their boxes


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
    """One layer."""

    layer: str
    boxes: tuple[Box, ...]


@dataclass(frozen=True, slots=True)
class Strip:
    """All layers with learnable blobs, in the net's order. ``dense`` strips show no names."""

    columns: tuple[Column, ...]
    speeds: tuple[Speed, ...]
    dense: bool


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
    numbered = enumerate(report.rows)
    columns = tuple(
        Column(layer, tuple(_box(index, row, tints) for index, row in rows))
        for layer, rows in groupby(numbered, key=lambda pair: pair[1].blob.layer)
    )
    return Strip(columns, found, dense=len(columns) > _MANY)


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
