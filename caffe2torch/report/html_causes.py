"""What is wrong, a card for each cause: what and which, where the prototxt states it, why, and the fix as code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from caffe2torch.recipe import SourceLocation, Statement
from caffe2torch.report.html_sources import Place, Places
from caffe2torch.report.wording import pair
from caffe2torch.solver.float32 import number
from caffe2torch.verification.report import Cause, Effective, Report, ReportRow, UnclaimedRow, Verdict

__all__ = ["Card", "NamedRow", "causes"]

Row = ReportRow | UnclaimedRow

_MOST_REASONS = 3  # of rows of one cause that differ in their numbers


@dataclass(frozen=True, slots=True)
class NamedRow:
    """A row that a cause explains: its name and where it stands on the page."""

    name: str
    href: str


@dataclass(frozen=True, slots=True)
class Card:
    """A cause. ``label`` is what links to it are called; ``counts`` is False for what makes no report wrong.

    ``whys`` say what Caffe applies and from which statements it has that, against what was seen.
    """

    id: str
    label: str
    message: str
    rows: tuple[NamedRow, ...]
    places: tuple[Place, ...]
    whys: tuple[str, ...]
    more: int
    fix: str
    code: str
    counts: bool


def causes(report: Report, places: Places) -> tuple[Card, ...]:
    """The report's causes, then what is accepted or only warned of, so that each sentence stands once."""
    named: dict[str, list[tuple[Row, str]]] = {}
    for row, href in _placed(report):
        if row.faults:
            named.setdefault(row.name, []).append((row, href))
    cards = [
        _card(number, cause, [one for name in dict.fromkeys(cause.parameters) for one in named.get(name, [])], places)
        for number, cause in enumerate(report.causes, start=1)
    ]
    wrong = {id(row) for row in report.wrong}
    explained = {row.href for card in cards for row in card.rows}
    others: dict[str, list[tuple[Row, str]]] = {}
    for row, href in (one for found in named.values() for one in found):
        if href not in explained and row.verdict not in (Verdict.OK, Verdict.SKIPPED):
            others.setdefault(f"{row.verdict}: {row.reason}", []).append((row, href))
    for index, (message, found) in enumerate(others.items(), start=len(cards) + 1):
        counts = any(id(row) in wrong for row, _ in found)
        cards.append(_card(index, Cause((), message), found, places, counts=counts))
    return tuple(cards)


def _placed(report: Report) -> Iterator[tuple[Row, str]]:
    """Every row, and the link to it."""
    yield from ((row, f"#row-{index}") for index, row in enumerate(report.rows))
    yield from ((left, f"#left-{index}") for index, left in enumerate(report.unclaimed))


def _card(number: int, cause: Cause, found: Sequence[tuple[Row, str]], places: Places, *, counts: bool = True) -> Card:
    rows = [row for row, _ in found]
    whys = list(dict.fromkeys(_whys(rows)))
    return Card(
        id=f"cause-{number}",
        label=f"{'cause' if counts else 'note'} {number}",
        message=cause.message,
        rows=tuple(NamedRow(row.name, href) for row, href in found),
        places=tuple(dict.fromkeys(map(places.of, _lines(rows)))),
        whys=tuple(whys[:_MOST_REASONS]),
        more=max(len(whys) - _MOST_REASONS, 0),
        fix=cause.fix,
        code=cause.code,
        counts=counts,
    )


def _lines(rows: Iterable[Row]) -> Iterable[SourceLocation]:
    return (row.blob.where for row in rows if isinstance(row, ReportRow))


def _whys(rows: Iterable[Row]) -> Iterable[str]:
    """``Caffe applies lr 0.01 (lr_mult 1, stated) and weight decay 0 (...); seen were lr 0.02 and weight decay 0.``"""
    for row in rows:
        lr, decay = pair(row.expected)
        seen = _seen(row.observed)
        if isinstance(row, UnclaimedRow):
            yield f"No blob of the net stands for it; {seen}."
            continue
        blob, factor = row.blob, "" if row.factor == 1 else f"×{row.factor:g}"
        yield (
            f"Caffe applies lr {lr} (lr_mult {blob.lr_mult:g}{factor}, {_STATED[blob.stated.lr_mult]}) and "
            f"weight decay {decay} (decay_mult {blob.decay_mult:g}, {_STATED[blob.stated.decay_mult]}); {seen}."
        )


def _seen(observed: Effective) -> str:
    """What steps did: a parameter that does not move shows no decay."""
    if observed.lr == 0:
        return "it was not seen to move"
    lr, decay = (
        f"an unknown {what}" if value is None else f"{what} {number(value)}"
        for what, value in (("lr", observed.lr), ("weight decay", observed.weight_decay))
    )
    return f"seen were {lr} and {decay}"


_STATED = {
    Statement.EXPLICIT: "stated",
    Statement.DEFAULTED: "not stated, Caffe’s default",
    Statement.SHARED: "of the layer that shares it",
    Statement.FORCED: "forced by Caffe",
}
