"""What does not fit, what is left over on either side, and the decisions that a user can take about it."""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from nets import IMAGE, conv, layer, linear, messages, names, norm, recipe_of
from torch import Tensor, nn

from caffe2torch.binding.bind import bind
from caffe2torch.binding.messages import IncompleteBindingError
from caffe2torch.errors import BindingError
from caffe2torch.recipe import Severity


def three_layers(**more: str) -> tuple[str, Callable[..., nn.Module]]:
    text = conv("one", "data", 4) + conv("two", "one", 6, **more) + linear("three", "two", 5)

    def model(inputs: int = 3, middle: int = 6, outputs: int = 5, groups: int = 1, bias: bool = True) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(inputs, 4, 3, padding=1),
            nn.Conv2d(4, middle, 3, padding=1, groups=groups, bias=bias),
            nn.Flatten(),
            nn.Linear(middle * 64, outputs),
        )

    return IMAGE + text, model


def test_a_shape_that_does_not_fit_names_layer_module_and_both_shapes() -> None:
    text, model = three_layers()
    with pytest.raises(BindingError) as caught:
        bind(recipe_of(text), model(outputs=9))
    assert str(caught.value) == (
        "net.prototxt:4:1: the net does not bind to Sequential: layer 'three' has 5 outputs in Caffe, 9 in the model\n"
        "  found: layer 'three' at 3 (structure): its weight is 5x384 in Caffe, 9x384 in 3.weight; "
        "its bias is 5 in Caffe, 9 in 3.bias\n"
        "  hint: keep a layer's own multipliers though its shape differs (reshaped=['three'], --reshaped 'three')"
    )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"inputs": 4}, "its weight is 4x3x3x3 in Caffe, 4x4x3x3 in 0.weight"),
        ({"middle": 8}, "its weight is 6x4x3x3 in Caffe, 8x4x3x3 in 1.weight"),
        ({"groups": 2}, "its weight is 6x4x3x3 in Caffe, 6x2x3x3 in 1.weight"),
        ({"bias": False}, "layer 'two' at 1 (structure): the module has no bias"),
    ],
)
def test_near_misses_say_what_differs(options: dict[str, int], reason: str) -> None:
    text, model = three_layers()
    with pytest.raises(BindingError) as caught:
        bind(recipe_of(text), model(**options))
    assert reason in str(caught.value)


def test_groups_are_part_of_what_a_convolution_is() -> None:
    grouped = IMAGE + conv("a", "data", 4) + conv("b", "a", 4, 3, "group: 2") + conv("c", "b", 4, 3, "group: 4")
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, groups=4))
    assert names(bind(recipe_of(grouped), model))["c/0"] == "2.weight"
    same_shapes = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(2, 4, 3, groups=2))
    with pytest.raises(BindingError, match=r"layer 'c' at 2 .structure.: it has 4 groups in Caffe, 2 in the model"):
        bind(recipe_of(grouped), same_shapes)


def test_a_layer_more_is_named_with_what_comes_closest() -> None:
    text, model = three_layers()
    with pytest.raises(BindingError) as caught:
        bind(recipe_of(text, linear("four", "three", 3)), model())
    assert "linear map: 4 in the net, 3 in the model\n    layer 'four' has no counterpart" in str(caught.value)
    assert str(caught.value).startswith("net.prototxt:5:1: the net does not bind to Sequential: 1 layer has no certain")


def test_a_module_more_needs_an_intention() -> None:
    text, model = three_layers()
    larger = nn.Sequential(model(), nn.Linear(5, 2))
    with pytest.raises(BindingError, match="2 parameters belong to no layer") as caught:
        bind(recipe_of(text), larger)
    assert "module 1 (linear map) belongs to no layer" in str(caught.value)
    binding = bind(recipe_of(text), larger, unclaimed=(10.0, 0.0))
    assert [(one.name, one.shape, one.lr_mult, one.decay_mult) for one in binding.unclaimed] == [
        ("1.weight", (2, 5), 10.0, 0.0),
        ("1.bias", (2,), 10.0, 0.0),
    ]
    for parameter in larger[1].parameters():
        parameter.requires_grad_(False)
    frozen = bind(recipe_of(text), larger)
    assert [(one.name, one.lr_mult) for one in frozen.unclaimed] == [("1.weight", None), ("1.bias", None)]
    assert "no blob stands for 1.weight, 1.bias, which require no gradient" in messages(frozen.notes)


def test_a_new_head_is_two_decisions() -> None:
    text, model = three_layers()
    binding = bind(recipe_of(text), model(outputs=2), skip=["three"], unclaimed=(1.0, 1.0))
    assert names(binding) == {"one/0": "0.weight", "one/1": "0.bias", "two/0": "1.weight", "two/1": "1.bias"} | {
        "three/0": None,
        "three/1": None,
    }
    assert binding.blobs[-1].how == "skipped by the user"
    assert [one.name for one in binding.unclaimed] == ["3.weight", "3.bias"]


def test_a_backbone_alone_needs_its_head_skipped() -> None:
    text, model = three_layers()
    backbone = model()[:2]  # type: ignore[index]
    with pytest.raises(BindingError, match="layer 'three' has no counterpart"):
        bind(recipe_of(text), backbone)
    assert names(bind(recipe_of(text), backbone, skip=["th.*"]))["two/0"] == "1.weight"


def test_one_blob_can_be_skipped() -> None:
    recipe = recipe_of(IMAGE, conv("c", "data"))
    binding = bind(recipe, nn.Sequential(nn.Conv2d(3, 4, 3, bias=False)), skip=["c/1"])
    assert names(binding) == {"c/0": "0.weight", "c/1": None}
    with pytest.raises(BindingError, match="skip: no layer that learns is called 'd'"):
        bind(recipe, nn.Sequential(nn.Conv2d(3, 4, 3)), skip=["d"])


def test_a_net_without_batch_norms_binds_around_those_of_the_model() -> None:
    recipe = recipe_of(IMAGE, conv("a", "data"), conv("b", "a"), conv("c", "b"))
    model = nn.Sequential()
    for _ in range(3):
        model.append(nn.Conv2d(4 if len(model) else 3, 4, 3, padding=1)).append(nn.BatchNorm2d(4))
    with pytest.raises(BindingError, match="batch norm: 0 in the net, 3 in the model"):
        bind(recipe, model)
    assert names(bind(recipe, model, unclaimed=(1.0, 0.0)))["c/0"] == "4.weight"


def test_another_order_of_concatenation_is_said() -> None:
    class Model(nn.Module):
        def __init__(self, turned: bool) -> None:
            super().__init__()
            self.turned = turned
            self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 5, 3), nn.Conv2d(9, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            ends = [self.a(x), self.b(x)]
            return self.c(torch.cat(ends[::-1] if self.turned else ends, 1))  # type: ignore[no-any-return]

    text = conv("l", "data", 4) + conv("r", "data", 5) + layer("Concat", "j", "l r") + conv("out", "j", 2, 1)
    assert not [note for note in bind(recipe_of(IMAGE, text), Model(False)).notes if note.severity is Severity.WARNING]
    binding = bind(recipe_of(IMAGE, text), Model(True))
    assert names(binding)["r/0"] == "b.weight"
    assert "concatenates the inputs of 'out' in another order than the net" in messages(binding.notes)


def hint_of(text: str, model: nn.Module, **options: Any) -> str:
    with pytest.raises(BindingError) as caught:
        bind(recipe_of(IMAGE, text), model, **options)
    return caught.value.hint or ""


def stated(argument: str, hint: str) -> list[str]:
    return re.findall(f"--{argument} '(.*?)'", hint)


CHAIN = conv("a", "data", 4) + "".join(conv(name, before, 4) for before, name in itertools.pairwise("abcde"))


def test_one_option_of_the_hint_is_about_all_blobs_that_the_model_has_not() -> None:
    model = nn.Sequential(*(nn.Conv2d(4 if number else 3, 4, 3, padding=1, bias=False) for number in range(5)))
    skip = stated("skip", hint_of(CHAIN, model))
    assert skip == [".*/1"]
    assert names(bind(recipe_of(IMAGE, CHAIN), model, skip=skip))["e/0"] == "4.weight"


def test_one_option_of_the_hint_is_about_all_layers_of_another_shape() -> None:
    heads = "".join(conv(f"{name}+", "a", 7) for name in "bcde")
    joined = "".join(layer("Concat", "j", " ".join(f"{name}+" for name in "bcde")))

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3, padding=1)
            self.heads = nn.ModuleList(nn.Conv2d(4, 5, 3, padding=1) for _ in "bcde")

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return torch.cat([head(x) for head in self.heads], 1)

    text = conv("a", "data", 4) + heads + joined
    reshaped = stated("reshaped", hint_of(text, Heads()))
    assert reshaped == [r".*\+"]
    assert names(bind(recipe_of(IMAGE, text), Heads(), reshaped=reshaped))["e+/0"] == "heads.3.weight"


def test_layers_that_the_model_has_no_module_for_are_to_be_left_out_all_at_once() -> None:
    text = conv("a", "data", 4) + "".join(
        norm(f"n{name}", before) + conv(name, before, 4) for before, name in itertools.pairwise("abcde")
    )
    bare = [nn.Conv2d(4 if number else 3, 4, 3, padding=1) for number in range(5)]
    model = nn.Sequential(bare[0], nn.BatchNorm2d(4), *bare[1:])
    skip = stated("skip", hint_of(text, model, names={"nb": "1"}))
    assert skip == ["nc.*|nd.*|ne.*"]
    assert names(bind(recipe_of(IMAGE, text), model, {"nb": "1"}, skip=skip))["e/0"] == "5.weight"


def test_a_module_that_forward_does_not_use_is_said_to_be_such() -> None:
    class Leftover(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.old, self.new = nn.Conv2d(3, 9, 1), nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.new(x)  # type: ignore[no-any-return]

    with pytest.raises(
        BindingError, match=r"module old \(linear map\) belongs to no layer, and forward does not use it"
    ):
        bind(recipe_of(IMAGE, conv("a", "data")), Leftover())


class Untraceable(nn.Module):
    """Its forward takes an array of numpy's."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(4 if number else 3, 4, 3, padding=1) for number in range(5))

    def forward(self, image: Any) -> Tensor:
        x = torch.from_numpy(image)
        for module in self.layers:
            x = module(x)
        return x


def test_a_forward_pass_that_cannot_be_followed_has_a_wrapper_advised_and_a_draft_in_order() -> None:
    with pytest.raises(IncompleteBindingError) as caught:
        bind(recipe_of(IMAGE, CHAIN), Untraceable())
    assert "wrap the model so that forward takes tensors alone" in (caught.value.hint or "")
    firsts = re.findall(r'^# . \(.*\n# (. = ".*")', caught.value.draft, re.M)
    assert firsts == [f'{name} = "layers.{number}"' for number, name in enumerate("abcde")]
    completed = tomllib.loads("\n".join(firsts))
    assert names(bind(recipe_of(IMAGE, CHAIN), Untraceable(), completed))["e/1"] == "layers.4.bias"
