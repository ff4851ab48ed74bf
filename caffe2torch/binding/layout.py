"""Where each number of a Caffe blob lies in the tensor that it became: the few layouts in which the two differ.

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

from caffe2torch.binding.plan import BoundBlob
from caffe2torch.binding.tensor_matching import blob_transposed
from caffe2torch.recipe import LearnableBlob, TrainingRecipe

__all__ = ["Layout", "caffe_shape", "layout_of", "second_bias", "to_torch"]


class Layout(StrEnum):
    """How a blob's numbers are ordered in its tensor."""

    SAME = "same"
    TRANSPOSED = "transposed"
    GATES = "gates"


def layout_of(recipe: TrainingRecipe, bound: BoundBlob, modules: Mapping[str, nn.Module]) -> Layout:
    """The layout of a bound blob; ``modules`` are the model's, by their names without wrappers.

    An LSTM's tensors in a module that is not torch's are taken to be Caffe's own.
    """
    if blob_transposed(recipe, bound.blob):
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


def caffe_shape(blob: LearnableBlob, layout: Layout, tensor: Tensor) -> tuple[int, ...]:
    """The blob's shape on Caffe's side; sizes that the prototxt leaves open are taken from the tensor."""
    if blob.shape is not None and None not in blob.shape:
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
