"""The rows of the report as the page's table shows them, and what there is to filter them by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from caffe2torch.binding.plan import Kind
from caffe2torch.report.html_sources import Link, Place, Places
from caffe2torch.report.wording import number, shape_text, stated_text
from caffe2torch.verification.report import Effective, Report, ReportRow, UnclaimedRow, Verdict

__all__ = [
    "Choice",
    "LeftView",
    "RowView",
    "Wrong",
    "choices",
    "left_views",
    "named_causes",
    "row_links",
    "row_views",
    "wrong_ones",
]

SYMBOLS = {Verdict.OK: "✓", Verdict.MISMATCH: "≠", Verdict.MISSING: "∅", Verdict.DUPLICATE: "‖"}
MOST_WRONG = 30
"""Rows that are spelled out above the table; all others stand in it."""


@dataclass(frozen=True, slots=True)
class RowView:
    """A row's cells, as text. ``id`` is where links to it lead, ``why`` where its verdict is spelled out."""

    id: str
    index: int
    blob: str
    role: str
    layer_type: str
    shared: str
    parameter: str
    buffer: bool
    shape: str
    lr_mult: str
    factor: str
    decay_mult: str
    stated: str
    groups: str
    lr: str
    seen_lr: str
    decay: str
    seen_decay: str
    verdict: str
    symbol: str
    reason: str
    place: Place
    multipliers: str


@dataclass(frozen=True, slots=True)
class LeftView:
    """A parameter that no blob stands for."""

    id: str
    parameter: str
    shape: str
    given: str
    groups: str
    lr: str
    seen_lr: str
    decay: str
    seen_decay: str
    verdict: str
    symbol: str
    reason: str


@dataclass(frozen=True, slots=True)
class Wrong:
    """A row that is not ok, for the list of what needs attention."""

    name: str
    reason: str
    href: str
    place: Place


@dataclass(frozen=True, slots=True)
class Choice:
    """A value to filter by, and how many rows have it."""

    value: str
    count: int


def row_views(report: Report, places: Places) -> tuple[RowView, ...]:
    """Every row, in the order of the recipe's blobs."""
    return tuple(_view(index, row, places) for index, row in enumerate(report.rows))


def left_views(report: Report) -> tuple[LeftView, ...]:
    """Every parameter that is left."""
    return tuple(_left(index, left) for index, left in enumerate(report.unclaimed))


def wrong_ones(report: Report, places: Places) -> tuple[Wrong, ...]:
    """The rows that are not ok, in their order."""
    found = [
        Wrong(row.parameter or row.blob.name, row.reason, f"#row-{index}", places.of(row.blob.where))
        for index, row in enumerate(report.rows)
        if row.verdict is not Verdict.OK
    ]
    found += [
        Wrong(left.parameter, left.reason, f"#left-{index}", Place("", None))
        for index, left in enumerate(report.unclaimed)
        if left.verdict is not Verdict.OK
    ]
    return tuple(found)


def named_causes(report: Report) -> tuple[tuple[str, tuple[tuple[str, str], ...]], ...]:
    """The message of each cause, and the rows that it explains, by name and with a link."""
    hrefs = {left.parameter: f"#left-{index}" for index, left in enumerate(report.unclaimed)}
    hrefs |= {row.parameter or row.blob.name: f"#row-{index}" for index, row in enumerate(report.rows)}
    return tuple(
        (cause.message, tuple((name, hrefs.get(name, "#blobs")) for name in cause.parameters))
        for cause in report.causes
    )


def row_links(report: Report) -> Iterator[Link]:
    """From the prototxt's lines to the rows: the ``param`` block of each blob, and each further use of it."""
    for index, row in enumerate(report.rows):
        yield Link(row.blob.where, row.blob.name, f"#row-{index}")
        for use in row.blob.shared_with:
            yield Link(use.where, f"{use.layer}/{use.index}", f"#row-{index}")


def choices(views: Iterable[RowView]) -> dict[str, tuple[Choice, ...]]:
    """What the table can be narrowed to: verdicts, pairs of multipliers, groups; each in order of first appearance."""
    views = tuple(views)
    found = {
        "verdict": Counter(view.verdict for view in views),
        "multipliers": Counter(view.multipliers for view in views),
        "group": Counter(view.groups for view in views),
    }
    return {name: tuple(Choice(value, count) for value, count in counts.items()) for name, counts in found.items()}


def _view(index: int, row: ReportRow, places: Places) -> RowView:
    blob = row.blob
    (lr, decay), (seen_lr, seen_decay) = _shown(row.expected), _shown(row.observed)
    return RowView(
        id=f"row-{index}",
        index=index,
        blob=blob.name,
        role=blob.role,
        layer_type=blob.layer_type,
        shared=", ".join(f"{use.layer}/{use.index}" for use in blob.shared_with),
        parameter=row.parameter or "-",
        buffer=row.kind is Kind.BUFFER,
        shape=shape_text(blob.shape),
        lr_mult=f"{blob.lr_mult:g}",
        factor="" if row.factor == 1 else f"×{row.factor:g}",
        decay_mult=f"{blob.decay_mult:g}",
        stated=stated_text(blob),
        groups=_groups(row.groups),
        lr=lr,
        seen_lr=seen_lr,
        decay=decay,
        seen_decay=seen_decay,
        verdict=str(row.verdict),
        symbol=SYMBOLS[row.verdict],
        reason=row.reason,
        place=places.of(blob.where, short=True),
        multipliers=f"{blob.lr_mult * row.factor:g}, {blob.decay_mult:g}",
    )


def _left(index: int, left: UnclaimedRow) -> LeftView:
    (lr, decay), (seen_lr, seen_decay) = _shown(left.expected), _shown(left.observed)
    given = left.lr_mult is not None and left.decay_mult is not None
    return LeftView(
        id=f"left-{index}",
        parameter=left.parameter,
        shape=shape_text(left.shape),
        given=f"{left.lr_mult:g}, {left.decay_mult:g}" if given else "-",
        groups=_groups(left.groups),
        lr=lr,
        seen_lr=seen_lr,
        decay=decay,
        seen_decay=seen_decay,
        verdict=str(left.verdict),
        symbol=SYMBOLS[left.verdict],
        reason=left.reason,
    )


def _shown(effective: Effective) -> tuple[str, str]:
    return number(effective.lr), number(effective.weight_decay)


def _groups(groups: tuple[int, ...]) -> str:
    return " ".join(map(str, groups)) or "-"
