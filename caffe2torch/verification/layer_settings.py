"""The settings of layers: which are compared, in which words, and when two kinds of one come to the same."""

from __future__ import annotations

from collections.abc import Mapping
from math import isclose, prod
from typing import Any

from caffe2torch.binding.computation import Operation
from caffe2torch.net.shape_arithmetic import MisfitError, pool_length

__all__ = ["SETTINGS", "SPATIAL", "commute", "described", "effective_poolings", "named", "phrases", "same"]

SETTINGS: Mapping[str, tuple[str, ...]] = {
    "convolution": ("kernel", "stride", "padding", "pads with", "dilation", "output padding", "groups", "bias"),
    "linear": ("bias",),
    "batch norm": ("eps", "statistics", "updates"),
    "slope": (),
    "embedding": (),
    "pooling": ("pooling", "kernel", "stride", "padding", "pads with", "dilation", "divides by", "rounding"),
    "unpooling": (),
    "LRN": ("region", "size", "alpha", "beta", "k"),
    "dropout": ("ratio", "drops"),
    "activation": ("function", "slope", "alpha"),
    "softmax": ("function", "axis"),
    "scaling": ("factor", "shift"),
    "crop": ("begins",),
}
"""One row for each kind of layer: its settings in the order in which they are compared."""

SPATIAL = ("kernel", "stride", "padding", "dilation", "output padding", "rounding", "begins", "output size")
"""Settings that a size follows from."""

_SAID: Mapping[tuple[str, object], tuple[str, str]] = {  # a setting and its value: what you have, what Caffe has
    ("bias", True): ("a bias", "one"),
    ("bias", False): ("no bias", "none"),
    ("statistics", "the batch's"): ("the batch's statistics", "the batch's"),
    ("statistics", "kept"): ("kept statistics", "kept ones"),
    ("updates", True): ("statistics that each batch updates", "updated ones"),
    ("updates", False): ("statistics that no batch updates", "ones that stay"),
    ("rounding", "up"): ("sizes rounded up", "sizes rounded up"),
    ("rounding", "down"): ("sizes rounded down", "sizes rounded down"),
    ("pads with", "0"): ("padding with zeros", "zeros"),
    ("pads with", "nothing"): ("padding that is never the largest", "padding that is never the largest"),
    **{("pads with", mode): (f"padding_mode {mode}", mode) for mode in ("reflect", "replicate", "circular")},
}
_WORDS = {
    "ratio": "dropout ratio",
    "axis": "softmax over axis",
    "divides by": "an average over",
    "pads with": "padding with",
    "region": "LRN",
    "factor": "a factor of",
    "shift": "a shift of",
    "begins": "a crop that begins at",
}


def phrases(kind: str, setting: str, value: object) -> tuple[str, str]:
    """A value as it is said of the model, and of Caffe.

    >>> phrases("convolution", "stride", (2, 2)), phrases("dropout", "ratio", 0.5)
    (('stride 2', '2'), ('dropout ratio 0.5', '0.5'))
    """
    if (setting, value) in _SAID:
        return _SAID[setting, value]
    text = _text(value)
    if setting == "function":
        return text, text
    if setting == "pooling":
        return f"{text} pooling", f"{text} pooling"
    if setting == "drops":
        return f"dropout of {text}", f"dropout of {text}"
    words = _WORDS.get(setting, f"LRN {setting}" if kind == "LRN" else setting)
    return f"{words} {text}", text


def _text(value: object) -> str:
    if isinstance(value, tuple):
        between = " x " if any(isinstance(one, str) for one in value) else "x"
        return str(value[0]) if len(set(value)) == 1 else between.join(map(str, value))
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def named(operation: Operation) -> str:
    """An operation by its name alone.

    >>> named(Operation("pooling", {"pooling": "max"}))
    'max pooling'
    """
    match operation.kind:
        case "activation" | "softmax":
            return str(operation.settings["function"])
        case "pooling" if set(operation.settings.get("kernel") or ()) == {1}:
            return "subsampling"
        case "pooling":
            return f"{operation.settings['pooling']} pooling"
        case "scaling":
            return "factor" if operation.settings["factor"] != 1 else "shift"
    return operation.kind


def described(operation: Operation) -> str:
    """An operation in a few words, with the setting that says most.

    >>> described(Operation("scaling", {"factor": 2.0, "shift": 0.0}))
    'a factor of 2'
    """
    settings = operation.settings
    if operation.kind == "dropout":
        return f"dropout {_text(settings['ratio'])}"
    if operation.kind == "scaling":
        parts = [("factor", settings["factor"] != 1), ("shift", settings["shift"] != 0)]
        return " and ".join(phrases("scaling", name, settings[name])[0] for name, counts in parts if counts)
    return named(operation)


def same(one: Any, other: Any) -> bool:
    """Whether two values of a setting are the same, for the accuracy of float32."""
    if isinstance(one, float | int) and isinstance(other, float | int) and not isinstance(one, bool):
        return isclose(one, other, rel_tol=1e-6, abs_tol=1e-12)
    return bool(one == other)


_RISING = ("ReLU", "ReLU6", "ELU", "sigmoid", "tanh", "softplus")
"""Functions that keep the order of numbers, so that a maximum may come before them."""


def commute(one: Operation, other: Operation) -> bool:
    """Whether two operations give the same in either order, as far as is known."""
    by = {operation.kind: operation.settings for operation in (one, other)}
    kinds = by.keys()
    if len(by) == 1 or kinds & {"crop", "order", "unknown"}:
        return True
    function = by.get("activation", {}).get("function")
    if kinds == {"activation", "pooling"}:
        return "max" in by["pooling"]["pooling"] and function in _RISING
    if kinds == {"activation", "dropout"}:
        return function == "ReLU"
    if kinds == {"pooling", "dropout"}:
        return bool(by["dropout"]["drops"] == "channels")
    if "scaling" in kinds and by["scaling"]["factor"] > 0 and not by["scaling"]["shift"]:
        return bool(kinds & {"pooling", "dropout"}) or function == "ReLU"
    return False


def effective_poolings(net: Operation, model: Operation) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The settings of two poolings as far as they make a difference at the net's own size.

    ``None`` where that cannot be said: a pooling that adapts its windows was seen at another size.
    """
    ours, theirs = dict(net.settings), dict(model.settings)
    given, output = tuple(one or 0 for one in model.input or ()), model.output
    size = given if net.input is None or None in net.input else tuple(one or 0 for one in net.input)
    if len(theirs["kernel"]) != len(given):
        return None
    if (
        ours.get("global") and theirs["kernel"] == given and prod(one or 0 for one in size) == prod(given)
    ):  # flattened before, maybe
        return {"pooling": ours["pooling"]}, {"pooling": theirs["pooling"]}
    if len(size) != len(given):
        return None
    if ours.get("global"):
        ours["kernel"] = ours["stride"] = size
        ours["padding"] = (0,) * len(size)
    if len(ours["kernel"]) != len(size):
        return None
    whole = [one["kernel"] == own and not any(one["padding"]) for one, own in ((ours, size), (theirs, given))]
    if all(whole):
        return {"pooling": ours["pooling"]}, {"pooling": theirs["pooling"]}
    if size != given and "rounding" not in theirs:
        return None
    if ours["padding"] != theirs["padding"] and "without" in theirs.get("divides by", ""):
        del theirs["divides by"]
    axes = list(zip(size, ours["kernel"], ours["padding"], ours["stride"], strict=True))
    try:
        down, up = (
            tuple(pool_length(*axis, ceil=ceil, clip=any(ours["padding"])) for axis in axes) for ceil in (False, True)
        )
    except MisfitError:
        return None
    alike = all(ours[name] == theirs[name] for name in ("kernel", "stride", "padding", "dilation"))
    due = up if ours["rounding"] == "up" else down
    if down == up or (alike and size == given and due == output):
        del ours["rounding"]
    return ours, theirs
