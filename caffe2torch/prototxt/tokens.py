"""The words and marks of protobuf's text format, and where in a file they stand."""

from __future__ import annotations

import re
from bisect import bisect_right

from caffe2torch.where import Where

__all__ = ["END", "NUMBER", "STRING", "WORD", "Places", "tokenise"]

# Whitespace and words as google.protobuf.text_format cuts them. Every repetition is possessive: there is one way to
# split a run of blanks, so that no text costs more than one look at each of its characters.
_TOKEN = re.compile(
    r"""(?:\s++|\#[^\n]*+)*+
        (?:([A-Za-z_][0-9A-Za-z_+-]*+)
          |((?:[0-9+-]|\.[0-9])[0-9A-Za-z_.+-]*+)
          |("[^"\n\\]*+(?:\\.[^"\n\\]*+)*+"|'[^'\n\\]*+(?:\\.[^'\n\\]*+)*+')
          |(.)
          |(\Z))""",
    re.VERBOSE,
)
WORD, NUMBER, STRING, _MARK, END = range(1, 6)


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
    return kinds, words, starts


class Places:
    """Offsets of one text to places. Lines end at a line feed alone, as for protobuf."""

    def __init__(self, text: str, file: str) -> None:
        self.file = file
        self._starts = [0, *(match.end() for match in re.finditer("\n", text))]

    def at(self, offset: int) -> Where:
        """The place of a character.

        >>> Places("pad: 1\\nstride: 2", "net.prototxt").at(7)
        Where(file='net.prototxt', line=2, column=1)
        """
        line = bisect_right(self._starts, offset)
        return Where(self.file, line, offset - self._starts[line - 1] + 1)
