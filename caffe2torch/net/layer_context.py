"""A layer as the tables of blobs and shapes see it."""

from __future__ import annotations

from dataclasses import dataclass, field

from caffe2torch.net.forks import Dialect
from caffe2torch.net.layer_settings import Settings
from caffe2torch.recipe import Filler, Shape

__all__ = ["BlobRule", "Forced", "Node"]

ZEROS, ONES = Filler(), Filler(value=1.0)


@dataclass(slots=True)
class Node:
    """What a layer's blobs and tops follow from: its settings, the shapes of its bottoms, its net's dialect.

    ``bottom_names`` and ``top_names`` tell in-place layers; ``param_blocks`` counts the ``param`` blocks in the file.
    ``remarks`` collects what was assumed on the way: sentences that the net's notes will say once for all such layers.
    """

    name: str
    type: str
    settings: Settings
    bottoms: tuple[Shape | None, ...]
    bottom_names: tuple[str, ...]
    top_names: tuple[str, ...]
    param_blocks: int
    dialect: Dialect
    remarks: list[str] = field(default_factory=list)

    def bottom(self, index: int = 0) -> Shape | None:
        """The shape of a bottom; unknown where the layer has none of this number."""
        return self.bottoms[index] if index < len(self.bottoms) else None

    def size(self, axis: int) -> int | None:
        """One size of the first bottom, where it is known."""
        shape = self.bottom()
        return None if shape is None or not -len(shape) <= axis < len(shape) else shape[axis]


@dataclass(frozen=True, slots=True)
class Forced:
    """Multipliers that Caffe sets whatever the file says; ``None`` leaves one to the file.

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
