"""Text to fields with their places, without a schema: protobuf's text format, whatever the names mean.

The grammar is the one of protobuf's own parser (``google.protobuf.text_format``), so that every text which it reads is
read here too. Nesting is kept on a stack of our own and every token is looked at once: a file nested a thousand deep
is one clear error, and the cost grows with the length of the text.
"""

from __future__ import annotations

import re
import warnings
from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass, field

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


def tokenise(text: str) -> tuple[list[int], list[str], list[int]]:
    """Kind, text and offset of every token; the last is ``END``, with no text. Any single character is a token.

    >>> tokenise("pad: 3 # same")
    ([1, 4, 2, 5], ['pad', ':', '3', ''], [0, 3, 5, 13])
    """
    kinds: list[int] = []
    words: list[str] = []
    starts: list[int] = []
    for match in _TOKEN.finditer(text):
        kind = match.lastindex or END
        kinds.append(kind)
        words.append(match[kind])
        starts.append(match.start(kind))
        if kind == END:
            break
        if kind == _MARK and words[-1] in _QUOTES:  # a string that is not closed: no text with it can be read on
            kinds.append(END)
            words.append("")
            starts.append(len(text))
            break
    return kinds, words, starts


class Places:
    """Offsets of one text to places. Lines end at a line feed alone, as for protobuf."""

    def __init__(self, text: str, file: str) -> None:
        self.file = file
        self._starts = [0, *(match.end() for match in re.finditer("\n", text))]

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


@dataclass(frozen=True, slots=True)
class Field:
    """A field as it is written. A list ``[a, b]`` gives one Field per element, an empty one a Field of value ``""``.

    ``value`` is a ``Block``, or a scalar's source text, quotes and escapes and all (``unquote`` reads a string; between
    a minus sign and its number no space is left).
    ``where`` is the place of the name; of a list's element, its own. ``span`` is the whole field in the text, from its
    name to its separator; the elements of a list (``listed``) share it.
    """

    name: str
    value: str | Block
    where: SourceLocation
    span: tuple[int, int]
    listed: bool = False


@dataclass(frozen=True, slots=True)
class Block:
    """The fields between a pair of braces, or of a whole file, in the order in which they stand.

    ``unknown`` holds what a schema did not know and took out (``schema.py``); fresh from ``parse`` it is empty.
    """

    fields: tuple[Field, ...]
    unknown: tuple[Field, ...] = ()
    _by_name: dict[str, tuple[Field, ...]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def all(self, name: str) -> tuple[Field, ...]:
        """Every field of this name, in order.

        >>> block = parse('layer { name: "a" } layer { name: "b" }', "net.prototxt")
        >>> [layer.value.all("name")[0].value for layer in block.all("layer")]
        ['"a"', '"b"']
        """
        if not self._by_name:  # kept, so that a loop over a net's layers by index stays linear
            groups: defaultdict[str, list[Field]] = defaultdict(list)
            for one in self.fields:
                groups[one.name].append(one)
            self._by_name.update((key, tuple(group)) for key, group in groups.items())
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
    kinds, words, _ = tokenise(value)
    if set(kinds) != {STRING, END}:
        return None
    with warnings.catch_warnings():  # Python's codec, which protobuf uses, deprecates unknown escapes
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return b"".join(text_encoding.CUnescape(word[1:-1]) for word in words[:-1]).decode("utf-8", "replace")
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
        self.kinds, self.words, self.starts = tokenise(text)
        self.place = Places(text, file).at
        self.i = 0
        self.stack = [_Frame("", 0, 0, closer="")]

    def read(self) -> Block:
        while True:
            frame = self.stack[-1]
            if frame.closer == "]":
                self._read_element(frame)
            elif self.words[self.i] != frame.closer:
                self._read_field(frame)
            elif len(self.stack) > 1:
                self._close_block(frame)
            else:
                return Block(tuple(frame.fields))

    def _read_field(self, frame: _Frame) -> None:
        start = self.starts[self.i]
        name = self._read_name(frame)
        colon = self.words[self.i] == ":"
        self.i += colon
        if self.words[self.i] in _CLOSERS:
            self._open(name, start, takes_scalars=colon)
        elif colon and self.kinds[self.i] in _SCALARS:
            value = self._read_scalar()
            frame.fields.append(Field(name, value, self.place(start), self._span(start)))
        else:
            raise self._wrong(f"a value for '{name}'" if colon else f"':' or '{{' after '{name}'")

    def _read_name(self, frame: _Frame) -> str:
        name = self.words[self.i]
        if self.kinds[self.i] != WORD:
            extension = _EXTENSION.match(self.text, self.starts[self.i])
            if extension is None:
                raise self._wrong(f"a field or '{frame.closer}'" if frame.closer else "a field")
            name = "".join(extension[0].split())
            while self.words[self.i] != "]":
                self.i += 1
        self.i += 1
        return name

    def _read_scalar(self) -> str:
        """A scalar's source text: one token, a minus and a number, or several strings side by side, which make one."""
        start = self.starts[self.i]
        self.i += 1
        if self.words[self.i - 1] == "-":  # C++'s parser lets it stand apart from its number
            word = self.words[self.i]
            if self.kinds[self.i] not in (WORD, NUMBER) or word[0] == "-":
                self.i -= 1
                raise self._wrong("a number after '-'")
            self.i += 1
            return f"-{word}"
        if self.kinds[self.i - 1] == STRING:
            while self.kinds[self.i] == STRING:
                self.i += 1
        return self.text[start : self._end()]

    def _read_element(self, frame: _Frame) -> None:
        """The next element of a list with the comma before it, or the list's end."""
        if self.words[self.i] == "]":
            self._close_list(frame)
            return
        if frame.elements:
            if self.words[self.i] != ",":
                raise self._wrong("',' or ']'")
            self.i += 1
        start = self.starts[self.i]
        if self.words[self.i] in ("{", "<"):
            self._open(frame.name, start)
        elif frame.takes_scalars and self.kinds[self.i] in _SCALARS:
            frame.elements.append((self._read_scalar(), start))
        else:
            raise self._wrong("a value" if frame.takes_scalars else f"'{{', or ':' between '{frame.name}' and '['")

    def _open(self, name: str, start: int, *, takes_scalars: bool = False) -> None:
        here = self.starts[self.i]
        if len(self.stack) > MAX_DEPTH:
            raise too_deep(self.place(here), MAX_DEPTH, self.place(self.stack[1].opener))
        self.stack.append(_Frame(name, start, here, _CLOSERS[self.words[self.i]], takes_scalars))
        self.i += 1

    def _close_block(self, frame: _Frame) -> None:
        self.i += 1
        self.stack.pop()
        block, parent = Block(tuple(frame.fields)), self.stack[-1]
        if parent.closer == "]":
            parent.elements.append((block, frame.start))
        else:
            parent.fields.append(Field(frame.name, block, self.place(frame.start), self._span(frame.start)))

    def _close_list(self, frame: _Frame) -> None:
        self.i += 1
        self.stack.pop()
        span = self._span(frame.start)
        for value, start in frame.elements or [("", frame.start)]:
            self.stack[-1].fields.append(Field(frame.name, value, self.place(start), span, listed=True))

    def _span(self, start: int) -> tuple[int, int]:
        """Of a field that ends here, with the comma or semicolon that may follow it."""
        if self.words[self.i] in (",", ";"):
            self.i += 1
        return start, self._end()

    def _end(self) -> int:
        """Where the last token that was read ends."""
        return self.starts[self.i - 1] + len(self.words[self.i - 1])

    def _wrong(self, expected: str) -> PrototxtError:
        opened = [Open(frame.name, self.text[frame.opener], self.place(frame.opener)) for frame in self.stack[1:]]
        return diagnose(self.text, self.place, self.starts[self.i], expected, opened)
