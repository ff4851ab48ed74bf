"""The solvers: a row of what is known of each, and how one number moves under it, in plain Python.

A rule is the *form* of an update, Caffe's or what other optimizers do instead; the numbers that hold at one iteration
are ``StepSettings``. Everything is computed in double precision: Caffe's own float32 differs from it by rounding, which
the comparison allows for.

Sources: ``src/caffe/solvers/*.cpp`` of BVLC Caffe for the six rules; ``torch/optim/*.py`` for torch's variants.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple

from caffe2torch.recipe import SolverType

__all__ = ["SOLVERS", "Decay", "Epsilon", "History", "Rule", "Solver", "StepSettings", "movements"]


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
        return SOLVERS[self.type].linear


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
    update = SOLVERS[rule.type].update(rule)
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


class Solver(NamedTuple):
    """What is known of a solver type.

    Attributes:
        update: Its rule.
        stock: The class of ``torch.optim`` that makes its update, or nearly so.
        arguments: The constructor's arguments, each with the solver's setting that it takes (``betas`` two of them).
        history: What torch calls the history of a blob, in the order of ``.solverstate``.
        fixed: Arguments of the constructor that are the same for all settings.
        fused: Types of device on which torch, from 2.6 on, has a fused kernel for it.
        rounded: Settings that are rounded to float32, as Caffe has them, since 1 - setting shows the difference.
        own: The class of ``optim/solvers.py`` that makes the update where torch's is another one.
        departure: In what torch's update is another one.
        momentum: What its formula calls the momentum.
        delta: How torch's eps follows from the solver's delta.
        epsilons: Where the update may add its small constant, Caffe's own way first.
        stock_eps: torch's default of it, and where torch adds it.
    """

    update: Callable[[Rule], Update]
    stock: str
    arguments: Mapping[str, tuple[str, ...]]
    history: tuple[str, ...]
    fixed: Mapping[str, bool] = MappingProxyType({})
    fused: tuple[str, ...] = ()
    rounded: tuple[str, ...] = ()
    own: str = ""
    departure: str = ""
    momentum: str = "momentum"
    delta: str = "the same number, added to the root as in Caffe"
    epsilons: tuple[Epsilon, ...] = (Epsilon.CAFFE,)
    stock_eps: tuple[float, Epsilon] = (1e-8, Epsilon.CAFFE)

    @property
    def settings(self) -> tuple[str, ...]:
        """The solver's settings that the update reads, besides its rate and weight decay."""
        return tuple(setting for taken in self.arguments.values() for setting in taken)

    @property
    def linear(self) -> bool:
        """Whether a movement is proportional to the gradient, and the history one of updates: SGD and Nesterov."""
        return self.stock == "SGD"


_RATES_FORGOTTEN = "at a change of the rate, torch's momentum forgets the rates that it was made with"
SOLVERS: Mapping[SolverType, Solver] = {
    SolverType.SGD: Solver(
        _momentum,
        "SGD",
        {"momentum": ("momentum",)},
        ("momentum_buffer",),
        fused=("cpu", "cuda"),
        own="CaffeSGD",
        departure=_RATES_FORGOTTEN,
    ),
    SolverType.NESTEROV: Solver(
        _momentum,
        "SGD",
        {"momentum": ("momentum",)},
        ("momentum_buffer",),
        {"nesterov": True},
        fused=("cpu", "cuda"),
        own="CaffeNesterov",
        departure=_RATES_FORGOTTEN,
    ),
    SolverType.ADAM: Solver(
        _adam,
        "Adam",
        {"betas": ("momentum", "momentum2"), "eps": ("delta",)},
        ("exp_avg", "exp_avg_sq"),
        fused=("cpu", "cuda"),
        rounded=("momentum", "momentum2"),
        own="CaffeAdam",
        departure="torch's Adam adds eps after the bias correction, Caffe adds delta before it",
        momentum="beta 1",
        delta="at step t: delta / √(1 − momentum2ᵗ)",
        epsilons=(Epsilon.CAFFE, Epsilon.CORRECTED),
        stock_eps=(1e-8, Epsilon.CORRECTED),
    ),
    SolverType.RMSPROP: Solver(
        _rmsprop,
        "RMSprop",
        {"alpha": ("rms_decay",), "eps": ("delta",)},
        ("square_avg",),
        rounded=("rms_decay",),
        epsilons=(Epsilon.CAFFE, Epsilon.UNDER_ROOT),
    ),
    SolverType.ADAGRAD: Solver(
        _adagrad, "Adagrad", {"eps": ("delta",)}, ("sum",), fused=("cpu",), stock_eps=(1e-10, Epsilon.CAFFE)
    ),
    SolverType.ADADELTA: Solver(
        _adadelta,
        "Adadelta",
        {"rho": ("momentum",), "eps": ("delta",)},
        ("square_avg", "acc_delta"),
        rounded=("momentum",),
        momentum="rho",
        delta="the same number, under both roots as in Caffe",
        stock_eps=(1e-6, Epsilon.CAFFE),
    ),
}


def _quotient(dividend: float, divisor: float) -> float:
    """C's division: by zero it gives an infinity, zero by zero NaN."""
    if divisor:
        return dividend / divisor
    return math.copysign(math.inf, dividend) if dividend and not math.isnan(dividend) else math.nan


def _root(x: float) -> float:
    """C's square root: NaN of a negative number."""
    return math.sqrt(x) if x >= 0 else math.nan
