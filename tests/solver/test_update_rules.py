"""The scalar rules of the measuring room are Caffe's: they repeat every recorded run, number by number."""

from __future__ import annotations

import math

import numpy as np
import pytest
from places import REPOSITORY
from traces import Trace, traces

from caffe2torch.recipe import SolverSettings, SolverType
from caffe2torch.solver.lr_policy import momentum_at, weight_decay_at
from caffe2torch.solver.update_rules import Decay, History, Rule, StepSettings, movements
from caffe2torch.verification.candidate_rules import caffe_rule

RECORDED = REPOSITORY.parent / "shared/goldens/bvlc"
FED_WHAT_BACKWARD_CANNOT_GIVE = "sgd_fixed_clip_frozen_nonzero"


def clipped(solver: SolverSettings, gradients: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Gradients as they are after Caffe's ``ClipGradients``."""
    if solver.clip_gradients is None:
        return gradients
    norms = np.sqrt(sum((g.astype(np.float64) ** 2).reshape(len(g), -1).sum(1) for g in gradients.values()))
    scale = np.minimum(1.0, solver.clip_gradients / np.where(norms == 0, np.inf, norms))
    return {name: g * scale.reshape(-1, *(1,) * (g.ndim - 1)) for name, g in gradients.items()}


def worst(trace: Trace) -> float:
    """The largest difference to Caffe's weights after any iteration, in terms of what float32 makes of it.

    That is 4e-6 of the largest movement, and 4 roundings of the largest weight.
    """
    recipe = trace.recipe()
    solver = recipe.solver
    assert solver is not None
    rule = caffe_rule(solver)
    gradients = clipped(solver, {name: trace.arrays[f"grad/{name}"] for name in trace.names})
    off, largest = 0.0, 0.0
    for blob, name in zip(recipe.blobs, trace.names, strict=True):
        settings = [
            StepSettings(
                rate * blob.lr_mult, momentum_at(solver, i, rate), weight_decay_at(solver, i) * blob.decay_mult
            )
            for i, rate in enumerate(map(float, trace.arrays["lr"]))
        ]
        fed = gradients[name].reshape(trace.iterations, -1).T if blob.lr_mult else None
        seen = trace.arrays[f"weight/{name}"].reshape(trace.iterations, -1).T
        for k, start in enumerate(map(float, trace.arrays[f"init/{name}"].reshape(-1))):
            given = [0.0] * trace.iterations if fed is None else list(map(float, fed[k]))
            moved = movements(rule, settings, (start, *(None,) * (trace.iterations - 1)), given)
            made = start + np.cumsum(moved)
            assert np.array_equal(np.isnan(made), np.isnan(seen[k]))
            off = max(off, float(np.nanmax(np.abs(made - seen[k]))))
            largest = max(largest, float(np.nanmax(np.abs(seen[k]))))
    return off / (4e-6 * trace.movement + 4 * 2.0**-24 * largest)


@pytest.mark.shared
@pytest.mark.parametrize("trace", traces(RECORDED), ids=lambda trace: trace.case)
def test_a_recorded_run_is_repeated(trace: Trace) -> None:
    if trace.case == FED_WHAT_BACKWARD_CANNOT_GIVE:
        pytest.skip("its frozen blobs were fed gradients")
    assert worst(trace) <= 1


@pytest.mark.parametrize("trace", traces(REPOSITORY / "fixtures/traces"), ids=lambda trace: trace.case)
def test_a_run_of_the_projects_own_fixtures_is_repeated(trace: Trace) -> None:
    assert worst(trace) <= 1


def test_another_rule_does_not_repeat_a_run() -> None:
    """The comparison can fail: the same run without the rate inside the history is far off."""
    trace = next(t for t in traces(REPOSITORY / "fixtures/traces") if t.case == "nesterov_poly")
    assert worst(trace) <= 1
    settings = [StepSettings(float(rate), 0.9, 0.0) for rate in trace.arrays["lr"]]
    free = (0.0, *(None,) * (len(settings) - 1))
    inside, outside = (
        sum(movements(Rule(SolverType.NESTEROV, history=history), settings, free, [1.0] * len(settings)))
        for history in (History.RATE_INSIDE, History.RATE_OUTSIDE)
    )
    assert abs(inside - outside) > 0.1 * abs(inside)


def test_decay_joins_the_gradient_or_shrinks_the_weight() -> None:
    setting = [StepSettings(0.5, 0.0, 0.1)]
    for decay, moved in ((Decay.L2, -0.1), (Decay.L1, -0.05), (Decay.DECOUPLED, -0.1)):
        assert movements(Rule(SolverType.SGD, decay=decay), setting, [2.0], [0.0]) == pytest.approx((moved,))
    assert movements(Rule(SolverType.SGD, decay=Decay.L1), setting, [-0.0], [0.0]) == (0.0,)


def test_a_division_by_zero_is_c_s() -> None:
    """AdaGrad without delta: 0/0 where there never was a gradient, as in Caffe."""
    rule = Rule(SolverType.ADAGRAD, delta=0.0)
    assert math.isnan(movements(rule, [StepSettings(0.1, 0.0, 0.0)], [0.0], [0.0])[0])
