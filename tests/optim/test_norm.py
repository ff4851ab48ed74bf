"""The norm that clipping compares is right, however large the gradients are and however they lie."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from caffe2torch.optim.solvers import gradient_norm

ROW = 2**14


def exact(gradients: list[torch.Tensor]) -> float:
    return sum(float(gradient.double().square().sum()) for gradient in gradients) ** 0.5


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_a_large_gradient_loses_nothing() -> None:
    """At 16 M numbers torch's own norm is 7e-4 short on the CPU."""
    gradients = [normal(4096, 4096), normal(4096)]
    assert gradient_norm(gradients) == pytest.approx(exact(gradients), rel=1e-6)


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "contiguous": lambda g: g,
    "channels last": lambda g: g.contiguous(memory_format=torch.channels_last),
    "transposed": lambda g: g.transpose(0, 1),
    "every second": lambda g: g[:, ::2],
    "expanded": lambda g: g[:, :, :1, :1].expand_as(g),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_how_a_gradient_lies_does_not_matter(layout: str) -> None:
    gradient = LAYOUTS[layout](normal(256, 128, 3, 3))
    before = gradient.clone()
    assert gradient_norm([gradient]) == pytest.approx(exact([gradient]), rel=1e-6)
    assert torch.equal(gradient, before)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 10 * ROW), min_size=1, max_size=4))
def test_every_number_counts_once(sizes: list[int]) -> None:
    gradients = [torch.ones(size) for size in sizes]
    assert gradient_norm(gradients) == pytest.approx(sum(sizes) ** 0.5, rel=1e-6)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_finite_shows(wrong: float) -> None:
    gradient = normal(8, ROW)
    gradient[3, 5] = wrong
    assert gradient_norm([gradient]) == pytest.approx(wrong, nan_ok=True)


@pytest.mark.parametrize("shape", [(2**25,), (1, 2**25), (2**9, 2**16)])
def test_whatever_the_shape_no_sum_is_too_long(shape: tuple[int, ...]) -> None:
    gradient = normal(*shape)
    assert gradient_norm([gradient]) == pytest.approx(exact([gradient]), rel=1e-6)


def test_half_precision_does_not_overflow() -> None:
    """1000 gradients of 3000: their squares are beyond float16."""
    assert gradient_norm([torch.full((10, 100), 3000.0, dtype=torch.float16)]) == pytest.approx(3000 * 1000**0.5)


def test_two_dtypes_are_one_vector() -> None:
    gradients = [normal(10 * ROW), normal(20).double(), normal(4, 5).double()]
    assert gradient_norm(gradients) == pytest.approx(exact(gradients), rel=1e-6)
