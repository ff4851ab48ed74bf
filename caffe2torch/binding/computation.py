"""What a net or a model computes, with its settings: the common form in which the two can be compared.

A wiring says which unit feeds which; here stand the operations in between and inside: a convolution with its stride, a
pooling with its kernel. Both sides write the same kinds and the same settings, so that a comparison needs to know
neither Caffe nor torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf, isclose, prod
from typing import Any

from caffe2torch.binding.graph import Node, Unit
from caffe2torch.recipe import Shape, SourceLocation

__all__ = [
    "MAIN",
    "UNKNOWN",
    "Begins",
    "Chain",
    "Computation",
    "Edge",
    "Operation",
    "cropped",
    "extended",
    "merged",
    "never_negative",
    "scaled",
    "split_at_main",
]

MAIN = frozenset({"convolution", "linear", "batch norm", "slope", "embedding"})
"""Kinds of operations that units compute; what stands between units is of other kinds."""


@dataclass(frozen=True, slots=True)
class Operation:
    """Something that is computed.

    Attributes:
        kind: ``convolution``, ``pooling``, ``dropout``, ...; ``unknown`` where its settings cannot be read.
        settings: What decides how, by name; one number for each axis is a tuple.
        name: The layer or the module; empty for a call of a function.
        where: The layer's place in the prototxt.
        input: The size of what it is given, without the axes of images and channels.
        output: The size of what it gives.
    """

    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    where: SourceLocation | None = None
    input: Shape | None = None
    output: Shape | None = None


UNKNOWN = Operation("unknown")

Chain = tuple[Operation, ...]
"""What was computed in a row."""


Begins = tuple[tuple[int, int], ...]
"""Axes along which a slice does not begin at 0, each with where it does."""


@dataclass(frozen=True, slots=True)
class Edge:
    """A value's way from one node of the wiring to the next; ``target`` is ``None`` at an output.

    ``given`` are the inputs that the value is made from, in the order in which they are concatenated, where ``source``
    stands for all of them; ``begins`` says where in what ``source`` gives it begins, by axis,
    if not at its beginning.
    """

    source: int
    target: int | None
    chain: Chain
    shape: Shape | None
    given: tuple[str, ...] = ()
    begins: Begins = ()


@dataclass(slots=True)
class Computation:
    """Units and nodes as they were met, before what belongs together is made one, and what is computed there.

    Attributes:
        units: The units.
        nodes: Uses of units, and junctions, each after its inputs.
        edges: The ways between them.
        own: What a use of a unit computes itself, by node.
        shapes: The shape of what a node gives.
        named: The layers that compute something; empty for a model.
        judged: The types of the losses that take what a node gives; empty for a model.
        inputs: What it was run with; empty for a net.
        input_names: The names of its inputs, in their order.
        training: Whether it was run as in training.
        ended: What ended the run early.
    """

    units: Sequence[Unit]
    nodes: Sequence[Node]
    edges: list[Edge] = field(default_factory=list)
    own: dict[int, Operation] = field(default_factory=dict)
    shapes: dict[int, Shape | None] = field(default_factory=dict)
    named: list[Operation] = field(default_factory=list)
    judged: dict[int, set[str]] = field(default_factory=dict)
    inputs: tuple[tuple[int, ...], ...] = ()
    input_names: tuple[str, ...] = ()
    training: bool = True
    ended: str = ""


def merged(chains: Sequence[Chain]) -> Chain:
    """The chain of a value that is made of several: what they have in common, and then nothing that is known."""
    first, *others = chains or [()]
    if all(other == first for other in others):
        return first
    shared = next((n for n, ops in enumerate(zip(*chains, strict=False)) if len(set(map(id, ops))) > 1), None)
    return (*first[: min(map(len, chains)) if shared is None else shared], UNKNOWN)


def extended(chain: Chain, operation: Operation) -> Chain:
    """The chain with one more operation, in the form in which one step stands for what a net does in one.

    A padding becomes part of the window that reads it; crops, factors and new orders of axes in a row are one, and
    none where they change nothing.
    """
    last = chain[-1] if chain else Operation("")
    if operation.kind in ("convolution", "pooling") and last.kind == "padding":
        return (*chain[:-1], _padded(chain[:-1], last, operation))
    if operation.settings.get("pooling") == "sum":
        size = float(prod(operation.settings["kernel"]))
        average = replace(operation, settings={**operation.settings, "pooling": "average"})
        return (*chain, average, replace(operation, kind="scaling", settings={"factor": size, "shift": 0.0}))
    if operation.kind == "convolution" and _takes_every_nth(last) and _looks_at_one(operation):
        stride = _product(last.settings["stride"], operation.settings["stride"])
        return (*chain[:-1], replace(operation, settings={**operation.settings, "stride": stride}, input=last.input))
    whole = _MERGED[last.kind](last, operation) if last.kind == operation.kind and last.kind in _MERGED else None
    if whole is not None:
        chain, operation = chain[:-1], whole
    neutral = operation.kind in _NEUTRAL and _NEUTRAL[operation.kind](operation.settings)
    return chain if neutral else (*chain, operation)


def _takes_every_nth(operation: Operation) -> bool:
    """Whether it is a pooling of single numbers."""
    kernel = operation.settings.get("kernel") or ()
    return operation.kind == "pooling" and set(kernel) == {1} and not any(operation.settings["padding"])


def _looks_at_one(convolution: Operation) -> bool:
    settings = convolution.settings
    return {*settings["kernel"]} == {1} and not any(settings["padding"]) and not settings["transposed"]


def _product(one: Sequence[int], other: Sequence[int]) -> tuple[int, ...]:
    return tuple(a * b for a, b in zip(one, other, strict=True))


def _two_poolings(first: Operation, second: Operation) -> Operation | None:
    if not (_takes_every_nth(first) and _takes_every_nth(second)):
        return None
    stride = _product(first.settings["stride"], second.settings["stride"])
    return replace(second, settings={**second.settings, "stride": stride}, input=first.input)


def _two_scalings(first: Operation, second: Operation) -> Operation:
    (a, b), (c, d) = ((one.settings["factor"], one.settings["shift"]) for one in (first, second))
    return replace(second, settings={"factor": a * c, "shift": b * c + d})


def _two_crops(first: Operation, second: Operation) -> Operation | None:
    if first.output != second.input:
        return None
    both = zip(first.settings["begins"], second.settings["begins"], strict=True)
    return replace(second, settings={"begins": tuple(a + b for a, b in both)}, input=first.input)


def _two_orders(first: Operation, second: Operation) -> Operation | None:
    if first.output != second.input:
        return None
    axes = tuple(first.settings["axes"][axis] for axis in second.settings["axes"])
    return replace(second, settings={"axes": axes}, input=first.input)


_MERGED: Mapping[str, Callable[[Operation, Operation], Operation | None]] = {
    "scaling": _two_scalings,
    "pooling": _two_poolings,
    "crop": _two_crops,
    "order": _two_orders,
}
"""Of two operations of a kind in a row the one that does the same; ``None`` where there is none."""

_NEUTRAL: Mapping[str, Callable[[Mapping[str, Any]], bool]] = {
    "scaling": lambda given: isclose(given["factor"], 1, rel_tol=1e-6) and not given["shift"],
    "order": lambda given: given["axes"] == tuple(range(len(given["axes"]))),
    "pooling": lambda given: (
        {*(given["kernel"] or (0,)), *(given["stride"] or (0,))} == {1} and not any(given["padding"])
    ),
}
"""Whether settings of a kind change nothing."""


def _padded(before: Chain, padding: Operation, window: Operation) -> Operation:
    """A window with the padding before it; unknown where the two are no window."""
    begins, ends, value = (padding.settings[name] for name in ("begins", "ends", "value"))
    settings, size = window.settings, padding.input or ()
    own = settings.get("padding", ())
    if len(begins) != len(own) or len(size) != len(own):
        return UNKNOWN
    nothing = value in (0, -inf) if window.kind == "pooling" and settings["pooling"] == "max" else value == 0
    if settings.get("pooling") == "max" and value == 0 and not never_negative(before):
        nothing = False
    if (any(own) and not nothing) or settings.get("transposed"):
        return UNKNOWN
    if window.kind == "pooling" and settings["pooling"] != "max" and (not nothing or begins != ends or any(own)):
        return UNKNOWN
    whole: list[int | str] = []
    for axis, (begin, end, more) in enumerate(zip(begins, ends, own, strict=True)):
        kernel, stride, dilation = (settings[name][axis] for name in ("kernel", "stride", "dilation"))
        room = (size[axis] or 0) + 2 * (begin + more) - dilation * (kernel - 1) - 1
        even = {room // stride + 1, -(-room // stride) + 1 if window.kind == "pooling" else 0}
        same = begin == end or (window.output is not None and window.output[axis] in even)
        whole.append(begin + more if same else f"{begin + more} before and {end + more} after")
    filled = {} if nothing else {"pads with": _filling(value)}
    return replace(window, settings={**settings, "padding": tuple(whole), **filled}, input=padding.input)


def _filling(value: object) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def cropped(found: Computation) -> Computation:
    """The computation where a crop right after a transposed convolution is that convolution's padding.

    Both take the same from either end of each axis, if the crop does.
    """
    found = replace(found, own=dict(found.own), shapes=dict(found.shapes), edges=list(found.edges))
    for node, own in list(found.own.items()):
        ways = [edge for edge in found.edges if edge.source == node]
        first = {
            (edge.chain[0].settings["begins"], edge.chain[0].input, edge.chain[0].output)
            for edge in ways
            if edge.chain and edge.chain[0].kind == "crop"
        }
        if not own.settings.get("transposed") or len(first) != 1 or not all(edge.chain for edge in ways):
            continue
        ((begins, given, left),) = first
        if (
            given is None
            or left is None
            or None in (*given, *left)
            or not all(edge.chain[0].kind == "crop" for edge in ways)
        ):
            continue
        if any(begin + size + begin != whole for begin, size, whole in zip(begins, left, given, strict=True)):
            continue
        padding = tuple(a + b for a, b in zip(own.settings["padding"], begins, strict=True))
        found.own[node] = replace(own, settings={**own.settings, "padding": padding}, output=left)
        shape = found.shapes.get(node)
        found.shapes[node] = None if shape is None else (*shape[:2], *left)
        found.edges = [replace(edge, chain=edge.chain[1:]) if edge.source == node else edge for edge in found.edges]
    return found


def never_negative(chain: Chain) -> bool:
    """Whether what the chain gives is known not to be below 0: it is that of a ReLU, but for what keeps that."""
    for operation in reversed(chain):
        factor, shift = (operation.settings.get(name, usual) for name, usual in (("factor", 1), ("shift", 0)))
        if operation.kind not in ("pooling", "dropout", "LRN", "scaling") or factor < 0 or shift < 0:
            return operation.settings.get("function") in ("ReLU6", "sigmoid") or operation.settings.get("slope") == 0
    return False


def scaled(chain: Chain, factor: float) -> Chain:
    """The chain with a factor after it."""
    return extended(chain, Operation("scaling", {"factor": float(factor), "shift": 0.0}))


def split_at_main(chain: Chain) -> tuple[Chain, Operation | None, Chain]:
    """What is before, is, and is after the one main operation of a unit; there is none where two could be it."""
    mains = [place for place, operation in enumerate(chain) if operation.kind in MAIN]
    if len(mains) != 1:
        return (), None, tuple(operation for operation in chain if operation.kind not in MAIN)
    return chain[: mains[0]], chain[mains[0]], chain[mains[0] + 1 :]
