"""What a comparison of layers gives: the settings that differ, and how much was seen."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from caffe2torch.recipe import SourceLocation

__all__ = ["Comparison", "Difference"]


@dataclass(frozen=True, slots=True)
class Difference:
    """A setting that the model has otherwise.

    Attributes:
        setting: Its name: ``stride``.
        yours: What the model has, as text: ``stride 1``.
        caffes: What the net has: ``2``.
        module: The module; empty for a call of a function.
        layer: The net's layer.
        where: The layer's place.
        effect: What it does to a size.
        at: The node that it belongs to, or leads to.
    """

    setting: str
    yours: str
    caffes: str
    module: str
    layer: str
    where: SourceLocation | None
    effect: str = ""
    at: int | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """The name by which it is accepted: ``features.3.stride``."""
        return f"{self.module or self.layer}.{self.setting.replace(' ', '_')}"

    def matches(self, pattern: str) -> bool:
        """Whether a name or a regular expression means it; the layer's name is as good as the module's."""
        names = (self.name, f"{self.layer}.{self.setting.replace(' ', '_')}")
        return pattern in names or any(re.fullmatch(pattern, name) for name in names)

    def to_dict(self) -> dict[str, object]:
        """As JSON has it."""
        return {
            "name": self.name,
            "setting": self.setting,
            "module": self.module or None,
            "layer": self.layer,
            "yours": self.yours,
            "caffes": self.caffes,
            "effect": self.effect,
            "where": None if self.where is None else str(self.where),
        }


@dataclass(slots=True)
class Comparison:
    """What was found.

    Attributes:
        differences: What differs.
        seen: The layers that were compared.
        unseen: Those that could not be.
        unread: Where something is computed that could not be read, in words.
        notes: What is no difference and worth knowing.
        averages: Of batch norms, how much of each batch your moving average takes, and Caffe's.
    """

    differences: list[Difference] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    unseen: dict[str, None] = field(default_factory=dict)
    unread: dict[str, None] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)
    averages: list[tuple[float, float]] = field(default_factory=list)
