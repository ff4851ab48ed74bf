"""Caffe's updates and stock torch's, side by side over one sequence of gradients, many weights at once.

The two differ in few places, so each solver is written once, with both worlds as rows of one array: ``CAFFE`` and
``STOCK``. Everything is in double precision; the plain, scalar form of the same rules is ``solver/update_rules.py``.

Sources: ``src/caffe/solvers/*.cpp`` of BVLC Caffe, ``torch/optim/*.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from caffe2torch.recipe import PolicyType, Regularization, SolverSettings, SolverType
from caffe2torch.solver.float32 import round32
from caffe2torch.solver.lr_policy import momentum_at, rates, weight_decay_at
from caffe2torch.solver.requirements import has_momentum, ramps

__all__ = ["CAFFE", "STOCK", "Divergence", "differences", "diverge", "walk"]

Array = NDArray[np.float64]
Rule = Callable[[Array, Array, Array], None]
"""Moves the weights by a gradient (which it may spoil), at the rates and the momentum of an iteration."""
CAFFE, STOCK = 0, 1
_FOREVER = 2**62


def walk(
    solver: SolverSettings, multipliers: Sequence[tuple[float, float]], gradients: Iterable[Array]
) -> Iterator[Array]:
    """The weights after each iteration, as ``[CAFFE or STOCK, number]``, from 0 on; the same array each time.

    ``multipliers`` has a pair for each number, ``gradients`` an array of all numbers for each iteration.
    """
    lr_mult, decay_mult = np.array(multipliers, dtype=np.float64).T
    weights = np.zeros((2, len(multipliers)))
    g = np.zeros_like(weights)
    rule = _RULES[solver.type](solver, weights)
    l1 = solver.regularization is Regularization.L1
    decay = np.full((2, 1), round32(solver.weight_decay)) * decay_mult
    momentum = np.full((2, 1), round32(solver.momentum))
    for iteration, (rate, gradient) in enumerate(zip(rates(solver.policy, _FOREVER), gradients, strict=False)):
        if ramps(solver):
            decay[CAFFE] = weight_decay_at(solver, iteration) * decay_mult
            momentum[CAFFE] = momentum_at(solver, iteration, rate)
        np.multiply(weights, decay, out=g)
        if l1:
            g[CAFFE] = np.sign(weights[CAFFE]) * decay[CAFFE]
        g += gradient
        with np.errstate(all="ignore"):  # infinite and no numbers are what Caffe makes of them
            rule(g, rate * lr_mult, momentum)
        yield weights


def _sgd(solver: SolverSettings, weights: Array) -> Rule:
    """h = momentum*h + a*g, w -= b*h: Caffe has the rate in a, torch in b. Nesterov looks ahead by one momentum."""
    h = np.zeros_like(weights)
    inside, outside = np.ones_like(weights), np.ones_like(weights)
    nesterov = solver.type is SolverType.NESTEROV

    def move(g: Array, rate: Array, momentum: Array) -> None:
        nonlocal h
        inside[CAFFE] = outside[STOCK] = rate
        h *= momentum
        if nesterov:
            h += inside * g
            np.subtract(weights, rate * g + momentum * outside * h, out=weights)
        else:
            g *= inside
            h += g
            np.subtract(weights, outside * h, out=weights)

    return move


def _adam(solver: SolverSettings, weights: Array) -> Rule:
    """Caffe adds delta to sqrt(v), torch to the corrected sqrt(v / (1 - momentum2^t))."""
    m, v, t = np.zeros_like(weights), np.zeros_like(weights), 0
    second, delta = round32(solver.momentum2), np.full((2, 1), round32(solver.delta))

    def move(g: Array, rate: Array, momentum: Array) -> None:
        nonlocal m, v, t
        t += 1
        m += (1.0 - momentum) * (g - m)
        v += (1.0 - second) * (g * g - v)
        root = (1.0 - second**t) ** 0.5
        delta[STOCK] = delta[CAFFE] * root
        np.subtract(weights, rate * (root / (1.0 - momentum**t)) * m / (np.sqrt(v) + delta), out=weights)

    return move


def _adagrad(solver: SolverSettings, weights: Array) -> Rule:
    h = np.zeros_like(weights)
    delta = round32(solver.delta)

    def move(g: Array, rate: Array, momentum: Array) -> None:
        nonlocal h
        del momentum
        h += g * g
        np.subtract(weights, rate * g / (np.sqrt(h) + delta), out=weights)

    return move


def _rmsprop(solver: SolverSettings, weights: Array) -> Rule:
    h = np.zeros_like(weights)
    memory, delta = round32(solver.rms_decay), round32(solver.delta)

    def move(g: Array, rate: Array, momentum: Array) -> None:
        nonlocal h
        del momentum
        h += (1.0 - memory) * (g * g - h)
        np.subtract(weights, rate * g / (np.sqrt(h) + delta), out=weights)

    return move


def _adadelta(solver: SolverSettings, weights: Array) -> Rule:
    seen, made = np.zeros_like(weights), np.zeros_like(weights)
    delta = round32(solver.delta)

    def move(g: Array, rate: Array, momentum: Array) -> None:
        nonlocal seen, made
        seen += (1.0 - momentum) * (g * g - seen)
        u = g * np.sqrt((made + delta) / (seen + delta))
        made += (1.0 - momentum) * (u * u - made)
        np.subtract(weights, rate * u, out=weights)

    return move


_RULES: dict[SolverType, Callable[[SolverSettings, Array], Rule]] = {
    SolverType.SGD: _sgd,
    SolverType.NESTEROV: _sgd,
    SolverType.ADAGRAD: _adagrad,
    SolverType.RMSPROP: _rmsprop,
    SolverType.ADADELTA: _adadelta,
    SolverType.ADAM: _adam,
}


# How far stock torch would leave Caffe's path: both walk along one sequence of synthetic gradients, side by side.
#
# The *stock translation* is what a careful person writes without this tool: the ``torch.optim`` class of that name,
# each
# group's effective ``lr`` set at every iteration, its effective ``weight_decay``, ``momentum`` or betas, ``eps`` for
# ``delta``, gradients averaged over ``iter_size``. What is left between the two is the form of the update
# (``walk.py``).

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
