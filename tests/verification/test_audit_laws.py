"""Laws: a random mutation of a right optimizer is found where it was made, and a right optimizer is never blamed."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from small_net import SmallNet, recipe_of, wrong
from solver_strategies import MOMENTUM, PAIRS, policies, solvers

from caffe2torch.binding.plan import plan_groups
from caffe2torch.optim.build import build_optimizer
from caffe2torch.optim.schedule import build_scheduler
from caffe2torch.recipe import LrPolicy, PolicyType, SolverSettings, SolverType
from caffe2torch.solver.lr_policy import rate, torch_scheduler
from caffe2torch.verification.follow_scheduler import follow
from caffe2torch.verification.rate_schedule import along_the_run
from caffe2torch.verification.report import Report
from caffe2torch.verification.run_probe import observe
from caffe2torch.verification.verify import verify


class Case:
    """A translated optimizer and its recipe; ``report`` looks at it as it is by then."""

    def __init__(self, solver: SolverSettings, norms: Any, others: Any, *, scheduled: bool) -> None:
        self.model = SmallNet()
        self.recipe, self.binding = recipe_of(self.model, solver, norms=norms, others=others)
        self.groups = plan_groups(self.recipe, self.binding)
        self.optimizer = build_optimizer(self.model, self.groups, solver)
        self.scheduler = build_scheduler(self.optimizer, solver) if scheduled else None

    def report(self) -> Report:
        assert self.recipe.solver is not None
        seen = observe(self.model, self.optimizer, self.recipe.solver, self.scheduler)
        return verify(self.recipe, self.binding, self.groups, seen)

    def trained(self) -> list[torch.Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad]

    def names(self, parameters: list[torch.Tensor]) -> set[str]:
        return {name for name, p in self.model.named_parameters() if any(p is other for other in parameters)}


pairs = st.tuples(st.sampled_from(PAIRS), st.sampled_from(PAIRS))


@settings(max_examples=12)
@given(solvers(), pairs, pairs, st.booleans())
def test_a_right_optimizer_is_never_blamed(solver: SolverSettings, norms: Any, others: Any, scheduled: bool) -> None:
    report = Case(solver, norms, others, scheduled=scheduled).report()
    assert report.ok, str(report)


@pytest.mark.parametrize("gamma", [0.1, 0.2, 1e-3])
def test_a_rate_that_falls_below_what_doubles_hold_beside_the_first_one_is_no_difference(gamma: float) -> None:
    """There ``1 - lr / reference`` is 1, and the stock step at this dampening takes no gradient in."""
    policy = LrPolicy(PolicyType.EXP, base_lr=1.0, gamma=gamma, max_iter=60)
    solver = SolverSettings(type=SolverType.SGD, policy=policy, momentum=0.9, weight_decay=0.001, max_iter=60)
    ones = ((1.0, 1.0), (1.0, 1.0))
    report = Case(solver, ones, ones, scheduled=True).report()
    assert report.ok, str(report)


steady = st.builds(LrPolicy, st.just(PolicyType.FIXED), st.sampled_from([0.1, 0.01, 1e-5]))
factors = st.sampled_from([0.1, 0.5, 0.99, 1.01, 2.0, 3.0, 10.0, -1.0])


@settings(max_examples=10)
@given(solvers(steady), pairs, st.data())
def test_a_group_with_another_rate_or_decay_is_found(solver: SolverSettings, norms: Any, data: st.DataObject) -> None:
    case = Case(solver, norms, ((1.0, 1.0), (2.0, 0.5)), scheduled=False)
    key = data.draw(st.sampled_from(["lr", "weight_decay"]))
    alive = [group for group in case.optimizer.param_groups if group["lr"]]
    group = data.draw(st.sampled_from(alive))
    if group[key] == 0:
        group[key] = data.draw(st.sampled_from([1e-5, 1e-3, 0.1]))
    else:
        group[key] *= data.draw(factors)
    report = case.report()
    assert set(wrong(report)) == case.names(group["params"]), str(report)
    assert {fault.kind for row in report.wrong for fault in row.faults} & {key, "rule", "unobserved"}, str(report)


@settings(max_examples=10)
@given(solvers(steady), st.data())
def test_a_parameter_that_is_dropped_doubled_or_frozen_is_found(solver: SolverSettings, data: st.DataObject) -> None:
    case = Case(solver, ((1.0, 1.0), (1.0, 1.0)), ((1.0, 1.0), (2.0, 0.0)), scheduled=data.draw(st.booleans()))
    parameter = data.draw(st.sampled_from(case.trained()))
    home = next(g["params"] for g in case.optimizer.param_groups if any(p is parameter for p in g["params"]))
    mutation = data.draw(st.sampled_from(["drop", "double", "freeze"]))
    if mutation == "drop":
        home[:] = [p for p in home if p is not parameter]
        expected = "missing"
    elif mutation == "double":
        data.draw(st.sampled_from(case.optimizer.param_groups))["params"].append(parameter)
        expected = "duplicate"
    else:
        parameter.requires_grad_(False)
        expected = "frozen"
    report = case.report()
    found = wrong(report)
    (name,) = case.names([parameter])
    assert found[name] == expected
    if mutation == "drop" and solver.clip_gradients is not None:  # the step refuses to clip by a part of the norm
        assert all("holds only a part of the parameters" in row.reason for row in report.wrong if row.parameter != name)
        return
    # Adam's epsilon follows a count of steps that a group shares, and a doubled parameter counts twice.
    assert set(found) == {name} or (expected == "duplicate" and solver.type is SolverType.ADAM)


@settings(max_examples=10)
@given(solvers(steady), st.data())
def test_two_parameters_that_change_groups_are_both_found(solver: SolverSettings, data: st.DataObject) -> None:
    case = Case(
        replace(solver, weight_decay=0.0005), ((1.0, 1.0), (1.0, 0.0)), ((1.0, 1.0), (2.0, 0.0)), scheduled=False
    )
    first, second = data.draw(st.permutations([group["params"] for group in case.optimizer.param_groups]))[:2]
    i, j = (data.draw(st.integers(0, len(group) - 1)) for group in (first, second))
    first[i], second[j] = second[j], first[i]
    assert set(wrong(case.report())) == case.names([first[i], second[j]])


@settings(max_examples=10)
@given(solvers(steady), st.data())
def test_settings_of_the_solver_that_are_others_are_found_everywhere(
    solver: SolverSettings, data: st.DataObject
) -> None:
    """One of the numbers that all groups share: then every parameter is wrong, or a check of the run differs."""
    options: dict[str, Any] = {}
    # Below a clip gradients may be too small beside delta for it, or AdaDelta's rho, to matter.
    if solver.type in MOMENTUM and not (solver.type is SolverType.ADADELTA and solver.clip_gradients):
        options["momentum"] = 0.8
    if solver.type not in (SolverType.SGD, SolverType.NESTEROV) and solver.clip_gradients is None:
        options["delta"] = solver.delta * 3
    if solver.type is SolverType.RMSPROP:
        options["rms_decay"] = 0.9
    if solver.type is SolverType.ADAM:
        options["momentum2"] = 0.99
    if solver.iter_size == 1:
        options["iter_size"] = 2
    assume(options)
    key = data.draw(st.sampled_from(sorted(options)))
    case = Case(solver, ((1.0, 1.0), (1.0, 1.0)), ((1.0, 1.0), (2.0, 0.0)), scheduled=False)
    case.optimizer = build_optimizer(case.model, case.groups, replace(solver, **{key: options[key]}))
    report = case.report()
    assert not report.ok, f"{key}: {report}"
    assert len(report.wrong) == 10 or any(check.result == "differs" for check in report.checks), str(report)


@settings(max_examples=10)
@given(solvers(), st.data())
def test_another_policy_is_found(solver: SolverSettings, data: st.DataObject) -> None:
    other = data.draw(policies().filter(lambda policy: _differs(policy, solver.policy)))
    case = Case(solver, ((1.0, 1.0), (1.0, 1.0)), ((1.0, 1.0), (2.0, 0.0)), scheduled=False)
    case.scheduler = build_scheduler(case.optimizer, replace(solver, policy=other))
    assert not case.report().ok


def _differs(one: LrPolicy, other: LrPolicy) -> bool:
    """Whether two policies differ where an audit looks: at the start, at changes and near the end."""
    from caffe2torch.verification.probe_sequence import changes

    places = {0, 1, 2, *(i + d for i in changes(other, 60) for d in (-2, 0, 2))}
    return any(abs(rate(one, i) / rate(other, i) - 1) > 1e-3 for i in places if 0 <= i < 60)


@settings(max_examples=40)
@given(solvers(), st.sampled_from([1, 100, 30_000]))
def test_caffes_own_scheduler_never_leaves_caffes_rate_along_the_run(solver: SolverSettings, more: int) -> None:
    solver = replace(solver, max_iter=max(solver.max_iter, solver.policy.max_iter, 1) + more)
    ones = ((1.0, 1.0), (2.0, 0.0))
    case = Case(solver, ones, ones, scheduled=True)
    assert case.scheduler is not None
    followed = follow(case.optimizer, case.scheduler, solver.max_iter)
    assert followed.curves
    assert along_the_run((), solver, followed) == ()


@settings(max_examples=40)
@given(solvers())
def test_the_scheduler_that_the_fix_names_gives_caffes_rates_along_the_run(solver: SolverSettings) -> None:
    code = torch_scheduler(solver.policy)
    assume(code)
    solver = replace(solver, max_iter=max(solver.max_iter, solver.policy.max_iter, 2))
    case = Case(solver, ((1.0, 1.0), (2.0, 0.0)), ((1.0, 1.0), (2.0, 0.0)), scheduled=False)
    names = {"torch": torch, "math": math, "optimizer": case.optimizer}
    scheduler = eval(f"torch.optim.lr_scheduler.{code}", names)  # our own text
    assert along_the_run((), solver, follow(case.optimizer, scheduler, solver.max_iter)) == ()
