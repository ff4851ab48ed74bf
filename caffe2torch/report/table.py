"""A text table, laid out by tabulate: columns as wide as what they hold, names folded where the page ends.

A table of a thousand rows must not cost more than reading the net that it shows; tabulate does it in a tenth of the
time that a library for styled terminals takes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Column", "layout", "plain", "wrap"]

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
