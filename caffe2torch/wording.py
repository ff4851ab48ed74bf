"""What several messages write in one way, and what a user may write where a name is asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from typing import TypeVar

from caffe2torch.errors import Caffe2TorchError

__all__ = ["close_name", "did_you_mean", "listed", "matches", "shape_text"]

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


def close_name(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate that a misspelt name was probably meant to be, whatever its case.

    >>> close_name("stpe", ["step", "exp"]), close_name("ADAM", ["Adam"]), close_name("cosine", ["fixed"])
    ('step', 'Adam', None)
    """
    folded = {candidate.casefold(): candidate for candidate in candidates}
    cutoff = 0.7 if len(name) <= _SHORT else 0.85
    close = get_close_matches(name.casefold(), folded, n=1, cutoff=cutoff)
    return folded[close[0]] if close else None


_SHORT = 5  # two letters swapped in "type" leave a likeness of 0.75, in a long name far more


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    """A hint with the names that were probably meant, ``None`` where none is near.

    >>> did_you_mean("conv", ["conv1", "conv2", "ip"])
    "did you mean 'conv2' or 'conv1'?"
    """
    close = get_close_matches(name, [*known], n=3, cutoff=cutoff)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else None


def listed(things: Sequence[_T], most: int, text: Callable[[_T], str] = str) -> list[str]:
    """The first things as text, and how many more there are.

    >>> listed(["a", "b", "c", "d"], 2)
    ['a', 'b', '... and 2 more']
    """
    return [*map(text, things[:most]), *([f"... and {len(things) - most} more"] if len(things) > most else [])]


def shape_text(shape: Sequence[int | None] | None) -> str:
    """A shape as people write it; ``?`` where a size, or all of it, is unknown.

    >>> shape_text((64, None, 3, 3)), shape_text(()), shape_text(None)
    ('64x?x3x3', '()', '?')
    """
    if shape is None:
        return "?"
    return "x".join("?" if size is None else str(size) for size in shape) or "()"
