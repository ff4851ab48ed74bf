"""What of a model's forward pass is a use of a unit: a call of a module, or an operation on parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod

from torch import nn

from caffe2torch.binding.graph import TensorReference, Unit, UnitKind, WiringBuilder
from caffe2torch.binding.wrappers import named_modules

__all__ = ["BareParameters", "in_order", "opaque_modules", "roles_given"]


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
    **dict.fromkeys(("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "batch_norm"), UnitKind.NORM),
    **dict.fromkeys(("native_layer_norm", "native_group_norm", "_fused_rms_norm", "instance_norm"), UnitKind.SCALE),
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
_NORM_ROLES = {"weight": "scale", "bias": "shift", "running_mean": "mean", "running_var": "variance"}
"""What a normalization is given, by the name of the argument."""


def roles_given(operation: str) -> Mapping[str, str]:
    """The roles of the tensors that a normalization is given, by argument; none of another operation.

    >>> roles_given("native_layer_norm"), roles_given("convolution")
    ({'weight': 'scale', 'bias': 'shift'}, {})
    """
    if _BARE_KINDS.get(operation) is UnitKind.NORM:
        return _NORM_ROLES
    if _BARE_KINDS.get(operation) is UnitKind.SCALE and operation not in _BARE_ROLES:
        return {argument: _NORM_ROLES[argument] for argument in ("weight", "bias")}
    return {}


class BareParameters:
    """Makes units of parameters as operations use them; what one module applies in a row is one unit."""

    def __init__(
        self, units: Sequence[Unit], builder: WiringBuilder, buffers: Mapping[str, tuple[int, ...]] | None = None
    ) -> None:
        self._builder = builder
        self._learned = frozenset(str(tensor.key) for unit in units for tensor in unit.tensors)
        self._tensors = {
            **{name: TensorReference(name, shape, name, trained=False) for name, shape in (buffers or {}).items()},
            **{str(tensor.key): tensor for unit in units for tensor in unit.tensors},
        }
        self._order = {name: number for number, name in enumerate(self._tensors)}
        self._made: dict[frozenset[str], int] = {}
        self._module: dict[int, str] = {}  # unit -> the module whose parameters it holds

    def __contains__(self, name: str) -> bool:
        return name in self._learned

    def as_given(self, unit: Unit, operation: str, roles: Mapping[str, str]) -> Unit:
        """The unit of a module that looked like another, as the normalization in it shows its tensors."""
        own = {str(one.key) for one in unit.tensors}
        if not {str(one.key) for one in unit.tensors if one.trained} <= roles.keys() or not own & roles.keys():
            return unit
        tensors = tuple(replace(self._tensors[name], role=roles[name]) for name in self._order if name in roles)
        return replace(unit, kind=_BARE_KINDS[operation], tensors=tensors)

    def apply(
        self,
        operation: str,
        parameters: frozenset[str],
        values: list[int],
        groups: int = 1,
        transposed: Mapping[str, bool] | None = None,
        roles: Mapping[str, str] | None = None,
        kind: UnitKind | None = None,
    ) -> int:
        """The node for an operation that joins ``parameters`` and the nodes ``values``.

        ``roles`` are those of a normalization's tensors, ``kind`` is that of the unit where the operation does not say.
        """
        parameters = parameters.union(roles or ())
        names = sorted(parameters, key=self._order.__getitem__)
        module = names[0].rpartition(".")[0]
        own = tuple(
            replace(self._tensors[name], role=roles[name])
            if roles and name in roles
            else _in_role(operation, self._tensors[name])
            for name in names
        )
        before = self._builder.nodes[values[0]].unit if len(set(values)) == 1 else None
        if before in self._module and operation in ("mul", "add"):
            unit = self._builder.units[before]
            near = self._module[before] == module or (operation == "add" and _lacks_shift(unit, own))
            if near and all(unit.role(one.role) in (None, one) for one in own):
                new = tuple(one for one in own if unit.role(one.role) is None)
                self._builder.units[before] = replace(unit, tensors=unit.tensors + new)
                return values[0]
        if parameters not in self._made:
            made = _bare_unit(kind or _BARE_KINDS.get(operation, UnitKind.OTHER), groups, module, own)
            self._made[parameters] = self._builder.unit(in_order(made, transposed or {}))
            self._module[self._made[parameters]] = module
            self._tell_apart(module)
        return self._builder.use(self._made[parameters], values)

    def _tell_apart(self, module: str) -> None:
        """Several units of one module's parameters, a ``ParameterList`` say, each have their first tensor's name."""
        numbers = [number for number, one in self._module.items() if one == module]
        for number in numbers if len(numbers) > 1 else ():
            unit = self._builder.units[number]
            name = str(_main(unit.tensors).key)
            self._builder.units[number] = replace(unit, name=name, parts=(name,))


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


def _lacks_shift(unit: Unit, own: Sequence[TensorReference]) -> bool:
    """Whether a unit has no shift yet, and takes one of the size of ``own``: it may stand in another list than it."""
    sizes = [prod(one.sizes) for one in own]
    return unit.role("shift") is None and unit.role("bias") is None and sizes == [unit.sizes[0]]


def _bare_unit(kind: UnitKind, groups: int, module: str, tensors: tuple[TensorReference, ...]) -> Unit:
    main = _main(tensors)
    shape = main.shape
    if kind in (UnitKind.NORM, UnitKind.SCALE, UnitKind.SLOPE):
        shape = (prod(size or 1 for size in shape or ()),)
    name = module or str(main.key)
    return Unit(name, (name,), kind, shape, tensors, groups)


def _main(tensors: Sequence[TensorReference]) -> TensorReference:
    """The first of the tensors with the most axes, a buffer only where there is nothing else."""
    return max(tensors, key=lambda one: (one.trained, len(one.shape or ())))
