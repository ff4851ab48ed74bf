"""The wiring of a Caffe net: its layers contracted to learnable units and junctions.

A layer's top replaces an earlier blob of the same name (in-place layers, ``net.cpp``, ``Net::AppendTop``), so names
are resolved in the file's order. What is no unit and no junction is transparent.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from caffe2torch.binding.graph import INPUT, Op, TensorReference, Unit, UnitKind, Wiring, WiringBuilder
from caffe2torch.net.data_tops import is_input
from caffe2torch.net.loss_settings import METRICS, is_loss
from caffe2torch.recipe import Layer, NetRecipe, Shape

__all__ = [
    "NetGraph",
    "NetInput",
    "biases_before_norms",
    "caffe_wiring",
    "layers_with_blobs",
    "net_graph",
    "net_inputs",
    "place_layers",
    "unit_kind",
]

_KINDS = {
    "BN": UnitKind.NORM,  # SegNet's has no statistics
    "Bias": UnitKind.SCALE,
    "Deconvolution": UnitKind.TRANSPOSED,
    "Embed": UnitKind.TABLE,
    "Parameter": UnitKind.OTHER,
    "LSTM": UnitKind.RECURRENT,
    "Lstm": UnitKind.RECURRENT,
    "RNN": UnitKind.RECURRENT,
}
"""Layer types whose roles alone do not determine what they compute."""

_ELTWISE = {"SUM": Op.SUM, "PROD": Op.PRODUCT, "MAX": Op.MAX}

_REGIONS = frozenset({"PSROIPooling", "ROIAlign", "ROIPooling"})
"""Layers whose second bottom are regions: the number of an image, and two corners."""

_FIRST_BOTTOM_ONLY = frozenset(
    (
        *(*METRICS, *_REGIONS, "Crop", "CropCenter", "DePooling", "Filter", "Interp", "LargeMarginInnerProduct"),
        *("MarginInnerProduct", "Unpooling", "Upsample", "Warp"),
    )
)
"""Layers whose further bottoms are sizes, masks, regions or labels: they give no gradient to them."""


@dataclass(frozen=True, slots=True)
class NetGraph:
    """What binding reads of a net, collected once.

    Attributes:
        recipe: What was read.
        wiring: Its layers as units and junctions; the units hold indices into ``recipe.blobs``.
        cancelled: Biases that a batch normalization subtracts again, as ``biases_before_norms`` explains.
    """

    recipe: NetRecipe
    wiring: Wiring
    cancelled: Mapping[int, bool]

    @property
    def units(self) -> tuple[Unit, ...]:
        """The layers that learn, those that are one unit as one."""
        return self.wiring.units

    def without(self, blobs: Collection[int]) -> Wiring:
        """The wiring without the layers all of whose own blobs (indices) are among ``blobs``."""
        kept = {blob.layer for number, blob in enumerate(self.recipe.blobs) if number not in blobs}
        gone = frozenset(self.recipe.blobs[number].layer for number in blobs) - kept
        return caffe_wiring(self.recipe, gone) if gone else self.wiring


def net_graph(recipe: NetRecipe) -> NetGraph:
    """Collect what binding reads of a net."""
    return NetGraph(recipe, caffe_wiring(recipe), biases_before_norms(recipe))


def caffe_wiring(recipe: NetRecipe, skipped: frozenset[str] = frozenset()) -> Wiring:
    """The wiring of ``recipe.layers``; each unit holds indices into ``recipe.blobs``.

    Layers that share all their blobs are one unit, used several times. ``skipped`` layers are transparent and hold
    nothing. A recipe without ``layers`` gives units that nothing connects.
    """
    builder = WiringBuilder()
    if not recipe.layers:
        layers: dict[str, list[int]] = {}
        for number, blob in enumerate(recipe.blobs):
            layers.setdefault(blob.layer, []).append(number)
        for layer_name, blobs in layers.items():
            if layer_name not in skipped:
                unit = _unit(recipe, layer_name, recipe.blobs[blobs[0]].layer_type, blobs, {})
                builder.use(builder.unit(unit), [INPUT])
        return builder.build()
    for _ in place_layers(recipe, builder, skipped):
        pass
    return builder.build()


def place_layers(
    recipe: NetRecipe, builder: WiringBuilder, skipped: frozenset[str] = frozenset()
) -> Iterator[tuple[Layer, list[int], int]]:
    """Add the layers to ``builder`` one by one; each with the nodes that its bottoms hold, and the one of its tops."""
    shared: dict[tuple[int, ...], int] = {}
    value: dict[str, int] = {}  # blob name -> the node that it now holds
    for layer in recipe.layers:
        sources = [value.get(bottom, INPUT) for bottom in layer.bottoms]
        if layer.blobs and layer.name not in skipped:
            if layer.blobs not in shared:
                shared[layer.blobs] = builder.unit(_unit(recipe, layer.name, layer.type, layer.blobs, layer.settings))
            elif layer.name not in builder.units[shared[layer.blobs]].parts:
                number = shared[layer.blobs]
                builder.units[number] = replace(builder.units[number], parts=(*builder.units[number].parts, layer.name))
            node = builder.use(shared[layer.blobs], _with_gradient(layer, sources))
        else:
            node = _junction(builder, layer, sources)
        for top in layer.tops:
            value[top] = node
        yield layer, sources, node


def layers_with_blobs(recipe: NetRecipe) -> list[tuple[str, str, tuple[int, ...]]]:
    """Name, type and blobs (indices into ``recipe.blobs``) of each layer that learns, in the file's order."""
    if recipe.layers:
        return [(layer.name, layer.type, layer.blobs) for layer in recipe.layers if layer.blobs]
    layers: dict[str, tuple[str, tuple[int, ...]]] = {}
    for number, blob in enumerate(recipe.blobs):
        for layer, layer_type in (
            (blob.layer, blob.layer_type),
            *((use.layer, use.layer_type) for use in blob.shared_with),
        ):
            layers[layer] = (layer_type, (*layers.get(layer, (layer_type, ()))[1], number))
    return [(layer, layer_type, blobs) for layer, (layer_type, blobs) in layers.items()]


@dataclass(slots=True)
class NetInput:
    """A blob from outside.

    Attributes:
        name: Its name.
        shape: Its shape, as far as the file states it.
        learned: Whether a gradient flows through it: an image, but not regions or where sequences go on.
        indices: Whether it holds numbers of rows.
    """

    name: str
    shape: Shape | None = None
    learned: bool = False
    indices: bool = False


def net_inputs(recipe: NetRecipe) -> list[NetInput]:
    """Every blob from outside that something learnable reads, in the file's order: all but the labels of losses."""
    inputs: dict[str, NetInput] = {}
    origins: dict[str, Mapping[str, bool]] = {}  # by blob: the inputs that it is made of, and whether it learns by them
    used: set[str] = set()
    for layer in recipe.layers:
        found: dict[str, bool] = {}
        learned = _with_gradient(layer, range(len(layer.bottoms)))
        for number, bottom in enumerate(layer.bottoms):
            if bottom not in origins:  # what no layer makes comes from outside, too
                origins[bottom] = {bottom: True}
                inputs[bottom] = NetInput(bottom)
            if number not in learned and (is_loss(layer) or layer.type in METRICS):
                continue
            for name, flows in origins[bottom].items():
                found[name] = found.get(name, False) or (flows and number in learned)
                inputs[name].indices |= layer.type == "Embed"
            if number == 1 and layer.type in _REGIONS and bottom in inputs:
                inputs[bottom].shape = inputs[bottom].shape or (None, 5)
        if layer.blobs:
            used.update(found)
            for name, flows in found.items():
                inputs[name].learned |= flows
            found = {}
        for top, shape in zip(layer.tops, layer.top_shapes, strict=True):
            if is_input(layer):
                inputs[top] = NetInput(top, shape)
            origins[top] = {top: True} if is_input(layer) else found
    return [one for name, one in inputs.items() if name in used]


def biases_before_norms(recipe: NetRecipe) -> dict[int, bool]:
    """Biases (indices of blobs) that a batch normalization, and nothing else, sees first.

    It subtracts the mean, and with it the bias, whatever that is: ``True``. With ``use_global_stats`` it subtracts a
    stored mean, so that the bias matters, but could as well be part of that mean: ``False``.
    """
    maker: dict[str, int] = {}  # blob name -> the layer that made its present value
    readers: list[list[Layer]] = [[] for _ in recipe.layers]
    for number, layer in enumerate(recipe.layers):
        for bottom in layer.bottoms:
            if bottom in maker:
                readers[maker[bottom]].append(layer)
        maker.update(dict.fromkeys(layer.tops, number))
    found: dict[int, bool] = {}
    for layer, after in zip(recipe.layers, readers, strict=True):
        if after and all(reader.type in ("BatchNorm", "BN") for reader in after):
            live = not any(reader.settings.get("use_global_stats") for reader in after)
            found.update({number: live for number in layer.blobs if recipe.blobs[number].role == "bias"})
    return found


def _with_gradient(layer: Layer, bottoms: Sequence[int]) -> list[int]:
    """The bottoms through which a gradient flows: not an LSTM's sequence indicators, not a loss layer's labels."""
    if unit_kind(layer.type, ()) is UnitKind.RECURRENT:
        return [*bottoms[:1], *bottoms[2:3]]
    return list(bottoms[:1] if is_loss(layer) or layer.type in _FIRST_BOTTOM_ONLY else bottoms)


def _junction(builder: WiringBuilder, layer: Layer, sources: list[int]) -> int:
    if len(sources) < 2 or layer.type in _FIRST_BOTTOM_ONLY:
        return sources[0] if sources else INPUT
    match layer.type:
        case "Concat":
            return builder.join(Op.CONCAT, sources)
        case "Eltwise":
            return builder.join(_ELTWISE.get(str(layer.settings.get("operation", "SUM")), Op.JOINT), sources)
        case "Scale":
            return builder.join(Op.PRODUCT, sources)
        case "Bias":
            return builder.join(Op.SUM, sources)
        case "Axpy":  # SENet's fork: bottom[0] * bottom[1] + bottom[2]
            return builder.join(Op.SUM, [builder.join(Op.PRODUCT, sources[:2]), *sources[2:]])
        case _:
            return builder.join(Op.JOINT, sorted(sources))


def unit_kind(layer_type: str, roles: Sequence[str]) -> UnitKind:
    """What a layer computes, by its type where that decides, else by the roles of its blobs."""
    if layer_type in _KINDS:
        return _KINDS[layer_type]
    if "mean" in roles:
        return UnitKind.OTHER if "weight" in roles else UnitKind.NORM  # a DenseBlock is a net of its own
    for role, kind in (("weight", UnitKind.MAP), ("slope", UnitKind.SLOPE), ("scale", UnitKind.SCALE)):
        if role in roles:
            return kind
    return UnitKind.OTHER


def _unit(recipe: NetRecipe, name: str, layer_type: str, blobs: Sequence[int], settings: Mapping[str, object]) -> Unit:
    tensors = tuple(TensorReference(recipe.blobs[number].role, recipe.blobs[number].shape, number) for number in blobs)
    kind = unit_kind(layer_type, [one.role for one in tensors])
    shape = tensors[0].shape
    if layer_type == "InnerProduct" and settings.get("transpose") and shape is not None and len(shape) == 2:
        shape = (shape[1], shape[0])
    if kind in (UnitKind.NORM, UnitKind.SCALE, UnitKind.SLOPE):
        shape = _flat(shape)
    groups = int(str(settings.get("group", 1) or 1))
    if "epthwise" in layer_type and shape is not None and groups == 1:
        groups = shape[0] or 1  # forks' depthwise layers need not state what their name says
    return Unit(name, (name,), kind, shape, tensors, groups)


def _flat(shape: Shape | None) -> Shape | None:
    """A vector's length, whatever ones stand around it: ``1xCx1x1`` is ``C``; a scalar is one number."""
    if shape is None or None in shape:
        return None if shape is None else (None,)
    return (prod(size for size in shape if size is not None),)
