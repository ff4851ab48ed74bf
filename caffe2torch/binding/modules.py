"""A model's modules as units: which tensors they hold, and in which role."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from caffe2torch.binding.graph import Held, Unit, UnitKind, WiringBuilder
from caffe2torch.binding.skeleton import SkeletonLayer
from caffe2torch.binding.wrappers import named_modules, named_tensors
from caffe2torch.errors import ModelError

__all__ = ["BareParameters", "module_units", "opaque_modules"]

_KINDS: tuple[tuple[type | tuple[type, ...], UnitKind], ...] = (
    (_ConvTransposeNd, UnitKind.TRANSPOSED),
    ((_ConvNd, nn.Linear), UnitKind.MAP),
    (_BatchNorm, UnitKind.NORM),
    ((_InstanceNorm, nn.GroupNorm, nn.LayerNorm), UnitKind.SCALE),
    (nn.PReLU, UnitKind.SLOPE),
    ((nn.Embedding, nn.EmbeddingBag), UnitKind.TABLE),
    ((nn.RNNBase, nn.RNNCellBase), UnitKind.RECURRENT),
)

_STATISTICS = {"running_mean": "mean", "running_var": "variance"}

_ROLES: dict[UnitKind, dict[str, str]] = {
    UnitKind.NORM: {"weight": "scale", "bias": "shift", "gamma": "scale", "beta": "shift", **_STATISTICS},
    UnitKind.SCALE: {"weight": "scale", "bias": "shift", "gamma": "scale", "beta": "shift", "gain": "scale"},
    UnitKind.SLOPE: {"weight": "slope"},
    UnitKind.RECURRENT: {
        **dict.fromkeys(("weight_ih", "weight_ih_l0"), "input_weight"),
        **dict.fromkeys(("weight_hh", "weight_hh_l0"), "hidden_weight"),
        **dict.fromkeys(("bias_ih", "bias_ih_l0"), "bias"),
        **dict.fromkeys(("bias_hh", "bias_hh_l0"), "second bias"),
    },
}


def module_units(model: nn.Module) -> list[Unit]:
    """One unit for each module that holds parameters or running statistics itself, in the order of registration.

    A tensor goes by its first name in ``named_parameters()`` or ``named_buffers()``; modules whose tensors are all
    tied are one unit. Raises ``ModelError`` for parameters without a shape yet, and for a model without parameters.
    """
    names: dict[int, str] = {}
    for name, tensor in named_tensors(model):
        if is_lazy(tensor):
            raise ModelError(
                f"{name} has no shape yet",
                hint="the model has lazy modules: run one forward pass before binding it",
            )
        if name.rpartition(".")[2] == "_flat_param":
            raise ModelError(
                "FSDP has flattened the model's parameters into one",
                hint="wrap it with use_orig_params=True, or bind it before it is wrapped",
            )
        names[id(tensor)] = name
    if not any(True for _ in model.parameters()):
        raise ModelError(f"{type(model).__name__} has no parameters: there is nothing to bind and nothing to train")
    units: dict[tuple[object, ...], Unit] = {}
    for path, module in named_modules(model):
        unit = _unit(path, module, names)
        if unit is not None:
            keys = tuple(held.key for held in unit.held)
            units[keys] = _tied(units[keys], unit) if keys in units else unit
    return list(units.values())


def opaque_modules(model: nn.Module) -> Iterator[tuple[nn.Module, Unit]]:
    """The modules of which one call is one use of a unit: torch's own layers, and what looks like one.

    A module of unknown kind is not among them: what it does with its parameters is for its operations to tell.
    """
    parts = {part: unit for unit in module_units(model) for part in unit.parts}
    for path, module in named_modules(model):
        if path in parts and parts[path].kind is not UnitKind.OTHER:
            yield module, parts[path]


def _unit(path: str, module: nn.Module, names: dict[int, str]) -> Unit | None:
    tensors = dict(_own_tensors(module))
    if not tensors:
        return None
    kind = _kind(module, tensors)
    roles = module.roles if isinstance(module, SkeletonLayer) else _ROLES.get(kind, {})
    held = tuple(
        Held(roles.get(name, name), tuple(tensor.shape), names[id(tensor)], isinstance(tensor, nn.Parameter))
        for name, tensor in tensors.items()
    )
    shape = held[0].shape
    if kind in (UnitKind.NORM, UnitKind.SCALE, UnitKind.SLOPE):
        shape = (prod(tensors[next(iter(tensors))].shape),)
    groups = getattr(module, "groups", 1)
    remark = " (computed from other parameters: remove the parametrization first)" if _computed(module) else ""
    return Unit(path, (path,), kind, shape, held, groups if isinstance(groups, int) else 1, remark)


def _computed(module: nn.Module) -> bool:
    """Whether torch computes the weight, as ``weight_norm`` and ``spectral_norm`` make it do."""
    names = ("weight_g", "weight_orig")
    return hasattr(module, "parametrizations") or any(name in module._parameters for name in names)


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters, and the buffers that hold what Caffe keeps in blobs: statistics, and a frozen norm's scale."""
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield name, parameter
    statistics = "running_mean" in module._buffers or "running_var" in module._buffers
    for name, buffer in module._buffers.items():
        if buffer is not None and (name in _STATISTICS or (statistics and name in ("weight", "bias"))):
            yield name, buffer


def _kind(module: nn.Module, tensors: dict[str, torch.Tensor]) -> UnitKind:
    if isinstance(module, SkeletonLayer):
        return module.kind
    for types, kind in _KINDS:
        if isinstance(module, types):
            return kind
    if "running_mean" in tensors:
        return UnitKind.NORM
    sizes = {tensor.numel() for tensor in tensors.values()}
    vectors = all(max(tensor.shape, default=1) == tensor.numel() for tensor in tensors.values())
    if len(tensors) <= 2 and len(sizes) == 1 and vectors:
        return UnitKind.SCALE
    weight = tensors.get("weight")
    return (
        UnitKind.MAP
        if weight is not None and weight.dim() >= 2 and set(tensors) <= {"weight", "bias"}
        else UnitKind.OTHER
    )


def _tied(first: Unit, second: Unit) -> Unit:
    return Unit(first.name, first.parts + second.parts, first.kind, first.shape, first.held, first.groups)


# Parameters that a forward pass uses without calling a module: the operation tells what kind of unit they make.

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
            self._made[parameters] = self._builder.unit(_bare_unit(operation, groups, module, held))
            self._module[self._made[parameters]] = module
        return self._builder.use(self._made[parameters], values)


def _in_role(operation: str, held: Held) -> Held:
    if operation in _BARE_ROLES:
        return replace(held, role=_BARE_ROLES[operation])
    if _BARE_KINDS.get(operation) in (UnitKind.MAP, UnitKind.TRANSPOSED):
        return replace(held, role="weight" if len(held.shape or ()) > 1 else "bias")
    return held


def _bare_unit(operation: str, groups: int, module: str, held: tuple[Held, ...]) -> Unit:
    kind = _BARE_KINDS.get(operation, UnitKind.OTHER)
    main = max(held, key=lambda one: len(one.shape or ()))
    shape = main.shape
    if kind in (UnitKind.NORM, UnitKind.SCALE, UnitKind.SLOPE):
        shape = (prod(size or 1 for size in shape or ()),)
    name = module or str(main.key)
    return Unit(name, (name,), kind, shape, held, groups)
