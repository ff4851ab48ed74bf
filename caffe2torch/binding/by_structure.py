"""Counterparts by structure: where the wirings of net and model agree, as wholes or in parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from caffe2torch.binding.graph import Unit, Wiring, without_units
from caffe2torch.binding.isomorphism import Matching, match_whole
from caffe2torch.binding.messages import explain
from caffe2torch.binding.naming import name_hints
from caffe2torch.binding.partial_match import alternatives, match_parts
from caffe2torch.binding.tensor_matching import Counterpart, Findings, How, match_tensors
from caffe2torch.recipe import TrainingRecipe

__all__ = ["by_wiring"]


def by_wiring(recipe: TrainingRecipe, nets: Sequence[Wiring], model: Wiring, said: Mapping[str, str]) -> Findings:
    """Counterparts by structure, with names where the structure leaves a choice or differs.

    ``nets`` is the net's wiring, and that without the layers to be skipped: the first that equals the model's as a
    whole decides, or equals it without kinds of units that only one side has, or without units that only the model
    has. If none does: what the user said, then names whose shapes fit, then what surrounds a unit.
    """
    for net in nets:
        findings = _whole(net, model, said)
        if findings is not None:
            return findings
    lonely = [without_units(*_lonely(one, other)) for one, other in ((nets[-1], model), (model, nets[-1]))]
    findings = _whole(lonely[0], lonely[1], said)
    if findings is not None:
        findings.agree = False
        return findings
    findings = _whole_but_extra(nets[-1], model, said)
    if findings is not None:
        return findings
    return _parts(recipe, nets[-1], model, said)


def _lonely(wiring: Wiring, other: Wiring) -> tuple[Wiring, set[int]]:
    """The units of a kind that the other side does not have at all: batch norms of a net that was made without."""
    kinds = {unit.kind for unit in other.units}
    return wiring, {number for number, unit in enumerate(wiring.units) if unit.kind not in kinds}


def _whole(net: Wiring, model: Wiring, said: Mapping[str, str]) -> Findings | None:
    known = _said_pairs(net, model, said)
    equal, alike = name_hints(net.units, model.units)
    findings = Findings(agree=True)
    matching = match_whole(net, model, known, (equal, alike))
    if matching is None and known:
        matching = match_whole(net, model, {}, (known, equal, alike))
        if matching is not None:
            matching = _overruled(matching, known)
            findings.agree = False
            findings.warnings.append("what names says contradicts the wiring of net and model; names was followed")
    if matching is None:
        return None
    rivals: dict[int, tuple[int, ...]] = {}
    for ones, others in matching.ties:
        findings.ties.append((tuple(net.units[one] for one in ones), tuple(model.units[other] for other in others)))
        rivals.update(dict.fromkeys(ones, others))
    for one, other in matching.pairs.items():
        how = _how(one, other, known, equal, alike)
        if how == How.PLACE and one in matching.by_name:
            how = How.LEFT
        if one in equal and equal[one] != other and one not in known:
            findings.warnings.append(
                f"layer {net.units[one].name!r} stands where module {model.units[other].name} stands, not where the "
                f"module of its own name does; bound by structure"
            )
        fitting = tuple(model.units[rival] for rival in rivals.get(one, ()) if rival != other)
        findings.found.append(_counterpart(net.units[one], model.units[other], how, fitting))
    return findings


def _whole_but_extra(net: Wiring, model: Wiring, said: Mapping[str, str]) -> Findings | None:
    """Counterparts by structure where the model has more units, and there is only one choice of what to leave out."""
    known = _said_pairs(net, model, said)
    parts = match_parts(net, model, known)
    left = set(range(len(model.units))) - set(parts.pairs.values())
    if len(parts.pairs) < len(net.units) or alternatives(net, model, left).keys() - known.keys():
        return None
    findings = _whole(net, without_units(model, left), said)
    if findings is not None:
        findings.agree = False
    return findings


def _parts(recipe: TrainingRecipe, net: Wiring, model: Wiring, said: Mapping[str, str]) -> Findings:
    """What names tell, and around it what the structure tells nearby."""
    findings = Findings()
    known = _said_pairs(net, model, said)
    how = dict.fromkeys(known, How.SAID)
    for hints, name in zip(name_hints(net.units, model.units), (How.EQUAL, How.ALIKE), strict=True):
        for one, other in hints.items():
            free = one not in known and other not in known.values()
            if free and not match_tensors(recipe, _blobs(net.units[one]), model.units[other])[1]:
                known[one] = other
                how[one] = name
    parts = match_parts(net, model, known)
    torn = {one: set(others) for one, others in parts.torn.items()}
    if len(parts.pairs) == len(net.units):
        for one, others in alternatives(net, model, set(range(len(model.units))) - set(parts.pairs.values())).items():
            if one not in how:
                torn.setdefault(one, {parts.pairs[one]}).update(others)
    pairs = {one: other for one, other in parts.pairs.items() if one not in torn}
    certain = _agree_elsewhere(net, model, pairs)
    if not certain and any(one not in how for one in pairs):
        what = "; ".join(explain(net, model)) or "even without what has no counterpart"
        findings.warnings.append(
            f"net and model are not wired alike ({what}); layers were bound by what surrounds them"
        )
    for one, other in pairs.items():
        evidence = how.get(one, How.PLACE if certain else How.NEARBY)
        findings.found.append(_counterpart(net.units[one], model.units[other], evidence))
    findings.torn = {
        net.units[one].name: tuple(model.units[other].name for other in sorted(others)) for one, others in torn.items()
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


def _said_pairs(net: Wiring, model: Wiring, said: Mapping[str, str]) -> dict[int, int]:
    """What the user said, as units; units whose layers were sent to different modules are left to ``by_names``."""
    place = {part: number for number, unit in enumerate(model.units) for part in unit.parts}
    pairs: dict[int, int] = {}
    for number, unit in enumerate(net.units):
        others = {place.get(said[part]) for part in unit.parts if part in said}
        if len(others) == 1 and (other := next(iter(others))) is not None:
            pairs[number] = other
    return pairs


def _overruled(matching: Matching, known: Mapping[int, int]) -> Matching:
    taken = set(known.values())
    rest = {one: other for one, other in matching.pairs.items() if one not in known and other not in taken}
    return replace(matching, pairs={**known, **rest})


def _how(one: int, other: int, known: Mapping[int, int], equal: Mapping[int, int], alike: Mapping[int, int]) -> str:
    if one in known:
        return How.SAID
    if equal.get(one) == other:
        return How.EQUAL
    return How.ALIKE if alike.get(one) == other else How.PLACE


def _counterpart(unit: Unit, module: Unit, how: str, rivals: tuple[Unit, ...] = ()) -> Counterpart:
    return Counterpart(unit.name, _blobs(unit), module, how, rivals, unit.groups)


def _blobs(unit: Unit) -> tuple[int, ...]:
    return tuple(int(held.key) for held in unit.held)
