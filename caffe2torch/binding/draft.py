"""A names file to complete, where net and model do not bind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from caffe2torch.binding.advice import kept_fixed
from caffe2torch.binding.attempt import Attempt
from caffe2torch.binding.closest import differences, likeness, of_kind
from caffe2torch.binding.graph import Unit
from caffe2torch.binding.names import names_of, toml_line
from caffe2torch.binding.net_graph import layers_with_blobs
from caffe2torch.binding.patterns import quoted
from caffe2torch.binding.plan import Binding, BoundBlob, Kind, Unclaimed
from caffe2torch.binding.tensor_matching import Assignment
from caffe2torch.binding.typed import Advice, written
from caffe2torch.wording import shape_text

__all__ = ["draft"]

_CANDIDATES = 5  # modules that a draft offers for a layer
_COMPARED = 100  # modules whose names are compared with a layer's


def draft(attempt: Attempt, advice: Sequence[Advice]) -> str:
    """A names file: certain layers as they are, for each other its candidates as comments, the best first.

    Candidates are modules that hold nothing bound yet and that the forward pass reaches, or had not reached when it
    ended early; they stand in the order of the differences to the layer, then of their place among those without any,
    then of names. No module is the first candidate of two layers, and a layer for which none is left has none. Where
    there is advice about a layer's blobs, its lines stand in their place.
    """
    model, findings, assignment, recipe = attempt.model, attempt.findings, attempt.assignment, attempt.recipe
    reached = model.units if model.wiring is None else model.wiring.units
    later = attempt.free if model.wiring is not None and model.ended else []
    free = [unit for unit in reached if unit.tensors and not any(str(one.key) in attempt.bound for one in unit.tensors)]
    seen = {tensor.key for unit in reached for tensor in unit.tensors}
    not_reached = [unit for unit in later if not any(tensor.key in seen for tensor in unit.tensors)]
    free += not_reached
    places: dict[str, Unit] = {}  # a layer that does not fit where it stands has its place as first candidate
    misfits: dict[str, dict[str, None]] = {}
    for misfit, one in assignment.misfits:
        blob = recipe.blobs[misfit.blob]
        places[blob.layer] = one.module
        if misfit.tensor is None:
            what = f"that the model has no such blob: --skip {quoted(blob.name)}"
        elif kept_fixed(blob, misfit):
            what = f"that the model keeps it fixed, in a buffer: --skip {quoted(blob.name)}"
        else:
            what = f"that its shape differs: --reshaped {quoted(blob.layer)}"
        misfits.setdefault(blob.layer, {})[what] = None
    tied = {part: others for units, others in findings.ties for one in units for part in one.parts}
    advised = _advised(attempt, advice)
    certain = names_of(
        Binding(
            model.name,
            tuple(
                BoundBlob(
                    recipe.blobs[number],
                    Kind.PARAMETER if one.tensor.trained else Kind.BUFFER,
                    str(one.tensor.key),
                    one.evidence,
                )
                for number, one in sorted(assignment.blobs.items())
                if one.tensor is not None and not {recipe.blobs[number].layer} & (places.keys() | tied.keys())
            ),
            tuple(Unclaimed(name, shape) for name, (shape, _) in attempt.left.items()),
        )
    )
    layers, parts = layers_with_blobs(recipe), {part for unit in attempt.net.units for part in unit.parts}
    settled: dict[str, list[str]] = {}
    for layer, _, numbers in layers:
        shared = [f"# {clash.text}" for clash in assignment.clashes if layer in clash.layers]
        keys = [key for key in (layer, *(recipe.blobs[number].name for number in numbers)) if key in certain]
        if layer in advised:
            settled[layer] = advised[layer]
        elif shared or keys:
            settled[layer] = shared or [toml_line(key, certain[key]) for key in keys]
        elif all(number in assignment.blobs for number in numbers) and layer not in places and layer not in tied:
            settled[layer] = ["# it needs no module: " + "; ".join(dict.fromkeys(_why(assignment, numbers)))]
        elif layer not in parts:
            settled[layer] = ["# its blobs are those of another layer"]
    for unit in attempt.net.units:
        for layer in unit.parts if not advised.keys().isdisjoint(unit.parts) else ():
            settled.setdefault(layer, ["# found by its place, once the rest is left out"])
    unbound = [unit for unit in attempt.net.units if not settled.keys() >= set(unit.parts)]
    offers: dict[str, list[Unit]] = {}
    for unit in unbound:
        ranked = _ranked(unit, of_kind(unit, free), unbound, findings.conflicting.get(unit.name, ()))
        first = tied.get(unit.name, ()) or [places[part] for part in unit.parts if part in places]
        offers[unit.name] = list(dict.fromkeys((*first, *ranked)))
    chosen = _distinct(unbound, offers, places)
    lines = [
        f"# {recipe.net_name or 'net'} to {model.name}: what is certain is filled in.",
        "# For each other layer remove the '#' before its module, or leave the layer out with --skip.",
        *_in_full(attempt, advice),
    ]
    for layer, layer_type, numbers in layers:
        blobs = [recipe.blobs[number] for number in numbers]
        shapes = ", ".join(f"{blob.role} {shape_text(blob.shape)}" for blob in blobs)
        lines += ["", f"# {layer} ({layer_type}, {blobs[0].where}): {shapes}"]
        if layer in settled:
            lines += settled[layer]
            continue
        unit = next(unit for unit in unbound if layer in unit.parts)
        offered = offers[unit.name]
        if unit.name in chosen:
            for module in list(dict.fromkeys((chosen[unit.name], *offered)))[:_CANDIDATES]:
                same = f"the same sizes{', in another place' if unit.name in findings.elsewhere else ''}"
                what = "; ".join(differences(unit, module)) or same
                beyond = "; forward did not reach it" if module in not_reached else ""
                lines.append(f"# {toml_line(layer, module.name)}  # {what}{beyond}")
        elif offered:
            fewer = " or ".join(module.name for module in offered[:_CANDIDATES])
            lines.append(f"# too few modules: --skip {quoted(layer)}, or a layer above that is offered {fewer}")
        else:
            lines.append(f"# no module of this kind is left: --skip {quoted(layer)}")
        lines += [f"# and say {what}" for what in misfits.get(layer, ())]
    return "\n".join(lines) + "\n"


def _advised(attempt: Attempt, advice: Sequence[Advice]) -> dict[str, list[str]]:
    """For layers whose blobs there is advice about what to write, and what to skip."""
    lines: dict[str, list[str]] = {}
    layer_of = {blob.name: blob.layer for blob in attempt.recipe.blobs}
    for one in advice:
        if not one.settles:
            continue
        mark = "" if one.certain else "# "
        typed = [(key, f"{mark}{toml_line(key, place)}") for key, place in one.names.items()]
        typed += [(key, f"# --skip {quoted(key)}") for key in one.skip]
        for key, line in typed:
            lines.setdefault(layer_of.get(key, key), [f"# {one.text}:"]).append(line)
    return lines


def _in_full(attempt: Attempt, advice: Sequence[Advice]) -> list[str]:
    """The options that are too long for a message."""
    options = [replace(one, names={}) for one in advice]
    both = [(written(attempt, [one], whole=True), written(attempt, [one])) for one in options]
    return [f"# {whole}" for whole, short in both if whole != short]


def _distinct(
    units: Sequence[Unit], offers: Mapping[str, Sequence[Unit]], places: Mapping[str, Unit]
) -> dict[str, Unit]:
    """A module for each unit and none for two: where it stands, else one that fits, else what is left."""
    chosen: dict[str, Unit] = {}
    stages: list[Callable[[Unit, Unit], bool]] = [
        lambda unit, module: any(places.get(part) == module for part in unit.parts),
        lambda unit, module: not differences(unit, module),
        lambda _, __: True,
    ]
    for may in stages:
        for unit in units:
            taken = {module.name for module in chosen.values()}
            free = (one for one in offers[unit.name] if one.name not in taken and may(unit, one))
            if unit.name not in chosen and (module := next(free, None)) is not None:
                chosen[unit.name] = module
    return chosen


def _ranked(unit: Unit, modules: Sequence[Unit], unbound: Sequence[Unit], claimed: Sequence[str]) -> list[Unit]:
    """The likeliest module first; the n-th layer of some size is likeliest to be the n-th module that it fits."""
    alike = [one for one in unbound if (one.kind, one.shape, one.groups) == (unit.kind, unit.shape, unit.groups)]
    place = next((number for number, one in enumerate(alike) if one.name == unit.name), 0)
    fitting = [module.name for module in modules if not differences(unit, module)]
    away = {name: abs(number - place) for number, name in enumerate(fitting)}

    few = len(modules) <= _COMPARED

    def key(module: Unit) -> tuple[bool, int, int, float]:
        apart = len(differences(unit, module))
        unlike = -likeness(unit, module) if few and apart else 0.0
        return module.name not in claimed, apart, away.get(module.name, 0), unlike

    return sorted(modules, key=key)


def _why(assignment: Assignment, numbers: Sequence[int]) -> Iterator[str]:
    for number in numbers:
        one = assignment.blobs[number]
        yield one.remark or str(one.evidence)
