"""The report as one HTML page that needs nothing but itself, and as a fragment for notebooks.

Every name in it comes out of files that anyone may have written. So the templates escape by default, characters that
do not print are made visible on their way into the page (``finalize``), and the page's own policy forbids every script
and style but the two that it was made with, and every request.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import caffe2torch
from caffe2torch.binding.plan import Kind
from caffe2torch.recipe import Note, Severity
from caffe2torch.report.html_arguments import Argument, arguments, unread
from caffe2torch.report.html_rates import rates_view
from caffe2torch.report.html_rows import (
    MOST_WRONG,
    choices,
    left_views,
    named_causes,
    row_links,
    row_views,
    wrong_ones,
)
from caffe2torch.report.html_sources import Link, Places, listings
from caffe2torch.report.layer_overview import strip
from caffe2torch.report.solver_table import solver_line
from caffe2torch.report.text import verdict_line
from caffe2torch.report.wording import number, visible
from caffe2torch.solver.lr_policy import rate, step_at
from caffe2torch.verification.report import Report, ReportRow, UnclaimedRow

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
        "title": f"{report.model}, as {report.net or 'the net'} trains in Caffe",
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
