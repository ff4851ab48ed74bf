"""Text to fields with their places, without a schema: protobuf's text format, whatever the names mean.

The grammar is the one of protobuf's own parser (``google.protobuf.text_format``), so that every text which it reads is
read here too. Nesting is kept on a stack of our own and every token is looked at once: a file nested a thousand deep
is one clear error, and the cost grows with the length of the text.
"""

from __future__ import annotations

import re
import warnings
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from google.protobuf import text_encoding

from caffe2torch.errors import PrototxtError, SourceLocation
from caffe2torch.files import read_text
from caffe2torch.prototxt.diagnosis import Open, diagnose, too_deep

__all__ = ["MAX_DEPTH", "Block", "Field", "Places", "parse", "read_text", "unquote"]


# The words and marks of protobuf's text format, and where in a file they stand.

# Whitespace and words as google.protobuf.text_format cuts them; but as in C++, no plus before a number. Each repetition
# is possessive: there is one way to split a run of blanks, so that no text costs more than one look at each of its
# characters.
_TOKEN = re.compile(
    r"""(?:\s++|\#[^\n]*+)*+
        (?:([A-Za-z_][0-9A-Za-z_+-]*+)
          |((?:[0-9-]|\.[0-9])[0-9A-Za-z_.+-]*+)
          |("[^"\n\\]*+(?:\\.[^"\n\\]*+)*+"|'[^'\n\\]*+(?:\\.[^'\n\\]*+)*+')
          |(.)
          |(\Z))""",
    re.VERBOSE,
)
WORD, NUMBER, STRING, _MARK, END = range(1, 6)
_SCALARS = (WORD, NUMBER, STRING)
_QUOTES = ("'", '"')


def tokens(text: str) -> Iterator[tuple[int, str, int]]:
    """Kind, text and offset of every token; the last is ``END``, with no text. Any single character is a token.

    >>> list(tokens("pad: 3 # same"))
    [(1, 'pad', 0), (4, ':', 3), (2, '3', 5), (5, '', 13)]
    """
    for match in _TOKEN.finditer(text):
        kind = match.lastindex or END
        yield kind, match[kind], match.start(kind)
        if kind == END:
            return
        if kind == _MARK and match[kind] in _QUOTES:  # a string that is not closed: no text with it can be read on
            yield END, "", len(text)
            return


class Places:
    """Offsets of one text to places. Lines end at a line feed alone, as for protobuf."""

    def __init__(self, text: str, file: str) -> None:
        self.file = file
        self._starts = array("q", [0])
        self._starts.extend(match.end() for match in re.finditer("\n", text))

    def at(self, offset: int) -> SourceLocation:
        """The place of a character.

        >>> Places("pad: 1\\nstride: 2", "net.prototxt").at(7)
        SourceLocation(file='net.prototxt', line=2, column=1)
        """
        line = bisect_right(self._starts, offset)
        return SourceLocation(self.file, line, offset - self._starts[line - 1] + 1)


MAX_DEPTH = 64
"""Blocks inside blocks, at most. Caffe's own messages nest seven deep."""

_CLOSERS = {"{": "}", "<": ">", "[": "]"}
_SEPARATORS = (",", ";")
_EXTENSION = re.compile(r"\[\s*+[A-Za-z_][\w.]*+(?:/[A-Za-z_][\w.]*+)?\s*+\]")


class Table:
    """The fields of a text in the order in which they begin, each block before its inner fields: one column for each
    fact. Text has far more fields than anyone asks for, and an object for each would take a hundred times its size.

    Row 0 is the file itself.

    Attributes:
        names: Of the fields.
        starts: Where each name begins; of a list's element, the element.
        begins: Where the whole field begins: the elements of a list share it, and their end.
        ends: Where it ends, with the separator that may follow it.
        values: Where a scalar's value begins; a block has ``BLOCK`` there.
        stops: Where a scalar's value ends; of a block, the first row that is no longer inside it.
        marks: ``LISTED``; ``LEFT_OUT`` and ``UNKNOWN`` are a schema's (``unknown_fields.py``).
    """

    def __init__(self, text: str, file: str) -> None:
        offsets = "I" if len(text) < BLOCK else "Q"
        self.text = text
        self.places = Places(text, file)
        self.names: list[str] = []
        self.starts, self.begins, self.ends, self.values, self.stops = (array(offsets) for _ in range(5))
        self.marks = bytearray()
        self._named: tuple[int, str, Sequence[int]] = (0, "", ())

    def add(self, name: str, start: int, begin: int, value: int, stop: int, mark: int = 0) -> int:
        """Append a row, which is given back. It ends where its value does."""
        self.names.append(name)
        self.starts.append(start)
        self.begins.append(begin)
        self.ends.append(stop)
        self.values.append(value)
        self.stops.append(stop)
        self.marks.append(mark)
        return len(self.names) - 1

    def value(self, row: int) -> str:
        """A scalar's source text."""
        value = self.text[self.values[row] : self.stops[row]]
        return f"-{next(tokens(value[1:]))[1]}" if DETACHED_SIGN.match(value) else value

    def is_block(self, row: int) -> bool:
        """Whether a row is a block, and no scalar."""
        return self.values[row] == BLOCK

    def inside(self, row: int) -> Iterator[int]:
        """The rows of a block's fields."""
        values, stops = self.values, self.stops
        stop, row = stops[row], row + 1
        while row < stop:
            yield row
            row = stops[row] if values[row] == BLOCK else row + 1

    def named(self, row: int, name: str) -> Sequence[int]:
        """The rows of a block's fields of one name, as far as a schema knows them."""
        if self._named[:2] == (row, name):
            return self._named[2]
        names, marks = self.names, self.marks
        if self.stops[row] - row <= _FEW:
            return [one for one in self.inside(row) if names[one] == name and marks[one] <= LISTED]
        rows = (one for one in self.inside(row) if names[one] == name and marks[one] <= LISTED)
        self._named = row, name, array(self.starts.typecode, rows)  # so that a loop over layers by index stays linear
        return self._named[2]


_FEW = 64  # rows of a block that is searched each time
BLOCK = 0xFFFFFFFF
LISTED, LEFT_OUT, UNKNOWN = 1, 2, 4
DETACHED_SIGN = re.compile(r"-[\s#]")


class Field(NamedTuple):
    """A field as it is written. A list ``[a, b]`` gives one Field per element, an empty one a Field of value ``""``."""

    table: Table
    row: int

    @property
    def name(self) -> str:
        """Its name; of an extension, with the brackets."""
        return self.table.names[self.row]

    @property
    def value(self) -> str | Block:
        """A ``Block``, or a scalar's source text, quotes and escapes and all (``unquote`` reads a string; between a
        minus sign and its number no space is left).
        """
        return Block(self.table, self.row) if self.table.values[self.row] == BLOCK else self.table.value(self.row)

    @property
    def where(self) -> SourceLocation:
        """The place of the name; of a list's element, its own."""
        return self.table.places.at(self.table.starts[self.row])

    @property
    def span(self) -> tuple[int, int]:
        """The whole field in the text, from its name to its separator; the elements of a list share it."""
        return self.table.begins[self.row], self.table.ends[self.row]

    @property
    def listed(self) -> bool:
        """Whether it is an element of a list, or an empty list."""
        return bool(self.table.marks[self.row] & LISTED)


class Block(NamedTuple):
    """The fields between a pair of braces, or of a whole file, in the order in which they stand."""

    table: Table
    row: int

    @property
    def fields(self) -> tuple[Field, ...]:
        """What a schema knows; fresh from ``parse`` that is every field."""
        return tuple(self.each())

    @property
    def unknown(self) -> tuple[Field, ...]:
        """What a schema did not know and took out (``schema.py``)."""
        return tuple(self.each_unknown())

    @property
    def has_unknown(self) -> bool:
        """Whether there is such a field anywhere in the text."""
        return max(self.table.marks, default=0) >= UNKNOWN

    def each(self) -> Iterator[Field]:
        """``fields``, one after the other."""
        table = self.table
        return (Field(table, row) for row in table.inside(self.row) if table.marks[row] <= LISTED)

    def each_unknown(self) -> Iterator[Field]:
        """``unknown``, one after the other."""
        table = self.table
        return (Field(table, row) for row in table.inside(self.row) if table.marks[row] & UNKNOWN)

    def all(self, name: str) -> Fields:
        """Every field of this name, in order.

        >>> block = parse('layer { name: "a" } layer { name: "b" }', "net.prototxt")
        >>> [layer.value.all("name")[0].value for layer in block.all("layer")]
        ['"a"', '"b"']
        """
        return Fields(self.table, self.table.named(self.row, name))


class Fields:
    """Some fields of a text, each made when it is asked for."""

    def __init__(self, table: Table, rows: Sequence[int]) -> None:
        self.table, self.rows = table, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Field:
        return Field(self.table, self.rows[index])

    def __iter__(self) -> Iterator[Field]:
        return (Field(self.table, row) for row in self.rows)


def parse(text: str, file: str) -> Block:
    """Read a prototxt into fields with their places.

    Args:
        text: The whole text.
        file: Its name, for places.

    Returns:
        The fields of the file, as they are written.

    Raises:
        PrototxtError: the text is not in protobuf's text format: where, what was found, what was expected.

    >>> base_lr, = parse("base_lr: 0.1  # rate", "solver.prototxt").fields
    >>> base_lr.name, base_lr.value, str(base_lr.where), base_lr.span
    ('base_lr', '0.1', 'solver.prototxt:1:1', (0, 12))
    """
    return _Reader(text, file).read()


def unquote(value: str) -> str | None:
    r"""What a scalar's source text holds if it is a string (or several side by side), else ``None``.

    >>> unquote('"conv" \'1\\x41\'')
    'conv1A'
    """
    *parts, _ = tokens(value)
    if {kind for kind, _, _ in parts} != {STRING}:
        return None
    with warnings.catch_warnings():  # Python's codec, which protobuf uses, deprecates unknown escapes
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return b"".join(text_encoding.CUnescape(word[1:-1]) for _, word, _ in parts).decode("utf-8", "replace")
        except ValueError:
            return None


@dataclass(slots=True)
class _Frame:
    """A block or list that is still open: the field that it is the value of, and its first row."""

    name: str
    start: int  # of the field's name; of a list's element, its own
    opener: int
    closer: str
    row: int  # of a block, its own; of a list, that of its first element
    takes_scalars: bool = False  # of a list: one without ':' before it holds blocks only


class _Reader:
    """One pass over the tokens. At the bottom of the stack is the file, which the end of the text closes."""

    def __init__(self, text: str, file: str) -> None:
        self.text = text
        self.table = Table(text, file)
        self.tokens = tokens(text)
        self.names: dict[str, str] = {}  # few stand in a file, and often
        self.end = 0  # of the last token that was read
        self.kind, self.word, self.start = next(self.tokens)  # of the next one
        self.stack = [_Frame("", 0, 0, closer="", row=self.table.add("", 0, 0, BLOCK, 0))]

    def read(self) -> Block:
        while True:
            frame = self.stack[-1]
            if frame.closer == "]":
                self._read_element(frame)
            elif self.word != frame.closer:
                self._read_field(frame)
            elif len(self.stack) > 1:
                self._close_block(frame)
            else:
                self.table.stops[0] = len(self.table.names)
                return Block(self.table, 0)

    def _advance(self) -> None:
        self.end = self.start + len(self.word)
        self.kind, self.word, self.start = next(self.tokens)

    def _read_field(self, frame: _Frame) -> None:
        start = self.start
        name = self._read_name(frame)
        colon = self.word == ":"
        if colon:
            self._advance()
        if self.word in _CLOSERS:
            self._open(name, start, start, takes_scalars=colon)
        elif colon and self.kind in _SCALARS:
            row = self.table.add(name, start, start, self.start, self._end_of_scalar())
            if self.word in _SEPARATORS:
                self.table.ends[row] = self._end_of_field()
        else:
            raise self._wrong(f"a value for '{name}'" if colon else f"':' or '{{' after '{name}'")

    def _read_name(self, frame: _Frame) -> str:
        name = self.word
        if self.kind != WORD:
            extension = _EXTENSION.match(self.text, self.start)
            if extension is None:
                raise self._wrong(f"a field or '{frame.closer}'" if frame.closer else "a field")
            name = "".join(extension[0].split())
            while self.word != "]":
                self._advance()
        self._advance()
        return self.names.setdefault(name, name)

    def _end_of_scalar(self) -> int:
        """Read a scalar: one token, a minus and a number, or several strings side by side, which make one."""
        kind, word, start = self.kind, self.word, self.start
        self._advance()
        if word == "-":  # C++'s parser lets it stand apart from its number
            if self.kind not in (WORD, NUMBER) or self.word[0] == "-":
                raise self._wrong("a number after '-'", start)
            self._advance()
        elif kind == STRING:
            while self.kind == STRING:
                self._advance()
        return self.end

    def _read_element(self, frame: _Frame) -> None:
        """The next element of a list with the comma before it, or the list's end."""
        if self.word == "]":
            self._close_list(frame)
            return
        if len(self.table.names) > frame.row:
            if self.word != ",":
                raise self._wrong("',' or ']'")
            self._advance()
        if self.word in ("{", "<"):
            self._open(frame.name, self.start, frame.start, LISTED)
        elif frame.takes_scalars and self.kind in _SCALARS:
            self.table.add(frame.name, self.start, frame.start, self.start, self._end_of_scalar(), LISTED)
        else:
            raise self._wrong("a value" if frame.takes_scalars else f"'{{', or ':' between '{frame.name}' and '['")

    def _open(self, name: str, start: int, begin: int, mark: int = 0, *, takes_scalars: bool = False) -> None:
        if len(self.stack) > MAX_DEPTH:
            place = self.table.places.at
            raise too_deep(place(self.start), MAX_DEPTH, place(self.stack[1].opener))
        row = len(self.table.names) if self.word == "[" else self.table.add(name, start, begin, BLOCK, 0, mark)
        self.stack.append(_Frame(name, start, self.start, _CLOSERS[self.word], row, takes_scalars))
        self._advance()

    def _close_block(self, frame: _Frame) -> None:
        self._advance()
        self.stack.pop()
        self.table.stops[frame.row] = len(self.table.names)
        if self.stack[-1].closer != "]":
            self.table.ends[frame.row] = self._end_of_field()

    def _close_list(self, frame: _Frame) -> None:
        self._advance()
        self.stack.pop()
        table, row, end = self.table, frame.row, self._end_of_field()
        if row == len(table.names):
            table.add(frame.name, frame.start, frame.start, frame.start, frame.start, LISTED)
        while row < len(table.names):
            table.ends[row] = end
            row = table.stops[row] if table.values[row] == BLOCK else row + 1

    def _end_of_field(self) -> int:
        """Where a field ends, with the comma or semicolon that may follow it."""
        if self.word in _SEPARATORS:
            self._advance()
        return self.end

    def _wrong(self, expected: str, at: int | None = None) -> PrototxtError:
        place = self.table.places.at
        opened = [Open(frame.name, self.text[frame.opener], place(frame.opener)) for frame in self.stack[1:]]
        return diagnose(self.text, place, self.start if at is None else at, expected, opened)
