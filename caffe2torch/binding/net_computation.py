"""What a Caffe net computes, layer by layer: one row for each type of layer that has settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

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
)
from caffe2torch.binding.graph import INPUT, WiringBuilder
from caffe2torch.binding.net_graph import place_layers
from caffe2torch.net.blob_rules import kernel
from caffe2torch.net.forks import Dialect
from caffe2torch.net.layer_rules import Node, flag, integer, integers, number, text
from caffe2torch.net.loss_settings import METRICS, is_loss
from caffe2torch.net.shape_arithmetic import MisfitError, broadcast
from caffe2torch.net.top_rules import per_axis, pool_window
from caffe2torch.recipe import Layer, NetRecipe, Shape

__all__ = ["net_computation"]


def net_computation(recipe: NetRecipe) -> Computation:
    """The layers of a recipe as units, junctions and what is computed between them."""
    builder = WiringBuilder()
    found = Computation((), ())
    chains: dict[str, Chain] = {}
    origins: dict[str, tuple[str, ...]] = {}  # the inputs that a blob is made from
    begins: dict[str, Begins] = {}  # where in what its node gives a blob begins
    unread: dict[str, tuple[int, Shape | None]] = {}  # blobs that no layer has taken yet
    shapes: dict[str, Shape | None] = {}
    count = 1
    for layer, sources, node in place_layers(recipe, builder):
        bottoms = tuple(shapes.get(name) for name in layer.bottoms)
        given = [
            Edge(
                source,
                None,
                chains.get(name, ()),
                shape,
                origins.get(name, (name,)) if source == INPUT else (),
                begins.get(name, ()),
            )
            for source, name, shape in zip(sources, layer.bottoms, bottoms, strict=True)
        ]
        for name in layer.bottoms:
            unread.pop(name, None)
        new, several = len(builder.nodes) > count, layer.type in ("Concat", "Eltwise")
        chain: Chain = merged([one.chain for one in (given if several else given[:1])])
        if _ends(layer):
            found.edges += given[:1]
            found.judged.setdefault(sources[0], set()).add(layer.type)
        else:
            operation = _read(layer, bottoms, recipe) if layer.bottoms else None
            if operation is not None and not (layer.blobs and layer.type in _SCALES):
                found.named.append(operation)
            if new:
                taken, factors = builder.nodes[node].inputs, _factors(layer, len(given))
                found.edges += [
                    replace(one, target=node, chain=scaled(one.chain, factor))
                    for one, factor in zip(given, factors, strict=True)
                    if one.source in taken
                    or builder.nodes[one.source].op is builder.nodes[node].op  # which became one with it
                ]
                found.shapes[node] = layer.top_shapes[0] if layer.top_shapes else None
                if operation is not None and (operation.kind in MAIN or (layer.blobs and layer.type not in _SCALES)):
                    found.own[node] = operation
                chain = ()
            elif operation is not None:
                chain = (*chain, UNKNOWN) if operation.kind in MAIN else extended(chain, operation)
            elif layer.type == "Eltwise":  # of one value with itself
                chain = (*chain, UNKNOWN)
        count = len(builder.nodes)
        parts = {(one.given, one.begins) for one in given}
        origin, begin = parts.pop() if len(parts) == 1 and not new else ((), ())
        cut = 0
        if layer.type == "Concat" and not new and node == INPUT and all(one.given for one in given):
            origin = tuple(name for one in given for name in one.given)
        for top, shape in zip(layer.tops, layer.top_shapes, strict=True):
            chains[top], shapes[top], unread[top] = chain, shape, (node, shape)
            origins[top], begins[top] = origin if layer.bottoms else (top,), begin
            axis = _cut(layer)
            if axis is not None and shape is not None and axis < len(shape):
                begins[top] = (*begin, (axis, cut)) if cut else begin
                cut += shape[axis] or 0
    found.edges += [Edge(node, None, chains[name], shape) for name, (node, shape) in unread.items() if node != INPUT]
    found.units, found.nodes = tuple(builder.units), tuple(builder.nodes)
    read = dict.fromkeys(name for edge in found.edges for name in edge.given)
    found.input_names = tuple(dict.fromkeys(name for name in (*origins, *read) if name in read))
    return found


def _cut(layer: Layer) -> int | None:
    """The axis along which a Slice cuts."""
    if layer.type != "Slice":
        return None
    axis = layer.settings.get("slice_dim") or layer.settings.get("axis", 1)
    return axis if isinstance(axis, int) and axis >= 0 else None


def _ends(layer: Layer) -> bool:
    """Whether the layer judges what the net computes: a model gives that as its output."""
    judges = is_loss(layer) or layer.type in METRICS or layer.type in ("Silence", "ArgMax")
    return judges and not layer.blobs and bool(layer.bottoms)


def _factors(layer: Layer, bottoms: int) -> Sequence[float]:
    """What each bottom is multiplied by before they become one."""
    coeff = layer.settings.get("coeff", ()) if layer.type == "Eltwise" else ()
    return coeff if isinstance(coeff, tuple) and len(coeff) == bottoms else (1.0,) * bottoms


def _read(layer: Layer, bottoms: tuple[Shape | None, ...], recipe: NetRecipe) -> Operation | None:
    """What a layer computes; ``None`` where it only moves numbers."""
    if layer.type in _MOVES:
        return None
    reader = _READERS.get(layer.type)
    if reader is None:
        return Operation(UNKNOWN.kind, {}, layer.name, layer.where)
    dialect = Dialect.of_forks(layer.forks, layer.where)
    tops, count = layer.tops, layer.param_blocks
    node = Node(layer.name, layer.type, layer.settings, bottoms, layer.bottoms, tops, count, dialect)
    try:
        found = reader(node, [recipe.blobs[number].role for number in layer.blobs])
    except MisfitError:
        return Operation(UNKNOWN.kind, {}, layer.name, layer.where)
    if found is None:
        return None
    kind, settings = found
    top = layer.top_shapes[0] if layer.top_shapes else None
    return Operation(kind, settings, layer.name, layer.where, _size(node.bottom()), _size(top))


def _size(shape: Shape | None) -> Shape | None:
    return None if shape is None or len(shape) < 3 else shape[2:]


Reader = Callable[[Node, list[str]], tuple[str, Mapping[str, Any]] | None]
"""The layer and the roles of its blobs to the kind and the settings; ``None`` where it does nothing."""


def _convolution(node: Node, roles: list[str]) -> tuple[str, Mapping[str, Any]]:
    sizes = kernel(node)
    axes, settings = len(sizes), node.settings
    depthwise = "epthwise" in node.type and integer(settings, "group", 1) == 1
    groups = integer(settings, "num_output", 1) if depthwise else integer(settings, "group", 1)
    return "convolution", {
        "kernel": sizes,
        "stride": per_axis(node, "stride", axes, 1),
        "padding": per_axis(node, "pad", axes, 0),
        "dilation": broadcast(integers(settings, "dilation") or integers(settings, "hole"), axes, 1, "dilation"),
        "groups": groups,
        "bias": "bias" in roles,
        "transposed": node.type == "Deconvolution",
        "output padding": (0,) * axes,
        "pads with": "0",
    }


def _inner_product(node: Node, roles: list[str]) -> tuple[str, Mapping[str, Any]]:
    del node
    return "linear", {"bias": "bias" in roles}


def _batch_norm(node: Node, roles: list[str]) -> tuple[str, Mapping[str, Any]]:
    by_batch = not flag(node.settings, "use_global_stats")
    settings: dict[str, Any] = {"statistics": "the batch's" if by_batch else "kept", "updates": by_batch}
    settings["eps"] = number(node.settings, "eps", 1e-5)
    if by_batch and "mean" in roles:
        fraction = number(node.settings, "moving_average_fraction", 0.999)
        settings["moving average"] = round(1 - fraction, 9) if "factor" in roles else fraction  # Tongcheng's, by cuDNN
    return "batch norm", settings


def _bn(node: Node, roles: list[str]) -> tuple[str, Mapping[str, Any]]:
    """SegNet's, which keeps no statistics and has its epsilon in its code; or yjxiong's."""
    if "mean" not in roles:
        return "batch norm", {"statistics": "the batch's", "eps": 1e-9}
    by_batch = not flag(node.settings, "frozen")
    settings: dict[str, Any] = {"statistics": "the batch's" if by_batch else "kept", "updates": by_batch}
    if by_batch:
        settings["moving average"] = round(
            1 - number(node.settings, "momentum", number(node.settings, "decay", 0.9)), 9
        )
    return "batch norm", settings | {"eps": number(node.settings, "eps", 1e-5)}


def _pooling(node: Node, roles: list[str]) -> tuple[str, Mapping[str, Any]]:
    del roles
    settings = node.settings
    kind = {"MAX": "max", "AVE": "average"}.get(text(settings, "pool") or "MAX")
    if kind is None:
        raise MisfitError("stochastic pooling")
    size = _size(node.bottom())
    if flag(settings, "global_pooling"):
        axes = len(size or (1, 1))
        none, one = (0,) * axes, (1,) * axes
        given = {"pooling": kind, "kernel": size, "stride": size, "padding": none, "dilation": one}
        return "pooling", given | {"rounding": "down", "global": True}
    window = pool_window(node)
    given = {
        "pooling": kind,
        "kernel": window.kernel,
        "stride": window.stride,
        "padding": window.pad,
        "dilation": (1,) * len(window.kernel),
        "rounding": "up" if window.ceil else "down",
    }
    if kind == "average":
        given["divides by"] = "the window with its padding"
    else:
        given["pads with"] = "nothing"
    return "pooling", given


def _lrn(node: Node, roles: list[str]) -> tuple[str, Mapping[str, Any]]:
    del roles
    within = text(node.settings, "norm_region") == "WITHIN_CHANNEL"
    given: dict[str, Any] = {"region": "within each channel" if within else "across channels"}
    given["size"] = integer(node.settings, "local_size", 5)
    return "LRN", given | {
        name: number(node.settings, name, usual) for name, usual in (("alpha", 1), ("beta", 0.75), ("k", 1))
    }


def _dropout(drops: str) -> Reader:
    def read(node: Node, roles: list[str]) -> tuple[str, Mapping[str, Any]] | None:
        del roles
        ratio = number(node.settings, "dropout_ratio", 0.5)
        return ("dropout", {"ratio": ratio, "drops": drops}) if ratio else None

    return read


def _activation(function: str, **named: tuple[str, float]) -> Reader:
    """A function with its settings: ours, and Caffe's name and default of it."""

    def read(node: Node, roles: list[str]) -> tuple[str, Mapping[str, Any]]:
        del roles
        settings = {ours: float(number(node.settings, *caffes)) for ours, caffes in named.items()}
        return "activation", {"function": function, **settings}

    return read


def _softmax(node: Node, roles: list[str]) -> tuple[str, Mapping[str, Any]]:
    del roles
    axes = len(node.bottom() or ())
    if not axes:
        raise MisfitError("no axes are known")
    return "softmax", {"function": "softmax", "axis": integer(node.settings, "axis", 1) % axes, "axes": axes}


def _power(node: Node, roles: list[str]) -> tuple[str, Mapping[str, Any]]:
    del roles
    if number(node.settings, "power", 1) != 1:
        raise MisfitError("a power")
    return "scaling", {
        "factor": float(number(node.settings, "scale", 1)),
        "shift": float(number(node.settings, "shift", 0)),
    }


def _crop(node: Node, roles: list[str]) -> tuple[str, Mapping[str, Any]] | None:
    del roles
    size = _size(node.bottom())
    axis, offsets = integer(node.settings, "axis", 2), integers(node.settings, "offset")
    if size is None or axis % (len(size) + 2) < 2:
        raise MisfitError("a crop of images or channels")
    if not offsets:
        raise MisfitError("where it begins: at 0, or in the middle as older forks have it")
    cropped = len(size) + 2 - axis % (len(size) + 2)
    begins = (0,) * (len(size) - cropped) + broadcast(offsets, cropped, 0, "offset")
    return None if _size(node.bottom(1)) == size else ("crop", {"begins": begins})


def _unpooling(node: Node, roles: list[str]) -> tuple[str, Mapping[str, Any]]:
    """SegNet's ``Upsample``, where the second bottom says which numbers were the largest."""
    del roles
    if len(node.bottom_names) != 2:
        raise MisfitError("another fork's")
    return "unpooling", {"size": "of the file" if integer(node.settings, "upsample_w", 0) else "by a factor"}


_READERS: Mapping[str, Reader] = {
    **dict.fromkeys(
        ("Convolution", "ConvolutionDepthwise", "DepthwiseConvolution", "Deconvolution"),
        _convolution,
    ),
    "InnerProduct": _inner_product,
    "BatchNorm": _batch_norm,
    "BN": _bn,
    "PReLU": lambda *_: ("slope", {}),
    "Embed": lambda *_: ("embedding", {}),
    "Pooling": _pooling,
    "LRN": _lrn,
    "Dropout": _dropout("values"),
    "SpatialDropout": _dropout("channels"),
    "ReLU": _activation("ReLU", slope=("negative_slope", 0.0)),
    "ReLU6": _activation("ReLU6"),
    "ELU": _activation("ELU", alpha=("alpha", 1.0)),
    "Sigmoid": _activation("sigmoid"),
    "TanH": _activation("tanh"),
    "AbsVal": _activation("absolute value"),
    "BNLL": _activation("softplus"),
    "HardSwish": _activation("hard swish"),
    "Mish": _activation("mish"),
    "Softmax": _softmax,
    "Upsample": _unpooling,
    "Power": _power,
    "Crop": _crop,
}

_SCALES = ("Scale", "Bias", "Parameter")
"""Layers with blobs and without settings that a module could have otherwise."""

_MOVES = frozenset((*("Concat", "Eltwise", "Flatten", "Gather", "Reshape", "Slice", "Split"),))
"""Layers that keep the order of an image's numbers; ``Eltwise`` where it has one bottom, or is a junction."""
