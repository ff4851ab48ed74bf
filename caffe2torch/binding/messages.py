"""What to tell a person whose net and model do not fit: what differs, what comes closest, what to write."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import tomli_w

from caffe2torch.binding.graph import Node, Op, Unit, UnitKind, Wiring
from caffe2torch.binding.isomorphism import match_whole
from caffe2torch.binding.model_graph import ModelWiring
from caffe2torch.binding.naming import normalised
from caffe2torch.binding.tensor_matching import Assignment, Findings, How, fit, spell
from caffe2torch.errors import BindingError
from caffe2torch.recipe import Note, Severity, TrainingRecipe

__all__ = ["Leftovers", "binding_notes", "complaint", "explain", "tie_complaint"]

_T = TypeVar("_T")
_MOST = 6  # lines of one kind; who needs more has seen what is wrong


@dataclass(frozen=True, slots=True)
class Leftovers:
    """Blobs (indices) that nothing was found for, parameters that nothing was found for, and why, in general."""

    blobs: Sequence[int]
    parameters: Mapping[str, tuple[int, ...]]
    explanation: Sequence[str] = ()


def complaint(
    recipe: TrainingRecipe,
    model: str,
    net: Sequence[Unit],
    modules: Sequence[Unit],
    findings: Findings,
    assignment: Assignment,
    left: Leftovers,
) -> BindingError:
    """The error for a binding that leaves something out: all that is wrong in one message, the first place first."""
    bound = {str(one.tensor.key) for one in assignment.blobs.values() if one.tensor is not None}
    refused = {one.module.name for _, one in assignment.misfits}
    contested = {str(misfit.tensor.key) for misfit, _ in assignment.misfits if misfit.tensor is not None}
    free = [module for module in modules if not any(held.key in bound for held in module.held)]
    idle = [module for module in free if module.name not in refused and _unmeant(module, left)]
    bad = dict.fromkeys(misfit.blob for misfit, _ in assignment.misfits)
    missing = [number for number in left.blobs if number not in bad]
    units = [unit for unit in net if any(held.key in missing for held in unit.held)]
    known = {held.key for module in free for held in module.held} | contested
    stray = [name for name in left.parameters if name not in known]
    lines = [
        *left.explanation,
        *_listed(assignment.clashes),
        *_listed(_misfit_lines(recipe, assignment)),
        *_listed(units, lambda unit: _unbound_line(unit, findings, free)),
        *_listed(stray, lambda name: f"{name} ({spell(left.parameters[name])}) of the model belongs to no layer"),
        *_listed(idle, lambda module: f"module {module.name or 'itself'} ({module.kind}) belongs to no layer"),
        *_listed(_second_biases(modules, left)),
    ]
    first = next(iter((*bad, *missing)), None)
    return BindingError(
        _headline(recipe, model, len(bad), len(units), len(left.parameters), len(assignment.clashes)),
        where=None if first is None else recipe.blobs[first].where,
        found="\n    ".join(lines),
        hint=_hint(findings, units, free, misfits=bool(bad), left=bool(idle or stray)),
    )


def tie_complaint(recipe: TrainingRecipe, units: Sequence[Unit], modules: Sequence[Unit]) -> BindingError | None:
    """The error for units that nothing tells apart, if their multipliers differ; ``None`` if they are the same."""
    said = {}
    for unit in units:
        blobs = [recipe.blobs[int(held.key)] for held in unit.held]
        said[unit.name] = ", ".join(f"{blob.role} ({blob.lr_mult:g}, {blob.decay_mult:g})" for blob in blobs)
    if len(set(said.values())) == 1:
        return None
    layers = " and ".join(repr(unit.name) for unit in units[:4])
    places = " and ".join(module.name for module in modules[:4])
    either, other = (toml_line(units[0].name, module.name) for module in modules[:2])
    return BindingError(
        f"layers {layers} could be modules {places} in any order, and their (lr_mult, decay_mult) differ",
        where=recipe.blobs[int(units[0].held[0].key)].where,
        found="; ".join(f"{layer!r}: {multipliers}" for layer, multipliers in said.items()),
        hint=f"decide in a names file: {either}  or  {other}",
    )


def toml_line(layer: str, module: str) -> str:
    """The line of a names file that binds a layer to a module.

    >>> print(toml_line("conv1/7x7_s2", "features.0"))
    "conv1/7x7_s2" = "features.0"
    """
    return tomli_w.dumps({layer: module}).strip()


def _closest(unit: Unit, modules: Iterable[Unit]) -> Unit | None:
    """The module of the same kind that differs least in sizes, then in name."""
    ours = normalised(unit.name.replace(".", "_"))

    def distance(module: Unit) -> tuple[int, float]:
        ratio = difflib.SequenceMatcher(None, ours, normalised(module.name)).ratio()
        return len(differences(unit, module)), -ratio

    return min((module for module in modules if module.kind is unit.kind), key=distance, default=None)


def _headline(recipe: TrainingRecipe, model: str, misfits: int, units: int, left: int, clashes: int) -> str:
    counted = [
        (misfits, "blob does not fit the tensor in its place", "blobs do not fit the tensors in their place"),
        (units, "layer has no certain counterpart", "layers have no certain counterpart"),
        (left, "parameter belongs to no layer", "parameters belong to no layer"),
        (clashes, "contradiction", "contradictions"),
    ]
    parts = [f"{count} {one if count == 1 else many}" for count, one, many in counted if count]
    net = f"net {recipe.net_name!r}" if recipe.net_name else "the net"
    return f"{net} does not bind to {model}: {', '.join(parts)}"


def _misfit_lines(recipe: TrainingRecipe, assignment: Assignment) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for misfit, one in assignment.misfits:
        layer, place = recipe.blobs[misfit.blob].layer, one.module.name or "the model itself"
        reasons.setdefault(f"layer {layer!r} at {place} ({one.how})", []).append(misfit.reason)
    layers: dict[str, list[str]] = {}
    for place, texts in reasons.items():
        layers.setdefault("; ".join(texts), []).append(place)
    return [
        f"{places[0]}: {reason}" + (f", and {len(places) - 1} layers more" if len(places) > 1 else "")
        for reason, places in sorted(layers.items(), key=lambda item: -len(item[1]))
    ]


def _unbound_line(unit: Unit, findings: Findings, free: Sequence[Unit]) -> str:
    layers = "layer " + " with ".join(repr(part) for part in unit.parts)
    if unit.name in findings.torn:
        places = findings.torn[unit.name]
        if len(places) > 1:
            return f"{layers} could be {' or '.join(places)}"
        rivals = [name for name, others in findings.torn.items() if others == places and name != unit.name]
        return f"{layers} could be {places[0]}" + (f", as could {' or '.join(map(repr, rivals))}" if rivals else "")
    near = _closest(unit, free)
    if near is None:
        return f"{layers} has no counterpart"
    what = "; ".join(differences(unit, near)) or "the same sizes, in other surroundings"
    return f"{layers} has no counterpart; closest is {near.name}: {what}"


def _hint(findings: Findings, units: Sequence[Unit], free: Sequence[Unit], *, misfits: bool, left: bool) -> str:
    advice = []
    if misfits:
        advice.append("give the model the net's sizes, or leave those layers out (skip, --skip LAYER)")
    if units:
        unit = next((unit for unit in units if unit.name in findings.torn), units[0])
        near = _closest(unit, free)
        place = findings.torn.get(unit.name, (near.name if near is not None else "MODULE",))[0]
        example = toml_line(unit.name, place)
        alone = next((unit for unit in units if unit.name not in findings.torn), units[0])
        advice.append(f"bind layers in a names file ({example}), or leave them out (skip, --skip {alone.name!r})")
    if left or misfits:
        advice.append("say how parameters without a layer learn (unclaimed, --unclaimed lr_mult=1,decay_mult=1)")
    return "; ".join(advice) or "bind other modules in a names file, or change the model"


def _unmeant(module: Unit, left: Leftovers) -> bool:
    return any(held.key in left.parameters for held in module.held)


def _second_biases(modules: Sequence[Unit], left: Leftovers) -> list[str]:
    names = [held.key for module in modules for held in module.held if held.role == "second bias"]
    return [
        f"{name}: Caffe's recurrent layers have one bias where torch adds two; zero and freeze this one"
        for name in names
        if name in left.parameters
    ]


def _listed(things: Sequence[_T], line: Callable[[_T], str] = str) -> list[str]:
    more = [f"... and {len(things) - _MOST} more"] if len(things) > _MOST else []
    return [*map(line, things[:_MOST]), *more]


# What differs between a unit of the net and one of the model, and between net and model as wholes.


def differences(unit: Unit, module: Unit) -> list[str]:
    """In words what keeps a unit of the net from being a module, Caffe's side first; empty if nothing does."""
    if unit.kind is not module.kind:
        return [f"{unit.kind} / {module.kind}"]
    found = []
    ours, theirs = unit.shape, tuple(size or 0 for size in module.shape or ())
    if ours is not None and fit(ours, theirs) is None:
        if unit.kind is UnitKind.MAP and len(ours) > 1 and len(theirs) > 1:
            named = [("outputs", ours[:1], theirs[:1]), ("inputs per group", ours[1:2], theirs[1:2])]
            named.append(("kernel", ours[2:] or (1, 1), theirs[2:] or (1, 1)))
            found += [f"{what} {spell(a)} / {spell(b)}" for what, a, b in named if a != b and None not in a]
        found = found or [f"sizes {spell(ours)} / {spell(theirs)}"]
    if unit.groups != module.groups:
        found.append(f"groups {unit.groups} / {module.groups}")
    for role in ("bias", "shift"):
        if unit.role(role) is not None and module.role(role) is None:
            found.append(f"the module has no {role}")
    return found


def explain(net: Wiring, model: Wiring) -> Iterator[str]:
    """Sentences on what differs between two wirings that are not equal: how many units of a kind, sharing, order."""
    counts = [Counter(str(unit.kind) for unit in wiring.units) for wiring in (net, model)]
    for kind in sorted(counts[0].keys() | counts[1].keys()):
        if counts[0][kind] != counts[1][kind]:
            yield f"{kind}: {counts[0][kind]} in the net, {counts[1][kind]} in the model"
    if match_whole(_untied(net), _untied(model), {}) is not None:
        yield f"the wirings are equal but for what is shared: {_shared(net)} in the net, {_shared(model)} in the model"
    elif match_whole(_unordered(net), _unordered(model), {}) is not None:
        yield "the wirings are equal but for the order in which branches are concatenated"


def _shared(wiring: Wiring) -> str:
    """The units that are used more than once, by the names of all their parts."""
    uses = Counter(node.unit for node in wiring.nodes)
    units = [" with ".join(map(repr, unit.parts)) for number, unit in enumerate(wiring.units) if uses[number] > 1]
    more = f" and {len(units) - 3} more" if len(units) > 3 else ""
    return ", ".join(units[:3]) + more if units else "nothing"


def _unordered(wiring: Wiring) -> Wiring:
    """The wiring with concatenations whose order counts for nothing."""
    nodes = (Node(Op.JOINT, node.inputs) if node.op is Op.CONCAT else node for node in wiring.nodes)
    return Wiring(wiring.units, tuple(nodes))


def _untied(wiring: Wiring) -> Wiring:
    """The wiring with a unit of its own for every use."""
    units: list[Unit] = []
    nodes: list[Node] = []
    for node in wiring.nodes:
        if node.unit is None:
            nodes.append(node)
        else:
            nodes.append(Node(node.op, node.inputs, len(units)))
            units.append(wiring.units[node.unit])
    return Wiring(tuple(units), tuple(nodes))


# What a person should know about a binding that holds: by which evidence, and what torch has otherwise.


def binding_notes(
    recipe: TrainingRecipe,
    findings: Findings,
    assignment: Assignment,
    seen: ModelWiring,
    modules: Sequence[Unit],
    frozen: Sequence[str],
) -> Iterator[Note]:
    """How layers were bound, what is interchangeable, which blobs have no tensor, which tensors no blob."""
    yield Note(None, Severity.INFO, _summary(recipe, assignment, seen))
    if seen.wiring is None:
        text = f"the model's wiring could not be seen, names alone decided ({seen.how})"
        yield Note(None, Severity.WARNING, text)
    for warning in findings.warnings:
        yield Note(None, Severity.WARNING, warning)
    for units, others in findings.ties:
        layers, places = (" and ".join(repr(one.name) for one in side) for side in (units, others))
        text = f"nothing tells which of the layers {layers} is which of the modules {places}; the optimizer is the same"
        decide = f"loading weights needs a decision in a names file: {toml_line(units[0].name, others[0].name)}"
        yield Note(recipe.blobs[int(units[0].held[0].key)].where, Severity.WARNING, f"{text}, {decide}")
    yield from _remarks(recipe, assignment)
    bound = {one.tensor.key for one in assignment.blobs.values() if one.tensor is not None}
    empty = [
        module.name
        for module in modules
        if module.kind is UnitKind.NORM
        and any(held.key in bound for held in module.held)
        and any(held.role == "mean" and held.key not in bound for held in module.held)
    ]
    if empty:
        yield Note(None, Severity.INFO, f"no blob holds the running statistics of {_some(empty)}")
    if frozen:
        yield Note(None, Severity.INFO, f"no blob stands for {_some(frozen)}, which require no gradient")


def _summary(recipe: TrainingRecipe, assignment: Assignment, seen: ModelWiring) -> str:
    layers: dict[str, dict[str, None]] = {}
    for number, one in sorted(assignment.blobs.items()):
        layers.setdefault(one.how, {})[recipe.blobs[number].layer] = None
    counts = ", ".join(f"{len(names)} by {how}" for how, names in layers.items() if how != How.SKIPPED)
    skipped = f", {len(layers[How.SKIPPED])} skipped" if How.SKIPPED in layers else ""
    wiring = "" if seen.wiring is None else f"; the model's wiring is from {seen.how}"
    return f"layers bound: {counts or 'none'}{skipped}{wiring}"


def _remarks(recipe: TrainingRecipe, assignment: Assignment) -> Iterator[Note]:
    grouped: dict[str, list[int]] = {}
    for number, one in sorted(assignment.blobs.items()):
        if one.remark and recipe.blobs[number].role != "factor":
            grouped.setdefault(one.remark, []).append(number)
    for remark, numbers in grouped.items():
        names = [recipe.blobs[number].name for number in numbers]
        where = recipe.blobs[numbers[0]].where
        severity = Severity.WARNING if "when loading weights" in remark else Severity.INFO
        yield Note(where, severity, f"{_some(names)}: {remark}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
