"""Bind Caffe's blobs to a model's parameters and buffers."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from caffe2torch.errors import BindingError
from caffe2torch.plan import Binding, BoundBlob, Kind, Unclaimed
from caffe2torch.pytorch.modules import module_units
from caffe2torch.pytorch.naming import module_names
from caffe2torch.pytorch.skeleton import layers_with_blobs
from caffe2torch.pytorch.slots import Match, Misfit, match_tensors
from caffe2torch.pytorch.wrappers import bare, named_tensors
from caffe2torch.recipe import TrainingRecipe

__all__ = ["bind"]


def bind(
    recipe: TrainingRecipe,
    model: nn.Module,
    names: Mapping[str, str] | None = None,
    *,
    unclaimed: tuple[float, float] | None = None,
) -> Binding:
    """Bind every blob of ``recipe`` to a parameter or buffer of ``model``.

    Raises ``BindingError`` for blobs whose shapes do not fit, and for blobs and parameters that are left over.
    """
    model = bare(model)
    units = {part: unit for unit in module_units(model) for part in unit.parts}
    layers = layers_with_blobs(recipe)
    matches: dict[int, Match] = {}
    misfits: list[Misfit] = []
    module_of = dict(zip(range(len(layers)), module_names(layer for layer, _, _ in layers), strict=True))
    for number, (layer, _, blobs) in enumerate(layers):
        wanted = (names or {}).get(layer, layer)
        unit = (
            units.get(names[layer]) if names and layer in names else units.get(module_of[number]) or units.get(wanted)
        )
        new = [blob for blob in blobs if blob not in matches]
        if unit is None:
            previous = layers[number - 1] if number else None
            if previous and previous[1] == "BatchNorm":
                before = (names or {}).get(previous[0], previous[0])
                unit = units.get(before)
        if unit is None:
            misfits += [Misfit(blob, None, "no module has its name") for blob in new]
            continue
        found, wrong = match_tensors(recipe, new, unit)
        matches.update({match.blob: match for match in found})
        misfits += wrong
    if misfits:
        first = misfits[0]
        blob = recipe.blobs[first.blob]
        raise BindingError(f"layer {blob.layer!r}: {first.reason}", where=blob.where)
    bound = []
    for number, blob in enumerate(recipe.blobs):
        tensor = matches[number].tensor
        kind = Kind.NONE if tensor is None else Kind.PARAMETER if tensor.trained else Kind.BUFFER
        bound.append(BoundBlob(blob, kind, None if tensor is None else str(tensor.key), "equal names"))
    claimed = {one.name for one in bound}
    left = [
        Unclaimed(name, tuple(parameter.shape), *(unclaimed or (None, None)))
        for name, parameter in named_tensors(model)
        if isinstance(parameter, nn.Parameter) and name not in claimed
    ]
    if left and unclaimed is None:
        raise BindingError(f"{left[0].name} of the model belongs to no blob of the net")
    return Binding(type(model).__name__, tuple(bound), tuple(left))
