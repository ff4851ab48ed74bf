"""What learns, and what feeds what: the common shape of a Caffe net and a PyTorch model, without either.

A *wiring* keeps of a net what can be compared with a port of it: **units**, the things that learn as a whole (a
convolution with its bias, a batch normalization with its scale), and **junctions**, where several values become one
(sum, product, maximum, concatenation). Everything else, from ReLU to reshaping, is transparent: a value that passes
through it is still the value of the unit or junction that it came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from caffe2torch.recipe import Shape

__all__ = ["INPUT", "Held", "Node", "Op", "Unit", "UnitKind", "Wiring", "WiringBuilder"]

INPUT = 0
"""The node that stands for whatever comes from outside; all inputs are this one, since their names prove nothing."""


class UnitKind(StrEnum):
    """What a unit computes, as far as it matters for its counterpart on the other side."""

    MAP = "linear map"  # convolution and fully connected alike: a 1x1 convolution is a linear layer
    TRANSPOSED = "transposed convolution"
    NORM = "batch norm"
    SCALE = "scale and shift"
    SLOPE = "slope of PReLU"
    TABLE = "embedding"
    RECURRENT = "recurrent layer"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Held:
    """A tensor of a unit. ``key`` says which: an index into ``TrainingRecipe.blobs``, or a name in the model."""

    role: str
    shape: Shape | None
    key: int | str
    trained: bool = True  # a blob or a parameter; False: a buffer, which no optimizer sees


@dataclass(frozen=True, slots=True)
class Unit:
    """Something that learns as a whole. ``parts`` are the layers or modules that it is made of, ``name`` the first.

    ``shape`` is that of its main tensor in torch's layout; ``groups`` a convolution's. Two units can only be
    counterparts if kind, shape and groups agree; a bias is left out, since ports add and drop biases.
    """

    name: str
    parts: tuple[str, ...]
    kind: UnitKind
    shape: Shape | None
    held: tuple[Held, ...]
    groups: int = 1
    remark: str = ""  # what a message about it should add

    def role(self, role: str) -> Held | None:
        """The tensor of a role, ``None`` if the unit has none."""
        return next((held for held in self.held if held.role == role), None)


class Op(StrEnum):
    """What a node of the wiring does with its inputs."""

    INPUT = "input"
    UNIT = "unit"
    SUM = "sum"
    PRODUCT = "product"
    MAX = "maximum"
    CONCAT = "concatenation"
    JOINT = "joint"  # anything else that needs several values at once

    @property
    def ordered(self) -> bool:
        """Whether exchanging two inputs makes a difference that ports keep."""
        return self in (Op.UNIT, Op.CONCAT)


@dataclass(frozen=True, slots=True)
class Node:
    """One use of a unit (``unit`` is its index), or a junction. ``inputs`` are nodes that stand before it."""

    op: Op
    inputs: tuple[int, ...] = ()
    unit: int | None = None


@dataclass(frozen=True, slots=True)
class Wiring:
    """Units, and the nodes that use them, each after its inputs. A unit that is used twice is shared."""

    units: tuple[Unit, ...]
    nodes: tuple[Node, ...]


@dataclass(slots=True)
class WiringBuilder:
    """Collects a wiring node by node; what joins nothing leaves no trace."""

    units: list[Unit] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=lambda: [Node(Op.INPUT)])

    def unit(self, unit: Unit) -> int:
        """Add a unit; returns its index."""
        self.units.append(unit)
        return len(self.units) - 1

    def use(self, unit: int, inputs: Sequence[int]) -> int:
        """A use of a unit. Further inputs that come straight from outside (labels, indicators) are left out."""
        if len(inputs) > 1:
            inputs = [source for source in inputs if source != INPUT] or [INPUT]
        return self._add(Node(Op.UNIT, tuple(inputs), unit))

    def join(self, op: Op, inputs: Sequence[int]) -> int:
        """A junction, or its only source where all inputs are one. Concatenations of concatenations are flattened."""
        if op is Op.CONCAT:
            inputs = [
                inner
                for source in inputs
                for inner in (self.nodes[source].inputs if self.nodes[source].op is Op.CONCAT else (source,))
            ]
        distinct = sorted(set(inputs))
        if len(distinct) < 2:
            return distinct[0] if distinct else INPUT
        return self._add(Node(op, tuple(inputs) if op.ordered else tuple(distinct)))

    def build(self) -> Wiring:
        """What was collected, as it is; ``rewiring.contracted`` makes one of what belongs together."""
        return Wiring(tuple(self.units), tuple(self.nodes))

    def _add(self, node: Node) -> int:
        self.nodes.append(node)
        return len(self.nodes) - 1
