"""The wiring of a model from one forward pass, followed operation by operation.

While the model runs, every tensor is known by the node of the wiring that its numbers come from. A call of a module
that learns is one use of its unit, whatever happens inside; outside such calls, each operation of torch joins the
sources of its inputs. Views share their base's memory, and a tensor is known by its memory, so reshaping and slicing
need no rules. Gradients play no part: a frozen backbone under ``no_grad`` is followed like the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle

from caffe2torch.binding.bare_parameters import BareParameters
from caffe2torch.binding.graph import INPUT, Op, Unit, Wiring, WiringBuilder
from caffe2torch.binding.modules import opaque_modules
from caffe2torch.binding.rewiring import contracted
from caffe2torch.binding.wrappers import named_tensors

__all__ = ["trace"]

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

_Source = int | frozenset[str]
"""What a tensor's numbers come from: a node, or parameters that no value of the net has met yet."""


def trace(model: nn.Module, inputs: Sequence[Tensor], named: Mapping[str, Tensor] | None = None) -> Wiring:
    """Run ``model`` once and return its wiring. Whatever the forward pass raises is passed on."""
    tracer = _Tracer(model)
    for tensor in (*inputs, *(named or {}).values()):
        tracer.know(tensor, INPUT)
    try:
        with torch.no_grad(), tracer:
            model(*inputs, **(named or {}))
    finally:
        for hook in tracer.hooks:
            hook.remove()
    return contracted(tracer.builder.build())


class _Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its base untyped
    """Follows sources from operation to operation while it is active."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.builder = WiringBuilder()
        self.bare = BareParameters(model, self.builder)
        self.source: dict[int, _Source] = {}
        self.alive: list[Tensor] = []  # no memory may be given to another tensor while it stands for a source
        self.inside: list[list[int]] = []  # the sources that the unit calls now running were given
        self.number: dict[tuple[object, ...], int] = {}
        self.hooks: list[RemovableHandle] = []
        for name, tensor in named_tensors(model):
            if name in self.bare:
                self.know(tensor, frozenset({name}))
        for module, unit in opaque_modules(model):
            self._watch(module, unit)

    def know(self, tensor: Tensor, source: _Source) -> None:
        """From now on the numbers in this tensor's memory come from ``source``."""
        self.source[_memory(tensor)] = source
        self.alive.append(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.inside:
            self._follow(func, args, _tensors((args, kwargs or {})), _tensors(result))
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
            joined = self.bare.apply(name, parameters, values, groups)
        else:
            joined = self.builder.join(_JOINS.get(name, Op.JOINT), values)
        given = {_memory(one) for one in inputs}
        for output in outputs:
            if func._schema.is_mutable or _memory(output) not in given:
                self.know(output, joined)

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
        keys = tuple(held.key for held in unit.held)

        def before(_: nn.Module, args: Any, kwargs: Any) -> None:
            sources = [self.source.get(_memory(tensor)) for tensor in _tensors((args, kwargs))]
            self.inside.append([source for source in sources if isinstance(source, int)] or [INPUT])

        def after(_: nn.Module, __: Any, result: Any) -> None:
            sources = self.inside.pop()
            if self.inside:
                return  # part of a larger unit
            if keys not in self.number:
                self.number[keys] = self.builder.unit(unit)
            node = self.builder.use(self.number[keys], sources)
            for tensor in _tensors(result):
                self.know(tensor, node)

        self.hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
        self.hooks.append(module.register_forward_hook(after))


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
