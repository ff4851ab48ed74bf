"""What a person should know about a binding that holds: by which evidence, and what torch has otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from caffe2torch.binding.assignment import Assignment
from caffe2torch.binding.counterparts import Findings, How
from caffe2torch.binding.graph import Unit, UnitKind
from caffe2torch.binding.messages import toml_line
from caffe2torch.binding.model_graph import ModelWiring
from caffe2torch.recipe import Note, Severity, TrainingRecipe

__all__ = ["binding_notes"]


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
