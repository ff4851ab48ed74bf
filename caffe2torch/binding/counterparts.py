"""A counterpart: blobs of the net, the module of the model that holds them, and the evidence for it."""

from __future__ import annotations

from dataclasses import dataclass, field

from caffe2torch.binding.graph import Unit

__all__ = ["Counterpart", "Findings", "How"]


class How:
    """Evidence, in words for a report."""

    SAID = "the user's names"
    EQUAL = "equal names"
    ALIKE = "names equal but for spelling"
    LEFT = "what names left of units that are alike"
    PLACE = "structure"
    NEARBY = "structure nearby"
    SKIPPED = "skipped by the user"


@dataclass(frozen=True, slots=True)
class Counterpart:
    """Blobs of a layer (or of several that are one unit) and the module that holds them, by which evidence.

    ``groups`` are the layer's: sizes can agree where they do not.
    """

    layer: str
    blobs: tuple[int, ...]
    module: Unit
    how: str
    rivals: tuple[Unit, ...] = ()
    groups: int = 1


@dataclass(slots=True)
class Findings:
    """Counterparts, and what was seen on the way.

    ``ties``: units of the net that nothing tells apart, with the modules that they could be. ``torn``: units of the
    net for which two claims lead to different modules. ``warnings``: what a person should read.
    """

    found: list[Counterpart] = field(default_factory=list)
    ties: list[tuple[tuple[Unit, ...], tuple[Unit, ...]]] = field(default_factory=list)
    torn: dict[str, tuple[str, ...]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    agree: bool = False  # the wirings are equal as a whole, at least but for sizes
