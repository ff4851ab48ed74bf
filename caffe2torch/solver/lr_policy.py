"""The learning rate at an iteration: one row per policy, and the rules that Caffe's forks put around it.

Rates are plain doubles of the numbers that the prototxt states; Caffe computes them in float32. Only ``exp`` takes
gamma as float32, since 10^5 factors show the difference. Nothing here keeps state: the one counter that Caffe keeps,
``current_step``, goes in and comes out.

Sources: BVLC's ``SGDSolver::GetLearningRate`` (``src/caffe/solvers/sgd_solver.cpp``); the same function of Intel's
fork (``multifixed``, warm-up) and of NVIDIA's 0.17 (ramp-up, ``min_lr``), and its ``GetMomentum`` and
``GetWeightDecay``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from caffe2torch.recipe import LrPolicy, PolicyType, Ramp, SolverSettings
from caffe2torch.solver.float32 import round32

__all__ = [
    "POLICIES",
    "SURROUNDINGS",
    "Policy",
    "changes",
    "factor_source",
    "fork_fields",
    "momentum_at",
    "next_step",
    "ramp_end",
    "rate",
    "rates",
    "step_at",
    "torch_scheduler",
    "weight_decay_at",
]


# The rate as a factor of base_lr, from the fields that the policy reads. Emitted files hold these functions verbatim.


def fixed_factor(iteration: int) -> float:  # noqa: ARG001  # the others depend on it
    """base_lr."""
    return 1.0


def step_factor(iteration: int, gamma: float, stepsize: int) -> float:
    """base_lr * gamma ^ floor(iteration / stepsize)."""
    return gamma ** (iteration // stepsize)


def exp_factor(iteration: int, gamma: float) -> float:
    """base_lr * gamma ^ iteration."""
    return gamma**iteration


def inv_factor(iteration: int, gamma: float, power: float) -> float:
    """base_lr * (1 + gamma * iteration) ^ -power."""
    return float((1 + gamma * iteration) ** -power)


def multistep_factor(iteration: int, gamma: float, stepvalues: tuple[int, ...], first: int = 0) -> float:
    """base_lr * gamma ^ (stepvalues that are behind); at most one acts per iteration, none before ``first``."""
    drops, acts = 0, first - 1
    for value in stepvalues:
        acts = max(acts + 1, value)
        drops += iteration >= acts
    return gamma**drops


def poly_factor(iteration: int, power: float, max_iter: int) -> float:
    """base_lr * (1 - iteration / max_iter) ^ power."""
    left = 1 - iteration / max_iter
    return float(left**power) if left >= 0 or power.is_integer() else math.nan  # as C's pow, past max_iter


def sigmoid_factor(iteration: int, gamma: float, stepsize: int) -> float:
    """base_lr / (1 + exp(-gamma * (iteration - stepsize)))."""
    return 0.5 * (1 + math.tanh(0.5 * gamma * (iteration - stepsize)))  # the same, but does not overflow


def multifixed_rate(iteration: int, stage_lrs: tuple[float, ...], stage_iters: tuple[int, ...]) -> float:
    """stagelr[s], s the first stage with iteration <= stageiter[s], else the last."""
    return next((lr for lr, last in zip(stage_lrs, stage_iters, strict=True) if iteration <= last), stage_lrs[-1])


# What forks put before a policy, as the rate itself.


def warm_up(iteration: int, base_lr: float, warmup_iter: int, warmup_start_lr: float) -> float:
    """Linear from warmup_start_lr to base_lr within warmup_iter iterations (Intel)."""
    return (iteration * base_lr + (warmup_iter - iteration) * warmup_start_lr) / warmup_iter


def ramp_up(iteration: int, base_lr: float, rampup_interval: int, rampup_lr: float) -> float:
    """rampup_lr + (base_lr - rampup_lr) * (iteration / rampup_interval) ^ 2 (NVIDIA)."""
    return rampup_lr + (base_lr - rampup_lr) * (iteration / rampup_interval) ** 2


def _no_steps(policy: LrPolicy, until: int) -> Sequence[int]:  # noqa: ARG001  # the others depend on them
    return ()


def _steps(policy: LrPolicy, until: int) -> Sequence[int]:
    return range(policy.stepsize, until, policy.stepsize)


def _multisteps(policy: LrPolicy, until: int) -> Sequence[int]:
    return [acts for acts in _drops(policy) if acts < until]


def _stages(policy: LrPolicy, until: int) -> Sequence[int]:
    return [last + 1 for last in policy.stage_iters[:-1] if last + 1 < until]


class Policy(NamedTuple):
    """What is known of a rate policy.

    Attributes:
        factor: The rate as a factor of base_lr at an iteration (``multifixed``: the rate itself); it takes the
            settings that it reads by the names that they have in ``LrPolicy``.
        fields: The fields of the solver that it reads besides ``base_lr``.
        formula: The rate as text.
        steps: The iterations below a number at which it is due to change the rate; ``None`` where that may be each.
        without_gamma: What comes of a gamma that is not stated.
        scheduler: The class of ``torch.optim.lr_scheduler`` that does the same, with its arguments; empty where none
            does.
    """

    factor: Callable[..., float]
    fields: tuple[str, ...]
    formula: str
    steps: Callable[[LrPolicy, int], Sequence[int]] | None = None
    without_gamma: str = ""
    scheduler: str = ""


POLICIES: Mapping[PolicyType, Policy] = {
    PolicyType.FIXED: Policy(fixed_factor, (), "base_lr", _no_steps),
    PolicyType.STEP: Policy(
        step_factor,
        ("gamma", "stepsize"),
        "base_lr × gamma ^ ⌊iteration / stepsize⌋",
        _steps,
        without_gamma="the rate is 0 from the first step on",
        scheduler="StepLR(optimizer, {stepsize}, gamma={gamma})",
    ),
    PolicyType.EXP: Policy(
        exp_factor,
        ("gamma",),
        "base_lr × gamma ^ iteration",
        without_gamma="the rate is 0 from the second iteration on",
        scheduler="ExponentialLR(optimizer, {gamma})",
    ),
    PolicyType.INV: Policy(
        inv_factor,
        ("gamma", "power"),
        "base_lr × (1 + gamma × iteration) ^ −power",
        without_gamma="the rate stays base_lr",
        scheduler="LambdaLR(optimizer, lambda i: (1 + {gamma} * i) ** -{power})",
    ),
    PolicyType.MULTISTEP: Policy(
        multistep_factor,
        ("gamma", "stepvalue"),
        "base_lr × gamma ^ (stepvalues passed)",
        _multisteps,
        without_gamma="the rate is 0 from the first stepvalue on",
        scheduler="MultiStepLR(optimizer, {stepvalues}, gamma={gamma})",
    ),
    PolicyType.POLY: Policy(
        poly_factor,
        ("power", "max_iter"),
        "base_lr × (1 − iteration / max_iter) ^ power",
        scheduler="PolynomialLR(optimizer, {max_iter}, power={power})",
    ),
    PolicyType.SIGMOID: Policy(
        sigmoid_factor,
        ("gamma", "stepsize"),
        "base_lr / (1 + exp(−gamma × (iteration − stepsize)))",
        without_gamma="the rate stays half of base_lr",
        scheduler="LambdaLR(optimizer, lambda i: 1 / (1 + math.exp(-{gamma} * (i - {stepsize}))))",
    ),
    PolicyType.MULTIFIXED: Policy(multifixed_rate, ("stagelr", "stageiter"), "the stagelr of the stage", _stages),
    PolicyType.PLATEAU: Policy(
        multistep_factor,
        ("gamma", "plateau_winsize"),
        "base_lr × gamma ^ (plateaus of the loss)",
        _no_steps,
        without_gamma="the rate is 0 from the first plateau on",
    ),
}

SETTINGS = {
    "stepvalue": "stepvalues",
    "stagelr": "stage_lrs",
    "stageiter": "stage_iters",
    "plateau_winsize": "stepvalues",
}
"""Where ``LrPolicy`` names a setting otherwise than the solver's field."""


SURROUNDINGS = {
    "warmup_iter": ("warmup_iter", "the length of the warm-up"),
    "warmup_start_lr": ("warmup_iter", "where the warm-up starts"),
    "rampup_interval": ("rampup_interval", "the length of the ramp"),
    "rampup_lr": ("rampup_interval", "where the ramp starts"),
    "min_lr": ("min_lr", "a floor below the rate"),
}
"""Fields that forks put around a policy: which of them sets the rule in force, and what each is."""


def arguments(policy: LrPolicy) -> dict[str, Any]:
    """What the factor function of a policy takes besides the iteration, by name.

    >>> arguments(LrPolicy(PolicyType.STEP, base_lr=0.1, gamma=0.5, stepsize=10))
    {'gamma': 0.5, 'stepsize': 10}
    """
    names = [SETTINGS.get(field, field) for field in POLICIES[policy.type].fields]
    values = {name: getattr(policy, name) for name in names}
    if policy.type is PolicyType.EXP:
        values["gamma"] = round32(policy.gamma)
    if policy.type in (PolicyType.MULTISTEP, PolicyType.PLATEAU) and ramp_end(policy):
        values["first"] = ramp_end(policy)
    return values


def rate(policy: LrPolicy, iteration: int, current_step: int | None = None) -> float:
    """The global rate with which iteration ``iteration`` (the first is 0) updates the weights.

    As in Caffe the rate may be NaN or infinite (``poly`` past ``max_iter``); no argument makes this function raise on
    a policy that ``read_solver`` let through.

    Args:
        policy: The policy with its settings.
        iteration: The number of the update, from 0.
        current_step: Caffe's counter *after* ``next_step`` has seen this iteration, as ``.solverstate`` records it,
            for a run that was restored; ``None`` for one from scratch. Only ``multistep`` and ``plateau`` read it.

    Returns:
        The rate, before any ``lr_mult``.

    >>> rate(LrPolicy(PolicyType.STEP, base_lr=0.1, gamma=0.5, stepsize=10), 25)
    0.025
    """
    base = policy.base_lr
    if policy.warmup_iter is not None and iteration < policy.warmup_iter:
        lr = warm_up(iteration, base, policy.warmup_iter, policy.warmup_start_lr)
    elif policy.rampup_interval is not None and iteration < policy.rampup_interval:
        lr = ramp_up(iteration, base, policy.rampup_interval, policy.rampup_lr)
    elif policy.type is PolicyType.MULTIFIXED:
        lr = multifixed_rate(iteration, policy.stage_lrs, policy.stage_iters)
    elif policy.type is PolicyType.POLY and policy.min_lr is not None:  # NVIDIA's, which knows no max_iter of 0
        floor = policy.min_lr
        lr = (base - floor) * _as_c(poly_factor, iteration, policy.power, max(policy.max_iter, 1)) + floor
    elif policy.type is PolicyType.POLY and not policy.max_iter:
        lr = base * _power(-math.inf if iteration else math.nan, policy.power)  # C divides by 0
    elif policy.type in (PolicyType.MULTISTEP, PolicyType.PLATEAU) and current_step is not None:
        lr = base * _power(policy.gamma, current_step)
    else:
        lr = base * _as_c(POLICIES[policy.type].factor, iteration, **arguments(policy))
    if policy.min_lr is not None and lr < policy.min_lr:  # a NaN is not less, and stays
        return policy.min_lr
    return lr


def next_step(policy: LrPolicy, iteration: int, current_step: int) -> int:
    """Caffe's counter after it evaluated the rate of ``iteration``, from the counter before.

    ``multistep`` rises by at most one an iteration, so repeated stepvalues act one after the other, and a restored
    counter that lags catches up. ``step`` sets it for the record. During a fork's warm-up it rests.
    """
    if iteration < ramp_end(policy):
        return current_step
    if policy.type is PolicyType.STEP:
        return iteration // policy.stepsize
    if policy.type is PolicyType.MULTISTEP and current_step < len(policy.stepvalues):
        return current_step + (iteration >= policy.stepvalues[current_step])
    return current_step


def step_at(policy: LrPolicy, iteration: int) -> int:
    """The counter after ``iteration`` in a training run from scratch, without a loop over the iterations."""
    if policy.type is not PolicyType.MULTISTEP:
        return next_step(policy, iteration, 0)
    return sum(iteration >= acts for acts in _drops(policy))


def rates(policy: LrPolicy, iterations: int, start: int = 0, current_step: int = 0) -> Iterator[float]:
    """The rates of ``iterations`` iterations, from ``start`` on with the counter restored to ``current_step``.

    >>> policy = LrPolicy(PolicyType.MULTISTEP, base_lr=1.0, gamma=0.5, stepvalues=(2, 2))
    >>> list(rates(policy, 5))
    [1.0, 1.0, 0.5, 0.25, 0.25]
    """
    for iteration in range(start, start + iterations):
        current_step = next_step(policy, iteration, current_step)
        yield rate(policy, iteration, current_step)


def changes(policy: LrPolicy, until: int) -> list[int] | None:
    """The iterations below ``until`` at which the rate of a run from scratch is another one than before.

    Returns ``None`` where it may change with every iteration, apart from a ramp at the start.

    >>> changes(LrPolicy(PolicyType.MULTISTEP, 1.0, 0.5, stepvalues=(100, 50), warmup_iter=3), 200)
    [1, 2, 3, 100, 101]
    """
    steps = POLICIES[policy.type].steps
    if steps is None:
        return None
    ramp = ramp_end(policy)
    candidates = sorted({*range(1, ramp + 1), *(i for i in steps(policy, until) if i > ramp)})
    return [i for i in candidates if 0 < i < until and rate(policy, i) != rate(policy, i - 1)]


def ramp_end(policy: LrPolicy) -> int:
    """The first iteration after a fork's warm-up or ramp-up; 0 without one."""
    return max(policy.warmup_iter or 0, policy.rampup_interval or 0)


def fork_fields(policy: LrPolicy) -> list[str]:
    """The fields that forks put around the policy, as far as they are set."""
    return [name for name, (switch, _) in SURROUNDINGS.items() if getattr(policy, switch) is not None]


def factor_source(policy: LrPolicy) -> Iterator[str]:
    """The rate as a factor of base_lr, as the lines of a Python function of ``iteration`` with settings as constants.

    >>> list(factor_source(LrPolicy(PolicyType.STEP, base_lr=0.1, gamma=0.5, stepsize=10)))
    ['return step_factor(iteration, GAMMA, STEPSIZE)']
    """
    floored = "return {} / BASE_LR" if policy.min_lr is None else "return max({}, MIN_LR) / BASE_LR"
    if policy.warmup_iter is not None:
        yield "if iteration < WARMUP_ITER:"
        yield "    " + floored.format("warm_up(iteration, BASE_LR, WARMUP_ITER, WARMUP_START_LR)")
    elif policy.rampup_interval is not None:
        yield "if iteration < RAMPUP_INTERVAL:"
        yield "    " + floored.format("ramp_up(iteration, BASE_LR, RAMPUP_INTERVAL, RAMPUP_LR)")
    settings = ", ".join(["iteration", *(name.upper() for name in arguments(policy) if name != "first")])
    factor = f"{POLICIES[policy.type].factor.__name__}({settings})"
    match policy.type:
        case PolicyType.FIXED:
            factor = "1.0"
        case PolicyType.MULTIFIXED if policy.base_lr:
            factor += " / BASE_LR"
        case PolicyType.MULTISTEP if "first" in arguments(policy):
            factor = f"{factor[:-1]}, first={'WARMUP_ITER' if policy.warmup_iter is not None else 'RAMPUP_INTERVAL'})"
        case PolicyType.POLY if policy.min_lr is not None:
            yield "floor = MIN_LR / BASE_LR"
            factor = f"(1 - floor) * {factor} + floor"
    yield f"return {factor}" if policy.min_lr is None else f"return max({factor}, MIN_LR / BASE_LR)"


def torch_scheduler(policy: LrPolicy) -> str:
    """The class of ``torch.optim.lr_scheduler`` that gives the policy's rates, as code; empty where none does.

    >>> torch_scheduler(LrPolicy(PolicyType.MULTISTEP, base_lr=0.1, gamma=0.5, stepvalues=(10, 20)))
    'MultiStepLR(optimizer, [10, 20], gamma=0.5)'
    """
    repeated = len(set(policy.stepvalues)) < len(policy.stepvalues)  # Caffe makes one step an iteration, torch all
    if fork_fields(policy) or repeated or (policy.type is PolicyType.POLY and not policy.max_iter):
        return ""
    values = arguments(policy) | {"gamma": policy.gamma, "stepvalues": list(policy.stepvalues)}
    return POLICIES[policy.type].scheduler.format(**values)


def momentum_at(settings: SolverSettings, iteration: int, rate: float) -> float:
    """The momentum of ``iteration``, whose global rate is ``rate``: constant, or NVIDIA's ``momentum_policy``.

    ``poly`` goes from ``momentum`` to ``max_momentum``; ``opt`` is (1 - sqrt(rate)/2)^2, at most ``max_momentum``.
    """
    if settings.momentum_from_rate is not None:
        cap = settings.momentum_from_rate
        momentum = (1.0 - 0.5 * math.sqrt(rate)) ** 2 if rate >= 0 else math.nan
        return momentum if momentum < cap or cap == math.inf else cap
    return _ramped(settings.momentum, settings.momentum_ramp, iteration)


def weight_decay_at(settings: SolverSettings, iteration: int) -> float:
    """The weight decay of ``iteration``, before ``decay_mult``: constant, or NVIDIA's ``poly``."""
    return _ramped(settings.weight_decay, settings.weight_decay_ramp, iteration)


def _ramped(value: float, ramp: Ramp | None, iteration: int) -> float:
    if ramp is None:
        return value
    part = iteration / ramp.max_iter if ramp.max_iter else math.inf if iteration else math.nan
    return value + (ramp.maximum - value) * _power(part, ramp.power)


def _drops(policy: LrPolicy) -> Iterator[int]:
    """The iterations at which the stepvalues of ``multistep`` act in a run from scratch, one after the other."""
    acts = ramp_end(policy) - 1
    for value in policy.stepvalues:
        acts = max(acts + 1, value)
        yield acts


def _as_c(function: Callable[..., float], *values: Any, **settings: Any) -> float:
    """``function`` where C gives an infinity or a NaN and Python raises or turns complex."""
    try:
        return function(*values, **settings)
    except (OverflowError, ZeroDivisionError):
        return math.inf
    except TypeError:  # float() of a complex number
        return math.nan


def _power(base: float, exponent: float) -> float:
    """C's ``pow``, which answers with an infinity or a NaN where Python raises."""
    try:
        return math.pow(base, exponent)
    except OverflowError:
        return -math.inf if base < 0 and exponent % 2 == 1 else math.inf
    except ValueError:  # a negative number to a fraction, or zero to a negative number
        return math.nan if base else math.inf
