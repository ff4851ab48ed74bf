"""The wiring of a model from one forward pass, followed operation by operation.

While the model runs, every tensor is known by the node of the wiring that its numbers come from. A call of a module
that learns is one use of its unit, whatever happens inside; outside such calls, each operation of torch joins the
sources of its inputs. Views share their base's memory, and a tensor is known by its memory, so reshaping and slicing
need no rules. Gradients play no part: a frozen backbone under ``no_grad`` is followed like the rest.

On the way it is noted what each operation computes and with which settings (``Computation``), for the comparison of
layers.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - as all of torch's own documents write it
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle

from caffe2torch.binding.computation import (
    MAIN,
    UNKNOWN,
    Begins,
    Chain,
    Computation,
    Edge,
    Operation,
    extended,
    merged,
    scaled,
    split_at_main,
)
from caffe2torch.binding.graph import INPUT, Node, Op, Unit, UnitKind, Wiring, WiringBuilder
from caffe2torch.binding.traced_operations import COMPOSITES, batch_norm_of, moves, read_call, read_operation
from caffe2torch.binding.uses import BareParameters, in_order, opaque_modules, roles_given
from caffe2torch.binding.wrappers import named_modules, named_tensors

__all__ = ["REST", "trace"]

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

_FACTORS = {"sub": -1, "rsub": -1, "div": 0}
"""By what the second of two values is multiplied (of ``rsub``, the first) when they become one; 0: by no factor."""

_INDEXED = {"max_unpool2d": 0, "max_unpool3d": 0, "scatter": -1}
"""Operations that put numbers where indices say: which input the numbers are."""

_OWN_ARITHMETIC = frozenset({"mul", "add", "sub", "div"})  # with a parameter: a scale, a shift, a bias

_REDUCTIONS = frozenset({"mean", "sum", "var", "std", "var_mean", "std_mean"})

_MATRIX_PRODUCTS = frozenset({"mm", "addmm", "bmm", "baddbmm", "matmul"})

_Source = int | frozenset[str]
"""What a tensor's numbers come from: a node, or parameters that no value of the net has met yet."""

_View = tuple[int, tuple[int, ...], tuple[int, ...]]
"""Where in its memory a view is: offset, sizes, strides."""

_Part = tuple[tuple[str, ...], Begins]
"""Of which inputs a value is made, in the order of a concatenation, and where in its source it begins."""

_WHOLE: _Part = ((), ())


class _Given(NamedTuple):
    """A value that goes into something, as an ``Edge`` has it."""

    source: int
    chain: Chain
    shape: tuple[int, ...]
    given: tuple[str, ...]
    begins: Begins


def trace(
    model: nn.Module, units: Sequence[Unit], inputs: Sequence[Tensor], named: Mapping[str, Tensor] | None = None
) -> tuple[Wiring, Exception | None]:
    """Run ``model`` once and return its wiring, with what is computed, and what the forward pass raised.

    After an error the wiring is as far as the pass went. What nothing had used by then feeds one further unit, which
    stands for the rest, so that it is not taken for an output.
    """
    tracer = _Tracer(model, units)
    every = (*inputs, *(named or {}).values())
    tracer.computation.inputs = tuple(tuple(tensor.shape) for tensor in every)
    tracer.computation.input_names = (*_argument_names(model, len(inputs)), *(named or {}))
    for tensor, name in zip(every, tracer.computation.input_names, strict=True):
        tracer.know(tensor, INPUT)
        tracer.part[_memory(tensor)] = (name,), ()
    tracer.computation.training = model.training
    error = None
    try:
        with torch.no_grad(), _Calls(tracer), tracer:
            tracer.give(model(*inputs, **(named or {})))
    except Exception as raised:  # whatever a user's forward pass raises
        error = raised
        tracer.break_off()
        used = {source for node in tracer.builder.nodes for source in node.inputs}
        open_nodes = [number for number in range(len(tracer.builder.nodes)) if number not in used]
        rest = tracer.builder.unit(Unit(REST, (REST,), UnitKind.OTHER, None, ()))
        tracer.builder.use(rest, open_nodes)
    finally:
        for hook in tracer.hooks:
            hook.remove()
    return replace(tracer.builder.build(), computation=tracer.end()), error


def _argument_names(model: nn.Module, count: int) -> list[str]:
    """What ``forward`` calls its first arguments; of ``*arguments`` their numbers."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        parameters = {}.values()
    named = [one.name for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    return [*named[:count], *map(str, range(len(named), count))]


class _Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its base untyped
    """Follows sources from operation to operation while it is active."""

    def __init__(self, model: nn.Module, units: Sequence[Unit]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.builder = WiringBuilder()
        tensors = dict(named_tensors(model))
        self.bare = BareParameters(units, self.builder, {name: tuple(one.shape) for name, one in tensors.items()})
        self.source: dict[int, _Source] = {}
        self.part: dict[int, _Part] = {}  # by memory, of which inputs it is, and where in its node's value it begins
        self.alive: list[Tensor] = []  # no memory may be given to another tensor while it stands for a source
        self.inside: list[list[_Given]] = []  # what the unit calls now running were given
        self.computation = Computation((), ())
        self.chain: dict[int, Chain] = {}  # by memory, what was computed since the node that a value comes from
        self.views: dict[int, dict[_View, Chain]] = {}  # the same of views that are not all that is in their memory
        self.within: dict[int, tuple[Tensor, Chain]] = {}  # the same inside the unit that is running
        self.altered: set[int] = set()  # memory of what was computed from parameters alone
        self.composite = False  # whether a function runs that is read as one operation
        self.running: Unit | None = None  # the unit whose call is the outermost
        self.at = ""  # the module without tensors that is running
        self.number: dict[tuple[object, ...], int] = {}
        self.hooks: list[RemovableHandle] = []
        self.transposed: dict[str, bool] = {}  # by parameter, as products used it
        self.parameters = {name: tensor for name, tensor in tensors.items() if name in self.bare}
        self.named = {_memory(tensor): (name, tensor.numel()) for name, tensor in tensors.items()}
        self.function = ""  # the function that runs, where its operations do not show which it is
        self.statistics: set[int] = set()  # memory of what is computed over a batch, for each channel
        self.normalized: set[int] = set()  # memory of what such statistics were taken from, by no parameter so far
        self.normalization: tuple[str, dict[str, str]] | None = None  # what the running unit normalizes with
        for name, tensor in self.parameters.items():
            self.know(tensor, frozenset({name}))
        for module, unit in opaque_modules(model, units):
            self._watch(module, unit)
        for path, module in named_modules(model):
            if not (module._modules or module._parameters or module._buffers):
                self._note_place(path, module)

    def know(self, tensor: Tensor, source: _Source, chain: Chain = ()) -> None:
        """From now on the numbers in this tensor's memory come from ``source``, by way of ``chain``."""
        memory = _memory(tensor)
        self.source[memory] = source
        if isinstance(source, int):
            self.chain[memory] = chain
        for view in self.views.get(memory, {}):  # other numbers are there now
            self.views[memory][view] = (*chain, UNKNOWN)
        self.alive.append(tensor)

    def give(self, result: Any) -> None:
        """Take this as what the model gives."""
        for tensor in _tensors(result):
            if isinstance(source := self.source.get(_memory(tensor)), int):
                chain = self._chain_at(tensor) or ()
                self.computation.edges.append(Edge(source, None, chain, tuple(tensor.shape)))

    def end(self) -> Computation:
        """What was computed, with the units and nodes so far; what comes later changes it no more."""
        if not self.computation.nodes:
            self.computation.units, self.computation.nodes = tuple(self.builder.units), tuple(self.builder.nodes)
        return self.computation

    def break_off(self) -> None:
        """End in the middle of a unit's call: what came to it was computed all the same."""
        found = self.end()
        if self.inside and self.running is not None:
            keys = tuple(tensor.key for tensor in self.running.tensors)
            if keys not in self.number:
                found.units = (*found.units, self.running)
            number, entered = self.number.get(keys, len(found.units) - 1), self.inside[0]
            found.nodes = (*found.nodes, Node(Op.UNIT, tuple(one.source for one in entered), number))
            self._enter(len(found.nodes) - 1, entered, [])

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A function of ``COMPOSITES``: one operation, whatever it is made of."""
        x: Tensor = args[0] if args else kwargs["input"]
        chain, source = self._chain_of(x), self.source.get(_memory(x))
        if chain is None or self.composite:
            return func(*args, **kwargs)
        read = read_call(func, args, kwargs, self.computation.training)
        if read is None:
            return func(*args, **kwargs)
        self.composite = True
        try:
            as_meta = func is F.local_response_norm and x.is_meta
            result = _empty(x.shape, x) if as_meta else func(*args, **kwargs)
        finally:
            self.composite = False
        operation = read(x, result)
        if operation is not None:
            chain = extended(chain, replace(operation, name=self.at))
        if self.inside:
            self.within[_memory(result)] = result, chain
        elif source is not None:
            self.know(result, source, chain)
            self.part[_memory(result)] = self._part(x, _memory(x))
        return result

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = _tensors((args, kwargs or {}))
        result = _elementwise_on_meta(func, inputs)
        if result is None:
            result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in _MATRIX_PRODUCTS:
            self._note_order(inputs[-1])
        if self.inside and not self.composite:
            if roles := self._roles(func, args, kwargs or {}):
                self.normalization = self.function or func.overloadpacket.__name__, roles
            if moves(func) and isinstance(source := self.source.get(_memory(inputs[0])), frozenset):
                self.know(_tensors(result)[0], source)  # a parameter in another type or order
            outputs = inputs[:1] if func._schema.is_mutable else _tensors(result)
            self._note_normalized(func, args, inputs, outputs)
            chain = self._computed(func, args, kwargs or {}, inputs, outputs)
            if chain is not None:
                self.within.update((_memory(output), (output, chain)) for output in outputs)
        elif not self.composite:
            self._follow(func, args, kwargs or {}, inputs, _tensors(result))
        return result

    def _is_computed(self, weight: Tensor) -> bool:
        """Whether a factor of a product is neither a value nor a parameter as it is."""
        memory = _memory(weight)
        return memory in self.altered or (memory not in self.source and memory not in self.within)

    def _chain_of(self, tensor: Tensor) -> Chain | None:
        """What was computed since the last node; ``None`` for what is no value of the net."""
        within = self.within.get(_memory(tensor))
        return self._chain_at(tensor) if within is None else within[1]

    def _chain_at(self, tensor: Tensor) -> Chain | None:
        memory = _memory(tensor)
        views = self.views.get(memory)
        own = self.chain.get(memory)
        return views.get(_view(tensor), own) if views else own

    def _computed(self, func: Any, args: Any, kwargs: Any, inputs: list[Tensor], outputs: list[Tensor]) -> Chain | None:
        """The chain of what an operation gives; ``None`` where no value of the net goes into it."""
        name = func.overloadpacket.__name__.rstrip("_")
        numbers = [inputs[_INDEXED[name]]] if name in _INDEXED else inputs
        chains = [chain for one in numbers if (chain := self._chain_of(one)) is not None]
        if not chains:
            return None
        chain = merged(chains)
        if name in _OWN_ARITHMETIC and any(isinstance(self.source.get(_memory(one)), frozenset) for one in inputs):
            return chain
        operation = read_operation(func, args, kwargs, outputs[0] if outputs else None)
        if operation is None:
            return chain
        if operation.kind in ("convolution", "linear") and any(map(self._is_computed, inputs[1:])):
            operation = UNKNOWN
        if operation.kind not in ("linear", "embedding") and self._chain_of(numbers[0]) is None:
            operation = UNKNOWN
        return extended(chain, operation if operation.kind in MAIN else replace(operation, name=self.at))

    def _follow(self, func: Any, args: Any, kwargs: Any, inputs: list[Tensor], outputs: list[Tensor]) -> None:
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
        roles = self._roles(func, args, kwargs)
        given_memory = {_memory(one) for one in inputs}
        count = len(self.builder.nodes)
        chain: Chain = ()
        computed = self._computed(func, args, kwargs, inputs, outputs) or ()
        entered = [one for one in map(self._given, numbers) if one is not None]
        if len(entered) == 2 and (factor := _FACTORS.get(name, 1) * kwargs.get("alpha", 1)) != 1:
            place = name == "rsub"
            own = entered[1 - place].chain
            entered[1 - place] = entered[1 - place]._replace(chain=scaled(own, factor) if factor else (*own, UNKNOWN))
        if not values:
            joined: _Source = parameters
            if not moves(func) or any(_memory(one) in self.altered for one in inputs):
                self.altered.update(map(_memory, outputs))
        elif parameters or roles:
            groups = 1
            if name == "convolution":  # ..., stride, padding, dilation, transposed, output_padding, groups
                name, groups = "conv_transpose" if args[6] else name, args[8]
            kind = UnitKind.NORM if name == "mul" and not given_memory.isdisjoint(self.normalized) else None
            joined = self.bare.apply(self.function or name, parameters, values, groups, self.transposed, roles, kind)
        else:
            joined = self.builder.join(_JOINS.get(name, Op.JOINT), values)
            self._note_normalized(func, args, inputs, outputs)
        if isinstance(joined, int):
            chain = self._arrive(joined, entered, computed, outputs, new=len(self.builder.nodes) > count)
        new = isinstance(joined, int) and len(self.builder.nodes) > count
        part = _one_part(entered, concatenated=joined == INPUT and name == "cat") if not new else _WHOLE
        for output in outputs:
            memory = _memory(output)
            if memory not in given_memory:
                self.part[memory] = part
            if func._schema.is_mutable and not _whole(output):  # the rest of what is there stays as it was
                self.know(output, joined, (*self.chain.get(memory, ()), UNKNOWN))
            elif func._schema.is_mutable or memory not in given_memory:
                self.know(output, joined, chain)
            elif isinstance(joined, int) and chain != self.chain.get(memory):
                self.views.setdefault(memory, {})[_view(output)] = chain

    def _roles(self, func: Any, args: Any, kwargs: Any) -> dict[str, str]:
        """The parameters and buffers that a normalization is given, each with its role."""
        roles = roles_given(self.function or func.overloadpacket.__name__)
        if not roles:
            return {}
        given = dict(zip((one.name for one in func._schema.arguments), args, strict=False)) | kwargs
        names = {argument: self._name(given[argument]) for argument in roles if given.get(argument) is not None}
        return {name: roles[argument] for argument, name in names.items() if name is not None}

    def _note_normalized(self, func: Any, args: Any, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        """Follow a batch normalization without parameters, or written by hand, to the scale and shift after it."""
        name = func.overloadpacket.__name__.rstrip("_")
        if not (self.statistics or self.normalized or name in _REDUCTIONS or name.endswith("batch_norm")):
            return
        memories = {_memory(one) for one in inputs}
        found: set[int] | None = None
        if name in _REDUCTIONS:
            dims = {dim % inputs[0].dim() for dim in args[1]} if len(args) > 1 and isinstance(args[1], list) else set()
            found = self.statistics if 0 in dims and 1 not in dims else None
        elif name.endswith("batch_norm"):
            found = None if self.function or len(memories) > 1 else self.normalized
        elif not memories.isdisjoint(self.statistics):
            found = self.statistics if memories <= self.statistics else self.normalized
        elif not memories.isdisjoint(self.normalized) and name in ("mul", "add"):
            own = [one for one in map(self._name, inputs) if one is not None and one in self.bare]
            if len(own) == 1 and self.inside:
                before = {} if self.normalization is None else self.normalization[1]
                self.normalization = "batch_norm", {**before, own[0]: "scale" if name == "mul" else "shift"}
                found = self.normalized
        if found is not None:
            found.update(map(_memory, outputs))
            self.alive += outputs

    def _name(self, tensor: Tensor) -> str | None:
        """The parameter or buffer that a tensor is, if it is a whole one or is computed from one alone."""
        name, size = self.named.get(_memory(tensor), (None, 0))
        source = self.source.get(_memory(tensor))
        if name is None and isinstance(source, frozenset) and len(source) == 1:
            return next(iter(source))
        return name if size == tensor.numel() else None

    def _given(self, tensor: Tensor) -> _Given | None:
        memory = _memory(tensor)
        source = self.source.get(memory)
        if not isinstance(source, int):
            return None
        chain = self._chain_at(tensor) if memory in self.views else self.chain.get(memory)
        return _Given(source, chain or (), tuple(tensor.shape), *self._part(tensor, memory))

    def _part(self, tensor: Tensor, memory: int) -> _Part:
        """The inputs that the numbers are made from, and where in what their node gives they begin."""
        part, rest = self.part.get(memory, _WHOLE), int(tensor.storage_offset())
        if not rest:
            return part
        (given, begins), found = part, list[tuple[int, int]]()
        for axis, stride in sorted(enumerate(tensor.stride()), key=lambda item: -item[1]):
            if stride and rest >= stride:
                found.append((axis, int(rest // stride)))
                rest %= int(stride)
        return given, (*begins, *sorted(found))

    def _arrive(self, node: int, entered: list[_Given], computed: Chain, outputs: list[Tensor], *, new: bool) -> Chain:
        """Note what came to a node outside of modules; returns the chain of what it gives."""
        if not new:
            return tuple(UNKNOWN if operation.kind in MAIN else operation for operation in computed)
        before: Chain | None = None
        if self.builder.nodes[node].unit is not None:
            before, own, _ = split_at_main(computed)
            if own is None:
                before = None
            else:
                self.computation.own[node] = own
        self._enter(node, entered, outputs, before)
        return ()

    def _enter(self, node: int, entered: list[_Given], outputs: list[Tensor], before: Chain | None = None) -> None:
        """Add the edges into a node, by ``before`` where that is known better, and the shape of what it gives."""
        for one in entered:
            chain = one.chain if before is None else before
            self.computation.edges.append(Edge(one.source, node, chain, one.shape, one.given, one.begins))
        self.computation.shapes[node] = tuple(outputs[0].shape) if outputs else None

    def _note_order(self, factor: Tensor) -> None:
        """The last factor of a product is inputs x outputs: a parameter itself, or a transposed view of one.

        Of a copy or another view nothing is known: loading weights then asks.
        """
        source = self.source.get(_memory(factor))
        if not isinstance(source, frozenset) or len(source) != 1:
            return
        (name,) = source
        own = self.parameters[name]
        if own.dim() != 2:
            self.transposed[name] = (own.shape, own.stride()) == (factor.shape, factor.stride())
        elif _memory(own) == _memory(factor):
            seen = tuple(factor.shape[-2:]), tuple(factor.stride()[-2:])
            for transposed, turn in ((True, 1), (False, -1)):
                if seen == (tuple(own.shape[::turn]), tuple(own.stride()[::turn])):
                    self.transposed[name] = transposed
                    break

    def _write(self, name: str, inputs: list[Tensor]) -> None:
        """Numbers written over others: all of them, or joining those that stay."""
        target = inputs[0]
        written = self.source.get(_memory(inputs[1])) if name == "copy" else None
        whole = _whole(target)
        before = None if whole else self.source.get(_memory(target))
        entered = [one for one in map(self._given, inputs[:2]) if one is not None]
        if isinstance(before, int) and isinstance(written, int):
            count = len(self.builder.nodes)
            joined = self.builder.join(Op.JOINT, [before, written])
            if len(self.builder.nodes) > count:
                self._enter(joined, entered, [target])
                self.know(target, joined)
            else:
                self.know(target, joined, (*merged([one.chain for one in entered]), UNKNOWN))
        elif written is not None:
            chain = self._chain_at(inputs[1]) or ()
            self.know(target, written, chain if whole else (*chain, UNKNOWN))
        elif whole:
            self.source.pop(_memory(target), None)
            self.chain.pop(_memory(target), None)

    def _watch(self, module: nn.Module, unit: Unit) -> None:
        """Take each call of a module as one use of its unit."""
        keys = tuple(tensor.key for tensor in unit.tensors)

        def before(_: nn.Module, args: Any, kwargs: Any) -> None:
            if not self.inside:
                self.running, self.normalization = unit, None
            given = (self._given(tensor) for tensor in _tensors((args, kwargs)))
            self.inside.append([one for one in given if one is not None])

        def after(_: nn.Module, __: Any, result: Any) -> None:
            entered = self.inside.pop()
            if self.inside:
                return  # part of a larger unit
            if keys not in self.number:
                used = unit if self.normalization is None else self.bare.as_given(unit, *self.normalization)
                self.number[keys] = self.builder.unit(in_order(used, self.transposed))
            node = self.builder.use(self.number[keys], [one.source for one in entered] or [INPUT])
            outputs = _tensors(result)
            before, own, chain = self._inside_of(module, entered, outputs)
            self.within.clear()
            if own is not None:
                self.computation.own[node] = own
            self._enter(
                node, [one for one in entered if one.source in self.builder.nodes[node].inputs], outputs, before
            )
            for tensor in outputs:
                self.know(tensor, node, chain)

        self.hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
        self.hooks.append(module.register_forward_hook(after))

    def _inside_of(
        self, module: nn.Module, entered: list[_Given], outputs: list[Tensor]
    ) -> tuple[Chain | None, Operation | None, Chain]:
        """What a unit's call computed: before its own operation, itself, and after it.

        The first is ``None`` where nothing is to be added to what was computed before the call.
        """
        if isinstance(module, _BatchNorm) and "forward" in vars(module):  # it only passes on the shape
            return None, batch_norm_of(module), ()
        torchs = type(module).__module__.startswith("torch.nn.")
        before = merged([one.chain for one in entered]) if entered else ()
        left = self._chain_of(outputs[0]) if outputs else None
        same = left is not None and left[: len(before)] == before
        if left is not None and not same and before and before[-1].kind in ("padding", "pooling"):
            same = left[: len(before) - 1] == before[:-1]  # what became part of a window
        if left is None or not same:
            return None, None, () if torchs else (UNKNOWN,)
        leading, own, after = split_at_main(left)
        if own is None:
            return None, None, () if torchs else left[len(before) :]
        return leading, own, after

    def _note_place(self, path: str, module: nn.Module) -> None:
        """Name the operations of a module that holds no tensors after it."""

        def before(_: nn.Module, __: Any) -> None:
            self.at = path

        def after(_: nn.Module, __: Any, ___: Any) -> None:
            self.at = ""

        self.hooks.append(module.register_forward_pre_hook(before))
        self.hooks.append(module.register_forward_hook(after))


class _Calls(TorchFunctionMode):
    """Shows the tracer the calls of functions that are made of several operations."""

    def __init__(self, tracer: _Tracer) -> None:
        super().__init__()
        self._tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in COMPOSITES:
            return self._tracer.call(func, args, kwargs or {})
        if func in (F.instance_norm, torch.instance_norm):  # made of a batch norm of repeated parameters
            self._tracer.function = "instance_norm"
            try:
                return func(*args, **(kwargs or {}))
            finally:
                self._tracer.function = ""
        return func(*args, **(kwargs or {}))


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


def _one_part(entered: Sequence[_Given], *, concatenated: bool) -> _Part:
    """What a value that is made of others is a part of."""
    parts = {(one.given, one.begins) for one in entered}
    if len(parts) == 1:
        return next(iter(parts))
    given = [one.given for one in entered]
    return (tuple(name for names in given for name in names), ()) if concatenated and all(given) else _WHOLE


def _memory(tensor: Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address


def _whole(tensor: Tensor) -> bool:
    """Whether it has all that is in its memory."""
    return tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()


def _view(tensor: Tensor) -> _View:
    return int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride()


def _tensors(value: Any) -> list[Tensor]:
    """The tensors in arguments or results, in order, inside tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (tuple, list)):
        return []
    found: list[Tensor] = []
    for one in value:
        if isinstance(one, Tensor):
            found.append(one)
        elif isinstance(one, (tuple, list, dict)):
            found += _tensors(one)
    return found
