"""What of a model's forward pass is a use of a unit: a call of a module, or an operation on parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod

from torch import nn

from caffe2torch.binding.graph import TensorReference, Unit, UnitKind, WiringBuilder
from caffe2torch.binding.wrappers import named_modules

__all__ = ["BareParameters", "in_order", "opaque_modules"]


def opaque_modules(model: nn.Module, units: Sequence[Unit]) -> Iterator[tuple[nn.Module, Unit]]:
    """The modules of which one call is one use of a unit: torch's own layers, and what looks like one.

    A module of unknown kind is not among them: its operations show what it does with its parameters.
    """
    by_path = {part: unit for unit in units for part in unit.parts if unit.kind is not UnitKind.OTHER}
    for path, module in named_modules(model):
        if path in by_path:
            yield module, by_path[path]


# Parameters that a forward pass uses without calling a module: the operation determines the kind of unit.

_BARE_KINDS = {
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
_BARE_ROLES = {
    **dict.fromkeys(("mul", "div"), "scale"),
    **dict.fromkeys(("add", "sub"), "shift"),
    **dict.fromkeys(("_prelu_kernel", "prelu"), "slope"),
    "embedding": "weight",
}


class BareParameters:
    """Makes units of parameters as operations use them; what one module applies in a row is one unit."""

    def __init__(self, units: Sequence[Unit], builder: WiringBuilder) -> None:
        self._builder = builder
        self._tensors = {str(tensor.key): tensor for unit in units for tensor in unit.tensors}
        self._order = {name: number for number, name in enumerate(self._tensors)}
        self._made: dict[frozenset[str], int] = {}
        self._module: dict[int, str] = {}  # unit -> the module whose parameters it holds

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def apply(
        self,
        operation: str,
        parameters: frozenset[str],
        values: list[int],
        groups: int = 1,
        transposed: Mapping[str, bool] | None = None,
    ) -> int:
        """The node for an operation that joins ``parameters`` and the nodes ``values``."""
        names = sorted(parameters, key=self._order.__getitem__)
        module = names[0].rpartition(".")[0]
        own = tuple(_in_role(operation, self._tensors[name]) for name in names)
        before = self._builder.nodes[values[0]].unit if len(set(values)) == 1 else None
        if before is not None and self._module.get(before) == module and operation in ("mul", "add"):
            unit = self._builder.units[before]
            if all(unit.role(one.role) in (None, one) for one in own):
                new = tuple(one for one in own if unit.role(one.role) is None)
                self._builder.units[before] = replace(unit, tensors=unit.tensors + new)
                return values[0]
        if parameters not in self._made:
            self._made[parameters] = self._builder.unit(
                in_order(_bare_unit(operation, groups, module, own), transposed or {})
            )
            self._module[self._made[parameters]] = module
        return self._builder.use(self._made[parameters], values)


def in_order(unit: Unit, transposed: Mapping[str, bool]) -> Unit:
    """The unit with what products showed of the order in which its weight stands."""
    if unit.kind is not UnitKind.MAP or not any(str(one.key) in transposed for one in unit.tensors):
        return unit
    tensors = tuple(
        replace(one, transposed=transposed.get(str(one.key), one.transposed)) if one.transposed is None else one
        for one in unit.tensors
    )
    turned = any(one.transposed and one.shape == unit.shape for one in tensors) and unit.shape is not None
    return replace(unit, tensors=tensors, shape=unit.shape[::-1] if turned and unit.shape else unit.shape)


def _in_role(operation: str, tensor: TensorReference) -> TensorReference:
    if operation in _BARE_ROLES:
        return replace(tensor, role=_BARE_ROLES[operation])
    if _BARE_KINDS.get(operation) in (UnitKind.MAP, UnitKind.TRANSPOSED):
        return replace(tensor, role="weight" if len(tensor.shape or ()) > 1 else "bias")
    return tensor


def _bare_unit(operation: str, groups: int, module: str, tensors: tuple[TensorReference, ...]) -> Unit:
    kind = _BARE_KINDS.get(operation, UnitKind.OTHER)
    main = max(tensors, key=lambda one: len(one.shape or ()))
    shape = main.shape
    if kind in (UnitKind.NORM, UnitKind.SCALE, UnitKind.SLOPE):
        shape = (prod(size or 1 for size in shape or ()),)
    name = module or str(main.key)
    return Unit(name, (name,), kind, shape, tensors, groups)
