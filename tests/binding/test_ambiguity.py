"""What nothing distinguishes, and what is shared."""

from __future__ import annotations

import re
import tomllib

import pytest
import torch
from nets import IMAGE, conv, layer, names, recipe_of
from torch import Tensor, nn

from caffe2torch.binding.bind import bind
from caffe2torch.binding.messages import IncompleteBindingError
from caffe2torch.binding.plan import plan_groups
from caffe2torch.errors import BindingError
from caffe2torch.recipe import Severity


class Twins(nn.Module):
    """Two equal branches that are added."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.y = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return self.y(image) + self.x(image)  # type: ignore[no-any-return]


def twins(left: str = "", right: str = "") -> str:
    return IMAGE + conv("l", "data", params=left) + conv("r", "data", params=right) + layer("Eltwise", "s", "l r")


def test_interchangeable_layers_of_equal_multipliers_bind_and_say_so() -> None:
    binding = bind(recipe_of(twins()), Twins())
    assert {bound.how for bound in binding.blobs} == {"structure; interchangeable"}
    weights = {bound.name: bound.rivals for bound in binding.blobs if bound.blob.role == "weight"}
    assert weights == {"x.weight": ("y.weight",), "y.weight": ("x.weight",)}
    warning = next(note for note in binding.notes if note.severity is Severity.WARNING)
    assert "loading weights needs a decision in a names file: l = " in warning.message


def test_interchangeable_layers_of_different_multipliers_stop_and_show_the_line_that_decides() -> None:
    recipe = recipe_of(twins(right="param { lr_mult: 3 }"))
    with pytest.raises(BindingError) as caught:
        bind(recipe, Twins())
    assert "layers 'l' and 'r' could be modules y and x in any order" in str(caught.value)
    assert "'l': weight (1, 1), bias (1, 1); 'r': weight (3, 1), bias (1, 1)" in str(caught.value)
    assert 'decide in a names file: l = "y"  or  l = "x"' in str(caught.value)
    decided = bind(recipe, Twins(), {"l": "x"})
    assert names(decided) == {"l/0": "x.weight", "l/1": "x.bias", "r/0": "y.weight", "r/1": "y.bias"}
    assert not any(bound.rivals for bound in decided.blobs)


def test_several_such_choices_are_one_error_whose_draft_leaves_them_open() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.first, self.second = nn.Conv2d(3, 3, 1), Twins(), Twins()

        def forward(self, image: Tensor) -> Tensor:
            return torch.cat([self.first(image), self.second(self.stem(image))], 1)

    text = conv("stem", "data", 3, 1) + layer("Concat", "out", "s s2")
    for bottom, number in (("data", ""), ("stem", "2")):
        text += conv(f"l{number}", bottom) + conv(f"r{number}", bottom, params="param { lr_mult: 3 }")
        text += layer("Eltwise", f"s{number}", f"l{number} r{number}")
    lines = text.splitlines(keepends=True)
    recipe = recipe_of(IMAGE, lines[0], *lines[2:], lines[1])
    with pytest.raises(IncompleteBindingError, match="differ; 1 more such choice") as caught:
        bind(recipe, Twice())
    assert re.findall(r'l2? = "\w+\.[xy]"  or ', caught.value.hint or "") == [
        'l = "first.y"  or ',
        'l2 = "second.y"  or ',
    ]
    assert tomllib.loads(caught.value.draft) == {"stem": "stem"}
    assert '# l2 = "second.x"' in caught.value.draft
    decided = bind(recipe, Twice(), {"l": "first.x", "l2": "second.x"})
    assert names(decided)["r2/0"] == "second.y.weight"


def test_fine_tuning_one_of_two_interchangeable_layers_is_a_decision_too() -> None:
    recipe = recipe_of(twins())
    with pytest.raises(BindingError, match="could be another layer as well"):
        plan_groups(recipe, bind(recipe, Twins()), {"l": 10.0})
    assert len(plan_groups(recipe, bind(recipe, Twins()), {"[lr]": 10.0})) == 1
    assert len(plan_groups(recipe, bind(recipe, Twins(), {"l": "x"}), {"l": 10.0})) == 2


def test_names_decide_between_what_the_structure_cannot_tell_apart() -> None:
    model = Twins()
    model.l, model.r = model.x, model.y
    del model.x, model.y
    model.forward = lambda image: model.l(image) + model.r(image)  # type: ignore[method-assign,operator]
    binding = bind(recipe_of(twins(right="param { lr_mult: 3 }")), model)
    assert names(binding)["r/0"] == "r.weight"
    assert {bound.how for bound in binding.blobs} == {"equal names"}


SHARED = 'param { name: "w" } param { name: "b" }'
PAIR = IMAGE + 'input: "data_p" input_shape { dim: 2 dim: 3 dim: 8 dim: 8 }\n'


class Pair(nn.Module):
    """The same two layers on two images: shared, tied, or neither."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        if how == "called twice":
            self.b = self.a
        if how == "tied":
            self.b.weight, self.b.bias = self.a.weight, self.a.bias

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        return self.a(first), self.b(second)


@pytest.mark.parametrize("how", ["called twice", "tied"])
def test_shared_blobs_bind_to_shared_parameters(how: str) -> None:
    recipe = recipe_of(PAIR, conv("c", "data", params=SHARED), conv("c_p", "data_p", params=SHARED))
    assert names(bind(recipe, Pair(how))) == {"c/0": "a.weight", "c/1": "a.bias"}


@pytest.mark.parametrize("how", ["called twice", "tied"])
def test_a_model_that_shares_more_than_the_net_is_refused(how: str) -> None:
    recipe = recipe_of(PAIR, conv("c", "data"), conv("c_p", "data_p"))
    with pytest.raises(BindingError) as caught:
        bind(recipe, Pair(how))
    shared = "'a'" if how == "called twice" else "'a' with 'b'"
    assert f"equal but for what is shared: nothing in the net, {shared} in the model" in str(caught.value)


def test_a_net_that_shares_more_than_the_model_is_refused() -> None:
    recipe = recipe_of(PAIR, conv("c", "data", params=SHARED), conv("c_p", "data_p", params=SHARED))
    with pytest.raises(BindingError) as caught:
        bind(recipe, Pair("neither"))
    assert "equal but for what is shared: 'c' with 'c_p' in the net, nothing in the model" in str(caught.value)


def test_blobs_that_share_only_weights_need_tied_weights() -> None:
    only = 'param { name: "w" }'
    recipe = recipe_of(PAIR, conv("c", "data", params=only), conv("d", "data_p", 4, params=only), conv("e", "d", 5))

    class Model(Pair):
        def __init__(self, tied: bool) -> None:
            super().__init__("neither")
            self.c = nn.Conv2d(4, 5, 3)
            if tied:
                self.b.weight = self.a.weight

        def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
            return self.a(first), self.c(self.b(second))

    assert names(bind(recipe, Model(True)))["d/1"] == "b.bias"
    with pytest.raises(BindingError, match="Caffe shares one weight between layers c, d"):
        bind(recipe, Model(False))
