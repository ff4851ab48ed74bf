"""What stands between two layers, and after the last: everything that was read is held against the net."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as all of torch's own documents write it
from nets import layer, recipe_of
from ported_nets import conv, dropout, image, linear, pool, relu
from torch import Tensor, nn

from caffe2torch.binding.bind import bind
from caffe2torch.verification.check_model import check_model
from caffe2torch.verification.report import Check, Result

Forward = Callable[[Any, Tensor], Tensor]

HEAD = image(3, 16) + conv("a", "data", "num_output: 4 kernel_size: 3 pad: 1")


def tail(bottom: str) -> str:
    return conv("b", bottom, "num_output: 4 kernel_size: 3 pad: 1")


PLAIN = HEAD + relu("a") + tail("a")
LABEL = 'input: "label" input_shape { dim: 2 }\n'


class Port(nn.Module):
    """Two layers, with whatever a test puts around them."""

    def __init__(self, forward: Forward, **changed: nn.Module) -> None:
        super().__init__()
        self.a: nn.Module = nn.Conv2d(3, 4, 3, padding=1)
        self.b: nn.Module = nn.Conv2d(4, 4, 3, padding=1)
        for name, module in changed.items():
            setattr(self, name, module)
        self.written = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.written(self, x)


def found(net: str, forward: Forward, **changed: nn.Module) -> Check:
    recipe = recipe_of(net)
    return check_model(recipe, bind(recipe, Port(forward, **changed)))


def said(check: Check) -> list[str]:
    return [f"{one.yours}, {one.caffes}" for one in check.differences]


BETWEEN = {
    "a second activation": (lambda y: y.relu().sigmoid(), "sigmoid, none between a and b"),
    "a pooling that keeps the size": (
        lambda y: F.max_pool2d(y.relu(), 3, 1, 1),
        "max pooling, none between a and b",
    ),
    "dropout": (lambda y: F.dropout(y.relu()), "dropout 0.5, none between a and b"),
    "LRN": (lambda y: F.local_response_norm(y.relu(), 5), "LRN, none between a and b"),
    "softmax": (lambda y: y.relu().softmax(1), "softmax, none between a and b"),
    "a factor": (lambda y: y.relu() * 2, "a factor of 2, none between a and b"),
    "a factor in two steps": (lambda y: y.relu().mul(4).div(2), "a factor of 2, none between a and b"),
    "a sign": (lambda y: -y.relu(), "a factor of -1, none between a and b"),
    "a shift": (lambda y: y.relu() - 0.5, "a shift of -0.5, none between a and b"),
    "both": (lambda y: 1 - y.relu() * 2, "a factor of -2 and a shift of 1, none between a and b"),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_what_the_net_does_not_have_between_two_layers_is_named(name: str) -> None:
    between, expected = BETWEEN[name]
    check = found(PLAIN, lambda m, x: m.b(between(m.a(x))))
    assert said(check) == [expected]
    assert "not read" not in check.effect


@pytest.mark.parametrize(
    "between",
    [
        lambda y: y.relu().relu(),
        lambda y: F.dropout(y.relu(), 0.0),
        lambda y: F.max_pool2d(y.relu(), 1),
        lambda y: y.relu() * 2 / 2,
        lambda y: y.relu() + 1 - 1,
        lambda y: y.relu().permute(0, 2, 3, 1).permute(0, 3, 1, 2),
        lambda y: y.transpose(1, 2).relu().transpose(1, 2),
        lambda y: F.pad(y.relu(), (2, 2, 2, 2))[:, :, 2:-2, 2:-2],
    ],
)
def test_what_changes_nothing_is_no_difference(between: Callable[[Tensor], Tensor]) -> None:
    check = found(PLAIN, lambda m, x: m.b(between(m.a(x))))
    assert (check.result, said(check)) == (Result.OK, [])


def test_two_dropouts_in_a_row_are_one_too_many() -> None:
    net = HEAD + relu("a") + dropout("a", 0.5) + tail("a")
    check = found(net, lambda m, x: m.b(F.dropout(F.dropout(m.a(x).relu(), 0.5), 0.3)))
    assert said(check) == ["dropout 0.3, none between a and b"]


def test_a_pooling_that_the_model_lacks_is_named() -> None:
    net = HEAD + pool("p", "a", "kernel_size: 3 stride: 1 pad: 1") + tail("p")
    check = found(net, lambda m, x: m.b(m.a(x)))
    assert said(check) == ["no max pooling between a and b, max pooling"]


def test_poolings_that_caffe_does_not_have_are_not_taken_for_those_it_has() -> None:
    net = HEAD + pool("p", "a", "kernel_size: 2 stride: 2") + tail("p")
    assert said(found(net, lambda m, x: m.b(F.lp_pool2d(m.a(x), 2, 2)))) == ["L2 pooling, max pooling"]
    fractional = nn.FractionalMaxPool2d(2, output_size=8)
    assert said(found(net, lambda m, x: m.b(m.p(m.a(x))), p=fractional)) == ["fractional max pooling, max pooling"]


GLOBAL = image(3, 16) + conv("a", "data", "num_output: 4 kernel_size: 3 pad: 1")
GLOBAL += pool("p", "a", "pool: AVE global_pooling: true") + linear("b", "p", 2)


@pytest.mark.parametrize(
    ("mean", "expected"),
    [
        (lambda y: y.mean((2, 3)), []),
        (lambda y: y.flatten(2).mean(-1), []),
        (lambda y: y.sum((2, 3)) / 256, []),
        (lambda y: y.sum((2, 3)), ["a factor of 256, none between a and b"]),
        (lambda y: F.dropout(y.sum((2, 3)), 0.0) / 256, []),
        (lambda y: y.amax((2, 3)), ["max pooling, average pooling"]),
    ],
)
def test_a_mean_is_the_pooling_over_all_and_a_sum_is_not(mean: Any, expected: list[str]) -> None:
    check = found(GLOBAL, lambda m, x: m.b(mean(m.a(x))), b=nn.Linear(4, 2))
    assert said(check) == expected
    assert "not seen" not in (check.seen or check.effect)


@pytest.mark.parametrize(
    ("given", "padding", "expected"),
    [
        ({"mode": "reflect"}, 1, "padding_mode reflect, zeros"),
        ({"mode": "circular"}, 1, "padding_mode circular, zeros"),
        ({"mode": "replicate"}, 1, "padding_mode replicate, zeros"),
        ({"value": 1.0}, 1, "padding with 1, zeros"),
        ({}, (0, 2), "padding 0 before and 2 after, 1"),
    ],
)
def test_a_padding_is_named_by_what_it_pads_with_and_where(given: Any, padding: Any, expected: str) -> None:
    begin, end = (padding, padding) if isinstance(padding, int) else padding
    own = nn.Conv2d(4, 4, 3)
    check = found(PLAIN, lambda m, x: m.b(F.pad(m.a(x).relu(), (begin, end, begin, end), **given)), b=own)
    assert said(check) == [expected]


def test_a_modules_padding_mode_is_read() -> None:
    own = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
    assert said(found(PLAIN, lambda m, x: m.b(m.a(x).relu()), b=own)) == ["padding_mode reflect, zeros"]


def test_a_pad_at_the_end_that_no_window_reaches_is_no_difference() -> None:
    net = image(3, 16) + conv("a", "data", "num_output: 4 kernel_size: 3 pad: 1 stride: 2") + tail("a")
    ported = nn.Conv2d(3, 4, 3, stride=2)
    assert said(found(net, lambda m, x: m.b(m.a(F.pad(x, (1, 0, 1, 0)))), a=ported)) == []


def test_lrn_within_a_channel_is_not_lrn_across_channels() -> None:
    within = layer("LRN", "n", "a", "n", "lrn_param { local_size: 5 norm_region: WITHIN_CHANNEL }")
    check = found(HEAD + within + tail("n"), lambda m, x: m.b(F.local_response_norm(m.a(x), 5)))
    assert said(check) == ["LRN across channels, within each channel"]


def test_the_order_counts_where_it_changes_what_is_computed() -> None:
    """AlexNet normalizes and then pools, CaffeNet the other way round."""
    net = (
        HEAD
        + layer("LRN", "n", "a", "n", "lrn_param { local_size: 5 alpha: 0.0001 }")
        + pool("p", "n", "kernel_size: 2 stride: 2")
        + tail("p")
    )
    pools_first = found(net, lambda m, x: m.b(F.local_response_norm(F.max_pool2d(m.a(x), 2), 5)))
    assert said(pools_first) == ["max pooling before LRN, LRN before max pooling"]
    assert pools_first.differences[0].layer == "n"
    net = HEAD + relu("a") + pool("p", "a", "kernel_size: 2 stride: 2") + tail("p")
    assert found(net, lambda m, x: m.b(F.max_pool2d(m.a(x), 2).relu())).result is Result.OK
    net = net.replace("kernel_size: 2", "pool: AVE kernel_size: 2")
    check = found(net, lambda m, x: m.b(F.avg_pool2d(m.a(x), 2).relu()))
    assert said(check) == ["average pooling before ReLU, ReLU before average pooling"]


FLAT = image(3, 16) + conv("a", "data", "num_output: 4 kernel_size: 3 pad: 1") + linear("b", "a", 2)


@pytest.mark.parametrize(
    ("flatten", "expected"),
    [
        (lambda y: y.flatten(1), []),
        (lambda y: y.view(len(y), -1), []),
        (lambda y: y.permute(0, 2, 3, 1).reshape(len(y), -1), ["0, 2, 3, 1"]),
        (lambda y: y.transpose(2, 3).flatten(1), ["0, 1, 3, 2"]),
    ],
)
def test_an_image_that_is_flattened_in_another_order_is_named(flatten: Any, expected: list[str]) -> None:
    check = found(FLAT, lambda m, x: m.b(flatten(m.a(x))), b=nn.Linear(1024, 2))
    orders = [f"an image that is flattened in the order {order} of its axes, 0, 1, 2, 3" for order in expected]
    assert said(check) == orders


def judged(kind: str) -> str:
    label = LABEL if kind == "SoftmaxWithLoss" else 'input: "label" input_shape { dim: 2 dim: 2 }\n'
    return label + FLAT + layer(kind, "loss", "b label")


@pytest.mark.parametrize(
    ("loss", "last", "expected"),
    [
        ("SoftmaxWithLoss", lambda y: y, []),
        ("SoftmaxWithLoss", lambda y: y.log_softmax(1), []),
        ("SoftmaxWithLoss", lambda y: y.softmax(1), ["softmax, none after b"]),
        ("SoftmaxWithLoss", lambda y: y.relu(), ["ReLU, none after b"]),
        ("EuclideanLoss", lambda y: y.tanh(), ["tanh, none after b"]),
        ("EuclideanLoss", lambda y: y.log_softmax(1), ["log softmax, none after b"]),
    ],
)
def test_what_follows_the_last_layer_is_compared(loss: str, last: Any, expected: list[str]) -> None:
    check = found(judged(loss), lambda m, x: last(m.b(m.a(x).flatten(1))), b=nn.Linear(1024, 2))
    assert said(check) == expected
    applies = {"softmax, none after b": "its SoftmaxWithLoss applies one itself"}
    assert [one.effect for one in check.differences] == [applies.get(one, "") for one in expected]


def test_a_sigmoid_before_a_loss_that_applies_one_may_be_right() -> None:
    check = found(
        judged("SigmoidCrossEntropyLoss"), lambda m, x: m.b(m.a(x).flatten(1)).sigmoid(), b=nn.Linear(1024, 2)
    )
    assert check.result is Result.OK
    assert "right for a loss of probabilities as BCELoss, wrong for one of scores" in check.seen


def test_a_softmax_or_sigmoid_that_ends_the_net_may_be_part_of_the_ports_loss() -> None:
    for kind, function in (("Softmax", None), ("Sigmoid", None), ("Softmax", F.log_softmax)):
        net = FLAT + layer(kind, "prob", "b")
        last = (lambda y: y) if function is None else (lambda y: F.log_softmax(y, 1))
        assert (
            found(net, lambda m, x, last=last: last(m.b(m.a(x).flatten(1))), b=nn.Linear(1024, 2)).result is Result.OK
        )


UP = image(3, 16) + conv("a", "data", "num_output: 4 kernel_size: 3 pad: 1 stride: 2")
UP += conv("b", "a", "num_output: 4 kernel_size: 4 stride: 2 pad: 1", "Deconvolution")


@pytest.mark.parametrize(
    ("crop", "expected"),
    [
        (lambda y: y[:, :, 1:-1, 1:-1], []),
        (lambda y: F.pad(y, (-1, -1, -1, -1)), []),
        (lambda y: y.narrow(2, 1, 16).narrow(3, 1, 16), []),
        (lambda y: y[:, :, :-2, :-2], ["padding 0, 1"]),
        (lambda y: y[:, :, 2:-2, 2:-2], ["padding 2, 1"]),
        (lambda y: y, ["padding 0, 1"]),
    ],
)
def test_a_crop_on_each_side_is_the_padding_of_a_transposed_convolution(crop: Any, expected: list[str]) -> None:
    ported = {"a": nn.Conv2d(3, 4, 3, 2, 1), "b": nn.ConvTranspose2d(4, 4, 4, 2)}
    check = found(UP, lambda m, x: crop(m.b(m.a(x))), **ported)
    assert said(check) == expected


def test_a_crop_begins_where_the_nets_does() -> None:
    net = HEAD + tail("a") + 'input: "like" input_shape { dim: 2 dim: 4 dim: 8 dim: 8 }\n'
    net += layer("Crop", "c", "b like", "c", "crop_param { axis: 2 offset: 3 }")
    same = found(net, lambda m, x: m.b(m.a(x))[:, :, 3:11, 3:11])
    assert (same.result, said(same)) == (Result.OK, [])
    other = found(net, lambda m, x: m.b(m.a(x))[:, :, 4:12, 4:12])
    assert said(other) == ["a crop that begins at 4, 3"]


@pytest.mark.parametrize("how", ["max_unpool2d", "scatter", "nearest"])
def test_an_unpooling_is_segnets_upsample_and_an_interpolation_is_not_known(how: str) -> None:
    net = HEAD + layer("Pooling", "p", "a", "p mask", "pooling_param { kernel_size: 2 stride: 2 }")
    net += layer("Upsample", "u", "p mask", "u", "upsample_param { scale: 2 }") + tail("u")

    def forward(m: Any, x: Tensor) -> Tensor:
        y, places = F.max_pool2d(m.a(x), 2, return_indices=True)
        if how == "max_unpool2d":
            return m.b(F.max_unpool2d(y, places, 2))
        if how == "scatter":
            flat = y.new_zeros(*y.shape[:2], 256).scatter(2, places.flatten(2), y.flatten(2))
            return m.b(flat.view(*y.shape[:2], 16, 16))
        return m.b(F.interpolate(y, scale_factor=2))

    check = found(net, forward)
    assert check.result is Result.OK
    assert ("not read" in check.seen, "1 not seen (u)" in check.seen) == (how == "nearest", how == "nearest")


def test_a_power_of_one_is_a_factor_and_a_shift() -> None:
    net = HEAD + layer("Power", "s", "a", "s", "power_param { scale: 0.5 shift: 2 }") + tail("s")
    assert found(net, lambda m, x: m.b(m.a(x) * 0.5 + 2)).result is Result.OK
    assert said(found(net, lambda m, x: m.b(m.a(x) * 0.25 + 2))) == ["a factor of 0.25, 0.5"]
    assert said(found(net, lambda m, x: m.b(m.a(x)))) == ["no factor between a and b, a factor of 0.5 and a shift of 2"]


@pytest.mark.parametrize(
    "between",
    [
        lambda y: y.relu() * torch.ones(()),
        lambda y: y.relu().roll(1, 3),
        lambda y: y.relu().repeat_interleave(2, 3)[..., ::2],
        lambda y: F.dropout(y.relu().exp(), 0.0),
    ],
)
def test_where_something_cannot_be_read_it_says_so(between: Callable[[Tensor], Tensor]) -> None:
    check = found(PLAIN, lambda m, x: m.b(between(m.a(x))))
    assert check.result is Result.OK
    assert "not read: what is computed between a and b" in check.seen


def test_what_a_model_does_to_its_input_is_not_held_against_the_net() -> None:
    """The data layer may do the same."""
    check = found(PLAIN, lambda m, x: m.b(m.a((x - 0.5) / 0.25).relu()))
    assert check.result is Result.OK
    assert "not read: what is computed before a" in check.seen


def test_a_view_of_numbers_that_are_overwritten_is_not_known() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        turned = y.transpose(2, 3)
        y.relu_()
        return m.b(turned.transpose(2, 3))

    assert "not read: what is computed between a and b" in found(PLAIN, forward).seen


# What two layers take.

BRANCHES = PLAIN + layer("Eltwise", "sum", "a b") + conv("s", "sum", "num_output: 2 kernel_size: 1")


@pytest.mark.parametrize(
    ("joined", "expected"),
    [
        (lambda y, z: y + z, []),
        (lambda y, z: torch.stack([z, y]).sum(0), []),
        (lambda _, z: z, ["b as the input, the sum of a and b"]),
        (lambda y, z: y * z, ["the product of a and b as the input, the sum of a and b"]),
        (lambda y, z: y - z, ["a factor of -1, none after b"]),
        (lambda y, z: torch.add(y, z, alpha=0.5), ["a factor of 0.5, none after b"]),
        (
            lambda y, z: torch.cat([y[:, :2], z[:, :2]], 1),
            ["the concatenation of a and b as the input, the sum of a and b"],
        ),
    ],
)
def test_a_layer_takes_what_the_nets_layer_takes(joined: Any, expected: list[str]) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x).relu()
        return m.s(joined(y, m.b(y)))

    assert said(found(BRANCHES, forward, s=nn.Conv2d(4, 2, 1))) == expected


def test_a_concatenation_has_an_order() -> None:
    net = BRANCHES.replace("Eltwise", "Concat")
    for first, expected in ((0, []), (1, ["the concatenation of b and a as the input, the concatenation of a and b"])):

        def forward(m: Any, x: Tensor, first: int = first) -> Tensor:
            y = m.a(x).relu()
            parts = [y, m.b(y)]
            return m.s(torch.cat([parts[first], parts[1 - first]], 1))

        assert said(found(net, forward, s=nn.Conv2d(8, 2, 1))) == expected


def test_a_reshape_that_a_port_leaves_to_its_loss_is_no_other_size() -> None:
    dims = "reshape_param { shape { dim: 0 dim: 2 dim: -1 dim: 0 } }"
    net = PLAIN + layer("Reshape", "r", "b", "r", dims) + layer("Softmax", "p", "r")
    assert not said(found(net, lambda m, x: m.b(m.a(x).relu())))
    assert said(found(net, lambda m, x: m.b(m.a(x).relu())[:, :, 1:]))


def test_a_crop_that_states_nothing_begins_where_its_fork_has_it() -> None:
    net = PLAIN + layer("Crop", "c", "b like", "c") + 'input: "like" input_shape { dim: 1 dim: 1 dim: 12 dim: 12 }\n'
    for begin in (0, 2):
        assert not said(found(net, lambda m, x, at=begin: m.b(m.a(x).relu())[:, :, at : at + 12, at : at + 12]))


def test_another_order_is_said_in_the_names_of_both_sides() -> None:
    net = image(3, 16) + conv("c", "data", "num_output: 4 kernel_size: 3 pad: 1")
    net += conv("d", "data", "num_output: 5 kernel_size: 1") + layer("Concat", "j", "c d")
    net += conv("s", "j", "num_output: 2 kernel_size: 1")
    check = found(net, lambda m, x: m.s(torch.cat([m.b(x), m.a(x)], 1)), b=nn.Conv2d(3, 5, 1), s=nn.Conv2d(9, 2, 1))
    assert said(check) == ["the concatenation of b and a (Caffe's d and c) as the input, the concatenation of c and d"]
    assert check.differences[0].effect == "weights of Caffe need its order, a training from scratch does not"


def test_a_layer_that_is_used_once_more_is_named() -> None:
    check = found(
        PLAIN + conv("s", "b", "num_output: 2 kernel_size: 1"),
        lambda m, x: m.s(m.b(m.b(m.a(x).relu()))),
        s=nn.Conv2d(4, 2, 1),
    )
    assert "b of b of a as the input, b" in said(check)


def test_a_factor_or_a_mean_may_stand_on_either_side_of_a_product_and_a_sum() -> None:
    net = PLAIN + layer("Power", "h", "b", "h", "power_param { scale: 0.5 }")
    for kind, joined in (("operation: PROD", lambda y, z: y * z * 0.5), ("operation: SUM", lambda y, z: y + z * 0.5)):
        whole = (
            net
            + layer("Eltwise", "e", "a h", "e", f"eltwise_param {{ {kind} }}")
            + conv("s", "e", "num_output: 2 kernel_size: 1")
        )

        def forward(m: Any, x: Tensor, joined: Any = joined) -> Tensor:
            y = m.a(x).relu()
            return m.s(joined(y, m.b(y)))

        assert said(found(whole, forward, s=nn.Conv2d(4, 2, 1))) == []


def test_coefficients_of_a_sum_are_factors() -> None:
    net = BRANCHES.replace('top: "sum"', 'top: "sum" eltwise_param { coeff: 1 coeff: -1 }')
    for joined, expected in ((lambda y, z: y - z, []), (lambda y, z: y + z, ["no factor after b, a factor of -1"])):

        def forward(m: Any, x: Tensor, joined: Any = joined) -> Tensor:
            y = m.a(x).relu()
            return m.s(joined(y, m.b(y)))

        check = found(net, forward, s=nn.Conv2d(4, 2, 1))
        assert said(check) == expected
        assert [one.name for one in check.differences] == ["b.scaling"] * len(expected)


def test_an_output_of_rows_is_no_image_of_one_number() -> None:
    net = HEAD + layer("Flatten", "f", "a")
    check = found(net + tail("a"), lambda m, x: (m.b(m.a(x)), m.a(x).permute(0, 2, 3, 1).reshape(2, -1, 4)))
    assert said(check) == []


# What is the same in another layout, or cannot be known.


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.b(m.a(x).relu()).permute(0, 2, 3, 1),
        lambda m, x: m.c(m.a(x).relu().permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
        lambda m, x: m.b(m.a(x).relu()).permute(0, 2, 3, 1).softmax(-1).permute(0, 3, 1, 2),
    ],
)
def test_channels_may_be_the_last_axis(forward: Forward) -> None:
    net = HEAD + relu("a") + conv("b", "a", "num_output: 4 kernel_size: 1") + layer("Softmax", "p", "b")
    recipe = recipe_of(net)
    port = Port(forward, b=nn.Conv2d(4, 4, 1))
    if "c" in forward.__code__.co_names:
        del port.b
        port.c = nn.Linear(4, 4)
    assert said(check_model(recipe, bind(recipe, port))) == []


def test_a_strided_one_by_one_convolution_may_take_every_second_number_first() -> None:
    net = (
        HEAD
        + relu("a")
        + conv("b", "a", "num_output: 4 kernel_size: 1 stride: 2")
        + conv("s", "b", "num_output: 2 kernel_size: 1")
    )
    for nth in (lambda y: F.max_pool2d(y, 1, 2), lambda y: y[:, :, ::2, ::2]):
        ported = {"b": nn.Conv2d(4, 4, 1), "s": nn.Conv2d(4, 2, 1)}
        check = found(net, lambda m, x, nth=nth: m.s(m.b(nth(m.a(x).relu()))), **ported)
        assert (check.result, said(check)) == (Result.OK, [])


def test_no_pooling_is_missed_where_the_model_was_run_at_another_size() -> None:
    recipe = recipe_of(GLOBAL)
    port = Port(lambda m, x: m.b(F.adaptive_avg_pool2d(m.a(x), 1).flatten(1)), b=nn.Linear(4, 2))
    assert said(check_model(recipe, bind(recipe, port, input_shapes=[(2, 3, 1, 1)]))) == []


def test_a_mean_may_come_after_a_map_of_single_numbers() -> None:
    check = found(GLOBAL, lambda m, x: m.b(m.a(x)).mean((2, 3)), b=nn.Conv2d(4, 2, 1))
    assert (check.result, said(check)) == (Result.OK, [])


def test_a_bias_that_is_added_apart_is_a_bias() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return F.conv2d(m.a(x).relu(), m.b.weight, None, padding=1) + m.b.bias.view(1, -1, 1, 1)

    assert said(found(PLAIN, forward)) == []


def test_a_second_relu_of_a_sum_of_relus_is_none() -> None:
    net = BRANCHES.replace('layer { name: "sum"', relu("b") + 'layer { name: "sum"')

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x).relu()
        return m.s((y + m.b(y).relu()).relu())

    assert said(found(net, forward, s=nn.Conv2d(4, 2, 1))) == []


def test_zeros_around_numbers_below_0_are_not_caffes_padding_of_a_maximum() -> None:
    net = HEAD + pool("p", "a", "kernel_size: 3 stride: 2 pad: 1") + "{}" + tail("p")
    padded = lambda y: F.max_pool2d(F.pad(y, (1, 1, 1, 1)), 3, 2, ceil_mode=True)  # noqa: E731 - used twice
    check = found(net.replace("{}", ""), lambda m, x: m.b(padded(m.a(x))))
    assert said(check) == ["padding with zeros, padding that is never the largest"]
    assert said(found(net.replace("{}", relu("p")), lambda m, x: m.b(padded(m.a(x)).relu()))) == []


@pytest.mark.parametrize(
    "weight", [lambda w: w * 2, lambda w: w.flip(2, 3), lambda w: w - w.mean((1, 2, 3), keepdim=True)]
)
def test_a_weight_that_is_computed_on_the_way_is_not_compared(weight: Any) -> None:
    check = found(PLAIN, lambda m, x: m.b(F.conv2d(x, weight(m.a.weight), m.a.bias, padding=1).relu()))
    assert "1 not seen (a)" in check.seen


@pytest.mark.parametrize(
    "between",
    [
        lambda y: torch.cat([y[:, 2:], y[:, :2]], 1),
        lambda y: torch.stack(y.unbind(1), -1).movedim(-1, 1),
        lambda y: y[:, :1].expand(-1, 4, -1, -1),
        lambda y: torch.cat([y[:, :2] * 0, y[:, 2:]], 1),
    ],
)
def test_parts_that_are_put_together_are_not_known(between: Callable[[Tensor], Tensor]) -> None:
    check = found(PLAIN, lambda m, x: m.b(between(m.a(x).relu())))
    assert "not read: what is computed between a and b" in check.seen


def test_an_activation_of_half_of_a_tensor_is_not_that_of_the_whole() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        y[:, :2].relu_()
        return m.b(y)

    assert "1 not seen (relu_a)" in found(PLAIN, forward).seen


def test_a_value_that_meets_itself_is_not_known() -> None:
    net = (
        HEAD
        + layer("Sigmoid", "g", "a")
        + layer("Eltwise", "e", "a g", "e", "eltwise_param { operation: PROD }")
        + tail("e")
    )
    check = found(net, lambda m, x: m.b(m.a(x).relu()))
    assert "1 not seen (g); not read: what is computed between a and b" in check.seen
