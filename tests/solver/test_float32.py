"""Rounding to float32 and back to the decimal a person wrote, with NumPy as the oracle."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from caffe2torch.solver.float32 import format32, number, round32, shortest

any_float32 = st.floats(width=32, allow_nan=False)


@given(st.floats())
def test_round32_is_the_nearest_float32(x: float) -> None:
    with np.errstate(over="ignore"):
        expected = float(np.float32(x))
    assert round32(x) == expected or (math.isnan(x) and math.isnan(round32(x)))


@pytest.mark.parametrize("x", [3.4028235677973362e38, 3.4028235677973366e38, 1e39, math.inf, 7e-46, 1e-46, -0.0])
def test_round32_agrees_at_the_edges(x: float) -> None:
    with np.errstate(over="ignore"):
        for signed in (x, -x):
            assert np.float32(round32(signed)).tobytes() == np.float32(signed).tobytes()


def test_nan_stays_nan() -> None:
    assert math.isnan(round32(math.nan))
    assert math.isnan(shortest(math.nan))
    assert format32(math.nan) == "nan"


@given(any_float32)
def test_shortest_reads_back_and_has_no_more_digits_than_numpy_needs(x: float) -> None:
    assert round32(shortest(x)) == x
    assert shortest(x) == float(np.format_float_scientific(np.float32(x)))


def test_shortest_is_shortest_at_every_power_of_two() -> None:
    # There the float32 below are twice as dense as those above: three of the powers need the decimal farther away.
    for exponent in range(-149, 128):
        power = np.float32(2.0**exponent)
        assert shortest(float(power)) == float(np.format_float_scientific(power)), exponent


@given(st.integers(1, 999_999), st.integers(-35, 30))
def test_what_a_person_wrote_in_six_digits_comes_back(digits: int, exponent: int) -> None:
    written = float(f"{digits}e{exponent}")
    assert shortest(round32(written)) == written


@given(any_float32)
def test_formatted_numbers_read_back(x: float) -> None:
    assert round32(float(format32(x))) == x
    assert math.copysign(1.0, float(format32(x))) == math.copysign(1.0, x)


@pytest.mark.parametrize(
    ("x", "text"),
    [(0.10000000149011612, "0.1"), (20.0, "20"), (5e-4, "0.0005"), (1e-8, "1e-08"), (0.0, "0"), (-0.0, "-0")],
)
def test_formatted_numbers_look_as_written(x: float, text: str) -> None:
    assert format32(x) == text


@given(st.floats())
@example(1e-50)
@example(1e39)
@example(-0.0)
def test_a_number_is_read_as_what_it_is_up_to_a_digit_that_no_tolerance_sees(x: float) -> None:
    assert float(number(x)) == pytest.approx(x, rel=1e-5, abs=0, nan_ok=True)
    assert len(number(x)) <= max(len("-1.23457e-300"), len(format32(x)))


@pytest.mark.parametrize(("x", "text"), [(round32(0.1), "0.1"), (1234567.0, "1234567"), (-0.0, "0"), (None, "unknown")])
def test_a_number_is_written_as_short_as_a_person_writes_it(x: float | None, text: str) -> None:
    assert number(x) == text
