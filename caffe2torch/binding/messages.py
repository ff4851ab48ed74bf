"""What to show a person whose net and model do not fit: what differs, what comes closest, what to write."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from caffe2torch.binding.advice import advice_for, misfit_advice, second_biases
from caffe2torch.binding.attempt import Attempt
from caffe2torch.binding.closest import closest, differences
from caffe2torch.binding.draft import draft
from caffe2torch.binding.graph import Unit, UnitKind
from caffe2torch.binding.isomorphism import explain
from caffe2torch.binding.layout import fit
from caffe2torch.binding.model_graph import ModelGraph
from caffe2torch.binding.names import renumbered, toml_line
from caffe2torch.binding.net_graph import NetGraph
from caffe2torch.binding.plan import Evidence
from caffe2torch.binding.tensor_matching import Assignment, Findings
from caffe2torch.binding.typed import Advice, written
from caffe2torch.errors import BindingError
from caffe2torch.recipe import NetRecipe, Note, Severity
from caffe2torch.wording import listed, shape_text

__all__ = ["IncompleteBindingError", "binding_error", "binding_notes", "tie_error"]

_MOST = 6  # lines of one kind; who needs more has seen what is wrong


class IncompleteBindingError(BindingError):
    """A binding that leaves something out; ``draft`` is a names file to complete, with what is certain filled in."""

    draft: str = ""


_NO_LAYER = " of the model belongs to no layer"
_SECOND_BIAS = ": Caffe's recurrent layers have one bias where torch adds two; zero and freeze this one"


def binding_error(attempt: Attempt) -> BindingError:
    """The error for a binding that leaves something out: all that is wrong in one message, the first place first."""
    net, model, findings, assignment = attempt.net, attempt.model, attempt.findings, attempt.assignment
    recipe, left = net.recipe, attempt.parameters
    bad = dict.fromkeys(misfit.blob for misfit, _ in assignment.misfits)
    lines = [
        *_missing_ends(attempt),
        *_explanation(net, model, findings),
        *listed(assignment.clashes, _MOST, lambda clash: clash.text),
        *listed(_misfit_lines(recipe, assignment), _MOST),
        *_unbound_lines(attempt),
        *listed(attempt.stray, _MOST, lambda name: f"{name} ({shape_text(left[name])}){_NO_LAYER}"),
        *listed(attempt.idle, _MOST, lambda unit: _idle_line(unit, model)),
        *listed(second_biases(attempt), _MOST, lambda name: f"{name}{_SECOND_BIAS}"),
    ]
    without = {name for clash in assignment.clashes for name in clash.layers} | set(attempt.ends)
    apart = (number for number, blob in enumerate(recipe.blobs) if blob.layer in without)
    first = next(iter((*bad, *sorted(attempt.missing), *apart)), None)
    other = _other_outputs(recipe, assignment)
    only = other if len(other) == len({recipe.blobs[number].layer for number in bad}) else {}
    nothing_else = not (attempt.unbound or attempt.idle or attempt.stray or assignment.clashes or attempt.ends)
    outputs = next(iter(only.values()), "") if nothing_else else ""
    units, clashes = len(attempt.unbound) + len(attempt.ends), len(assignment.clashes)
    advice = advice_for(attempt)
    error = IncompleteBindingError(
        _headline(recipe, model.name, outputs, len(bad), units, len(left), clashes),
        where=None if first is None else recipe.blobs[first].where,
        found="\n    ".join(lines),
        hint=written(attempt, advice),
    )
    error.draft = draft(attempt, advice)
    return error


def _missing_ends(attempt: Attempt) -> Iterator[str]:
    if attempt.ends:
        layers, one = ", ".join(listed(attempt.ends, _MOST, repr)), len(attempt.ends) == 1
        which = f"layer {layers} has no counterpart: it leads" if one else f"layers {layers} have none: they lead"
        yield f"{which} only to ends of the net that the model does not have"


def _idle_line(unit: Unit, model: ModelGraph) -> str:
    used = {tensor.key for one in (model.wiring.units if model.wiring else ()) for tensor in one.tensors}
    seen = model.wiring is None or bool(model.ended) or any(tensor.key in used for tensor in unit.tensors)
    text = f"module {unit.name or 'itself'} ({unit.kind}) belongs to no layer"
    if unit.kind is UnitKind.OTHER:
        own = [f"{tensor.key} ({shape_text(tensor.shape or (1,))})" for tensor in unit.tensors if tensor.trained]
        text = f"{', '.join(listed(own, 3))} of the model belong{'s' if len(own) == 1 else ''} to no layer"
    return text if seen else f"{text}, and forward does not use it"


def _other_outputs(recipe: NetRecipe, assignment: Assignment) -> dict[str, str]:
    """Layers of which only the number of outputs differs, with that: a model for other classes."""
    sizes: dict[str, set[tuple[int | None, int]]] = {}
    for misfit, _ in assignment.misfits:
        blob, tensor = recipe.blobs[misfit.blob], misfit.tensor
        ours, theirs = blob.shape or (), () if tensor is None else tensor.sizes
        alike = ours and theirs and ours[0] != theirs[0] and fit((theirs[0], *ours[1:]), theirs) is not None
        sizes.setdefault(blob.layer, set()).add((ours[0], theirs[0]) if alike else (None, 0))
    return {
        layer: f"layer {layer!r} has {ours} outputs in Caffe, {theirs} in the model"
        for layer, found in sizes.items()
        for ours, theirs in found
        if len(found) == 1 and ours is not None
    }


def _explanation(net: NetGraph, model: ModelGraph, findings: Findings) -> Iterable[str]:
    if model.wiring is None:
        return [f"names alone decide, since the model's wiring could not be seen: {model.traced}"]
    if model.ended:
        return [f"the model's forward pass ended early: {model.ended}"]
    if findings.agree:
        return []
    return [
        *(line for line in explain(net.wiring, model.wiring) if not any(line in one for one in findings.warnings)),
        *findings.warnings,
    ]


def tie_error(attempt: Attempt) -> BindingError | None:
    """The error for units that nothing distinguishes and that learn otherwise; ``None`` if there are none."""
    recipe, findings = attempt.recipe, attempt.findings
    differing = [number for number, (units, _) in enumerate(findings.ties) if _differ(recipe, units)]
    if not differing:
        return None
    units, modules = findings.ties[differing[0]]
    layers, places = _all_of(units, repr), _all_of(modules)
    leads = [findings.ties[lead] for lead in dict.fromkeys(findings.leads[number] for number in differing)]
    decisions = ["  or  ".join(toml_line(units[0].name, one.name) for one in modules[:4]) for units, modules in leads]
    more = f"; {len(leads) - 1} more such choices" if len(leads) > 1 else ""
    decide = Advice(f"decide in a names file: {', '.join(listed(decisions, _MOST))}")
    error = IncompleteBindingError(
        f"layers {layers} could be modules {places} in any order, and their (lr_mult, decay_mult) differ{more}",
        where=recipe.blobs[int(units[0].tensors[0].key)].where,
        found="; ".join(f"{unit.name!r}: {_multipliers(recipe, unit)}" for unit in units),
        hint=written(attempt, [decide, *misfit_advice(attempt)]),
    )
    error.draft = draft(attempt, [decide])
    return error


def _all_of(units: Sequence[Unit], how: Callable[[str], str] = str) -> str:
    return " and ".join(listed([how(unit.name) for unit in units], 4))


def _differ(recipe: NetRecipe, units: Sequence[Unit]) -> bool:
    return len({_multipliers(recipe, unit) for unit in units}) > 1


def _multipliers(recipe: NetRecipe, unit: Unit) -> str:
    blobs = [recipe.blobs[int(tensor.key)] for tensor in unit.tensors]
    return ", ".join(f"{blob.role} ({blob.lr_mult:g}, {blob.decay_mult:g})" for blob in blobs)


def _headline(recipe: NetRecipe, model: str, outputs: str, misfits: int, units: int, left: int, clashes: int) -> str:
    counted = [
        (misfits, "blob does not fit the tensor in its place", "blobs do not fit the tensors in their place"),
        (units, "layer has no certain counterpart", "layers have no certain counterpart"),
        (left, "parameter belongs to no layer", "parameters belong to no layer"),
        (clashes, "thing is shared on one side only", "things are shared on one side only"),
    ]
    parts = [f"{count} {one if count == 1 else many}" for count, one, many in counted if count]
    net = f"net {recipe.net_name!r}" if recipe.net_name else "the net"
    return f"{net} does not bind to {model}: {outputs or ', '.join(parts)}"


def _misfit_lines(recipe: NetRecipe, assignment: Assignment) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for misfit, one in assignment.misfits:
        layer, place = recipe.blobs[misfit.blob].layer, one.module.name or "the model itself"
        reasons.setdefault(f"layer {layer!r} at {place} ({one.evidence})", []).append(misfit.reason)
    layers: dict[str, list[str]] = {}
    for place, texts in reasons.items():
        layers.setdefault("; ".join(texts), []).append(place)
    return [
        f"{places[0]}: {reason}" + (f", and {len(places) - 1} layers more" if len(places) > 1 else "")
        for reason, places in sorted(layers.items(), key=lambda item: -len(item[1]))
    ]


def _unbound_lines(attempt: Attempt) -> list[str]:
    moved = renumbered(
        [part for unit in attempt.unbound for part in unit.parts],
        [part for unit in attempt.free for part in unit.parts],
    )
    return listed(attempt.unbound, _MOST, lambda unit: _unbound_line(unit, attempt, moved))


def _unbound_line(unit: Unit, attempt: Attempt, moved: Mapping[str, str]) -> str:
    layers, conflicting = "layer " + " with ".join(repr(part) for part in unit.parts), attempt.findings.conflicting
    if unit.name in conflicting:
        places = conflicting[unit.name]
        if len(places) > 3:
            return f"{layers} could be one of {len(places)} modules, {places[0]} to {places[-1]}"
        if len(places) > 1:
            return f"{layers} could be {' or '.join(places)}"
        rivals = [name for name, others in conflicting.items() if others == places and name != unit.name]
        return f"{layers} could be {places[0]}" + (f", as could {' or '.join(map(repr, rivals))}" if rivals else "")
    if unit.name in moved:
        return f"{layers} could be {moved[unit.name]}, if the modules are numbered from another start"
    near = closest(unit, attempt.free)
    if near is None:
        return f"{layers} has no counterpart"
    what = "; ".join(differences(unit, near)) or "the same sizes, in other surroundings"
    return f"{layers} has no counterpart; closest is {near.name}: {what}"


# What a person should know about a binding that holds: by which evidence, and what torch has otherwise.


def binding_notes(attempt: Attempt) -> Iterator[Note]:
    """How layers were bound, what is interchangeable, which blobs have no tensor, which tensors no blob."""
    net, model, findings, assignment = attempt.net, attempt.model, attempt.findings, attempt.assignment
    yield Note(None, Severity.INFO, _summary(net.recipe, assignment, model))
    if model.wiring is None:
        text = f"the model's wiring could not be seen, names alone decided ({model.traced})"
        yield Note(None, Severity.WARNING, text)
    if model.ended:
        text = f"the model's forward pass ended early ({model.ended}); what it had not reached was bound by names"
        yield Note(None, Severity.WARNING, text)
    for warning in findings.warnings:
        yield Note(None, Severity.WARNING, warning)
    for number, (units, modules) in enumerate(findings.ties):
        following = findings.leads.count(number) - 1
        if following >= 0:
            text = f"layers {_all_of(units, repr)} could be modules {_all_of(modules)} in any order"
            text += f", and so could {following} more that follow from them" if following else ""
            decide = f"loading weights needs a decision in a names file: {toml_line(units[0].name, modules[0].name)}"
            where = net.recipe.blobs[int(units[0].tensors[0].key)].where
            yield Note(where, Severity.WARNING, f"{text}; the optimizer is the same, {decide}")
    yield from _remarks(net, assignment)
    bound = assignment.bound
    empty = [
        module.name
        for module in model.units
        if module.kind is UnitKind.NORM
        and any(tensor.key in bound for tensor in module.tensors)
        and any(tensor.role == "mean" and tensor.key not in bound for tensor in module.tensors)
    ]
    if empty:
        yield Note(None, Severity.INFO, f"no blob holds the running statistics of {_some(empty)}")
    frozen = [name for name, (_, trains) in attempt.left.items() if not trains]
    if frozen:
        yield Note(None, Severity.INFO, f"no blob stands for {_some(frozen)}, which require no gradient")


def _summary(recipe: NetRecipe, assignment: Assignment, model: ModelGraph) -> str:
    layers: dict[Evidence, dict[str, None]] = {}
    for number, one in sorted(assignment.blobs.items()):
        if one.evidence not in (Evidence.CANCELLED, Evidence.NOT_NEEDED):
            layers.setdefault(one.evidence, {})[recipe.blobs[number].layer] = None
    skipped = layers.pop(Evidence.SKIPPED, {})
    counts = ", ".join(f"{len(names)} by {evidence}" for evidence, names in layers.items())
    wiring = "" if model.wiring is None else f"; the model's wiring is from {model.traced}"
    return f"layers bound: {counts or 'none'}{f', {len(skipped)} skipped' if skipped else ''}{wiring}"


def _remarks(net: NetGraph, assignment: Assignment) -> Iterator[Note]:
    grouped: dict[str, list[int]] = {}
    for number, one in sorted(assignment.blobs.items()):
        if one.remark and net.recipe.blobs[number].role != "factor":
            grouped.setdefault(one.remark, []).append(number)
    for remark, numbers in grouped.items():
        blobs = [net.recipe.blobs[number] for number in numbers]
        matters = assignment.blobs[numbers[0]].evidence is Evidence.CANCELLED and not net.cancelled[numbers[0]]
        severity = Severity.WARNING if matters else Severity.INFO
        yield Note(blobs[0].where, severity, f"{_some([blob.name for blob in blobs])}: {remark}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(listed(names, 6))
