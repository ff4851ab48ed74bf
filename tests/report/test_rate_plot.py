"""The segments and points that pictures of the rate are made of agree with the rate of every single iteration."""

from __future__ import annotations

import math
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from caffe2torch.recipe import LrPolicy, PolicyType
from caffe2torch.report.rate_plot import MOST_BREAKS, curve, effective, segments
from caffe2torch.solver.lr_policy import rates

ITERATIONS = st.integers(1, 300)
POLICIES = st.builds(
    LrPolicy,
    st.sampled_from([kind for kind in PolicyType if kind not in (PolicyType.PLATEAU, PolicyType.MULTIFIXED)]),
    base_lr=st.sampled_from([0.0, 0.01, 1.0]),
    gamma=st.sampled_from([0.0, 0.1, 0.9, 1.0]),
    power=st.sampled_from([0.0, 0.5, 2.0]),
    stepsize=st.integers(1, 400),
    stepvalues=st.lists(st.integers(0, 320), max_size=5).map(lambda values: tuple(sorted(values))),
    max_iter=st.integers(300, 400),
    warmup_iter=st.none() | st.integers(1, 40),
    warmup_start_lr=st.sampled_from([0.0, 0.1]),
)


@given(POLICIES, ITERATIONS)
def test_segments_cover_the_run_and_tell_the_rate_of_every_iteration(policy: LrPolicy, iterations: int) -> None:
    every = list(rates(policy, iterations))
    parts = segments(policy, iterations)
    covered = [i for part in parts for i in range(part.first, part.last + 1)]
    assert covered == list(range(iterations))
    for part in parts:
        assert (every[part.first], every[part.last]) == (part.begins, part.ends)
        if not part.varies:
            assert set(every[part.first : part.last + 1]) == {part.begins}


@given(POLICIES, ITERATIONS)
def test_neighbouring_segments_of_one_rate_are_one(policy: LrPolicy, iterations: int) -> None:
    parts = segments(policy, iterations)
    for left, right in pairwise(parts):
        assert left.varies or right.varies or left.ends != right.begins


@given(POLICIES, ITERATIONS)
def test_points_of_the_curve_are_exact_and_the_lines_between_them_are_near(policy: LrPolicy, iterations: int) -> None:
    every = list(rates(policy, iterations))
    points = curve(policy, segments(policy, iterations))
    assert points[0][0] == 0
    assert points[-1][0] == iterations - 1
    for i, value in points:
        assert value == every[i]
    highest = max(every) or 1.0
    for (i, a), (k, b) in pairwise(points):
        for between in range(i + 1, k):
            straight = a + (b - a) * (between - i) / (k - i)
            assert abs(straight - every[between]) <= 0.01 * highest


def test_stages_of_multifixed_are_segments() -> None:
    policy = LrPolicy(PolicyType.MULTIFIXED, stage_lrs=(0.1, 0.1, 0.01), stage_iters=(10, 20, 30))
    assert [(part.first, part.last) for part in segments(policy, 40)] == [(0, 20), (21, 39)]


def test_a_run_of_a_billion_iterations_costs_nothing() -> None:
    policy = LrPolicy(PolicyType.STEP, base_lr=0.1, gamma=0.99999, stepsize=10)
    parts = segments(policy, 10**9)
    assert len(parts) == 1
    assert parts[0].varies
    assert len(curve(policy, parts)) < MOST_BREAKS


def test_rates_that_are_no_numbers_are_not_drawn() -> None:
    policy = LrPolicy(PolicyType.POLY, base_lr=0.1, power=0.5, max_iter=30)
    points = curve(policy, segments(policy, 60))
    assert points[-1] == (30, 0.0)
    assert all(math.isfinite(value) for _, value in points)


def test_the_rate_of_a_parameter_is_rounded_as_caffe_rounds_it() -> None:
    assert effective(0.10000000149011612, 3.0) == 0.30000001192092896
