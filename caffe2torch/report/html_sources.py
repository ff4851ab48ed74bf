"""The prototxts' text for the page: every line numbered, those that matter linked to what they led to, and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from caffe2torch.recipe import Source, SourceLocation
from caffe2torch.report.wording import visible

__all__ = ["Line", "Link", "Listing", "Place", "Places", "listings"]

_MOST_LINKS = 12  # on one line; a prototxt written on a single line would else repeat the whole report
_LONG = 400  # lines; a longer file is folded away until it is asked for


@dataclass(frozen=True, slots=True)
class Place:
    """A place as the page shows it; ``href`` leads to its line, where the page has the file."""

    text: str
    href: str | None


@dataclass(frozen=True, slots=True)
class Link:
    """From a line of a file to something on the page that it led to."""

    where: SourceLocation
    label: str
    href: str


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a file; ``id`` is empty where nothing leads to it."""

    text: str
    id: str
    links: tuple[Link, ...]
    more: int


@dataclass(frozen=True, slots=True)
class Listing:
    """A file, whole."""

    file: str
    id: str
    lines: tuple[Line, ...]
    folded: bool


class Places:
    """Where in the page's listings a place of a file is.

    >>> places = Places([Source("net.prototxt", "name: 'x'")])
    >>> places.of(SourceLocation("net.prototxt", 1, 7))
    Place(text='net.prototxt:1', href='#file-0-1')
    >>> places.of(SourceLocation("other.prototxt", 1, 7)).href is None
    True
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._files = {source.file: index for index, source in reversed(list(enumerate(sources)))}
        self._lengths = {source.file: len(_split(source.text)) for source in reversed(sources)}

    def line_id(self, where: SourceLocation | None) -> str:
        """The id of the line; empty where the page does not have it."""
        if where is None or not 1 <= where.line <= self._lengths.get(where.file, 0):
            return ""
        return f"file-{self._files[where.file]}-{where.line}"

    def of(self, where: SourceLocation | None, *, short: bool = False) -> Place:
        """The place with a link to it, without the file's folder; ``short`` leaves the file to the reader, too."""
        if where is None:
            return Place("", None)
        line = self.line_id(where)
        if not line:
            return Place(str(where), None)
        return Place(str(where.line) if short else f"{PurePath(where.file).name}:{where.line}", f"#{line}")


def listings(sources: Sequence[Source], links: Iterable[Link]) -> tuple[Listing, ...]:
    """Every source with the links of its lines. A file that stands there twice is shown once."""
    places = Places(sources)
    by_line: dict[str, dict[tuple[str, str], Link]] = {}
    for link in links:
        by_line.setdefault(places.line_id(link.where), {}).setdefault((link.label, link.href), link)
    shown: list[Listing] = []
    for index, source in enumerate(sources):
        if any(listing.file == source.file for listing in shown):
            continue
        lines = []
        for number, text in enumerate(_split(source.text), start=1):
            identity = f"file-{index}-{number}"
            here = tuple(by_line.get(identity, {}).values())
            lines.append(
                Line(_printable(text), identity if here else "", here[:_MOST_LINKS], max(len(here) - _MOST_LINKS, 0))
            )
        shown.append(Listing(source.file, f"file-{index}", tuple(lines), folded=len(lines) > _LONG))
    return tuple(shown)


def _split(text: str) -> list[str]:
    """Lines as places count them: by line feeds alone."""
    lines = text.split("\n")
    return lines[:-1] if lines[-1] == "" and len(lines) > 1 else lines


def _printable(text: str) -> str:
    return visible(text.removesuffix("\r").expandtabs(8))
