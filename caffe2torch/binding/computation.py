"""What a net or a model computes, with its settings: the common form in which the two can be compared.

A wiring says which unit feeds which; here stand the operations in between and inside: a convolution with its stride, a
pooling with its kernel. Both sides write the same kinds and the same settings, so that a comparison needs to know
neither Caffe nor torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

from caffe2torch.binding.graph import Node, Unit
from caffe2torch.recipe import Shape, SourceLocation

__all__ = [
    "MAIN",
    "UNKNOWN",
    "Chain",
    "Computation",
    "Edge",
    "Operation",
    "extended",
    "merged",
    "never_negative",
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


@dataclass(frozen=True, slots=True)
class Edge:
    """A value's way from one node of the wiring to the next; ``target`` is ``None`` at an output."""

    source: int
    target: int | None
    chain: Chain
    shape: Shape | None


@dataclass(slots=True)
class Computation:
    """Units and nodes as they were met, before what belongs together is made one, and what is computed there.

    Attributes:
        units: The units.
        nodes: Uses of units, and junctions, each after its inputs.
        edges: The ways between them.
        own: What a use of a unit computes itself, by node.
        shapes: The shape of what a node gives.
        inputs: What it was run with; empty for a net.
        training: Whether it was run as in training.
        ended: What ended the run early.
    """

    units: Sequence[Unit]
    nodes: Sequence[Node]
    edges: list[Edge] = field(default_factory=list)
    own: dict[int, Operation] = field(default_factory=dict)
    shapes: dict[int, Shape | None] = field(default_factory=dict)
    inputs: tuple[tuple[int, ...], ...] = ()
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
    """The chain with one more operation; a padding becomes part of the window that reads it."""
    if operation.kind in ("convolution", "pooling") and chain and chain[-1].kind == "padding":
        return (*chain[:-1], _padded(chain[:-1], chain[-1], operation))
    return (*chain, operation)


def _padded(before: Chain, padding: Operation, window: Operation) -> Operation:
    """A window with the padding before it; unknown where the two are no window."""
    begins, ends, value = (padding.settings[name] for name in ("begins", "ends", "value"))
    settings = window.settings
    if len(begins) != len(settings.get("padding", ())):
        return UNKNOWN
    if window.kind == "pooling":
        if settings["pooling"] == "max" and value != -inf and not (value == 0 and never_negative(before)):
            return UNKNOWN
        if settings["pooling"] != "max" and (value != 0 or begins != ends or any(settings["padding"])):
            return UNKNOWN
    elif value != 0 or settings["transposed"]:
        return UNKNOWN
    whole = tuple(own + more for own, more in zip(settings["padding"], begins, strict=True))
    size = padding.input
    return replace(window, settings={**settings, "padding": whole}, input=size)


def never_negative(chain: Chain) -> bool:
    """Whether what the chain gives is known not to be below 0: it is that of a ReLU, but for what keeps that."""
    for operation in reversed(chain):
        if operation.kind not in ("pooling", "dropout", "LRN"):
            return operation.settings.get("function") in ("ReLU6", "sigmoid") or operation.settings.get("slope") == 0
    return False


def split_at_main(chain: Chain) -> tuple[Chain, Operation | None, Chain]:
    """What is before, is, and is after the one main operation of a unit; there is none where two could be it."""
    mains = [place for place, operation in enumerate(chain) if operation.kind in MAIN]
    if len(mains) != 1:
        return (), None, tuple(operation for operation in chain if operation.kind not in MAIN)
    return chain[: mains[0]], chain[mains[0]], chain[mains[0] + 1 :]
