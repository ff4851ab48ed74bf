"""How far a module is from being a layer's counterpart, and in words what keeps it from that."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from caffe2torch.binding.graph import Unit, UnitKind
from caffe2torch.binding.layout import fit
from caffe2torch.binding.names import normalised
from caffe2torch.wording import shape_text

__all__ = ["closest", "differences", "distance", "of_kind"]


def of_kind(unit: Unit, modules: Iterable[Unit]) -> list[Unit]:
    """The modules of the unit's kind."""
    return [module for module in modules if module.kind is unit.kind]


def distance(unit: Unit, module: Unit, claimed: Sequence[str] = ()) -> tuple[bool, int, float]:
    """How far a module is from being the counterpart: modules that have a claim first, then by sizes, then by names."""
    ratio = difflib.SequenceMatcher(None, normalised(unit.name.replace(".", "_")), normalised(module.name)).ratio()
    return module.name not in claimed, len(differences(unit, module)), -ratio


def closest(unit: Unit, modules: Iterable[Unit]) -> Unit | None:
    """The module of the same kind that differs least in sizes, then in name."""
    return min(of_kind(unit, modules), key=lambda module: distance(unit, module), default=None)


def differences(unit: Unit, module: Unit) -> list[str]:
    """In words what keeps a unit of the net from being a module, Caffe's side first; empty if nothing does."""
    if unit.kind is not module.kind:
        return [f"{unit.kind} / {module.kind}"]
    found = []
    ours, theirs = unit.shape, module.sizes
    if ours is not None and fit(ours, theirs) is None:
        if unit.kind is UnitKind.MAP and len(ours) > 1 and len(theirs) > 1:
            named = [("outputs", ours[:1], theirs[:1]), ("inputs per group", ours[1:2], theirs[1:2])]
            named.append(("kernel", ours[2:] or (1, 1), theirs[2:] or (1, 1)))
            found += [f"{what} {shape_text(a)} / {shape_text(b)}" for what, a, b in named if a != b and None not in a]
        found = found or [f"sizes {shape_text(ours)} / {shape_text(theirs)}"]
    if unit.groups != module.groups:
        found.append(f"groups {unit.groups} / {module.groups}")
    for role in ("bias", "shift"):
        if unit.role(role) is not None and module.role(role) is None:
            found.append(f"the module has no {role}")
    return found
