"""The report as one HTML page that needs nothing but itself, and as a fragment for notebooks.

Every name in it comes out of files that anyone may have written. So the templates escape by default, characters that
do not print are made visible on their way into the page (``finalize``), and the page's own policy forbids every script
and style but the two that it was made with, and every request.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import caffe2torch
from caffe2torch.binding.plan import Kind
from caffe2torch.recipe import Note, Severity
from caffe2torch.report.html_arguments import Argument, arguments, unread
from caffe2torch.report.html_sources import Link, Place, Places, listings
from caffe2torch.report.layer_overview import strip
from caffe2torch.report.rate_plot import rates_view
from caffe2torch.report.solver_table import solver_line
from caffe2torch.report.text import title_of, verdict_line
from caffe2torch.report.wording import number, shape_text, stated_text, visible
from caffe2torch.solver.lr_policy import rate, step_at
from caffe2torch.verification.report import Effective, Report, ReportRow, UnclaimedRow, Verdict

__all__ = ["render_fragment", "render_html"]


def render_html(report: Report) -> str:
    """The report as a page: verdict, what needs attention, every row, the rate over the run, fields and arguments.

    It opens without a network, is the same on every run, and sorts and filters by a script of its own; without
    scripts everything is there to read. Raises ``MissingExtraError`` where matplotlib is not installed.
    """
    places = Places(report.sources)
    drawn = strip(report)
    lr_mults = [speed.value for speed in drawn.speeds if speed.value != 0]
    decay_mults = sorted({row.blob.decay_mult for row in report.rows})
    fields = arguments(report.solver, report.iteration, lr_mults, decay_mults)
    rows = row_views(report, places)
    notes = sorted(report.notes, key=lambda note: note.severity is not Severity.WARNING)
    others = unread(report.solver, fields)
    links = (
        *row_links(report),
        *_field_links(fields),
        *_note_links(notes),
        *(Link(where, "no argument", "#unread") for where in others.values()),
    )
    style, script = _static("page.css"), _static("page.js")
    policy = report.solver.policy
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            **_head(report),
            version=caffe2torch.__version__,
            style=Markup(style),  # ours, not the report's
            script=Markup(script),
            style_hash=_hash(style),
            script_hash=_hash(script),
            rate=number(rate(policy, report.iteration, step_at(policy, report.iteration))),
            wrong=wrong_ones(report, places),
            most_wrong=MOST_WRONG,
            notes=[(note, places.of(note.where)) for note in notes],
            rows=rows,
            left=left_views(report),
            choices=choices(rows),
            strip=drawn,
            rates=rates_view(report.solver, drawn.speeds),
            fields=[(field, places.of(field.where, short=True)) for field in fields],
            unread=[(name, places.of(where, short=True)) for name, where in others.items()],
            listings=listings(report.sources, links),
        )
    )


def render_fragment(report: Report) -> str:
    """The report as a piece of a page, for notebooks: verdict, causes, what is wrong, and the table folded away.

    It brings no script, and takes its colours from whatever surrounds it.
    """
    places = Places(())
    return (
        _environment()
        .get_template("fragment.html.j2")
        .render(
            **_head(report),
            style=Markup(_static("fragment.css")),
            wrong=wrong_ones(report, places),
            most_wrong=MOST_WRONG,
            rows=row_views(report, places),
            left=left_views(report),
        )
    )


def _head(report: Report) -> dict[str, object]:
    rows: tuple[ReportRow | UnclaimedRow, ...] = (*report.rows, *report.unclaimed)
    return {
        "report": report,
        "title": title_of(report),
        "verdict": verdict_line(report),
        "solver": solver_line(report.solver),
        "parameters": sum(row.kind is Kind.PARAMETER for row in report.rows),
        "causes": named_causes(report),
        "groups": len({group for row in rows for group in row.groups}),
    }


def _field_links(fields: tuple[Argument, ...]) -> Iterator[Link]:
    for index, field in enumerate(fields):
        if field.where is not None:
            yield Link(field.where, field.argument, f"#field-{index}")


def _note_links(notes: list[Note]) -> Iterator[Link]:
    for index, note in enumerate(notes):
        if note.where is not None:
            yield Link(note.where, "note", f"#note-{index}")


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("caffe2torch.report"),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _shown(value: object) -> object:
    """What every expression of a template goes through: text whose every character prints."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@cache
def _static(name: str) -> str:
    source, _, _ = PackageLoader("caffe2torch.report").get_source(Environment(autoescape=True), name)
    return source


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


# The rows of the report as the page's table shows them, and what there is to filter them by.

SYMBOLS = {
    Verdict.OK: "✓",
    Verdict.MISMATCH: "≠",
    Verdict.MISSING: "∅",
    Verdict.DUPLICATE: "‖",
    Verdict.SKIPPED: "–",
    Verdict.FROZEN: "*",
    Verdict.ACCEPTED: "~",
}
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
        if row in report.wrong
    ]
    found += [
        Wrong(left.parameter, left.reason, f"#left-{index}", Place("", None))
        for index, left in enumerate(report.unclaimed)
        if left in report.wrong
    ]
    return tuple(found)


def named_causes(report: Report) -> tuple[tuple[str, tuple[tuple[str, str], ...]], ...]:
    """The message of each cause, and the rows that it explains, by name and with a link."""
    hrefs = {left.parameter: f"#left-{index}" for index, left in enumerate(report.unclaimed)}
    hrefs |= {row.parameter or row.blob.name: f"#row-{index}" for index, row in enumerate(report.rows)}
    return tuple(
        (cause.text, tuple((name, hrefs.get(name, "#blobs")) for name in cause.parameters)) for cause in report.causes
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
    (lr, decay), (seen_lr, seen_decay) = _shown_numbers(row.expected), _shown_numbers(row.observed)
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
    (lr, decay), (seen_lr, seen_decay) = _shown_numbers(left.expected), _shown_numbers(left.observed)
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


def _shown_numbers(effective: Effective) -> tuple[str, str]:
    return number(effective.lr), number(effective.weight_decay)


def _groups(groups: tuple[int, ...]) -> str:
    return " ".join(map(str, groups)) or "-"
