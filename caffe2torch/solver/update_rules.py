"""How one number moves under a solver, in plain Python: Caffe's six rules, and what other optimizers do instead.

A rule is the *form* of an update; the numbers that hold at one iteration are a ``Pace``. Everything is computed in
double precision: Caffe's own float32 differs from it by rounding, which the comparison allows for.

Sources: ``src/caffe/solvers/*.cpp`` of BVLC Caffe for the six rules; ``torch/optim/*.py`` for torch's variants.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from caffe2torch.recipe import SolverType

__all__ = ["Decay", "Epsilon", "History", "Rule", "StepSettings", "movements"]


class Decay(StrEnum):
    """What weight decay does: joins the gradient as the weight or as its sign, or shrinks the weight by itself."""

    L2 = "L2"
    L1 = "L1"
    DECOUPLED = "decoupled"


class History(StrEnum):
    """What SGD's and Nesterov's history keeps when the rate changes."""

    RATE_INSIDE = "keeps the rates it was made with"  # Caffe
    RATE_OUTSIDE = "forgets the rates it was made with"  # torch: every past gradient counts at today's rate
    RESCALED_INVERSELY = "is scaled by new rate / old rate on top of that"  # a correction meant for Caffe's history
    CLEARED = "is lost when the rate changes"  # the optimizer is built anew


class Epsilon(StrEnum):
    """Where an adaptive rule adds its small constant."""

    CAFFE = "outside"  # Adam: added to the uncorrected root; the others: added to the root
    CORRECTED = "inside the bias correction"  # torch's Adam
    UNDER_ROOT = "under the root"  # TensorFlow's RMSProp


@dataclass(frozen=True, slots=True)
class Rule:
    """The form of an update. ``divisor`` divides the gradient (Caffe's ``iter_size``), ``dampening`` is torch's.

    ``gradient`` is False where the gradient never reaches the update (Caffe with ``clip_gradients: 0``).
    """

    type: SolverType
    momentum2: float = 0.999
    delta: float = 1e-8
    rms_decay: float = 0.99
    decay: Decay = Decay.L2
    history: History = History.RATE_INSIDE
    epsilon: Epsilon = Epsilon.CAFFE
    divisor: float = 1.0
    dampening: float = 0.0
    gradient: bool = True

    @property
    def linear(self) -> bool:
        """Whether a movement is proportional to the gradient."""
        return self.type in (SolverType.SGD, SolverType.NESTEROV)


@dataclass(frozen=True, slots=True)
class StepSettings:
    """What holds at one iteration for one parameter, multipliers applied."""

    rate: float
    momentum: float
    weight_decay: float


Update = Callable[[float, StepSettings], float]
"""Gradient (decay added) and step settings to the amount that is subtracted from the weight."""


def movements(
    rule: Rule, settings: Sequence[StepSettings], weights: Sequence[float | None], gradients: Sequence[float]
) -> tuple[float, ...]:
    """How far a number moves at each step, from an empty history.

    ``weights[k]`` is the value it is set to before step k, ``None`` where it is left as the last step made it.

    >>> settings = StepSettings(rate=0.1, momentum=0.9, weight_decay=0.0)
    >>> movements(Rule(SolverType.SGD), [settings, settings], [0.0, None], [1.0, 0.0])
    (-0.1, -0.09000000000000001)
    """
    update = _RULES[rule.type](rule)
    moved = []
    weight = 0.0
    for setting, placed, gradient in zip(settings, weights, gradients, strict=True):
        weight = weight if placed is None else placed
        g = _quotient(gradient, rule.divisor) if rule.gradient else 0.0
        step = 0.0
        match rule.decay:
            case Decay.L2:
                g += setting.weight_decay * weight
            case Decay.L1:
                g += setting.weight_decay * ((weight > 0) - (weight < 0))
            case Decay.DECOUPLED:
                step = -setting.rate * setting.weight_decay * weight
        step -= update(g, setting)
        moved.append(step)
        weight += step
    return tuple(moved)


def _momentum(rule: Rule) -> Update:
    """SGD and Nesterov. ``h`` is Caffe's history, or torch's buffer where the rate stays outside of it."""
    inside, nesterov = rule.history is History.RATE_INSIDE, rule.type is SolverType.NESTEROV
    h, last, first = 0.0, math.nan, True

    def update(g: float, setting: StepSettings) -> float:
        nonlocal h, last, first
        if not first and setting.rate != last:
            if rule.history is History.CLEARED:
                h = 0.0
            elif rule.history is History.RESCALED_INVERSELY:
                h *= _quotient(setting.rate, last)
        added = g if first else (1.0 - rule.dampening) * g
        before, last, first = h, setting.rate, False
        if inside:
            h = setting.momentum * h + setting.rate * added
            return (1.0 + setting.momentum) * h - setting.momentum * before if nesterov else h
        h = setting.momentum * h + added
        return setting.rate * (g + setting.momentum * h if nesterov else h)

    return update


def _adagrad(rule: Rule) -> Update:
    h = 0.0

    def update(g: float, setting: StepSettings) -> float:
        nonlocal h
        h += g * g
        return setting.rate * _quotient(g, _root(h) + rule.delta)

    return update


def _rmsprop(rule: Rule) -> Update:
    h = 0.0

    def update(g: float, setting: StepSettings) -> float:
        nonlocal h
        h = rule.rms_decay * h + (1.0 - rule.rms_decay) * g * g
        under = rule.epsilon is Epsilon.UNDER_ROOT
        return setting.rate * _quotient(g, _root(h + rule.delta) if under else _root(h) + rule.delta)

    return update


def _adadelta(rule: Rule) -> Update:
    gradients, updates = 0.0, 0.0

    def update(g: float, setting: StepSettings) -> float:
        nonlocal gradients, updates
        rho = setting.momentum
        gradients = rho * gradients + (1.0 - rho) * g * g
        u = g * _root(_quotient(updates + rule.delta, gradients + rule.delta))
        updates = rho * updates + (1.0 - rho) * u * u
        return setting.rate * u

    return update


def _adam(rule: Rule) -> Update:
    m, v, t = 0.0, 0.0, 0

    def update(g: float, setting: StepSettings) -> float:
        nonlocal m, v, t
        t += 1
        m = setting.momentum * m + (1.0 - setting.momentum) * g
        v = rule.momentum2 * v + (1.0 - rule.momentum2) * g * g
        root = _root(1.0 - rule.momentum2**t)
        delta = rule.delta * root if rule.epsilon is Epsilon.CORRECTED else rule.delta
        return setting.rate * _quotient(root, 1.0 - setting.momentum**t) * _quotient(m, _root(v) + delta)

    return update


_RULES: dict[SolverType, Callable[[Rule], Update]] = {
    SolverType.SGD: _momentum,
    SolverType.NESTEROV: _momentum,
    SolverType.ADAGRAD: _adagrad,
    SolverType.RMSPROP: _rmsprop,
    SolverType.ADADELTA: _adadelta,
    SolverType.ADAM: _adam,
}


def _quotient(dividend: float, divisor: float) -> float:
    """C's division: by zero it gives an infinity, zero by zero NaN."""
    if divisor:
        return dividend / divisor
    return math.copysign(math.inf, dividend) if dividend and not math.isnan(dividend) else math.nan


def _root(x: float) -> float:
    """C's square root: NaN of a negative number."""
    return math.sqrt(x) if x >= 0 else math.nan
