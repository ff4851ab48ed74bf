"""A text table: columns as wide as what they hold, names folded where the page ends.

Written here because a table of a thousand rows must not cost more than reading the net that it shows; with a general
library it took half a second.
"""

from __future__ import annotations

import textwrap
import unicodedata
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


def layout(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int, paint: Paint = plain, indent: int = 0
) -> Iterator[str]:
    """The lines of a table at most ``width`` wide, as far as columns that do not fold allow it.

    >>> print(*layout([Column("blob", folds=True), Column("lr", right=True)], [("conv1/0", "0.1")], 40), sep="\\n")
    blob      lr
    conv1/0  0.1
    """
    widths = [max([_cells(column.title), *(_cells(row[k]) for row in rows)]) for k, column in enumerate(columns)]
    excess = sum(widths) + GAP * (len(widths) - 1) + indent - width
    while excess > 0:
        widest = max((k for k, column in enumerate(columns) if column.folds), key=lambda k: widths[k], default=None)
        if widest is None or widths[widest] <= NARROWEST:
            break
        widths[widest] -= 1
        excess -= 1
    yield _line(columns, [column.title for column in columns], widths, indent)
    for index, row in enumerate(rows):
        folded = [_fold(cell, room) for cell, room in zip(row, widths, strict=True)]
        for k in range(max(map(len, folded))):
            cells = [lines[k] if k < len(lines) else "" for lines in folded]
            yield _line(columns, cells, widths, indent, paint, index)


def wrap(text: str, width: int, indent: str = "  ") -> Iterator[str]:
    """A sentence on as many lines as it needs, all but the first indented."""
    lines = textwrap.wrap(text, max(width, 20), subsequent_indent=indent, break_long_words=True, break_on_hyphens=False)
    yield from lines or [""]


def _line(
    columns: Sequence[Column],
    cells: Sequence[str],
    widths: Sequence[int],
    indent: int,
    paint: Paint = plain,
    row: int = -1,
) -> str:
    parts = []
    for k, (column, cell, room) in enumerate(zip(columns, cells, widths, strict=True)):
        space = " " * (room - _cells(cell))
        painted = paint(cell, row, k)
        parts.append(space + painted if column.right else painted + space)
    return (" " * indent + (" " * GAP).join(parts)).rstrip()


def _fold(cell: str, room: int) -> list[str]:
    """A cell in pieces of at most ``room`` columns, cut behind a separator where one is near."""
    pieces = []
    while _cells(cell) > room:
        cut = _fitting(cell, room)
        near = max((cell.rfind(mark, cut // 4, cut) + 1 for mark in " ./_-"), default=0)
        cut = near or cut
        pieces.append(cell[:cut].rstrip(" "))
        cell = cell[cut:].lstrip(" ")
    return [*pieces, cell]


def _fitting(text: str, room: int) -> int:
    used = 0
    for index, c in enumerate(text):
        used += _cells(c)
        if used > room:
            return max(index, 1)
    return len(text)


def _cells(text: str) -> int:
    """How many columns of a terminal a text takes: East Asian characters two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
