"""Where a prototxt cannot be read on: which of the usual accidents it is, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from caffe2torch.errors import PrototxtError
from caffe2torch.where import Where

__all__ = ["Open", "diagnose", "too_deep"]

_CONFLICT = re.compile(r"(?:<{7}|={7}|>{7}|\|{7})(?![<=>|]).*")
_PLACEHOLDER = re.compile(r"\$\{[^}\n]*\}|\$\(\w+\)|\$\w+|@\w+@|\{\{[^}\n]*\}\}|%\(\w+\)\w|%\w+%")
_PROSE = re.compile(r"[^\s:{}]+(?:[ \t]+[^\s:{}]+)+")
_SHOWN = 30


@dataclass(frozen=True, slots=True)
class Open:
    """A bracket that waits for its partner, and the field that it is the value of."""

    name: str
    bracket: str
    where: Where


def too_deep(where: Where, limit: int, outermost: Where) -> PrototxtError:
    """The error for blocks nested deeper than any message of Caffe's."""
    return PrototxtError(
        f"blocks are nested more than {limit} deep",
        where=where,
        expected="at most seven, as Caffe's own messages",
        hint=f"look for a missing '}}' after {outermost.line}:{outermost.column}",
    )


def diagnose(text: str, place: Callable[[int], Where], at: int, expected: str, opened: Sequence[Open]) -> PrototxtError:
    """The error for a text that cannot be read on at offset ``at``, inside ``opened`` brackets (outermost first)."""
    where = place(at)
    begin = at - where.column + 1
    end = text.find("\n", at)
    line = text[begin : end if end >= 0 else len(text)].rstrip()
    rest = line[where.column - 1 :]

    if (conflict := _CONFLICT.match(line)) is not None:
        return PrototxtError(
            "a merge conflict was left in the file",
            where=place(begin),
            found=conflict[0],
            hint="keep one side and delete the lines that begin with <<<<<<<, ======= and >>>>>>>",
        )
    if (placeholder := _placeholder(line, where.column - 1)) is not None:
        return PrototxtError(
            f"the file is a template: {placeholder[0]} stands for something",
            where=place(begin + placeholder.start()),
            expected=expected,
            hint=f"fill in {placeholder[0]} (and every other placeholder) first",
        )
    if rest.startswith(("//", "/*")):
        return PrototxtError(
            f"'{rest[:2]}' does not begin a comment in a prototxt",
            where=where,
            found=_quoted(rest),
            expected=expected,
            hint="Caffe refuses it too; comments begin with '#'",
        )
    if rest.startswith(('"', "'")):
        return PrototxtError(
            "a string that is not closed on its line" if not _closed(rest) else "a string where none can stand",
            where=where,
            found=_quoted(rest),
            expected=f"a closing {rest[0]}" if not _closed(rest) else expected,
        )
    if at >= len(text):
        return _ended(where, expected, opened)
    if rest[0] in "}>]":
        return _closes_wrongly(where, rest[0], expected, opened)
    return PrototxtError(
        "this is not in protobuf's text format",
        where=where,
        found=_quoted(rest),
        expected=expected,
        hint=_hint(rest, line),
    )


def _placeholder(line: str, column: int) -> re.Match[str] | None:
    """The placeholder at or around a column, if a template's author left one there."""
    return next((match for match in _PLACEHOLDER.finditer(line) if match.start() <= column < match.end()), None)


def _closed(rest: str) -> bool:
    return re.match(r"""("|')(?:\\.|(?!\1)[^\\])*\1""", rest) is not None


def _ended(where: Where, expected: str, opened: Sequence[Open]) -> PrototxtError:
    if not opened:
        return PrototxtError("the file ends in the middle of a field", where=where, expected=expected)
    inner = opened[-1]
    return PrototxtError(
        f"the file ends inside '{inner.name} {inner.bracket}', opened at {inner.where.line}:{inner.where.column}",
        where=where,
        found="the end of the file",
        expected=expected,
        hint="a closing bracket is missing somewhere after that place, or the file is cut off",
    )


def _closes_wrongly(where: Where, closer: str, expected: str, opened: Sequence[Open]) -> PrototxtError:
    if not opened:
        return PrototxtError(
            f"'{closer}' closes nothing",
            where=where,
            found=f"'{closer}'",
            expected=expected,
            hint="every block before it is closed already: one closing bracket too many, or one opening bracket too few",
        )
    inner = opened[-1]
    return PrototxtError(
        f"'{closer}' inside '{inner.name} {inner.bracket}', opened at {inner.where.line}:{inner.where.column}",
        where=where,
        found=f"'{closer}'",
        expected=expected,
    )


def _hint(rest: str, line: str) -> str | None:
    if rest[0].isdigit() and "," in line:
        return "a list is written in brackets: [0, 1]"
    if rest[0] == "=":
        return "a value is stated with ':', not with '='"
    if not rest[0].isprintable() or not rest[0].isascii():
        return f"U+{ord(rest[0]):04X} can only stand in a comment or a string"
    if _PROSE.fullmatch(line.strip()):
        return "if the net ends before this line, delete what follows it"
    return None


def _quoted(rest: str) -> str:
    shown = rest if len(rest) <= _SHOWN else rest[: _SHOWN - 3] + "..."
    return ascii(shown) if not shown.isprintable() else f"'{shown}'"
