"""After the first step, nothing is allocated that grows with the parameters."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from caffe2torch.binding.plan import GroupMember, GroupPlan
from caffe2torch.optim.build import build_optimizer
from caffe2torch.optim.schedule import build_scheduler
from caffe2torch.recipe import LrPolicy, PolicyType, Regularization, SolverSettings, SolverType

SIZE = 100_000
NAMES = ("a", "b", "c")
SGD = SolverSettings(
    SolverType.SGD, LrPolicy(PolicyType.EXP, base_lr=0.01, gamma=0.99), momentum=0.9, weight_decay=5e-4
)
FUSED = {
    "SGD": SGD,
    "SGD without momentum": replace(SGD, momentum=0.0),
    "SGD clipped": replace(SGD, clip_gradients=1.0, iter_size=2),
    "SGD clipped to nothing": replace(SGD, clip_gradients=0.0),
    "Nesterov": replace(SGD, type=SolverType.NESTEROV),
    "Nesterov clipped": replace(SGD, type=SolverType.NESTEROV, clip_gradients=1.0),
    "AdaGrad": replace(SGD, type=SolverType.ADAGRAD, clip_gradients=1.0),
    "Adam": replace(SGD, type=SolverType.ADAM),
    "Adam clipped": replace(SGD, type=SolverType.ADAM, clip_gradients=1.0, iter_size=2),
}
NOT_FUSED = {
    "RMSProp": replace(SGD, type=SolverType.RMSPROP),
    "AdaDelta": replace(SGD, type=SolverType.ADADELTA),
    "L1": replace(SGD, regularization=Regularization.L1),
}


def largest_allocation(solver: SolverSettings) -> int:
    """Bytes of the largest piece of memory that the third step asks for."""
    model = torch.nn.ParameterDict({name: torch.nn.Parameter(torch.randn(SIZE)) for name in NAMES})
    groups = [GroupPlan("all", 1.0, 1.0, tuple(GroupMember(name, None) for name in NAMES))]
    optimizer = build_optimizer(model, groups, solver)
    scheduler = build_scheduler(optimizer, solver)
    for p in model.values():
        p.grad = torch.randn(SIZE)
    for _ in range(2):
        optimizer.step()
        scheduler.step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        optimizer.step()
        scheduler.step()
    return max((event.self_cpu_memory_usage for event in seen.events()), default=0)


@pytest.mark.parametrize("name", FUSED)
def test_a_fused_update_allocates_nothing_that_grows(name: str) -> None:
    assert largest_allocation(FUSED[name]) < 1000


@pytest.mark.parametrize("name", NOT_FUSED)
def test_the_others_allocate_what_one_parameter_needs_at_a_time(name: str) -> None:
    """Torch has no fused RMSprop and Adadelta, and L1 takes the signs of a parameter: the check sees those."""
    assert 1000 < largest_allocation(NOT_FUSED[name]) <= 4 * SIZE + 64
