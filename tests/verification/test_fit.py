"""Rate and decay are read back from movements exactly, for every rule, and only a rule that fits is said to fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caffe2torch.recipe import LrPolicy, PolicyType, Regularization, SolverSettings, SolverType
from caffe2torch.solver.lr_policy import rate
from caffe2torch.solver.update_rules import Rule, StepSettings, movements
from caffe2torch.verification.candidate_rules import caffe_rule, candidates
from caffe2torch.verification.fit import close, read, still
from caffe2torch.verification.probe_sequence import Movements, Window, changes, design

FIXED = LrPolicy(PolicyType.FIXED, base_lr=0.1)
LINEAR = (SolverType.SGD, SolverType.NESTEROV)


def lived(rule: Rule, window: Window, settings: list[StepSettings]) -> Movements:
    return tuple(movements(rule, settings, sequence.weights, sequence.gradients) for sequence in window.sequences)


@given(
    st.sampled_from(list(SolverType)),
    st.sampled_from(list(Regularization)),
    st.sampled_from([1e-14, 1e-6, 0.01, 1.0]),
    st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.7, 10.0]),
    st.sampled_from([0.0, 0.0005, 0.01]),
    st.sampled_from([1, 4]),
    st.sampled_from([None, 0.1, 35.0]),
    st.sampled_from([1e-8, 0.1]),
)
def test_what_a_rule_was_run_with_is_read_back(
    kind: SolverType, norm: Regularization, lr: float, mult: float, decay: float, passes: int, clip: float, delta: float
) -> None:
    momentum = 0.9 if kind in (*LINEAR, SolverType.ADAM, SolverType.ADADELTA) else 0.0
    solver = SolverSettings(
        kind, FIXED, momentum=momentum, weight_decay=decay, regularization=norm, iter_size=passes,
        clip_gradients=clip, delta=delta,
    )  # fmt: skip
    window = design(solver, scheduled=False, numbers=600)[0]
    rule, due = caffe_rule(solver), (decay or 0.0005) * mult
    reading = read(rule, window, lived(rule, window, [StepSettings(lr, momentum, due)] * 5), [momentum] * 5)
    assert reading.explains
    assert reading.lr == pytest.approx(lr, rel=1e-9)
    assert reading.weight_decay == pytest.approx(due, rel=1e-4, abs=1e-12)


def test_a_rate_is_read_at_every_step() -> None:
    solver = SolverSettings(SolverType.SGD, FIXED, momentum=0.9)
    window = design(solver, scheduled=False)[0]
    settings = [StepSettings(rate, 0.9, 0.0) for rate in (0.1, 0.1, 0.01, 0.02, 0.0)]
    reading = read(caffe_rule(solver), window, lived(caffe_rule(solver), window, settings), [0.9] * 5)
    assert reading.rates == pytest.approx((0.1, 0.1, 0.01, 0.02, 0.0))


def test_every_suspect_is_told_from_caffes_rule_or_is_it() -> None:
    """Whatever sets a candidate rule apart shows in the sequences: no departure is invisible."""
    for kind in (SolverType.SGD, SolverType.ADAM):
        solver = SolverSettings(kind, FIXED, momentum=0.9, weight_decay=0.0005, delta=1e-3)
        window = design(solver, scheduled=False)[0]
        own = caffe_rule(solver)
        seen = lived(own, window, [StepSettings(0.1, 0.9, 0.0005)] * 5)
        for candidate in candidates(solver, window, seen):
            reading = read(candidate.rule, window, seen, [candidate.momentum] * 5)
            harmless = not candidate.faults or {fault.kind for fault in candidate.faults} == {"rate_change"}
            rates = [rate for rate in reading.rates if rate is not None]
            assert not reading.explains or harmless or not all(close(rate, rates[0]) for rate in rates)


def test_a_lane_without_movement_is_still() -> None:
    assert still((((0.0, 0.0), (-0.0, 0.0)),))
    assert not still((((0.0, 1e-300),),))


POLICIES = {
    "fixed": (LrPolicy(PolicyType.FIXED, 0.1), []),
    "step": (LrPolicy(PolicyType.STEP, 0.1, gamma=0.1, stepsize=30), [30, 60, 90]),
    "a step that changes nothing": (LrPolicy(PolicyType.STEP, 0.1, gamma=1.0, stepsize=30), []),
    "multistep": (LrPolicy(PolicyType.MULTISTEP, 0.1, gamma=0.1, stepvalues=(20, 20, 50)), [20, 21, 50]),
    "unsorted multistep": (LrPolicy(PolicyType.MULTISTEP, 0.1, gamma=0.1, stepvalues=(20, 10)), [20, 21]),
    "poly": (LrPolicy(PolicyType.POLY, 0.1, power=1.0, max_iter=100), [50, 97]),
    "warm-up": (LrPolicy(PolicyType.FIXED, 0.1, warmup_iter=10, warmup_start_lr=0.01), [10]),
    "multifixed": (LrPolicy(PolicyType.MULTIFIXED, stage_lrs=(0.1, 0.2, 0.1), stage_iters=(5, 9, 50)), [6, 10]),
}


@pytest.mark.parametrize("name", POLICIES)
def test_windows_lie_where_the_rate_changes(name: str) -> None:
    policy, expected = POLICIES[name]
    assert list(changes(policy, 100)) == expected
    solver = SolverSettings(SolverType.SGD, policy, max_iter=100)
    windows = design(solver, scheduled=True)
    assert windows[0].iteration == 0
    for change in expected:
        assert any(window.iteration < change <= window.iterations[-1] for window in windows)
        assert rate(policy, change) != rate(policy, change - 1)


def test_the_first_window_lies_where_there_is_a_rate() -> None:
    policy = LrPolicy(PolicyType.FIXED, 0.1, warmup_iter=10, warmup_start_lr=0.0)
    solver = SolverSettings(SolverType.SGD, policy)
    assert design(solver, scheduled=True)[0].iteration == 1
    assert design(solver, scheduled=False)[0].iteration == 0


def test_gradients_stay_below_the_norm_that_is_clipped() -> None:
    solver = SolverSettings(SolverType.ADAM, FIXED, clip_gradients=0.1)
    for numbers in (1, 100, 10**6):
        window = design(solver, scheduled=False, numbers=numbers)[0]
        largest = max(abs(g) for sequence in window.sequences for g in sequence.gradients)
        assert largest * numbers**0.5 <= 0.05
    free = design(replace(solver, clip_gradients=None), scheduled=False)[0]
    assert max(abs(g) for sequence in free.sequences for g in sequence.gradients) == 1.0
