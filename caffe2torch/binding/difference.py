"""What differs between a unit of the net and one of the model, and between net and model as wholes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from caffe2torch.binding.fitting import fit, spell
from caffe2torch.binding.graph import Node, Op, Unit, UnitKind, Wiring
from caffe2torch.binding.isomorphism import match_whole

__all__ = ["differences", "explain"]


def differences(unit: Unit, module: Unit) -> list[str]:
    """In words what keeps a unit of the net from being a module, Caffe's side first; empty if nothing does."""
    if unit.kind is not module.kind:
        return [f"{unit.kind} / {module.kind}"]
    found = []
    ours, theirs = unit.shape, tuple(size or 0 for size in module.shape or ())
    if ours is not None and fit(ours, theirs) is None:
        if unit.kind is UnitKind.MAP and len(ours) > 1 and len(theirs) > 1:
            named = [("outputs", ours[:1], theirs[:1]), ("inputs per group", ours[1:2], theirs[1:2])]
            named.append(("kernel", ours[2:] or (1, 1), theirs[2:] or (1, 1)))
            found += [f"{what} {spell(a)} / {spell(b)}" for what, a, b in named if a != b and None not in a]
        found = found or [f"sizes {spell(ours)} / {spell(theirs)}"]
    if unit.groups != module.groups:
        found.append(f"groups {unit.groups} / {module.groups}")
    for role in ("bias", "shift"):
        if unit.role(role) is not None and module.role(role) is None:
            found.append(f"the module has no {role}")
    return found


def explain(net: Wiring, model: Wiring) -> Iterator[str]:
    """Sentences on what differs between two wirings that are not equal: how many units of a kind, sharing, order."""
    counts = [Counter(str(unit.kind) for unit in wiring.units) for wiring in (net, model)]
    for kind in sorted(counts[0].keys() | counts[1].keys()):
        if counts[0][kind] != counts[1][kind]:
            yield f"{kind}: {counts[0][kind]} in the net, {counts[1][kind]} in the model"
    if match_whole(_untied(net), _untied(model), {}) is not None:
        yield f"the wirings are equal but for what is shared: {_shared(net)} in the net, {_shared(model)} in the model"
    elif match_whole(_unordered(net), _unordered(model), {}) is not None:
        yield "the wirings are equal but for the order in which branches are concatenated"


def _shared(wiring: Wiring) -> str:
    """The units that are used more than once, by the names of all their parts."""
    uses = Counter(node.unit for node in wiring.nodes)
    units = [" with ".join(map(repr, unit.parts)) for number, unit in enumerate(wiring.units) if uses[number] > 1]
    more = f" and {len(units) - 3} more" if len(units) > 3 else ""
    return ", ".join(units[:3]) + more if units else "nothing"


def _unordered(wiring: Wiring) -> Wiring:
    """The wiring with concatenations whose order counts for nothing."""
    nodes = (Node(Op.JOINT, node.inputs) if node.op is Op.CONCAT else node for node in wiring.nodes)
    return Wiring(wiring.units, tuple(nodes))


def _untied(wiring: Wiring) -> Wiring:
    """The wiring with a unit of its own for every use."""
    units: list[Unit] = []
    nodes: list[Node] = []
    for node in wiring.nodes:
        if node.unit is None:
            nodes.append(node)
        else:
            nodes.append(Node(node.op, node.inputs, len(units)))
            units.append(wiring.units[node.unit])
    return Wiring(tuple(units), tuple(nodes))
