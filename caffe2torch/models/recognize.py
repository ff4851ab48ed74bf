"""Which nets are the built-in SegNetBasic."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from torch import nn

from caffe2torch.models.builders import Spec, spec_of
from caffe2torch.models.functions import max_pool_with_mask, unpool
from caffe2torch.models.segnet_basic import BN, SegNetBasic
from caffe2torch.net.shape_arithmetic import MisfitError
from caffe2torch.recipe import Layer, NetRecipe

__all__ = ["segnet_basic_for"]


def segnet_basic_for(recipe: NetRecipe) -> SegNetBasic | None:
    """A new ``SegNetBasic`` of the recipe's sizes, if its net is SegNetBasic; ``None`` if it is any other.

    It is, when the layers between data and losses are SegNetBasic's own, one by one: what computes them, wiring, and
    for those that learn also name and shapes. So a net with dropout, as Bayesian SegNet-Basic has, is none, though it
    learns the same blobs. A number of input channels that the file does not state stands as 1.

    >>> segnet_basic_for(NetRecipe("a net without layers", (), None)) is None
    True
    """
    if len(recipe.blobs) != 34:
        return None
    first, last = recipe.blobs[0].shape, recipe.blobs[-1].shape
    if first is None or last is None or len(first) != 4 or first[0] is None or last[0] is None:
        return None
    channels, classes, width = first[1] or 1, last[0], first[0]
    steps = list(_steps(channels, classes, width))
    layers = [layer for layer in recipe.layers if layer.bottoms]
    net, rest = layers[: len(steps)], layers[len(steps) :]
    if len(net) < len(steps) or any(layer.blobs for layer in rest) or not _is_wired(net):
        return None
    if not all(_is(recipe, layer, *step) for layer, step in zip(net, steps, strict=True)):
        return None
    return SegNetBasic(channels, classes, width)


def _steps(channels: int, classes: int, width: int) -> Iterator[tuple[str | None, Spec]]:
    """Its layers in order: the name of those that learn, and what computes them."""
    pool = Spec(max_pool_with_mask, (), {"kernel_size": (2, 2), "stride": (2, 2), "padding": (0, 0)})
    yield None, Spec(nn.LocalResponseNorm, (5,), {"alpha": 1e-4, "beta": 0.75, "k": 1.0})
    for i in (1, 2, 3, 4):
        yield f"conv{i}", Spec(nn.Conv2d, (channels if i == 1 else width, width, 7), {"padding": 3})
        yield from ((f"conv{i}_bn", Spec(BN, (width,))), (None, Spec(nn.ReLU)), (None, pool))
    for i in (4, 3, 2, 1):
        yield None, Spec(unpool)
        yield f"conv_decode{i}", Spec(nn.Conv2d, (width, width, 7), {"padding": 3})
        yield f"conv_decode{i}_bn", Spec(BN, (width,))
    yield "conv_classifier", Spec(nn.Conv2d, (width, classes, 1))


def _is(recipe: NetRecipe, layer: Layer, name: str | None, wanted: Spec) -> bool:
    """Whether a layer is a step; an unpooling's own size follows from its mask's."""
    try:
        spec = spec_of(recipe, layer)
    except MisfitError:
        return False
    return name in (None, layer.name) and (spec == wanted or spec.target is wanted.target is unpool)


def _is_wired(net: list[Layer]) -> bool:
    """Whether each layer takes what the one before it gives, and each upsampling the mask of its pooling."""
    masks = [layer.tops[1] for layer in net if layer.type == "Pooling" and len(layer.tops) == 2]
    wanted = [layer.bottoms[1] for layer in net if layer.type == "Upsample" and len(layer.bottoms) == 2]
    in_line = all(after.bottoms[0] == before.tops[0] for before, after in pairwise(net))
    return in_line and len(masks) == 4 and wanted == masks[::-1]
