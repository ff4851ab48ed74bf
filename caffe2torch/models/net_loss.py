"""The loss of a whole net: every top with a weight, summed as ``Net::ForwardFromTo`` does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from caffe2torch.errors import Caffe2TorchError, NetError, UnsupportedError
from caffe2torch.models.builders import BUILDERS
from caffe2torch.models.losses import LOSSES
from caffe2torch.net.loss_settings import is_loss, loss_weights, propagate_down
from caffe2torch.recipe import Layer, NetRecipe

__all__ = ["LossTerm", "NetLoss", "build_loss", "loss_terms"]


@dataclass(frozen=True, slots=True)
class LossTerm:
    """A term of the net's loss: ``weight`` times a loss of ``blobs``, or times the sum of the one blob.

    ``loss_layer`` is whether ``layer`` computes the loss from ``blobs``, its bottoms; otherwise ``blobs`` is the one
    top that counts.
    """

    layer: Layer
    weight: float
    blobs: tuple[str, ...]
    loss_layer: bool


def loss_terms(recipe: NetRecipe) -> tuple[LossTerm, ...]:
    """What the net's loss adds up, in the order of the layers: every top whose weight is not 0.

    Where all weights are 0, the loss layers themselves, with weight 0, as Caffe trains such a net.

    Raises:
        NetError: The net has no loss, or weights that Caffe refuses.
        UnsupportedError: A loss layer of a fork that is not translated.
    """
    terms = [term for layer in recipe.layers for term in _terms_of(layer)]
    counted = [term for term in terms if term.weight != 0] or terms
    if not counted:
        raise NetError(
            f"net {recipe.net_name!r} has no loss",
            expected="a loss layer, or a top with a loss_weight",
            hint="a deploy.prototxt has none; give the prototxt that was trained",
        )
    for term in counted:
        if term.loss_layer and term.layer.type not in LOSSES:
            raise UnsupportedError(
                f"layer {term.layer.name!r}: the loss {term.layer.type} is not translated",
                where=term.layer.where,
                expected=", ".join(LOSSES),
                hint="build_model(recipe).loss computes it" if term.layer.type in BUILDERS else None,
            )
    return tuple(counted)


def _terms_of(layer: Layer) -> list[LossTerm]:
    weights = loss_weights(layer)
    if not is_loss(layer):
        tops = zip(layer.tops, weights, strict=True)
        return [LossTerm(layer, weight, (top,), False) for top, weight in tops if weight != 0]
    for top, weight in list(zip(layer.tops, weights, strict=False))[1:]:
        if weight != 0:
            raise UnsupportedError(
                f"layer {layer.name!r}: a loss_weight on the second top {top!r} of a loss is not translated",
                where=layer.where,
            )
    return [LossTerm(layer, weights[0], layer.bottoms, True)]


class NetLoss(nn.Module):
    """The loss of a net, with its loss weights, as a torch module: what ``caffe2torch.build_loss`` gives.

    Attributes:
        terms: What it adds up.
        blobs: The blobs that it needs, each once.

    Args:
        terms: As ``loss_terms`` gives them.
    """

    def __init__(self, terms: tuple[LossTerm, ...]) -> None:
        super().__init__()
        self.terms = terms
        self.blobs = tuple(dict.fromkeys(blob for term in terms for blob in term.blobs))
        self.losses = nn.ModuleList(
            LOSSES[term.layer.type](term.layer) if term.loss_layer else nn.Identity() for term in terms
        )

    def forward(self, *inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
        """The weighted loss of a batch, a scalar.

        Args:
            inputs: One mapping from blob to tensor; or, where the net has a single loss layer, its bottoms in their
                order: ``loss(scores, labels)``.

        Raises:
            Caffe2TorchError: A blob is missing, or the blobs do not fit the layer.
        """
        blobs = self._named(inputs)
        values = [
            term.weight * self._value(term, loss, blobs) for term, loss in zip(self.terms, self.losses, strict=True)
        ]
        return torch.stack(values).sum() if len(values) > 1 else values[0]

    def extra_repr(self) -> str:
        """The terms, for ``print``."""
        return ", ".join(f"{term.weight:g} * {term.layer.name}({', '.join(term.blobs)})" for term in self.terms)

    def _named(self, inputs: tuple[Tensor | Mapping[str, Tensor], ...]) -> Mapping[str, Tensor]:
        first = inputs[0] if inputs else {}
        if len(inputs) <= 1 and isinstance(first, Mapping):
            if missing := [blob for blob in self.blobs if blob not in first]:
                raise Caffe2TorchError(
                    "blobs of the loss are missing", found=", ".join(map(str, first)), expected=", ".join(missing)
                )
            return first
        tensors = [one for one in inputs if isinstance(one, Tensor)]
        if len(self.terms) > 1 or len(tensors) != len(inputs) or len(inputs) != len(self.terms[0].blobs):
            expected = f"a mapping with {', '.join(self.blobs)}"
            if len(self.terms) == 1:
                expected += f", or {len(self.blobs)} tensors in this order"
            raise Caffe2TorchError("these are not the loss's inputs", found=f"{len(inputs)} inputs", expected=expected)
        return dict(zip(self.terms[0].blobs, tensors, strict=True))

    @staticmethod
    def _value(term: LossTerm, loss: nn.Module, blobs: Mapping[str, Tensor]) -> Tensor:
        tensors = [blobs[blob] for blob in term.blobs]
        if not term.loss_layer:
            return tensors[0].sum()
        flags = propagate_down(term.layer)
        tensors = [one.detach() if flag is False else one for one, flag in zip(tensors, flags, strict=True)]
        try:
            value: Tensor = loss(*tensors)
        except Caffe2TorchError as error:
            error.where = error.where or term.layer.where
            raise
        return value


def build_loss(recipe: NetRecipe) -> NetLoss:
    """The net's whole loss as a torch module, with Caffe's divisors, ignored labels and loss weights.

    ``loss(scores, labels)`` takes the bottoms of the loss layer where the net has one; ``loss({blob: tensor, ...})``
    always works. Labels may have the shape that torch wants or Caffe's own.

    The matrix of an ``InfogainLoss`` that its ``source`` holds is not read: set ``loss.losses[0].matrix``.

    Args:
        recipe: The net of the phase that trains.

    Raises:
        NetError: The net has no loss, or one that Caffe refuses.
        UnsupportedError: A loss layer of a fork that is not translated.

    >>> import math, pathlib, tempfile, torch, caffe2torch
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "net.prototxt"
    >>> _ = file.write_text('''
    ...     layer { name: "d" type: "Input" top: "x" top: "y" input_param { shape { dim: 2 dim: 3 } shape { dim: 2 } } }
    ...     layer { name: "loss" type: "SoftmaxWithLoss" bottom: "x" bottom: "y" loss_weight: 2 }''')
    >>> loss = caffe2torch.build_loss(caffe2torch.read_recipe(file))
    >>> round(loss(torch.zeros(2, 3), torch.tensor([0, 2])).item() / math.log(3), 4)
    2.0
    """
    return NetLoss(loss_terms(recipe))
