"""How far stock torch leaves Caffe's path under a solver: both optimizers are run over its schedule, side by side.

The *stock translation* is what a careful person writes without this tool: the ``torch.optim`` class of that name, each
group's effective ``lr`` set at every iteration, its effective ``weight_decay``, ``momentum`` or betas, ``eps`` for
``delta``. What is left between the two is the form of the update. The problem is a small one: ``NUMBERS`` weights a
group, from 0, under independent normal gradients of a seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from caffe2torch.binding.plan import GroupMember, GroupPlan
from caffe2torch.optim.build import build_optimizer
from caffe2torch.recipe import PolicyType, Regularization, SolverSettings
from caffe2torch.solver import lr_policy
from caffe2torch.solver.lr_policy import momentum_at, rate, weight_decay_at
from caffe2torch.solver.requirements import has_momentum, ramps, stock_arguments
from caffe2torch.solver.update_rules import SOLVERS
from caffe2torch.verification.optimizer_copy import step

__all__ = ["Divergence", "RunSegment", "differences", "diverge", "effect", "segments_to_run"]

NUMBERS = 64
SEED = 0
BUDGET = 3000
"""Iterations that are run for a report, within about 0.2 s."""
SEGMENT = 200
"""Iterations of a segment that stands for others."""
_ROUNDING = 1e-11  # less is what double precision makes of one formula written in two ways


@dataclass(frozen=True, slots=True)
class RunSegment:
    """Iterations that are run, ``first`` to ``end - 1``.

    ``before`` iterations before them are taken in one move of the same distribution; with ``fresh`` they are left out,
    and both histories begin anew.
    """

    first: int
    end: int
    before: int = 0
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Divergence:
    """Per group, the largest distance between the two paths over the farthest that Caffe's has been by then.

    ``distances[group][k]`` is that after iteration ``iterations[k]``. ``run`` is how many iterations were run one by
    one, of ``length``.
    """

    multipliers: tuple[tuple[float, float], ...]
    iterations: tuple[int, ...]
    distances: tuple[tuple[float, ...], ...]
    run: int
    length: int


def differences(solver: SolverSettings) -> tuple[str, ...]:
    """What stock torch does otherwise under this solver, one clause each; empty where it follows Caffe exactly.

    >>> from caffe2torch.recipe import LrPolicy, SolverType
    >>> policy = LrPolicy(PolicyType.STEP, base_lr=0.1, gamma=0.1, stepsize=100)
    >>> differences(SolverSettings(SolverType.SGD, policy, momentum=0.9))
    ("at a change of the rate, torch's momentum forgets the rates that it was made with",)
    """
    found = []
    policy, row = solver.policy, SOLVERS[solver.type]
    changing = policy.type is not PolicyType.FIXED or policy.warmup_iter or policy.rampup_interval
    if row.departure and (not row.linear or (has_momentum(solver) and changing)):
        found.append(row.departure)
    if solver.regularization is Regularization.L1:
        found.append("torch's weight_decay is L2, Caffe's is L1 here")
    if ramps(solver):
        found.append("torch's schedulers leave momentum and weight_decay as they are")
    return tuple(found)


def effect(solver: SolverSettings, port: SolverSettings | None = None) -> str:
    """What stock torch amounts to under this solver, as a sentence; empty where no run can be simulated.

    ``port`` is the solver whose stock translation runs, where its momenta or its epsilon are not Caffe's.
    """
    length = solver.max_iter
    if not length:
        return ""
    found = diverge(solver, [(1.0, 1.0)], length, BUDGET, port=port)
    distances = found.distances[0]
    if not distances or not all(map(math.isfinite, distances)):
        return ""
    how = f"simulated: {NUMBERS} weights, normal gradients, seed {SEED}"
    if found.run < length:
        how += f", {found.run:,} of {length:,} iterations one by one"
    return (
        f"On this schedule the weights end {percent(distances[-1])} of their movement away, at most "
        f"{percent(max(distances))} on the way ({how})"
    )


def percent(share: float) -> str:
    """A share as a person reads it, of two digits.

    >>> percent(1.83), percent(0.0234), percent(2.9e-7), percent(0.0)
    ('180 %', '2.3 %', 'less than 0.001 %', '0 %')
    """
    return f"{float(f'{100 * share:.2g}'):.10g} %" if not 0 < share < 1e-5 else "less than 0.001 %"


def diverge(
    solver: SolverSettings,
    multipliers: Sequence[tuple[float, float]],
    length: int,
    budget: int,
    at: Collection[int] | None = None,
    *,
    port: SolverSettings | None = None,
    seed: int = SEED,
    progress: Callable[[int], None] = lambda _: None,
) -> Divergence:
    """Run both optimizers over ``length`` iterations of the schedule and compare where they are.

    Args:
        solver: Its clipping is left out, since what it does depends on the size of real gradients.
        multipliers: ``(lr_mult, decay_mult)`` of each group.
        length: How many iterations the run has.
        budget: How many of them are run one by one at most; ``segments_to_run`` has which.
        at: After which iterations to compare, as far as they are run; all that are run by default.
        port: As in ``effect``.
        seed: Of the gradients, which are independent and normal, of size 1.
        progress: Called now and then with how many iterations were run.
    """
    solver = replace(solver, clip_gradients=None, iter_size=1)
    generator = torch.Generator().manual_seed(seed)
    model, groups = _problem(multipliers)
    worlds = [build_optimizer(model, groups, solver, [one.name for one in solver.unsupported])]
    other, _ = _problem(multipliers)
    worlds.append(_stock(other, groups, port or solver))
    paths = [list(world.parameters()) for world in (model, other)]
    wanted = None if at is None else set(at)
    farthest = torch.zeros(len(multipliers), dtype=torch.float64)
    iterations: list[int] = []
    distances: list[list[float]] = []
    run = 0
    plan = segments_to_run(solver, length, budget)
    for segment in plan:
        if segment.fresh:
            for optimizer in worlds:
                optimizer.state.clear()
        if segment.before:
            _move(solver, segment, multipliers, paths, generator)
        for first in range(segment.first, segment.end, 1000):
            size = min(1000, segment.end - first)
            progress(size)
            gradients = torch.randn(size, len(multipliers), NUMBERS, generator=generator, dtype=torch.float64)
            for iteration, gradient in enumerate(gradients, first):
                for k, (optimizer, path) in enumerate(zip(worlds, paths, strict=True)):
                    _set(optimizer, solver, multipliers, iteration, ramped=k == 0)
                    for p, g in zip(path, gradient, strict=True):
                        p.grad = g.clone()
                    step(optimizer)
                run += 1
                if wanted is None or iteration in wanted or (iteration == segment.end - 1 and segment is plan[-1]):
                    caffe, stock = (torch.stack([p.detach() for p in path]) for path in paths)
                    farthest = torch.maximum(farthest, caffe.abs().amax(dim=1))
                    apart = (caffe - stock).abs().amax(dim=1)
                    apart[apart <= _ROUNDING * farthest] = 0.0
                    iterations.append(iteration)
                    distances.append(torch.where(farthest == 0, 0.0, apart / farthest).tolist())
    return Divergence(tuple(multipliers), tuple(iterations), tuple(zip(*distances, strict=True)), run, length)


def segments_to_run(solver: SolverSettings, length: int, budget: int) -> tuple[RunSegment, ...]:
    """Which iterations of a run to run one by one: all, or those where the paths part.

    Where the rate changes now and then, the two part at the changes; what lies between is taken in one move. Where it
    changes all the time, segments of the run stand for the whole. Without momentum only the beginning differs.

    >>> from caffe2torch.recipe import SolverType
    >>> policy = lr_policy.LrPolicy(PolicyType.STEP, base_lr=0.1, gamma=0.1, stepsize=10_000)
    >>> plan = segments_to_run(SolverSettings(SolverType.SGD, policy, momentum=0.9), 15_000, 3000)
    >>> [(segment.first, segment.end, segment.before) for segment in plan]
    [(9949, 10102, 9949), (14999, 15000, 4897)]
    """
    if length <= budget:
        return (RunSegment(0, length),)
    if not has_momentum(solver):
        return (RunSegment(0, budget),)
    policy = solver.policy
    often = policy.type is PolicyType.STEP and length // policy.stepsize > budget // 10
    found = None if often else lr_policy.changes(policy, length)
    memory = min(max(math.ceil(5 / max(1 - solver.momentum, 0.01)), 20), budget // 4)
    around = list(_around(found or (), memory, length))
    if found is None or sum(end - first for first, end in around) > budget:
        count = max(budget // SEGMENT, 1)
        starts = [k * (length - SEGMENT) // max(count - 1, 1) for k in range(count)]
        return tuple(RunSegment(first, first + SEGMENT, fresh=True) for first in starts)
    plan, done = [], 0
    for first, end in around:
        plan.append(RunSegment(first, end, before=first - done))
        done = end
    if done < length:
        plan.append(RunSegment(length - 1, length, before=length - 1 - done))
    return tuple(plan)


def _around(changes: Sequence[int], memory: int, length: int) -> Iterator[tuple[int, int]]:
    """The iterations around each change, those that meet as one: a history's length before, twice that after."""
    begin, end = None, 0
    for change in changes:
        if begin is not None and change - memory > end:
            yield begin, end
            begin = None
        begin = max(change - memory, 0) if begin is None else begin
        end = min(change + 2 * memory, length)
    if begin is not None:
        yield begin, end


def _problem(multipliers: Sequence[tuple[float, float]]) -> tuple[nn.Module, list[GroupPlan]]:
    """A model of ``NUMBERS`` weights for each pair of multipliers, at 0."""
    model, groups = nn.Module(), []
    for k, (lr_mult, decay_mult) in enumerate(multipliers):
        model.register_parameter(f"w{k}", nn.Parameter(torch.zeros(NUMBERS, dtype=torch.float64)))
        groups.append(GroupPlan(f"w{k}", lr_mult, decay_mult, (GroupMember(f"w{k}", None),)))
    return model, groups


def _stock(model: nn.Module, groups: Sequence[GroupPlan], solver: SolverSettings) -> torch.optim.Optimizer:
    """The optimizer of a careful person with torch alone."""
    arguments = stock_arguments(solver)
    values = {name: tuple(getattr(solver, one) for one in taken) for name, taken in arguments.items()}
    options = {name: value if name == "betas" else value[0] for name, value in values.items()}
    made: torch.optim.Optimizer = getattr(torch.optim, SOLVERS[solver.type].stock)(
        [
            {"params": [p], "lr": 0.1, "weight_decay": solver.weight_decay * group.decay_mult}
            for p, group in zip(model.parameters(), groups, strict=True)
        ],
        **options,
        **(SOLVERS[solver.type].fixed if options else {}),
    )
    return made


def _set(
    optimizer: torch.optim.Optimizer,
    solver: SolverSettings,
    multipliers: Sequence[tuple[float, float]],
    iteration: int,
    *,
    ramped: bool,
) -> None:
    """What the groups say at an iteration; ``ramped`` settings are those that only Caffe's forks change."""
    now = rate(solver.policy, iteration)
    for group, (lr_mult, decay_mult) in zip(optimizer.param_groups, multipliers, strict=True):
        group["lr"] = now * lr_mult
        if ramped and ramps(solver):
            if "momentum" in group:
                group["momentum"] = momentum_at(solver, iteration, now)
            group["weight_decay"] = weight_decay_at(solver, iteration) * decay_mult


def _move(
    solver: SolverSettings,
    segment: RunSegment,
    multipliers: Sequence[tuple[float, float]],
    paths: Sequence[Sequence[nn.Parameter]],
    generator: torch.Generator,
) -> None:
    """Move both as far as ``segment.before`` steps at one rate would: each gradient counts 1 / (1 - momentum) times."""
    now = rate(solver.policy, max(segment.first - 1, 0))
    size = now / max(1 - solver.momentum, 1e-3) * math.sqrt(segment.before)
    for k, (lr_mult, _) in enumerate(multipliers):
        moved = size * lr_mult * torch.randn(NUMBERS, generator=generator, dtype=torch.float64)
        for path in paths:
            with torch.no_grad():
                path[k].sub_(moved)
