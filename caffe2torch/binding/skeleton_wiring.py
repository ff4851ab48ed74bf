"""The wiring of a skeleton, which computes nothing that could be traced: its layers carry their net's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from caffe2torch.binding.graph import Held, Unit, Wiring
from caffe2torch.binding.rewiring import without_units
from caffe2torch.binding.skeleton import SkeletonLayer
from caffe2torch.binding.wrappers import named_modules, named_tensors

__all__ = ["skeleton_wiring"]


def skeleton_wiring(model: nn.Module) -> Wiring | None:
    """The wiring of the skeleton's layers in ``model``, in terms of its names; ``None`` if it has none.

    It does not matter what the modules are called, in which order they were registered, and in which module they
    are: units stand in the order of the model's modules. Those whose layers were taken out are transparent.
    """
    layers = [(path, module) for path, module in named_modules(model) if isinstance(module, SkeletonLayer)]
    if not layers or any(module.net is not layers[0][1].net for _, module in layers):
        return None
    names = {id(tensor): name for name, tensor in named_tensors(model)}
    held: dict[int, Held] = {}
    paths: dict[int, list[str]] = {}
    for path, module in layers:
        for attribute, number in module.blobs.items():
            tensor = getattr(module, attribute)
            trained = isinstance(tensor, nn.Parameter)
            held[number] = Held(module.roles[attribute], tuple(tensor.shape), names[id(tensor)], trained)
            paths.setdefault(number, []).append(path)
    net = layers[0][1].net
    rank = {key: place for place, key in enumerate(held)}
    first = [min((rank.get(int(one.key), len(rank)) for one in unit.held), default=0) for unit in net.units]
    order = sorted(range(len(net.units)), key=first.__getitem__)
    place = {number: index for index, number in enumerate(order)}
    nodes = tuple(node if node.unit is None else replace(node, unit=place[node.unit]) for node in net.nodes)
    units = [_unit(net.units[number], held, paths) for number in order]
    gone = {index for index, unit in enumerate(units) if not unit.held}
    return without_units(Wiring(tuple(units), nodes), gone)


def _unit(unit: Unit, held: Mapping[int, Held], paths: Mapping[int, list[str]]) -> Unit:
    """A unit of the net with the model's names and shapes; it holds nothing if the model has none of its tensors."""
    own = [int(one.key) for one in unit.held if one.key in held]
    if not own:
        return replace(unit, held=())
    parts = tuple(dict.fromkeys(path for key in own for path in paths[key]))
    tensors = tuple(held[key] for key in own)
    shape = tensors[0].shape if unit.shape is None else tuple(size or 1 for size in unit.shape)
    return replace(unit, name=parts[0], parts=parts, held=tensors, shape=shape)
