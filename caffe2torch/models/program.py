"""The layers of one phase in single assignment: every value that a blob takes has a number of its own.

A layer that works in place gives its blob a new value (``net.cpp``, ``Net::AppendTop``), so that what read the blob
before keeps the old one. From this follow what a net computes before its losses, which inputs that needs, and when a
value is needed no longer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from caffe2torch.models.losses import LOSSES
from caffe2torch.net.loss_settings import METRICS, is_loss, propagate_down
from caffe2torch.recipe import Layer

__all__ = ["Program", "Step", "Trace", "overwriting", "program", "trace"]

_ONE_RESULT = frozenset({"MarginInnerProduct", "Pooling"})
"""Layers whose second top, a weight or a mask, is no result."""


@dataclass(frozen=True, slots=True)
class Step:
    """One call of a module. ``scale`` names the Scale whose factor and shift a BatchNorm applies in the same pass.

    ``detached`` are the bottoms (by position) that get no gradient, ``frees`` the values that nothing needs any more.
    """

    layer: Layer
    module: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    weights: tuple[float, ...] = ()
    detached: tuple[int, ...] = ()
    frees: tuple[int, ...] = ()
    scale: str | None = None


@dataclass(frozen=True, slots=True)
class Program:
    """The steps that lead from inputs (blob names and their values) to results, and no others."""

    inputs: tuple[tuple[str, int], ...]
    steps: tuple[Step, ...]
    results: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Trace:
    """All steps of a phase. ``names`` has the blob of every value, ``final`` the last value of every blob.

    ``predictions`` is what the net computes before its losses, ``losses`` the values with a weight in the whole loss.
    """

    names: tuple[str, ...]
    inputs: tuple[tuple[str, int], ...]
    steps: tuple[Step, ...]
    final: dict[str, int]
    predictions: tuple[int, ...]
    losses: tuple[tuple[int, float], ...]


def trace(layers: Sequence[tuple[Layer, str | None, tuple[float, ...]]]) -> Trace:
    """Number the values. Each layer comes with its module's name (``None``: it brings data in) and its loss weights.

    A bottom that no layer makes is an input, too.
    """
    names: list[str] = []
    final: dict[str, int] = {}
    inputs: dict[str, int] = {}
    steps: list[Step] = []
    learned: set[int] = set()  # values that something learned made

    def new(blob: str) -> int:
        names.append(blob)
        final[blob] = len(names) - 1
        return final[blob]

    for layer, module, weights in layers:
        if module is None:
            inputs.update((top, new(top)) for top in layer.tops)
            continue
        for blob in layer.bottoms:
            if blob not in final:
                inputs[blob] = new(blob)
        bottoms = tuple(final[blob] for blob in layer.bottoms)
        # A loss without a top gives one all the same (``net.cpp``, ``AutoTopBlobs``).
        tops = tuple(new(blob) for blob in layer.tops or ("(automatic)",) * is_loss(layer))
        # Caffe gives labels no gradient, even where force_backward asks for one of everything.
        labels = range(LOSSES[layer.type].learns, len(bottoms)) if layer.type in LOSSES else ()
        detached = [i for i, down in enumerate(propagate_down(layer)) if down is False]
        detached += [i for i in labels if bottoms[i] not in learned]
        if layer.blobs or learned.intersection(bottoms):
            learned.update(tops)
        steps.append(Step(layer, module, bottoms, tops, weights, tuple(detached)))
    weighted = [(value, weight) for step in steps for value, weight in zip(step.outputs, step.weights, strict=False)]
    losses = [(value, weight) for value, weight in weighted if weight]
    if not losses:  # Caffe trains a net whose losses all have weight 0
        losses = [(step.outputs[0], 0.0) for step in steps if is_loss(step.layer)]
    return Trace(tuple(names), tuple(inputs.items()), tuple(steps), final, _predictions(steps, learned), tuple(losses))


def _predictions(steps: Sequence[Step], learned: Collection[int]) -> tuple[int, ...]:
    """What goes into a loss or out of the net, as far as something learned made it (labels are not predicted)."""
    judged: set[int] = set()  # what losses and metrics give, and what follows from it
    into_losses: set[int] = set()
    into_metrics: set[int] = set()
    used: set[int] = set()
    made: set[int] = set()
    for step in steps:
        loss = any(step.weights) or is_loss(step.layer)
        if loss or step.layer.type in METRICS or judged.intersection(step.inputs):
            judged.update(step.outputs)
            (into_losses if loss else into_metrics).update(step.inputs)
        elif step.layer.type != "Silence":
            used.update(step.inputs)
            made.update(step.outputs[:1] if step.layer.type in _ONE_RESULT else step.outputs)
    ends = made - used - into_metrics if into_losses else made - used
    found = sorted((into_losses | ends) - judged)
    return tuple([value for value in found if value in learned] or [value for value in found if value in made])


def program(
    source: Trace, results: Iterable[int], *, keep: bool = False, merge: bool = True, given: Collection[int] = ()
) -> Program:
    """The part of a trace that ``results`` need; unless ``keep``, every value goes as soon as nothing needs it.

    Where values may go and with ``merge``, a Scale right after its BatchNorm becomes one pass with it. Values that are
    ``given`` need no step.
    """
    results = tuple(results)
    needed, steps = set(results), []
    for step in reversed(source.steps):
        if keep or needed.difference(given).intersection(step.outputs):
            needed.update(step.inputs)
            steps.append(step)
    steps.reverse()
    if not keep:
        steps = _freeing(_merged(steps, results) if merge else steps, results)
    inputs = tuple((name, value) for name, value in source.inputs if keep or value in needed)
    return Program(inputs, tuple(steps), results)


def _merged(steps: list[Step], results: Sequence[int]) -> list[Step]:
    """BatchNorm and the Scale that alone reads it as one step."""
    readers: dict[int, list[Step]] = {}
    for step in steps:
        for value in step.inputs:
            readers.setdefault(value, []).append(step)
    merged: dict[int, Step] = {}
    gone: set[int] = set()
    for step in steps:
        after = readers.get(step.outputs[0], []) if step.outputs else []
        if step.layer.type == "BatchNorm" and len(after) == 1 and step.outputs[0] not in results and _plain(after[0]):
            merged[id(step)] = replace(step, outputs=after[0].outputs, scale=after[0].module)
            gone.add(id(after[0]))
    return [merged.get(id(step), step) for step in steps if id(step) not in gone]


def _plain(step: Step) -> bool:
    """Whether a step is a Scale of channels, learned."""
    settings = step.layer.settings
    one_axis = settings.get("axis", 1) == 1 and settings.get("num_axes", 1) == 1
    return step.layer.type == "Scale" and len(step.inputs) == 1 and one_axis and not step.detached


_OVERWRITABLE = frozenset(
    {"BN", "BatchNorm", "Concat", "Convolution", "Deconvolution", "Eltwise", "InnerProduct", "Scale"}
)
"""Layers whose backward pass does not look at their top, so that a ReLU may write over it."""


def overwriting(source: Trace) -> set[str]:
    """The modules of ReLUs that Caffe runs in place and that torch may run in place, too."""
    makers = {value: step for step in source.steps for value in step.outputs}
    reads = Counter(value for step in source.steps for value in step.inputs)
    return {
        step.module
        for step in source.steps
        if step.layer.type == "ReLU"
        and step.layer.bottoms == step.layer.tops
        and reads[step.inputs[0]] == 1
        and step.inputs[0] in makers
        and makers[step.inputs[0]].layer.type in _OVERWRITABLE
        and len(makers[step.inputs[0]].outputs) == 1
    }


def _freeing(steps: list[Step], results: Sequence[int]) -> list[Step]:
    seen = set(results)
    backwards = []
    for step in reversed(steps):
        values = dict.fromkeys((*step.inputs, *step.outputs))
        backwards.append(replace(step, frees=tuple(value for value in values if value not in seen)))
        seen.update(values)
    return backwards[::-1]
