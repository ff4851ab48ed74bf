"""The norm that clipping compares: of all gradients together, however large they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["gradient_norm"]

ROW = 16384


def gradient_norm(gradients: Sequence[torch.Tensor]) -> float:
    """The L2 norm of all ``gradients`` as one vector, right to 1e-6. They are dense, and none is written to.

    Torch's own norm of 10^8 numbers, VGG-16's fc6, is 1 % short on a CPU; Caffe leaves a blob's sum to its BLAS
    (``SGDSolver::ClipGradients`` in BVLC's ``sgd_solver.cpp``).

    >>> gradient_norm([torch.full((3, 4), 1.0), torch.full((13,), -1.0)])
    5.0
    """
    parts: list[torch.Tensor] = []
    for gradient in gradients:
        rows = gradient.numel() // ROW
        if rows < 8:
            parts.append(gradient)
        else:  # by the norms of its rows: a single float32 sum of so many squares would lose some
            head, *tail = torch.split(_flat(gradient), rows * ROW)
            parts += [torch.linalg.vector_norm(head.view(rows, ROW), dim=1), *tail]
    return float(torch.nn.utils.get_total_norm(parts))


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """All numbers in a row, in the order in which they lie, so that a dense tensor is not copied."""
    if not tensor.is_contiguous():
        tensor = tensor.permute(sorted(range(tensor.ndim), key=tensor.stride, reverse=True))
    return tensor.flatten()
