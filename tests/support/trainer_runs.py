"""What the tests of trainers share: the data of ``sharded_runs.train`` as a dataset, and the comparison with it."""

from __future__ import annotations

from pathlib import Path

import torch
from sharded_runs import BATCH, ITERATIONS, net, train, translated, weights
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def batches(size: int = BATCH, iterations: range = range(ITERATIONS)) -> DataLoader[tuple[torch.Tensor, ...]]:
    """The batches that ``train`` takes, two passes an iteration, in its order."""
    inputs, labels = [], []
    for iteration in iterations:
        for k in range(2):
            generator = torch.Generator().manual_seed(10 * iteration + k)
            inputs.append(torch.randn(BATCH, 30, generator=generator))
            labels.append(torch.randint(3, (BATCH,), generator=generator))
    return DataLoader(TensorDataset(torch.cat(inputs), torch.cat(labels)), size)


def trained_by_a_plain_loop(folder: Path, solver: str, **options: object) -> nn.Module:
    """The standard: the same batches in torch's own loop, which sums the gradients of two passes."""
    model = net()
    train(translated(folder, model, solver, **options), model, range(ITERATIONS))
    return model


def apart(found: nn.Module | dict[str, torch.Tensor], right: nn.Module) -> float:
    """The largest difference of a weight as a part of the largest movement."""
    ours, theirs, before = weights(found) if isinstance(found, nn.Module) else found, weights(right), weights(net())
    movement = max(float((theirs[name] - before[name]).abs().max()) for name in theirs)
    return max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) / movement
