"""The wiring of a model by symbolic tracing: no sizes needed, but no decision in ``forward`` may depend on a value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx, nn

from caffe2torch.binding.graph import INPUT, Op, Unit, Wiring, WiringBuilder
from caffe2torch.binding.uses import BareParameters, opaque_modules

__all__ = ["fx_wiring"]

_FX_JOINS = {
    **dict.fromkeys(("cat", "concat", "concatenate", "stack"), Op.CONCAT),
    **dict.fromkeys(("add", "iadd", "radd", "sub", "isub", "rsub"), Op.SUM),
    **dict.fromkeys(("mul", "imul", "rmul", "div", "truediv", "itruediv"), Op.PRODUCT),
    **dict.fromkeys(("maximum", "max"), Op.MAX),
}
_FX_FIRST_ONLY = ("unpool", "interpolate", "upsample", "roi_", "getitem", "expand", "view", "reshape", "crop")
_NO_NUMBERS = frozenset({"size", "dim", "getattr", "len", "numel", "detach_shape"})

_FxSource = int | frozenset[str] | None


def fx_wiring(model: nn.Module, units: Sequence[Unit]) -> Wiring:
    """Trace ``model`` with ``torch.fx`` and return its wiring. Whatever tracing raises is passed on."""
    opaque = {id(module): unit for module, unit in opaque_modules(model, units)}
    graph = _FxTracer(opaque).trace(model)
    builder = WiringBuilder()
    bare = BareParameters(units, builder)
    number: dict[tuple[object, ...], int] = {}
    source: dict[fx.Node, _FxSource] = {}
    for node in graph.nodes:
        found = [source[one] for one in node.all_input_nodes]
        values = [one for one in found if isinstance(one, int)]
        parameters = frozenset[str]().union(*(one for one in found if isinstance(one, frozenset)))
        match node.op:
            case "placeholder":
                source[node] = INPUT
            case "get_attr":
                source[node] = frozenset({str(node.target)}) if str(node.target) in bare else None
            case "call_module" if (unit := opaque.get(id(model.get_submodule(str(node.target))))) is not None:
                keys = tuple(tensor.key for tensor in unit.tensors)
                if keys not in number:
                    number[keys] = builder.unit(unit)
                source[node] = builder.use(number[keys], values or [INPUT])
            case _:
                source[node] = _joined(_name(node), node, values, parameters, builder, bare)
    return builder.build()


def _joined(
    name: str,
    node: fx.Node,
    values: list[int],
    parameters: frozenset[str],
    builder: WiringBuilder,
    bare: BareParameters,
) -> _FxSource:
    if name in _NO_NUMBERS or not (values or parameters):
        return None
    if not values:
        return parameters
    if parameters:
        groups = node.kwargs.get("groups", node.args[6] if len(node.args) > 6 else 1)
        return bare.apply(_spelled(name), parameters, values, groups if isinstance(groups, int) else 1)
    if any(part in name for part in _FX_FIRST_ONLY):
        return values[0]
    return builder.join(_FX_JOINS.get(name, Op.JOINT), values)


def _name(node: fx.Node) -> str:
    target: Any = node.target
    return str(getattr(target, "__name__", target)).strip("_")


def _spelled(name: str) -> str:
    """The operation's name as ``BareParameters`` knows it, whatever its number of axes."""
    if name.startswith("conv_transpose"):
        return "conv_transpose"
    return "convolution" if name in ("conv1d", "conv2d", "conv3d") else name.removeprefix("i")


class _FxTracer(fx.Tracer):
    """Does not look inside modules that are one unit."""

    def __init__(self, units: dict[int, Unit]) -> None:
        super().__init__()
        self._units = units

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return id(m) in self._units or super().is_leaf_module(m, module_qualified_name)
