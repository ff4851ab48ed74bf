"""Caffe's fillers: bounds and moments by statistics with a fixed seed, bilinear to the bit, fans on Caffe's shapes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from snapshot_runs import bound, text_file
from torch import nn

from caffe2torch.binding.bind import bind
from caffe2torch.errors import NetError, UnsupportedError
from caffe2torch.reading import read_recipe
from caffe2torch.recipe import TrainingRecipe
from caffe2torch.snapshot.fillers import fill, initialize

BLOB = (40, 30, 5, 5)  # 30,000 numbers: fan_in 750, fan_out 1,000
FANS = {"FAN_IN": 750, "FAN_OUT": 1000, "AVERAGE": 875}


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(11)


def check_moments(values: torch.Tensor, mean: float, std: float, *, kurtosis: float) -> None:
    """Mean and standard deviation within five standard errors of what they should be."""
    count = values.numel()
    assert abs(float(values.double().mean()) - mean) <= 5 * std / math.sqrt(count)
    error = std * math.sqrt((kurtosis - 1) / (4 * count))
    assert abs(float(values.double().std()) - std) <= 5 * error


UNIFORM, NORMAL = 9 / 5, 3.0  # kurtosis


def test_constant() -> None:
    assert fill((2, 3)).eq(0).all()
    assert fill((), "constant", value=0.25).item() == 0.25


def test_uniform_has_its_bounds_and_moments() -> None:
    values = fill(BLOB, "uniform", min=-2, max=4, generator=seeded())
    assert -2 <= values.min() < -1.99
    assert 3.99 < values.max() <= 4
    check_moments(values, 1, 6 / math.sqrt(12), kurtosis=UNIFORM)


def test_gaussian_has_its_moments() -> None:
    check_moments(fill(BLOB, "gaussian", mean=3, std=0.5, generator=seeded()), 3, 0.5, kurtosis=NORMAL)


def test_sparse_gaussian_keeps_each_number_with_probability_sparse_over_outputs() -> None:
    values = fill((100, 500), "gaussian", std=2, sparse=15, generator=seeded())
    kept = values[values != 0]
    share = 15 / 100
    assert abs(kept.numel() / values.numel() - share) <= 5 * math.sqrt(share * (1 - share) / values.numel())
    check_moments(kept, 0, 2, kurtosis=NORMAL)
    assert fill((100, 5), "gaussian", sparse=0).eq(0).all()


@pytest.mark.parametrize("norm", FANS)
def test_xavier_is_uniform_within_the_root_of_three_over_its_fan(norm: str) -> None:
    bound = math.sqrt(3 / FANS[norm])
    values = fill(BLOB, "xavier", variance_norm=norm, generator=seeded())
    assert 0.999 * bound < values.abs().max() <= bound * (1 + 1e-6)
    check_moments(values, 0, math.sqrt(1 / FANS[norm]), kurtosis=UNIFORM)


@pytest.mark.parametrize("norm", FANS)
def test_msra_is_normal_with_variance_two_over_its_fan(norm: str) -> None:
    values = fill(BLOB, "msra", variance_norm=norm, generator=seeded())
    check_moments(values, 0, math.sqrt(2 / FANS[norm]), kurtosis=NORMAL)


def test_positive_unitball_sums_to_one_in_each_slice() -> None:
    values = fill(BLOB, "positive_unitball", generator=seeded())
    assert values.min() >= 0
    torch.testing.assert_close(values.flatten(1).sum(dim=1), torch.ones(40))
    check_moments(values, 1 / 750, 1 / 375 / math.sqrt(12), kurtosis=UNIFORM)


def test_the_fan_of_one_axis_is_all_of_it() -> None:
    # fan_in of a bias is count / shape[0] = 1, its fan_out the count.
    assert fill((5000,), "xavier", generator=seeded()).abs().max() > 0.999 * math.sqrt(3)
    assert fill((5000,), "xavier", variance_norm="FAN_OUT").abs().max() <= math.sqrt(3 / 5000)


def test_bilinear_is_caffes_formula_to_the_bit() -> None:
    for size in range(1, 33):
        f = np.float32(math.ceil(size / 2))
        c = np.float32((size - 1) / (2.0 * float(f)))
        one = np.float32(1)
        x = np.arange(size, dtype="f4")
        line = one - np.abs(x / f - c)
        kernel = fill((3, 2, size, size), "bilinear").numpy()
        assert kernel.dtype == np.float32
        np.testing.assert_array_equal(kernel, np.broadcast_to(line * line[:, None], (3, 2, size, size)))


def test_bilinear_upsampling_of_a_plane_is_the_plane() -> None:
    deconvolution = nn.ConvTranspose2d(1, 1, 4, 2, 1, bias=False)
    deconvolution.weight.data = fill((1, 1, 4, 4), "bilinear")
    plane = torch.arange(8.0).expand(1, 1, 8, 8)
    upsampled = deconvolution(plane)[0, 0, 4:-4, 4:-4]
    torch.testing.assert_close(upsampled, (torch.arange(4.0, 12.0) / 2 - 0.25).expand(8, 8))


@given(
    st.sampled_from(["uniform", "gaussian", "xavier", "msra", "positive_unitball"]),
    st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple),
    st.integers(0, 99),
)
def test_a_generator_makes_every_filler_repeatable(kind: str, shape: tuple[int, ...], seed: int) -> None:
    one, two = (fill(shape, kind, generator=torch.Generator().manual_seed(seed)) for _ in range(2))
    assert one.shape == shape
    assert torch.equal(one, two)


NET = """
layer { name: "d" type: "Input" top: "d" input_param { shape { dim: 1 dim: 6 dim: 8 dim: 8 } } }
layer { name: "up" type: "Deconvolution" bottom: "d" top: "up" convolution_param { num_output: 40 kernel_size: 5
  bias_term: false weight_filler { type: "xavier" } } }
layer { name: "turned" type: "InnerProduct" bottom: "up" top: "turned" inner_product_param { num_output: 12
  transpose: true weight_filler { type: "xavier" } bias_filler { type: "constant" value: 0.5 } } }
layer { name: "prelu" type: "PReLU" bottom: "turned" top: "prelu" }
layer { name: "bn" type: "BatchNorm" bottom: "prelu" top: "bn" }
layer { name: "scale" type: "Scale" bottom: "bn" top: "scale" scale_param { bias_term: true } }
"""


def port() -> nn.Module:
    return nn.ModuleDict(
        {
            "up": nn.ConvTranspose2d(6, 40, 5, bias=False),
            "turned": nn.Linear(40 * 144, 12),
            "prelu": nn.PReLU(12),
            "bn": nn.BatchNorm1d(12),
        }
    )


def net(tmp_path: Path, text: str = NET) -> TrainingRecipe:
    return read_recipe(text_file(tmp_path / "net.prototxt", text))


def test_a_model_is_filled_by_fans_of_caffes_shapes_and_layers_own_defaults(tmp_path: Path) -> None:
    recipe, model = net(tmp_path), port()
    assert initialize(model, recipe, bind(recipe, model), seeded()) == ()
    # Deconvolution is 6x40x5x5 in Caffe: fan_in = 40*25, where torch.nn.init would take 6*25 or so.
    assert 0.99 < model["up"].weight.detach().abs().max() / math.sqrt(3 / 1000) <= 1.000001
    # InnerProduct with transpose is 5760x12 in Caffe: its fan_in is 12.
    assert 0.99 < model["turned"].weight.detach().abs().max() / math.sqrt(3 / 12) <= 1.000001
    assert model["turned"].bias.eq(0.5).all()
    assert model["prelu"].weight.eq(0.25).all()
    assert model["bn"].weight.eq(1).all()
    assert model["bn"].bias.eq(0).all()
    assert model["bn"].running_var.eq(1).all()


def test_filling_repeats_and_layouts_are_the_weights_own(tmp_path: Path) -> None:
    recipe, one, two = net(tmp_path), port(), port()
    initialize(one, recipe, bind(recipe, one), seeded())
    initialize(two, recipe, bind(recipe, two), seeded())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    up = fill((6, 40, 5, 5), "xavier", generator=(generator := seeded()))
    turned = fill((5760, 12), "xavier", generator=generator)
    assert torch.equal(one["up"].weight, up)
    assert torch.equal(one["turned"].weight, turned.T)


def test_the_second_bias_of_a_recurrent_layer_which_caffe_has_not_is_zero(tmp_path: Path) -> None:
    text = """
    layer { name: "d" type: "Input" top: "d" input_param { shape { dim: 5 dim: 2 dim: 4 } } }
    layer { name: "c" type: "Input" top: "c" input_param { shape { dim: 5 dim: 2 } } }
    layer { name: "l" type: "LSTM" bottom: "d" bottom: "c" top: "l" recurrent_param { num_output: 3
      weight_filler { type: "uniform" min: -0.1 max: 0.1 } bias_filler { type: "constant" value: 1 } } }
    """
    recipe, model = net(tmp_path, text), nn.LSTM(4, 3)
    names = {"l/0": "weight_ih_l0", "l/1": "bias_ih_l0", "l/2": "weight_hh_l0"}
    initialize(model, recipe, bound(recipe, model, names), seeded())
    assert model.bias_ih_l0.eq(1).all()
    assert model.bias_hh_l0.eq(0).all()
    assert 0.05 < model.weight_hh_l0.abs().max() <= 0.1


@pytest.mark.parametrize(
    ("filler", "message"),
    [
        ('type: "orthogonal"', "Caffe knows no filler 'orthogonal'"),
        ('type: "uniform" min: 2', "filler 'uniform' has min 2 above max 1"),
        ('type: "gaussian" std: 0', "filler 'gaussian' needs a std above 0, not 0"),
        ('type: "gaussian" sparse: 13', "filler 'gaussian' cannot keep 13 of 12"),
        ('type: "xavier" sparse: 2', "filler 'xavier' does not know 'sparse', only 'gaussian' does"),
        ('type: "bilinear"', "filler 'bilinear' needs a square kernel, not a blob of 12"),
    ],
)
def test_what_caffe_refuses_is_refused_with_its_place_and_nothing_is_filled(
    tmp_path: Path, filler: str, message: str
) -> None:
    recipe, model = net(tmp_path, NET.replace('type: "constant" value: 0.5', filler)), port()
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(UnsupportedError if "orthogonal" in filler else NetError) as error:
        initialize(model, recipe, bind(recipe, model), seeded())
    assert f"turned/1: {message}" in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "net.prototxt"))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_blob_without_axes_has_no_fan(tmp_path: Path) -> None:
    text = NET.replace(
        'type: "PReLU" ', 'type: "PReLU" prelu_param { channel_shared: true filler { type: "xavier" } } '
    )
    model = port()
    model["prelu"] = nn.PReLU()
    recipe = net(tmp_path, text)
    with pytest.raises(NetError, match="prelu/0: filler 'xavier' cannot fill a blob without axes"):
        initialize(model, recipe, bind(recipe, model))


def test_a_shape_that_the_net_leaves_open_is_the_models(tmp_path: Path) -> None:
    text = """
    layer { name: "ip" type: "InnerProduct" bottom: "d" top: "ip"
      inner_product_param { num_output: 4 bias_term: false weight_filler { type: "xavier" } } }
    """
    recipe, model = net(tmp_path, text), nn.ModuleDict({"ip": nn.Linear(3000, 4, bias=False)})
    initialize(model, recipe, bind(recipe, model), seeded())
    assert 0.99 < model["ip"].weight.detach().abs().max() / math.sqrt(3 / 3000) <= 1.000001
