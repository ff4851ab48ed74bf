"""What torch's operations are, with their settings: one row for each that has some, by torch's own names.

What a forward pass calls, be it a module, a function or a tensor's method, arrives as one of a few operations, whose
arguments are what was really used. Only dropout and local response normalization are made of several: they are read
where they are called.
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

__all__ = ["COMPOSITES", "batch_norm_of", "read_call", "read_operation"]

Arguments = Mapping[str, Any]
Reader = Callable[[Arguments, Tensor, Tensor], Operation | None]
"""Arguments by name, the input and the output to the operation; ``None`` where it changes no number."""


def read_operation(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor | None
) -> Operation | None:
    """What an operation computes of its first argument; ``None`` where it only moves numbers."""
    name = func.overloadpacket.__name__.rstrip("_")
    if name in _MOVES:
        return None
    reader = _READERS.get(name)
    if reader is None or output is None or not args or not isinstance(args[0], Tensor):
        return UNKNOWN
    schema = func._schema.arguments
    given = {one.name: one.default_value for one in schema if one.has_default_value()}
    given.update(zip((one.name for one in schema), args, strict=False))
    return reader({**given, **kwargs}, args[0], output)


def read_call(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], training: bool) -> Operation | None:
    """What a function of ``COMPOSITES`` computes; ``None`` where it is a dropout that is off."""
    known, settings = COMPOSITES[func]
    parameters = inspect.signature(known).parameters
    given = {name: parameter.default for name, parameter in parameters.items()}
    given.update(zip(parameters, args, strict=False))
    given.update(kwargs)
    if known is F.local_response_norm:
        return Operation("LRN", {name: given[name] for name in ("size", "alpha", "beta", "k")})
    if given["p"] == 0 or (training and not given["training"]):
        return None
    return Operation("dropout", {"ratio": given["p"], **settings})


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


COMPOSITES: Mapping[Any, tuple[Any, Mapping[str, Any]]] = {
    F.local_response_norm: (F.local_response_norm, {}),
    F.dropout: (F.dropout, {"drops": "values"}),
    **{one: (one, {"drops": "channels"}) for one in (F.dropout1d, F.dropout2d, F.dropout3d)},
    **{one: (one, {"drops": "values, as alpha dropout"}) for one in (F.alpha_dropout, F.feature_alpha_dropout)},
}
"""Functions that are made of several operations, with what their name says."""


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


def _softmax(given: Arguments, x: Tensor, y: Tensor) -> Operation:
    del y
    return Operation("softmax", {"axis": given["dim"] % x.dim(), "axes": x.dim()})


def _padding(given: Arguments, x: Tensor, y: Tensor) -> Operation:
    pad, axes = given["pad"], x.dim() - 2
    if axes < 1 or len(pad) > 2 * axes:
        return UNKNOWN
    begins, ends = (tuple(reversed([*pad[side::2], *(0,) * (axes - len(pad) // 2)])) for side in (0, 1))
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
    "mean": _over_all("average"),
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
    "_softmax": _softmax,
    "_log_softmax": _softmax,
    "constant_pad_nd": _padding,
}

_MOVES = frozenset(
    (
        *("_to_copy", "_unsafe_view", "alias", "as_strided", "cat", "channel_shuffle", "chunk", "clone", "contiguous"),
        *("copy", "detach", "expand", "native_channel_shuffle", "narrow", "permute", "pixel_shuffle", "reshape"),
        *(
            "select",
            "slice",
            "split",
            "split_with_sizes",
            "squeeze",
            "stack",
            "t",
            "transpose",
            "unbind",
            "unsafe_chunk",
        ),
        *("unsafe_split", "unsqueeze", "view"),
    )
)
"""Operations that move numbers and change none."""


def _each(value: Any, axes: int) -> tuple[int, ...]:
    values = [value] if isinstance(value, int) else list(value)
    return tuple(values * axes if len(values) == 1 else values)


def _size(x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape[2:])
