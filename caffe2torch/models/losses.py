"""Which module each of Caffe's loss layers is, and which torch call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from caffe2torch.errors import NetError
from caffe2torch.models.builders import Spec, spec
from caffe2torch.models.loss_modules import (
    CaffeSoftmaxLoss,
    ContrastiveLoss,
    EuclideanLoss,
    HingeLoss,
    InfogainLoss,
    MultinomialLogisticLoss,
    SigmoidCrossEntropyLoss,
    SmoothL1Loss,
)
from caffe2torch.net.layer_rules import nested, number
from caffe2torch.net.loss_settings import (
    class_axis,
    class_weights,
    ignore_label,
    normalization,
    propagate_down,
)
from caffe2torch.net.normalization import Normalization
from caffe2torch.net.shape_arithmetic import MisfitError
from caffe2torch.recipe import Layer

__all__ = ["LOSSES", "LossLayer", "stock_call"]


def _refused(layer: Layer, what: str, **sides: str) -> NetError:
    return NetError(f"layer {layer.name!r}{what}", where=layer.where, **sides)


def _softmax(layer: Layer) -> Spec:
    if len(layer.tops) > 1:
        hint = "give the probabilities by a layer of type Softmax"
        raise _refused(layer, ": Caffe cannot build SoftmaxWithLoss with two tops", hint=hint)
    return spec(
        CaffeSoftmaxLoss,
        class_weights=class_weights(layer),
        ignore_label=ignore_label(layer),
        normalization=normalization(layer),
        axis=class_axis(layer),
    )


def _infogain(layer: Layer) -> Spec:
    if "normalize" in nested(layer.settings, "loss_param"):
        raise _refused(layer, ": Caffe refuses `normalize` for InfogainLoss", hint="use `normalization`")
    if len(layer.bottoms) == 2 and not layer.settings.get("source"):
        raise _refused(layer, ": InfogainLoss needs a matrix", expected="a third bottom or `source`")
    ignored, divided = ignore_label(layer), normalization(layer)
    return spec(InfogainLoss, ignore_label=ignored, normalization=divided, axis=class_axis(layer))


def _sigmoid(layer: Layer) -> Spec:
    return spec(SigmoidCrossEntropyLoss, ignore_label=ignore_label(layer), normalization=normalization(layer))


def _contrastive(layer: Layer) -> Spec:
    legacy = bool(layer.settings.get("legacy_version", False))
    return spec(ContrastiveLoss, margin=number(layer.settings, "margin", 1.0), legacy_version=legacy)


def _smooth_l1(layer: Layer) -> Spec:
    return spec(SmoothL1Loss, sigma=number(layer.settings, "sigma", 1.0))


@dataclass(frozen=True)
class LossLayer:
    """A loss layer: how many bottoms it takes at least and at most, and the module that computes it.

    ``learns`` is the number of bottoms that can get a gradient; Caffe ends its run where another one needs one.
    """

    bottoms: tuple[int, int]
    module: Callable[[Layer], Spec]
    learns: int = 1

    def __call__(self, layer: Layer) -> nn.Module:
        """The module of this layer. Raises ``NetError`` for what Caffe refuses."""
        return self.spec(layer).build()

    def spec(self, layer: Layer) -> Spec:
        """The module's class and arguments. Raises ``NetError`` for what Caffe refuses."""
        few, many = self.bottoms
        if not few <= len(layer.bottoms) <= many:
            found, expected = str(len(layer.bottoms)), str(few) if few == many else f"{few} to {many}"
            raise _refused(layer, f": wrong number of bottoms for {layer.type}", found=found, expected=expected)
        flags = propagate_down(layer)
        for bottom, flag in list(zip(layer.bottoms, flags, strict=True))[self.learns :]:
            if flag is True:
                what = f": Caffe gives {bottom!r} no gradient, and propagate_down asks for one"
                raise _refused(layer, what, hint="state propagate_down: false for it")
        try:
            return self.module(layer)
        except MisfitError as misfit:
            raise _refused(layer, f": {misfit.message}") from None


LOSSES: Mapping[str, LossLayer] = {
    "ContrastiveLoss": LossLayer((3, 3), _contrastive, learns=2),
    "EuclideanLoss": LossLayer((2, 2), lambda _: spec(EuclideanLoss), learns=2),
    "HingeLoss": LossLayer((2, 2), lambda layer: spec(HingeLoss, norm=layer.settings.get("norm", "L1"))),
    "InfogainLoss": LossLayer((2, 3), _infogain),
    "MultinomialLogisticLoss": LossLayer((2, 2), lambda _: spec(MultinomialLogisticLoss)),
    "SigmoidCrossEntropyLoss": LossLayer((2, 2), _sigmoid),
    "SmoothL1Loss": LossLayer((2, 4), _smooth_l1, learns=2),
    "SoftmaxWithLoss": LossLayer((2, 2), _softmax),
}
"""From a layer's type to what builds its module: ``forward(*bottoms)`` is the unweighted loss, its first top."""


def stock_call(layer: Layer) -> str | None:
    """The torch loss that is the same as this layer's, as an expression; ``None`` where there is none.

    The same but for two limits of torch's own: a batch whose labels are all ignored (NaN there, 0 in Caffe), and
    probabilities below ``FLT_MIN``, whose cost Caffe bounds. A ``loss_weight`` is not part of it.

    >>> from caffe2torch.errors import SourceLocation
    >>> settings = {"loss_param": {"ignore_label": 255}}
    >>> place = SourceLocation("net.prototxt", 1, 1)
    >>> layer = Layer("loss", "SoftmaxWithLoss", ("a", "b"), ("loss",), settings, ((),), (), place)
    >>> stock_call(layer)
    'torch.nn.CrossEntropyLoss(ignore_index=255)'
    """
    if layer.type not in ("SoftmaxWithLoss", "SigmoidCrossEntropyLoss"):
        return None
    ignored = ignore_label(layer)
    sums = normalization(layer) is Normalization.NONE
    counts = normalization(layer) is Normalization.VALID or (
        normalization(layer) is Normalization.FULL and ignored is None
    )
    if not (sums or counts):
        return None
    arguments = ['reduction="sum"'] if sums else []
    if layer.type == "SigmoidCrossEntropyLoss":
        return None if ignored is not None else f"torch.nn.BCEWithLogitsLoss({', '.join(arguments)})"
    if class_axis(layer) != 1 or class_weights(layer) is not None:
        return None
    if ignored is not None:
        arguments.insert(0, f"ignore_index={ignored}")
    return f"torch.nn.CrossEntropyLoss({', '.join(arguments)})"
