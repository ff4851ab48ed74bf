"""Which nets are the built-in SegNetBasic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from caffe2torch.models.segnet_basic import SegNetBasic
from caffe2torch.recipe import Layer, TrainingRecipe

__all__ = ["segnet_basic_for"]


@dataclass(frozen=True)
class _Step:
    """A layer as SegNetBasic has it: its name if it learns, the settings that count, per axis where there are two."""

    type: str
    name: str | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)


def _conv_and_bn(name: str) -> list[_Step]:
    return [
        _Step("Convolution", name, {"group": 1}, {"pad": 3, "stride": 1, "dilation": 1}),
        _Step("BN", f"{name}_bn"),
    ]


_POOL = _Step("Pooling", None, {"pool": "MAX", "global_pooling": False}, {"kernel_size": 2, "stride": 2, "pad": 0})
_STEPS = [
    _Step("LRN", None, {"local_size": 5, "alpha": 1e-4, "beta": 0.75, "k": 1.0, "norm_region": "ACROSS_CHANNELS"}),
    *(
        step
        for i in (1, 2, 3, 4)
        for step in (*_conv_and_bn(f"conv{i}"), _Step("ReLU", None, {"negative_slope": 0.0}), _POOL)
    ),
    *(step for i in (4, 3, 2, 1) for step in (_Step("Upsample"), *_conv_and_bn(f"conv_decode{i}"))),
    _Step("Convolution", "conv_classifier", {"group": 1}, {"pad": 0, "stride": 1, "dilation": 1}),
]


def segnet_basic_for(recipe: TrainingRecipe) -> SegNetBasic | None:
    """A new ``SegNetBasic`` of the recipe's sizes, if its net is SegNetBasic; ``None`` if it is any other.

    It is, when the layers between data and losses are SegNetBasic's own, one by one: type, wiring, and settings, and
    for those that learn also name and shapes. So a net with dropout, as Bayesian SegNet-Basic has, is none, though it
    learns the same blobs. A number of input channels that the file does not state stands as 1.

    >>> segnet_basic_for(TrainingRecipe("a net without layers", (), None)) is None
    True
    """
    layers = [layer for layer in recipe.layers if layer.bottoms]
    net, tail = layers[: len(_STEPS)], layers[len(_STEPS) :]
    if len(net) < len(_STEPS) or any(layer.blobs for layer in tail) or len(recipe.blobs) != 34:
        return None
    if not all(_is(layer, step) for layer, step in zip(net, _STEPS, strict=True)) or not _is_wired(net):
        return None
    first, last = recipe.blobs[0].shape, recipe.blobs[-1].shape
    if first is None or last is None or len(first) != 4 or first[0] is None or last[0] is None:
        return None
    model = SegNetBasic(in_channels=first[1] or 1, num_classes=last[0], width=first[0])
    return model if _holds(model, recipe) else None


def _is(layer: Layer, step: _Step) -> bool:
    return (
        layer.type == step.type
        and step.name in (None, layer.name)
        and all(layer.settings.get(name) == value for name, value in step.settings.items())
        and all(_per_axis(layer.settings, name) == {size} for name, size in step.sizes.items())
    )


def _per_axis(settings: Mapping[str, object], name: str) -> set[object]:
    """What ``kernel_size``, ``stride``, ``pad`` or ``dilation`` is on each axis, however it is stated."""
    axis = name.removesuffix("_size")
    height, width = settings.get(f"{axis}_h"), settings.get(f"{axis}_w")
    if height or width:
        return {height, width}
    value = settings.get(name) or (0 if name == "pad" else 1)
    return set(value) if isinstance(value, tuple) else {value}


def _is_wired(net: list[Layer]) -> bool:
    """Whether each layer takes what the one before it gives, and each upsampling the mask of its pooling."""
    masks = [layer.tops[1] for layer in net if layer.type == "Pooling" and len(layer.tops) == 2]
    wanted = [layer.bottoms[1] for layer in net if layer.type == "Upsample" and len(layer.bottoms) == 2]
    in_line = all(after.bottoms[0] == before.tops[0] for before, after in pairwise(net))
    return in_line and len(masks) == 4 and wanted == masks[::-1]


def _holds(model: SegNetBasic, recipe: TrainingRecipe) -> bool:
    """Whether the model's parameters have the blobs' shapes, a BN's written ``(1, C, 1, 1)``, and unknown sizes any."""
    for blob, parameter in zip(recipe.blobs, model.parameters(), strict=True):
        shape = tuple(parameter.shape) if blob.layer_type != "BN" else (1, *parameter.shape, 1, 1)
        if blob.shape is None or len(blob.shape) != len(shape):
            return False
        if any(size not in (None, own) for size, own in zip(blob.shape, shape, strict=True)):
            return False
    return True
