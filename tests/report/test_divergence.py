"""The two paths that the picture of divergence compares are Caffe's and real torch's; what it says of them holds."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy_caffe import Caffe

from caffe2torch.recipe import LrPolicy, PolicyType, Ramp, Regularization, SolverSettings, SolverType
from caffe2torch.report.rate_plot import Run, divergence_panel, say_divergence
from caffe2torch.report.simulate import CAFFE, STOCK, differences, diverge, walk
from caffe2torch.solver.lr_policy import rates

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


def paths(solver: SolverSettings) -> tuple[np.ndarray, np.ndarray]:
    """Both paths on the same gradients, ``[iteration, world, number]``, and the gradients."""
    gradients = np.random.default_rng(5).standard_normal((ITERATIONS, len(MULTIPLIERS)))
    return np.array([weights.copy() for weights in walk(solver, MULTIPLIERS, gradients)]), gradients


def name(solver: SolverSettings) -> str:
    return f"{solver.type}-{solver.momentum:g}"


@pytest.mark.parametrize("solver", SOLVERS, ids=name)
def test_one_path_is_caffes(solver: SolverSettings) -> None:
    walked, gradients = paths(solver)
    lr_mult, decay_mult = ({str(k): pair[side] for k, pair in enumerate(MULTIPLIERS)} for side in (0, 1))
    caffe = Caffe(solver, lr_mult, decay_mult, {str(k): np.zeros(1, np.float32) for k in range(len(MULTIPLIERS))})
    for t, gradient in enumerate(gradients):
        caffe.step({str(k): np.array([g], np.float32) for k, g in enumerate(gradient)})
        reached = np.concatenate([caffe.weights[str(k)] for k in range(len(MULTIPLIERS))])
        assert walked[t, CAFFE] == pytest.approx(reached, rel=2e-5, abs=2e-6), t


def stock(solver: SolverSettings, groups: list[dict[str, object]]) -> torch.optim.Optimizer:
    """What a careful person writes with torch alone."""
    match solver.type:
        case SolverType.SGD | SolverType.NESTEROV:
            return torch.optim.SGD(groups, momentum=solver.momentum, nesterov=solver.type is SolverType.NESTEROV)
        case SolverType.ADAGRAD:
            return torch.optim.Adagrad(groups, eps=solver.delta)
        case SolverType.RMSPROP:
            return torch.optim.RMSprop(groups, alpha=solver.rms_decay, eps=solver.delta)
        case SolverType.ADADELTA:
            return torch.optim.Adadelta(groups, rho=solver.momentum, eps=solver.delta)
    return torch.optim.Adam(groups, betas=(solver.momentum, solver.momentum2), eps=solver.delta)


@pytest.mark.parametrize("solver", SOLVERS, ids=name)
def test_the_other_path_is_torchs(solver: SolverSettings) -> None:
    walked, gradients = paths(solver)
    weights = [torch.zeros(1, dtype=torch.float64, requires_grad=True) for _ in MULTIPLIERS]
    base = solver.policy.base_lr
    groups = [
        {"params": [w], "lr": base * lr_mult, "weight_decay": solver.weight_decay * decay_mult}
        for w, (lr_mult, decay_mult) in zip(weights, MULTIPLIERS, strict=True)
    ]
    optimizer = stock(solver, groups)
    every = list(rates(solver.policy, ITERATIONS))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: every[min(i, ITERATIONS - 1)] / base)
    for t, gradient in enumerate(gradients):
        for w, g in zip(weights, gradient, strict=True):
            w.grad = torch.tensor([g], dtype=torch.float64)
        optimizer.step()
        scheduler.step()
        assert walked[t, STOCK] == pytest.approx([w.item() for w in weights], rel=1e-5), t


@pytest.mark.parametrize("solver", SOLVERS, ids=name)
def test_the_paths_part_where_a_difference_is_named_and_nowhere_else(solver: SolverSettings) -> None:
    found = diverge(solver, MULTIPLIERS, range(ITERATIONS))
    parted = max(max(distances) for distances in found.distances) > 0
    assert parted == bool(differences(solver))


def test_sgd_follows_caffe_until_the_rate_changes() -> None:
    found = diverge(SOLVERS[0], MULTIPLIERS, range(ITERATIONS))
    for distances in found.distances:
        assert set(distances[:20]) == {0.0}
        assert min(distances[21:40]) > 0.01


def test_a_distance_is_the_largest_one_over_the_farthest_that_caffe_went() -> None:
    solver = SOLVERS[0]
    found = diverge(solver, [(1.0, 1.0)], range(ITERATIONS), seed=3)
    gradients = np.random.default_rng(3).standard_normal((ITERATIONS, 64))
    farthest = 0.0
    for t, weights in enumerate(walk(solver, [(1.0, 1.0)] * 64, gradients)):
        farthest = max(farthest, np.abs(weights[CAFFE]).max())
        apart = np.abs(weights[CAFFE] - weights[STOCK]).max()
        assert found.distances[0][t] == pytest.approx(apart / farthest, abs=1e-11)


def test_for_sgd_the_size_of_the_gradients_plays_no_part() -> None:
    gradients = np.random.default_rng(1).standard_normal((ITERATIONS, 2))
    ones = np.array([w.copy() for w in walk(SOLVERS[0], MULTIPLIERS, gradients)])
    tens = np.array([w.copy() for w in walk(SOLVERS[0], MULTIPLIERS, 10 * gradients)])
    assert tens == pytest.approx(10 * ones)


def test_l1_and_ramps_are_things_that_torch_lacks() -> None:
    fixed = SolverSettings(SolverType.SGD, LrPolicy(PolicyType.FIXED, base_lr=0.1), momentum=0.9, weight_decay=0.01)
    l1 = replace(fixed, regularization=Regularization.L1)
    ramp = replace(fixed, momentum_ramp=Ramp(maximum=0.99, power=1.0, max_iter=ITERATIONS))
    assert differences(fixed) == ()
    assert differences(l1) == ("torch's weight_decay is L2, Caffe's is L1 here",)
    assert differences(ramp) == ("torch's schedulers leave momentum and weight_decay as they are",)
    for solver in (l1, ramp):
        assert diverge(solver, [(1.0, 1.0)], [ITERATIONS]).distances[0][0] > 1e-3
    lanes = {str(k): 1.0 for k in range(2)}
    for solver in (l1, ramp):
        walked, gradients = paths(solver)
        caffe = Caffe(solver, {"0": 1.0, "1": 2.0}, {"0": 1.0, "1": 0.0}, {k: np.zeros(1, np.float32) for k in lanes})
        for gradient in gradients:
            caffe.step({str(k): np.array([g], np.float32) for k, g in enumerate(gradient)})
        assert walked[-1, CAFFE] == pytest.approx([float(caffe.weights[k][0]) for k in lanes], rel=1e-4)


def test_a_constant_gradient_after_a_drop_goes_as_is_known() -> None:
    """Thirty steps at a tenth of the rate, after a long time at 1: Caffe coasts 107.6 on, stock torch 30."""
    policy = LrPolicy(PolicyType.MULTISTEP, base_lr=1.0, gamma=0.1, stepvalues=(500,))
    solver = SolverSettings(SolverType.SGD, policy, momentum=0.9)
    walked = [weights.copy() for weights in walk(solver, [(1.0, 1.0)], np.ones((530, 1)))]
    moved = walked[-1] - walked[499]
    assert moved[CAFFE, 0] == pytest.approx(-107.6, abs=0.1)
    assert moved[STOCK, 0] == pytest.approx(-30.0, abs=0.1)


def test_what_is_no_number_does_not_stop_it() -> None:
    solver = SolverSettings(SolverType.SGD, LrPolicy(PolicyType.POLY, 0.1, power=0.5, max_iter=10), momentum=0.9)
    (distances,) = diverge(solver, [(1.0, 1.0)], range(20)).distances
    assert all(math.isfinite(x) for x in distances[:11])
    assert all(math.isnan(x) for x in distances[11:])
    panel, (found,) = divergence_panel([Run(solver, 20)], [(1.0, 1.0)])
    assert [i for i, _ in panel.curves[0].points] == list(range(11))
    assert "nan" not in say_divergence(Run(solver, 20), found)
