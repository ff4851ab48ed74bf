"""Counterparts by names alone, for models whose wiring cannot be seen and modules that no forward pass reaches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from caffe2torch.binding.graph import Unit
from caffe2torch.binding.naming import name_hints
from caffe2torch.binding.skeleton import layers_with_blobs
from caffe2torch.binding.tensor_matching import Counterpart, How, match_tensors
from caffe2torch.recipe import TrainingRecipe

__all__ = ["by_names"]


def by_names(
    recipe: TrainingRecipe, units: Sequence[Unit], modules: Sequence[Unit], said: Mapping[str, str]
) -> list[Counterpart]:
    """Counterparts by names alone, layer by layer: a BatchNorm and its Scale may be two modules or one.

    Shapes are left to the caller, except where names agree only after normalising.
    """
    wanted = {part for unit in units for part in unit.parts}
    layers = [(layer, blobs) for layer, _, blobs in layers_with_blobs(recipe) if layer in wanted]
    by_path = {part: module for module in modules for part in module.parts}
    singles = [Unit(layer, (layer,), modules[0].kind, None, ()) for layer, _ in layers]
    equal, alike = name_hints(singles, modules)
    of_layer: dict[str, tuple[Unit, str]] = {}
    for number, (layer, blobs) in enumerate(layers):
        if said.get(layer) in by_path:
            of_layer[layer] = by_path[said[layer]], How.SAID
        elif number in equal:
            of_layer[layer] = modules[equal[number]], How.EQUAL
        elif number in alike and not match_tensors(recipe, blobs, modules[alike[number]])[1]:
            of_layer[layer] = modules[alike[number]], How.ALIKE
    for unit in units:  # the other half of a batch norm goes where the first went
        known = [of_layer[part] for part in unit.parts if part in of_layer]
        for part in unit.parts:
            if known and part not in of_layer:
                of_layer[part] = known[0]
    groups = {part: unit.groups for unit in units for part in unit.parts}
    return [
        Counterpart(layer, blobs, *of_layer[layer], groups=groups[layer])
        for layer, blobs in layers
        if layer in of_layer
    ]
