"""What the rules of a layer type take and give: the layer as they see it, its settings, a row of the tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from caffe2torch.net.forks import Dialect
from caffe2torch.net.shape_arithmetic import MisfitError
from caffe2torch.recipe import Filler, Shape

__all__ = [
    "ONES",
    "ZEROS",
    "BlobRule",
    "BlobRules",
    "Forced",
    "LayerType",
    "Node",
    "Settings",
    "TopRule",
    "flag",
    "integer",
    "integers",
    "losses",
    "nested",
    "no_blobs",
    "number",
    "same",
    "text",
]

Settings = Mapping[str, object]
ZEROS, ONES = Filler(), Filler(value=1.0)


@dataclass(slots=True)
class Node:
    """What a layer's blobs and tops follow from.

    Attributes:
        name: The layer's name.
        type: Its type, as today's Caffe spells it.
        settings: Its settings (``layer_settings``).
        bottoms: The shapes of its bottoms, ``None`` where nothing is known.
        bottom_names: Their names; with ``top_names`` they show which tops are written in place.
        top_names: The names of its tops.
        param_blocks: How many ``param`` blocks the file has for it.
        dialect: The forks of Caffe that the net shows signs of.
        assumptions: What a rule assumed: sentences for the net's notes.
    """

    name: str
    type: str
    settings: Settings
    bottoms: tuple[Shape | None, ...]
    bottom_names: tuple[str, ...]
    top_names: tuple[str, ...]
    param_blocks: int
    dialect: Dialect
    assumptions: list[str] = field(default_factory=list)

    def bottom(self, index: int = 0) -> Shape | None:
        """The shape of a bottom; unknown where the layer has none of this number."""
        return self.bottoms[index] if index < len(self.bottoms) else None

    def size(self, axis: int) -> int | None:
        """One size of the first bottom, where it is known."""
        shape = self.bottom()
        return None if shape is None or not -len(shape) <= axis < len(shape) else shape[axis]


@dataclass(frozen=True, slots=True)
class Forced:
    """Multipliers that Caffe sets whatever the file states; ``None`` leaves one to the file.

    ``refuses``: Caffe stops at a ``param`` block whose ``lr_mult`` is another one, instead of overriding it.
    """

    lr_mult: float | None = None
    decay_mult: float | None = None
    refuses: bool = False


@dataclass(frozen=True, slots=True)
class BlobRule:
    """A blob of a layer: its role and shape, the setting that fills it (or else ``default``), forced multipliers."""

    role: str
    shape: Shape | None
    filler: str = ""
    default: Filler | None = ZEROS
    forced: Forced | None = None


BlobRules = Callable[[Node], tuple[BlobRule, ...] | None]
"""The learnable blobs of a layer in Caffe's order; ``None`` where only its own code knows them."""

TopRule = Callable[[Node], tuple[Shape | None, ...]]
"""The shapes of the tops; tops beyond those it gives are unknown."""


@dataclass(frozen=True, slots=True)
class LayerType:
    """A row of the tables of layer types.

    Attributes:
        blobs: The rule for its learnable blobs; ``None`` where only its own code knows them.
        tops: The rule for the shapes of its tops; ``None`` where none is known.
        settings: Its parameter message without ``_param`` and underscores, where it is not named after the type.
        counts_outputs: Whether Caffe refuses the layer without a ``num_output``.
    """

    blobs: BlobRules | None = None
    tops: TopRule | None = None
    settings: str = ""
    counts_outputs: bool = False


# Rules that many types have.


def no_blobs(node: Node) -> tuple[BlobRule, ...]:  # noqa: ARG001  # a rule takes the layer
    """A layer that learns nothing."""
    return ()


def same(node: Node) -> tuple[Shape | None, ...]:
    """Every top is shaped like the first bottom."""
    return (node.bottom(),) * len(node.top_names)


def losses(node: Node) -> tuple[Shape | None, ...]:
    """One number; what a second top is, each loss decides for itself."""
    return ((),) if node.top_names else ()


# A layer's settings, each read as what it should be.


def integer(settings: Settings, name: str, default: int | None = None) -> int:
    """A whole number that a layer states, or the default. Raises ``MisfitError`` if it is missing or something else."""
    value = settings.get(name, default)
    if value is None:
        raise MisfitError(f"{name} is missing")
    if isinstance(value, bool) or not isinstance(value, int):
        raise MisfitError(f"{name} should be one whole number, not {value!r}")
    return value


def integers(settings: Settings, name: str) -> tuple[int, ...]:
    """The whole numbers of a field that may stand more than once."""
    value = settings.get(name, ())
    values = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in values):
        raise MisfitError(f"{name} should be whole numbers, not {value!r}")
    return tuple(values)


def number(settings: Settings, name: str, default: float) -> float:
    """A number of any kind."""
    value = settings.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise MisfitError(f"{name} should be a number, not {value!r}")
    return value


def flag(settings: Settings, name: str, default: bool = False) -> bool:
    """A switch; 0 and 1 are read as false and true."""
    value = settings.get(name, default)
    if not isinstance(value, int) or value not in (0, 1):
        raise MisfitError(f"{name} should be true or false, not {value!r}")
    return bool(value)


def text(settings: Settings, name: str) -> str:
    """A string or the name of an enum value; empty where there is none."""
    value = settings.get(name, "")
    return value if isinstance(value, str) else ""


def nested(settings: Settings, name: str) -> Settings:
    """The settings of an inner message; empty where there is none."""
    value = settings.get(name)
    return value if isinstance(value, Mapping) else {}
