"""What to do where net and model do not bind, in words and as it is typed."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from caffe2torch.binding.attempt import Attempt
from caffe2torch.binding.closest import closest, differences
from caffe2torch.binding.graph import TensorReference, Unit, UnitKind
from caffe2torch.binding.layout import DIRECTIONS, stored
from caffe2torch.binding.names import renumbered, toml_line
from caffe2torch.binding.patterns import pattern, quoted
from caffe2torch.binding.plan import Evidence
from caffe2torch.binding.tensor_matching import Misfit
from caffe2torch.recipe import LearnableBlob, NetRecipe
from caffe2torch.wording import listed

__all__ = ["Advice", "advice_for", "kept_fixed", "misfit_advice", "second_biases", "written"]

_MOST = 6  # things of a kind that are named one by one
_LONGEST = 400  # characters of a pattern in a message
_MOST_LINES = 24  # of a names file in a message


@dataclass(frozen=True, slots=True)
class Advice:
    """One thing to do.

    Attributes:
        text: What it is good for.
        names: Lines for a names file: layers to modules, or blobs to tensors.
        skip: Layers and blobs to leave out.
        reshaped: Layers that have another shape in the model.
        unclaimed: Parameters without a blob, with the ``(lr_mult, decay_mult)`` to give them; ``None``: any.
        placed: Parameters that then have a place.
        otherwise: Layers that could be left out instead.
        settles: Whether these layers need no other candidates.
        certain: Whether the names leave no choice.
    """

    text: str
    names: Mapping[str, str] = field(default_factory=dict)
    skip: Sequence[str] = ()
    reshaped: Sequence[str] = ()
    unclaimed: Mapping[str, tuple[float, float] | None] = field(default_factory=dict)
    placed: Sequence[str] = ()
    otherwise: Sequence[str] = ()
    settles: bool = False
    certain: bool = False


def advice_for(attempt: Attempt) -> list[Advice]:
    """All there is to do, so that following it takes one run."""
    recipe, findings = attempt.recipe, attempt.findings
    kinds = (_computed_weights, _beside_frozen, _stacked, _renumbered, _statistics)
    special = [one for kind in kinds for one in kind(attempt)]
    settled = {name for one in special for name in (*one.names, *one.skip)}
    found = [*_skipped_that_fit(attempt), *_tied(attempt), *_missing_ends(attempt), *special]
    found += misfit_advice(attempt, settled)
    units = [unit for unit in attempt.unbound if not _covered(recipe, unit, settled)]
    contested = [unit for unit in units if unit.name in findings.conflicting]
    unmatched = [
        unit
        for unit in units
        if unit.name in findings.elsewhere or (unit not in contested and closest(unit, attempt.free) is None)
    ]
    first = next(iter(contested), None)
    if first is not None and len(findings.conflicting[first.name]) == 1:  # where one is, its rivals are not
        places = findings.conflicting[first.name]
        unmatched += [unit for unit in contested[1:] if findings.conflicting[unit.name] == places]
    others = [unit for unit in units if unit not in unmatched]
    if others:
        unit = first or others[0]
        near = closest(unit, attempt.free)
        place = findings.conflicting.get(unit.name, (near.name if near is not None else "MODULE",))[0]
        alone = next((unit for unit in others if unit not in contested), others[0])
        either = () if unmatched else (alone.name,)
        found.append(Advice("bind layers in a names file", names={unit.name: place}, otherwise=either))
    if unmatched:
        parts = [part for unit in unmatched for part in unit.parts]
        found.append(Advice("leave out layers that the model has no module for", skip=parts))
    found = [*(replace(one, unclaimed={}) for one in found), *_without_a_layer(attempt, found)]
    if attempt.model.wiring is None:
        found.append(Advice("or wrap the model so that forward takes tensors alone and can be followed"))
    return found or [Advice("bind other modules in a names file, or change the model")]


def written(attempt: Attempt, advice: Iterable[Advice], *, whole: bool = False) -> str:
    """Advice as a hint: what it is good for, and what to type; ``whole`` writes what is too long for a message."""
    parts = []
    for one in advice:
        skip = _options("skip", one.skip, attempt, whole=whole)
        options = [*skip, *_options("reshaped", one.reshaped, attempt, whole=whole)]
        options += _multipliers(one.unclaimed, attempt, whole=whole)
        lines = [toml_line(*item) for item in one.names.items()]
        if len(lines) == 1:
            options.insert(0, lines[0])
            lines = []
        text = f"{one.text} ({'; '.join(options)})" if options else one.text
        if one.otherwise:
            text += f", or leave them out ({'; '.join(_options('skip', one.otherwise, attempt))})"
        if len(lines) > _MOST_LINES and not whole:
            text += f": {len(lines)} lines, which the draft of a names file has"
        elif lines:
            text += ":" + "".join(f"\n      {line}" for line in lines)
        parts.append(text)
    text = parts[0]
    for before, part in itertools.pairwise(parts):
        text += ("\n    " if "\n" in before else "; ") + part
    return text


# Kinds of advice, each for something that ports do.


def _computed_weights(attempt: Attempt) -> Iterator[Advice]:
    """Weights that a module computes of other parameters: a direction and a length, or what is frozen and a change."""
    recipe, parameters = attempt.recipe, attempt.model.parameters
    names: dict[str, str] = {}
    rest: dict[str, tuple[float, float] | None] = {}
    for misfit, one in attempt.assignment.misfits:
        blob, place = recipe.blobs[misfit.blob], one.module.name
        if misfit.tensor is not None or blob.role != "weight" or not place:
            continue
        inside = {
            name: tensor
            for name, tensor in attempt.model.tensors.items()
            if name.startswith(f"{place}.") and name in attempt.left and parameters[name][1]
        }
        carrier = _carrier(recipe, blob, inside)
        if carrier is not None:
            own = {blob.name: carrier, **_rest_of_layer(attempt, blob, inside)}
            names |= own
            rest |= {name: (blob.lr_mult, blob.decay_mult) for name in inside if name not in own.values()}
        elif inside:
            learning = " and ".join(listed([*inside], _MOST))
            text = (
                f"{learning} learn in place of {blob.name!r}: leave that out and give them its multipliers, if that is "
                "what you mean"
            )
            pair = (blob.lr_mult, blob.decay_mult)
            yield Advice(text, skip=[blob.name], unclaimed=dict.fromkeys(inside, pair), settles=True)
    if names:
        what = "bind in a names file what a weight is computed from"
        more = ", and give the rest of it the weight's own multipliers" if rest else ""
        yield Advice(what + more, names, unclaimed=rest, settles=True, certain=True)


def _beside_frozen(attempt: Attempt) -> Iterator[Advice]:
    """What learns beside a frozen weight, in its module or in the part of the model that is made around it."""
    parameters = attempt.model.parameters
    bound = {
        str(one.tensor.key): attempt.recipe.blobs[number]
        for number, one in attempt.assignment.blobs.items()
        if one.tensor is not None
    }
    for name, blob in bound.items():
        if blob.role != "weight" or blob.lr_mult == 0 or parameters.get(name, ((), True))[1]:
            continue
        place = name.rpartition(".")[0]
        around = place.rpartition(".")[0]
        shared = any(key.startswith(f"{around}.") and one.layer != blob.layer for key, one in bound.items())
        part = place if shared or not around else around
        beside = [one for one in attempt.parameters if one.startswith(f"{part}.")]
        if beside:
            text = (
                f"{' and '.join(listed(beside, _MOST))} learn beside the frozen weight of {blob.layer!r}: give them "
                "its multipliers, if that is what you mean"
            )
            yield Advice(text, unclaimed=dict.fromkeys(beside, (blob.lr_mult, blob.decay_mult)))


def _carrier(recipe: NetRecipe, blob: LearnableBlob, tensors: Mapping[str, TensorReference]) -> str | None:
    fitting = [name for name, tensor in tensors.items() if stored(recipe, blob, tensor) is not None]
    known = [name for end in DIRECTIONS for name in fitting if name.endswith(end)]
    return next(iter(known or (fitting if len(fitting) == 1 else [])), None)


def _rest_of_layer(attempt: Attempt, blob: LearnableBlob, inside: Mapping[str, TensorReference]) -> dict[str, str]:
    """The other blobs of a layer one of whose blobs is named: where they are bound already, or a bias that fits."""
    names = {}
    for number, other in enumerate(attempt.recipe.blobs):
        if other.layer != blob.layer or other is blob:
            continue
        assigned = attempt.assignment.blobs.get(number)
        biases = [
            name
            for name, tensor in inside.items()
            if name.endswith("bias") and stored(attempt.recipe, other, tensor) is not None
        ]
        if assigned is not None and assigned.tensor is not None:
            names[other.name] = str(assigned.tensor.key)
        elif assigned is None and other.role == "bias" and len(biases) == 1:
            names[other.name] = biases[0]
    return names


_OF_RECURRENT = {"input_weight": "weight_ih", "bias": "bias_ih", "hidden_weight": "weight_hh"}


def _stacked(attempt: Attempt) -> Iterator[Advice]:
    """Several recurrent layers of Caffe's that are one module of torch's with ``num_layers``."""
    recipe, tensors = attempt.recipe, attempt.model.tensors
    for module in attempt.model.units:
        count = sum(re.fullmatch(r"(.*\.)?weight_ih_l\d+", str(tensor.key)) is not None for tensor in module.tensors)
        own = {str(tensor.key) for tensor in module.tensors}
        if module.kind is not UnitKind.RECURRENT or count < 2 or any(name.endswith("_reverse") for name in own):
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
        for place, unit in enumerate(layers[:count]):
            for one in unit.tensors:
                blob, name = recipe.blobs[int(one.key)], f"{start}{_OF_RECURRENT[one.role]}_l{place}"
                if name not in tensors:
                    skip.append(blob.name)
                elif stored(recipe, blob, tensors[name]) is not None:
                    names[blob.name] = name
                else:
                    return
        if len(layers) > 1:
            text = f"{module.name} holds {count} layers: bind them blob by blob in a names file"
            yield Advice(text, names, skip, settles=True, certain=len(layers) == count)


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


def _as_norm(module: Unit) -> Unit:
    return Unit(module.name, module.parts, UnitKind.NORM, module.shape, module.tensors, module.groups)


def _roles(recipe: NetRecipe, layer: str) -> set[str]:
    return {blob.role for blob in recipe.blobs if blob.layer == layer}


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


# How it is typed.


def _options(argument: str, names: Sequence[str], attempt: Attempt, *, whole: bool = False) -> Iterator[str]:
    """How to give these layers and blobs to ``argument``: each by itself, many as one pattern."""
    layers = {name for unit in attempt.net.units for name in unit.parts}
    left = [blob for number, blob in enumerate(attempt.recipe.blobs) if not _is_skipped(attempt, number)]
    of_blobs = [*layers, *(blob.name for blob in left)]
    distinct = list(dict.fromkeys(names))
    for keys, every in (
        ([name for name in distinct if name in layers], [*{blob.layer for blob in left}, *distinct]),
        ([name for name in distinct if name not in layers], of_blobs),
    ):
        if 0 < len(keys) <= _MOST // 2:
            yield f"{argument}={keys}, {' '.join(f'--{argument} {quoted(key)}' for key in keys)}"
        elif keys:
            short = pattern(keys, every)
            yield (
                f"{argument}={[short]}, --{argument} {quoted(short)}"
                if len(short) <= _LONGEST or whole
                else f"--{argument} for {len(keys)} of them, which the draft of a names file has in full"
            )


def _is_skipped(attempt: Attempt, number: int) -> bool:
    one = attempt.assignment.blobs.get(number)
    return one is not None and one.evidence is Evidence.SKIPPED


def _multipliers(
    unclaimed: Mapping[str, tuple[float, float] | None], attempt: Attempt, *, whole: bool
) -> Iterator[str]:
    """How to give parameters multipliers: one option for each pair, and one for all that may have any."""
    named = {name for name, pair in unclaimed.items() if pair is not None}
    if not unclaimed:
        return
    if not named:
        yield "unclaimed, --unclaimed lr_mult=1,decay_mult=1"
        return
    every = [name for name, (_, trains) in attempt.model.parameters.items() if trains and name not in attempt.bound]
    pairs: dict[tuple[float, float], list[str]] = {}
    for name, pair in unclaimed.items():
        if pair is not None:
            pairs.setdefault(pair, []).append(name)
    patterns = {}
    for pair, names in pairs.items():
        keys = sorted(names, key=every.index)
        patterns.update(dict.fromkeys(keys if len(keys) <= _MOST // 2 else [pattern(keys, every)], pair))
    if max(map(len, patterns)) > _LONGEST and not whole:
        yield "--unclaimed, which the draft of a names file has in full"
        return
    texts = {key: (_number(lr), _number(decay)) for key, (lr, decay) in patterns.items()}
    mapping = [f"{key!r}: ({lr}, {decay})" for key, (lr, decay) in texts.items()]
    typed = [quoted(f"{key}:lr_mult={lr},decay_mult={decay}") for key, (lr, decay) in texts.items()]
    if len(named) < len(unclaimed):
        mapping.append("'.*': (1, 1)")
        typed.append("lr_mult=1,decay_mult=1")
    yield f"unclaimed={{{', '.join(mapping)}}}, {' '.join(f'--unclaimed {one}' for one in typed)}"


def _number(value: float) -> str:
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def _covered(recipe: NetRecipe, unit: Unit, settled: set[str]) -> bool:
    """Whether advice is given for every blob of a unit, or for the whole of it."""
    blobs = [recipe.blobs[int(tensor.key)] for tensor in unit.tensors]
    return not settled.isdisjoint(unit.parts) or all(blob.name in settled for blob in blobs)
