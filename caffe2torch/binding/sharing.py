"""Where one side shares what the other does not: blobs that two layers have together, a module that is called twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from caffe2torch.binding.candidates import candidates
from caffe2torch.binding.graph import Unit, Wiring
from caffe2torch.binding.isomorphism import match_whole, untied
from caffe2torch.binding.tensor_matching import Clash
from caffe2torch.wording import listed

__all__ = ["shared_otherwise"]


def shared_otherwise(net: Wiring, model: Wiring, reshaped: Collection[int] = ()) -> list[Clash]:
    """What only one side shares, if the model holds the whole net once every use has a unit of its own.

    Args:
        net: The net.
        model: The model, which may have more units.
        reshaped: Blobs (indices) that may have another shape in the model.
    """
    owners = [[node.unit for node in wiring.nodes if node.unit is not None] for wiring in (net, model)]
    if all(len(set(side)) == len(side) for side in owners) or match_whole(net, model, {}) is not None:
        return []
    found = _uses(untied(net), untied(model), reshaped)
    clashes = []
    places: dict[int, set[int]] = {}  # unit of the net -> the units of the model that its uses can be
    layers: dict[int, set[int]] = {}  # unit of the model -> the units of the net whose uses can be nothing else
    for use, others in found.items():
        modules = {owners[1][other] for other in others}
        places.setdefault(owners[0][use], set()).update(modules)
        if len(modules) == 1:
            layers.setdefault(next(iter(modules)), set()).add(owners[0][use])
    counts = [Counter(side) for side in owners]
    for one, modules in places.items():
        if len(modules) >= counts[0][one] > max(counts[1][other] for other in modules):
            clashes.append(_net_shares(net.units[one], [model.units[other] for other in sorted(modules)]))
    for other, ones in layers.items():
        if counts[1][other] >= len(ones) > 1:
            clashes.append(_model_shares([net.units[one] for one in sorted(ones)], model.units[other]))
    return clashes


def _uses(net: Wiring, model: Wiring, reshaped: Collection[int]) -> Mapping[int, Sequence[int]]:
    """Which uses in the model each use in the net can be; nothing where there is no model use for each."""
    matching = match_whole(net, model, {})
    if matching is not None:
        return {one: [other] for one, other in matching.pairs.items()}
    other_sizes = {
        number for number, unit in enumerate(net.units) if any(tensor.key in reshaped for tensor in unit.tensors)
    }
    found = candidates(net, model, {}, other_sizes)
    enough = len({other for others in found.values() for other in others}) >= len(found)
    return found if enough and all(found.values()) else {}


def _net_shares(unit: Unit, modules: Sequence[Unit]) -> Clash:
    layers, places = " and ".join(map(repr, unit.parts)), " and ".join(module.name for module in modules)
    ties = tuple(
        (str(own.key), str(tensor.key))
        for module in modules[1:]
        for tensor in module.tensors
        if tensor.trained and (own := modules[0].role(tensor.role)) is not None
    )
    text = f"Caffe shares one set of blobs between layers {layers}; the model has modules {places} for them, each with "
    return Clash(text + "weights of its own", unit.parts, tuple(module.name for module in modules), ties)


def _model_shares(units: Sequence[Unit], module: Unit) -> Clash:
    layers = " and ".join(listed([repr(unit.name) for unit in units], 4))
    text = f"the model shares what the net does not: it uses module {' with '.join(module.parts)} for layers {layers}, "
    return Clash(
        text + "which have blobs of their own",
        tuple(part for unit in units for part in unit.parts),
        (module.name,),
        advice="give the model a module for each of these layers, or share their blobs in Caffe by param names",
    )
