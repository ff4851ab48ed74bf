"""What one traced forward pass needs: a copy of the model that may be run, and inputs for it."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from caffe2torch.binding.net_graph import NetInput, net_inputs
from caffe2torch.binding.wrappers import bare
from caffe2torch.errors import ModelError
from caffe2torch.recipe import NetRecipe

__all__ = ["Feed", "InputShapes", "StayOnDevice", "candidate_inputs", "check_input_shapes", "meta_copy", "real_copy"]

# Copies of a model to run in its place: same modules, other tensors, nothing of the user's model touched.

_KEEP_THE_SHAPE = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_PLAIN = (bool, int, float, str, type(None))  # nothing to copy
_OWN = frozenset(
    vars(nn.Module())
)  # torch's dicts of hooks and the like, mostly empty, of which no two modules share one
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
)


def meta_copy(model: nn.Module) -> nn.Module:
    """The model on the meta device: shapes and types, no numbers, hence no memory and no arithmetic.

    Batch norms only pass on the shape that they are given. That is all they do here anyway, at most of the cost of a
    forward pass, and ``SyncBatchNorm`` would insist on a GPU.
    """
    copied = _copy(model, _on_meta)
    for module in copied.modules():
        if type(module) in _KEEP_THE_SHAPE:
            module.forward = _same_shape
    return copied


def _same_shape(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)  # ``empty_like`` is slow on meta, and imports sympy


def real_copy(model: nn.Module) -> nn.Module:
    """The model with its own numbers: parameters share the model's memory, buffers are copies that may change."""
    return _copy(model, _on_its_device)


def _copy(model: nn.Module, substitute: Callable[[Tensor], Tensor]) -> nn.Module:
    """Copy every module by hand, so that classes which refuse ``deepcopy`` are copied too and no tensor ever is.

    Hooks are left behind, since they may write into what is the user's; those by which torch itself computes a
    weight (``weight_norm``, ``spectral_norm``) stay. An attribute that cannot be copied is shared.
    """
    model = bare(model)
    modules = list(model.modules())
    memo: dict[int, Any] = {}
    rest: list[tuple[dict[str, Any], str, Any]] = []  # what is copied once every module and tensor has its own
    for module in modules:
        empty: nn.Module = object.__new__(_own_class(module))
        memo[id(module)] = empty
        for name, value in vars(module).items():
            if type(value) in _PLAIN or (type(value) is tuple and all(type(one) in _PLAIN for one in value)):
                empty.__dict__[name] = value
            elif name in _OWN and not value:
                empty.__dict__[name] = type(value)()
            else:
                rest.append((empty.__dict__, name, value))
                if name in _HOOKS:
                    memo[id(value)] = OrderedDict((key, hook) for key, hook in value.items() if _is_torchs(hook))
                for tensor in _tensors(value, 2) if name != "_modules" else ():
                    if id(tensor) not in memo:
                        memo[id(tensor)] = substitute(tensor)
    for attributes, name, value in rest:
        try:
            attributes[name] = copy.deepcopy(value, memo)
        except Exception:  # whatever a user's object raises: locks, files, generators
            attributes[name] = value
    copied: nn.Module = memo[id(model)]
    for module in copied.modules():
        for name, child in module._modules.items():
            if child is not None:
                module._modules[name] = bare(child)
    return copied


def _own_class(module: nn.Module) -> type:
    """The class that the user wrote: ``fully_shard`` puts one in front of it that gathers shards in ``forward``."""
    bases = type(module).__bases__
    if any(base.__name__ == "FSDPModule" for base in bases):
        return next(base for base in bases if base.__name__ != "FSDPModule")
    return type(module)


def _tensors(value: object, depth: int = 3) -> list[Tensor]:
    """The tensors among a module's attributes, inside lists and dicts too."""
    if isinstance(value, Tensor):
        return [value]
    if depth == 0 or not isinstance(value, dict | list | tuple) or not value:
        return []
    return [
        tensor for one in (value.values() if isinstance(value, dict) else value) for tensor in _tensors(one, depth - 1)
    ]


def _on_meta(tensor: Tensor) -> Tensor:
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype  # inputs are float32, whatever the model is
    empty = torch.empty(tensor.shape, dtype=dtype, device="meta")
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty


def _on_its_device(tensor: Tensor) -> Tensor:
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(tensor.detach(), requires_grad=False)
    return tensor.detach().clone()


def _is_torchs(hook: object) -> bool:
    return type(hook).__module__.startswith("torch.nn.utils")


# Calls for a GPU on a machine without one, or in a trace on the meta device: they leave tensors where they are.


class _Nothing:
    """A stream or an event of a GPU that is not there: whatever is called on it does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


_IDLE = {
    "current_device": lambda: 0,
    "synchronize": lambda *_: None,
    "device": lambda *_: contextlib.nullcontext(),
    "stream": lambda *_: contextlib.nullcontext(),
    "Stream": _Nothing,
    "Event": _Nothing,
}
"""What stands in ``torch.cuda`` for calls that only speak to a GPU."""


class StayOnDevice(TorchFunctionMode):
    """While active, ``.cuda()``, ``.to("cuda")``, ``device="cuda"`` and ``torch.cuda.FloatTensor`` mean ``device``."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device
        types = [name for name in dir(torch.cuda) if name.endswith("Tensor")]
        self._originals = {name: getattr(torch.cuda, name) for name in (*types, *_IDLE)}

    def __enter__(self) -> StayOnDevice:
        for name in self._originals:
            made = _IDLE.get(name) or functools.partial(_tensor_of, getattr(torch, name).dtype, self._device)
            setattr(torch.cuda, name, made)
        super().__enter__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        for name, original in self._originals.items():
            setattr(torch.cuda, name, original)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.cuda:
            return args[0].to(self._device)
        if func is Tensor.pin_memory:
            return args[0]
        if func is Tensor.type and len(args) > 1 and (dtype := _dtype_of(args[1])) is not None:
            return args[0].to(dtype)
        if func is Tensor.to:
            args = (args[0], *(self._device if _is_cuda(one) else one for one in args[1:]))
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = self._device
        return func(*args, **kwargs)


def _is_cuda(value: Any) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool)  # the number of a GPU
    return isinstance(value, str | torch.device) and str(value).startswith("cuda")


def _dtype_of(given: Any) -> torch.dtype | None:
    """The type that the old ``type(...)`` is given as a class of tensors or its name; ``None`` for what it is not."""
    if isinstance(given, functools.partial):
        given = given.args[0]
    elif isinstance(given, str):
        given = getattr(torch, given.rpartition(".")[2], None)
    dtype = getattr(given, "dtype", given)
    return dtype if isinstance(dtype, torch.dtype) else None


def _tensor_of(dtype: torch.dtype, device: torch.device, *given: Any) -> Tensor:
    """What the old constructors make: of sizes, of another tensor, or of numbers."""
    if all(isinstance(one, int) for one in given):
        return torch.empty(given, dtype=dtype, device=device)
    values = given[0]
    if isinstance(values, torch.Size):
        return torch.empty(values, dtype=dtype, device=device)
    return values.to(dtype) if isinstance(values, Tensor) else torch.tensor(values, dtype=dtype, device=device)


# Inputs: what the user states, what the net states, else typical sizes.

Feed = tuple[list[Tensor], dict[str, Tensor]]
InputShapes = Mapping[str, Sequence[int]] | Sequence[Sequence[int]]

_SIDES = (224, 299, 227, 256, 32, 321, 64, 28, 96, 112, 300, 512, 331, 231, 128, 48, 448)


def candidate_inputs(model: nn.Module, recipe: NetRecipe, input_shapes: InputShapes | None = None) -> Iterator[Feed]:
    """Positional and named arguments for ``model`` on the meta device, the likeliest first.

    ``input_shapes`` (by the names that ``forward`` or the net gives, or in order) leave no choice. Raises
    ``ModelError`` for a name in it that neither knows.
    """
    required, accepted, more = _arguments(model)
    stated = net_inputs(recipe)
    if input_shapes is not None:
        yield _stated(input_shapes, accepted, stated)
        return
    layers = [m for m in model.modules() if isinstance(m, _ConvNd | nn.Linear | nn.Embedding | nn.RNNBase)]
    if layers and isinstance(layers[0], nn.Embedding) and len(stated) == 1:
        stated[0].indices = True
    choices = _choices(stated, required, accepted, more)
    seen: list[list[NetInput]] = []
    for inputs in choices:
        named = set(required) <= {one.name for one in inputs} <= set(accepted)
        for sized in _sized(inputs, (None, *_channels(layers))):
            if all(one.shape and None not in one.shape for one in sized) and sized not in seen:
                seen.append(sized)
                yield _feed(sized, named=named)
    for shape, dtype in _typical(layers):
        image = NetInput("", shape, learned=True, indices=dtype == torch.int64)
        for inputs in choices or [[image] * max(1, len(required))]:
            named = set(required) <= {one.name for one in inputs} <= set(accepted)
            sides = [one if one.learned else replace(one, shape=_filled(one, None)) for one in inputs]
            yield _feed(
                [replace(image, name=one.name) if one.learned or not one.shape else one for one in sides], named=named
            )


def _choices(
    stated: Sequence[NetInput], required: Sequence[str], accepted: Sequence[str], more: bool
) -> list[Sequence[NetInput]]:
    """Inputs of the net that ``forward`` may take, the likeliest first.

    All, or those that a gradient flows through, without which no port does: as many as it demands, or more, where its
    further arguments are called like them; else more; else the first few of them.
    """
    learned = [one for one in stated if one.learned]
    fit = [inputs for inputs in (stated, learned) if more or len(required) <= len(inputs) <= len(accepted)]
    fit.sort(key=lambda inputs: any(one.name not in accepted for one in inputs[len(required) :]))
    count = max(1, len(required))
    found = [*fit, learned[:count], stated[:count]]
    return [one for number, one in enumerate(found) if len(one) >= count and one not in found[:number]]


def _sized(inputs: Sequence[NetInput], channels: Sequence[int | None]) -> Iterator[list[NetInput]]:
    """Inputs with their open sizes filled; several also as stated, since their sizes may belong to each other."""
    several = len(inputs) > 1
    for own in channels:
        yield [replace(one, shape=_filled(one, own, keep=several)) for one in inputs]
    if several:
        yield list(inputs)


def _feed(inputs: Sequence[NetInput], *, named: bool) -> Feed:
    """A tensor for each input."""
    tensors = [
        torch.empty(
            [size or 1 for size in one.shape or ()], dtype=torch.int64 if one.indices else torch.float32, device="meta"
        )
        for one in inputs
    ]
    return ([], {one.name: tensor for one, tensor in zip(inputs, tensors, strict=True)}) if named else (tensors, {})


def check_input_shapes(input_shapes: Any) -> None:
    """Raise ``ModelError`` for what is not a shape for each input, by name or in order."""
    shapes = list(input_shapes.values()) if isinstance(input_shapes, Mapping) else input_shapes
    listed = isinstance(shapes, Sequence) and all(isinstance(shape, Sequence) for shape in shapes)
    if not listed or not all(isinstance(size, int) for shape in shapes for size in shape):
        raise ModelError(
            f"input_shapes is {input_shapes!r}",
            expected="a shape for each input: [(2, 3, 224, 224)] or {'data': (2, 3, 224, 224)}",
        )


def _stated(input_shapes: InputShapes, accepted: list[str], inputs: Sequence[NetInput]) -> Feed:
    if not isinstance(input_shapes, Mapping):
        lists = (inputs, [one for one in inputs if one.learned], [NetInput("")] * len(input_shapes))
        fitting = next(some for some in lists if len(some) == len(input_shapes))
        return _feed(
            [replace(one, shape=tuple(shape)) for one, shape in zip(fitting, input_shapes, strict=True)], named=False
        )
    known = {one.name: one for one in inputs}
    for name in input_shapes:
        if name not in accepted and name not in known:
            takes, has = ", ".join(accepted) or "nothing", ", ".join(known) or "no inputs"
            raise ModelError(f"no input is called {name!r}", hint=f"forward takes {takes}; the net has {has}")
    names = [*(name for name in known if name in input_shapes), *(name for name in input_shapes if name not in known)]
    made = [replace(known.get(name, NetInput(name)), shape=tuple(input_shapes[name])) for name in names]
    return _feed(made, named=set(names) <= set(accepted))


def _arguments(model: nn.Module) -> tuple[list[str], list[str], bool]:
    """The names of ``forward``'s arguments: those without a default, and all; and whether it takes any number."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return [], [], True
    more = any(one.kind is one.VAR_POSITIONAL for one in parameters)
    named = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    return [one.name for one in named if one.default is one.empty], [one.name for one in named], more


def _channels(layers: Sequence[nn.Module]) -> list[int]:
    """Input channels that the model may want: its first convolution's, then a color or grey image's."""
    first = [layer.in_channels for layer in layers if isinstance(layer, _ConvNd)][:1]
    return list(dict.fromkeys((*first, 3, 1)))


def _filled(one: NetInput, channels: int | None, keep: bool = True) -> tuple[int, ...] | None:
    """An image's shape with open sizes filled and a batch of two, which batch norm needs; others as they are.

    ``channels`` stand in place of its own, unless these are to be kept.
    """
    shape = one.shape
    if not shape:
        return None
    if len(shape) == 4 and not one.learned and shape[2:] == (1, 1):
        shape = shape[:2]  # regions, as old files state them
    if len(shape) == 4:
        side = next((size for size in shape[2:] if size is not None), _SIDES[0])
        image = (shape[1] if keep else None) or channels or shape[1]
        return None if image is None else (2, image, shape[2] or side, shape[3] or side)
    return None if None in shape[1:] else (shape[0] or 2, *(size for size in shape[1:] if size is not None))


def _typical(layers: Sequence[nn.Module]) -> Iterator[tuple[tuple[int, ...], torch.dtype]]:
    convolutions = [layer for layer in layers if isinstance(layer, _ConvNd)]
    if convolutions and (axes := len(convolutions[0].kernel_size)) != 2:
        for channels in _channels(layers):
            yield (2, channels, *((16, 112, 112) if axes == 3 else (256,))), torch.float32
    for side in _SIDES if convolutions else ():
        for channels in _channels(layers):
            yield (2, channels, side, side), torch.float32
    for layer in layers[:1]:
        if isinstance(layer, nn.Linear):
            yield (2, layer.in_features), torch.float32
            yield (8, 2, layer.in_features), torch.float32
        elif isinstance(layer, nn.RNNBase):
            yield (8, 2, layer.input_size), torch.float32
        elif isinstance(layer, nn.Embedding):
            yield (8, 2), torch.int64
