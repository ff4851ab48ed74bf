"""Wirings made from wirings: without some units, with what belongs together made one."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from caffe2torch.binding.graph import INPUT, Node, Op, UnitKind, Wiring, WiringBuilder

__all__ = ["consumers", "contracted", "rebuild", "without_units"]


def contracted(wiring: Wiring) -> Wiring:
    """The wiring with sums of sums made one sum, and each batch norm one unit with the scale that follows it."""
    return merge_norms(merge_sums(wiring))


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
    """The wiring without some units (indices): their nodes are transparent to their first input."""
    kept = [number for number in range(len(wiring.units)) if number not in left_out]
    index = {old: new for new, old in enumerate(kept)}
    placed = rebuild(
        wiring,
        lambda builder, node, inputs: (
            builder.join(node.op, inputs)
            if node.unit is None
            else (builder.use(index[node.unit], inputs) if node.unit in index else inputs[0])
        ),
    )
    return Wiring(tuple(wiring.units[number] for number in kept), placed.nodes)


def merge_sums(wiring: Wiring) -> Wiring:
    """``(a + b) + c`` is ``a + b + c`` where nothing else looks at ``a + b``; products and the rest alike."""
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
            held=units[norm].held + units[scale].held,
        )
    return without_units(Wiring(tuple(units), wiring.nodes), merged)


def _same_size(wiring: Wiring, norm: int, scale: int) -> bool:
    sizes = [wiring.units[unit].shape for unit in (norm, scale)]
    return sizes[0] == sizes[1] or any(shape is None or None in shape for shape in sizes)
