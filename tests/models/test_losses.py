"""CaffeSoftmaxLoss against Caffe's formula, written out label by label."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from caffe2torch.errors import Caffe2TorchError
from caffe2torch.models import CaffeSoftmaxLoss
from caffe2torch.net.normalization import Normalization

FLT_MIN = torch.finfo(torch.float32).tiny


def by_the_formula(scores, labels, weights, ignore_label, normalization):
    """softmax_loss_layer.cpp: loss and gradient, one label at a time, in float64."""
    images, classes, pixels = scores.shape
    p = torch.softmax(scores, dim=1)
    total, gradient, kept = 0.0, torch.zeros_like(scores), 0
    for n in range(images):
        for j in range(pixels):
            label = int(labels[n, j])
            if label == ignore_label:
                continue
            weight = 1.0 if weights is None else weights[label]
            total -= weight * math.log(max(float(p[n, label, j]), FLT_MIN))
            gradient[n, :, j] = weight * (p[n, :, j] - torch.eye(classes, dtype=p.dtype)[label])
            kept += 1
    divisor = {"VALID": kept, "FULL": labels.numel(), "BATCH_SIZE": images, "NONE": 1}[normalization]
    return total / max(divisor, 1), gradient / max(divisor, 1)


@given(
    seed=st.integers(0, 2**16),
    images=st.integers(1, 3),
    classes=st.integers(1, 5),
    pixels=st.integers(1, 6),
    weighted=st.booleans(),
    ignore=st.sampled_from([None, 0, 255]),
    normalization=st.sampled_from(list(Normalization)),
    spread=st.sampled_from([1.0, 300.0]),
)
def test_loss_and_gradient_are_the_formula(seed, images, classes, pixels, weighted, ignore, normalization, spread):
    generator = torch.Generator().manual_seed(seed)
    scores = spread * torch.randn(images, classes, pixels, generator=generator, dtype=torch.float64)
    scores.requires_grad_()
    labels = torch.randint(classes, (images, pixels), generator=generator)
    if ignore is not None:
        labels[torch.rand(labels.shape, generator=generator) < 0.3] = ignore
    weights = (3 * torch.rand(classes, generator=generator)).tolist() if weighted else None
    loss = CaffeSoftmaxLoss(weights, ignore, normalization)(scores, labels)
    loss.backward()
    expected, gradient = by_the_formula(scores.detach(), labels, weights, ignore, normalization)
    assert loss.item() == pytest.approx(expected, rel=1e-6, abs=1e-9)
    torch.testing.assert_close(scores.grad, gradient, rtol=1e-6, atol=1e-9)


def test_dividing_by_the_count_is_not_torchs_weighted_mean():
    scores, labels = torch.zeros(1, 3, 4), torch.tensor([[0, 1, 1, 2]])
    weights = [0.25, 4.5, 0.9]
    ours = CaffeSoftmaxLoss(weights)(scores, labels)
    assert ours.item() == pytest.approx(math.log(3) * (0.25 + 4.5 + 4.5 + 0.9) / 4, rel=1e-6)
    torchs = torch.nn.functional.cross_entropy(scores, labels, torch.tensor(weights))
    assert torchs.item() == pytest.approx(math.log(3), rel=1e-6)


def test_labels_may_come_as_caffe_shapes_and_types_them():
    scores = torch.randn(2, 3, 4, 5)
    labels = torch.randint(3, (2, 4, 5))
    loss = CaffeSoftmaxLoss()
    assert torch.equal(loss(scores, labels), loss(scores, labels[:, None].float()))


def test_a_batch_without_a_kept_label_costs_nothing():
    scores = torch.randn(2, 3, 4, requires_grad=True)
    loss = CaffeSoftmaxLoss(ignore_label=255)(scores, torch.full((2, 4), 255))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(scores.grad, torch.zeros_like(scores))


def test_without_an_ignored_label_torchs_own_minus_100_is_no_exception():
    with pytest.raises(IndexError):
        CaffeSoftmaxLoss()(torch.zeros(1, 2, 1), torch.tensor([[-100]]))


def test_a_label_that_is_no_class_is_an_error():
    with pytest.raises(IndexError):
        CaffeSoftmaxLoss(ignore_label=255)(torch.zeros(1, 2, 1), torch.tensor([[2]]))


@pytest.mark.parametrize(
    ("weights", "labels", "said"),
    [
        (
            None,
            torch.zeros(2, 4, dtype=torch.long),
            "labels do not fit the scores\n  found: (2, 4)\n  expected: (2, 5)",
        ),
        (None, torch.zeros(5, dtype=torch.long), "labels do not fit the scores\n  found: (5,)\n  expected: (2, 5)"),
        ([1.0, 2.0], torch.zeros(2, 5, dtype=torch.long), "class weights do not fit the scores"),
    ],
)
def test_what_does_not_fit_is_said(weights, labels, said):
    with pytest.raises(Caffe2TorchError) as caught:
        CaffeSoftmaxLoss(weights)(torch.zeros(2, 3, 5), labels)
    assert said in str(caught.value)


def test_class_weights_are_settings_not_state():
    loss = CaffeSoftmaxLoss([1.0, 2.0], ignore_label=2, normalization="BATCH_SIZE")
    assert loss.state_dict() == {}
    assert list(loss.parameters()) == []
    assert repr(loss) == "CaffeSoftmaxLoss(class_weights=[1.0, 2.0], ignore_label=2, normalization=BATCH_SIZE)"
