"""SegNetBasic: its blobs, its layers one by one, and what it refuses."""

from __future__ import annotations

import copy
import csv
import math
import pickle

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as all of torch's own documents write it
from hypothesis import given, settings
from hypothesis import strategies as st

from caffe2torch.errors import Caffe2TorchError
from caffe2torch.models import segnet_basic
from caffe2torch.models.segnet_basic import BN, SegNetBasic

ROLES = {("Convolution", "0"): "weight", ("Convolution", "1"): "bias", ("BN", "0"): "weight", ("BN", "1"): "bias"}


def small(**changes):
    torch.manual_seed(1)
    return SegNetBasic(**{"in_channels": 4, "num_classes": 3, "width": 2, **changes})


def blobs(path):
    """Names and shapes as torch would hold them, in Caffe's order: a BN's 1xCx1x1 is C."""
    with path.open() as file:
        for row in csv.DictReader(file):
            shape = tuple(int(size) for size in row["shape"].split("x"))
            name = f"{row['layer']}.{ROLES[row['type'], row['blob']]}"
            yield name, shape[1:2] if row["type"] == "BN" else shape


def parameters(model):
    return [(name, tuple(parameter.shape)) for name, parameter in model.named_parameters()]


def test_the_parameters_are_caffes_34_blobs_in_caffes_order(fixtures):
    expected = list(blobs(fixtures / "segnet_basic" / "params.csv"))
    assert len(expected) == 34
    assert parameters(SegNetBasic(in_channels=4, num_classes=3)) == expected


@pytest.mark.shared
def test_the_published_net_has_the_blobs_that_caffe_recorded(shared):
    expected = list(blobs(shared / "goldens" / "segnet" / "full" / "params.csv"))
    assert parameters(SegNetBasic(in_channels=3, num_classes=11)) == expected


@given(height=st.integers(1, 45), width=st.integers(1, 45))
@settings(max_examples=25)
def test_scores_have_the_size_of_the_images(height, width):
    assert small()(torch.randn(2, 4, height, width)).shape == (2, 3, height, width)


def test_response_is_normalized_over_five_channels_as_caffe_does():
    # lrn_layer.cpp: x * (1 + alpha / 5 * sum of squares over the five channels around) ^ -0.75, zeros beyond the ends
    x = 30 * torch.randn(2, 7, 3, 3, dtype=torch.float64)
    padded = F.pad(x, (0, 0, 0, 0, 2, 2))
    squares = sum(padded[:, i : i + 7] ** 2 for i in range(5))
    torch.testing.assert_close(small().norm(x), x * (1 + 1e-4 / 5 * squares) ** -0.75)


@given(height=st.integers(1, 9), width=st.integers(1, 9), seed=st.integers(0, 999))
def test_decoding_puts_values_back_where_their_maxima_were(height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 3, height, width, generator=generator).relu()
    ignored = torch.nn.Identity()
    pooled, mask, size = segnet_basic._encode(x, ignored, ignored)
    assert pooled.shape[-2:] == (math.ceil(height / 2), math.ceil(width / 2))
    back = segnet_basic._decode(pooled, mask, size, ignored, ignored)
    expected = torch.zeros_like(x)
    for n, c in torch.cartesian_prod(torch.arange(2), torch.arange(3)).tolist():
        for i in range(0, height, 2):
            for j in range(0, width, 2):  # the first of equal values wins, row by row
                window = [(i + a, j + b) for a in (0, 1) for b in (0, 1) if i + a < height and j + b < width]
                row, column = max(window, key=lambda at: x[n, c, *at])
                expected[n, c, row, column] = x[n, c, row, column]
    assert torch.equal(back, expected)


def test_only_the_encoder_rectifies():
    model, seen = small(), {}
    for name, module in model.named_children():
        module.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0]}))
    model(torch.randn(2, 4, 24, 32))
    for name in ("conv2", "conv3", "conv4", "conv_decode4"):
        assert seen[name].min() == 0
    for name in ("conv_decode3", "conv_decode2", "conv_decode1", "conv_classifier"):
        assert seen[name].min() < 0


@given(seed=st.integers(0, 999), offset=st.sampled_from([0.0, 100.0]), spread=st.sampled_from([0.0, 1e-5, 1.0]))
def test_bn_learns_by_the_batch_as_the_fork_does(seed, offset, spread):
    generator = torch.Generator().manual_seed(seed)
    x = offset + spread * torch.randn(3, 2, 4, 5, generator=generator, dtype=torch.float64)
    bn = BN(2).double()
    with torch.no_grad():
        bn.weight.copy_(torch.tensor([0.5, 2.0]))
        bn.bias.copy_(torch.tensor([-1.0, 3.0]))
    mean = x.mean((0, 2, 3), keepdim=True)
    # The fork's E[x^2] - E[x]^2, written so that it loses no digits at an offset of 100.
    std = (((x - mean) ** 2).mean((0, 2, 3), keepdim=True) + 1e-9).sqrt()
    scale, shift = bn.weight[:, None, None], bn.bias[:, None, None]
    torch.testing.assert_close(bn(x), (x - mean) / std * scale + shift, rtol=1e-6, atol=1e-8)


def test_bn_without_statistics_is_the_forks_inference():
    bn, x = BN(3).eval(), torch.randn(2, 3, 4, 5)
    assert torch.equal(bn(x), x * bn.weight[:, None, None] + bn.bias[:, None, None])


@pytest.mark.parametrize("momentum", [0.1, None])
def test_bn_keeps_the_statistics_that_torchs_own_keeps(momentum):
    ours, torchs = BN(3), torch.nn.BatchNorm2d(3, eps=1e-9)
    ours.momentum = torchs.momentum = momentum
    for _ in range(3):
        x = torch.randn(2, 3, 4, 5)
        torch.testing.assert_close(ours(x), torchs(x) + 0.001)
    ours.eval(), torchs.eval()
    torch.testing.assert_close(ours(x), torchs(x) + 0.001)
    for name, buffer in torchs.named_buffers():
        assert torch.equal(ours.get_buffer(name), buffer), name


def test_statistics_for_inference_are_the_average_over_batches():
    # As compute_bn_statistics.py: the mean of the batches' means, and of their unbiased variances.
    model = small()
    batches = [torch.randn(2, 4, 24, 32) for _ in range(3)]
    inputs = []
    model.conv1_bn.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    torch.optim.swa_utils.update_bn(batches, model)
    torch.testing.assert_close(
        model.conv1_bn.running_mean, torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0), rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(
        model.conv1_bn.running_var, torch.stack([x.var((0, 2, 3)) for x in inputs]).mean(0), rtol=1e-5, atol=1e-6
    )


def test_new_weights_are_drawn_as_the_fillers_say():
    torch.manual_seed(0)
    model = SegNetBasic(4, 3, width=32)
    for name, parameter in model.named_parameters():
        if name.endswith("_bn.weight"):
            assert torch.equal(parameter, torch.ones(32))
        elif name.endswith("_bn.bias"):
            assert torch.equal(parameter, torch.full((32,), 0.001))
        elif name.endswith(".bias"):
            assert torch.equal(parameter, torch.zeros_like(parameter))
    for conv in (model.conv1, model.conv4, model.conv_decode1):
        fan_in = conv.weight[0].numel()
        assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.05)
        assert abs(conv.weight.mean().item()) < 0.05 * math.sqrt(2 / fan_in)


def test_memory_format_changes_nothing():
    model, x = small().double(), torch.randn(2, 4, 25, 37, dtype=torch.float64)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    scores, last_scores = model(x), last(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last_scores, scores)
    (scores**2).sum().backward()
    (last_scores**2).sum().backward()
    for ours, other in zip(model.parameters(), last.parameters(), strict=True):
        torch.testing.assert_close(other.grad, ours.grad)


def test_it_runs_where_torch_insists_on_determinism():
    model, x = small(), torch.randn(2, 4, 25, 37)
    torch.use_deterministic_algorithms(True)
    try:
        model(x).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)


def test_it_trains_in_mixed_precision():
    model, x = small(), torch.randn(2, 4, 24, 32)
    with torch.autocast("cpu", torch.bfloat16):
        model(x).float().pow(2).mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_it_can_be_copied_pickled_and_traced():
    model, x = small().eval(), torch.randn(2, 4, 25, 37)
    scores = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.fx.symbolic_trace(model)):
        assert torch.equal(other(x), scores)


@pytest.mark.parametrize(
    ("shape", "found"),
    [((2, 3, 24, 32), "(2, 3, 24, 32)"), ((4, 24, 32), "(4, 24, 32)"), ((2, 4, 24), "(2, 4, 24)")],
)
def test_other_than_its_images_are_refused(shape, found):
    with pytest.raises(Caffe2TorchError) as caught:
        small()(torch.zeros(shape))
    assert caught.value.found == found
    assert caught.value.expected == "(N, 4, H, W)"


def test_a_single_image_too_small_for_statistics_is_refused_in_training_only():
    x = torch.randn(1, 4, 8, 8)
    with pytest.raises(Caffe2TorchError, match="deepest features are one pixel"):
        small()(x)
    assert small().eval()(x).shape == (1, 3, 8, 8)
    assert small()(torch.randn(1, 4, 8, 9)).shape == (1, 3, 8, 9)


@pytest.mark.parametrize("name", ["in_channels", "num_classes", "width"])
def test_sizes_below_one_are_refused(name):
    with pytest.raises(Caffe2TorchError, match=name):
        small(**{name: 0})
