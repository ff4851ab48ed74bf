"""What Caffe's loss layers ask of their inputs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from caffe2torch.errors import Caffe2TorchError

__all__ = ["class_numbers", "classes_first", "in_range", "no_gradient", "shaped", "sizes"]


def classes_first(scores: Tensor, axis: int) -> tuple[Tensor, int]:
    """The scores with the classes on axis 1, where torch wants them, and the product of the axes before Caffe's."""
    own = axis + scores.dim() if axis < 0 else axis
    if not 1 <= own < scores.dim():
        raise Caffe2TorchError(
            f"axis {axis} of the scores cannot hold the classes", found=sizes(scores.shape), expected="an axis after N"
        )
    return scores.movedim(own, 1), math.prod(scores.shape[:own])


def class_numbers(labels: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Class numbers as torch wants them: whole, and in this shape."""
    return shaped(labels, shape, "labels").long()


def shaped(tensor: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    """The tensor in this shape; axes of size 1 apart it must have it already."""
    if tuple(tensor.shape) == shape:
        return tensor
    if [size for size in tensor.shape if size != 1] != [size for size in shape if size != 1]:
        verb = "does" if name in ("matrix H", "second input") else "do"
        other = "scores" if name in ("labels", "targets", "matrix H") else "first input"
        raise Caffe2TorchError(f"the {name} {verb} not fit the {other}", found=sizes(tensor.shape), expected=str(shape))
    return tensor.reshape(shape)


def sizes(shape: torch.Size) -> str:
    """A shape as text.

    >>> sizes(torch.Size([2, 3]))
    '(2, 3)'
    """
    return str(tuple(shape))


def no_gradient(tensor: Tensor, name: str) -> Tensor:
    """The tensor, which must not want a gradient: Caffe would end its run there."""
    if tensor.requires_grad and torch.is_grad_enabled():
        raise Caffe2TorchError(f"Caffe gives the {name} no gradient", hint=f"detach the {name}")
    return tensor


def in_range(labels: Tensor, classes: int) -> Tensor:
    """The labels, each of which must be a class; else an ``IndexError``, as torch's own losses have it."""
    if bool(((labels < 0) | (labels >= classes)).any()):
        raise IndexError(f"a label is out of range: there are {classes} classes")
    return labels
