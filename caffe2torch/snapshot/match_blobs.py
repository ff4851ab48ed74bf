"""Which numbers of a snapshot belong to which blob of a net, checked as Caffe checks it and further.

Source: ``net.cpp`` (``Net::CopyTrainedLayersFrom``), ``sgd_solver.cpp`` (``RestoreSolverStateFrom...``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

import numpy as np

from caffe2torch.errors import BindingError, SnapshotError
from caffe2torch.recipe import LearnableBlob, NetRecipe, Note, PolicyType, Severity, Shape, TrainingRecipe
from caffe2torch.snapshot.files import LayerWeights, SolverState, Weights
from caffe2torch.snapshot.wire import Array
from caffe2torch.solver.update_rules import SOLVERS
from caffe2torch.wording import listed, matches, shape_text

__all__ = ["blob_history", "blob_weights", "fits", "missing_step"]

_LISTED = 8  # problems that a message spells out


def blob_weights(
    recipe: NetRecipe, weights: Weights, new_layers: Collection[str] = ()
) -> tuple[Mapping[str, Array], tuple[Note, ...]]:
    """The array of each learnable blob, by ``LAYER/INDEX``, and what a person should know.

    A layer that the file lacks, or has with another number of blobs or other shapes, is an error unless
    ``new_layers`` names it (its name, or a regular expression that matches all of it): then none of its blobs has an
    array. Caffe only lets a *missing* layer pass, silently. A blob that several layers share has what the last of
    them has in the file, as in Caffe.

    Raises:
        SnapshotError: With every blob that differs.
        BindingError: A ``new_layers`` matches nothing, or is no regular expression.
    """
    holders = {(layer, index): blob for blob in recipe.blobs for layer, index in _uses(blob)}
    sizes = Counter(layer for layer, _ in holders)
    new = _named(sizes, new_layers)
    found: dict[str, Array] = {}
    differing: dict[str, list[str]] = {}
    skipped: list[str] = []
    notes: list[Note] = []
    for layer in weights.layers:
        if layer.name not in sizes:
            skipped.append(layer.name)
            continue
        problems = _differences(layer, sizes[layer.name], holders)
        if problems:
            differing.setdefault(layer.name, []).extend(problems)
            continue
        for index, array in enumerate(layer.blobs):
            name = holders[layer.name, index].name
            if name in found and not np.array_equal(found[name], array, equal_nan=True):
                message = f"{weights.file}: {name} is shared, and differs in {layer.name!r}, which is taken"
                notes.append(Note(None, Severity.WARNING, message))
            found[name] = array
    held = {layer.name: len(layer.blobs) for layer in weights.layers}
    for name in dict.fromkeys(blob.layer for blob in recipe.blobs if blob.name not in found):
        lacks = (
            f"has {held[name]} blobs in the file, {sizes[name]} in the net" if name in held else "is not in the file"
        )
        differing.setdefault(name, [f"{name!r} {lacks}"])
    errors = [problem for name, problems in differing.items() if name not in new for problem in problems]
    if errors:
        lines = "\n  ".join(listed(errors, _LISTED))
        raise SnapshotError(
            f"does not belong to the net {recipe.net_name!r}:\n  {lines}",
            where=weights.file,
            hint="layers that are meant to be new must be named as such (a fine-tuning factor does that)",
        )
    expected = [f"{problems[0]}; the layer is new and keeps its values" for problems in differing.values()]
    if skipped:
        expected.append(f"skipped, since nothing here has them: {', '.join(skipped)}")
    notes += [Note(None, Severity.INFO, f"{weights.file}: {message}") for message in expected]
    return {name: array for name, array in found.items() if name.rpartition("/")[0] not in differing}, tuple(notes)


def blob_history(recipe: TrainingRecipe, state: SolverState) -> tuple[tuple[Array, ...], ...]:
    """The history of each learnable blob in order: one array, or two (first and second) for Adam and AdaDelta.

    BatchNorm's statistics count, though no optimizer knows them: the order is Caffe's.

    Raises:
        SnapshotError: The state has another number of blobs or other shapes than this net with this solver; Caffe
            itself only counts.
    """
    solver = recipe.solver
    times = len(SOLVERS[solver.type].history)
    count = len(recipe.blobs)
    if len(state.history) != times * count:
        raise SnapshotError(
            "does not belong to this net and solver",
            where=state.file,
            found=f"history of {len(state.history)} blobs",
            expected=f"{times * count}: {solver.type} keeps {times} for each of {count} learnable blobs",
        )
    for position, shape in enumerate(state.history.shapes):
        blob = recipe.blobs[position % count]
        if not fits(shape, blob.shape):
            raise SnapshotError(
                f"does not belong to this net: history {position}, of {blob.name}, has another shape",
                where=state.file,
                found=shape_text(shape),
                expected=f"{shape_text(blob.shape)}, as {blob.where} says",
            )
    return tuple(state.history[index::count] for index in range(count))


def missing_step(recipe: TrainingRecipe, state: SolverState) -> tuple[Note, ...]:
    """A note where a state does not say how many stepvalues are behind, and some are: a file cut off at its end."""
    if state.current_step is not None or recipe.solver.policy.type is not PolicyType.MULTISTEP:
        return ()
    behind = sum(value <= state.iteration for value in recipe.solver.policy.stepvalues)
    if not behind:
        return ()
    text = (
        f"{state.file}: holds no current_step, the last of its fields: it may be cut off. As in Caffe, the rate takes "
        f"the {behind} stepvalues that are behind one an iteration"
    )
    return (Note(None, Severity.WARNING, text),)


def fits(written: Shape, shape: Shape | None) -> bool:
    """Whether a blob written with one shape belongs where the net has another, as Caffe decides (``ShapeEquals``).

    Old files always state four axes: theirs are padded with ones on the left. ``None`` fits any size.

    >>> fits((1, 1, 500, 800), (500, None)), fits((500, 800), (800, 500))
    (True, False)
    """
    if shape is None:
        return True
    if len(written) == 4 and len(shape) < 4:
        shape = (1,) * (4 - len(shape)) + shape
    return len(written) == len(shape) and all(b is None or a == b for a, b in zip(written, shape, strict=True))


def _uses(blob: LearnableBlob) -> list[tuple[str, int]]:
    return [(blob.layer, blob.index), *((use.layer, use.index) for use in blob.shared_with)]


def _differences(layer: LayerWeights, size: int, holders: Mapping[tuple[str, int], LearnableBlob]) -> list[str]:
    """What keeps a layer of the file from being the net's layer of that name."""
    # HDF5 files have a shared blob under its first layer only, so fewer blobs may do; what is then missing shows later.
    if len(layer.blobs) > size:
        return [f"{layer.name!r} has {len(layer.blobs)} blobs in the file, {size} in the net"]
    return [
        f"{layer.name}/{index} ({blob.role}) is {shape_text(shape)} in the file, {shape_text(blob.shape)} in the net"
        for index, shape in enumerate(layer.blobs.shapes)
        if not fits(shape, (blob := holders[layer.name, index]).shape)
    ]


def _named(layers: Collection[str], patterns: Collection[str]) -> set[str]:
    """The layers that ``patterns`` name, by the rule of fine-tuning factors: the exact name, else the whole name."""
    found = (matches(key, layers, what="new_layers", of="layer that learns", error=BindingError) for key in patterns)
    return {name for names in found for name, _ in names}
