"""Every kind of layer, and the layouts in which torch keeps its tensors."""

from __future__ import annotations

import pytest
import torch
from nets import IMAGE, conv, layer, linear, messages, names, norm, recipe_of
from torch import Tensor, nn

from caffe2torch.binding.bind import bind
from caffe2torch.binding.plan import Kind
from caffe2torch.errors import BindingError


def test_every_kind_of_layer_finds_its_tensors() -> None:
    recipe = recipe_of(
        IMAGE,
        conv("c", "data", 4, 3, "group: 1"),
        norm("n", "c"),
        layer("PReLU", "p", "c", "c"),
        layer("Deconvolution", "up", "c", "", "convolution_param { num_output: 6 kernel_size: 2 stride: 2 group: 2 }"),
        layer("BN", "segnet_bn", "up"),
        layer("Scale", "only", "segnet_bn"),
        linear("fc", "only", 7),
    )

    class Only(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gamma = nn.Parameter(torch.ones(6, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.gamma

    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.PReLU(4),
        nn.ConvTranspose2d(4, 6, 2, 2, groups=2),
        nn.BatchNorm2d(6),
        Only(),
        nn.Flatten(),
        nn.Linear(6 * 16 * 16, 7),
    )
    binding = bind(recipe, model)
    assert names(binding) == {
        "c/0": "0.weight",
        "c/1": "0.bias",
        "n/0": "1.running_mean",
        "n/1": "1.running_var",
        "n/2": None,
        "n/scale/0": "1.weight",
        "n/scale/1": "1.bias",
        "p/0": "2.weight",
        "up/0": "3.weight",
        "up/1": "3.bias",
        "segnet_bn/0": "4.weight",
        "segnet_bn/1": "4.bias",
        "only/0": "5.gamma",
        "fc/0": "7.weight",
        "fc/1": "7.bias",
    }
    kinds = [bound.kind for bound in binding.blobs if bound.blob.layer == "n"]
    assert kinds == [Kind.BUFFER, Kind.BUFFER, Kind.NONE]
    assert [bound.blob for bound in binding.blobs] == list(recipe.blobs)
    assert "no blob holds the running statistics of 4" in messages(binding.notes)


def test_a_fully_connected_layer_may_be_a_full_size_convolution_and_the_other_way_round() -> None:
    recipe = recipe_of(IMAGE, conv("c", "data", 4), linear("fc", "c", 5), linear("out", "fc", 2))
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 8), nn.Conv2d(5, 2, 1))
    binding = bind(recipe, model)
    assert names(binding)["fc/0"] == "1.weight"
    assert "fc/0, out/0: reshaped" in messages(binding.notes)
    full = recipe_of(IMAGE, layer("Convolution", "c", "data", "", "convolution_param { num_output: 5 kernel_size: 8 }"))
    assert names(bind(full, nn.Sequential(nn.Flatten(), nn.Linear(192, 5)))) == {"c/0": "1.weight", "c/1": "1.bias"}


def test_a_transposed_inner_product_is_known_to_be_transposed() -> None:
    recipe = recipe_of('input: "data" input_shape { dim: 2 dim: 6 }', linear("fc", "data", 4, "transpose: true"))
    assert recipe.blobs[0].shape == (6, 4)
    assert bind(recipe, nn.Sequential(nn.Linear(6, 4))).blobs[0].how == "structure; transposed"


def test_an_lstm_has_one_bias_and_torch_two() -> None:
    recipe = recipe_of(
        'input: "x" input_shape { dim: 7 dim: 2 dim: 8 } input: "cont" input_shape { dim: 7 dim: 2 }\n',
        layer("LSTM", "l", "x cont", "", "recurrent_param { num_output: 6 }"),
    )

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.r = nn.LSTM(8, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.r(x)[0]  # type: ignore[no-any-return]

    with pytest.raises(BindingError, match=r"r\.bias_hh_l0: Caffe's recurrent layers have one bias"):
        bind(recipe, Model())
    binding = bind(recipe, Model(), unclaimed=(0.0, 0.0))
    assert names(binding) == {"l/0": "r.weight_ih_l0", "l/1": "r.bias_ih_l0", "l/2": "r.weight_hh_l0"}


def test_frozen_batch_norms_in_buffers_hold_what_caffe_freezes_and_nothing_that_it_trains() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in ("weight", "bias", "running_mean", "running_var"):
                self.register_buffer(name, torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.get_buffer("weight")[:, None, None]

    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), Frozen())
    text = conv("c", "data") + norm("n", "c")
    with pytest.raises(
        BindingError, match=r"Caffe trains its scale \(lr_mult 1\), the model keeps 1.weight in a buffer"
    ):
        bind(recipe_of(IMAGE, text), model)
    frozen = text.replace('type: "Scale"', 'type: "Scale" param { lr_mult: 0 } param { lr_mult: 0 }')
    assert {bound.kind for bound in bind(recipe_of(IMAGE, frozen), model).blobs[2:]} == {Kind.BUFFER, Kind.NONE}


def test_a_bias_that_a_batch_norm_subtracts_may_be_missing_and_no_other() -> None:
    recipe = recipe_of(IMAGE, conv("c", "data"), norm("n", "c"))
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
    binding = bind(recipe, model)
    assert binding.blobs[1].kind is Kind.NONE
    assert binding.blobs[1].how == "skipped: the batch norm after it subtracts it again, and the model has none"
    assert "c/1: the batch norm after it subtracts it again" in messages(binding.notes)
    with pytest.raises(BindingError, match="the module has no bias"):
        bind(recipe_of(IMAGE, conv("c", "data")), nn.Sequential(nn.Conv2d(3, 4, 3, bias=False)))
