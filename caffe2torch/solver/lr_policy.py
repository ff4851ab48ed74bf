"""The learning rate at an iteration, in Caffe's own float32 and in its order of operations.

Sources: BVLC's ``SGDSolver::GetLearningRate`` (``src/caffe/solvers/sgd_solver.cpp``); the same function of Intel's
fork (``multifixed``, warm-up) and of NVIDIA's 0.17 (ramp-up, ``min_lr``), and its ``GetMomentum`` and
``GetWeightDecay``. Nothing here keeps state: the one counter that Caffe keeps, ``current_step``, goes in and comes out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from caffe2torch.recipe import LrPolicy, PolicyType, Ramp, SolverSettings
from caffe2torch.solver.float32 import round32 as f

__all__ = ["momentum_at", "next_step", "rate", "rates", "step_at", "weight_decay_at"]


def rate(policy: LrPolicy, iteration: int, current_step: int = 0) -> float:
    """The global rate with which iteration ``iteration`` (the first is 0) updates the weights, a float32 value.

    ``current_step`` is the counter *after* ``next_step`` has seen this iteration, as Caffe raises it before it
    evaluates and as ``.solverstate`` records it; only ``multistep`` reads it. As in Caffe the rate may be NaN or
    infinite (``poly`` past ``max_iter``); no argument makes this function raise on a policy that ``read_solver`` let
    through. ``plateau``, which follows the loss, is what Caffe does at a given ``current_step``.

    >>> rate(LrPolicy(PolicyType.STEP, base_lr=0.1, gamma=0.5, stepsize=10), 25)
    0.02500000037252903
    """
    base, gamma, power, i = f(policy.base_lr), f(policy.gamma), f(policy.power), f(iteration)
    floor = f(policy.min_lr or 0.0)
    if policy.warmup_iter is not None and iteration < policy.warmup_iter:
        start, left = f(policy.warmup_start_lr), f(policy.warmup_iter - iteration)
        lr = f(f(f(i * base) + f(left * start)) / f(policy.warmup_iter))
    elif policy.rampup_interval is not None and iteration < policy.rampup_interval:
        start, part = f(policy.rampup_lr), f(i / f(policy.rampup_interval))
        lr = f(start + f(f(f(base - start) * part) * part))
    else:
        match policy.type:
            case PolicyType.FIXED:
                lr = base
            case PolicyType.STEP:  # float to the power of int is computed in double by C++, unlike float to float
                lr = f(base * _power(gamma, iteration // policy.stepsize))
            case PolicyType.EXP:
                lr = f(base * _power(gamma, iteration))
            case PolicyType.MULTISTEP | PolicyType.PLATEAU:
                lr = f(base * _power(gamma, current_step))
            case PolicyType.INV:
                lr = f(base * f(_power(f(1.0 + f(gamma * i)), -power)))
            case PolicyType.POLY if policy.min_lr is None:
                left = f(1.0 - f(_quotient(i, f(policy.max_iter))))
                lr = f(base * f(_power(left, power)))
            case PolicyType.POLY:  # NVIDIA's, which ends at min_lr and knows no max_iter of 0
                left = f(1.0 - f(i / f(max(policy.max_iter, 1))))
                lr = f(f(f(base - floor) * f(_power(left, power))) + floor)
            case PolicyType.SIGMOID:
                lr = f(base * f(1.0 / f(1.0 + f(_exp(f(-gamma * f(i - f(policy.stepsize))))))))
            case PolicyType.MULTIFIXED:
                stages = zip(policy.stage_lrs, policy.stage_iters, strict=True)
                lr = f(next((lr for lr, last in stages if iteration <= last), policy.stage_lrs[-1]))
    if policy.min_lr is not None and lr < floor:  # a NaN is not less, and stays
        return floor
    return lr


def next_step(policy: LrPolicy, iteration: int, current_step: int) -> int:
    """Caffe's counter after it evaluated the rate of ``iteration``, from the counter before.

    ``multistep`` rises by at most one an iteration, so repeated stepvalues fire one after the other, and a restored
    counter that lags catches up. ``step`` sets it for the record. During a fork's warm-up it rests.
    """
    if iteration < max(policy.warmup_iter or 0, policy.rampup_interval or 0):
        return current_step
    if policy.type is PolicyType.STEP:
        return iteration // policy.stepsize
    if policy.type is PolicyType.MULTISTEP and current_step < len(policy.stepvalues):
        return current_step + (iteration >= policy.stepvalues[current_step])
    return current_step


def step_at(policy: LrPolicy, iteration: int) -> int:
    """The counter after ``iteration`` in a training run from scratch, without walking through the iterations."""
    if policy.type is not PolicyType.MULTISTEP:
        return next_step(policy, iteration, 0)
    fires = max(policy.warmup_iter or 0, policy.rampup_interval or 0) - 1
    for step, value in enumerate(policy.stepvalues):
        fires = max(fires + 1, value)
        if fires > iteration:
            return step
    return len(policy.stepvalues)


def rates(policy: LrPolicy, iterations: int, start: int = 0, current_step: int = 0) -> Iterator[float]:
    """The rates of ``iterations`` iterations, from ``start`` on with the counter restored to ``current_step``.

    >>> policy = LrPolicy(PolicyType.MULTISTEP, base_lr=1.0, gamma=0.5, stepvalues=(2, 2))
    >>> list(rates(policy, 5))
    [1.0, 1.0, 0.5, 0.25, 0.25]
    """
    for iteration in range(start, start + iterations):
        current_step = next_step(policy, iteration, current_step)
        yield rate(policy, iteration, current_step)


def momentum_at(settings: SolverSettings, iteration: int, rate: float) -> float:
    """The momentum of ``iteration``, whose global rate is ``rate``: constant, or NVIDIA's ``momentum_policy``.

    ``poly`` goes from ``momentum`` to ``max_momentum``; ``opt`` is (1 - sqrt(rate)/2)^2, at most ``max_momentum``.
    """
    if settings.momentum_from_rate is not None:
        cap = f(settings.momentum_from_rate)
        momentum = f((1.0 - 0.5 * math.sqrt(rate)) ** 2) if rate >= 0 else math.nan
        return momentum if momentum < cap or cap == math.inf else cap
    return _ramped(settings.momentum, settings.momentum_ramp, iteration)


def weight_decay_at(settings: SolverSettings, iteration: int) -> float:
    """The weight decay of ``iteration``, before ``decay_mult``: constant, or NVIDIA's ``poly``."""
    return _ramped(settings.weight_decay, settings.weight_decay_ramp, iteration)


def _ramped(value: float, ramp: Ramp | None, iteration: int) -> float:
    value = f(value)
    if ramp is None:
        return value
    part = f(_quotient(f(iteration), f(ramp.max_iter)))
    return f(value + f(f(f(ramp.maximum) - value) * f(_power(part, f(ramp.power)))))


def _power(base: float, exponent: float) -> float:
    """C's ``pow``, which answers with an infinity or a NaN where Python raises."""
    try:
        return math.pow(base, exponent)
    except OverflowError:
        return -math.inf if base < 0 and exponent % 2 == 1 else math.inf
    except ValueError:  # a negative number to a fraction, or zero to a negative number
        return math.nan if base else math.inf


def _exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def _quotient(dividend: float, divisor: float) -> float:
    """C's division of a number that is not negative: by zero it gives infinity, zero by zero NaN."""
    if divisor:
        return dividend / divisor
    return math.inf if dividend else math.nan
