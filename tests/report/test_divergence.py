"""The two optimizers that the picture of divergence compares are Caffe's and torch's; what it says of them holds."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from caffe2torch.recipe import LrPolicy, PolicyType, Ramp, Regularization, SolverSettings, SolverType
from caffe2torch.report.rate_plot import Run, divergence_panel, say_divergence
from caffe2torch.verification.simulate import BUDGET, differences, diverge, effect, segments_to_run

STEP = LrPolicy(PolicyType.STEP, base_lr=0.1, gamma=0.1, stepsize=20)
MULTIPLIERS = ((1.0, 1.0), (2.0, 0.0))
ITERATIONS = 60
SOLVERS = [
    SolverSettings(SolverType.SGD, STEP, momentum=0.9, weight_decay=0.01),
    SolverSettings(SolverType.SGD, STEP, weight_decay=0.01),
    SolverSettings(SolverType.NESTEROV, STEP, momentum=0.95, weight_decay=0.01),
    SolverSettings(SolverType.ADAGRAD, STEP, weight_decay=0.01, delta=1e-3),
    SolverSettings(SolverType.RMSPROP, STEP, weight_decay=0.01, rms_decay=0.9, delta=1e-3),
    SolverSettings(SolverType.ADADELTA, STEP, momentum=0.95, weight_decay=0.01, delta=1e-3),
    SolverSettings(SolverType.ADAM, STEP, momentum=0.9, weight_decay=0.01, delta=0.1),
]


def name(solver: SolverSettings) -> str:
    return f"{solver.type}-{solver.momentum:g}"


@pytest.mark.parametrize("solver", SOLVERS, ids=name)
def test_the_paths_part_where_a_difference_is_named_and_nowhere_else(solver: SolverSettings) -> None:
    found = diverge(solver, MULTIPLIERS, ITERATIONS, BUDGET)
    farthest = max(max(distances) for distances in found.distances)
    # rms_decay and rho are float32 in Caffe: the library's optimizer has them so, and that alone is 1e-8 apart
    assert (farthest > 1e-6) == bool(differences(solver))


def test_sgd_follows_caffe_until_the_rate_changes() -> None:
    found = diverge(SOLVERS[0], MULTIPLIERS, ITERATIONS, BUDGET)
    for distances in found.distances:
        assert set(distances[:20]) == {0.0}
        assert min(distances[21:40]) > 0.01


def test_l1_and_ramps_are_things_that_torch_lacks() -> None:
    fixed = SolverSettings(SolverType.SGD, LrPolicy(PolicyType.FIXED, base_lr=0.1), momentum=0.9, weight_decay=0.01)
    l1 = replace(fixed, regularization=Regularization.L1)
    ramp = replace(fixed, momentum_ramp=Ramp(maximum=0.99, power=1.0, max_iter=ITERATIONS))
    assert differences(fixed) == ()
    assert differences(l1) == ("torch's weight_decay is L2, Caffe's is L1 here",)
    assert differences(ramp) == ("torch's schedulers leave momentum and weight_decay as they are",)
    for solver in (l1, ramp):
        assert diverge(solver, [(1.0, 1.0)], ITERATIONS, BUDGET).distances[0][-1] > 1e-3


def test_what_is_left_out_of_a_long_run_hardly_changes_the_figure() -> None:
    """What lies between changes in one move each, against every iteration: the same size over some seeds."""
    policy = LrPolicy(PolicyType.STEP, base_lr=0.1, gamma=0.1, stepsize=1500)
    solver = SolverSettings(SolverType.SGD, policy, momentum=0.9, weight_decay=0.0005, max_iter=4000)
    figures = []
    for budget in (4000, 1000):
        ends = [diverge(solver, [(1.0, 1.0)], 4000, budget, [], seed=seed).distances[0][-1] for seed in range(4)]
        figures.append(sum(ends) / len(ends))
    assert figures[1] == pytest.approx(figures[0], rel=0.4)
    assert 0.005 < figures[0] < 0.1


def test_a_run_longer_than_the_budget_is_run_where_the_paths_part() -> None:
    policy = LrPolicy(PolicyType.MULTISTEP, base_lr=0.1, gamma=0.1, stepvalues=(40_000, 40_010, 90_000))
    solver = SolverSettings(SolverType.SGD, policy, momentum=0.9, max_iter=100_000)
    plan = segments_to_run(solver, 100_000, BUDGET)
    run = {i for segment in plan for i in range(segment.first, segment.end)}
    assert {40_000, 40_010, 90_000, 99_999} <= run
    assert len(run) + sum(segment.before for segment in plan) == 100_000
    often = replace(solver, policy=LrPolicy(PolicyType.POLY, base_lr=0.1, power=1.0, max_iter=100_000))
    plan = segments_to_run(often, 100_000, BUDGET)
    assert sum(segment.end - segment.first for segment in plan) == BUDGET
    assert all(segment.fresh for segment in plan)
    assert (plan[0].first, plan[-1].end) == (0, 100_000)


def test_the_effect_is_a_sentence_with_its_problem_and_seed() -> None:
    said = effect(replace(SOLVERS[0], max_iter=ITERATIONS))
    assert "% of their movement away" in said
    assert said.endswith("(simulated: 64 weights, normal gradients, seed 0)")
    assert effect(SOLVERS[0]) == ""  # no max_iter, no run
    long = replace(SOLVERS[0], policy=replace(STEP, stepsize=50_000), max_iter=150_000)
    assert "of 150,000 iterations one by one" in effect(long)


def test_what_is_no_number_does_not_stop_it() -> None:
    solver = SolverSettings(SolverType.SGD, LrPolicy(PolicyType.POLY, 0.1, power=0.5, max_iter=10), momentum=0.9)
    (distances,) = diverge(solver, [(1.0, 1.0)], 20, BUDGET).distances
    assert all(math.isfinite(x) for x in distances[:10])
    assert all(math.isnan(x) for x in distances[11:])
    panel, (found,) = divergence_panel([Run(solver, 20)], [(1.0, 1.0)])
    assert [i for i, _ in panel.curves[0].points] in (list(range(10)), list(range(11)))
    assert "nan" not in say_divergence(Run(solver, 20), found)
