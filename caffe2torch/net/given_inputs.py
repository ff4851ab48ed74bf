"""A recipe whose open sizes are filled in from the shapes of its inputs, after the files were read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from caffe2torch.errors import NetError
from caffe2torch.net.forks import Dialect
from caffe2torch.net.layer_context import Node
from caffe2torch.net.layers import blob_rules
from caffe2torch.net.shape_arithmetic import MisfitError, agree
from caffe2torch.net.shapes import top_shapes
from caffe2torch.recipe import Layer, Shape, TrainingRecipe

__all__ = ["with_inputs"]


def with_inputs(recipe: TrainingRecipe, inputs: Mapping[str, Sequence[int]]) -> TrainingRecipe:
    """The recipe with every size that follows from ``inputs`` (blob name to shape); sizes it has are kept.

    What ``read_recipe(..., inputs=...)`` does while reading, for a recipe that was read without. Raises ``NetError``
    for a blob that the net does not have, and for shapes that contradict what the file states.
    """
    made = {name for layer in recipe.layers for name in (*layer.bottoms, *layer.tops)}
    for name in inputs:
        if name not in made:
            sources = [top for layer in recipe.layers if not layer.bottoms for top in layer.tops]
            hint = f"its data blobs: {', '.join(map(repr, sources)) or 'none'}"
            raise NetError(f"the net has no blob {name!r} to give a shape to", hint=hint)
    shapes: dict[str, Shape | None] = {name: tuple(shape) for name, shape in inputs.items()}
    sizes: dict[int, Shape | None] = {number: blob.shape for number, blob in enumerate(recipe.blobs)}
    layers = []
    for layer in recipe.layers:
        try:
            found = _visit(layer, shapes, sizes, inputs)
        except MisfitError as misfit:
            raise NetError(f"layer {layer.name!r}: {misfit.message}", where=layer.where, hint=misfit.hint) from None
        shapes.update(zip(layer.tops, found, strict=True))
        layers.append(replace(layer, top_shapes=found))
    blobs = tuple(replace(blob, shape=sizes[number]) for number, blob in enumerate(recipe.blobs))
    return replace(recipe, blobs=blobs, layers=tuple(layers))


def _visit(
    layer: Layer,
    shapes: Mapping[str, Shape | None],
    sizes: dict[int, Shape | None],
    inputs: Mapping[str, Sequence[int]],
) -> tuple[Shape | None, ...]:
    """Fill in the sizes of a layer's blobs; returns the shapes of its tops."""
    bottoms = tuple(shapes.get(name) for name in layer.bottoms)
    node = Node(layer.name, layer.type, layer.settings, bottoms, layer.bottoms, layer.tops, 0, Dialect())
    rules = blob_rules(node) or ()
    if len(rules) == len(layer.blobs):  # else a fork's layer, whose blobs the reader knew better
        for number, rule in zip(layer.blobs, rules, strict=True):
            sizes[number] = _filled(sizes[number], rule.shape)
    found = [_filled(old, new) for old, new in zip(layer.top_shapes, top_shapes(node), strict=True)]
    return tuple(tuple(inputs[top]) if top in inputs else shape for top, shape in zip(layer.tops, found, strict=True))


def _filled(known: Shape | None, found: Shape | None) -> Shape | None:
    """What was known, with what is new where sizes were open."""
    if known is not None and found is not None and len(known) == len(found):
        merged = tuple(new if old is None else old for old, new in zip(known, found, strict=True))
        return agree(known, merged)
    return found if known is None else known
