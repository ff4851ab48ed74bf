"""What ports do otherwise than their nets, as far as it can be seen, and what to do about it.

A weight that is computed of other parameters, a frozen one with something that learns beside it, recurrent layers that
are one module, modules that are numbered from another start, and other normalizations.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping

from caffe2torch.binding.attempt import Attempt
from caffe2torch.binding.closest import differences
from caffe2torch.binding.graph import TensorReference, Unit, UnitKind, Wiring
from caffe2torch.binding.layout import DIRECTIONS, stored
from caffe2torch.binding.names import renumbered, toml_line
from caffe2torch.binding.typed import Advice, decision
from caffe2torch.recipe import LearnableBlob, NetRecipe
from caffe2torch.wording import listed

__all__ = ["HABITS", "beside_frozen"]

_MOST = 6  # things of a kind that are named one by one


def _held_otherwise(attempt: Attempt) -> Iterator[Advice]:
    """Blobs that a module has not as such: it computes its weight of others, or calls what it has otherwise."""
    recipe, parameters = attempt.recipe, attempt.model.parameters
    names: dict[str, str] = {}
    rest: dict[str, tuple[float, float] | None] = {}
    replaced: list[str] = []
    learning: dict[str, tuple[float, float] | None] = {}
    open_blobs: dict[str, list[str]] = {}
    for misfit, one in attempt.assignment.misfits:
        blob, place = recipe.blobs[misfit.blob], one.module.name
        if misfit.tensor is not None or not place or one.module.kind is UnitKind.RECURRENT:
            continue
        inside = {
            name: tensor
            for name, tensor in attempt.model.tensors.items()
            if name.startswith(f"{place}.") and name in attempt.left and parameters[name][1]
        }
        carrier = _carrier(recipe, blob, inside)
        pair = (blob.lr_mult, blob.decay_mult)
        if carrier is not None:
            names |= {blob.name: carrier, **_rest_of_layer(attempt, blob, inside)}
            rest |= dict.fromkeys(inside, pair) if blob.role == "weight" else {}
        elif inside and blob.role == "weight":
            replaced.append(blob.name)
            learning |= dict.fromkeys(inside, pair)
        elif fitting := [name for name in inside if stored(recipe, blob, inside[name]) is not None]:
            open_blobs[blob.name] = fitting
    if replaced:
        text = f"{_some(learning)} learn in place of {_some(map(repr, replaced))}: leave that out and give them its"
        yield Advice(f"{text} multipliers{_A_CHOICE}", skip=[*replaced], unclaimed=learning, settles=True)
    if open_blobs:
        name, places = next(iter(open_blobs.items()))
        placed = [place for places in open_blobs.values() for place in places]
        about = [*open_blobs]
        ways = [toml_line(name, place) for place in places]
        yield Advice(decision(ways, len(open_blobs)), placed=placed, otherwise=about, about=about)
    rest = {name: pair for name, pair in rest.items() if name not in names.values()}
    if names:
        what = (
            "bind in a names file what a weight is computed from" if rest else "bind in a names file what the model has"
        )
        more = ", and give the rest of it the weight's own multipliers" if rest else ""
        yield Advice(what + more, names, unclaimed=rest, settles=True, certain=True)


def _carrier(recipe: NetRecipe, blob: LearnableBlob, tensors: Mapping[str, TensorReference]) -> str | None:
    """What has the values of a blob, if there is one: a weight's direction, or a bias that is called so."""
    fitting = [name for name, tensor in tensors.items() if stored(recipe, blob, tensor) is not None]
    if blob.role == "bias":
        known = [name for name in fitting if name.endswith("bias")]
        return known[0] if len(known) == 1 else None
    known = [name for end in DIRECTIONS for name in fitting if name.endswith(end)]
    return next(iter(known or (fitting if len(fitting) == 1 and blob.role == "weight" else [])), None)


def _rest_of_layer(attempt: Attempt, blob: LearnableBlob, inside: Mapping[str, TensorReference]) -> dict[str, str]:
    """The other blobs of a layer one of whose blobs is named: where they are bound, or what has their values."""
    names = {}
    for number, other in enumerate(attempt.recipe.blobs):
        if other.layer != blob.layer or other is blob:
            continue
        assigned = attempt.assignment.blobs.get(number)
        if assigned is not None and assigned.tensor is not None:
            names[other.name] = str(assigned.tensor.key)
        elif assigned is None and (carrier := _carrier(attempt.recipe, other, inside)) is not None:
            names[other.name] = carrier
    return names


def beside_frozen(attempt: Attempt, named: Mapping[str, str]) -> Iterator[Advice]:
    """What learns beside a frozen weight, in its module or in the part of the model that is made around it.

    Args:
        attempt: What was found.
        named: Layers to modules, as other advice binds them.
    """
    parameters = attempt.model.parameters
    bound = {
        str(one.tensor.key): attempt.recipe.blobs[number]
        for number, one in attempt.assignment.blobs.items()
        if one.tensor is not None
    }
    modules = {part: unit for unit in attempt.model.units for part in unit.parts}
    for blob in attempt.recipe.blobs:
        place = modules.get(named.get(blob.layer, ""))
        if place is not None and (tensor := place.role(blob.role)) is not None:
            bound[str(tensor.key)] = blob
    layers: dict[str, None] = {}
    learning: dict[str, tuple[float, float] | None] = {}
    for name, blob in bound.items():
        if blob.role != "weight" or blob.lr_mult == 0 or parameters.get(name, ((), True))[1]:
            continue
        inner = name.rpartition(".")[0]
        outer = inner.rpartition(".")[0]
        shared = any(key.startswith(f"{outer}.") and one.layer != blob.layer for key, one in bound.items())
        part = inner if shared or not outer else outer
        if beside := [one for one in attempt.parameters if one.startswith(f"{part}.")]:
            layers[repr(blob.layer)] = None
            learning |= dict.fromkeys(beside, (blob.lr_mult, blob.decay_mult))
    if layers:
        text = f"{_some(learning)} learn beside the frozen weight of {_some(layers)}: give them its multipliers"
        yield Advice(f"{text}{_A_CHOICE}", unclaimed=learning)


_A_CHOICE = ", if that is what you mean"


def _some(names: Iterable[str]) -> str:
    return ", ".join(listed([*names], _MOST))


_OF_RECURRENT = {"input_weight": "weight_ih", "bias": "bias_ih", "hidden_weight": "weight_hh"}


def _stacked(attempt: Attempt) -> Iterator[Advice]:
    """Several recurrent layers of Caffe's that are one module of torch's, with ``num_layers`` or ``bidirectional``."""
    recipe, tensors = attempt.recipe, attempt.model.tensors
    for module in attempt.model.units:
        own = [str(tensor.key) for tensor in module.tensors]
        found = [re.fullmatch(r"(?:.*\.)?weight_ih(_l\d+(?:_reverse)?)", name) for name in own]
        ends = [one[1] for one in found if one is not None]
        if module.kind is not UnitKind.RECURRENT or len(ends) < 2:
            continue
        layers = [
            unit
            for unit in attempt.net.units
            if unit.kind is UnitKind.RECURRENT
            and {tensor.role for tensor in unit.tensors} <= _OF_RECURRENT.keys()
            and all(
                number not in attempt.assignment.blobs
                or (attempt.assignment.blobs[number].tensor or tensor).key in (*own, tensor.key)
                for tensor in unit.tensors
                for number in [int(tensor.key)]
            )
        ]
        names, skip, start = {}, [], f"{module.parts[0]}." if module.parts[0] else ""
        for end, unit in zip(ends, layers, strict=False):
            for one in unit.tensors:
                blob, name = recipe.blobs[int(one.key)], f"{start}{_OF_RECURRENT[one.role]}{end}"
                if name not in tensors:
                    skip.append(blob.name)
                elif stored(recipe, blob, tensors[name]) is not None:
                    names[blob.name] = name
                else:
                    return
        if len(layers) > 1:
            text = f"{module.name} holds {len(ends)} layers: bind them blob by blob in a names file"
            both_ways = any(end.endswith("_reverse") for end in ends)
            text += ", the layers that read backwards as _reverse" if both_ways else ""
            yield Advice(text, names, skip, settles=True, certain=len(layers) == len(ends) and not both_ways)


def _renumbered(attempt: Attempt) -> Iterator[Advice]:
    """Layers and modules whose numbers begin otherwise."""
    modules = {part: unit for unit in attempt.free for part in unit.parts}
    layers = {part: unit for unit in attempt.unbound for part in unit.parts}
    moved = {
        layer: module
        for layer, module in renumbered(layers, modules).items()
        if not differences(layers[layer], modules[module])
    }
    if moved:
        yield Advice("the modules may be numbered from another start: if so, bind them so in a names file", moved)


def _statistics(attempt: Attempt) -> Iterator[Advice]:
    """GroupNorm, LayerNorm or InstanceNorm, which keep no statistics, in the place of a BatchNorm with its Scale."""
    free = [unit for unit in attempt.free if unit.kind is UnitKind.SCALE]
    skip: list[str] = []
    modules: list[Unit] = []
    for unit in attempt.unbound:
        own = [part for part in unit.parts if _roles(attempt.recipe, part) <= {"mean", "variance", "factor"}]
        near = next((module for module in free if not differences(unit, _as_norm(module))), None)
        if unit.kind is UnitKind.NORM and own and len(own) < len(unit.parts) and near is not None:
            free.remove(near)
            modules.append(near)
            skip += own
    if skip:
        text = "leave out statistics, of which norms of the model keep none, and keep scale and shift"
        placed = [str(tensor.key) for module in modules for tensor in module.tensors]
        yield Advice(text, skip=skip, placed=placed, settles=True)


def _scaled_by_norm(attempt: Attempt) -> Iterator[Advice]:
    """A Scale alone where the model has a batch normalization after the same layer."""
    if attempt.model.wiring is None:
        return
    modules = {
        str(tensor.key): one.layer
        for number, assigned in attempt.assignment.blobs.items()
        if (tensor := assigned.tensor) is not None
        for one in [attempt.recipe.blobs[number]]
    }
    net, model = _fed_by(attempt.net.wiring), _fed_by(attempt.model.wiring)
    names: dict[str, str] = {}
    for unit in attempt.unbound:
        for module in attempt.free if unit.kind is UnitKind.SCALE else ():
            before = model.get(module.name)
            after = (
                {modules.get(str(tensor.key)) for tensor in before.tensors} - {None} if before is not None else set()
            )
            same = unit.name in net and after == {net[unit.name].name}
            if same and module.kind is UnitKind.NORM and not differences(_as_norm(unit), module):
                names[unit.name] = module.name
    if names:
        yield Advice("bind scale and shift to the batch norms of the model in a names file", names, settles=True)


def _fed_by(wiring: Wiring) -> dict[str, Unit]:
    """By the name of a unit that is used once and directly after another one, that one."""
    found: dict[str, list[Unit | None]] = {}
    for node in wiring.nodes:
        if node.unit is not None:
            source = wiring.nodes[node.inputs[0]].unit if len(node.inputs) == 1 else None
            found.setdefault(wiring.units[node.unit].name, []).append(None if source is None else wiring.units[source])
    return {name: units[0] for name, units in found.items() if len(units) == 1 and units[0] is not None}


def _as_norm(module: Unit) -> Unit:
    return Unit(module.name, module.parts, UnitKind.NORM, module.shape, module.tensors, module.groups)


def _roles(recipe: NetRecipe, layer: str) -> set[str]:
    return {blob.role for blob in recipe.blobs if blob.layer == layer}


HABITS: tuple[Callable[[Attempt], Iterator[Advice]], ...] = (
    _held_otherwise,
    _stacked,
    _renumbered,
    _statistics,
    _scaled_by_norm,
)
