"""Branches that only their place in a concatenation, or something else, tells apart."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from nets import IMAGE, conv, layer, recipe_of
from torch import Tensor, nn

from caffe2torch.binding.bind import bind
from caffe2torch.binding.plan import Binding, Evidence
from caffe2torch.errors import BindingError
from caffe2torch.recipe import NetRecipe


def modules_of(binding: Binding) -> dict[str, str]:
    return {bound.blob.layer: str(bound.name).rpartition(".")[0] for bound in binding.blobs}


def rivals_of(binding: Binding) -> set[str]:
    return {bound.blob.layer for bound in binding.blobs if bound.rivals}


def dilated(name: str, bottom: str, dilation: int) -> str:
    settings = f"convolution_param {{ num_output: 4 kernel_size: 3 pad: {dilation} dilation: {dilation} }}"
    return layer("Convolution", name, bottom, name, settings)


def pyramid(dilations: Sequence[int], join: str = "Concat") -> NetRecipe:
    names = [f"d{dilation}" for dilation in dilations]
    branches = [dilated(name, "a", dilation) for name, dilation in zip(names, dilations, strict=True)]
    joined = layer(join, "j", " ".join(names))
    return recipe_of(IMAGE, conv("a", "data", 4), *branches, joined, conv("out", "j", 2, 1))


class Pyramid(nn.Module):
    def __init__(self, dilations: Sequence[int], *, add: bool = False, width: int = 4) -> None:
        super().__init__()
        self.add = add
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.branches = nn.ModuleList(nn.Conv2d(4, width, 3, padding=one, dilation=one) for one in dilations)
        self.head = nn.Conv2d(width if add else width * len(dilations), 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        stem = self.stem(image)
        ends = [branch(stem) for branch in self.branches]
        joined = sum(ends[1:], start=ends[0]) if self.add else torch.cat(ends, 1)
        result: Tensor = self.head(joined)
        return result


@pytest.mark.parametrize("add", [False, True])
def test_dilations_tell_branches_apart_in_whatever_order_they_are_joined(add: bool) -> None:
    binding = bind(pyramid((1, 2, 4), "Eltwise" if add else "Concat"), Pyramid((4, 1, 2), add=add))
    assert modules_of(binding) == {
        **{"a": "stem", "d1": "branches.1", "d2": "branches.2", "d4": "branches.0"},
        "out": "head",
    }
    assert not rivals_of(binding)


def test_other_dilations_in_the_same_order_are_no_other_branches() -> None:
    binding = bind(pyramid((1, 2, 4)), Pyramid((3, 5, 6)))
    assert [modules_of(binding)[f"d{one}"] for one in (1, 2, 4)] == ["branches.0", "branches.1", "branches.2"]
    assert not rivals_of(binding)


@pytest.mark.parametrize(("other", "open_ones"), [((2, 4, 8), set()), ((4, 8, 2), {"d1", "d2", "d4"})])
def test_other_dilations_in_another_order_leave_the_branches_open(other: tuple[int, ...], open_ones: set[str]) -> None:
    assert rivals_of(bind(pyramid((1, 2, 4)), Pyramid(other))) == open_ones


@pytest.mark.parametrize(("other", "open_ones"), [((3, 5, 6), set()), ((6, 5, 3), {"d1", "d2", "d4"})])
def test_the_least_of_other_dilations_is_the_least(other: tuple[int, ...], open_ones: set[str]) -> None:
    assert rivals_of(bind(pyramid((1, 2, 4)), Pyramid(other))) == open_ones


def two_inputs(join: str = "Concat") -> NetRecipe:
    shape = "input_shape { dim: 2 dim: 3 dim: 8 dim: 8 }"
    text = f'input: "data_rgb" {shape} input: "data_flow" {shape}\n'
    text += conv("a", "data_rgb", 4) + conv("b", "data_flow", 4)
    return recipe_of(text, layer(join, "j", "a b"), conv("out", "j", 2, 1))


class Streams(nn.Module):
    def __init__(self, names: Sequence[str] = "lr") -> None:
        super().__init__()
        self.names = names
        for name in names:
            self.add_module(name, nn.Conv2d(3, 4, 3, padding=1))
        self.head = nn.Conv2d(8, 2, 1)

    def join(self, rgb: Tensor, flow: Tensor) -> Tensor:
        first, second = (self.get_submodule(name) for name in self.names)
        result: Tensor = self.head(torch.cat([second(flow), first(rgb)], 1))
        return result


class Named(Streams):
    def forward(self, flow: Tensor, rgb: Tensor) -> Tensor:
        return self.join(rgb, flow)


class Unnamed(Streams):
    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        return self.join(x1, x2)


def test_inputs_of_the_same_name_tell_branches_apart() -> None:
    binding = bind(two_inputs(), Named())
    assert modules_of(binding) == {"a": "l", "b": "r", "out": "head"}
    assert not rivals_of(binding)


def test_inputs_in_another_order_than_branches_leave_the_branches_open() -> None:
    assert rivals_of(bind(two_inputs(), Unnamed())) == {"a", "b"}


def test_names_in_another_order_than_branches_leave_the_branches_open() -> None:
    recipe = recipe_of(
        IMAGE, conv("a", "data", 4), conv("b", "data", 4), layer("Concat", "j", "a b"), conv("out", "j", 2, 1)
    )

    class Port(Streams):
        def forward(self, image: Tensor) -> Tensor:
            return self.join(image, image)

    binding = bind(recipe, Port("ab"))
    assert modules_of(binding) == {"a": "a", "b": "b", "out": "head"}
    assert rivals_of(binding) == {"a", "b"}
    assert {bound.evidence for bound in bind(recipe, Port("xy")).blobs} == {Evidence.STRUCTURE}
    assert not rivals_of(bind(recipe, Port("xy")))


def test_a_slice_is_known_by_its_first_channel() -> None:
    text = 'layer { name: "s" type: "Slice" bottom: "data" top: "low" top: "high" slice_param { slice_point: 1 } }\n'
    six = 'input: "data" input_shape { dim: 2 dim: 6 dim: 8 dim: 8 }\n'
    text = six + text.replace("slice_point: 1", "slice_point: 3") + conv("a", "low", 4) + conv("b", "high", 4)

    class Port(Streams):
        def forward(self, image: Tensor) -> Tensor:
            return self.join(image[:, :3], image[:, 3:].relu())

    binding = bind(recipe_of(text, layer("Concat", "j", "a b"), conv("out", "j", 2, 1)), Port())
    assert modules_of(binding) == {"a": "l", "b": "r", "out": "head"}
    assert not rivals_of(binding)


def test_weights_are_not_loaded_where_channels_stand_in_another_order() -> None:
    binding = bind(pyramid((1, 2, 4)), Pyramid((4, 1, 2)))
    in_doubt = {bound.blob.name for bound in binding.blobs if "loading weights needs a decision" in bound.how}
    assert in_doubt == {"out/0"}
    assert "concatenates the inputs of 'out' in another order" in str(binding.notes)


def test_channels_in_another_order_pass_what_works_by_channel() -> None:
    text = conv("a", "data", 4) + conv("b", "data", 5) + layer("Concat", "j", "a b") + layer("BatchNorm", "n", "j", "n")
    text += layer("Scale", "s", "n", "n", "scale_param { bias_term: true }") + conv("c", "n", 2, 1) + conv("d", "c", 2)

    class Port(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.n = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(9)
            self.c, self.d = nn.Conv2d(9, 2, 1), nn.Conv2d(2, 2, 3)

        def forward(self, image: Tensor) -> Tensor:
            result: Tensor = self.d(self.c(self.n(torch.cat([self.b(image), self.a(image)], 1))))
            return result

    binding = bind(recipe_of(IMAGE, text), Port())
    in_doubt = {bound.blob.name for bound in binding.blobs if "loading weights needs a decision" in bound.how}
    assert in_doubt == {"n/0", "n/1", "s/0", "s/1", "c/0"}


def test_branches_that_learn_otherwise_and_are_open_are_refused() -> None:
    recipe = two_inputs()
    other = recipe_of(
        'input: "data_rgb" input_shape { dim: 2 dim: 3 dim: 8 dim: 8 }\n'
        'input: "data_flow" input_shape { dim: 2 dim: 3 dim: 8 dim: 8 }\n',
        conv("a", "data_rgb", 4, params="param { lr_mult: 3 }"),
        conv("b", "data_flow", 4),
        layer("Concat", "j", "a b"),
        conv("out", "j", 2, 1),
    )
    assert bind(recipe, Unnamed())
    with pytest.raises(BindingError, match=r"'a' and 'b' could be modules . and . in any order"):
        bind(other, Unnamed())


@pytest.mark.parametrize("swapped", [False, True])
def test_inputs_that_are_concatenated_in_another_order_are_said(swapped: bool) -> None:
    shape = "input_shape { dim: 2 dim: 3 dim: 8 dim: 8 }"
    text = f'input: "rgb" {shape} input: "flow" {shape}\n' + layer("Concat", "j", "rgb flow") + conv("a", "j", 4)

    class Port(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(4, 2, 1)

        def forward(self, flow: Tensor, rgb: Tensor) -> Tensor:
            both = [flow / 2, rgb.relu()] if swapped else [rgb, flow]
            result: Tensor = self.second(self.first(torch.cat(both, 1)))
            return result

    binding = bind(recipe_of(text, conv("b", "a", 2, 1)), Port())
    in_doubt = {bound.blob.name for bound in binding.blobs if "loading weights needs a decision" in bound.how}
    assert in_doubt == ({"a/0"} if swapped else set())
    assert ("concatenates the inputs of 'a' in another order" in str(binding.notes)) == swapped


def test_branches_of_another_width_are_told_apart_as_ever() -> None:
    binding = bind(pyramid((1, 2, 4)), Pyramid((4, 1, 2), width=6), reshaped=["d.", "out"])
    assert [modules_of(binding)[f"d{one}"] for one in (1, 2, 4)] == ["branches.1", "branches.2", "branches.0"]


def test_a_layer_more_in_the_model_does_not_keep_branches_from_being_told_apart() -> None:
    class Port(Pyramid):
        def __init__(self) -> None:
            super().__init__((4, 1, 2), add=True)
            self.extra = nn.Conv2d(2, 3, 1)

        def forward(self, image: Tensor) -> Tensor:
            result: Tensor = self.extra(super().forward(image))
            return result

    binding = bind(pyramid((1, 2, 4), "Eltwise"), Port(), unclaimed=(1, 1))
    assert [modules_of(binding)[f"d{one}"] for one in (1, 2, 4)] == ["branches.1", "branches.2", "branches.0"]


def test_each_use_of_a_shared_layer_counts_by_itself() -> None:
    shared = 'param { name: "w" } param { name: "b" }'
    text = conv("s", "data", 4)
    for name, pool in (("high", "MAX"), ("mean", "AVE")):
        text += layer(
            "Pooling", f"{name}_pool", "s", name, f"pooling_param {{ pool: {pool} kernel_size: 2 stride: 2 }}"
        )
        text += conv(f"{name}_c", name, 4, params=shared) + conv(f"{name}_out", f"{name}_c", 4)
    text += layer("Concat", "j", "high_out mean_out") + conv("out", "j", 2, 1)

    class Port(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.s, self.c = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.p, self.q, self.o = (
                nn.Conv2d(n, m, k, padding=k // 2) for n, m, k in ((4, 4, 3), (4, 4, 3), (8, 2, 1))
            )

        def forward(self, image: Tensor) -> Tensor:
            x = self.s(image)
            mean = self.q(self.c(nn.functional.avg_pool2d(x, 2)))
            high = self.p(self.c(nn.functional.max_pool2d(x, 2)))
            result: Tensor = self.o(torch.cat([mean, high], 1))
            return result

    binding = bind(recipe_of(IMAGE, text), Port())
    assert {name: modules_of(binding)[name] for name in ("high_out", "mean_out")} == {"high_out": "p", "mean_out": "q"}
    assert not rivals_of(binding)


def test_a_wiring_that_torch_fx_alone_shows_leaves_the_order_undecided() -> None:
    class Port(Pyramid):
        def forward(self, image: Tensor) -> Tensor:
            if not isinstance(image, torch.fx.Proxy):
                raise ValueError("it does not run")
            return super().forward(image)

    recipe = recipe_of(
        IMAGE,
        conv("a", "data", 4),
        conv("b", "a", 4),
        conv("c", "a", 4),
        layer("Concat", "j", "b c"),
        conv("o", "j", 2, 1),
    )
    assert rivals_of(bind(recipe, Port((1, 1)))) == {"b", "c"}
    assert not rivals_of(bind(recipe, Pyramid((1, 1))))


@pytest.mark.parametrize("how", ["a product", "a condition"])
def test_what_could_not_be_read_disputes_the_order(how: str) -> None:
    text = conv("a", "data", 4) + conv("b", "data", 4) + layer("ReLU", "r", "b", "br")
    recipe = recipe_of(IMAGE, text, layer("Concat", "j", "a br"), conv("out", "j", 2, 1))

    class Port(Streams):
        def forward(self, image: Tensor) -> Tensor:
            x, y = self.get_submodule("l")(image), self.get_submodule("r")(image)
            positive = x * (x > 0) if how == "a product" else torch.where(x > 0, x, 0 * x)
            result: Tensor = self.head(torch.cat([positive, y], 1))
            return result

    assert rivals_of(bind(recipe, Port())) == {"a", "b"}


def test_what_tells_the_nets_branches_apart_and_was_not_read_of_the_models_disputes_the_order() -> None:
    text = conv("s", "data", 4)
    for name, window in (("a", 3), ("b", 5)):
        settings = f"pooling_param {{ pool: AVE kernel_size: {window} stride: {window} }}"
        text += layer("Pooling", f"{name}p", "s", f"{name}p", settings) + conv(name, f"{name}p", 4)
        text += layer("Pooling", f"{name}g", name, f"{name}g", "pooling_param { pool: AVE global_pooling: true }")
    recipe = recipe_of(IMAGE, text, layer("Concat", "j", "ag bg"), conv("out", "j", 2, 1))

    class Port(Streams):
        def __init__(self) -> None:
            super().__init__()
            self.s, self.l, self.r = (nn.Conv2d(n, 4, 3, padding=1) for n in (3, 4, 4))

        def forward(self, image: Tensor) -> Tensor:
            x = self.s(image)  # 8 numbers by 3 or 5: windows of several sizes
            ends = [nn.functional.adaptive_avg_pool2d(x, size) for size in (5, 3)]
            parts = [part(end).mean((2, 3), keepdim=True) for part, end in zip((self.r, self.l), ends, strict=True)]
            result: Tensor = self.head(torch.cat(parts, 1))
            return result

    assert rivals_of(bind(recipe, Port())) == {"a", "b"}


def test_names_and_order_together_outweigh_a_setting() -> None:
    text = conv("l", "data", 4) + layer("ReLU", "rl", "l", "l") + conv("r", "data", 4)
    recipe = recipe_of(IMAGE, text, layer("Concat", "j", "l r"), conv("head", "j", 2, 1))

    class Port(Streams):
        def forward(self, image: Tensor) -> Tensor:
            x, y = self.get_submodule("l")(image), self.get_submodule("r")(image)
            result: Tensor = self.head(torch.cat([x, y.relu()], 1))
            return result

    binding = bind(recipe, Port())
    assert modules_of(binding) == {"l": "l", "r": "r", "head": "head"}
    assert not rivals_of(binding)


def test_one_input_whose_name_is_equal_tells_the_other_one_too() -> None:
    shape = "input_shape { dim: 2 dim: 3 dim: 8 dim: 8 }"
    text = f'input: "data" {shape} input: "flow" {shape}\n' + conv("a", "data", 4) + conv("b", "flow", 4)
    binding = bind(recipe_of(text, layer("Concat", "j", "a b"), conv("out", "j", 2, 1)), Named())
    assert modules_of(binding) == {"a": "l", "b": "r", "out": "head"}


def test_kinds_of_pooling_tell_branches_apart_whatever_their_sizes() -> None:
    text = conv("s", "data", 4)
    for name, pool in (("a", "AVE"), ("b", "MAX")):
        text += layer(
            "Pooling", f"{name}p", "s", f"{name}p", f"pooling_param {{ pool: {pool} kernel_size: 3 stride: 2 }}"
        )
        text += conv(name, f"{name}p", 4)
    recipe = recipe_of(IMAGE, text, layer("Concat", "j", "a b"), conv("out", "j", 2, 1))

    class Port(Streams):
        def __init__(self) -> None:
            super().__init__()
            self.s, self.l, self.r = (nn.Conv2d(n, 4, 3, padding=1) for n in (3, 4, 4))

        def forward(self, image: Tensor) -> Tensor:
            x = self.s(image)
            high, mean = nn.functional.max_pool2d(x, 3, 2), nn.functional.avg_pool2d(x, 3, 2)  # which round down
            result: Tensor = self.head(torch.cat([self.r(high), self.l(mean)], 1))
            return result

    binding = bind(recipe, Port())
    assert {name: modules_of(binding)[name] for name in "ab"} == {"a": "l", "b": "r"}


def test_the_outputs_that_meet_channels_in_another_order_stand_in_another_order_too() -> None:
    text = conv("a", "data", 4) + conv("b", "data", 5) + layer("Concat", "j", "a b") + conv("d", "data", 9)
    text += layer("Eltwise", "sum", "j d") + conv("out", "sum", 2, 1)

    class Port(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.d = (nn.Conv2d(3, n, 3, padding=1) for n in (4, 5, 9))
            self.out = nn.Conv2d(9, 2, 1)

        def forward(self, image: Tensor) -> Tensor:
            result: Tensor = self.out(torch.cat([self.b(image), self.a(image)], 1) + self.d(image))
            return result

    binding = bind(recipe_of(IMAGE, text), Port())
    in_doubt = {bound.blob.name for bound in binding.blobs if "loading weights needs a decision" in bound.how}
    assert in_doubt == {"d/0", "d/1", "out/0"}
