"""The report as Markdown, for an issue or a pull request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from caffe2torch.binding.plan import Kind
from caffe2torch.recipe import Note
from caffe2torch.report.solver_table import solver_line
from caffe2torch.report.text import title_of, verdict_line
from caffe2torch.report.wording import blob_name, multipliers, pair, stated_text, visible
from caffe2torch.verification.report import Report, ReportRow, Result, UnclaimedRow, Verdict
from caffe2torch.wording import shape_text

__all__ = ["escape", "markdown_table", "note_items", "render_markdown"]

_SPECIAL = str.maketrans({c: f"\\{c}" for c in "\\`*_{}[]<>()#+!|~&$@"})
_TITLES = (
    "blob",
    "parameter",
    "shape",
    "lr_mult, decay_mult",
    "stated",
    "where",
    "group",
    "lr",
    "seen",
    "decay",
    "seen",
    "verdict",
)


def escape(text: str) -> str:
    """Text that Markdown shows as it is, in a table's cell too.

    >>> print(escape("a|b_[x](y)"))
    a\\|b\\_\\[x\\]\\(y\\)
    """
    return visible(text).translate(_SPECIAL)


def render_markdown(report: Report) -> str:
    """The report as GitHub's Markdown: verdict, causes, every row, notes."""
    return "\n".join(_lines(report)) + "\n"


def markdown_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A table; cells must be escaped already."""
    yield "| " + " | ".join(titles) + " |"
    yield "| " + " | ".join("---" for _ in titles) + " |"
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def note_items(notes: Iterable[Note]) -> Iterator[str]:
    """Notes as a list, the place first."""
    for note in notes:
        place = "" if note.where is None else f"{escape(str(note.where))}: "
        yield f"- {note.severity}: {place}{escape(note.message)}"


def _lines(report: Report) -> Iterator[str]:
    yield f"# {escape(title_of(report))}"
    yield ""
    yield f"**{verdict_line(report)}**"
    yield ""
    yield f"{escape(solver_line(report.solver))}; iteration {report.iteration}"
    if report.checks:
        yield from ("", "## The run as a whole", "")
        cells = ((check.name, _result(check.result), escape(check.text)) for check in report.checks)
        yield from markdown_table(("check", "result", "what was seen"), cells)
    if report.causes:
        yield from ("", "## What is wrong, by cause", "")
        yield from (f"- {escape(cause.text)}" for cause in report.causes)
    yield from ("", "## Every blob", "")
    yield from markdown_table(_TITLES, (_cells(row) for row in report.rows))
    if report.unclaimed:
        yield from ("", "## Parameters that no blob stands for", "")
        titles = ("parameter", "shape", "group", "lr seen", "decay seen", "verdict")
        yield from markdown_table(titles, (_left(left) for left in report.unclaimed))
    if report.notes:
        yield from ("", "## Notes", "")
        yield from note_items(report.notes)


def _cells(row: ReportRow) -> tuple[str, ...]:
    (lr, decay), (seen_lr, seen_decay) = pair(row.expected), pair(row.observed)
    blob = row.blob
    parameter = escape(row.parameter or "-") + (" (buffer)" if row.kind is Kind.BUFFER else "")
    return (
        escape(blob_name(blob)),
        parameter,
        shape_text(blob.shape),
        multipliers(row),
        stated_text(blob),
        escape(str(blob.where)),
        _groups(row.groups),
        lr,
        seen_lr,
        decay,
        seen_decay,
        _verdict(row.verdict),
    )


def _left(left: UnclaimedRow) -> tuple[str, ...]:
    shape = shape_text(left.shape)
    return escape(left.parameter), shape, _groups(left.groups), *pair(left.observed), _verdict(left.verdict)


def _groups(groups: Sequence[int]) -> str:
    return " ".join(map(str, groups)) or "-"


def _result(result: Result) -> str:
    return f"**{result}**" if result is Result.DIFFERS else str(result)


def _verdict(verdict: Verdict) -> str:
    return str(verdict) if verdict is Verdict.OK else f"**{verdict}**"
