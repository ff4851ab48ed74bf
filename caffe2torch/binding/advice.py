"""What to do where net and model do not bind."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from caffe2torch.binding.attempt import Attempt
from caffe2torch.binding.closest import closest, differences, likeness, of_kind
from caffe2torch.binding.graph import Unit, UnitKind
from caffe2torch.binding.habits import HABITS, beside_frozen
from caffe2torch.binding.names import toml_line
from caffe2torch.binding.plan import Evidence
from caffe2torch.binding.tensor_matching import Misfit
from caffe2torch.binding.typed import Advice, decision
from caffe2torch.recipe import LearnableBlob, NetRecipe
from caffe2torch.wording import listed

__all__ = ["advice_for", "kept_fixed", "misfit_advice", "second_biases"]

_MOST = 6  # things of a kind that are named one by one


def advice_for(attempt: Attempt) -> list[Advice]:
    """All there is to do, so that following it takes one run."""
    recipe, findings = attempt.recipe, attempt.findings
    special = [one for habit in HABITS for one in habit(attempt)]
    settled = {name for one in special for name in (*one.names, *one.skip, *one.about)}
    found = [*_skipped_that_fit(attempt), *_tied(attempt), *_missing_ends(attempt), *special]
    found += misfit_advice(attempt, settled)
    units = [unit for unit in attempt.unbound if not _covered(recipe, unit, settled)]
    unmatched = [
        unit
        for unit in units
        if unit.name in findings.elsewhere
        or (unit.name not in findings.conflicting and not of_kind(unit, attempt.free))
    ]
    others = [unit for unit in units if unit not in unmatched]
    if others:
        found += _by_hand(attempt, others, alone=not unmatched)
    if unmatched:
        parts = [part for unit in unmatched for part in unit.parts]
        found.append(Advice("leave out layers that the model has no module for", skip=parts))
    found += beside_frozen(attempt, {layer: place for one in found for layer, place in one.names.items()})
    found = [*(replace(one, unclaimed={}) for one in found), *_without_a_layer(attempt, found)]
    if attempt.model.wiring is None:
        found.append(Advice("or wrap the model so that forward takes tensors alone and can be followed"))
    return found or [Advice("bind other modules in a names file, or change the model")]


def _by_hand(attempt: Attempt, units: Sequence[Unit], *, alone: bool) -> Iterator[Advice]:
    """Layers that only a names file can bind: those that alone fit one module, and the first of all others."""
    fitting = {unit.name: _fitting(attempt, unit) for unit in units}
    wanted = Counter(itertools.chain.from_iterable(fitting.values()))
    single = {name: places[0] for name, places in fitting.items() if len(places) == 1 and wanted[places[0]] == 1}
    if single:
        yield Advice("bind layers in a names file", names=single, otherwise=[*single] if alone else ())
    undecided = [name for name in fitting if name not in single and fitting[name]]
    if undecided:
        name, places = undecided[0], fitting[undecided[0]]
        if name not in attempt.findings.conflicting:
            unit = next(unit for unit in units if unit.name == name)
            modules = [module for module in attempt.free if module.name in set(places)]
            places = [
                one.name for one in sorted(modules, key=lambda one: (_is_frozen(attempt, one), -likeness(unit, one)))
            ]
        rivals = [one for one in undecided if fitting[one] == places] if len(places) == 1 else [name]
        ways = [toml_line(layer, place) for layer in rivals for place in places]
        rest = ", and leave out the other" if len(rivals) > 1 else ""
        yield Advice(decision(ways, len(undecided) - len(rivals) + 1, rest), placed=places)
    elif not single:
        near = closest(units[0], attempt.free)
        place = near.name if near is not None else "MODULE"
        otherwise = (units[0].name,) if alone else ()
        yield Advice("bind layers in a names file", names={units[0].name: place}, otherwise=otherwise)


def _is_frozen(attempt: Attempt, module: Unit) -> bool:
    """Whether nothing of a module requires a gradient, as of a teacher."""
    return not any(attempt.left.get(str(tensor.key), ((), False))[1] for tensor in module.tensors)


def _fitting(attempt: Attempt, unit: Unit) -> Sequence[str]:
    """The modules that a layer could be: those that its surroundings leave, else all that it fits."""
    conflicting = attempt.findings.conflicting.get(unit.name)
    return conflicting or [module.name for module in attempt.free if not differences(unit, module)]


def misfit_advice(attempt: Attempt, settled: Iterable[str] = ()) -> Iterator[Advice]:
    """What to say about blobs that do not fit, but for those that are settled."""
    recipe, done = attempt.recipe, set(settled)
    reshaped: dict[str, None] = {}
    lacking, fixed = [], []
    for misfit, _ in attempt.assignment.misfits:
        blob = recipe.blobs[misfit.blob]
        if {blob.name, blob.layer} & done:
            continue
        if misfit.tensor is None:
            lacking.append(misfit.blob)
        elif kept_fixed(blob, misfit):
            fixed.append(misfit.blob)
        else:
            reshaped[blob.layer] = None
    if reshaped:
        yield Advice("keep a layer's own multipliers though its shape differs", reshaped=[*reshaped])
    if lacking:
        what = "a blob that the model has not" if len(lacking) == 1 else "blobs that the model has not"
        yield Advice(f"do without {what}", skip=_layers_or_blobs(recipe, lacking))
    if fixed:
        yield Advice("do without what the model keeps in buffers, fixed", skip=_layers_or_blobs(recipe, fixed))


def kept_fixed(blob: LearnableBlob, misfit: Misfit) -> bool:
    """Whether a blob that Caffe trains stands for a buffer, which no optimizer sees whatever its shape."""
    fixed = misfit.tensor is not None and not misfit.tensor.trained
    return fixed and blob.lr_mult != 0 and blob.role not in ("mean", "variance")


def _layers_or_blobs(recipe: NetRecipe, numbers: Sequence[int]) -> list[str]:
    """The layers all of whose own blobs are among these (indices), and the other blobs one by one."""
    rest = {blob.layer for number, blob in enumerate(recipe.blobs) if number not in set(numbers)}
    blobs = [recipe.blobs[number] for number in numbers]
    return list(dict.fromkeys(blob.name if blob.layer in rest else blob.layer for blob in blobs))


def _skipped_that_fit(attempt: Attempt) -> Iterator[Advice]:
    """Modules that could be a layer that is skipped."""
    skipped = {number for number, one in attempt.assignment.blobs.items() if one.evidence is Evidence.SKIPPED}
    for unit in attempt.net.units:
        if all(tensor.key in skipped for tensor in unit.tensors) and unit.name not in attempt.ends:
            near = next((module for module in attempt.idle if not differences(unit, module)), None)
            if near is not None:
                yield Advice(f"do not skip {unit.name!r}, which module {near.name} could be")


def _tied(attempt: Attempt) -> Iterator[Advice]:
    clashes = attempt.assignment.clashes
    pairs = [pair for clash in clashes for pair in clash.ties]
    if pairs:
        lines = listed([f"{_expression(other)} = {_expression(one)}" for one, other in pairs], _MOST)
        yield Advice(f"tie them: {', '.join(lines)} (or call one module in both places)")
    for text in dict.fromkeys(clash.advice for clash in clashes if clash.advice):
        yield Advice(text)


def _expression(name: str) -> str:
    """A parameter's name as Python reads it from the model."""
    return "model" + "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in name.split("."))


def _missing_ends(attempt: Attempt) -> Iterator[Advice]:
    if attempt.ends:
        text = "leave out layers that lead only to ends that the model does not have"
        yield Advice(text, skip=attempt.ends, settles=True)


def _without_a_layer(attempt: Attempt, advice: Sequence[Advice]) -> Iterator[Advice]:
    """All parameters that no blob will stand for, once the advice is followed, in one option."""
    places = {place for one in advice for place in (*one.placed, *(one.names.values() if not one.otherwise else ()))}
    places |= {str(misfit.tensor.key) for misfit, _ in attempt.assignment.misfits if misfit.tensor is not None}
    given = {name: pair for one in advice for name, pair in one.unclaimed.items()}
    seconds = second_biases(attempt)
    for name in attempt.parameters:
        if name not in places and name.rpartition(".")[0] not in places:
            given.setdefault(name, _FROZEN if name in seconds else None)
    if given:
        yield Advice("say how parameters without a layer learn", unclaimed=given)


_FROZEN = (0.0, 0.0)


def second_biases(attempt: Attempt) -> list[str]:
    """What torch's recurrent layers add to the one bias that Caffe's have, as far as it is left over."""
    return [
        str(tensor.key)
        for unit in attempt.model.units
        if unit.kind is UnitKind.RECURRENT
        for tensor in unit.tensors
        if tensor.key in attempt.parameters and re.search(r"(^|\.)bias_hh(_l\d+(_reverse)?)?$", str(tensor.key))
    ]


def _covered(recipe: NetRecipe, unit: Unit, settled: set[str]) -> bool:
    """Whether advice is given for every blob of a unit, or for the whole of it."""
    blobs = [recipe.blobs[int(tensor.key)] for tensor in unit.tensors]
    return not settled.isdisjoint(unit.parts) or all(blob.name in settled for blob in blobs)
