"""Where each number of a Caffe blob stands in the tensor that it became, and which shapes can hold which.

=====================================  ===========================================================================
blob                                   tensor
=====================================  ===========================================================================
Convolution, Deconvolution, Embed,     the same numbers in the same order, whatever axes of size 1 or flattened axes
InnerProduct, Scale, Bias, PReLU, RNN  there are (a fully connected layer as a convolution, ``1xCx1x1`` as ``C``)
InnerProduct with ``transpose: true``  transposed: Caffe keeps inputs x outputs, torch outputs x inputs
LSTM, as ``nn.LSTM``                   the rows of gates i, f, o, g in the order i, f, g, o
=====================================  ===========================================================================

Weights, history and fillers all go through here, so that they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from math import prod
from typing import Any

from torch import Tensor, nn

from caffe2torch.binding.graph import TensorReference
from caffe2torch.binding.plan import BoundBlob, Storage
from caffe2torch.recipe import LearnableBlob, NetRecipe, Shape

__all__ = [
    "DIRECTIONS",
    "Fit",
    "Layout",
    "blob_transposed",
    "caffe_shape",
    "fit",
    "layout_of",
    "second_bias",
    "stored",
    "to_torch",
]


class Layout(StrEnum):
    """How a blob's numbers are ordered in its tensor."""

    SAME = "same"
    TRANSPOSED = "transposed"
    GATES = "gates"


def layout_of(recipe: NetRecipe, bound: BoundBlob, modules: Mapping[str, nn.Module]) -> Layout:
    """The layout of a bound blob; ``modules`` are the model's, by their names without wrappers.

    An LSTM's tensors in a module that is not torch's are taken to be Caffe's own.
    """
    if blob_transposed(recipe, bound.blob) != (bound.storage is Storage.TRANSPOSED):
        return Layout.TRANSPOSED
    if bound.blob.layer_type == "LSTM" and bound.name is not None:
        module = modules.get(bound.name.rpartition(".")[0])
        return Layout.GATES if isinstance(module, nn.LSTM | nn.LSTMCell) else Layout.SAME
    return Layout.SAME


def to_torch(values: Any, layout: str, shape: tuple[int, ...]) -> Any:
    """A blob's array or tensor as its parameter of ``shape`` has it; a view where the layout allows one.

    >>> import numpy as np
    >>> to_torch(np.arange(6.0).reshape(2, 3), Layout.TRANSPOSED, (3, 2)).tolist()
    [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    """
    match layout:
        case "transposed":
            values = values.reshape(-1, shape[0]).T
        case "gates":  # of an LSTM: i, f, o, g in Caffe; i, f, g, o in torch
            values = values.reshape(4, -1)[[0, 1, 3, 2]]
    return values.reshape(shape)


def caffe_shape(bound: BoundBlob, layout: Layout, tensor: Tensor) -> tuple[int, ...]:
    """The blob's shape on Caffe's side; sizes that the prototxt leaves open, or has otherwise, are the tensor's."""
    blob = bound.blob
    if bound.storage is not Storage.OTHER and blob.shape is not None and None not in blob.shape:
        return tuple(size for size in blob.shape if size is not None)
    shape = tuple(tensor.shape)
    if blob.layer_type == "InnerProduct" and blob.role == "weight":
        shape = (shape[0], prod(shape[1:]))
        return shape[::-1] if layout is Layout.TRANSPOSED else shape
    return shape


def second_bias(bound: BoundBlob) -> str | None:
    """The bias that torch's recurrent layers add to the one that Caffe's have."""
    if bound.blob.layer_type not in ("LSTM", "RNN") or bound.name is None or "bias_ih" not in bound.name:
        return None
    return bound.name.replace("bias_ih", "bias_hh")


def blob_transposed(recipe: NetRecipe, blob: LearnableBlob) -> bool:
    """Whether an InnerProduct keeps this weight as input x output (``transpose: true``)."""
    if blob.layer_type != "InnerProduct" or blob.role != "weight":
        return False
    return any(layer.name == blob.layer and bool(layer.settings.get("transpose")) for layer in recipe.layers)


DIRECTIONS = (".weight_v", ".weight_orig", ".weight.original1", ".weight.original")
"""How ``weight_norm``, ``spectral_norm`` and parametrizations call what has the shape of the weight they compute."""


def stored(recipe: NetRecipe, blob: LearnableBlob, tensor: TensorReference) -> tuple[Storage, Fit] | None:
    """How a tensor of the model stores a blob, ``None`` if it cannot.

    A fully connected layer's weight may stand transposed in a module that is not torch's own. Where sizes do not show
    whether it does, that is left undecided; and so it is where torch computes the weight from the tensor.
    """
    usual = fit(blob.shape, tensor.sizes, transpose=blob_transposed(recipe, blob))
    if str(tensor.key).endswith(DIRECTIONS):
        return None if usual is None else (Storage.UNDECIDED, usual)
    if tensor.transposed is False or blob.layer_type != "InnerProduct" or blob.role != "weight":
        return None if usual is None else (Storage.USUAL, usual)
    turned = fit(blob.shape, tensor.sizes, transpose=not blob_transposed(recipe, blob))
    if tensor.transposed is None and usual is not None:
        return Storage.UNDECIDED if turned is not None and len(tensor.sizes) == 2 else Storage.USUAL, usual
    return None if turned is None or len(tensor.sizes) != 2 else (Storage.TRANSPOSED, turned)


# Whether a blob's shape fits a tensor's: the axes that Caffe and torch write differently for the same numbers.
#
# ===================  ==========================  ==============================================
# layer                Caffe                       torch
# ===================  ==========================  ==============================================
# Convolution          O x I/group x kernel        the same
# Deconvolution        I x O/group x kernel        the same (ConvTranspose)
# InnerProduct         O x (C*H*W)                 the same; or O x C x H x W of a full-size Conv
# InnerProduct         (C*H*W) x O (`transpose`)   transposed
# BN, Scale, PReLU     1xC, 1xCx1x1 or no axes     C; one number
# Embed                input x O                   the same (Embedding)
# ===================  ==========================  ==============================================


class Fit(StrEnum):
    """How a blob stands in a tensor."""

    SAME = "the same shape"
    RESHAPED = "other axes, the same order"
    TRANSPOSED = "transposed"
    OPEN = "as far as the net states its sizes"


def fit(blob: Shape | None, tensor: tuple[int, ...], *, transpose: bool = False) -> Fit | None:
    """How a blob of Caffe's shape ``blob`` stands in a tensor of shape ``tensor``; ``None`` if it does not.

    Axes of length one may come and go, and neighbouring axes after the first may be one axis on the other side; the
    order of the numbers is the same then. Sizes that the net leaves open fit anything.

    >>> fit((1, 64, 1, 1), (64,)), fit((4096, 25088), (4096, 512, 7, 7))
    (<Fit.RESHAPED: 'other axes, the same order'>, <Fit.RESHAPED: 'other axes, the same order'>)
    >>> fit((64, 3, 7, 7), (3, 64, 7, 7)) is None
    True
    """
    if blob is None:
        return Fit.OPEN
    if transpose and len(blob) == 2:
        turned = fit((blob[1], blob[0]), tensor)
        return turned if turned in (None, Fit.OPEN) else Fit.TRANSPOSED
    known = tuple(size for size in blob if size is not None)
    if len(known) < len(blob):
        return Fit.OPEN if _open_fit(blob, tensor) else None
    if known == tensor:
        return Fit.SAME
    ours, theirs = (tuple(size for size in shape if size != 1) for shape in (known, tensor))
    if ours == theirs:
        return Fit.RESHAPED if _same_front(known, tensor) else None
    if known[:1] != tensor[:1]:
        return None
    return Fit.RESHAPED if _merged(ours, theirs) or _merged(theirs, ours) else None


def _same_front(blob: tuple[int, ...], tensor: tuple[int, ...]) -> bool:
    """A vector fits a vector; with two axes or more on both sides, the first counts outputs and must agree."""
    if len(blob) < 2 or len(tensor) < 2:
        return True
    return blob[0] == tensor[0]


def _merged(fine: tuple[int, ...], coarse: tuple[int, ...]) -> bool:
    """Whether ``coarse`` is ``fine`` with neighbouring axes multiplied together."""
    sizes = iter(fine)
    for size in coarse:
        product = 1
        while product < size:
            product *= next(sizes, size + 1)
        if product != size:
            return False
    return next(sizes, None) is None


def _open_fit(blob: Shape, tensor: tuple[int, ...]) -> bool:
    known = [size for size in blob if size is not None]
    if len(blob) == len(tensor):
        return all(size is None or size == other for size, other in zip(blob, tensor, strict=True))
    if blob and tensor and blob[0] not in (None, 1) and blob[0] != tensor[0]:
        return False
    return prod(tensor) % max(1, prod(known)) == 0
