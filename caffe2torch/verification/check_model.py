"""The check ``model``: what of the net the model has otherwise, in a few sentences."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence

from caffe2torch.binding.net_computation import net_computation
from caffe2torch.binding.net_graph import biases_before_norms, net_inputs
from caffe2torch.binding.plan import Binding, Evidence
from caffe2torch.errors import Caffe2TorchError
from caffe2torch.net.build import with_inputs
from caffe2torch.recipe import NetRecipe, Shape
from caffe2torch.verification.compare_layers import Sizes, compare_layers
from caffe2torch.verification.layer_differences import Comparison, Difference
from caffe2torch.verification.report import Check, Fault, FaultKind, Result
from caffe2torch.wording import listed, shape_text

__all__ = ["check_model", "read_accepted"]

_EXPECTED = "kernels, strides, sizes, epsilons and ratios of the net's layers"
_PREFIX = "model:"


def read_accepted(accept: Collection[str]) -> tuple[frozenset[FaultKind], tuple[str, ...]]:
    """What ``accept`` says: kinds of departure, and patterns for the settings of layers (``model:PATTERN``).

    >>> read_accepted(["epsilon", "model:features.3.stride"])
    (frozenset({<FaultKind.EPSILON: 'epsilon'>}), ('features.3.stride',))

    Raises ``Caffe2TorchError`` for a kind that there is not, and for what is no pattern.
    """
    kinds, patterns = set(), []
    for one in accept:
        if one.startswith(_PREFIX):
            patterns.append(one.removeprefix(_PREFIX))
            try:
                re.compile(patterns[-1])
            except re.error as error:
                raise Caffe2TorchError(f"accept: {one!r} is no name and no regular expression: {error}") from None
        elif one in set(FaultKind):
            kinds.add(FaultKind(one))
        else:
            raise Caffe2TorchError(
                f"there is no kind of departure called {one!r} to accept",
                expected="one of " + ", ".join((*FaultKind, "model:PATTERN")),
            )
    return frozenset(kinds), tuple(patterns)


def check_model(recipe: NetRecipe, binding: Binding, *, strict: bool = False, accepted: Sequence[str] = ()) -> Check:
    """Compare the layers of a net with the modules that binding paired them with.

    Args:
        recipe: The net.
        binding: What its blobs are in the model, and what the model was seen to compute.
        strict: Whether a difference makes the report not ok.
        accepted: Names or patterns of differences that the user accepts.
    """
    if not recipe.layers:
        return _not_seen("a lock holds no layers: give the prototxts")
    if binding.computation is None:
        evidence = {bound.evidence for bound in binding.blobs}
        if Evidence.BUILT in evidence:
            return Check("model", Result.OK, _EXPECTED, seen="the model was built from this net")
        if Evidence.ROLE in evidence:
            return _not_seen("the model's layers are not bound to the net's")
        return _not_seen("the model's forward pass could not be followed; input_shapes says what it takes")
    sizes, net = _at_the_models_size(recipe, binding.computation.inputs)
    bound = [(number, one.name) for number, one in enumerate(binding.blobs) if one.name is not None]
    cancelled = [number for number, live in biases_before_norms(recipe).items() if live]
    found = compare_layers(net_computation(net), binding.computation, bound, sizes=sizes, cancelled=cancelled)
    if not found.seen:
        return _not_seen(f"none of {len(found.unseen)} layers could be compared")
    left = [one for one in found.differences if not any(one.matches(pattern) for pattern in accepted)]
    for pattern in accepted:
        if not any(one.matches(pattern) for one in found.differences):
            found.notes[f"no difference matches --accept {_PREFIX}{pattern}"] = None
    summary = _summary(found, binding, sizes, len(found.differences) - len(left) if left else 0)
    if not found.differences:
        return Check("model", Result.OK, _EXPECTED, seen=summary, counts=strict)
    shown = left or found.differences
    return Check(
        "model",
        Result.DIFFERS if left else Result.ACCEPTED,
        _EXPECTED,
        tuple(Fault(FaultKind.MODEL, message) for message in _messages(shown)),
        effect=summary,
        fix=f"change the layers, or accept what is meant: --accept {_PREFIX}{shown[0].name}"
        + (f", or all {len(shown)} by --accept model" if len(shown) > 1 else "")
        + ("" if strict else "; --strict makes the exit status count them"),
        counts=strict,
        differences=tuple(shown),
    )


def _not_seen(why: str) -> Check:
    return Check("model", Result.NOT_SEEN, _EXPECTED, seen=why, counts=False)


def _at_the_models_size(recipe: NetRecipe, inputs: Sequence[tuple[int, ...]]) -> tuple[Sizes, NetRecipe]:
    """The net at the size that the model was run with, as far as the file leaves that open."""
    stated = net_inputs(recipe)
    if len(inputs) != len(stated):  # a port may do without what no gradient flows through
        stated = [one for one in stated if one.learned]
    if not inputs or len(inputs) != len(stated):
        return Sizes.OTHER, recipe
    images = [(one, shape) for one, shape in zip(stated, inputs, strict=True) if one.learned]
    if all(one.shape is not None and one.shape[1:] == shape[1:] for one, shape in images):
        return Sizes.STATED, recipe
    if any(one.shape is not None and _contradicts(one.shape, shape) for one, shape in images):
        return Sizes.OTHER, recipe
    given = {one.name: shape for one, shape in images}
    try:
        return Sizes.GIVEN, with_inputs(recipe, given)
    except Caffe2TorchError:
        return Sizes.OTHER, recipe


def _contradicts(own: Shape, given: tuple[int, ...]) -> bool:
    sizes = zip(own[1:], given[1:], strict=False)
    return len(own) != len(given) or any(size not in (None, other) for size, other in sizes)


def _messages(differences: Sequence[Difference]) -> list[str]:
    """One sentence for each difference; the same of many layers is said once."""
    alike: dict[tuple[str, str, str], list[Difference]] = {}
    for one in differences:
        alike.setdefault((one.setting, one.yours, one.caffes), []).append(one)
    messages = []
    for (_, yours, caffes), group in alike.items():
        first = group[0]
        some = f" and {len(group) - 1} more" if len(group) > 1 else ""
        layer = "" if first.module else f"layer {first.layer}"
        place = "" if first.where is None else f", {first.where.file}:{first.where.line}"
        effect = f": {first.effect}" if first.effect else ""
        messages.append(f"You have {yours} ({first.module or layer}{some}), Caffe has {caffes}{place}{effect}")
    return messages


def _summary(found: Comparison, binding: Binding, sizes: Sizes, accepted: int) -> str:
    """How much was compared, at which size, and what matters in evaluation alone."""
    assert binding.computation is not None
    size = ", ".join(shape_text(shape[1:]) for shape in binding.computation.inputs)
    said = f"{len(found.seen)} layers compared"
    said += (
        f", sizes not: the model was run at {size}, which is not the net's"
        if sizes is Sizes.OTHER
        else f", sizes at {size}"
    )
    if binding.computation.ended:
        said += f"; its forward pass ended early ({binding.computation.ended})"
    if found.unseen:
        said += f"; {len(found.unseen)} not seen ({', '.join(listed(list(found.unseen), 3))})"
    if found.unread:
        said += f"; not read: what is computed {', '.join(listed(list(found.unread), 3))}"
    for note in found.notes:
        said += f"; {note}"
    if accepted:
        said += f"; {accepted} accepted"
    for (yours, caffes), count in Counter(found.averages).items():
        many = f"{count} batch norms keep" if count > 1 else "1 batch norm keeps"
        said += f"; {many} a moving average of {yours:g} of each batch, Caffe of {caffes:g} (for evaluation alone)"
    return said
