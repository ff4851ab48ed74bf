"""The scheduler: one step an iteration, exact, resumable, and a torch scheduler like any other."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from places import REPOSITORY
from torch.optim.lr_scheduler import LRScheduler
from traces import Trace, tolerance, traces

from caffe2torch.binding.plan import GroupMember, GroupPlan
from caffe2torch.optim.build import build_optimizer
from caffe2torch.optim.schedule import CaffeLRScheduler, build_scheduler
from caffe2torch.recipe import LrPolicy, PolicyType, Ramp, SolverSettings, SolverType
from caffe2torch.solver.lr_policy import momentum_at, rates, weight_decay_at

SHARED = traces(REPOSITORY.parent / "shared" / "goldens" / "bvlc")
SNAPPED = [pytest.param(trace, id=trace.case) for trace in SHARED if trace.case.startswith("snap_")]
MULTISTEP = LrPolicy(PolicyType.MULTISTEP, base_lr=0.1, gamma=0.5, stepvalues=(3, 3, 5))
SOLVER = SolverSettings(SolverType.SGD, MULTISTEP, momentum=0.9, weight_decay=0.1)
GROUPS = (
    GroupPlan("weight", 1.0, 1.0, (GroupMember("weight", None),)),
    GroupPlan("bias", 2.0, 0.0, (GroupMember("bias", None),)),
)


def build(solver: SolverSettings = SOLVER) -> tuple[torch.optim.Optimizer, CaffeLRScheduler]:
    optimizer = build_optimizer(torch.nn.Linear(2, 2), GROUPS, solver)
    return optimizer, build_scheduler(optimizer, solver)


def step(optimizer: torch.optim.Optimizer, scheduler: LRScheduler, times: int = 1) -> None:
    for _ in range(times):
        optimizer.step()
        scheduler.step()


def test_it_is_a_torch_scheduler_and_reports_its_rates_as_one() -> None:
    optimizer, scheduler = build()
    assert isinstance(scheduler, LRScheduler)
    for rate in rates(MULTISTEP, 8):
        assert [group["lr"] for group in optimizer.param_groups] == [rate, 2 * rate] == scheduler.get_last_lr()
        step(optimizer, scheduler)


def test_get_lr_may_be_asked_at_any_time_without_moving_the_counter() -> None:
    optimizer, scheduler = build()
    step(optimizer, scheduler, 3)
    assert [scheduler.get_lr() for _ in range(5)] == [scheduler.get_last_lr()] * 5
    assert scheduler.current_step == 1


def test_it_resumes_within_a_run_of_repeated_stepvalues() -> None:
    for stop in range(8):
        optimizer, scheduler = build()
        step(optimizer, scheduler, stop)
        other, resumed = build()
        resumed.load_state_dict(scheduler.state_dict())
        assert [group["lr"] for group in other.param_groups] == [group["lr"] for group in optimizer.param_groups]
        for _ in range(5):
            step(optimizer, scheduler)
            step(other, resumed)
            assert resumed.get_last_lr() == scheduler.get_last_lr()
            assert resumed.current_step == scheduler.current_step


def test_its_state_holds_numbers_only() -> None:
    _, scheduler = build()
    assert scheduler.state_dict() == {
        "last_epoch": 0,
        "_step_count": 1,
        "_last_lr": [pytest.approx(0.1), pytest.approx(0.2)],
        "current_step": 0,
    }


def test_a_counter_that_lags_behind_catches_up_one_step_an_iteration() -> None:
    optimizer, scheduler = build()
    scheduler.restore(iteration=10, current_step=0)
    seen = []
    for _ in range(4):
        seen.append(optimizer.param_groups[0]["lr"])
        step(optimizer, scheduler)
    assert seen == pytest.approx([0.05, 0.025, 0.0125, 0.0125])


def test_last_iteration_starts_behind_it() -> None:
    solver = replace(SOLVER, policy=LrPolicy(PolicyType.EXP, base_lr=0.1, gamma=0.5))
    optimizer = build_optimizer(torch.nn.Linear(2, 2), GROUPS, solver)
    scheduler = build_scheduler(optimizer, solver, last_iteration=3)
    assert scheduler.last_epoch == 4
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**4)


def test_a_rate_of_zero_is_not_a_multiplier_of_zero() -> None:
    """Without gamma the rate drops to 0, and history goes on moving the weights; they still get gradients."""
    solver = replace(SOLVER, policy=LrPolicy(PolicyType.STEP, base_lr=0.1, stepsize=1))
    model = torch.nn.Linear(2, 2)
    optimizer = build_optimizer(model, GROUPS, solver)
    scheduler = build_scheduler(optimizer, solver)
    model.weight.grad = torch.ones(2, 2)
    step(optimizer, scheduler)
    assert optimizer.param_groups[0]["lr"] == 0
    before = model.weight.detach().clone()
    optimizer.zero_grad()
    step(optimizer, scheduler)
    assert model.weight.requires_grad
    assert not torch.equal(model.weight, before)


def test_momentum_and_decay_follow_their_policies() -> None:
    solver = replace(SOLVER, momentum=0.0, momentum_ramp=Ramp(0.9, 2.0, 10), weight_decay_ramp=Ramp(0.5, 1.0, 10))
    optimizer, scheduler = build(solver)
    for i in range(10):
        weight, bias = optimizer.param_groups
        assert weight["momentum"] == bias["momentum"] == (momentum_at(solver, i, 0.1) or sys.float_info.min)
        assert weight["weight_decay"] == weight_decay_at(solver, i)
        assert bias["weight_decay"] == 0
        step(optimizer, scheduler)


def test_the_groups_begin_with_the_rate_of_iteration_0_without_a_scheduler() -> None:
    policies = {
        LrPolicy(PolicyType.FIXED, base_lr=0.1): 0.1,
        LrPolicy(PolicyType.MULTISTEP, base_lr=0.1, gamma=0.5, stepvalues=(0,)): 0.05,
        LrPolicy(PolicyType.FIXED, base_lr=0.1, rampup_interval=5, rampup_lr=0.01): 0.01,
        LrPolicy(PolicyType.MULTIFIXED, stage_lrs=(0.3, 0.2), stage_iters=(5, 9)): 0.3,
    }
    for policy, rate in policies.items():
        optimizer = build_optimizer(torch.nn.Linear(2, 2), GROUPS, replace(SOLVER, policy=policy))
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([rate, 2 * rate])


@pytest.mark.shared
@pytest.mark.parametrize("trace", SNAPPED)
def test_a_run_restored_from_a_snapshot_ends_where_caffe_ended(trace: Trace) -> None:
    """Weights and history as the snapshot has them: the rest of the run is Caffe's, with other stepvalues as well."""
    renewed = trace.folder / "solver_resume.prototxt"
    recipe = trace.recipe(renewed.name if renewed.exists() else "solver.prototxt")
    assert recipe.solver is not None
    done = int(trace.arrays["snap_iter"])
    model = trace.model("weight", done - 1)
    optimizer = build_optimizer(model, trace.groups(recipe), recipe.solver)
    scheduler = build_scheduler(optimizer, recipe.solver)
    scheduler.restore(done, int(trace.arrays["current_step"][done - 1]))
    keep = sum(key.startswith("snap_history/") for key in trace.arrays)
    histories = [torch.tensor(trace.arrays[f"snap_history/{i}"]) for i in range(keep)]
    keys = {
        SolverType.SGD: ["momentum_buffer"],
        SolverType.NESTEROV: ["momentum_buffer"],
        SolverType.ADAGRAD: ["sum"],
        SolverType.RMSPROP: ["square_avg"],
        SolverType.ADADELTA: ["square_avg", "acc_delta"],
        SolverType.ADAM: ["exp_avg", "exp_avg_sq"],
    }[recipe.solver.type]
    parameters = dict(model.named_parameters())
    for group in optimizer.param_groups:
        for name in group["param_names"]:
            p, i = parameters[name], trace.names.index(name)
            if not p.requires_grad:
                continue
            for k, key in enumerate(keys):
                history = histories[i + k * len(trace.names)].clone()
                optimizer.state[p][key] = history / group["reference_lr"] if key == "momentum_buffer" else history
            if keys != ["momentum_buffer"]:
                optimizer.state[p]["step"] = torch.tensor(float(done))
    for t in range(done, trace.iterations):
        trace.feed(model, t)
        optimizer.step()
        scheduler.step()
        for name, theirs in trace.weights(t - done, "resumed_weight"):
            apart = parameters[name].detach() - torch.from_numpy(theirs)
            assert float(apart.abs().max()) <= tolerance(recipe.solver) * trace.movement
