"""The wiring of a model is the same however its forward pass is spelled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nets import IMAGE, conv, linear, names, recipe_of, spelled
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from caffe2torch.binding.bind import bind
from caffe2torch.binding.graph import Op, UnitKind
from caffe2torch.binding.model_graph import model_graph


class Plain(nn.Module):
    """Two convolutions and a linear layer; subclasses spell the same forward pass otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4 * 8 * 8, 5)
        self.b = nn.Conv2d(4, 4, 3, padding=1)
        self.a = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(functional.relu(self.b(functional.relu(self.a(x)))).flatten(1))


class InPlace(Plain):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        functional.relu_(x)
        x = self.b(x)
        x.mul_(0.5).clamp_(min=0)
        out = torch.zeros(x.shape[0], 4 * 8 * 8, device=x.device)
        out.copy_(x.view(x.shape[0], -1))
        return self.last(out)


class WithoutGradients(Plain):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.b(self.a(x))
        return self.last(x.detach().flatten(1))


class Checkpointed(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(checkpoint(lambda y: self.b(self.a(y)), x, use_reentrant=True).flatten(1))


class Functional(Plain):
    def forward(self, x: Tensor) -> Tensor:
        x = functional.conv2d(x, self.a.weight, self.a.bias, padding=1)
        x = functional.conv2d(x, self.b.weight, self.b.bias, padding=1)
        return functional.linear(x.flatten(1), self.last.weight, self.last.bias)


class Masked(Plain):
    def forward(self, x: Tensor) -> Tensor:
        x, mask = functional.max_pool2d(self.a(x), 2, return_indices=True)
        return self.last(self.b(functional.max_unpool2d(x, mask, 2)).flatten(1))


class Swish(Plain):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = self.b(x * torch.sigmoid(x))
        return self.last(functional.local_response_norm(x, 3).flatten(1))


@pytest.mark.parametrize("kind", [Plain, InPlace, WithoutGradients, Checkpointed, Functional, Masked, Swish])
def test_a_chain_is_a_chain_however_it_is_spelled(kind: type[Plain]) -> None:
    seen = model_graph(kind(), recipe_of(IMAGE, conv("a", "data")))
    assert seen.wiring is not None
    assert seen.traced == "one forward pass on the meta device with (2, 3, 8, 8)"
    assert spelled(seen.wiring) == ["a <- in", "b <- a", "last <- b"]
    assert [len(unit.tensors) for unit in seen.wiring.units] == [2, 2, 2]


class Branches(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        for name in "abcd":
            self.add_module(name, nn.Conv2d(3 if name != "d" else 9 if "cat" in how else 3, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = self.get_submodule("a")(x), self.get_submodule("b")(x), self.get_submodule("c")(x)
        joined = {
            "cat": lambda: torch.cat([b, torch.cat((a, c), 1)], 1),
            "sum": lambda: a + (b.relu() + c),
            "sum in place": lambda: c.add_(b).add_(a),
            "builtin sum": lambda: sum([a, b, c]),
            "product": lambda: a * torch.sigmoid(b).expand_as(a) * c,
            "max": lambda: torch.max(torch.maximum(a, b), c),
        }[self.how]()
        return self.get_submodule("d")(joined)


@pytest.mark.parametrize(
    ("how", "junction"),
    [
        ("cat", "concat(b, a, c)"),
        ("sum", "sum(a, b, c)"),
        ("sum in place", "sum(a, b, c)"),
        ("builtin sum", "sum(a, b, c)"),
        ("product", "product(a, b, c)"),
        ("max", "max(a, b, c)"),
    ],
)
@pytest.mark.parametrize("way", ["run", "fx"])
def test_junctions_are_what_they_do(how: str, junction: str, way: str) -> None:
    from caffe2torch.binding.forward_pass import meta_copy
    from caffe2torch.binding.fx_wiring import fx_wiring

    model = Branches(how)
    seen = model_graph(model, recipe_of(IMAGE))
    wiring = seen.wiring if way == "run" else fx_wiring(meta_copy(model), seen.units)
    assert wiring is not None
    assert spelled(wiring)[-1] == f"d <- {junction}"


def test_parts_written_into_one_tensor_meet_in_it() -> None:
    class Written(Branches):
        def forward(self, x: Tensor) -> Tensor:
            out = torch.zeros(x.shape[0], 9, *x.shape[2:], device=x.device)
            for number, name in enumerate("abc"):
                out[:, 3 * number : 3 * number + 3] = self.get_submodule(name)(x)
            return self.get_submodule("d")(out)

    wiring = model_graph(Written("cat"), recipe_of(IMAGE)).wiring
    assert wiring is not None
    assert spelled(wiring)[-1] == "d <- joint(a, b, c)"


def test_a_module_called_twice_is_one_unit_used_twice() -> None:
    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return self.b(self.a(x)), self.b(self.a(y))

    text = 'input: "data_p" input_shape { dim: 2 dim: 3 dim: 8 dim: 8 }\n'
    seen = model_graph(Siamese(), recipe_of(IMAGE, text, conv("a", "data"), conv("b", "data_p")))
    assert seen.wiring is not None
    assert spelled(seen.wiring) == ["a <- in", "b <- a", "a <- in", "b <- a"]
    assert len(seen.wiring.units) == 2


def test_recurrent_layers_and_custom_modules_are_one_unit_each() -> None:
    class L2Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(6))

        def forward(self, x: Tensor) -> Tensor:
            return functional.normalize(x, dim=-1) * self.gain

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.lstm, self.l2, self.out = nn.Embedding(9, 8), nn.LSTM(8, 6), L2Norm(), nn.Linear(6, 2)

        def forward(self, words: Tensor) -> Tensor:
            return self.out(self.l2(self.lstm(self.table(words))[0]))

    seen = model_graph(Model(), recipe_of('input: "words" input_shape { dim: 7 dim: 2 }'))
    assert seen.wiring is not None
    assert spelled(seen.wiring) == ["table <- in", "lstm <- table", "l2 <- lstm", "out <- l2"]
    kinds = [unit.kind for unit in seen.wiring.units]
    assert kinds == [UnitKind.TABLE, UnitKind.RECURRENT, UnitKind.SCALE, UnitKind.MAP]


def test_a_norm_without_scale_and_a_scale_after_it_are_one_unit() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale

    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False), Scale(), nn.Conv2d(4, 2, 1))
    wiring = model_graph(model, recipe_of(IMAGE)).wiring
    assert wiring is not None
    assert [unit.parts for unit in wiring.units] == [("0",), ("1", "2"), ("3",)]
    assert Op.SUM not in {node.op for node in wiring.nodes}


class Swapped(nn.Module):
    """Its second and third layers stand in each other's place, and its forward pass ends in an error."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three, self.four = (nn.Linear(a, b) for a, b in ((4, 8), (8, 8), (8, 8), (8, 2)))

    def forward(self, x: Tensor) -> Tensor:
        self.four(self.two(self.three(self.one(x))))
        raise RuntimeError("a loss that wants labels")


def test_an_error_after_the_last_layer_does_not_make_names_win_over_what_was_seen() -> None:
    layers = ("one", "two", "three", "four")
    net = 'input: "data" input_shape { dim: 1 dim: 4 }\n' + "".join(
        linear(name, bottom, 2 if name == "four" else 8)
        for name, bottom in zip(layers, ("data", *layers), strict=False)
    )
    binding = bind(recipe_of(net), Swapped())
    bound = names(binding)
    assert (bound["two/0"], bound["three/0"]) == ("three.weight", "two.weight")
    assert any("ended after every layer" in note.message for note in binding.notes)


@pytest.mark.parametrize(
    ("product", "transposed"),
    [
        (lambda x, w: x @ w, True),
        (lambda x, w: x @ w.t(), False),
        (lambda x, w: torch.einsum("bi,ij->bj", x, w), True),
        (lambda x, w: torch.einsum("bi,ji->bj", x, w), False),
        (lambda x, w: torch.bmm(x[:, None], w.expand(len(x), 8, 8))[:, 0], True),
        (lambda x, w: x @ w.T.contiguous(), None),
        (lambda x, w: functional.linear(x, w.t().contiguous()), None),
    ],
)
def test_the_order_of_a_weight_is_what_the_product_shows_or_not_known(product: Any, transposed: bool | None) -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return product(x, self.w)

    graph = model_graph(Product(), recipe_of('input: "data" input_shape { dim: 2 dim: 8 }\n' + linear("ip", "data", 8)))
    assert graph.wiring is not None
    (unit,) = graph.wiring.units
    assert unit.tensors[0].transposed is transposed
