"""The net's loss as Python source that needs torch alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import zip_longest

from caffe2torch.emit.definitions import definitions
from caffe2torch.errors import NetError, UnsupportedError
from caffe2torch.models.losses import LOSSES, stock_call
from caffe2torch.models.net_loss import LossTerm, loss_terms
from caffe2torch.net.layer_rules import number
from caffe2torch.net.loss_settings import (
    class_axis,
    class_weights,
    ignore_label,
    normalization,
    propagate_down,
)
from caffe2torch.net.normalization import Normalization
from caffe2torch.recipe import Layer, NetRecipe

__all__ = ["loss_source"]

_WIDTH = 120

_ARGUMENTS = {
    "ContrastiveLoss": ("a", "b", "similar"),
    "EuclideanLoss": ("a", "b"),
    "HingeLoss": ("scores", "labels"),
    "InfogainLoss": ("scores", "labels", "matrix"),
    "MultinomialLogisticLoss": ("probabilities", "labels"),
    "SigmoidCrossEntropyLoss": ("scores", "targets"),
    "SmoothL1Loss": ("a", "b", "inside", "outside"),
    "SoftmaxWithLoss": ("scores", "labels"),
}


def loss_source(recipe: NetRecipe) -> str | None:
    """Functions, the last one ``build_loss()``, as source: it gives the net's loss, weights included.

    That is torch's own loss where it is the same, else a function of a few lines. Where the net has one loss layer it
    takes the layer's bottoms (of InfogainLoss always the matrix, too), else a mapping from blob to tensor. Labels are
    as torch wants them: class numbers of type int64, in the shape of the scores without the class axis.

    What ``caffe2torch.emit.definitions.import_lines`` says of the source must stand before it.

    Returns:
        The source; ``None`` if the net has no loss, or one that is not translated.

    Raises:
        NetError: Caffe refuses the loss.
    """
    try:
        terms = loss_terms(recipe)
    except (NetError, UnsupportedError):
        return None
    for term in terms:
        if term.loss_layer:
            LOSSES[term.layer.type](term.layer)  # raises what Caffe refuses
    single = len(terms) == 1 and terms[0].loss_layer
    if not single and any(term.layer.type == "InfogainLoss" and len(term.blobs) == 2 for term in terms):
        return None  # its matrix is in a file, and no blob
    first = terms[0].layer
    stock = stock_call(first) if single and terms[0].weight == 1 and False not in propagate_down(first) else None
    if stock is None:
        build = _written_out(terms, single)
    else:
        arguments = ", ".join(_ARGUMENTS[first.type])
        build = [
            "def build_loss() -> torch.nn.Module:",
            f'    """Caffe\'s {first.type}: loss({arguments})."""',
            f"    return {stock}",
        ]
    code = "\n".join(build)
    return "\n\n\n".join([*definitions(re.findall(r"\w+(?=\()", code)), code]) + "\n"


def _written_out(terms: Sequence[LossTerm], single: bool) -> list[str]:
    """``build_loss`` as a function of the bottoms of the one loss layer, or of all blobs."""
    kind = terms[0].layer.type
    names = _ARGUMENTS[kind] if single else ()
    if single and kind == "SmoothL1Loss":
        names = names[: len(terms[0].blobs)]
    values = [_value(term, names) for term in terms]
    arguments = ", ".join(f"{name}: torch.Tensor" for name in names) if single else "blobs: dict[str, torch.Tensor]"
    takes = f"loss({', '.join(names)})" if single else "loss({blob: tensor, ...})"
    what = ", ".join(dict.fromkeys(term.layer.type for term in terms if term.loss_layer)) or "weighted tops"
    body = [f"        return {values[0]}"]
    if len(values) > 1 or len(body[0]) > _WIDTH:
        if len(values) == 1:
            values = values[0].replace(" / ", "\n            / ").split("\n            ")
        else:
            values[1:] = [f"+ {one}" for one in values[1:]]
        body = ["        return (", *(f"            {one}" for one in values), "        )"]
    return [
        "def build_loss() -> Callable[..., torch.Tensor]:",
        f'    """Caffe\'s {what}: {takes}."""',
        "",
        f"    def loss({arguments}) -> torch.Tensor:",
        *body,
        "",
        "    return loss",
    ]


def _literal(name: str) -> str:
    text = ascii(name)
    return text if '"' in text else f'"{text[1:-1]}"'


def _value(term: LossTerm, names: Sequence[str]) -> str:
    """A term as an expression of the loss's arguments, or of ``blobs``."""
    blobs = list(names) or [f"blobs[{_literal(blob)}]" for blob in term.blobs]
    weight = "" if term.weight == 1 else f"{term.weight!r} * "
    if not term.loss_layer:
        return f"{weight}{blobs[0]}.sum()"
    learns = LOSSES[term.layer.type].learns
    blobs = [
        f"{blob}.detach()" if flag is False and i < learns else blob
        for i, (blob, flag) in enumerate(zip_longest(blobs, propagate_down(term.layer)))
    ]
    return weight + _EXPRESSIONS[term.layer.type](term.layer, *blobs)


def _softmax(layer: Layer, scores: str, labels: str) -> str:
    axis, weights, ignored = class_axis(layer), class_weights(layer), ignore_label(layer)
    inputs = [scores if axis == 1 else f"{scores}.movedim({axis}, 1)", labels]
    if weights is not None:
        inputs.append(f"{scores}.new_tensor([{', '.join(map(repr, weights))}])")
    if ignored is not None:
        inputs.append(f"ignore_index={ignored}")
    if normalization(layer) is Normalization.VALID and weights is None and ignored is None:
        return f"F.cross_entropy({', '.join(inputs)})"
    return _divided(f'F.cross_entropy({", ".join(inputs)}, reduction="sum")', layer, scores, labels)


def _sigmoid(layer: Layer, scores: str, targets: str) -> str:
    ignored = ignore_label(layer)
    kept = "" if ignored is None else f", ({targets}.trunc() != {ignored}).to({scores})"
    total = f'F.binary_cross_entropy_with_logits({scores}, {targets}{kept}, reduction="sum")'
    return _divided(total, layer, scores, targets, f"({targets}.trunc() != {ignored})")


def _divided(total: str, layer: Layer, scores: str, labels: str, kept: str | None = None) -> str:
    """The sum over the labels divided as the layer's normalization says."""
    ignored, axis = ignore_label(layer), 1 if layer.type == "SigmoidCrossEntropyLoss" else class_axis(layer)
    match normalization(layer):
        case Normalization.VALID if ignored is not None:
            return f"{total} / {kept or f'({labels} != {ignored})'}.sum().clamp_min(1)"
        case Normalization.VALID | Normalization.FULL:
            return f"{total} / {labels}.numel()"
        case Normalization.BATCH_SIZE:
            return f"{total} / {f'{scores}.shape[0]' if axis == 1 else f'{scores}.shape[:{axis}].numel()'}"
        case Normalization.NONE:
            return total


def _infogain(layer: Layer, scores: str, labels: str, matrix: str) -> str:
    axis, ignored = class_axis(layer), ignore_label(layer)
    inputs = [scores if axis == 1 else f"{scores}.movedim({axis}, 1)", labels, matrix]
    total = f"infogain_sum({', '.join(inputs)}{'' if ignored is None else f', {ignored}'})"
    return _divided(total, layer, scores, labels)


def _hinge(layer: Layer, scores: str, labels: str) -> str:
    sign = f"(1 - 2 * F.one_hot({labels}, {scores}.shape[1]))"
    square = ".square()" if layer.settings.get("norm") == "L2" else ""
    return f"F.relu(1 + {sign} * {scores}){square}.sum() / {scores}.shape[0]"


def _contrastive(layer: Layer, a: str, b: str, similar: str) -> str:
    legacy = ", legacy=True" if layer.settings.get("legacy_version") else ""
    return f"contrastive_loss({a}, {b}, {similar}, margin={number(layer.settings, 'margin', 1.0)!r}{legacy})"


def _multinomial(_: Layer, probabilities: str, labels: str) -> str:
    floored = f"value_of({probabilities}.clamp_min(1e-20), gradient_of={probabilities})"
    return f'F.nll_loss({floored}.log(), {labels}, reduction="sum") / {probabilities}.shape[0]'


def _smooth_l1(layer: Layer, a: str, b: str, inside: str | None = None, outside: str | None = None) -> str:
    sigma = number(layer.settings, "sigma", 1.0)
    beta = "" if sigma == 1 else f", beta=1 / {sigma!r}**2"
    if inside is None:
        return f'F.smooth_l1_loss({a}, {b}{beta}, reduction="sum") / {a}.shape[0]'
    if outside is None:  # the fork's first version leaves the weights out of the gradient
        weighted = f"value_of({inside} * {a}, gradient_of={a}), value_of({inside} * {b}, gradient_of={b})"
        return f'F.smooth_l1_loss({weighted}{beta}, reduction="sum") / {a}.shape[0]'
    costs = f'F.smooth_l1_loss({inside} * {a}, {inside} * {b}{beta}, reduction="none")'
    return f"({outside} * {costs}).sum() / {a}.shape[0]"


_EXPRESSIONS: dict[str, Callable[..., str]] = {
    "ContrastiveLoss": _contrastive,
    "EuclideanLoss": lambda _, a, b: f'F.mse_loss({a}, {b}, reduction="sum") / (2 * {a}.shape[0])',
    "HingeLoss": _hinge,
    "InfogainLoss": _infogain,
    "MultinomialLogisticLoss": _multinomial,
    "SigmoidCrossEntropyLoss": _sigmoid,
    "SmoothL1Loss": _smooth_l1,
    "SoftmaxWithLoss": _softmax,
}
"""For each loss its expression, from the layer and the expressions of its bottoms."""
