"""The report as text for a terminal or a log: the checks, what is wrong by cause, the rows, notes, the verdict."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from caffe2torch.binding.plan import Kind
from caffe2torch.recipe import Note, Severity, Statement
from caffe2torch.report.solver_table import solver_line
from caffe2torch.report.wording import STATED, blob_name, json_text, multipliers, pair, visible
from caffe2torch.solver.float32 import number
from caffe2torch.verification.report import WRONG, Cause, Check, Report, ReportRow, Result, UnclaimedRow, Verdict
from caffe2torch.wording import listed, shape_text

__all__ = ["Column", "layout", "note_text", "render_json", "render_text", "title_of", "verdict_line", "wrap"]


# A text table, laid out by tabulate: columns as wide as what they hold, names folded at separators where the page ends.
#
# A table of a thousand rows must not cost more than reading the net that it shows; tabulate does it in a tenth of the
# time that a library for styled terminals takes.

GAP = 2
_SEPARATORS = re.compile(r"(?<=[._/ ])(?![._/ ])")

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
    limits = _limits(columns, rows, width)
    if limits is not None:
        rows = [[_folded(cell, limit) for cell, limit in zip(row, limits, strict=True)] for row in rows]
    table = tabulate(
        # The titles are a row like others: as headers they would widen their columns.
        [titles, *([paint(cell, number, k) for k, cell in enumerate(row)] for number, row in enumerate(rows))],
        tablefmt="plain",
        disable_numparse=True,  # cells are texts: 0.10 stays 0.10
        colalign=["right" if column.right else "left" for column in columns],
    )
    yield from (line.rstrip() for line in table.split("\n"))


def wrap(text: str, width: int, indent: str = "  ") -> Iterator[str]:
    """A sentence on as many lines as it needs, all but the first indented; a word is broken only as a name may be."""
    room = max(width, 20)
    words = re.findall(r" *[^ ]+", text)
    yield from _filled(
        [part for word in words for part in (_parts(word) if len(word) > room else [word])], room, indent
    )


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
    narrowest = {
        k: max(len(part) for cell in (column.title, *(row[k] for row in rows)) for part in _parts(cell))
        for k, column in enumerate(columns)
        if column.folds
    }
    while excess > 0:
        left = [k for k, least in narrowest.items() if widths[k] > least]
        if not left:
            break
        widths[max(left, key=lambda k: widths[k])] -= 1
        excess -= 1
    return [room if column.folds else None for column, room in zip(columns, widths, strict=True)]


def _parts(cell: str) -> list[str]:
    """What must stay on one line: a name may be broken after ``.``, ``_``, ``/`` and spaces."""
    return [part for part in _SEPARATORS.split(cell) if part] or [""]


def _folded(cell: str, room: int | None) -> str:
    """A cell on as many lines as it takes."""
    if room is None or len(cell) <= room:
        return cell
    return "\n".join(_filled(_parts(cell), room))


def _filled(parts: Sequence[str], room: int, indent: str = "") -> Iterator[str]:
    """Parts on lines of at most ``room``, where one part has as much; all lines but the first are indented."""
    line = ""
    for part in parts:
        if line.strip() and len((line + part).rstrip()) > room:
            yield line.rstrip()
            line = indent + part.lstrip(" ")
        else:
            line += part
    yield line.rstrip()


WIDTH = 100
SCREEN = 50
"""Rows of a table that need not be folded, where nobody's terminal sets a bound."""

_NUMBERS = (
    Column("mult"),
    Column("lr", right=True),
    Column("seen", right=True),
    Column("decay", right=True),
    Column("seen", right=True),
    Column("group", right=True),
    Column("verdict"),
)
COLUMNS = (Column("blob", folds=True), Column("parameter", folds=True), *_NUMBERS)
FOLDED = (Column("role", folds=True), Column("blobs", right=True), *_NUMBERS)
_RED, _GREEN, _BOLD, _OFF = "\x1b[31m", "\x1b[32m", "\x1b[1m", "\x1b[0m"
_COLOURS = {Result.DIFFERS: _RED, Result.NOT_SEEN: "\x1b[2m"}  # what nobody looked at is not green


@dataclass(frozen=True, slots=True)
class View:
    """How much of a report is shown, and how.

    Attributes:
        width: Columns, as far as names allow it.
        colour: With a terminal's colours.
        rows: A longer table has a line for all blobs of one group, role, numbers and verdict; ``None``: every row.
        only_wrong: Only the checks and rows that are not right.
        next_step: The command to type next, or what to do; the last line.
    """

    width: int = WIDTH
    colour: bool = False
    rows: int | None = SCREEN
    only_wrong: bool = False
    next_step: str = ""

    def folds(self, rows: Sequence[ReportRow]) -> bool:
        """Whether so many rows are shown by role."""
        return self.rows is not None and len(rows) > self.rows


def render_text(report: Report, view: View) -> str:
    """The report as text.

    ``lr`` and ``decay`` are what Caffe's solver applies at the report's iteration, multipliers included; the ``seen``
    beside each is what steps of the live optimizer did. The verdict comes last, and then the next step, if any.
    """
    return "\n".join(_lines(report, view)) + "\n"


def verdict_line(report: Report) -> str:
    """``34 blobs, 34 parameters: all ok``, or what is not: ``26 of 34 rows ok, 8 mismatch; 1 of 4 checks differs``."""
    rows = report.all_rows
    verdicts = Counter(row.verdict for row in rows)
    results = Counter(check.result for check in report.checks)
    others = [
        f"{verdicts[verdict]} {verdict}" for verdict in Verdict if verdict is not Verdict.OK and verdicts[verdict]
    ]
    unseen = f" ({_count(results[Result.NOT_SEEN], 'check')} not seen)" if results[Result.NOT_SEEN] else ""
    if report.ok and not report.model_checked:
        groups = len({group for row in rows for group in row.groups})
        return f"{_count(len(report.rows), 'blob')} planned in {_count(groups, 'group')}; no model was checked{unseen}"
    if not report.bound:
        others.insert(0, "judged by role, bound to no layer")
    if others:
        said = f"{verdicts[Verdict.OK]} of {_count(len(rows), 'row')} ok, {', '.join(others)}"
    elif report.differing or not report.ok:
        said = f"{verdicts[Verdict.OK]} of {_count(len(rows), 'row')} ok"
    else:
        said = f"{_count(len(report.rows), 'blob')}, {_count(_parameters(report), 'parameter')}: all ok"
    if report.differing:
        names = ", ".join(check.name for check in report.differing)
        verb = "differs" if len(report.differing) == 1 else "differ"
        said += f"; {len(report.differing)} of {_count(len(report.checks), 'check')} {verb}: {names}"
    whole = sum(not cause.parameters for cause in report.causes)
    if whole and not (others or report.differing):
        said += ", but the optimizer as a whole is not"
    if results[Result.ACCEPTED]:
        said += f"; {_count(results[Result.ACCEPTED], 'check')} accepted"
    return said + unseen


def _lines(report: Report, view: View) -> Iterator[str]:
    width, colour = view.width, view.colour
    for line in wrap(title_of(report), width):
        yield f"{_BOLD}{line}{_OFF}" if colour else line
    yield from wrap(f"{solver_line(report.solver)}; iteration {report.iteration}", width)
    yield ""
    checks = report.differing if view.only_wrong else report.checks
    if checks:
        yield from _checks(checks, width, colour)
        yield ""
    if report.causes:
        yield "What is wrong:"
        for cause in report.causes:
            yield from _cause(cause, width)
        yield ""
    yield from _table([row for row in report.rows if row in report.wrong] if view.only_wrong else report.rows, view)
    unclaimed = [left for left in report.unclaimed if left in report.wrong or not view.only_wrong]
    if unclaimed:
        yield ""
        yield "Parameters that no blob stands for:"
        for left in unclaimed:
            yield from wrap(_left(left), width)
    if not view.only_wrong:
        yield from _fine_print(report, width)
    yield ""
    frozen = [row.name for row in report.all_rows if row.verdict is Verdict.FROZEN]
    if frozen and report.translating:
        names = ", ".join(map(visible, frozen[:3])) + (", ..." if len(frozen) > 3 else "")
        yield from wrap(f"warning: {_count(len(frozen), 'parameter')} that Caffe trains stay frozen: {names}", width)
    line = verdict_line(report)
    yield f"{_GREEN if report.ok else _RED}{line}{_OFF}" if colour else line
    if view.next_step:
        yield f"Next: {visible(view.next_step)}"  # on one line, to be copied


def _cause(cause: Cause, width: int) -> Iterator[str]:
    """What, which, where, and the fix."""
    yield from wrap(f"- {visible(cause.message)}", width)
    names = [visible(name) for name in cause.parameters]
    if len(names) > 1:
        shown = names if len(names) <= 4 else [*names[:3], "...", names[-1]]
        yield from wrap(f"  {', '.join(shown)}", width, "  ")
    if cause.where:
        yield from wrap(f"  At {visible(cause.where)}", width, "  ")
    if cause.fix:
        yield from wrap(f"  Fix: {visible(cause.fix)}", width, "  ")


def _table(rows: Sequence[ReportRow], view: View) -> Iterator[str]:
    """Every row, or a line for those that are alike where there are more than fit."""
    folds = view.folds(rows)
    alike: dict[tuple[str, ...], list[ReportRow]] = {}
    for index, row in enumerate(rows):
        same = f"{row.blob.layer_type} {row.blob.role}" + (" (buffer)" if row.kind is Kind.BUFFER else "")
        alike.setdefault((same if folds else str(index), *_numbers(row)), []).append(row)
    cells = [
        (visible(same), str(len(group)), *numbers)
        if folds
        else (blob_name(group[0].blob), _parameter(group[0]), *numbers)
        for (same, *numbers), group in alike.items()
    ]
    verdicts = [group[0].verdict for group in alike.values()]

    def paint(cell: str, row: int, column: int) -> str:
        if not view.colour or column != len(COLUMNS) - 1:
            return cell
        return f"{_RED if verdicts[row] in WRONG else _GREEN}{cell}{_OFF}"

    if cells:
        yield from layout(FOLDED if folds else COLUMNS, cells, view.width, paint)
    if folds:
        yield from wrap(
            f"{_count(len(rows), 'row')} by role; --full (render(report, full=True)) shows each.", view.width
        )


def title_of(report: Report) -> str:
    """What was held against what."""
    net = report.net or "the net"
    if not report.model_checked:
        return visible(f"{net}, planned (no model was checked)")
    return visible(f"{report.model}, as {net} trains in Caffe")


def _checks(checks: Sequence[Check], width: int, colour: bool) -> Iterator[str]:
    """A line or more for each check: its name, its result, what was seen."""
    name, result = (max(map(len, texts)) + GAP for texts in (["check", *(c.name for c in checks)], Result))
    room = max(width - name - result, 30)
    yield f"{'check':{name}}{'result':{result}}what was seen"
    for check in checks:
        first, *others = wrap(visible(check.text), room, "")
        shown = f"{check.result:{result}}"
        if colour:
            shown = f"{_COLOURS.get(check.result, _GREEN)}{shown}{_OFF}"
        yield f"{check.name:{name}}{shown}{first}".rstrip()
        yield from (" " * (name + result) + line for line in others)


def _numbers(row: ReportRow) -> tuple[str, ...]:
    (lr, decay), (seen_lr, seen_decay) = pair(row.expected), pair(row.observed)
    groups = " ".join(map(str, row.groups)) or "-"
    return multipliers(row), lr, seen_lr, decay, seen_decay, groups, str(row.verdict)


def _parameter(row: ReportRow) -> str:
    return visible(row.parameter or "-") + (" (buffer)" if row.kind is Kind.BUFFER else "")


def _left(left: UnclaimedRow) -> str:
    given = "" if left.lr_mult is None else f", by its user at ({left.lr_mult:g}, {number(left.decay_mult, '-')})"
    lr, decay = pair(left.observed)
    name = f"{visible(left.parameter)} {shape_text(left.shape)}{given}"
    return f"- {name}: seen lr {lr}, decay {decay}; {left.verdict}"


def _fine_print(report: Report, width: int) -> Iterator[str]:
    yield ""
    stated = [row.blob.stated for row in report.rows]
    lr, decay = _counted([one.lr_mult for one in stated]), _counted([one.decay_mult for one in stated])
    how = lr if lr == decay else f"lr_mult {lr}; decay_mult {decay}"
    yield from wrap(f"Multipliers as stated: {how}.", width)
    if any(report.group_names):
        names = listed([f"{index} {visible(name) or '-'}" for index, name in enumerate(report.group_names)], 20)
        yield from wrap(f"Groups: {'; '.join(names)}.", width)
    for note in sorted(report.notes, key=lambda note: note.severity is not Severity.WARNING):
        yield from wrap(note_text(note), width)


def _counted(stated: Sequence[Statement]) -> str:
    return ", ".join(f"{count} {STATED[how]}" for how, count in Counter(stated).items())


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
