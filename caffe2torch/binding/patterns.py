"""Names as a person types them: one regular expression that means exactly these and no others."""

from __future__ import annotations

import re
from bisect import bisect
from collections.abc import Collection, Iterator, Sequence
from os.path import commonprefix
from typing import NamedTuple

__all__ = ["pattern", "quoted"]


class _Shape(NamedTuple):
    """What names begin and end with."""

    start: str
    end: str

    @property
    def text(self) -> str:
        return f"{re.escape(self.start)}.*{re.escape(self.end)}"


def pattern(names: Collection[str], every: Collection[str]) -> str:
    """A short regular expression that matches exactly ``names`` among ``every``.

    Names that begin or end alike, as no other does, are one alternative; the rest stand for themselves.

    >>> pattern(["a/1", "b/1"], ["a/0", "a/1", "b/0", "b/1", "c/0"])
    '.*/1'
    >>> pattern(["loss1/conv", "loss1/fc", "loss2/fc"], ["loss1/conv", "loss1/fc", "loss2/fc", "loss3/fc"])
    'loss1/.*|loss2/fc'
    """
    wanted = list(dict.fromkeys(names))
    others = [name for name in dict.fromkeys(every) if name not in set(wanted)]
    whole = _common(wanted, _Shape("", ""))
    if len(wanted) > 1 and not any(re.fullmatch(whole.text, name) for name in others):
        return whole.text
    groups: dict[_Shape, list[str]] = {}
    ordered, turned = sorted(others), sorted(name[::-1] for name in others)
    by_end = {end: [name for name in ordered if _index(name) == end] for end in {_index(name) for name in wanted}}
    for name in wanted:
        for shape in _shapes(name, ordered, turned, by_end[_index(name)]):
            groups.setdefault(shape, []).append(name)
    alternatives: dict[str, list[str]] = {}
    left = dict.fromkeys(wanted)
    while left:
        remaining = {shape: [name for name in group if name in left] for shape, group in groups.items()}
        groups = {shape: group for shape, group in remaining.items() if len(group) > 1}
        if not groups:
            break
        shape, covered = max(groups.items(), key=lambda item: len(item[1]))
        alternatives[_common(covered, shape).text] = covered
        for name in covered:
            del left[name]
    alternatives.update((re.escape(name), [name]) for name in left)
    return "|".join(sorted(alternatives, key=lambda text: wanted.index(alternatives[text][0])))


def quoted(text: str) -> str:
    """An argument as a shell takes it, always in quotes.

    >>> print(quoted("conv.*"), quoted("it's"))
    'conv.*' 'it'"'"'s'
    """
    inner = text.replace("'", "'\"'\"'")
    return f"'{inner}'"


def _shapes(name: str, ordered: Sequence[str], turned: Sequence[str], of_end: Sequence[str]) -> Iterator[_Shape]:
    """The shortest beginnings and ends of a name that no other one has."""
    if start := _own_start(name, ordered):
        yield _Shape(start, "")
    if end := _own_start(name[::-1], turned):
        yield _Shape("", end[::-1])
    if (end := _index(name)) and (start := _own_start(name.removesuffix(end), of_end)):
        yield _Shape(start, end)


def _own_start(name: str, ordered: Sequence[str]) -> str:
    place = bisect(ordered, name)
    size = 1 + max((len(_start([name, near])) for near in ordered[max(0, place - 1) : place + 1]), default=0)
    return name[:size] if size <= len(name) else ""


def _start(names: Sequence[str]) -> str:
    return commonprefix(names)  # noqa: RUF071  # no paths


def _common(names: Sequence[str], shape: _Shape) -> _Shape:
    """What all names begin and end with, given that they have this shape."""
    inner = [name[len(shape.start) : len(name) - len(shape.end)] for name in names]
    start = _start(inner)
    end = _start([name[len(start) :][::-1] for name in inner])[::-1]
    return _Shape(shape.start + start, end + shape.end)


def _index(name: str) -> str:
    """The end of a blob's name that says which of its layer's blobs it is."""
    found = re.search(r"/\d+$", name)
    return found[0] if found else ""
