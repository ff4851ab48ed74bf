"""The report as one HTML page that needs nothing but itself, and as a fragment for notebooks.

Every name in it comes out of files that anyone may have written. So the templates escape by default, characters that
do not print are made visible on their way into the page (``finalize``), and the page's own policy forbids every script
and style but the two that it was made with, and every request.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import caffe2torch
from caffe2torch.binding.plan import Kind
from caffe2torch.recipe import Note, Severity
from caffe2torch.report.html_arguments import Argument, arguments, unread
from caffe2torch.report.html_causes import Card, causes
from caffe2torch.report.html_sources import Link, Place, Places, listings
from caffe2torch.report.layer_overview import strip
from caffe2torch.report.rate_plot import rates_view
from caffe2torch.report.solver_table import solver_line
from caffe2torch.report.text import title_of, verdict_line
from caffe2torch.report.wording import pair, stated_text, visible
from caffe2torch.solver.float32 import number
from caffe2torch.solver.lr_policy import rate
from caffe2torch.verification.report import Report, ReportRow, UnclaimedRow, Verdict
from caffe2torch.wording import shape_text

__all__ = ["render_fragment", "render_html"]


def render_html(report: Report) -> str:
    """The report as a page: verdict, causes, checks, every row, the rate over the run, fields and arguments.

    It opens without a network, is the same on every run, and sorts and filters by a script of its own; without
    scripts everything is there to read. Where matplotlib is not installed it has no pictures, and says so.
    """
    places = Places(report.sources)
    drawn = strip(report)
    lr_mults = [speed.value for speed in drawn.speeds if speed.value != 0]
    decay_mults = sorted({row.blob.decay_mult for row in report.rows})
    fields = arguments(report.solver, report.iteration, lr_mults, decay_mults)
    cards = causes(report, places)
    rows = row_views(report, places, cards, drawn.labels)
    notes = sorted(report.notes, key=lambda note: note.severity is not Severity.WARNING)
    others = unread(report.solver, fields)
    links = (
        *row_links(report),
        *_field_links(fields),
        *_note_links(notes),
        *(Link(where, "no argument", "#unread") for where in others.values()),
    )
    room = columns(rows)
    style, script = _static("page.css") + room.style, _static("page.js")
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
            rate=number(rate(policy, report.iteration)),
            cards=cards,
            notes=[(note, places.of(note.where)) for note in notes],
            rows=rows,
            left=left_views(report, cards),
            titles=TITLES,
            tracks=room.tracks,
            choices=choices(rows),
            strip=drawn,
            rates=rates_view(report, drawn.speeds),
            fields=[(field, places.of(field.where, short=True)) for field in fields],
            unread=[(name, places.of(where, short=True)) for name, where in others.items()],
            listings=listings(report.sources, links),
        )
    )


def render_fragment(report: Report) -> str:
    """The report as a piece of a page, for notebooks: verdict, causes, checks, and the table folded away.

    It brings no script, and takes its colours from whatever surrounds it.
    """
    cards = causes(report, Places(()))
    return (
        _environment()
        .get_template("fragment.html.j2")
        .render(
            **_head(report),
            style=Markup(_static("fragment.css")),
            cards=cards,
            rows=row_views(report, Places(()), cards),
            left=left_views(report, cards),
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
    made = Environment(
        loader=PackageLoader("caffe2torch.report"),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["breakable"] = lambda name: Markup("<wbr>").join(breakable(name))
    made.filters["lines"] = lambda text: Markup("\n").join(map(visible, text.split("\n")))
    return made


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

_NAME, _TEXT, _DIGITS = 0.53, 0.57, 0.65  # em to the letter, in fonts that are rather wide
TITLES = {
    "#": ("number", _DIGITS),
    "blob": ("text", _NAME),
    "role": ("text", _TEXT),
    "parameter": ("text", _NAME),
    "shape": ("text", _NAME),
    "lr_mult": ("number", _DIGITS),
    "decay_mult": ("number", _DIGITS),
    "stated": ("text", _TEXT),
    "group": ("number", _DIGITS),
    "lr": ("number", _DIGITS),
    "lr seen": ("number", _DIGITS),
    "decay": ("number", _DIGITS),
    "decay seen": ("number", _DIGITS),
    "verdict": ("text", 0.61),
    "line": ("number", _NAME),
}
"""The table's columns, how each is sorted, and how wide its letters are."""
_NUMBERS = ("shape", "lr_mult", "decay_mult", "stated", "groups", "lr", "seen_lr", "decay", "seen_decay")
PADDING = 0.65  # em, in every cell
SMALLEST = 0.75
"""The size of the table's letters in a narrow window, in rem; as in the style."""
LONGEST = 40
"""Letters of a name that stand on one line; a longer one is broken between its parts."""
_PARTS = re.compile(r"(?<=[._/ ])(?![._/ ])")
SYMBOLS = {
    Verdict.OK: "✓",
    Verdict.MISMATCH: "≠",
    Verdict.MISSING: "∅",
    Verdict.DUPLICATE: "‖",
    Verdict.SKIPPED: "–",
    Verdict.FROZEN: "*",
    Verdict.ACCEPTED: "~",
}


@dataclass(frozen=True, slots=True)
class RowView:
    """A row's cells, as text. ``id`` is where links to it lead, ``why`` where its verdict is spelled out."""

    id: str
    index: int
    blob: str
    role: str
    shared: str
    parameter: str
    buffer: bool
    shape: str
    lr_mult: str
    decay_mult: str
    stated: str
    groups: str
    lr: str
    seen_lr: str
    decay: str
    seen_decay: str
    verdict: str
    symbol: str
    wrong: bool
    cause: Card | None
    place: Place
    multipliers: str
    stage: str


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
    cause: Card | None


@dataclass(frozen=True, slots=True)
class Choice:
    """A value to filter by, and how many rows have it."""

    value: str
    count: int


def row_views(report: Report, places: Places, cards: Sequence[Card], stages: Sequence[str] = ()) -> tuple[RowView, ...]:
    """Every row, in the order of the recipe's blobs, with the label of its stage."""
    found, wrong = _cards_of(cards), {id(row) for row in report.wrong}
    return tuple(
        _view(index, row, places, found.get(f"#row-{index}"), stages[index] if stages else "", id(row) in wrong)
        for index, row in enumerate(report.rows)
    )


def left_views(report: Report, cards: Sequence[Card]) -> tuple[LeftView, ...]:
    """Every parameter that is left."""
    found = _cards_of(cards)
    return tuple(_left(index, left, found.get(f"#left-{index}")) for index, left in enumerate(report.unclaimed))


def _cards_of(cards: Sequence[Card]) -> dict[str, Card]:
    """The first card that explains a row, by the link to the row."""
    return {row.href: card for card in reversed(cards) for row in card.rows}


@dataclass(frozen=True, slots=True)
class Columns:
    """Room for each column of the rows, which are grids to the browser: it does not find it out itself."""

    widths: tuple[float, ...]

    @property
    def tracks(self) -> str:
        """The columns, at least as wide as what they hold, and the whole, in em; for the table's ``style``."""
        found = " ".join(f"minmax({width:.2f}em, {width:.2f}fr)" for width in self.widths)
        return f"--columns: {found}; --least: {sum(self.widths):.2f}"

    @property
    def style(self) -> str:
        """The window below which the table must scroll; not before, since its headings stick only without that."""
        window = SMALLEST * sum(self.widths) + 4
        return f"@media screen and (max-width: {window:.1f}rem) {{ .wide {{ overflow-x: auto; }} }}\n"


def columns(rows: Sequence[RowView]) -> Columns:
    """Numbers stand on one line, and so do names; a very long name is broken between its parts."""
    cells = [
        [str(len(rows))],
        _whole_or_parts(row.blob for row in rows),
        _whole_or_parts(row.role for row in rows),
        _whole_or_parts(row.parameter + " buffer" * row.buffer for row in rows),
        *([getattr(row, cell) for row in rows] for cell in _NUMBERS),
        [f"{row.symbol} {row.verdict} {row.cause.label if row.cause else ''}" for row in rows],
        _whole_or_parts(row.place.text for row in rows),
    ]
    return Columns(
        tuple(
            letter * max(map(len, [*column, *breakable(title)])) + PADDING
            for (title, (_, letter)), column in zip(TITLES.items(), cells, strict=True)
        )
    )


def _whole_or_parts(names: Iterable[str]) -> list[str]:
    return [part for name in names for part in ([name] if len(name) <= LONGEST else breakable(name))]


def breakable(name: str) -> list[str]:
    """The parts of a name that must stay whole.

    >>> breakable("layer1.0/conv_a")
    ['layer1.', '0/', 'conv_', 'a']
    """
    return [part for part in _PARTS.split(visible(name)) if part]


def row_links(report: Report) -> Iterator[Link]:
    """From the prototxt's lines to the rows: the ``param`` block of each blob, and each further use of it."""
    for index, row in enumerate(report.rows):
        yield Link(row.blob.where, row.blob.name, f"#row-{index}")
        for use in row.blob.shared_with:
            yield Link(use.where, f"{use.layer}/{use.index}", f"#row-{index}")


def choices(views: Iterable[RowView]) -> dict[str, tuple[Choice, ...]]:
    """What the table can be narrowed to: verdicts, multipliers, groups, stages; each in order of first appearance."""
    views = tuple(views)
    found = {
        "verdict": Counter(view.verdict for view in views),
        "multipliers": Counter(view.multipliers for view in views),
        "group": Counter(view.groups for view in views),
        "stage": Counter(view.stage for view in views if view.stage),
    }
    return {name: tuple(Choice(value, count) for value, count in counts.items()) for name, counts in found.items()}


def _view(index: int, row: ReportRow, places: Places, cause: Card | None, stage: str, wrong: bool) -> RowView:
    blob = row.blob
    (lr, decay), (seen_lr, seen_decay) = pair(row.expected), pair(row.observed)
    return RowView(
        id=f"row-{index}",
        index=index,
        blob=blob.name,
        role=f"{blob.role}, {blob.layer_type}",
        shared=", ".join(f"{use.layer}/{use.index}" for use in blob.shared_with),
        parameter=row.parameter or "-",
        buffer=row.kind is Kind.BUFFER,
        shape=shape_text(blob.shape),
        lr_mult=f"{blob.lr_mult:g}" + ("" if row.factor == 1 else f"×{row.factor:g}"),
        decay_mult=f"{blob.decay_mult:g}",
        stated=stated_text(blob),
        groups=_groups(row.groups),
        lr=lr,
        seen_lr=seen_lr,
        decay=decay,
        seen_decay=seen_decay,
        verdict=str(row.verdict),
        symbol=SYMBOLS[row.verdict],
        wrong=wrong,
        cause=cause,
        place=places.of(blob.where, short=True),
        multipliers=f"{blob.lr_mult * row.factor:g}, {blob.decay_mult:g}",
        stage=stage,
    )


def _left(index: int, left: UnclaimedRow, cause: Card | None) -> LeftView:
    (lr, decay), (seen_lr, seen_decay) = pair(left.expected), pair(left.observed)
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
        cause=cause,
    )


def _groups(groups: tuple[int, ...]) -> str:
    return " ".join(map(str, groups)) or "-"
