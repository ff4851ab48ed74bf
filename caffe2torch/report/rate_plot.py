"""The global rate over a run: the stretches that it consists of, and as many points as a faithful curve needs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from caffe2torch.recipe import LrPolicy, PolicyType
from caffe2torch.solver.float32 import round32
from caffe2torch.solver.lr_policy import rate, step_at

__all__ = ["Stretch", "curve", "effective", "stretches"]

MOST_BREAKS = 1000
"""A policy with more steps than this in a run counts as gliding: nobody reads a list of them."""
SAMPLES = 240
_GLIDES = (PolicyType.EXP, PolicyType.INV, PolicyType.POLY, PolicyType.SIGMOID)


@dataclass(frozen=True, slots=True)
class Stretch:
    """Iterations ``first`` to ``last``, both included: at one rate, or gliding from ``begins`` to ``ends``."""

    first: int
    last: int
    begins: float
    ends: float
    glides: bool


def stretches(policy: LrPolicy, iterations: int) -> tuple[Stretch, ...]:
    """A run of ``iterations`` iterations, cut where its rate changes; neighbours of one rate are one stretch.

    >>> policy = LrPolicy(PolicyType.MULTISTEP, base_lr=1.0, gamma=0.5, stepvalues=(10, 30))
    >>> [(part.first, part.last, part.begins) for part in stretches(policy, 40)]
    [(0, 9, 1.0), (10, 29, 0.5), (30, 39, 0.25)]
    """
    found: list[Stretch] = []
    ramp = max(policy.warmup_iter or 0, policy.rampup_interval or 0)
    glides = policy.type in _GLIDES or _count(policy, iterations) > MOST_BREAKS
    cuts = sorted({0, iterations, *(i for i in (ramp, *_breaks(policy, iterations)) if 0 < i < iterations)})
    for first, end in pairwise(cuts):
        part = Stretch(first, end - 1, _at(policy, first), _at(policy, end - 1), first < ramp or glides)
        if part.glides and part.begins == part.ends and _flat(policy, part):
            part = Stretch(first, end - 1, part.begins, part.ends, glides=False)
        before = found[-1] if found else None
        if before and not before.glides and not part.glides and _same(before.ends, part.begins):
            part = Stretch(before.first, part.last, before.begins, part.ends, glides=False)
            found.pop()
        found.append(part)
    return tuple(found)


def curve(policy: LrPolicy, parts: Sequence[Stretch]) -> tuple[tuple[int, float], ...]:
    """Iterations and their rates, to be joined by straight lines: both ends of every stretch, more where it glides.

    Every point is exact. Rates that are no numbers (``poly`` past ``max_iter``) are left out.
    """
    points: dict[int, float] = {}
    for part in parts:
        places = _samples(part.first, part.last) if part.glides else (part.first, part.last)
        points |= {i: _at(policy, i) for i in places}
        if policy.type is PolicyType.SIGMOID and part.glides and policy.gamma:
            near = (round(policy.stepsize + k / abs(policy.gamma) / 2) for k in range(-16, 17))
            points |= {i: _at(policy, i) for i in near if part.first <= i <= part.last}
    return tuple((i, points[i]) for i in sorted(points) if math.isfinite(points[i]))


def effective(rate: float, lr_mult: float) -> float:
    """The rate of a parameter, as Caffe's float32 multiplies it."""
    return round32(rate * round32(lr_mult))


def _at(policy: LrPolicy, iteration: int) -> float:
    return rate(policy, iteration, step_at(policy, iteration))


def _same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


def _flat(policy: LrPolicy, part: Stretch) -> bool:
    """Whether a gliding policy stays where it is: a gamma of 1, a power of 0."""
    return all(_at(policy, i) == part.begins for i in _samples(part.first, part.last))


def _count(policy: LrPolicy, iterations: int) -> int:
    """How many times a policy of steps is due to change."""
    return iterations // policy.stepsize if policy.type is PolicyType.STEP else 0


def _breaks(policy: LrPolicy, iterations: int) -> Iterable[int]:
    """Iterations at which a policy takes a step."""
    match policy.type:
        case PolicyType.STEP if _count(policy, iterations) <= MOST_BREAKS:
            return range(policy.stepsize, iterations, policy.stepsize)
        case PolicyType.MULTISTEP:
            return _fires(policy)
        case PolicyType.MULTIFIXED:
            return (last + 1 for last in policy.stage_iters[:-1])
    return ()


def _fires(policy: LrPolicy) -> Iterator[int]:
    """When each stepvalue takes effect: repeated ones one iteration after the other, none during a warm-up."""
    fires = max(policy.warmup_iter or 0, policy.rampup_interval or 0) - 1
    for value in policy.stepvalues:
        fires = max(fires + 1, value)
        yield fires


def _samples(first: int, last: int) -> Iterator[int]:
    """Iterations spread evenly, and closer and closer towards both ends, where a rate may change fastest."""
    length = last - first
    yield from (first + length * k // SAMPLES for k in range(SAMPLES + 1))
    near = 1
    while near < length:
        yield from (first + near, last - near)
        near = near + 1 + near // 4
