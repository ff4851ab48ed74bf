"""What the API reference needs to show our docstrings as they are meant: doctests and literal blocks as code."""

from __future__ import annotations

import re
from typing import Any

import griffe

DOCTEST = re.compile(r"(?:^>>> .*(?:\n.+)*(?:\n\n(?=>>> ))?)+", re.MULTILINE)
LITERAL = re.compile(r"::\n\n((?:(?:    .*)?\n)*    .*)")


class Fenced(griffe.Extension):
    """Put fences around doctests, which Markdown would take for quotations, and around reStructuredText's blocks."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of one module, class, function or attribute."""
        del kwargs
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    """A docstring's text with fences.

    >>> print(fenced("Adds.\\n\\n>>> 1 + 1\\n2"))
    Adds.
    <BLANKLINE>
    ```pycon
    >>> 1 + 1
    2
    ```
    """
    text = LITERAL.sub(lambda match: ":\n\n```\n" + re.sub("^    ", "", match[1], flags=re.MULTILINE) + "\n```", text)
    return DOCTEST.sub(lambda match: "```pycon\n" + match[0].rstrip("\n") + "\n```", text)
