"""What learns, and what feeds what: the common shape of a Caffe net and a PyTorch model, without either.

A *wiring* keeps of a net what can be compared with a port of it: **units**, the things that learn as a whole (a
convolution with its bias, a batch normalization with its scale), and **junctions**, where several values become one
(sum, product, maximum, concatenation). Everything else, from ReLU to reshaping, is transparent: a value that passes
through it is still the value of the unit or junction that it came from.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from caffe2torch.recipe import Shape

if TYPE_CHECKING:
    from caffe2torch.binding.computation import Computation

__all__ = [
    "INPUT",
    "Node",
    "Op",
    "TensorReference",
    "Unit",
    "UnitKind",
    "Wiring",
    "WiringBuilder",
    "rebuild",
    "without_units",
]

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
class TensorReference:
    """A tensor of a unit. ``key`` is an index into ``NetRecipe.blobs``, or a name in the model."""

    role: str
    shape: Shape | None
    key: int | str
    trained: bool = True  # a blob or a parameter; False: a buffer, which no optimizer sees
    transposed: bool | None = False  # stores inputs x outputs, where torch has outputs x inputs; None: not known

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape of a tensor of the model, whose sizes are all known."""
        return tuple(size or 0 for size in self.shape or ())


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
    tensors: tuple[TensorReference, ...]
    groups: int = 1
    remark: str = ""  # what a message about it should add

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape of a unit of the model, whose sizes are all known."""
        return tuple(size or 0 for size in self.shape or ())

    def role(self, role: str) -> TensorReference | None:
        """The tensor of a role, ``None`` if the unit has none."""
        return next((tensor for tensor in self.tensors if tensor.role == role), None)


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
    """Units, and the nodes that use them, each after its inputs. A unit that is used twice is shared.

    ``computation`` is what was seen to be computed, where a forward pass was followed.
    """

    units: tuple[Unit, ...]
    nodes: tuple[Node, ...]
    computation: Computation | None = field(default=None, compare=False, repr=False)


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
        """Add a use of a unit. Further inputs that come straight from outside (labels, indicators) are left out."""
        if len(inputs) > 1:
            inputs = [source for source in inputs if source != INPUT] or [INPUT]
        return self._add(Node(Op.UNIT, tuple(inputs), unit))

    def join(self, op: Op, inputs: Sequence[int]) -> int:
        """Add a junction; returns its only source where all inputs are one.

        Nested concatenations are flattened, and no input counts twice, so that leaving units out before or after this
        makes no difference.
        """
        if op is Op.CONCAT:
            inputs = [
                inner
                for source in inputs
                for inner in (self.nodes[source].inputs if self.nodes[source].op is Op.CONCAT else (source,))
            ]
        distinct = list(dict.fromkeys(inputs))
        if len(distinct) < 2:
            return distinct[0] if distinct else INPUT
        return self._add(Node(op, tuple(distinct if op.ordered else sorted(distinct))))

    def build(self) -> Wiring:
        """The wiring, with what belongs together made one: sums of sums, and batch norms with their scales."""
        return merge_norms(merge_sums(Wiring(tuple(self.units), tuple(self.nodes))))

    def _add(self, node: Node) -> int:
        self.nodes.append(node)
        return len(self.nodes) - 1


# Wirings made from wirings: without some units, with what belongs together made one.


def consumers(wiring: Wiring) -> list[list[int]]:
    """For each node the nodes that take it as an input."""
    users: list[list[int]] = [[] for _ in wiring.nodes]
    for number, node in enumerate(wiring.nodes):
        for source in dict.fromkeys(node.inputs):
            users[source].append(number)
    return users


def rebuild(wiring: Wiring, place: Callable[[WiringBuilder, Node, tuple[int, ...]], int]) -> Wiring:
    """The wiring with every node placed anew: ``place`` gets the builder, the node and its inputs' new numbers.

    Units keep their indices; those that no node uses any more stay listed.
    """
    builder = WiringBuilder(units=list(wiring.units))
    new = [INPUT]
    for node in wiring.nodes[1:]:
        new.append(place(builder, node, tuple(new[source] for source in node.inputs)))
    return Wiring(tuple(builder.units), tuple(builder.nodes))


def without_units(wiring: Wiring, left_out: Collection[int]) -> Wiring:
    """The wiring without some units (indices): their nodes are transparent to their first input.

    A unit without any, as a layer that is nothing but a parameter, becomes an input.
    """
    kept = [number for number in range(len(wiring.units)) if number not in left_out]
    index = {old: new for new, old in enumerate(kept)}
    placed = rebuild(
        wiring,
        lambda builder, node, inputs: (
            builder.join(node.op, inputs)
            if node.unit is None
            else (builder.use(index[node.unit], inputs) if node.unit in index else (*inputs, INPUT)[0])
        ),
    )
    return Wiring(tuple(wiring.units[number] for number in kept), merge_sums(placed).nodes)


def merge_sums(wiring: Wiring) -> Wiring:
    """``(a + b) + c`` is ``a + b + c`` where nothing else reads ``a + b``; products and the rest alike."""
    users = consumers(wiring)
    nodes = wiring.nodes
    merged = {
        number: users[number][0]
        for number, node in enumerate(nodes)
        if node.op in (Op.SUM, Op.PRODUCT, Op.MAX, Op.JOINT)
        and len(users[number]) == 1
        and nodes[users[number][0]].op is node.op
    }
    if not merged:
        return wiring
    parts: dict[int, list[int]] = {}
    builder = WiringBuilder(units=list(wiring.units))
    new = [INPUT]
    for number, node in enumerate(nodes[1:], start=1):
        inputs = [part for source in node.inputs for part in parts.get(source, [new[source]])]
        if number in merged:
            parts[number] = inputs
            new.append(INPUT)  # never read: its only consumer takes the parts
        else:
            new.append(builder.use(node.unit, inputs) if node.unit is not None else builder.join(node.op, inputs))
    return Wiring(wiring.units, tuple(builder.nodes))


def merge_norms(wiring: Wiring) -> Wiring:
    """Make one unit of a normalization without scale and the scale that follows it, which is torch's BatchNorm."""
    users = consumers(wiring)
    following: dict[int, set[int | None]] = {}  # norm -> the units that its uses feed; None where that is not one scale
    leading: dict[int, set[int | None]] = {}
    for number, node in enumerate(wiring.nodes):
        if node.unit is None:
            continue
        unit = wiring.units[node.unit]
        if unit.kind is UnitKind.NORM and unit.role("scale") is None and unit.role("shift") is None:
            after = wiring.nodes[users[number][0]] if len(users[number]) == 1 else None
            scale = after.unit if after and after.unit is not None and len(after.inputs) == 1 else None
            is_scale = scale is not None and wiring.units[scale].kind is UnitKind.SCALE
            following.setdefault(node.unit, set()).add(scale if is_scale else None)
        if unit.kind is UnitKind.SCALE:
            leading.setdefault(node.unit, set()).add(
                wiring.nodes[node.inputs[0]].unit if len(node.inputs) == 1 else None
            )
    merged: dict[int, int] = {}  # scale -> norm
    for norm, scales in following.items():
        scale = next(iter(scales))
        if len(scales) == 1 and scale is not None and leading[scale] == {norm} and _same_size(wiring, norm, scale):
            merged[scale] = norm
    if not merged:
        return wiring
    units = list(wiring.units)
    for scale, norm in merged.items():
        units[norm] = replace(
            units[norm],
            parts=units[norm].parts + units[scale].parts,
            shape=units[norm].shape if units[norm].shape is not None else units[scale].shape,
            tensors=units[norm].tensors + units[scale].tensors,
        )
    return without_units(Wiring(tuple(units), wiring.nodes), merged)


def _same_size(wiring: Wiring, norm: int, scale: int) -> bool:
    sizes = [wiring.units[unit].shape for unit in (norm, scale)]
    return sizes[0] == sizes[1] or any(shape is None or None in shape for shape in sizes)
