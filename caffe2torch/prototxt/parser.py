"""Text to fields with their places, without a schema: protobuf's text format, whatever the names mean.

The grammar is the one of protobuf's own parser (``google.protobuf.text_format``), so that every text which it reads is
read here too. Nesting is kept on a stack of our own and every token is looked at once: a file nested a thousand deep
is one clear error, and the cost grows with the length of the text.
"""

from __future__ import annotations

import re
import sys
import warnings
from array import array
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
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
_EXTENSION = re.compile(r"\[\s*+[A-Za-z_][\w.]*+(?:/[A-Za-z_][\w.]*+)?\s*+\]")


class Field(NamedTuple):
    """A field as it is written. A list ``[a, b]`` gives one Field per element, an empty one a Field of value ``""``.

    ``value`` is a ``Block``, or a scalar's source text, quotes and escapes and all (``unquote`` reads a string; between
    a minus sign and its number no space is left). ``start`` is the offset of the name; of a list's element, its own.
    Text has far more fields than anyone asks the place of: a field keeps offsets alone.
    """

    name: str
    value: str | Block
    places: Places
    start: int
    begin: int
    end: int
    listed: bool = False

    @property
    def where(self) -> SourceLocation:
        """The place of the name; of a list's element, its own."""
        return self.places.at(self.start)

    @property
    def span(self) -> tuple[int, int]:
        """The whole field in the text, from its name to its separator; the elements of a list share it."""
        return self.begin, self.end


_FEW = 16  # fields that are searched one by one


@dataclass(frozen=True, slots=True)
class Block:
    """The fields between a pair of braces, or of a whole file, in the order in which they stand.

    ``unknown`` holds what a schema did not know and took out (``schema.py``); fresh from ``parse`` it is empty.
    """

    fields: tuple[Field, ...]
    unknown: tuple[Field, ...] = ()
    _by_name: dict[str, tuple[Field, ...]] | None = field(default=None, init=False, repr=False, compare=False)

    def all(self, name: str) -> tuple[Field, ...]:
        """Every field of this name, in order.

        >>> block = parse('layer { name: "a" } layer { name: "b" }', "net.prototxt")
        >>> [layer.value.all("name")[0].value for layer in block.all("layer")]
        ['"a"', '"b"']
        """
        if len(self.fields) <= _FEW:
            return tuple(one for one in self.fields if one.name == name)
        if self._by_name is None:  # kept, so that a loop over a net's layers by index stays linear
            groups: defaultdict[str, list[Field]] = defaultdict(list)
            for one in self.fields:
                groups[one.name].append(one)
            object.__setattr__(self, "_by_name", {key: tuple(group) for key, group in groups.items()})
            assert self._by_name is not None
        return self._by_name.get(name, ())


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
    """A block or list that is still open: the field that it is the value of, and what it holds so far."""

    name: str
    start: int  # of the field's name; of a list's element, its own
    opener: int
    closer: str
    takes_scalars: bool = False  # of a list: one without ':' before it holds blocks only
    fields: list[Field] = field(default_factory=list)
    elements: list[tuple[str | Block, int]] = field(default_factory=list)


class _Reader:
    """One pass over the tokens. At the bottom of the stack is the file, which the end of the text closes."""

    def __init__(self, text: str, file: str) -> None:
        self.text = text
        self.places = Places(text, file)
        self.tokens = tokens(text)
        self.end = 0  # of the last token that was read
        self.kind, self.word, self.start = next(self.tokens)  # of the next one
        self.stack = [_Frame("", 0, 0, closer="")]

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
                return Block(tuple(frame.fields))

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
            self._open(name, start, takes_scalars=colon)
        elif colon and self.kind in _SCALARS:
            value = self._read_scalar()
            frame.fields.append(Field(name, value, self.places, start, start, self._end_of_field()))
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
        return sys.intern(name)

    def _read_scalar(self) -> str:
        """A scalar's source text: one token, a minus and a number, or several strings side by side, which make one."""
        kind, word, start = self.kind, self.word, self.start
        self._advance()
        if word == "-":  # C++'s parser lets it stand apart from its number
            if self.kind not in (WORD, NUMBER) or self.word[0] == "-":
                raise self._wrong("a number after '-'", start)
            word = f"-{self.word}"
            self._advance()
        elif kind == STRING:
            while self.kind == STRING:
                self._advance()
            word = self.text[start : self.end]
        return sys.intern(word)  # few words and numbers stand in a file, and often

    def _read_element(self, frame: _Frame) -> None:
        """The next element of a list with the comma before it, or the list's end."""
        if self.word == "]":
            self._close_list(frame)
            return
        if frame.elements:
            if self.word != ",":
                raise self._wrong("',' or ']'")
            self._advance()
        start = self.start
        if self.word in ("{", "<"):
            self._open(frame.name, start)
        elif frame.takes_scalars and self.kind in _SCALARS:
            frame.elements.append((self._read_scalar(), start))
        else:
            raise self._wrong("a value" if frame.takes_scalars else f"'{{', or ':' between '{frame.name}' and '['")

    def _open(self, name: str, start: int, *, takes_scalars: bool = False) -> None:
        if len(self.stack) > MAX_DEPTH:
            raise too_deep(self.places.at(self.start), MAX_DEPTH, self.places.at(self.stack[1].opener))
        self.stack.append(_Frame(name, start, self.start, _CLOSERS[self.word], takes_scalars))
        self._advance()

    def _close_block(self, frame: _Frame) -> None:
        self._advance()
        self.stack.pop()
        block, parent = Block(tuple(frame.fields)), self.stack[-1]
        if parent.closer == "]":
            parent.elements.append((block, frame.start))
        else:
            end = self._end_of_field()
            parent.fields.append(Field(frame.name, block, self.places, frame.start, frame.start, end))

    def _close_list(self, frame: _Frame) -> None:
        self._advance()
        self.stack.pop()
        end = self._end_of_field()
        for value, start in frame.elements or [("", frame.start)]:
            self.stack[-1].fields.append(Field(frame.name, value, self.places, start, frame.start, end, listed=True))

    def _end_of_field(self) -> int:
        """Where a field ends, with the comma or semicolon that may follow it."""
        if self.word in (",", ";"):
            self._advance()
        return self.end

    def _wrong(self, expected: str, at: int | None = None) -> PrototxtError:
        place = self.places.at
        opened = [Open(frame.name, self.text[frame.opener], place(frame.opener)) for frame in self.stack[1:]]
        return diagnose(self.text, place, self.start if at is None else at, expected, opened)
