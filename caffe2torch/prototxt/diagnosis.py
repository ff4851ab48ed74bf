"""Where a prototxt cannot be read on: which of the usual accidents it is, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from caffe2torch.errors import PrototxtError, SourceLocation
from caffe2torch.prototxt.templates import TemplateError

__all__ = ["Open", "diagnose", "shown", "too_deep"]

_CONFLICT = re.compile(r"(?:<{7}|={7}|>{7}|\|{7})(?![<=>|])")
_PLACEHOLDER = re.compile(r"\$\{[^}\n]*\}|\$\(\w+\)|\$\w+|@\w+@|\{\{[^}\n]*\}\}|%\(\w+\)\w|%\w+%")
_STRING = re.compile(r"""(["'])(?:\\.|(?!\1)[^\\])*\1""")
_PROSE = re.compile(r"[^\s:{}<>\[\]]+(?:[ \t]+[^\s:{}<>\[\]]+)+")
_LONGEST = 40  # characters of a line that are shown


@dataclass(frozen=True, slots=True)
class Open:
    """A bracket that waits for its partner, and the field that it is the value of."""

    name: str
    bracket: str
    where: SourceLocation

    def __str__(self) -> str:
        return f"'{self.name} {self.bracket}' of {self.where.line}:{self.where.column}"


def too_deep(where: SourceLocation, limit: int, outermost: SourceLocation) -> PrototxtError:
    """The error for blocks nested deeper than any message of Caffe's."""
    return PrototxtError(
        f"blocks are nested more than {limit} deep",
        where=where,
        expected="at most seven, as in Caffe's own messages",
        hint=f"the outermost of them opens at {outermost.line}:{outermost.column}",
    )


def diagnose(
    text: str, place: Callable[[int], SourceLocation], at: int, expected: str, opened: Sequence[Open]
) -> PrototxtError:
    """The error for a text that cannot be read on at offset ``at``, inside ``opened`` brackets, outermost first."""
    where = place(at)
    begin = at - (where.column - 1)
    line = text[begin:].split("\n", 1)[0].rstrip()
    rest = line[where.column - 1 :]

    if _CONFLICT.match(line):
        return PrototxtError(
            "a merge conflict was left in the file",
            where=place(begin),
            found=f"'{shown(line)}'",
            hint="keep one side and delete the lines that begin with <<<<<<<, ======= and >>>>>>>",
        )
    for placeholder in _PLACEHOLDER.finditer(line):
        if placeholder.start() < where.column <= placeholder.end():
            return TemplateError(
                "the file is a template",
                where=place(begin + placeholder.start()),
                found=f"the placeholder {placeholder[0]}",
                expected=expected,
                hint=f"fill in {placeholder[0]} and every other placeholder first",
            )
    if rest.startswith(("//", "/*")):
        return PrototxtError(
            f"'{rest[:2]}' begins no comment in a prototxt",
            where=where,
            found=f"'{shown(rest)}'",
            expected=expected,
            hint="Caffe refuses this too: comments begin with '#'",
        )
    if rest.startswith(("'", '"')) and _STRING.match(rest) is None:
        return PrototxtError(
            "a string is not closed on its line", where=where, found=f"'{shown(rest)}'", expected=f"a closing {rest[0]}"
        )
    if at >= len(text):
        return _ends(where, expected, opened)
    if rest[0] in "}>]":
        return _closes(where, rest[0], expected, opened)
    return PrototxtError(
        "this is not in protobuf's text format",
        where=where,
        found=f"'{shown(rest)}'",
        expected=expected,
        hint=_hint(rest, line),
    )


def _ends(where: SourceLocation, expected: str, opened: Sequence[Open]) -> PrototxtError:
    return PrototxtError(
        f"the file ends inside {opened[-1]}" if opened else "the file ends inside a field",
        where=where,
        found="the end of the file",
        expected=expected,
        hint="the file is cut off, or a closing bracket is missing" if opened else "is the file cut off?",
    )


def _closes(where: SourceLocation, closer: str, expected: str, opened: Sequence[Open]) -> PrototxtError:
    return PrototxtError(
        f"a '{closer}' stands inside {opened[-1]}" if opened else f"a '{closer}' closes nothing",
        where=where,
        found=f"'{closer}'",
        expected=expected,
        hint=None if opened else "one closing bracket too many, or an opening one is missing before it",
    )


def _hint(rest: str, line: str) -> str | None:
    first = rest[0]
    if first.isdigit() and "," in line:
        return "a list stands in brackets: [0, 1]"
    if first in "\"'":
        return "names stand without quotes"
    if first == "=":
        return "':' stands between a name and its value"
    if not first.isprintable() or not first.isascii():
        return f"U+{ord(first):04X} can stand only in comments and strings"
    if _PROSE.fullmatch(line.strip()):
        return "if the prototxt ends before this line, delete what follows"
    return None


def shown(text: str) -> str:
    """A piece of a file as it can stand in an error: cut where it is long, escaped where it does not print."""
    cut = text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
    return cut if cut.isprintable() else ascii(cut)[1:-1]
