"""The rate at an iteration: equal to what real Caffe used, lawful elsewhere, and the forks' formulas."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import REPOSITORY

from caffe2torch.recipe import LrPolicy, PolicyType, Ramp, SolverSettings, SolverType
from caffe2torch.solver.float32 import round32, shortest
from caffe2torch.solver.lr_policy import momentum_at, next_step, rate, rates, step_at, weight_decay_at

RECORDED: dict[str, Any] = json.loads((REPOSITORY / "fixtures" / "rates.json").read_text(encoding="utf-8"))["cases"]


def float32s(lowest: float, highest: float) -> st.SearchStrategy[float]:
    return st.floats(lowest, highest).map(round32)


positive = float32s(0.0001, 10)
iterations = st.integers(0, 100_000)
stepvalues = st.lists(st.integers(0, 60), max_size=6).map(tuple)
# Plateau follows the loss and multifixed needs its stages: both have tests of their own.
types = st.sampled_from(sorted(set(PolicyType) - {PolicyType.PLATEAU, PolicyType.MULTIFIXED}))
policies = st.builds(
    LrPolicy,
    type=types,
    base_lr=positive,
    gamma=float32s(0, 1.5),
    power=float32s(0, 4),
    stepsize=st.integers(1, 50),
    stepvalues=stepvalues,
    max_iter=st.integers(0, 200),
)


def recorded_policy(case: dict[str, Any]) -> LrPolicy:
    stated = dict(case["policy"])
    stated["type"] = PolicyType(stated["type"])
    stated["stepvalues"] = tuple(stated.get("stepvalues", ()))
    return LrPolicy(**stated)


def difference(ours: list[float], theirs: list[float | None]) -> float:
    """The largest difference as a part of the largest rate; NaN (``None`` in the record) is equal to NaN alone."""
    a, b = np.array(ours), np.array([math.nan if x is None else x for x in theirs])
    assert np.array_equal(np.isnan(a), np.isnan(b))
    return float(np.nanmax(np.abs(a - b)) / (np.nanmax(np.abs(b)) or 1.0))


@pytest.mark.parametrize("name", RECORDED)
def test_rates_are_those_of_real_caffe(name: str) -> None:
    case = RECORDED[name]
    policy = recorded_policy(case)
    ours = list(rates(policy, len(case["lr"]), case["start"], case["restored_step"]))
    assert difference(ours, case["lr"]) < 2e-7  # Caffe's are float32


@pytest.mark.parametrize("name", [name for name, case in RECORDED.items() if "current_step" in case])
def test_counters_are_those_of_real_caffe(name: str) -> None:
    case = RECORDED[name]
    policy, step, ours = recorded_policy(case), case["restored_step"], []
    for iteration in range(case["start"], case["start"] + len(case["current_step"])):
        step = next_step(policy, iteration, step)
        ours.append(step)
    assert ours == case["current_step"]


@given(policies, iterations, st.integers(0, 6))
def test_a_rate_is_a_number_and_never_an_exception(policy: LrPolicy, iteration: int, step: int) -> None:
    for i in (iteration, 2**31 - 1):
        assert isinstance(rate(policy, i, step), float)
        assert isinstance(rate(policy, i), float)


@given(policies, st.integers(0, 200), st.integers(0, 6), policies)
def test_a_policy_reads_its_own_fields_only(policy: LrPolicy, iteration: int, step: int, other: LrPolicy) -> None:
    reads = {
        PolicyType.FIXED: (),
        PolicyType.STEP: ("gamma", "stepsize"),
        PolicyType.EXP: ("gamma",),
        PolicyType.INV: ("gamma", "power"),
        PolicyType.MULTISTEP: ("gamma", "stepvalues"),
        PolicyType.POLY: ("power", "max_iter"),
        PolicyType.SIGMOID: ("gamma", "stepsize"),
    }[policy.type]
    twin = replace(other, type=policy.type, base_lr=policy.base_lr, **{name: getattr(policy, name) for name in reads})
    assert np.array_equal(rate(policy, iteration, step), rate(twin, iteration, step), equal_nan=True)


@given(policies, iterations)
def test_the_rate_is_proportional_to_base_lr_in_powers_of_two(policy: LrPolicy, iteration: int) -> None:
    lr = rate(policy, iteration)
    if not 1e-30 < lr < 1e30:  # the last bits of a subnormal are lost
        return
    assert rate(replace(policy, base_lr=policy.base_lr / 2), iteration) == lr / 2


@given(positive, float32s(0, 1.5), st.integers(1, 20), st.integers(1, 8))
def test_step_is_multistep_at_equal_distances(base: float, gamma: float, stepsize: int, steps: int) -> None:
    step = LrPolicy(PolicyType.STEP, base, gamma, stepsize=stepsize)
    values = tuple(stepsize * k for k in range(1, steps + 1))
    multistep = LrPolicy(PolicyType.MULTISTEP, base, gamma, stepvalues=values)
    length = stepsize * (steps + 1)
    assert list(rates(step, length)) == list(rates(multistep, length))


@given(positive, float32s(0, 1.5), st.integers(0, 3000))
def test_exp_is_step_at_every_iteration(base: float, gamma: float, iteration: int) -> None:
    exp, step = LrPolicy(PolicyType.EXP, base, gamma), LrPolicy(PolicyType.STEP, base, gamma, stepsize=1)
    assert rate(exp, iteration) == rate(step, iteration)


@given(stepvalues, st.integers(0, 80))
def test_the_counter_rises_by_at_most_one_and_fires_every_stepvalue(values: tuple[int, ...], last: int) -> None:
    policy = LrPolicy(PolicyType.MULTISTEP, 1.0, 0.5, stepvalues=values)
    step = 0
    for iteration in range(last + 1):
        risen = next_step(policy, iteration, step)
        assert step <= risen <= min(step + 1, len(values))
        assert (risen > step) == (step < len(values) and iteration >= values[step])
        step = risen
    assert step_at(policy, last) == step


@given(policies, st.integers(0, 80), st.none() | st.integers(0, 40), st.none() | st.integers(0, 40))
def test_the_counter_can_be_had_without_walking(
    policy: LrPolicy, last: int, warmup: int | None, rampup: int | None
) -> None:
    policy = replace(policy, warmup_iter=warmup, rampup_interval=rampup)
    assert step_at(policy, last) == reduce(lambda step, i: next_step(policy, i, step), range(last + 1), 0)


@given(positive, float32s(0, 4), st.integers(1, 10_000_000))
def test_poly_starts_at_base_lr_and_ends_at_zero(base: float, power: float, max_iter: int) -> None:
    policy = LrPolicy(PolicyType.POLY, base, power=power, max_iter=max_iter)
    assert rate(policy, 0) == base
    assert rate(policy, max_iter) == (0 if power else base)


def test_poly_past_max_iter_is_nan_for_a_fraction_and_signed_for_a_whole_power() -> None:
    assert math.isnan(rate(LrPolicy(PolicyType.POLY, 0.1, power=0.9, max_iter=10), 11))
    assert rate(LrPolicy(PolicyType.POLY, 1.0, power=1.0, max_iter=10), 15) == -0.5
    assert rate(LrPolicy(PolicyType.POLY, 1.0, power=2.0, max_iter=10), 15) == 0.25


def test_poly_without_max_iter_is_nan_and_then_infinite() -> None:
    policy = LrPolicy(PolicyType.POLY, 0.01, power=0.9)
    assert math.isnan(rate(policy, 0))
    assert rate(policy, 2) == math.inf
    assert rate(replace(policy, power=0.0), 0) == rate(replace(policy, power=0.0), 7) == 0.01
    assert rate(replace(policy, power=1.0), 1) == -math.inf


@given(positive, float32s(0, 2), st.integers(1, 1000))
def test_sigmoid_is_half_way_at_stepsize(base: float, gamma: float, stepsize: int) -> None:
    assert rate(LrPolicy(PolicyType.SIGMOID, base, gamma, stepsize=stepsize), stepsize) == base / 2


@given(positive, float32s(0.001, 1), float32s(0, 2), st.integers(0, 10_000))
def test_inv_follows_its_formula(base: float, gamma: float, power: float, iteration: int) -> None:
    expected = base * (1 + gamma * iteration) ** -power
    assert rate(LrPolicy(PolicyType.INV, base, gamma, power), iteration) == pytest.approx(expected, rel=1e-5)


def test_huge_numbers_overflow_to_infinity() -> None:
    assert rate(LrPolicy(PolicyType.EXP, 0.1, 2.0), 10_000) == math.inf
    assert math.isnan(rate(LrPolicy(PolicyType.EXP, 0.0, 2.0), 10_000))
    assert rate(LrPolicy(PolicyType.SIGMOID, 1.0, 1e38, stepsize=100), 0) == 0


def test_absent_gamma_stops_learning_at_the_first_step() -> None:
    policy = LrPolicy(PolicyType.STEP, 0.1, stepsize=5)
    assert list(rates(policy, 6)) == [0.1] * 5 + [0]


# --- what the forks add (code only: no trace of them exists) ---


@given(st.lists(st.tuples(positive, st.integers(0, 50)), min_size=1, max_size=5), st.integers(0, 60))
def test_multifixed_takes_the_first_stage_that_is_not_over(stages: list[tuple[float, int]], iteration: int) -> None:
    lrs, lasts = zip(*stages, strict=True)
    policy = LrPolicy(PolicyType.MULTIFIXED, stage_lrs=lrs, stage_iters=lasts)
    stage = [k for k, last in enumerate(lasts) if iteration <= last]
    assert rate(policy, iteration) == lrs[stage[0] if stage else -1]


@given(policies, positive, st.integers(1, 50), st.integers(0, 100))
def test_warm_up_is_a_straight_line_to_base_lr_before_any_policy(
    policy: LrPolicy, start: float, length: int, iteration: int
) -> None:
    warm = replace(policy, warmup_iter=length, warmup_start_lr=start)
    assert rate(warm, 0) == pytest.approx(start, rel=1e-6)
    if iteration >= length:
        assert np.array_equal(rate(warm, iteration, 1), rate(policy, iteration, 1), equal_nan=True)
    else:
        expected = start + (policy.base_lr - start) * iteration / length
        assert rate(warm, iteration) == pytest.approx(expected, rel=1e-5)


@given(policies, positive, st.integers(1, 50), st.integers(0, 100))
def test_ramp_up_is_a_parabola_to_base_lr_instead_of_the_policy(
    policy: LrPolicy, start: float, length: int, iteration: int
) -> None:
    ramp = replace(policy, rampup_interval=length, rampup_lr=start)
    assert rate(ramp, 0) == start
    if iteration >= length:
        assert np.array_equal(rate(ramp, iteration, 1), rate(policy, iteration, 1), equal_nan=True)
    else:
        expected = start + (policy.base_lr - start) * (iteration / length) ** 2
        assert rate(ramp, iteration) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("field", ["warmup_iter", "rampup_interval"])
def test_a_multistep_counter_rests_while_the_rate_warms_up_and_then_catches_up(field: str) -> None:
    policy = replace(LrPolicy(PolicyType.MULTISTEP, 1.0, 0.5, stepvalues=(2, 3, 9)), **{field: 5})
    assert list(rates(policy, 10))[5:] == [0.5, 0.25, 0.25, 0.25, 0.125]


@given(policies.filter(lambda p: p.type is not PolicyType.POLY), positive, st.integers(0, 200), st.integers(0, 6))
def test_min_lr_is_a_floor(policy: LrPolicy, floor: float, iteration: int, step: int) -> None:
    assert rate(replace(policy, min_lr=floor), iteration, step) == max(rate(policy, iteration, step), floor)


@given(float32s(0.01, 1), float32s(0, 0.0099), st.floats(0.1, 4), st.integers(1, 200))
def test_poly_with_min_lr_ends_there(base: float, floor: float, power: float, max_iter: int) -> None:
    policy = LrPolicy(PolicyType.POLY, base, power=power, max_iter=max_iter, min_lr=floor)
    assert rate(policy, 0) == pytest.approx(base, rel=1e-6)
    assert rate(policy, max_iter) == floor
    half = max_iter // 2
    expected = (base - floor) * (1 - half / max_iter) ** power + floor
    assert rate(policy, half) == pytest.approx(expected, rel=1e-4)


def test_min_lr_leaves_nan_alone() -> None:
    policy = LrPolicy(PolicyType.POLY, 0.1, power=0.5, max_iter=10, min_lr=0.01)
    assert math.isnan(rate(policy, 11))


def test_plateau_is_its_formula_at_a_given_counter() -> None:
    policy = LrPolicy(PolicyType.PLATEAU, 1.0, 0.5)
    assert [rate(policy, 100, step) for step in range(3)] == [1.0, 0.5, 0.25]
    assert next_step(policy, 100, 2) == 2


def settings(**stated: Any) -> SolverSettings:
    return SolverSettings(SolverType.SGD, LrPolicy(PolicyType.FIXED, 0.1), **stated)


def test_momentum_and_decay_are_constant_unless_a_ramp_is_stated() -> None:
    plain = settings(momentum=0.9, weight_decay=0.0005)
    for iteration in (0, 7, 10_000):
        assert shortest(momentum_at(plain, iteration, 0.1)) == 0.9
        assert shortest(weight_decay_at(plain, iteration)) == 0.0005


@given(st.integers(0, 1000), *[st.floats(0, most, width=32) for most in (1, 1, 3)])
def test_ramps_follow_their_formula(iteration: int, start: float, end: float, power: float) -> None:
    ramp = Ramp(end, power, 1000)
    expected = pytest.approx(start + (end - start) * (iteration / 1000) ** power, rel=1e-5, abs=1e-6)
    assert momentum_at(settings(momentum=start, momentum_ramp=ramp), iteration, 0.1) == expected
    assert weight_decay_at(settings(weight_decay=start, weight_decay_ramp=ramp), iteration) == expected


@given(st.floats(0, 4), st.floats(0, 1))
def test_momentum_from_the_rate_follows_its_formula(lr: float, cap: float) -> None:
    expected = min((1 - 0.5 * math.sqrt(lr)) ** 2, cap)
    assert momentum_at(settings(momentum_from_rate=cap), 3, lr) == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_momentum_from_a_negative_rate_is_the_cap_or_nan_without_one() -> None:
    assert momentum_at(settings(momentum_from_rate=0.5), 3, -1.0) == 0.5
    assert math.isnan(momentum_at(settings(momentum_from_rate=math.inf), 3, -1.0))


def test_a_ramp_without_max_iter_is_what_division_by_zero_is_in_c() -> None:
    ramped = settings(momentum=0.5, momentum_ramp=Ramp(0.9, 1.0, 0))
    assert math.isnan(momentum_at(ramped, 0, 0.1))
    assert momentum_at(ramped, 1, 0.1) == math.inf
