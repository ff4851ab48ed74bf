"""A net and a model that do not share the same layers are different nets, whatever is skipped, named or unclaimed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nets import IMAGE, conv, layer, names, recipe_of
from torch import Tensor, nn

from caffe2torch.binding.bind import bind
from caffe2torch.binding.messages import IncompleteBindingError
from caffe2torch.errors import BindingError

PAIR = IMAGE + 'input: "data_p" input_shape { dim: 2 dim: 3 dim: 8 dim: 8 }\n'


def tower(end: str = "", outputs: int = 5) -> str:
    """Two convolutions and a fully connected layer, whose blobs have names of their own."""

    def params(name: str) -> str:
        return f'param {{ name: "{name}_w" lr_mult: 1 }} param {{ name: "{name}_b" lr_mult: 2 }}'

    return (
        conv(f"c1{end}", f"data{end}", 4, params=params("c1"))
        + conv(f"c2{end}", f"c1{end}", 6, params=params("c2"))
        + layer(
            "InnerProduct",
            f"ip{end}",
            f"c2{end}",
            "",
            f"inner_product_param {{ num_output: {outputs} }}",
            params("ip"),
        )
    )


SIAMESE = PAIR + tower() + tower("_p") + layer("Eltwise", "joined", "ip ip_p")


class Tower(nn.Module):
    def __init__(self, outputs: int = 5) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.ip = nn.Linear(384, outputs)

    def forward(self, image: Tensor) -> Tensor:
        return self.ip(self.c2(torch.relu(self.c1(image))).flatten(1))  # type: ignore[no-any-return]


class Siamese(nn.Module):
    """Two towers that should be one, and perhaps a layer that the net does not have."""

    def __init__(self, *, outputs: int = 5, more: bool = False) -> None:
        super().__init__()
        self.a, self.b = Tower(outputs), Tower(outputs)
        self.more = nn.Linear(outputs, 3) if more else nn.Identity()

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.more(self.a(first) + self.b(second))  # type: ignore[no-any-return]

    def tie(self) -> None:
        """What the hint says."""
        for one, other in ((self.a.c1, self.b.c1), (self.a.c2, self.b.c2), (self.a.ip, self.b.ip)):
            other.weight, other.bias = one.weight, one.bias


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"skip": ["c1", "c2", "ip"]},
        {"skip": ["c._p", "ip_p"]},
        {"names": {"c1": "a.c1", "c2": "a.c2", "ip": "a.ip"}},
        {"names": {"c1": "a.c1", "c2": "a.c2"}, "skip": ["ip"]},
    ],
    ids=str,
)
@pytest.mark.parametrize("model", [{}, {"outputs": 7}, {"more": True}], ids=str)
def test_two_modules_for_what_the_net_shares_are_refused_with_the_lines_that_tie_them(
    given: dict[str, Any], model: dict[str, Any]
) -> None:
    port = Siamese(**model)
    options = {"unclaimed": (1.0, 1.0), **given, **({"reshaped": ["ip"]} if "outputs" in model else {})}
    with pytest.raises(BindingError) as caught:
        bind(recipe_of(SIAMESE), port, **options)
    assert "Caffe shares one set of blobs between layers 'c1' and 'c1_p'" in str(caught.value)
    hint = caught.value.hint or ""
    assert "model.b.c1.weight = model.a.c1.weight, model.b.c1.bias = model.a.c1.bias" in hint
    assert "skip" not in hint
    assert "names file" not in hint
    port.tie()
    bound = names(bind(recipe_of(SIAMESE), port, **{**options, "skip": (), "names": None}))
    assert bound["c1/0"] == "a.c1.weight"


def test_one_module_of_two_that_has_the_layers_name_is_no_binding_either() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
            return self.c(first), self.second(second)

    params = 'param { name: "w" } param { name: "b" }'
    recipe = recipe_of(PAIR, conv("c", "data", params=params), conv("c_p", "data_p", params=params))
    with pytest.raises(IncompleteBindingError, match=r"model.second.weight = model.c.weight") as caught:
        bind(recipe, Named(), unclaimed=(1.0, 1.0))
    assert "Caffe shares one set of blobs" in caught.value.draft
    assert "\nc = " not in caught.value.draft


def test_one_tower_that_training_calls_twice_is_what_the_net_shares() -> None:
    bound = names(bind(recipe_of(SIAMESE), Tower()))
    assert bound == {
        f"{name}/{number}": f"{name}.{role}"
        for name in ("c1", "c2", "ip")
        for number, role in enumerate(("weight", "bias"))
    }


class Twice(nn.Module):
    """A module that is used for two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return self.again(torch.relu(self.again(self.first(image))))  # type: ignore[no-any-return]


@pytest.mark.parametrize("skip", [[], ["c"], ["b"]])
def test_a_module_used_twice_for_layers_with_their_own_blobs_is_refused_as_such(skip: list[str]) -> None:
    recipe = recipe_of(IMAGE, conv("a", "data"), conv("b", "a"), conv("c", "b"))
    with pytest.raises(BindingError, match=r"it uses module again for layers 'b' and 'c'") as caught:
        bind(recipe, Twice(), skip=skip)
    assert "the model shares what the net does not" in str(caught.value)
    assert (caught.value.hint or "").startswith("give the model a module for each of these layers, or share")
    assert "skip" not in (caught.value.hint or "")


def test_what_neither_side_shares_is_not_said_to_be_shared() -> None:
    recipe = recipe_of(IMAGE, conv("a", "data"), conv("b", "a", 5))
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1))
    with pytest.raises(BindingError) as caught:
        bind(recipe, model, {"a": "1"})
    assert "nothing" not in str(caught.value)
