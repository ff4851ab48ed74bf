"""Which unit of the model is the counterpart of which unit of the net, by which evidence, and tensor by tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from caffe2torch.binding.graph import TensorReference, Unit, Wiring, without_units
from caffe2torch.binding.isomorphism import explain, match_whole
from caffe2torch.binding.layout import Fit, blob_transposed, fit
from caffe2torch.binding.model_graph import ModelGraph
from caffe2torch.binding.names import name_hints
from caffe2torch.binding.net_graph import NetGraph, layers_with_blobs
from caffe2torch.binding.partial_match import alternatives, match_parts
from caffe2torch.binding.plan import Evidence, users
from caffe2torch.recipe import LearnableBlob, TrainingRecipe
from caffe2torch.wording import shape_text

__all__ = ["Assigned", "Assignment", "Counterpart", "Findings", "assign", "find_counterparts"]


@dataclass(frozen=True, slots=True)
class Counterpart:
    """Blobs of a layer (or of several that are one unit) and the module that holds them, by which evidence.

    ``groups`` are the layer's: sizes can agree where they do not.
    """

    layer: str
    blobs: tuple[int, ...]
    module: Unit
    evidence: Evidence
    rivals: tuple[Unit, ...] = ()
    groups: int = 1


@dataclass(slots=True)
class Findings:
    """Counterparts, and what was noticed on the way.

    Attributes:
        found: The counterparts.
        ties: Units of the net that nothing distinguishes, with the modules that they could be.
        conflicting: Units of the net for which two claims lead to different modules, with these.
        warnings: What a person should read.
        agree: Whether the wirings are equal as wholes, at least but for sizes.
    """

    found: list[Counterpart] = field(default_factory=list)
    ties: list[tuple[tuple[Unit, ...], tuple[Unit, ...]]] = field(default_factory=list)
    conflicting: dict[str, tuple[str, ...]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    agree: bool = False


def find_counterparts(net: NetGraph, model: ModelGraph, named: Mapping[str, str], skipped: Collection[int]) -> Findings:
    """Find counterparts by structure where the model's wiring was seen, by names for the rest.

    Args:
        net: The net.
        model: The model.
        named: Layer to module path, as the user states.
        skipped: Blobs (indices) that the model does without.
    """
    findings, rest = Findings(), list(model.units)
    if model.wiring is not None:
        findings = _by_wiring(net, model.wiring, named, skipped)
        used = {tensor.key for unit in model.wiring.units for tensor in unit.tensors}
        rest = [unit for unit in model.units if not any(tensor.key in used for tensor in unit.tensors)]
    covered = {blob for one in findings.found for blob in one.blobs}
    open_units = [unit for unit in net.units if not any(tensor.key in covered for tensor in unit.tensors)]
    if rest and open_units:
        findings.found += _by_names(net.recipe, open_units, rest, named)
    return findings


def _by_wiring(net: NetGraph, model: Wiring, named: Mapping[str, str], skipped: Collection[int]) -> Findings:
    """Counterparts by structure, with names where the structure leaves a choice or differs.

    The net as it is, or without the layers to be skipped, may equal the model as a whole; or without kinds of units
    that only one side has; or without units that only the model has. If none does: what the user states, then names
    whose shapes fit, then what surrounds a unit.
    """
    rest = net.without(skipped)
    nets = [net.wiring] if rest is net.wiring else [net.wiring, rest]
    for one in nets:
        findings = _whole(one, model, named)
        if findings is not None:
            return findings
    for one in nets:
        findings = _whole(_without_other_kinds(one, model), _without_other_kinds(model, one), named)
        if findings is not None:
            findings.agree = False
            return findings
    return _whole_but_extra(nets[-1], model, named) or _parts(net.recipe, nets[-1], model, named)


def _without_other_kinds(wiring: Wiring, other: Wiring) -> Wiring:
    """The wiring without units of a kind that the other has not at all: batch norms of a net made without."""
    kinds = {unit.kind for unit in other.units}
    return without_units(wiring, {number for number, unit in enumerate(wiring.units) if unit.kind not in kinds})


def _whole(net: Wiring, model: Wiring, named: Mapping[str, str]) -> Findings | None:
    known = _named_pairs(net, model, named)
    equal, alike = name_hints(net.units, model.units)
    findings = Findings(agree=True)
    matching = match_whole(net, model, known, (equal, alike))
    if matching is None and known:
        matching = match_whole(net, model, {}, (known, equal, alike))
        if matching is not None:
            taken = set(known.values())
            rest = {one: other for one, other in matching.pairs.items() if one not in known and other not in taken}
            matching = replace(matching, pairs={**known, **rest})
            findings.agree = False
            findings.warnings.append("names contradicts the wiring of net and model; names was followed")
    if matching is None:
        return None
    rivals: dict[int, tuple[int, ...]] = {}
    for ones, others in matching.ties:
        findings.ties.append((tuple(net.units[one] for one in ones), tuple(model.units[other] for other in others)))
        rivals.update(dict.fromkeys(ones, others))
    for one, other in matching.pairs.items():
        if one in known:
            evidence = Evidence.NAMED
        elif equal.get(one) == other:
            evidence = Evidence.EQUAL_NAMES
        elif alike.get(one) == other:
            evidence = Evidence.SPELLING
        else:
            evidence = Evidence.REMAINDER if one in matching.by_name else Evidence.STRUCTURE
        if one in equal and equal[one] != other and one not in known:
            findings.warnings.append(
                f"layer {net.units[one].name!r} stands where module {model.units[other].name} stands, not where the "
                f"module of its own name does; bound by structure"
            )
        fitting = tuple(model.units[rival] for rival in rivals.get(one, ()) if rival != other)
        findings.found.append(_counterpart(net.units[one], model.units[other], evidence, fitting))
    return findings


def _whole_but_extra(net: Wiring, model: Wiring, named: Mapping[str, str]) -> Findings | None:
    """Counterparts by structure where the model has more units, and there is only one choice of what to leave out."""
    known = _named_pairs(net, model, named)
    parts = match_parts(net, model, known)
    left = set(range(len(model.units))) - set(parts.pairs.values())
    if len(parts.pairs) < len(net.units) or alternatives(net, model, left).keys() - known.keys():
        return None
    findings = _whole(net, without_units(model, left), named)
    if findings is not None:
        findings.agree = False
    return findings


def _parts(recipe: TrainingRecipe, net: Wiring, model: Wiring, named: Mapping[str, str]) -> Findings:
    """Counterparts by names, and near these by structure."""
    findings = Findings()
    known = _named_pairs(net, model, named)
    evidence = dict.fromkeys(known, Evidence.NAMED)
    by_name = (Evidence.EQUAL_NAMES, Evidence.SPELLING)
    for hints, kind in zip(name_hints(net.units, model.units), by_name, strict=True):
        for one, other in hints.items():
            free = one not in known and other not in known.values()
            if free and not match_tensors(recipe, _blobs(net.units[one]), model.units[other])[1]:
                known[one] = other
                evidence[one] = kind
    parts = match_parts(net, model, known)
    conflicting = {one: set(others) for one, others in parts.conflicting.items()}
    if len(parts.pairs) == len(net.units):
        for one, others in alternatives(net, model, set(range(len(model.units))) - set(parts.pairs.values())).items():
            if one not in evidence:
                conflicting.setdefault(one, {parts.pairs[one]}).update(others)
    pairs = {one: other for one, other in parts.pairs.items() if one not in conflicting}
    certain = _agree_elsewhere(net, model, pairs)
    if not certain and any(one not in evidence for one in pairs):
        what = "; ".join(explain(net, model)) or "even without what has no counterpart"
        findings.warnings.append(
            f"net and model are not wired alike ({what}); layers were bound by what surrounds them"
        )
    for one, other in pairs.items():
        by = evidence.get(one, Evidence.STRUCTURE if certain else Evidence.NEARBY)
        findings.found.append(_counterpart(net.units[one], model.units[other], by))
    findings.conflicting = {
        net.units[one].name: tuple(model.units[other].name for other in sorted(others))
        for one, others in conflicting.items()
    }
    return findings


def _agree_elsewhere(net: Wiring, model: Wiring, pairs: Mapping[int, int]) -> bool:
    """Whether the wirings are equal, with these pairs, once units without a counterpart are left out."""
    kept = sorted(pairs)
    places = {other: place for place, other in enumerate(sorted(pairs.values()))}
    rest = without_units(net, set(range(len(net.units))) - set(kept))
    others = without_units(model, set(range(len(model.units))) - places.keys())
    expected = {place: places[pairs[one]] for place, one in enumerate(kept)}
    return match_whole(rest, others, expected) is not None


def _named_pairs(net: Wiring, model: Wiring, named: Mapping[str, str]) -> dict[int, int]:
    """What the user states, as units; units whose layers were sent to different modules are left to names alone."""
    place = {part: number for number, unit in enumerate(model.units) for part in unit.parts}
    pairs: dict[int, int] = {}
    for number, unit in enumerate(net.units):
        others = {place.get(named[part]) for part in unit.parts if part in named}
        if len(others) == 1 and (other := next(iter(others))) is not None:
            pairs[number] = other
    return pairs


def _counterpart(unit: Unit, module: Unit, evidence: Evidence, rivals: tuple[Unit, ...] = ()) -> Counterpart:
    return Counterpart(unit.name, _blobs(unit), module, evidence, rivals, unit.groups)


def _blobs(unit: Unit) -> tuple[int, ...]:
    return tuple(int(tensor.key) for tensor in unit.tensors)


def _by_names(
    recipe: TrainingRecipe, units: Sequence[Unit], modules: Sequence[Unit], named: Mapping[str, str]
) -> list[Counterpart]:
    """Counterparts by names alone, layer by layer: a BatchNorm and its Scale may be two modules or one.

    For models whose wiring cannot be seen, and for modules that no forward pass reaches. Shapes are left to ``assign``,
    except where names agree only but for spelling.
    """
    wanted = {part for unit in units for part in unit.parts}
    layers = [(layer, blobs) for layer, _, blobs in layers_with_blobs(recipe) if layer in wanted]
    by_path = {part: module for module in modules for part in module.parts}
    singles = [Unit(layer, (layer,), modules[0].kind, None, ()) for layer, _ in layers]
    equal, alike = name_hints(singles, modules)
    of_layer: dict[str, tuple[Unit, Evidence]] = {}
    for number, (layer, blobs) in enumerate(layers):
        if named.get(layer) in by_path:
            of_layer[layer] = by_path[named[layer]], Evidence.NAMED
        elif number in equal:
            of_layer[layer] = modules[equal[number]], Evidence.EQUAL_NAMES
        elif number in alike and not match_tensors(recipe, blobs, modules[alike[number]])[1]:
            of_layer[layer] = modules[alike[number]], Evidence.SPELLING
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


# Within one pair of counterparts: which blob is which tensor.

_ALIKE = ({"weight", "scale", "slope"}, {"bias", "shift"})
"""Roles that differ in name only where the other side calls them otherwise."""


@dataclass(frozen=True, slots=True)
class Match:
    """A blob (index into ``TrainingRecipe.blobs``) and its tensor; ``None`` where torch has no counterpart."""

    blob: int
    tensor: TensorReference | None
    remark: str = ""
    evidence: Evidence | None = None  # other than its counterpart's


@dataclass(frozen=True, slots=True)
class Misfit:
    """A blob that cannot be the tensor that it should be, or that has none, and why."""

    blob: int
    tensor: TensorReference | None
    reason: str


def match_tensors(
    recipe: TrainingRecipe, blobs: Sequence[int], module: Unit, cancelled: Mapping[int, bool] | None = None
) -> tuple[list[Match], list[Misfit]]:
    """Pair the blobs of a layer (or of a BatchNorm with its Scale) with a module's tensors by role, and check shapes.

    Blobs that may go without a tensor: BatchNorm's factor, which torch divides its statistics by at once; statistics,
    where the module keeps none; and a bias that a batch normalization subtracts again (``cancelled``).
    """
    free = list(module.tensors)
    matches: list[Match] = []
    misfits: list[Misfit] = []
    waiting = Counter(recipe.blobs[number].role for number in blobs)
    for number in blobs:
        blob = recipe.blobs[number]
        waiting[blob.role] -= 1
        tensor = _tensor_for(blob, free, waiting[blob.role])
        if tensor is None:
            without = _may_lack(number, blob, (cancelled or {}).get(number))
            if without is None:
                misfits.append(Misfit(number, None, f"the module has no {blob.role}{module.remark}"))
            else:
                matches.append(without)
            continue
        free.remove(tensor)
        found = fit(blob.shape, tensor.sizes, transpose=blob_transposed(recipe, blob))
        if found is None:
            shapes = f"{shape_text(blob.shape)} in Caffe, {shape_text(tensor.shape)} in {tensor.key}"
            misfits.append(Misfit(number, tensor, f"its {blob.role} is {shapes}"))
        elif not tensor.trained and blob.role not in ("mean", "variance") and blob.lr_mult != 0:
            reason = (
                f"Caffe trains its {blob.role} (lr_mult {blob.lr_mult:g}), the model keeps {tensor.key} in a buffer"
            )
            misfits.append(Misfit(number, tensor, reason))
        else:
            matches.append(Match(number, tensor, _remark(blob, tensor, found)))
    return matches, misfits


def _tensor_for(blob: LearnableBlob, free: list[TensorReference], more: int) -> TensorReference | None:
    """The tensor of the blob's role; of several the first, if ``more`` blobs of that role are left for the others.

    Blobs of a layer that no table knows have no roles: they are a module's parameters in order, if there are as many.
    """
    if blob.role == "unknown":
        trained = [tensor for tensor in free if tensor.trained]
        return trained[0] if len(trained) == 1 + more else None
    for wanted in ({blob.role}, *(alike for alike in _ALIKE if blob.role in alike)):
        found = [tensor for tensor in free if tensor.role in wanted]
        if len(found) == 1 + more or len(found) == 1:
            return found[0]
    return None


def _may_lack(number: int, blob: LearnableBlob, cancelled: bool | None) -> Match | None:
    if blob.role == "factor":
        return Match(number, None, "torch divides its running statistics already")
    if blob.role in ("mean", "variance"):
        return Match(number, None, "the module keeps no running statistics")
    if blob.role == "bias" and cancelled is not None:
        remark = (
            "the batch norm after it subtracts it again, and the model has none"
            if cancelled
            else "the model has none: subtract it from the running mean of the batch norm after it when loading weights"
        )
        return Match(number, None, remark, Evidence.CANCELLED)
    return None


def _remark(blob: LearnableBlob, tensor: TensorReference, found: Fit) -> str:
    if blob.role == "unknown" and tensor.role != "unknown":
        return "taken in order, since Caffe's roles are unknown"
    if found is Fit.TRANSPOSED:
        return "transposed"
    return "reshaped" if found is Fit.RESHAPED and blob.role == "weight" else ""


# From counterparts to tensors: every blob gets one, no tensor two, and what cannot be is a problem with a reason.


@dataclass(frozen=True, slots=True)
class Assigned:
    """What became of one blob: its tensor (``None``: torch has none, ``remark`` says why), by which evidence."""

    tensor: TensorReference | None
    evidence: Evidence
    remark: str = ""
    rivals: tuple[str, ...] = ()


@dataclass(slots=True)
class Assignment:
    """Blob (index) to what became of it; blobs that cannot be where their layer belongs; sharing that differs."""

    blobs: dict[int, Assigned] = field(default_factory=dict)
    misfits: list[tuple[Misfit, Counterpart]] = field(default_factory=list)
    clashes: list[str] = field(default_factory=list)

    @property
    def bound(self) -> set[str]:
        """The names of the tensors that stand for a blob."""
        return {str(one.tensor.key) for one in self.blobs.values() if one.tensor is not None}


def assign(
    net: NetGraph, counterparts: Sequence[Counterpart], named: Mapping[int, TensorReference], skipped: Collection[int]
) -> Assignment:
    """Give each blob its tensor.

    Args:
        net: The net.
        counterparts: What was found.
        named: Blob (index) to the tensor that the user states.
        skipped: Blobs (indices) to do without.
    """
    recipe = net.recipe
    result = Assignment({number: Assigned(None, Evidence.SKIPPED) for number in skipped})
    result.blobs.update({number: Assigned(tensor, Evidence.NAMED) for number, tensor in named.items()})
    taken = {tensor.key for tensor in named.values()}
    for one in counterparts:
        free = replace(one.module, tensors=tuple(tensor for tensor in one.module.tensors if tensor.key not in taken))
        open_blobs = [number for number in one.blobs if number not in named and number not in skipped]
        matches, misfits = match_tensors(recipe, open_blobs, free, net.cancelled)
        if one.groups != one.module.groups and matches and not misfits:
            first, reason = matches.pop(0), f"it has {one.groups} groups in Caffe, {one.module.groups} in the model"
            misfits.append(Misfit(first.blob, first.tensor, reason))
        result.misfits += [(misfit, one) for misfit in misfits]
        for match in matches:
            _take(recipe, result, match, one)
    owner: dict[object, int] = {}
    for number, assigned in sorted(result.blobs.items()):
        if assigned.tensor is not None and (first_one := owner.setdefault(assigned.tensor.key, number)) != number:
            names = f"{recipe.blobs[first_one].name!r} and {recipe.blobs[number].name!r}"
            result.clashes.append(
                f"Caffe has two blobs, {names}, where the model has one parameter, {assigned.tensor.key}: "
                "share them in Caffe by param names, or give the model a parameter for each"
            )
    return result


def _take(recipe: TrainingRecipe, result: Assignment, match: Match, one: Counterpart) -> None:
    before = result.blobs.get(match.blob)
    if before is not None and before.tensor is not None and match.tensor is not None:
        if before.tensor.key != match.tensor.key:
            blob = recipe.blobs[match.blob]
            result.clashes.append(
                f"Caffe shares one {blob.role} between layers {', '.join(dict.fromkeys(users(blob)))}; the model has "
                f"two parameters for it, {before.tensor.key} and {match.tensor.key}: tie them, or remove the sharing"
            )
        return
    rivals = tuple(
        str(tensor.key)
        for rival in one.rivals
        for tensor in rival.tensors
        if match.tensor and tensor.role == match.tensor.role
    )
    result.blobs[match.blob] = Assigned(match.tensor, match.evidence or one.evidence, match.remark, rivals)
