"""The report as text for a terminal or a log: what explains most first, then every row, then the fine print."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from caffe2torch.binding.plan import Kind
from caffe2torch.recipe import Note, Severity
from caffe2torch.report.solver_table import solver_line
from caffe2torch.report.wording import blob_name, json_text, multipliers, number, pair, shape_text, stated_text, visible
from caffe2torch.verification.report import Report, ReportRow, UnclaimedRow, Verdict

__all__ = ["Column", "layout", "note_text", "render_json", "render_text", "verdict_line", "wrap", "wrong_lines"]


# A text table, laid out by tabulate: columns as wide as what they hold, names folded where the page ends.
#
# A table of a thousand rows must not cost more than reading the net that it shows; tabulate does it in a tenth of the
# time that a library for styled terminals takes.

GAP = 2
NARROWEST = 8

Paint = Callable[[str, int, int], str]
"""Cell, row and column to the cell in colour."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column's title, whether its cells stand to the right, and whether they may be folded onto several lines."""

    title: str
    right: bool = False
    folds: bool = False


def plain(cell: str, row: int, column: int) -> str:
    """No colour."""
    del row, column
    return cell


def layout(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int, paint: Paint = plain) -> Iterator[str]:
    """The lines of a table at most ``width`` wide, as far as columns that do not fold allow it.

    >>> print(*layout([Column("blob", folds=True), Column("lr", right=True)], [("conv1/0", "0.1")], 40), sep="\\n")
    blob      lr
    conv1/0  0.1
    """
    from tabulate import tabulate

    titles = [column.title for column in columns]
    table = tabulate(
        # The titles are a row like others: as headers they would widen their columns.
        [titles, *([paint(cell, number, k) for k, cell in enumerate(row)] for number, row in enumerate(rows))],
        tablefmt="plain",
        disable_numparse=True,  # cells are texts: 0.10 stays 0.10
        colalign=["right" if column.right else "left" for column in columns],
        maxcolwidths=_limits(columns, rows, width),
        break_on_hyphens=False,
    )
    yield from (line.rstrip() for line in table.split("\n"))


def wrap(text: str, width: int, indent: str = "  ") -> Iterator[str]:
    """A sentence on as many lines as it needs, all but the first indented."""
    lines = textwrap.wrap(text, max(width, 20), subsequent_indent=indent, break_long_words=True, break_on_hyphens=False)
    yield from lines or [""]


def _limits(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> list[int | None] | None:
    """How wide each column may be; ``None`` where nothing need be folded."""
    from wcwidth import wcswidth

    widths = [
        max(len(cell) if cell.isascii() else wcswidth(cell) for cell in (column.title, *(row[k] for row in rows)))
        for k, column in enumerate(columns)
    ]
    excess = sum(widths) + GAP * (len(widths) - 1) - width
    if excess <= 0:
        return None
    while excess > 0:
        widest = max((k for k, column in enumerate(columns) if column.folds), key=lambda k: widths[k], default=None)
        if widest is None or widths[widest] <= NARROWEST:
            break
        widths[widest] -= 1
        excess -= 1
    return [room if column.folds else None for column, room in zip(columns, widths, strict=True)]


WIDTH = 100
COLUMNS = (
    Column("blob", folds=True),
    Column("parameter", folds=True),
    Column("mult"),
    Column("lr", right=True),
    Column("seen", right=True),
    Column("decay", right=True),
    Column("seen", right=True),
    Column("group", right=True),
    Column("verdict"),
)
_RED, _GREEN, _BOLD, _OFF = "\x1b[31m", "\x1b[32m", "\x1b[1m", "\x1b[0m"


def render_text(report: Report, *, width: int = WIDTH, colour: bool = False) -> str:
    """The report as text, at most ``width`` columns wide where its names allow; ``colour`` is for terminals.

    ``lr`` and ``decay`` are what Caffe's solver applies at the report's iteration, multipliers included; the ``seen``
    beside each is what steps of the live optimizer did. The last line is the verdict.
    """
    return "\n".join(_lines(report, width, colour)) + "\n"


def verdict_line(report: Report) -> str:
    """``34 blobs, 34 parameters: all ok`` or ``2 of 34 rows are wrong``."""
    rows = len(report.rows) + len(report.unclaimed)
    if report.ok:
        return f"{_count(len(report.rows), 'blob')}, {_count(_parameters(report), 'parameter')}: all ok"
    if not report.wrong:
        return f"{_count(rows, 'row')} ok, but the optimizer as a whole is not"
    return f"{len(report.wrong)} of {_count(rows, 'row')} {'is' if len(report.wrong) == 1 else 'are'} wrong"


def wrong_lines(report: Report) -> list[str]:
    """One line for each row that is not ok: the parameter, both values, and the line of the prototxt."""
    return [_wrong(row) for row in report.wrong]


def _lines(report: Report, width: int, colour: bool) -> Iterator[str]:
    def paint(cell: str, row: int, column: int) -> str:
        if not colour or column != len(COLUMNS) - 1 or row < 0:
            return cell
        good = report.rows[row].verdict is Verdict.OK
        return f"{_GREEN if good else _RED}{cell}{_OFF}"

    title = visible(f"{report.model}, as {report.net or 'the net'} trains in Caffe")
    for line in wrap(title, width):
        yield f"{_BOLD}{line}{_OFF}" if colour else line
    yield from wrap(f"{solver_line(report.solver)}; iteration {report.iteration}", width)
    yield ""
    if report.causes:
        yield "What explains most:"
        for cause in report.causes:
            yield from wrap(f"- {visible(cause.message)}", width)
        yield ""
    yield from layout(COLUMNS, [_cells(row) for row in report.rows], width, paint)
    if report.unclaimed:
        yield ""
        yield "Parameters that no blob stands for:"
        for left in report.unclaimed:
            yield from wrap(_left(left), width)
    if report.wrong:
        yield ""
        yield "What is wrong:"
        for line in wrong_lines(report):
            yield from wrap(line, width)
    yield from _fine_print(report, width)
    yield ""
    line = verdict_line(report)
    yield f"{_GREEN if report.ok else _RED}{line}{_OFF}" if colour else line


def _cells(row: ReportRow) -> tuple[str, ...]:
    (lr, decay), (seen_lr, seen_decay) = pair(row.expected), pair(row.observed)
    parameter = visible(row.parameter or "-") + (" (buffer)" if row.kind is Kind.BUFFER else "")
    groups = " ".join(map(str, row.groups)) or "-"
    verdict = str(row.verdict)
    return blob_name(row.blob), parameter, multipliers(row), lr, seen_lr, decay, seen_decay, groups, verdict


def _left(left: UnclaimedRow) -> str:
    given = "" if left.lr_mult is None else f", by its user at ({left.lr_mult:g}, {number(left.decay_mult)})"
    lr, decay = pair(left.observed)
    name = f"{visible(left.parameter)} {shape_text(left.shape)}{given}"
    return f"- {name}: seen lr {lr}, decay {decay}; {left.verdict}"


def _wrong(row: ReportRow | UnclaimedRow) -> str:
    if isinstance(row, UnclaimedRow):
        return f"- {visible(row.parameter)}: {visible(row.reason)}"
    blob = row.blob
    name = visible(row.parameter or blob.name)
    return f"- {name}: {visible(row.reason)} [{multipliers(row)} {stated_text(blob)} at {visible(str(blob.where))}]"


def _fine_print(report: Report, width: int) -> Iterator[str]:
    counted: dict[str, int] = {}
    for row in report.rows:
        counted[stated_text(row.blob)] = counted.get(stated_text(row.blob), 0) + 1
    yield ""
    how = "; ".join(f"{count} {word}" for word, count in counted.items())
    yield from wrap(f"Multipliers (lr, decay) as stated: {how}.", width)
    for note in sorted(report.notes, key=lambda note: note.severity is not Severity.WARNING):
        yield from wrap(note_text(note), width)


def note_text(note: Note) -> str:
    """A note on one line, its place first."""
    place = "" if note.where is None else f"{visible(str(note.where))}: "
    return f"{note.severity}: {place}{visible(note.message)}"


def _parameters(report: Report) -> int:
    return len({row.parameter for row in report.rows if row.kind is Kind.PARAMETER}) + len(report.unclaimed)


def _count(count: int, word: str) -> str:
    return f"{count} {word}" + ("" if count == 1 else "s")


# The report as JSON: ``Report.to_dict()``, one value a line, the same on every run.


def render_json(report: Report) -> str:
    """The JSON text; it ends with a line feed and holds ASCII alone."""
    return json_text(report.to_dict())
