"""Text to fields with their places, without a schema: what protobuf's text format says, whatever the names mean.

The grammar is the one of protobuf's own parser (``google.protobuf.text_format``), so that a text which it reads is
read here too. Nesting is kept on a stack of our own and every token is looked at once: a file nested thousands deep is
one clear error, and the cost grows with the length of the text.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass, field

from caffe2torch.caffe.diagnosis import Open, diagnose, too_deep
from caffe2torch.caffe.textfile import read_text
from caffe2torch.where import Where

__all__ = ["MAX_DEPTH", "Block", "Field", "Places", "parse", "read_text", "unquote"]

MAX_DEPTH = 64
"""Blocks inside blocks, at most. Caffe's own messages nest seven deep."""

# Every alternative is possessive: whitespace before the end of a text can be split in one way only.
_TOKEN = re.compile(
    r"""(?:\s++|\#[^\n]*+)*+
        (?:([A-Za-z_][0-9A-Za-z_+-]*+)
          |((?:[0-9+-]|\.[0-9])[0-9A-Za-z_.+-]*+)
          |("[^"\n\\]*+(?:\\.[^"\n\\]*+)*+"|'[^'\n\\]*+(?:\\.[^'\n\\]*+)*+')
          |([{}<>\[\]:,;])
          |(\Z)
          |(.))""",
    re.VERBOSE,
)
_WORD, _NUMBER, _STRING, _MARK, _END, _STRAY = range(1, 7)
_SCALARS = (_WORD, _NUMBER, _STRING)
_CLOSERS = {"{": "}", "<": ">", "[": "]"}
_EXTENSION = re.compile(r"\[\s*+[A-Za-z_][\w.]*+(?:/[A-Za-z_][\w.]*+)?\s*+\]")


@dataclass(frozen=True, slots=True)
class Field:
    """A field as it is written. A list value ``[a, b]`` gives one Field per element, an empty one a Field of value ``""``.

    ``value`` is the scalar's source text (quotes, escapes and all; ``unquote`` reads a string) or a ``Block``.
    ``where`` is the place of the name, or of the element within a list. ``span`` is the whole field in the text, from its
    name to its separator; the elements of a list share it.
    """

    name: str
    value: str | Block
    where: Where
    span: tuple[int, int]
    listed: bool = False


@dataclass(frozen=True, slots=True)
class Block:
    """The fields between a pair of braces, or of a whole file, in the order in which they stand.

    ``unknown`` holds what a schema did not know and took out (``caffe/schema.py``); fresh from ``parse`` it is empty.
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
        if not self._by_name:
            groups: defaultdict[str, list[Field]] = defaultdict(list)
            for one in self.fields:
                groups[one.name].append(one)
            self._by_name.update((key, tuple(group)) for key, group in groups.items())
        return self._by_name.get(name, ())


class Places:
    """Offsets of one text to places; lines end at a line feed alone, as for protobuf."""

    def __init__(self, text: str, file: str) -> None:
        self.file = file
        self._starts = [0, *(match.end() for match in re.finditer("\n", text))]

    def at(self, offset: int) -> Where:
        """The place of a character.

        >>> Places("a: 1\\nb: 2", "f").at(5)
        Where(file='f', line=2, column=1)
        """
        line = bisect_right(self._starts, offset)
        return Where(self.file, line, offset - self._starts[line - 1] + 1)


@dataclass(slots=True)
class _Frame:
    """A block or list that is still open: the field that it is the value of, and what it holds so far."""

    name: str
    start: int  # of the field's name
    opener: int
    closer: str
    takes_scalars: bool  # of a list: only one after a colon may hold them
    fields: list[Field]
    elements: list[tuple[str | Block, int]]


def parse(text: str, file: str) -> Block:
    """Read a prototxt into fields with their places.

    Raises:
        PrototxtError: the text is not in protobuf's text format; it says where, what was found, what was expected.

    >>> parse("base_lr: 0.1  # rate", "solver.prototxt").fields[0]
    Field(name='base_lr', value='0.1', where=Where(file='solver.prototxt', line=1, column=1), span=(0, 12), listed=False)
    """
    kinds: list[int] = []
    words: list[str] = []
    starts: list[int] = []
    for match in _TOKEN.finditer(text):
        kind = match.lastindex
        assert kind is not None
        kinds.append(kind)
        words.append(match[kind])
        starts.append(match.start(kind))
        if kind == _END:
            break
    places = Places(text, file)
    here = places.at
    root = _Frame("", 0, 0, "", False, [], [])
    stack = [root]
    i = 0

    def wrong(index: int, expected: str) -> Exception:
        opened = [Open(frame.name, text[frame.opener], here(frame.opener)) for frame in stack[1:]]
        return diagnose(text, here, starts[index], expected, opened)

    def push(name: str, start: int, takes_scalars: bool) -> None:
        if len(stack) > MAX_DEPTH:
            raise too_deep(here(starts[i]), MAX_DEPTH, here(stack[1].opener))
        stack.append(_Frame(name, start, starts[i], _CLOSERS[words[i]], takes_scalars, [], []))

    while True:
        frame = stack[-1]
        kind, word = kinds[i], words[i]
        value: str | Block

        if frame.closer == "]":
            if word == "]" and kind == _MARK:
                i = _skip_separator(words, i + 1)
                stack.pop()
                span = (frame.start, starts[i - 1] + len(words[i - 1]))
                elements = frame.elements or [("", frame.start)]
                stack[-1].fields.extend(Field(frame.name, item, here(at), span, True) for item, at in elements)
                continue
            if frame.elements:
                if word != ",":
                    raise wrong(i, "',' or ']'")
                i += 1
                kind, word = kinds[i], words[i]
            if word in ("{", "<"):
                push(frame.name, starts[i], False)
                i += 1
            elif kind in _SCALARS and frame.takes_scalars:
                start = starts[i]
                i = _skip_scalar(kinds, i)
                frame.elements.append((text[start : starts[i - 1] + len(words[i - 1])], start))
            else:
                raise wrong(
                    i, "a value" if frame.takes_scalars else "'{' (a list of numbers or strings needs ':' before it)"
                )
            continue

        if kind == _WORD:
            start, name = starts[i], word
            i += 1
        elif kind == _MARK and word == frame.closer:
            i += 1
            stack.pop()
            block = Block(tuple(frame.fields))
            parent = stack[-1]
            if parent.closer == "]":
                parent.elements.append((block, frame.start))
            else:
                i = _skip_separator(words, i)
                span = (frame.start, starts[i - 1] + len(words[i - 1]))
                parent.fields.append(Field(frame.name, block, here(frame.start), span))
            continue
        elif kind == _END and frame is root:
            return Block(tuple(root.fields))
        elif word == "[" and (extension := _EXTENSION.match(text, starts[i])):
            start, name = starts[i], "".join(extension[0].split())
            while starts[i] < extension.end():
                i += 1
        else:
            raise wrong(i, f"a field or '{frame.closer}'" if frame.closer else "a field")

        colon = words[i] == ":"
        i += colon
        kind, word = kinds[i], words[i]
        if kind == _MARK and word in ("{", "<", "["):
            push(name, start, colon)
            i += 1
        elif colon and kind in _SCALARS:
            begin = starts[i]
            i = _skip_scalar(kinds, i)
            value = text[begin : starts[i - 1] + len(words[i - 1])]
            i = _skip_separator(words, i)
            frame.fields.append(Field(name, value, here(start), (start, starts[i - 1] + len(words[i - 1]))))
        else:
            raise wrong(i, f"a value for '{name}'" if colon else f"':' or '{{' after '{name}'")


def _skip_separator(words: list[str], i: int) -> int:
    """Step over the one comma or semicolon that may follow a field."""
    return i + (words[i] in (",", ";"))


def _skip_scalar(kinds: list[int], i: int) -> int:
    """Step over a scalar: one token, or several strings side by side, which make one."""
    if kinds[i] != _STRING:
        return i + 1
    while kinds[i] == _STRING:
        i += 1
    return i


def unquote(value: str) -> str | None:
    r"""What a scalar's source text says when it is a string, ``None`` when it is not one.

    >>> unquote('"conv" \'1\\x41\'')
    'conv1A'
    """
    from google.protobuf import text_encoding

    parts: list[bytes] = []
    for match in _TOKEN.finditer(value):
        if match.lastindex == _END:
            return b"".join(parts).decode("utf-8", "replace")
        if match.lastindex != _STRING:
            return None
        parts.append(text_encoding.CUnescape(match[_STRING][1:-1]))
    return None
