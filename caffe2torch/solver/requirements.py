"""What a solver needs of an optimizer: what is refused, which classes and options make its update. No torch."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Any

from caffe2torch.errors import UnsupportedError
from caffe2torch.recipe import Accumulation, PolicyType, Regularization, SolverSettings, SolverType
from caffe2torch.solver.float32 import round32
from caffe2torch.solver.lr_policy import momentum_at, rate
from caffe2torch.solver.update_rules import SOLVERS

__all__ = [
    "bases",
    "class_name",
    "for_accumulation",
    "has_momentum",
    "momentum_changes",
    "optimizer_bases",
    "ramps",
    "refuse_unsupported",
    "stock_arguments",
    "stock_options",
]


def refuse_unsupported(solver: SolverSettings, without: Collection[str] = ()) -> None:
    """Raise ``UnsupportedError`` for what ``solver`` asks for and is not translated, but for the names in ``without``.

    A name in ``without`` that the solver does not ask for is refused as well: it is mistyped, or stale. So is a
    momentum2 of 1 or more, with which Caffe's Adam moves no weight or makes all of them NaN.
    """
    names = sorted(wanted.name for wanted in solver.unsupported)
    for name in without:
        if name not in names:
            hint = f"it asks for {', '.join(names)}" if names else "everything that it asks for is translated"
            raise UnsupportedError(f"the solver does not ask for {name!r}, which is to be left out", hint=hint)
    for wanted in solver.unsupported:
        if wanted.name not in without:
            raise UnsupportedError(
                f"{wanted.name} is not translated: {wanted.reason}",
                where=wanted.where,
                hint=f"to train without it, say so: --without {wanted.name}, or without=[{wanted.name!r}]",
            )
    if "momentum2" in SOLVERS[solver.type].settings and not solver.momentum2 < 1:
        raise UnsupportedError(
            f"Caffe's {solver.type} moves no weight with this momentum2, or makes all of them NaN",
            where=solver.places.get("momentum2"),
            found=f"momentum2: {solver.momentum2:g}",
            expected="a value below 1",
        )


def momentum_changes(solver: SolverSettings) -> bool:
    """Whether momentum depends on the iteration (NVIDIA's ``momentum_policy``)."""
    return solver.momentum_ramp is not None or solver.momentum_from_rate is not None


def has_momentum(solver: SolverSettings) -> bool:
    """Whether the update keeps a history of updates, as SGD and Nesterov do."""
    return SOLVERS[solver.type].linear and (solver.momentum != 0 or momentum_changes(solver))


def ramps(solver: SolverSettings) -> bool:
    """Whether momentum or weight decay depends on the iteration."""
    return momentum_changes(solver) or solver.weight_decay_ramp is not None


def stock_arguments(solver: SolverSettings) -> Mapping[str, tuple[str, ...]]:
    """The arguments of the stock constructor that the solver sets, each with the settings that it takes."""
    row = SOLVERS[solver.type]
    return {} if row.linear and not has_momentum(solver) else row.arguments


def stock_options(solver: SolverSettings) -> dict[str, Any]:
    """What the stock class is set to, by the names of its arguments.

    >>> from caffe2torch.recipe import LrPolicy
    >>> stock_options(SolverSettings(SolverType.NESTEROV, LrPolicy(PolicyType.FIXED, 0.1), momentum=0.9))
    {'momentum': 0.9, 'nesterov': True}
    """
    values = {name: getattr(solver, name) for name in ("momentum", "momentum2", "rms_decay", "delta")}
    values |= {name: round32(values[name]) for name in SOLVERS[solver.type].rounded}
    if has_momentum(solver):  # torch keeps no history at 0
        values["momentum"] = momentum_at(solver, 0, rate(solver.policy, 0)) or sys.float_info.min
    if solver.type is SolverType.ADAM and solver.momentum == 1:  # Caffe divides by 1 - 1^t: every weight becomes NaN
        values |= {"momentum": 0.0, "delta": math.nan}
    options: dict[str, Any] = {}
    for name, taken in stock_arguments(solver).items():
        options[name] = values[taken[0]] if len(taken) == 1 else tuple(values[setting] for setting in taken)
    return {**options, **SOLVERS[solver.type].fixed} if options else {}


class Scaling(StrEnum):
    """Which factor the step has for all gradients, by the name of the class in ``optim/solvers.py``."""

    NONE = ""
    ACCUMULATION = "Accumulation"
    CLIPPING = "Clipping"


def optimizer_bases(solver: SolverSettings) -> tuple[str, ...]:
    """The classes that together make the solver's update: of ``optim/solvers.py``, and of torch.

    The stock class alone is exact for SGD and Nesterov at a constant rate, AdaGrad, RMSProp and AdaDelta, as long as
    nothing is clipped, accumulated or decayed by L1.

    >>> from caffe2torch.recipe import LrPolicy, PolicyType
    >>> fixed, step = LrPolicy(PolicyType.FIXED, 0.1), LrPolicy(PolicyType.STEP, 0.1, 0.5, stepsize=10)
    >>> optimizer_bases(SolverSettings(SolverType.SGD, fixed, momentum=0.9))
    ('torch.optim.SGD',)
    >>> optimizer_bases(SolverSettings(SolverType.SGD, step, momentum=0.9, clip_gradients=5.0))
    ('ScaledSGD', 'Clipping')
    >>> optimizer_bases(SolverSettings(SolverType.ADAGRAD, step, iter_size=2))
    ('ScaledGradients', 'Accumulation', 'torch.optim.Adagrad')
    """
    scaling = Scaling.NONE
    if solver.clip_gradients is not None:
        scaling = Scaling.CLIPPING
    elif solver.iter_size != 1:
        scaling = Scaling.ACCUMULATION
    l1 = solver.regularization is Regularization.L1 and (
        solver.weight_decay != 0 or solver.weight_decay_ramp is not None
    )
    return bases(solver.type, has_momentum(solver), _rate_changes(solver), scaling, l1)


def bases(kind: SolverType, momentum: bool, changing: bool, scaling: Scaling, l1: bool) -> tuple[str, ...]:
    """``optimizer_bases`` by what it depends on: ``changing`` is the rate, ``l1`` the kind of weight decay."""
    row = SOLVERS[kind]
    if kind is SolverType.SGD and momentum and scaling and not l1:
        return ("ScaledSGD", str(scaling))
    own = row.own if not row.linear or (momentum and changing) else ""
    mixins = ["L1Decay"] * l1 + ["ScaledGradients", str(scaling)] * bool(scaling)
    return (own, *mixins) if own else (*mixins, f"torch.optim.{row.stock}")


def class_name(names: Sequence[str]) -> str:
    """What the class that has these bases is called.

    >>> class_name(["ScaledSGD", "Clipping"]), class_name(["L1Decay", "torch.optim.SGD"])
    ('ClippedCaffeSGD', 'L1SGD')
    """
    words = {"Clipping": "Clipped", "Accumulation": "Accumulated", "L1Decay": "L1"}
    own = next(name for name in names if name not in (*words, "ScaledGradients"))
    scaled = "".join(words[name] for name in ("Clipping", "Accumulation", "L1Decay") if name in names)
    return scaled + own.removeprefix("torch.optim.").replace("ScaledSGD", "CaffeSGD")


def _rate_changes(solver: SolverSettings) -> bool:
    policy = solver.policy
    forks = policy.warmup_iter is not None or policy.rampup_interval is not None or policy.min_lr is not None
    return policy.type is not PolicyType.FIXED or forks or policy.base_lr == 0  # at 0 torch would lose the history


def for_accumulation(solver: SolverSettings, accumulation: Accumulation) -> SolverSettings:
    """What the step itself has to do, by what the training loop does with the gradients of ``iter_size`` passes.

    Caffe sums them, clips the sum and divides it by iter_size. Of a mean, the step has nothing left to divide, and the
    same clip is at ``clip_gradients / iter_size``.

    >>> from caffe2torch.recipe import LrPolicy, PolicyType
    >>> solver = SolverSettings(SolverType.SGD, LrPolicy(PolicyType.FIXED, 0.1), clip_gradients=40.0, iter_size=10)
    >>> mean = for_accumulation(solver, Accumulation.MEAN)
    >>> (mean.clip_gradients, mean.iter_size)
    (4.0, 1)
    """
    if accumulation is Accumulation.SUM or solver.iter_size <= 1:
        return solver
    clip = None if solver.clip_gradients is None else solver.clip_gradients / solver.iter_size
    return replace(solver, clip_gradients=clip, iter_size=1)
