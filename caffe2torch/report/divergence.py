"""How far stock torch would leave Caffe's path: both walk along one sequence of synthetic gradients, side by side.

The *stock translation* is what a careful person writes without this tool: the ``torch.optim`` class of that name, each
group's effective ``lr`` set at every iteration, its effective ``weight_decay``, ``momentum`` or betas, ``eps`` for
``delta``, gradients averaged over ``iter_size``. What is left between the two is the form of the update (``walk.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from caffe2torch.recipe import PolicyType, Regularization, SolverSettings, SolverType
from caffe2torch.report.simulate import CAFFE, STOCK, Array, walk
from caffe2torch.solver.requirements import has_momentum, ramps

__all__ = ["Divergence", "differences", "diverge"]

NUMBERS = 64
"""Weights per group. They start at 0, so that for SGD the size of the gradients plays no part in the outcome."""
_ROUNDING = 1e-11  # less is what double precision makes of one formula written in two ways
_CHUNK = 4096


@dataclass(frozen=True, slots=True)
class Divergence:
    """Per group, the largest distance between the two paths over the farthest that Caffe's has been by then.

    ``distances[group][k]`` is that after iteration ``iterations[k]``.
    """

    multipliers: tuple[tuple[float, float], ...]
    iterations: tuple[int, ...]
    distances: tuple[tuple[float, ...], ...]


def differences(solver: SolverSettings) -> tuple[str, ...]:
    """What stock torch does otherwise under this solver, one clause each; empty where it follows Caffe exactly.

    >>> from caffe2torch.recipe import LrPolicy
    >>> policy = LrPolicy(PolicyType.STEP, base_lr=0.1, gamma=0.1, stepsize=100)
    >>> differences(SolverSettings(SolverType.SGD, policy, momentum=0.9))
    ("at a change of the rate, torch's momentum forgets the rates that it was made with",)
    """
    found = []
    if has_momentum(solver) and solver.policy.type is not PolicyType.FIXED:
        found.append("at a change of the rate, torch's momentum forgets the rates that it was made with")
    if solver.type is SolverType.ADAM:
        found.append("torch's Adam adds eps after the bias correction, Caffe adds delta before it")
    if solver.regularization is Regularization.L1:
        found.append("torch's weight_decay is L2, Caffe's is L1 here")
    if ramps(solver):
        found.append("torch's schedulers leave momentum and weight_decay as they are")
    return tuple(found)


def diverge(
    solver: SolverSettings,
    multipliers: Sequence[tuple[float, float]],
    at: Iterable[int],
    *,
    seed: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> Divergence:
    """Walk both paths and compare them after the iterations ``at``.

    ``multipliers`` are the ``(lr_mult, decay_mult)`` of each group. The gradients are independent and normal, of size
    1. Clipping is left out, since what it does depends on the size of real gradients. ``progress`` is called now and
    then with how many iterations were made.
    """
    wanted = sorted(set(at))
    count = wanted[-1] + 1
    random = np.random.default_rng(seed)

    def gradients() -> Iterator[Array]:
        for first in range(0, count, _CHUNK):
            size = min(_CHUNK, count - first)
            progress(size)
            yield from random.standard_normal((size, len(multipliers) * NUMBERS))

    farthest = np.zeros(len(multipliers))
    distances: list[list[float]] = []
    due = iter(wanted)
    next_one = next(due)
    columns = [multiplier for multiplier in multipliers for _ in range(NUMBERS)]
    for iteration, weights in enumerate(walk(solver, columns, gradients())):
        if iteration == next_one:
            by_group = weights.reshape(2, len(multipliers), NUMBERS)
            caffe, stock = by_group[CAFFE], by_group[STOCK]
            farthest = np.maximum(farthest, np.abs(caffe).max(axis=1))
            apart = np.abs(caffe - stock).max(axis=1)
            apart[apart <= _ROUNDING * farthest] = 0.0
            distances.append(np.divide(apart, farthest, out=np.zeros_like(apart), where=farthest != 0).tolist())
            next_one = next(due, -1)
    return Divergence(tuple(multipliers), tuple(wanted), tuple(zip(*distances, strict=True)))
