"""What torch's operations are, with their settings: one row for each that has some, by torch's own names.

What a forward pass calls, be it a module, a function or a tensor's method, arrives as one of a few operations, whose
arguments are what was really used. A few functions are made of several: they are read where they are called.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch.nn.functional as F  # noqa: N812 - as all of torch's own documents write it
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from caffe2torch.binding.computation import UNKNOWN, Operation

__all__ = ["COMPOSITES", "batch_norm_of", "moves", "read_call", "read_operation"]

Arguments = Mapping[str, Any]
Reader = Callable[[Arguments, Tensor, Tensor], Operation | None]
"""Arguments by name, the input and the output to the operation; ``None`` where it changes no number."""
Whole = Callable[[Tensor, Tensor], Operation | None]
Composite = Callable[[Arguments, bool], Whole | None]
"""Arguments by name, and whether the model trains, to how the call is read; ``None`` for its parts."""


def moves(func: Any) -> bool:
    """Whether an operation changes no number, only where it stands."""
    name = func.overloadpacket.__name__
    return name in _MOVES or _READERS.get(name) is _order or name == "expand"


def read_operation(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor | None
) -> Operation | None:
    """What an operation computes of its first argument; ``None`` where it only moves numbers."""
    name = func.overloadpacket.__name__.rstrip("_")
    if name in _MOVES or (name == "cat" and len(args[0]) == 1):
        return None
    reader = _READERS.get(name)
    if reader is None or output is None or not args or not isinstance(args[0], Tensor):
        return UNKNOWN
    schema = func._schema.arguments
    given = {one.name: one.default_value for one in schema if one.has_default_value()}
    given.update(zip((one.name for one in schema), args, strict=False))
    return reader({**given, **kwargs}, args[0], output)


def read_call(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], training: bool
) -> Callable[[Tensor, Tensor], Operation | None] | None:
    """How to read a function of ``COMPOSITES``, from its input and output; ``None`` where its parts say it all."""
    parameters = inspect.signature(func).parameters
    given = {name: parameter.default for name, parameter in parameters.items()}
    given.update(zip(parameters, args, strict=False))
    given.update(kwargs)
    return COMPOSITES[func](given, training)


def batch_norm_of(module: _BatchNorm) -> Operation:
    """What torch's batch norm computes, as the module is set."""
    kept = module.running_mean is not None
    by_batch = module.training or not kept
    updates = by_batch and kept and module.track_running_stats
    settings = _statistics(by_batch, updates) | {"eps": module.eps}
    if updates and module.momentum is not None:
        settings["moving average"] = module.momentum
    return Operation("batch norm", settings)


def _statistics(by_batch: bool, updates: bool) -> dict[str, Any]:
    return {"statistics": "the batch's" if by_batch else "kept", "updates": updates}


def _called_dropout(drops: str) -> Composite:
    def read(given: Arguments, training: bool) -> Whole:
        off = given["p"] == 0 or (training and not given["training"])
        return lambda *_: None if off else Operation("dropout", {"ratio": given["p"], "drops": drops})

    return read


def _called_lrn(given: Arguments, _: bool) -> Whole:
    settings = {name: given[name] for name in ("size", "alpha", "beta", "k")}
    return lambda *_: Operation("LRN", {"region": "across channels", **settings})


def _called_lp_pool(axes: int) -> Composite:
    def read(given: Arguments, _: bool) -> Whole:
        arguments = {**given, "padding": 0}
        return lambda x, y: _pool(f"L{given['norm_type']:g}", axes)(arguments, x, y)

    return read


def _called_pad(given: Arguments, _: bool) -> Whole | None:
    if given["mode"] == "constant":
        return None
    return lambda x, y: _padding({"pad": given["pad"], "value": given["mode"]}, x, y)


COMPOSITES: Mapping[Any, Composite] = {
    F.local_response_norm: _called_lrn,
    F.dropout: _called_dropout("values"),
    **dict.fromkeys((F.dropout1d, F.dropout2d, F.dropout3d), _called_dropout("channels")),
    **dict.fromkeys((F.alpha_dropout, F.feature_alpha_dropout), _called_dropout("values, as alpha dropout")),
    **{func: _called_lp_pool(axes) for axes, func in ((1, F.lp_pool1d), (2, F.lp_pool2d), (3, F.lp_pool3d))},
    F.pad: _called_pad,
}
"""Functions that are made of several operations, but are one to whom calls them."""


def _convolution(given: Arguments, x: Tensor, y: Tensor) -> Operation:
    axes = x.dim() - 2
    weight = given["weight"]
    settings: dict[str, Any] = {name: _each(given[name], axes) for name in ("stride", "padding", "dilation")}
    settings |= {
        "kernel": tuple(weight.shape[2:]),
        "groups": given["groups"],
        "bias": given["bias"] is not None,
        "transposed": given["transposed"],
        "output padding": _each(given["output_padding"], axes) if given["transposed"] else (0,) * axes,
        "pads with": "0",
    }
    return Operation("convolution", settings, input=_size(x), output=_size(y))


def _linear(*_: Any) -> Operation:
    return Operation("linear")


def _pool(kind: str, axes: int) -> Reader:
    def read(given: Arguments, x: Tensor, y: Tensor) -> Operation:
        if x.dim() != axes + 2:
            return UNKNOWN
        kernel = _each(given["kernel_size"], axes)
        settings = {
            "pooling": kind,
            "kernel": kernel,
            "stride": _each(given["stride"], axes) if given["stride"] else kernel,
            "padding": _each(given["padding"], axes),
            "dilation": _each(given.get("dilation", 1), axes),
            "rounding": "up" if given["ceil_mode"] else "down",
        }
        if kind == "max":
            settings["pads with"] = "nothing"
        if kind == "average":
            divisor = given.get("divisor_override")
            whole = given["count_include_pad"] or not any(settings["padding"])
            settings["divides by"] = f"the window {'with' if whole else 'without'} its padding"
            if divisor is not None and divisor != prod(kernel):
                settings["divides by"] = f"{divisor} numbers"
        return Operation("pooling", settings, input=_size(x), output=_size(y))

    return read


def _over_all(kind: str) -> Reader:
    """A mean or a maximum: global pooling where it is over every axis of an image."""

    def read(given: Arguments, x: Tensor, y: Tensor) -> Operation:
        del y
        dims = given.get("dim") or ()
        dims = [dims] if isinstance(dims, int) else dims
        axes = x.dim() - 2
        if axes < 1 or sorted(dim % x.dim() for dim in dims) != list(range(2, x.dim())):
            return UNKNOWN
        return _windows(kind, tuple(x.shape[2:]), x, (1,) * axes)

    return read


def _adaptive(kind: str, axes: int) -> Reader:
    def read(given: Arguments, x: Tensor, y: Tensor) -> Operation | None:
        del given
        if x.dim() != axes + 2:
            return UNKNOWN
        outputs = tuple(y.shape[2:] if isinstance(y, Tensor) else ())
        if any(size % wanted for size, wanted in zip(x.shape[2:], outputs, strict=True)):
            return UNKNOWN
        kernel = tuple(size // wanted for size, wanted in zip(x.shape[2:], outputs, strict=True))
        return _windows(kind, kernel, x, outputs) if prod(kernel) > 1 else None

    return read


def _windows(kind: str, kernel: tuple[int, ...], x: Tensor, output: tuple[int, ...]) -> Operation:
    """Pooling by windows that lie side by side; without a rounding, since their size follows from the image's."""
    none, one = (0,) * len(kernel), (1,) * len(kernel)
    settings = {"pooling": kind, "kernel": kernel, "stride": kernel, "padding": none, "dilation": one}
    return Operation("pooling", settings, input=_size(x), output=output)


def _fractional(given: Arguments, x: Tensor, y: Tensor) -> Operation:
    kernel = tuple(given["kernel_size"])
    settings = {"pooling": "fractional max", "kernel": kernel, "stride": kernel, "padding": (0,) * len(kernel)}
    return Operation("pooling", {**settings, "dilation": (1,) * len(kernel)}, input=_size(x), output=_size(y))


def _batch_norm(given: Arguments, x: Tensor, y: Tensor) -> Operation:
    del x, y
    by_batch = bool(given["training"])
    kept = given.get("running_mean") is not None
    return Operation(
        "batch norm", _statistics(by_batch, by_batch and kept) | {"eps": given.get("eps", given.get("epsilon"))}
    )


def _activation(function: str) -> Reader:
    return lambda *_: Operation("activation", {"function": function})


def _relu(slope: str | None = None) -> Reader:
    return lambda given, *_: Operation(
        "activation", {"function": "ReLU", "slope": float(given[slope]) if slope else 0.0}
    )


def _elu(given: Arguments, *_: Any) -> Operation:
    if given["scale"] != 1 or given["input_scale"] != 1:
        return Operation("activation", {"function": "SELU"})
    return Operation("activation", {"function": "ELU", "alpha": float(given["alpha"])})


def _clamp(given: Arguments, *_: Any) -> Operation:
    low, high = (given.get(name[0], given.get(name[1])) for name in (("min", "min_val"), ("max", "max_val")))
    if low == 0 and high is None:
        return Operation("activation", {"function": "ReLU", "slope": 0.0})
    return Operation("activation", {"function": "ReLU6"}) if (low, high) == (0, 6) else UNKNOWN


def _threshold(given: Arguments, *_: Any) -> Operation:
    zero = given["threshold"] == 0 and given["value"] == 0
    return Operation("activation", {"function": "ReLU", "slope": 0.0}) if zero else UNKNOWN


def _softmax(function: str) -> Reader:
    return lambda given, x, _: Operation(
        "softmax", {"function": function, "axis": given["dim"] % x.dim(), "axes": x.dim()}
    )


def _scaling(factor: Callable[[float], float], shift: Callable[[float], float]) -> Reader:
    """Arithmetic with one number: ``x * factor + shift``."""

    def read(given: Arguments, *_: Any) -> Operation:
        other = given.get("other", 0)
        if not isinstance(other, int | float) or given.get("rounding_mode") is not None:
            return UNKNOWN
        by = other * given.get("alpha", 1)
        try:
            return Operation("scaling", {"factor": float(factor(by)), "shift": float(shift(by))})
        except ZeroDivisionError:
            return UNKNOWN

    return read


def _slice(given: Arguments, x: Tensor, y: Tensor) -> Operation | None:
    """A crop, where it takes a part of an image."""
    axis = given["dim"] % x.dim() - 2
    if axis < 0 or x.shape == y.shape:
        return None
    begin, step = given["start"] or 0, given["step"]
    if step != 1:
        strides = tuple(step if k == axis else 1 for k in range(x.dim() - 2))
        return UNKNOWN if begin else Operation("pooling", _nth(strides), input=_size(x), output=_size(y))
    if begin < 0:
        begin += x.shape[axis + 2]
    begins = tuple(begin if k == axis else 0 for k in range(x.dim() - 2))
    return Operation("crop", {"begins": begins}, input=_size(x), output=_size(y))


def _nth(strides: tuple[int, ...]) -> dict[str, Any]:
    """Every nth number, as a pooling of single ones takes them."""
    one, none = (1,) * len(strides), (0,) * len(strides)
    return {"pooling": "max", "kernel": one, "stride": strides, "padding": none, "dilation": one, "rounding": "down"}


def _select(given: Arguments, x: Tensor, _: Tensor) -> Operation | None:
    axis = given["dim"] % x.dim()
    return UNKNOWN if axis > 1 and x.shape[axis] > 1 else None


def _expand(_: Arguments, x: Tensor, y: Tensor) -> Operation | None:
    """Nothing, where one number for each channel becomes an image of it."""
    gate = x.dim() == y.dim() and x.shape[1:2] == y.shape[1:2] and set(x.shape[2:]) == {1}
    return None if x.shape == y.shape or gate else UNKNOWN


def _order(given: Arguments, x: Tensor, y: Tensor) -> Operation | None:
    """A new order of the axes, but of those of size 1, which matter to no number's place."""
    if "dims" in given:
        axes = [axis % x.dim() for axis in given["dims"]]
    else:
        axes = list(range(x.dim()))
        one, other = (given.get(name, usual) % x.dim() for name, usual in (("dim0", 0), ("dim1", -1)))
        axes[one], axes[other] = axes[other], axes[one]
    left = [axis for axis in axes if x.shape[axis] > 1]
    if left == sorted(left):
        return None
    return Operation("order", {"axes": tuple(axes)}, input=tuple(x.shape), output=tuple(y.shape))


def _padding(given: Arguments, x: Tensor, y: Tensor) -> Operation:
    pad, axes = given["pad"], x.dim() - 2
    if axes < 1 or len(pad) > 2 * axes:
        return UNKNOWN
    begins, ends = (tuple(reversed([*pad[side::2], *(0,) * (axes - len(pad) // 2)])) for side in (0, 1))
    if max((*begins, *ends)) <= 0:
        return Operation("crop", {"begins": tuple(-size for size in begins)}, input=_size(x), output=_size(y))
    if min((*begins, *ends)) < 0:
        return UNKNOWN
    settings = {"begins": begins, "ends": ends, "value": given["value"]}
    return Operation("padding", settings, input=_size(x), output=_size(y))


_READERS: Mapping[str, Reader] = {
    "convolution": _convolution,
    **dict.fromkeys(("addmm", "mm", "bmm", "baddbmm", "matmul", "linear"), _linear),
    **dict.fromkeys(("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "batch_norm"), _batch_norm),
    **dict.fromkeys(("_prelu_kernel", "prelu"), lambda *_: Operation("slope")),
    "embedding": lambda *_: Operation("embedding"),
    "max_pool2d_with_indices": _pool("max", 2),
    "max_pool3d_with_indices": _pool("max", 3),
    "avg_pool2d": _pool("average", 2),
    "avg_pool3d": _pool("average", 3),
    "fractional_max_pool2d": _fractional,
    "fractional_max_pool3d": _fractional,
    **dict.fromkeys(
        ("max_unpool2d", "max_unpool3d", "scatter"),
        lambda _, x, y: Operation("unpooling", {}, "", None, _size(x), _size(y)),
    ),
    "mean": _over_all("average"),
    "sum": _over_all("sum"),
    "amax": _over_all("max"),
    "_adaptive_avg_pool2d": _adaptive("average", 2),
    "_adaptive_avg_pool3d": _adaptive("average", 3),
    "adaptive_max_pool2d": _adaptive("max", 2),
    "adaptive_max_pool3d": _adaptive("max", 3),
    "relu": _relu(),
    "leaky_relu": _relu("negative_slope"),
    "clamp": _clamp,
    "clamp_min": _clamp,
    "hardtanh": _clamp,
    "threshold": _threshold,
    "elu": _elu,
    "sigmoid": _activation("sigmoid"),
    "tanh": _activation("tanh"),
    "abs": _activation("absolute value"),
    "gelu": _activation("GELU"),
    "silu": _activation("swish"),
    "hardswish": _activation("hard swish"),
    "mish": _activation("mish"),
    "softplus": _activation("softplus"),
    "native_dropout": lambda given, *_: Operation("dropout", {"ratio": given["p"], "drops": "values"}),
    "_softmax": _softmax("softmax"),
    "_log_softmax": _softmax("log softmax"),
    "constant_pad_nd": _padding,
    "mul": _scaling(lambda by: by, lambda _: 0),
    "div": _scaling(lambda by: 1 / by, lambda _: 0),
    "add": _scaling(lambda _: 1, lambda by: by),
    "sub": _scaling(lambda _: 1, lambda by: -by),
    "rsub": _scaling(lambda _: -1, lambda by: by),
    "neg": _scaling(lambda _: -1, lambda _: 0),
    "slice": _slice,
    "select": _select,
    "expand": _expand,
    **dict.fromkeys(("permute", "transpose", "t"), _order),
}

_MOVES = frozenset(
    (
        *(
            "_to_copy",
            "_unsafe_view",
            "alias",
            "as_strided",
            "chunk",
            "clone",
            "contiguous",
            "copy",
            "detach",
            "narrow",
        ),
        *("reshape", "split", "split_with_sizes", "squeeze", "unbind", "unsafe_chunk", "unsafe_split", "unsqueeze"),
        *("view",),
    )
)
"""Operations that keep the order of the numbers of an image, and change none."""


def _each(value: Any, axes: int) -> tuple[int, ...]:
    values = [value] if isinstance(value, int) else list(value)
    return tuple(values * axes if len(values) == 1 else values)


def _size(x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape[2:])
