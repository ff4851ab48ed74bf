"""The check ``model``: it finds what a port has otherwise than its net, and nothing where it is written differently."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as all of torch's own documents write it
from nets import layer, recipe_of
from ported_nets import PORTS, ResNet, SegNet, conv, image, linear, pool
from torch import Tensor, nn

from caffe2torch.binding.bind import bind
from caffe2torch.binding.net_computation import net_computation
from caffe2torch.errors import Caffe2TorchError
from caffe2torch.models import SegNetBasic
from caffe2torch.models.build_net import build_model
from caffe2torch.reading import read_recipe
from caffe2torch.verification.check_model import check_model, read_accepted
from caffe2torch.verification.report import Check, Result

RECIPES = {name: recipe_of(port.net) for name, port in PORTS.items()}


def found(name: str, model: nn.Module, **options: Any) -> Check:
    return check_model(RECIPES[name], bind(RECIPES[name], model, **options))


def said(check: Check) -> list[str]:
    """What differs, without the net's place and what it does to a size."""
    return [f"{one.name}: {one.yours}, {one.caffes}" for one in check.differences]


@pytest.mark.parametrize("name", PORTS)
def test_a_faithful_port_has_no_difference_and_every_layer_is_seen(name: str) -> None:
    check = found(name, PORTS[name].build())
    assert check.result is Result.OK
    assert "not seen" not in check.seen


def average(*arguments: Any, **settings: Any) -> Tensor:
    return F.avg_pool2d(*arguments, **settings)


def nothing(x: Tensor) -> Tensor:
    return x


PLANTED: list[tuple[str, dict[str, Any], list[str]]] = [
    # Two after which the port's forward pass raises at the net's own size.
    ("alexnet", {"conv1_stride": 1}, ["0.stride: stride 1, 2"]),
    ("alexnet", {"pool2_ceil": False}, ["6.rounding: sizes rounded down, sizes rounded up"]),
    ("alexnet", {"relu1": lambda: nn.LeakyReLU(0.1)}, ["1.slope: slope 0.1, 0"]),
    ("alexnet", {"relu1": nn.Sigmoid}, ["1.function: sigmoid, ReLU"]),
    ("alexnet", {"relu1": nn.Identity}, ["relu_conv1.activation: no ReLU between 0 and 4, ReLU"]),
    ("alexnet", {"lrn_size": 3}, ["2.size: LRN size 3, 5"]),
    ("alexnet", {"lrn_alpha": 1e-3}, ["2.alpha: LRN alpha 0.001, 0.0001"]),
    ("alexnet", {"lrn_beta": 0.5}, ["2.beta: LRN beta 0.5, 0.75"]),
    ("alexnet", {"lrn_k": 2.0}, ["2.k: LRN k 2, 1"]),
    ("alexnet", {"lrn": False}, ["norm1.LRN: no LRN between 0 and 3, LRN"]),
    ("alexnet", {"pool1": nn.AvgPool2d}, ["3.pooling: average pooling, max pooling"]),
    ("alexnet", {"pool1_kernel": 2}, ["3.kernel: kernel 2, 3"]),
    ("alexnet", {"pool1_stride": 3}, ["3.stride: stride 3, 2"]),
    ("alexnet", {"pool1_padding": 1}, ["3.padding: padding 1, 0"]),
    ("alexnet", {"dropout": 0.9}, ["10.ratio: dropout ratio 0.9, 0.5"]),
    ("alexnet", {"dropout": None}, ["drop_fc6.dropout: no dropout between 8 and 11, dropout 0.5"]),
    ("resnet", {"conv1_stride": 2}, ["conv1.stride: stride 2, 1"]),
    ("resnet", {"conv1_padding": 0}, ["conv1.padding: padding 0, 1"]),
    ("resnet", {"bn1_eps": 1e-5}, ["bn1.eps: eps 1e-05, 0.001"]),
    ("resnet", {"bbn_eps": 1e-3}, ["bbn.eps: eps 0.001, 1e-05"]),
    ("resnet", {"bn1_track": False}, ["bn1.updates: statistics that no batch updates, updated ones"]),
    ("resnet", {"bbn_eval": True}, ["bbn.statistics: kept statistics, the batch's"]),
    ("resnet", {"pool": nn.AvgPool2d}, ["pool.pooling: average pooling, max pooling"]),
    ("resnet", {"pool_kernel": 2}, ["pool.kernel: kernel 2, 3"]),
    ("resnet", {"pool_stride": 1}, ["pool.stride: stride 1, 2"]),
    ("resnet", {"pool_padding": 1}, ["pool.padding: padding 1, 0"]),
    ("resnet", {"pool_ceil": False}, ["pool.rounding: sizes rounded down, sizes rounded up"]),
    ("resnet", {"down_stride": 1, "a_stride": 1}, ["down.0.stride: stride 1, 2", "a.stride: stride 1, 2"]),
    ("resnet", {"b_padding": 2, "b_dilation": 2}, ["b.padding: padding 2, 1", "b.dilation: dilation 2, 1"]),
    ("resnet", {"activation": F.elu}, ["relu_a.function: ELU, ReLU"]),
    ("resnet", {"activation": nothing}, ["relu_a.activation: no ReLU between abn and b, ReLU"]),
    ("resnet", {"last_relu": False}, ["relu_sum.activation: no ReLU before fc, ReLU"]),
    ("resnet", {"global": False}, ["avgpool.pooling: max pooling, average pooling"]),
    ("fcn", {"alpha": 1.0}, ["elu1.alpha: alpha 1, 0.5"]),
    ("fcn", {"activation": F.leaky_relu}, ["elu1.function: ReLU, ELU"]),
    ("fcn", {"pool_kernel": 2}, ["pool1.kernel: kernel 2, 3"]),
    ("fcn", {"pool_stride": 1}, ["pool1.stride: stride 1, 2"]),
    ("fcn", {"pool_padding": 0}, ["pool1.padding: padding 0, 1"]),
    (
        "fcn",
        {"pool_counts_padding": False},
        ["pool1.divides_by: an average over the window without its padding, the window with its padding"],
    ),
    ("fcn", {"padding": 1}, ["conv2.padding: padding 1, 2"]),
    ("fcn", {"dilation": 1}, ["conv2.dilation: dilation 1, 2"]),
    ("fcn", {"slope": 0.01}, ["relu_conv2.slope: slope 0.01, 0.1"]),
    ("fcn", {"up_stride": 1}, ["up.stride: stride 1, 2"]),
    ("fcn", {"up_padding": 0}, ["up.padding: padding 0, 1"]),
    ("fcn", {"up_output_padding": 1}, ["up.output_padding: output padding 1, 0"]),
    ("fcn", {"crop": False}, ["up.output_size: an output of 34x34, 33x33"]),
    ("fcn", {"axis": 2}, ["prob.axis: softmax over axis 2, 1"]),
    ("inception", {"stride": 1}, ["conv1.stride: stride 1, 2"]),
    ("inception", {"b2_padding": 2, "b2_dilation": 2}, ["b2.padding: padding 2, 1", "b2.dilation: dilation 2, 1"]),
    ("inception", {"dropout": 0.2}, ["drop.ratio: dropout ratio 0.2, 0.4"]),
    ("inception", {"dropout": 0.0}, ["drop_pool5.dropout: no dropout before fc, dropout 0.4"]),
    ("inception", {"activation": torch.sigmoid}, ["relu_b2.function: sigmoid, ReLU"]),
    ("inception", {"activation": nothing}, ["relu_b2.activation: no ReLU after b2, ReLU"]),
    ("inception", {"pool": average}, ["bpool.pooling: average pooling, max pooling"]),
    ("inception", {"pool_kernel": 5, "pool_padding": 2}, ["bpool.kernel: kernel 5, 3", "bpool.padding: padding 2, 1"]),
    ("inception", {"average": False}, ["pool5.pooling: max pooling, average pooling"]),
    ("mobilenet", {"stride": 1}, ["features.0.stride: stride 1, 2"]),
    ("mobilenet", {"relu6": nn.ReLU}, ["features.2.function: ReLU, ReLU6"]),
    ("mobilenet", {"dw_padding": 0}, ["features.3.padding: padding 0, 1"]),
    ("mobilenet", {"eps": 1e-3}, ["features.4.eps: eps 0.001, 2e-05"]),
    ("mobilenet", {"tanh": nn.Sigmoid}, ["features.5.function: sigmoid, tanh"]),
    ("mobilenet", {"pw_stride": 2}, ["features.6.stride: stride 2, 1"]),
    ("mobilenet", {"pool_kernel": 2}, ["features.7.kernel: kernel 2, 4"]),
    ("mobilenet", {"pool_stride": 2}, ["features.7.stride: stride 2, 4"]),
    (
        "mobilenet",
        {"divisor": 9},
        ["features.7.divides_by: an average over 9 numbers, the window with its padding"],
    ),
    ("mobilenet", {"axis": 3}, ["features.9.axis: softmax over axis 3, 1"]),
    ("mobilenet", {"settled": False}, ["features.1.statistics: the batch's statistics, kept ones"]),
    ("segnet", {"lrn_size": 5}, ["norm.size: LRN size 5, 3"]),
    ("segnet", {"lrn_alpha": 1e-4}, ["norm.alpha: LRN alpha 0.0001, 0.001"]),
    ("segnet", {"lrn_beta": 0.75}, ["norm.beta: LRN beta 0.75, 0.5"]),
    ("segnet", {"lrn_k": 1.0}, ["norm.k: LRN k 1, 2"]),
    ("segnet", {"conv1_padding": 2}, ["conv1_weight.padding: padding 2, 3"]),
    ("segnet", {"conv1_dilation": 2}, ["conv1_weight.dilation: dilation 2, 1"]),
    ("segnet", {"bn1_eps": 1e-5}, ["bn1.eps: eps 1e-05, 1e-09"]),
    ("segnet", {"relu": F.elu}, ["relu_conv1.function: ELU, ReLU"]),
    ("segnet", {"pool_kernel": 3}, ["pool1.kernel: kernel 3, 2"]),
    ("segnet", {"pool_ceil": False}, ["pool1.rounding: sizes rounded down, sizes rounded up"]),
    ("segnet", {"conv2_stride": 2}, ["conv2_weight.stride: stride 2, 1"]),
    ("segnet", {"dropout": 0.9}, ["drop_conv2.ratio: dropout ratio 0.9, 0.5"]),
]


@pytest.mark.parametrize(("name", "changed", "expected"), PLANTED, ids=lambda one: str(one) if type(one) is str else "")
def test_one_planted_difference_is_found_and_nothing_else(
    name: str, changed: dict[str, Any], expected: list[str]
) -> None:
    check = found(name, PORTS[name].build(**changed))
    assert said(check) == expected
    assert check.result is Result.DIFFERS


def test_kernel_groups_and_bias_differ_only_where_the_user_binds_them_so() -> None:
    groups = found("alexnet", PORTS["alexnet"].build(conv2_groups=4), reshaped=["conv2"])
    kernel = found("alexnet", PORTS["alexnet"].build(conv1_kernel=7), reshaped=["conv1"])
    bias = found("resnet", PORTS["resnet"].build(conv1_bias=True), unclaimed=(1.0, 1.0))
    assert [said(check) for check in (groups, kernel, bias)] == [
        ["4.groups: groups 4, 2"],
        ["0.kernel: kernel 7, 5"],
        ["conv1.bias: a bias, none"],
    ]


# The same nets, written otherwise.


class Written(nn.Module):
    """A module whose forward pass is a function of it."""

    def __init__(self, forward: Callable[..., Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.run = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def alexnet(forward: Callable[..., Tensor], **other: nn.Module) -> nn.Module:
    modules = {
        "conv1": nn.Conv2d(3, 8, 5, 2, 2),
        "conv2": nn.Conv2d(8, 12, 3, padding=1, groups=2),
        "fc6": nn.Linear(192, 16),
        "fc7": nn.Linear(16, 5),
    }
    return Written(forward, **(modules | other))


def tail(m: Any, x: Tensor) -> Tensor:
    x = F.max_pool2d(F.relu(m.conv2(x)), (3, 3), (2, 2), ceil_mode=True)
    x = F.relu(m.fc6(x.view(x.size(0), -1)), inplace=True)
    return m.fc7(F.dropout(x, training=m.training))


def head(x: Tensor) -> Tensor:
    return F.max_pool2d(F.local_response_norm(F.relu(x), 5), 3, 2, ceil_mode=True)


def all_functions(m: Any, x: Tensor) -> Tensor:
    return tail(m, head(m.conv1(x)))


def padded_by_hand(m: Any, x: Tensor) -> Tensor:
    return tail(m, head(m.conv1(F.pad(x, (2, 2, 2, 2)))))


def rounded_up_by_padding(m: Any, x: Tensor) -> Tensor:
    x = F.local_response_norm(m.conv1(x).clamp(min=0), 5)
    return tail(m, F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-math.inf), 3, 2))


def padded_with_zeros(m: Any, x: Tensor) -> Tensor:
    x = F.local_response_norm(m.conv1(x).relu(), 5)  # zeros are no larger than what a ReLU gives
    return tail(m, F.max_pool2d(F.pad(x, (0, 1, 0, 1)), 3, 2))


def connected_by_convolutions(m: Any, x: Tensor) -> Tensor:
    x = F.max_pool2d(torch.relu(m.conv2(head(m.conv1(x)))), 3, 2, 0, 1, True)
    return m.fc7(F.dropout(torch.relu(m.fc6(x)), 0.5, m.training)).flatten(1)


def relu_twice(m: Any, x: Tensor) -> Tensor:
    x = F.max_pool2d(F.local_response_norm(F.threshold(m.conv1(x), 0, 0).relu(), 5), 3, 2, ceil_mode=True)
    return tail(m, F.leaky_relu(x, 0.0))


class ConvReLU(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu_()


def activations_in_modules(m: Any, x: Tensor) -> Tensor:
    x = F.max_pool2d(F.local_response_norm(m.conv1(x), 5), 3, 2, ceil_mode=True)
    x = F.max_pool2d(m.conv2(x), 3, 2, ceil_mode=True)
    return m.fc7(F.dropout(F.relu(m.fc6(torch.flatten(x, 1))), training=m.training))


class Scale(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)


def norms_apart() -> nn.Module:
    model = PORTS["resnet"].build()
    model.bn1 = nn.Sequential(nn.BatchNorm2d(8, eps=1e-3, affine=False), Scale(8))
    return model


class PooledBy(ResNet):
    """The ResNet with another global pooling, and the sum the other way round."""

    def __init__(self, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__(PORTS["resnet"].usual)
        self.by = pool

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.bn1(self.conv1(x))))
        y = self.bbn(self.b(F.relu_(self.abn(self.a(x)))))
        y += self.down(x)
        return self.fc(self.by(F.relu(y)).reshape(x.shape[0], -1))


def fcn(forward: Callable[..., Tensor], **other: nn.Module) -> nn.Module:
    modules = {
        "conv1": nn.Sequential(nn.Conv2d(3, 8, 3, padding="same"), nn.ELU(0.5, inplace=True)),
        "pool": nn.AvgPool2d(3, 2, 1),
        "conv2": nn.Sequential(nn.Conv2d(8, 8, 3, padding="same", dilation=2), nn.LeakyReLU(0.1)),
        "score": nn.Conv2d(8, 5, 1),
        "up": nn.ConvTranspose2d(5, 5, 4, 2, 1),
        "prob": nn.Softmax2d(),
    }
    return Written(forward, **(modules | other))


def cropped(m: Any, x: Tensor) -> Tensor:
    y = m.up(m.score(m.conv2(m.pool(m.conv1(x)))))
    return m.prob(y.narrow(2, 0, x.shape[2]).narrow(3, 0, x.shape[3]))


def logits(m: Any, x: Tensor) -> Tensor:
    y = m.up(m.score(m.conv2(m.pool(m.conv1(x)))))
    return y[..., : x.shape[2], : x.shape[3]].log_softmax(-3)


def inception(forward: Callable[..., Tensor], **other: nn.Module) -> nn.Module:
    modules = {
        "conv1": nn.Conv2d(3, 8, 3, 2, 1),
        "b1": nn.Conv2d(8, 4, 1),
        "b2": nn.Conv2d(8, 6, 3, padding=1),
        "b3": nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(8, 5, 1)),
        "fc": nn.Linear(15, 7),
    }
    return Written(forward, **(modules | other))


def relu_after_the_concatenation(m: Any, x: Tensor) -> Tensor:
    x = F.relu(m.conv1(x))
    x = F.relu(torch.cat([m.b1(x), m.b2(x), m.b3(x)], 1))
    return m.fc(F.dropout(F.adaptive_avg_pool2d(x, (1, 1)), 0.4).flatten(1))


def nested_concatenations(m: Any, x: Tensor) -> Tensor:
    x = F.relu(m.conv1(x))
    x = torch.cat([torch.cat([F.relu(m.b1(x)), F.relu(m.b2(x))], 1), F.relu(m.b3(x))], 1)
    return m.fc(F.dropout(F.avg_pool2d(x, x.shape[2:]).view(-1, 15), 0.4))


def dropout_before_the_concatenation(m: Any, x: Tensor) -> Tensor:
    x = F.relu(m.conv1(x))
    branches = [F.dropout(F.relu(branch(x)).mean((2, 3), keepdim=True), 0.4) for branch in (m.b1, m.b2, m.b3)]
    return m.fc(torch.cat(branches, 1)[:, :, 0, 0])


def mobilenet(**other: Any) -> nn.Module:
    model = PORTS["mobilenet"].build()
    for name, module in other.items():
        model.features[int(name[1:])] = module
    return model


def stock_norms() -> nn.Module:
    model = SegNet(PORTS["segnet"].usual)
    model.bn1, model.bn2 = nn.BatchNorm2d(8, eps=1e-9), nn.BatchNorm2d(8, eps=1e-9)
    model.bn = lambda x, name: getattr(model, name)(x)  # type: ignore[method-assign]  # the same by a module
    return model


class ByChannels(SegNet):
    """The SegNet on images whose channels come last in memory, with rearrangements that cancel."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        return super().forward(x.permute(0, 2, 3, 1).permute(0, 3, 1, 2)).transpose(2, 3).transpose(2, 3)


EQUAL: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "functional pooling and view": ("alexnet", lambda: alexnet(all_functions)),
    "padding same": ("alexnet", lambda: alexnet(all_functions, conv2=nn.Conv2d(8, 12, 3, padding="same", groups=2))),
    "padded by hand": ("alexnet", lambda: alexnet(padded_by_hand, conv1=nn.Conv2d(3, 8, 5, 2))),
    "padded by a module": (
        "alexnet",
        lambda: alexnet(all_functions, conv1=nn.Sequential(nn.ZeroPad2d(2), nn.Conv2d(3, 8, 5, 2))),
    ),
    "rounded up by padding": ("alexnet", lambda: alexnet(rounded_up_by_padding)),
    "rounded up by zeros": ("alexnet", lambda: alexnet(padded_with_zeros)),
    "fully connected by convolutions": (
        "alexnet",
        lambda: alexnet(connected_by_convolutions, fc6=nn.Conv2d(12, 16, 4), fc7=nn.Conv2d(16, 5, 1)),
    ),
    "ReLU twice, as others write it": ("alexnet", lambda: alexnet(relu_twice)),
    "a ReLU inside the convolution": (
        "alexnet",
        lambda: alexnet(
            activations_in_modules, conv1=ConvReLU(3, 8, 5, 2, 2), conv2=ConvReLU(8, 12, 3, padding=1, groups=2)
        ),
    ),
    "a model in eval mode": ("alexnet", lambda: PORTS["alexnet"].build().eval()),
    "in a wrapper": ("alexnet", lambda: nn.DataParallel(PORTS["alexnet"].build())),
    "norm and scale as two modules": ("resnet", norms_apart),
    "a mean in place of pooling": ("resnet", lambda: PooledBy(lambda x: x.mean((-2, -1)))),
    "pooling by the image's size": ("resnet", lambda: PooledBy(lambda x: F.avg_pool2d(x, x.shape[2:]))),
    "pooling by a number": ("resnet", lambda: PooledBy(lambda x: F.avg_pool2d(x, 8, stride=1))),
    "modules and narrow": ("fcn", lambda: fcn(cropped)),
    "log_softmax": ("fcn", lambda: fcn(logits)),
    "pooling that rounds down where it comes to the same": ("fcn", lambda: fcn(cropped, pool=nn.AvgPool2d(3, 2, 1))),
    "ReLU after the concatenation": ("inception", lambda: inception(relu_after_the_concatenation)),
    "nested concatenations": ("inception", lambda: inception(nested_concatenations)),
    "dropout before the concatenation": ("inception", lambda: inception(dropout_before_the_concatenation)),
    "hardtanh for ReLU6": ("mobilenet", lambda: mobilenet(_2=nn.Hardtanh(0.0, 6.0))),
    "adaptive pooling": ("mobilenet", lambda: mobilenet(_7=nn.AdaptiveAvgPool2d(2))),
    "torch's batch norm": ("segnet", stock_norms),
    "channels last": ("segnet", lambda: ByChannels(PORTS["segnet"].usual)),
}


@pytest.mark.parametrize("how", EQUAL)
def test_an_equal_model_that_is_written_otherwise_has_no_difference(how: str) -> None:
    name, make = EQUAL[how]
    check = found(name, make())
    assert (check.result, said(check)) == (Result.OK, [])


# What cannot be read is not seen, and never a difference.


def written_out(x: Tensor, size: int = 5, alpha: float = 1e-4, beta: float = 0.75) -> Tensor:
    squares = F.avg_pool3d((x * x).unsqueeze(1), (size, 1, 1), 1, (size // 2, 0, 0)).squeeze(1)
    return x / (1 + alpha * squares) ** beta


def with_own_lrn(m: Any, x: Tensor) -> Tensor:
    return tail(m, F.max_pool2d(written_out(F.relu(m.conv1(x))), 3, 2, ceil_mode=True))


def with_own_dropout(m: Any, x: Tensor) -> Tensor:
    x = F.max_pool2d(F.relu(m.conv2(head(m.conv1(x)))), 3, 2, ceil_mode=True)
    x = F.relu(m.fc6(x.flatten(1)))
    return m.fc7(x * torch.empty_like(x).bernoulli_(0.5) * 2)


def with_own_relu(m: Any, x: Tensor) -> Tensor:
    x = m.conv1(x)
    return tail(m, F.max_pool2d(F.local_response_norm(x * (x > 0), 5), 3, 2, ceil_mode=True))


def padded_where_it_may_matter(m: Any, x: Tensor) -> Tensor:
    x = F.local_response_norm(m.conv1(x) * 1.0, 5)
    return tail(m, F.max_pool2d(F.pad(x, (0, 1, 0, 1)).tanh(), 3, 2))


@pytest.mark.parametrize(
    ("forward", "unseen"),
    [
        (with_own_lrn, "1 not seen (norm1)"),
        (with_own_dropout, "1 not seen (drop_fc6)"),
        (with_own_relu, "1 not seen (relu_conv1)"),
    ],
)
def test_what_is_written_out_in_arithmetic_is_not_seen(forward: Callable[..., Tensor], unseen: str) -> None:
    check = found("alexnet", alexnet(forward))
    assert check.result is Result.OK
    assert unseen in check.seen


def test_a_pooling_of_an_image_that_something_else_has_made_larger_is_not_seen() -> None:
    check = found("alexnet", alexnet(padded_where_it_may_matter))
    assert said(check) == ["relu_conv1.function: tanh, ReLU"]
    assert "1 not seen (pool1)" in check.effect


def test_a_model_that_no_forward_pass_of_goes_through_is_not_seen() -> None:
    def refuses(*_: Any) -> Tensor:
        raise ValueError("not today")

    assert found("alexnet", alexnet(refuses)).result is Result.NOT_SEEN


def test_recurrent_layers_are_counted_as_not_seen() -> None:
    recipe = recipe_of(
        'input: "x" input_shape { dim: 4 dim: 2 dim: 6 } input: "cont" input_shape { dim: 4 dim: 2 }',
        layer("LSTM", "lstm", "x cont", "lstm", "recurrent_param { num_output: 5 }"),
        layer("InnerProduct", "fc", "lstm", "fc", "inner_product_param { num_output: 3 axis: 2 }"),
    )

    class Port(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.fc = nn.LSTM(6, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.lstm(x)[0])

    check = check_model(recipe, bind(recipe, Port(), unclaimed=(0.0, 0.0)))
    assert check.result is Result.OK
    assert "1 not seen (lstm)" in check.seen


# Sizes.


def test_sizes_follow_from_the_models_input_where_the_file_states_none() -> None:
    net = layer("Data", "data", "", "data label") + conv("a", "data", "num_output: 4 kernel_size: 3")
    recipe = recipe_of(net, pool("p", "a", "kernel_size: 2 stride: 2"), conv("b", "p", "num_output: 4 kernel_size: 1"))
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2, ceil_mode=True), nn.Conv2d(4, 4, 1))
    check = check_model(recipe, bind(recipe, model, input_shapes=[(2, 3, 21, 21)]))
    assert (check.result, "sizes at 3x21x21" in check.seen) == (Result.OK, True)
    model[1].ceil_mode = False
    check = check_model(recipe, bind(recipe, model, input_shapes=[(2, 3, 21, 21)]))
    assert said(check) == ["1.rounding: sizes rounded down, sizes rounded up"]
    assert check.differences[0].effect == "the output of 2 is 9x9, Caffe's is 10x10"


def test_at_another_size_than_the_nets_own_no_size_is_compared() -> None:
    recipe = recipe_of(image(3, 16), conv("a", "data", "num_output: 4 kernel_size: 3"), linear("fc", "a", 2))

    class Port(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(784, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(F.adaptive_avg_pool2d(self.a(x), 14).flatten(1))

    check = check_model(recipe, bind(recipe, Port(), input_shapes=[(2, 3, 32, 32)]))
    assert check.result is Result.OK
    assert "sizes not: the model was run at 3x32x32, which is not the net's" in check.seen


def test_the_built_net_and_segnet_basic_have_no_difference(fixtures: Path) -> None:
    for name, recipe in RECIPES.items():
        model = build_model(recipe)
        assert check_model(recipe, bind(recipe, model)).seen == "the model was built from this net"
        if name in ("resnet", "mobilenet"):
            continue  # their BatchNorm and Scale are one call of two modules, which only the builder can bind
        wrapped = Written(lambda m, x: m.net(x), net=model)  # as a model that nobody knows to be the built one
        check = check_model(recipe, bind(recipe, wrapped))
        assert (check.result, said(check)) == (Result.OK, [])
    folder = fixtures / "segnet_basic"
    recipe = read_recipe(folder / "train.prototxt", folder / "solver.prototxt")
    check = check_model(recipe, bind(recipe, SegNetBasic(4, 3)))
    assert (check.result, check.differences) == (Result.OK, ())


# Accepting.


def test_a_difference_is_accepted_by_its_name_its_layers_name_or_a_pattern() -> None:
    recipe = RECIPES["resnet"]
    binding = bind(recipe, PORTS["resnet"].build(bn1_eps=1e-5, pool_padding=1))
    assert [one.name for one in check_model(recipe, binding).differences] == ["bn1.eps", "pool.padding"]
    for accepted in (["bn1.eps"], ["bn_conv1.eps"], [r"bn\d\..*"]):
        left = check_model(recipe, binding, accepted=accepted)
        assert [one.name for one in left.differences] == ["pool.padding"]
        assert "1 accepted" in left.effect
    assert check_model(recipe, binding, accepted=["bn1.eps", "pool.*"]).result is Result.ACCEPTED


def test_what_is_no_kind_and_no_pattern_cannot_be_accepted() -> None:
    with pytest.raises(Caffe2TorchError, match="no kind of departure called 'modle'"):
        read_accepted(["modle"])
    with pytest.raises(Caffe2TorchError, match="no regular expression"):
        read_accepted(["model:("])


def test_tongchengs_batch_norm_states_the_share_of_the_batch_in_its_average() -> None:
    data = 'layer { name: "d" type: "Data" top: "data" data_param { random_order: true } }\n'
    norm = "batch_norm_param { engine: CUDNN moving_average_fraction: 0.25 }"
    recipe = recipe_of(
        data, conv("c", "data", "num_output: 4 kernel_size: 3 pad: 1"), layer("BatchNorm", "b", "c", "b", norm)
    )
    for momentum, words in (
        (0.25, ""),
        (0.75, "1 batch norm keeps a moving average of 0.75 of each batch, Caffe of 0.25"),
    ):
        model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4, momentum=momentum))
        check = check_model(recipe, bind(recipe, model))
        assert words in check.seen
        assert ("moving average" in check.seen) == bool(words)


@pytest.mark.parametrize(
    "judge", ["SoftmaxWithLoss", "SoftmaxWithLossOHEM", "EuclideanLossWithTV", "Yolov3", "Accuracy"]
)
def test_what_judges_a_net_is_no_part_of_what_it_computes(judge: str) -> None:
    recipe = recipe_of(image(8, 4), linear("ip", "data", 5), layer(judge, "judge", "ip label"))
    found = net_computation(recipe)
    assert [operation.name for operation in found.named] == ["ip"]
    assert found.judged == {1: {judge}}
