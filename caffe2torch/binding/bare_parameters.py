"""Parameters that a forward pass uses without calling a module: the operation tells what kind of unit they make."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from torch import nn

from caffe2torch.binding.graph import Held, Unit, UnitKind, WiringBuilder
from caffe2torch.binding.modules import module_units

__all__ = ["BareParameters"]

_KINDS = {
    "convolution": UnitKind.MAP,
    "conv_transpose": UnitKind.TRANSPOSED,
    "linear": UnitKind.MAP,
    "addmm": UnitKind.MAP,
    "mm": UnitKind.MAP,
    "bmm": UnitKind.MAP,
    "baddbmm": UnitKind.MAP,
    "native_batch_norm": UnitKind.NORM,
    "batch_norm": UnitKind.NORM,
    "prelu": UnitKind.SLOPE,
    "_prelu_kernel": UnitKind.SLOPE,
    "embedding": UnitKind.TABLE,
    "mul": UnitKind.SCALE,
    "div": UnitKind.SCALE,
    "add": UnitKind.SCALE,
    "sub": UnitKind.SCALE,
}
_ROLES = {
    **dict.fromkeys(("mul", "div"), "scale"),
    **dict.fromkeys(("add", "sub"), "shift"),
    **dict.fromkeys(("_prelu_kernel", "prelu"), "slope"),
    "embedding": "weight",
}


class BareParameters:
    """Makes units of parameters as operations use them; what one module applies in a row is one unit."""

    def __init__(self, model: nn.Module, builder: WiringBuilder) -> None:
        self._builder = builder
        self._held = {str(held.key): held for unit in module_units(model) for held in unit.held}
        self._order = {name: number for number, name in enumerate(self._held)}
        self._made: dict[frozenset[str], int] = {}
        self._module: dict[int, str] = {}  # unit -> the module whose parameters it holds

    def __contains__(self, name: str) -> bool:
        return name in self._held

    def apply(self, operation: str, parameters: frozenset[str], values: list[int], groups: int = 1) -> int:
        """The node for an operation that joins ``parameters`` and the nodes ``values``."""
        names = sorted(parameters, key=self._order.__getitem__)
        module = names[0].rpartition(".")[0]
        held = tuple(_in_role(operation, self._held[name]) for name in names)
        before = self._builder.nodes[values[0]].unit if len(set(values)) == 1 else None
        if before is not None and self._module.get(before) == module and operation in ("mul", "add"):
            unit = self._builder.units[before]
            if all(unit.role(one.role) in (None, one) for one in held):
                new = tuple(one for one in held if unit.role(one.role) is None)
                self._builder.units[before] = replace(unit, held=unit.held + new)
                return values[0]
        if parameters not in self._made:
            self._made[parameters] = self._builder.unit(_unit(operation, groups, module, held))
            self._module[self._made[parameters]] = module
        return self._builder.use(self._made[parameters], values)


def _in_role(operation: str, held: Held) -> Held:
    if operation in _ROLES:
        return replace(held, role=_ROLES[operation])
    if _KINDS.get(operation) in (UnitKind.MAP, UnitKind.TRANSPOSED):
        return replace(held, role="weight" if len(held.shape or ()) > 1 else "bias")
    return held


def _unit(operation: str, groups: int, module: str, held: tuple[Held, ...]) -> Unit:
    kind = _KINDS.get(operation, UnitKind.OTHER)
    main = max(held, key=lambda one: len(one.shape or ()))
    shape = main.shape
    if kind in (UnitKind.NORM, UnitKind.SCALE, UnitKind.SLOPE):
        shape = (prod(size or 1 for size in shape or ()),)
    name = module or str(main.key)
    return Unit(name, (name,), kind, shape, held, groups)
