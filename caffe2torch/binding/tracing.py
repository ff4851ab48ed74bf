"""The wiring of a model from one forward pass, followed operation by operation.

While the model runs, every tensor is known by the node of the wiring that its numbers come from. A call of a module
that learns is one use of its unit, whatever happens inside; outside such calls, each operation of torch joins the
sources of its inputs. Views share their base's memory, and a tensor is known by its memory, so reshaping and slicing
need no rules. Gradients play no part: a frozen backbone under ``no_grad`` is followed like the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle

from caffe2torch.binding.graph import INPUT, Op, TensorReference, Unit, UnitKind, Wiring, WiringBuilder
from caffe2torch.binding.wrappers import named_modules, named_tensors

__all__ = ["REST", "fx_wiring", "trace"]

REST = "the rest of the forward pass"

_JOINS = {
    "cat": Op.CONCAT,
    "stack": Op.CONCAT,
    "add": Op.SUM,
    "sub": Op.SUM,
    "rsub": Op.SUM,
    "mul": Op.PRODUCT,
    "div": Op.PRODUCT,
    "maximum": Op.MAX,
}
_FIRST_ONLY = frozenset({"roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool"})  # what follows are regions

_MATRIX_PRODUCTS = frozenset({"mm", "addmm", "bmm", "baddbmm", "matmul"})

_Source = int | frozenset[str]
"""What a tensor's numbers come from: a node, or parameters that no value of the net has met yet."""


def trace(
    model: nn.Module, units: Sequence[Unit], inputs: Sequence[Tensor], named: Mapping[str, Tensor] | None = None
) -> tuple[Wiring, Exception | None]:
    """Run ``model`` once and return its wiring, and what the forward pass raised.

    After an error the wiring is as far as the pass went. What nothing had used by then feeds one further unit, which
    stands for the rest, so that it is not taken for an output.
    """
    tracer = _Tracer(model, units)
    for tensor in (*inputs, *(named or {}).values()):
        tracer.know(tensor, INPUT)
    error = None
    try:
        with torch.no_grad(), tracer:
            model(*inputs, **(named or {}))
    except Exception as raised:  # whatever a user's forward pass raises
        error = raised
        used = {source for node in tracer.builder.nodes for source in node.inputs}
        open_nodes = [number for number in range(len(tracer.builder.nodes)) if number not in used]
        rest = tracer.builder.unit(Unit(REST, (REST,), UnitKind.OTHER, None, ()))
        tracer.builder.use(rest, open_nodes)
    finally:
        for hook in tracer.hooks:
            hook.remove()
    return tracer.builder.build(), error


class _Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its base untyped
    """Follows sources from operation to operation while it is active."""

    def __init__(self, model: nn.Module, units: Sequence[Unit]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.builder = WiringBuilder()
        self.bare = _BareParameters(units, self.builder)
        self.source: dict[int, _Source] = {}
        self.alive: list[Tensor] = []  # no memory may be given to another tensor while it stands for a source
        self.inside: list[list[int]] = []  # the sources that the unit calls now running were given
        self.number: dict[tuple[object, ...], int] = {}
        self.hooks: list[RemovableHandle] = []
        self.transposed: dict[str, bool] = {}  # by parameter, as products used it
        self.parameters = {name: tensor for name, tensor in named_tensors(model) if name in self.bare}
        for name, tensor in self.parameters.items():
            self.know(tensor, frozenset({name}))
        for module, unit in _opaque_modules(model, units):
            self._watch(module, unit)

    def know(self, tensor: Tensor, source: _Source) -> None:
        """From now on the numbers in this tensor's memory come from ``source``."""
        self.source[_memory(tensor)] = source
        self.alive.append(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = _tensors((args, kwargs or {}))
        result = _elementwise_on_meta(func, inputs)
        if result is None:
            result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in _MATRIX_PRODUCTS:
            self._note_order(inputs[-1])
        if not self.inside:
            self._follow(func, args, inputs, _tensors(result))
        return result

    def _follow(self, func: Any, args: Any, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        name = func.overloadpacket.__name__
        if func._schema.is_mutable:
            name = name.rstrip("_")
            if name in ("copy", "fill", "zero"):
                self._write(name, inputs)
                return
            outputs = inputs[:1]
        numbers = inputs if name == "embedding" else [one for one in inputs if one.is_floating_point()]
        if name in _FIRST_ONLY:
            numbers = numbers[:1]
        known = [source for one in numbers if (source := self.source.get(_memory(one))) is not None]
        values = [source for source in known if isinstance(source, int)]
        parameters = frozenset[str]().union(*(source for source in known if not isinstance(source, int)))
        if not known:
            return
        if not values:
            joined: _Source = parameters
        elif parameters:
            groups = 1
            if name == "convolution":  # ..., stride, padding, dilation, transposed, output_padding, groups
                name, groups = "conv_transpose" if args[6] else name, args[8]
            joined = self.bare.apply(name, parameters, values, groups, self.transposed)
        else:
            joined = self.builder.join(_JOINS.get(name, Op.JOINT), values)
        given = {_memory(one) for one in inputs}
        for output in outputs:
            if func._schema.is_mutable or _memory(output) not in given:
                self.know(output, joined)

    def _note_order(self, factor: Tensor) -> None:
        """The last factor of a product is inputs x outputs: a parameter itself, or a transposed view of one."""
        source = self.source.get(_memory(factor))
        if isinstance(source, frozenset) and len(source) == 1:
            own = self.parameters[next(iter(source))]
            self.transposed[next(iter(source))] = (own.shape, own.stride()) == (factor.shape, factor.stride())

    def _write(self, name: str, inputs: list[Tensor]) -> None:
        """Numbers written over others: all of them, or joining those that stay."""
        target = inputs[0]
        written = self.source.get(_memory(inputs[1])) if name == "copy" else None
        whole = target.numel() * target.element_size() == target.untyped_storage().nbytes()
        before = None if whole else self.source.get(_memory(target))
        if isinstance(before, int) and isinstance(written, int):
            self.know(target, self.builder.join(Op.JOINT, [before, written]))
        elif written is not None:
            self.know(target, written)
        elif whole:
            self.source.pop(_memory(target), None)

    def _watch(self, module: nn.Module, unit: Unit) -> None:
        """Take each call of a module as one use of its unit."""
        keys = tuple(tensor.key for tensor in unit.tensors)

        def before(_: nn.Module, args: Any, kwargs: Any) -> None:
            sources = [self.source.get(_memory(tensor)) for tensor in _tensors((args, kwargs))]
            self.inside.append([source for source in sources if isinstance(source, int)] or [INPUT])

        def after(_: nn.Module, __: Any, result: Any) -> None:
            sources = self.inside.pop()
            if self.inside:
                return  # part of a larger unit
            if keys not in self.number:
                self.number[keys] = self.builder.unit(_in_order(unit, self.transposed))
            node = self.builder.use(self.number[keys], sources)
            for tensor in _tensors(result):
                self.know(tensor, node)

        self.hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
        self.hooks.append(module.register_forward_hook(after))


_ELEMENTWISE = frozenset(
    (
        *("abs", "add", "clamp", "clamp_min", "div", "elu", "exp", "gelu", "hardswish", "hardtanh", "leaky_relu"),
        *("log", "maximum", "minimum", "mul", "neg", "pow", "relu", "rsqrt", "rsub", "sigmoid", "silu", "sqrt"),
        *("sub", "tanh"),
    )
)


def _elementwise_on_meta(func: Any, inputs: list[Tensor]) -> Any:
    """What an operation on meta tensors gives where that is its first input's shape again, else ``None``.

    Torch's own answer is written in Python, at most of the cost of a trace, and imports sympy the first time.
    """
    if not inputs or any(not one.is_meta or one.dtype != inputs[0].dtype for one in inputs) or func._schema.is_mutable:
        return None
    first, name = inputs[0], func.overloadpacket.__name__
    if name == "native_batch_norm":
        return _empty(first.shape, first), *(_empty(first.shape[1:2], first) for _ in range(2))
    if name in _ELEMENTWISE and first.is_floating_point():
        return _empty(first.shape, first) if all(_broadcasts(one.shape, first.shape) for one in inputs[1:]) else None
    return None


def _empty(shape: torch.Size, like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device="meta")


def _broadcasts(shape: torch.Size, to: torch.Size) -> bool:
    """Whether a tensor of ``shape`` can be expanded to ``to``."""
    return len(shape) <= len(to) and all(
        size in (1, wanted) for size, wanted in zip(reversed(shape), reversed(to), strict=False)
    )


def _memory(tensor: Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address


def _tensors(value: Any) -> list[Tensor]:
    """The tensors in arguments or results, in order, inside tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, tuple | list):
        return []
    return [tensor for one in value for tensor in _tensors(one)]


def _opaque_modules(model: nn.Module, units: Sequence[Unit]) -> Iterator[tuple[nn.Module, Unit]]:
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


class _BareParameters:
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
                _in_order(_bare_unit(operation, groups, module, own), transposed or {})
            )
            self._module[self._made[parameters]] = module
        return self._builder.use(self._made[parameters], values)


def _in_order(unit: Unit, transposed: Mapping[str, bool]) -> Unit:
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


# The wiring of a model by symbolic tracing: no sizes needed, but no decision in ``forward`` may depend on a value.

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
    opaque = {id(module): unit for module, unit in _opaque_modules(model, units)}
    graph = _FxTracer(opaque).trace(model)
    builder = WiringBuilder()
    bare = _BareParameters(units, builder)
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
    bare: _BareParameters,
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
    """The operation's name as ``_BareParameters`` knows it, whatever its number of axes."""
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
