"""How far a module is from being a layer's counterpart, and in words what keeps it from that."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import lru_cache

from caffe2torch.binding.graph import Unit, UnitKind
from caffe2torch.binding.layout import fit
from caffe2torch.binding.names import normalised
from caffe2torch.recipe import Shape
from caffe2torch.wording import shape_text

__all__ = ["closest", "differences", "likeness", "of_kind"]


def of_kind(unit: Unit, modules: Iterable[Unit]) -> list[Unit]:
    """The modules of the unit's kind."""
    return [module for module in modules if module.kind is unit.kind]


def likeness(unit: Unit, module: Unit) -> float:
    """How far the names of a layer and of a module are alike, from 0 to 1."""
    names = normalised(unit.name.replace(".", "_")), normalised(module.name)
    return difflib.SequenceMatcher(None, *names).ratio()


def closest(unit: Unit, modules: Iterable[Unit]) -> Unit | None:
    """The module of the same kind that differs least in sizes, then in name."""
    found: dict[int, list[Unit]] = {}
    for module in of_kind(unit, modules):
        found.setdefault(len(differences(unit, module)), []).append(module)
    return max(found[min(found)], key=lambda module: likeness(unit, module)) if found else None


def differences(unit: Unit, module: Unit) -> list[str]:
    """In words what keeps a unit of the net from being a module, Caffe's side first; empty if nothing does."""
    return list(_differences(_compared(unit), _compared(module)))


_Compared = tuple[UnitKind, Shape | None, int, frozenset[str]]


def _compared(unit: Unit) -> _Compared:
    return unit.kind, unit.shape, unit.groups, frozenset(tensor.role for tensor in unit.tensors) & _LOST


_LOST = frozenset({"bias", "shift"})
"""Roles that a module may be without."""


@lru_cache(maxsize=4096)
def _differences(unit: _Compared, module: _Compared) -> tuple[str, ...]:
    (kind, ours, groups, roles), (other, shape, other_groups, other_roles) = unit, module
    if kind is not other:
        return (f"{kind} / {other}",)
    found = []
    theirs = tuple(size or 0 for size in shape or ())
    if ours is not None and fit(ours, theirs) is None:
        if kind is UnitKind.MAP and len(ours) > 1 and len(theirs) > 1:
            named = [("outputs", ours[:1], theirs[:1]), ("inputs per group", ours[1:2], theirs[1:2])]
            named.append(("kernel", ours[2:] or (1, 1), theirs[2:] or (1, 1)))
            found += [f"{what} {shape_text(a)} / {shape_text(b)}" for what, a, b in named if a != b and None not in a]
        found = found or [f"sizes {shape_text(ours)} / {shape_text(theirs)}"]
    if groups != other_groups:
        found.append(f"groups {groups} / {other_groups}")
    return (*found, *(f"the module has no {role}" for role in sorted(roles - other_roles)))
