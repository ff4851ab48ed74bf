"""What several messages write in one way, and what a user may write where a name is asked for."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from caffe2torch.errors import Caffe2TorchError
from caffe2torch.recipe import Shape

__all__ = ["did_you_mean", "listed", "matches", "shape_text"]

_T = TypeVar("_T")


def matches(
    key: str, *kinds: Iterable[str], what: str, of: str, error: type[Caffe2TorchError]
) -> list[tuple[str, re.Match[str] | None]]:
    """The names that ``key`` means: the one that it is, else those that match it as a whole as a pattern.

    Args:
        key: What the user wrote: an exact name, or a regular expression.
        kinds: The names there are, by kind. A pattern means names of the first kind of which it matches any.
        what: The option or argument that ``key`` was given to, for the message.
        of: What such a name is the name of, in the singular.
        error: The class to raise.

    Returns:
        Each name with its match, ``None`` where the name is exact.

    Raises:
        Caffe2TorchError: As ``error``, where no name matches, or ``key`` is no regular expression either.

    Example:
        >>> [name for name, _ in matches("c.*", ["conv1", "conv2", "ip"], what="skip", of="layer", error=ValueError)]
        ['conv1', 'conv2']
    """
    names = [list(kind) for kind in kinds]
    known = list(dict.fromkeys(name for kind in names for name in kind))
    if key in known:
        return [(key, None)]
    try:
        pattern = re.compile(key)
    except re.error as problem:
        raise error(
            f"{what}: no {of} is called {key!r}, and it is no regular expression: {problem}",
            hint=did_you_mean(key, known) or "write an exact name, or a pattern such as 'conv_.*'",
        ) from None
    for kind in names:
        found = [(name, match) for name in kind if (match := pattern.fullmatch(name))]
        if found:
            return [*found]
    close = did_you_mean(key, known)
    there = f"there are: {', '.join(listed(next(filter(None, names), []), 8, repr)) or 'none'}"
    raise error(
        f"{what}: no {of} is called {key!r}, and it matches none as a pattern",
        hint=f"{close or there} (a pattern is a regular expression for the whole name: 'conv.*', say)",
    )


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    """A hint with the names that were probably meant, ``None`` where none is near.

    >>> did_you_mean("conv", ["conv1", "conv2", "ip"])
    "did you mean 'conv2' or 'conv1'?"
    """
    close = difflib.get_close_matches(name, [*known], 3, cutoff)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else None


def listed(things: Sequence[_T], most: int, text: Callable[[_T], str] = str) -> list[str]:
    """The first things as text, and how many more there are.

    >>> listed(["a", "b", "c", "d"], 2)
    ['a', 'b', '... and 2 more']
    """
    return [*map(text, things[:most]), *([f"... and {len(things) - most} more"] if len(things) > most else [])]


def shape_text(shape: Shape | None) -> str:
    """A shape as people write it.

    >>> shape_text((64, None, 3, 3)), shape_text(()), shape_text(None)
    ('64x?x3x3', '()', 'unknown')
    """
    if shape is None:
        return "unknown"
    return "x".join("?" if size is None else str(size) for size in shape) or "()"
