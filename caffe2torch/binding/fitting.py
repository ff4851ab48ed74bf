"""Whether a blob's shape fits a tensor's: the axes that Caffe and torch write differently for the same numbers.

===================  ==========================  ==============================================
layer                Caffe                       torch
===================  ==========================  ==============================================
Convolution          O x I/group x kernel        the same
Deconvolution        I x O/group x kernel        the same (ConvTranspose)
InnerProduct         O x (C*H*W)                 the same; or O x C x H x W of a full-size Conv
InnerProduct         (C*H*W) x O (`transpose`)   transposed
BN, Scale, PReLU     1xC, 1xCx1x1 or no axes     C; one number
Embed                input x O                   the same (Embedding)
===================  ==========================  ==============================================
"""

from __future__ import annotations

from enum import StrEnum
from math import prod

from caffe2torch.recipe import Shape

__all__ = ["Fit", "fit", "spell"]


class Fit(StrEnum):
    """How a blob lies in a tensor."""

    SAME = "the same shape"
    RESHAPED = "other axes, the same order"
    TRANSPOSED = "transposed"
    OPEN = "as far as the net states its sizes"


def fit(blob: Shape | None, tensor: tuple[int, ...], *, transpose: bool = False) -> Fit | None:
    """How a blob of Caffe's shape ``blob`` lies in a tensor of shape ``tensor``; ``None`` if it does not.

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


def spell(shape: Shape | None) -> str:
    """A shape as people write it.

    >>> spell((64, None, 3, 3)), spell(()), spell(None)
    ('64x?x3x3', '()', 'unknown')
    """
    if shape is None:
        return "unknown"
    return "x".join("?" if size is None else str(size) for size in shape) or "()"


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
