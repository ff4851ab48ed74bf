"""What a hint says to type, typed again, binds; and each parameter then has the multipliers of its own layer."""

from __future__ import annotations

import random
import re
import shlex
import tomllib
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from nets import IMAGE, conv, layer, linear, names, recipe_of
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as all of torch's own documents write it
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from caffe2torch.binding.bind import bind
from caffe2torch.binding.messages import IncompleteBindingError
from caffe2torch.binding.plan import Binding, Kind, Storage
from caffe2torch.cli.options import multipliers

Options = dict[str, Any]


def params(first: int, count: int = 2) -> str:
    """Multipliers that no other blob has: (first, first + 100), (first + 1, first + 101), ..."""
    return " ".join(f"param {{ lr_mult: {first + n} decay_mult: {first + n + 100} }}" for n in range(count))


def own(first: int) -> tuple[float, float]:
    return float(first), float(first + 100)


def typed(error: IncompleteBindingError) -> Options:
    """All that a hint says to type, read as the command line reads it; alternatives ("or ...") are left out."""
    hint = re.sub(r",? or leave (it|them) out \(.*?\)(?=;|$)", "", error.hint or "", flags=re.M)
    assert " more" not in hint
    words = [
        (name, shlex.split(text)[0])
        for name, text in re.findall(r"""--(skip|reshaped|unclaimed) ('(?:[^']|'"'"')*'|[\w=.,]+)""", hint)
    ]
    lines = re.findall(r"^ {6}(.* = .*)$", hint, re.M) + re.findall(r"names file \((.*? = \".*?\")", hint)
    given: Options = {"names": tomllib.loads("\n".join(lines))}
    for name in ("skip", "reshaped"):
        given[name] = [text for kind, text in words if kind == name]
    pairs = dict(multipliers(text) for kind, text in words if kind == "unclaimed")
    given["unclaimed"] = dict(sorted(pairs.items(), key=lambda item: item[0] == ".*")) or None
    return given


def followed(text: str, model: nn.Module, **options: Any) -> tuple[Binding, Options]:
    """The binding that one round of following the hint leads to, and what was typed for it."""
    with pytest.raises(IncompleteBindingError) as caught:
        bind(recipe_of(text), model, **options)
    given = {**options, **typed(caught.value)}
    return bind(recipe_of(text), model, given.pop("names"), **given), given


def learned(binding: Binding) -> dict[str, tuple[float | None, float | None]]:
    """By parameter the multipliers that it gets."""
    bound = {
        str(one.name): (one.blob.lr_mult, one.blob.decay_mult) for one in binding.blobs if one.kind is Kind.PARAMETER
    }
    return bound | {one.name: (one.lr_mult, one.decay_mult) for one in binding.unclaimed}


# A net of three convolutions and a score, and ports of it.

NET = IMAGE + "".join(conv(f"conv{n}", f"conv{n - 1}" if n > 1 else "data", params=params(10 * n)) for n in (1, 2, 3))
NET += layer("InnerProduct", "score", "conv3", "", "inner_product_param { num_output: 5 }", params(40))


class Port(nn.Module):
    def __init__(self, second: nn.Module | None = None, score: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1, self.conv3 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.conv2 = second or nn.Conv2d(4, 4, 3, padding=1)
        self.score = score or nn.Linear(256, 5)

    def forward(self, x: Tensor) -> Tensor:
        for module in (self.conv1, self.conv2, self.conv3):
            x = torch.relu(module(x))
        return self.score(x.flatten(1))  # type: ignore[no-any-return]


USUAL = {
    f"{module}.{role}": own(first + number)
    for module, first in (("conv1", 10), ("conv2", 20), ("conv3", 30), ("score", 40))
    for number, role in enumerate(("weight", "bias"))
}
NORMED: dict[Callable[..., nn.Module], tuple[str, ...]] = {
    weight_norm: ("weight_v", "weight_g"),
    spectral_norm: ("weight_orig",),
    parametrizations.weight_norm: ("parametrizations.weight.original1", "parametrizations.weight.original0"),
    parametrizations.spectral_norm: ("parametrizations.weight.original",),
    parametrizations.orthogonal: ("parametrizations.weight.original",),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize("norm", NORMED, ids=lambda norm: f"{norm.__module__.rpartition('.')[2]}.{norm.__name__}")
@pytest.mark.parametrize("everywhere", [False, True], ids=["one", "all"])
def test_all_that_a_weight_is_computed_from_learns_as_the_weight_does(
    norm: Callable[..., nn.Module], everywhere: bool
) -> None:
    model = Port()
    normed = ("conv1", "conv2", "conv3", "score") if everywhere else ("conv2",)
    for name in normed:
        norm(getattr(model, name))
    expected = dict(USUAL)
    for name in normed:
        pair = expected.pop(f"{name}.weight")
        expected |= {f"{name}.{part}": pair for part in NORMED[norm]}
    assert learned(followed(NET, model)[0]) == expected


def test_weights_are_not_loaded_into_what_a_weight_is_computed_from() -> None:
    model = Port()
    parametrizations.weight_norm(model.conv2)
    binding = followed(NET, model)[0]
    assert [one.blob.name for one in binding.blobs if one.storage is Storage.UNDECIDED] == ["conv2/0"]
    assert "the weight is computed from it" in {one.blob.name: one.how for one in binding.blobs}["conv2/0"]


class Adapted(nn.Module):
    """A frozen convolution, and a change of its weight that is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Conv2d(4, 4, 3, padding=1)
        self.base.weight.requires_grad_(False)
        self.down, self.up = nn.Parameter(torch.zeros(4, 2)), nn.Parameter(torch.zeros(2, 36))

    def forward(self, x: Tensor) -> Tensor:
        change = (self.down @ self.up).view(4, 4, 3, 3)
        return F.conv2d(x, self.base.weight + change, self.base.bias, padding=1)


class AdaptedScore(nn.Module):
    """A frozen linear layer, and two that learn beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(256, 5).requires_grad_(False)
        self.down, self.up = nn.Linear(256, 2, bias=False), nn.Linear(2, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))  # type: ignore[no-any-return]


def test_what_learns_in_place_of_a_frozen_weight_gets_its_multipliers_and_is_said_to_be_a_choice() -> None:
    model = Port(second=Adapted())
    with pytest.raises(IncompleteBindingError, match=r"learn in place of 'conv2/0': .* if that is what you mean"):
        bind(recipe_of(NET), model)
    binding, given = followed(NET, model)
    assert given["skip"] == ["conv2/0"]
    found = learned(binding)
    assert found["conv2.down"] == found["conv2.up"] == own(20)
    assert found["conv2.base.bias"] == own(21)
    assert found["conv2.base.weight"] == (None, None)


def test_what_learns_beside_a_frozen_weight_gets_its_multipliers() -> None:
    found = learned(followed(NET, Port(score=AdaptedScore()))[0])
    assert found["score.down.weight"] == found["score.up.weight"] == own(40)
    assert {name: found[name] for name in USUAL if "score" not in name} == {
        name: pair for name, pair in USUAL.items() if "score" not in name
    }


class AdaptedConvolution(nn.Module):
    """A frozen convolution, and two that learn beside it."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.base = nn.Conv2d(inputs, 4, 3, padding=1).requires_grad_(False)
        self.down, self.up = nn.Conv2d(inputs, 2, 3, padding=1, bias=False), nn.Conv2d(2, 4, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))  # type: ignore[no-any-return]


def test_layers_that_the_hint_binds_give_their_multipliers_to_what_learns_beside_them() -> None:
    model = Port(second=AdaptedConvolution(4))
    model.conv1 = AdaptedConvolution(3)  # type: ignore[assignment]
    found = learned(followed(NET, model)[0])
    assert found["conv1.down.weight"] == found["conv1.up.weight"] == own(10)
    assert found["conv2.down.weight"] == found["conv2.up.weight"] == own(20)
    assert found["conv3.weight"] == own(30)


# Batch normalization that a port does otherwise.


def normed_net(count: int = 2) -> str:
    text, before = IMAGE, "data"
    for n in range(1, count + 1):
        text += conv(f"c{n}", before, more="bias_term: false", params=params(10 * n, 1))
        text += layer("BatchNorm", f"bn{n}", f"c{n}", f"c{n}", params="param { lr_mult: 0 } " * 3)
        text += layer("Scale", f"sc{n}", f"c{n}", f"c{n}", "scale_param { bias_term: true }", params(10 * n + 3))
        before = f"c{n}"
    return text + conv("out", before, params=params(90))


class FrozenNorm(nn.Module):
    """As detection models have them: all of it in buffers."""

    def __init__(self) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((4,), value))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return x * scale.view(1, -1, 1, 1) + (self.bias - self.running_mean * scale).view(1, -1, 1, 1)


class ChannelsLast(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def normed_port(norm: Callable[[], nn.Module], count: int = 2) -> nn.Module:
    model = nn.Sequential()
    for n in range(count):
        model.extend([nn.Conv2d(4 if n else 3, 4, 3, padding=1, bias=False), norm(), nn.ReLU()])
    return model.append(nn.Conv2d(4, 4, 3, padding=1))


NORMS: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "frozen": (FrozenNorm, False),
    "not affine": (lambda: nn.BatchNorm2d(4, affine=False), False),
    "absent": (nn.Identity, False),
    "groups": (lambda: nn.GroupNorm(2, 4), True),
    "layer": (lambda: ChannelsLast(4), True),
    "instance": (lambda: nn.InstanceNorm2d(4, affine=True), True),
}


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("count", [2, 5])
def test_another_normalization_keeps_the_multipliers_of_the_scale_where_it_has_one(kind: str, count: int) -> None:
    norm, affine = NORMS[kind]
    found = learned(followed(normed_net(count), normed_port(norm, count))[0])
    expected = {f"{3 * n}.weight": own(10 * n + 10) for n in range(count)}
    expected |= {f"{3 * count}.weight": own(90), f"{3 * count}.bias": own(91)}
    if affine:
        expected |= {f"{3 * n + 1}.weight": own(10 * n + 13) for n in range(count)}
        expected |= {f"{3 * n + 1}.bias": own(10 * n + 14) for n in range(count)}
    assert found == expected


def test_a_scale_that_a_port_made_a_batch_norm_keeps_its_multipliers() -> None:
    text, before = IMAGE, "data"
    for n in (1, 2):
        text += conv(f"c{n}", before, params=params(10 * n))
        text += layer("Scale", f"s{n}", f"c{n}", f"c{n}", "scale_param { bias_term: true }", params(10 * n + 2))
        before = f"c{n}"
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
    )
    found = learned(followed(text, model)[0])
    assert (found["1.weight"], found["3.bias"]) == (own(12), own(23))


class Affine(nn.Module):
    """Nothing in its names says which of its parameters is the scale."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.a.view(1, -1, 1, 1), x, self.b.view(1, -1, 1, 1))


def test_parameters_of_equal_shapes_that_nothing_names_are_a_decision() -> None:
    text = IMAGE + conv("c", "data") + layer("Scale", "s", "c", "c", "scale_param { bias_term: true }")
    with pytest.raises(IncompleteBindingError) as caught:
        bind(recipe_of(text), nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), Affine()))
    assert (caught.value.hint or "").startswith(
        'decide in a names file: "s/0" = "1.a"  or  "s/0" = "1.b"; its draft has 1 more such choice, or leave them out'
    )


# Recurrent layers.


class Recurrent(nn.Module):
    def __init__(self, layers: int, *, bias: bool = True) -> None:
        super().__init__()
        self.cells = nn.LSTM(6, 8, layers, bias=bias)
        self.score = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.score(self.cells(x)[0])  # type: ignore[no-any-return]


def recurrent_net(layers: int) -> str:
    text = 'input: "data" input_shape { dim: 5 dim: 2 dim: 6 } input: "cont" input_shape { dim: 5 dim: 2 }\n'
    before = "data"
    for n in range(layers):
        text += layer(
            "LSTM", f"r{n}", f"{before} cont", "", "recurrent_param { num_output: 8 }", params(10 * n + 10, 3)
        )
        before = f"r{n}"
    return text + linear("score", before, 4, "axis: 2")


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(("layers", "deep"), [(2, 2), (3, 3), (2, 3)])
def test_layers_that_are_one_stacked_module_bind_blob_by_blob(layers: int, deep: int, bias: bool) -> None:
    found = learned(followed(recurrent_net(layers), Recurrent(deep, bias=bias))[0])
    for n in range(layers):
        for role, first in (("weight_ih", 10), ("weight_hh", 12), *([("bias_ih", 11)] if bias else [])):
            assert found[f"cells.{role}_l{n}"] == own(10 * n + first)
        if bias:
            assert found[f"cells.bias_hh_l{n}"] == (0, 0)


def test_layers_that_are_one_module_which_reads_both_ways_bind_blob_by_blob() -> None:
    class BothWays(Recurrent):
        def __init__(self) -> None:
            super().__init__(1)
            self.cells, self.score = nn.LSTM(6, 8, bidirectional=True), nn.Linear(16, 4)

    text = 'input: "data" input_shape { dim: 5 dim: 2 dim: 6 } input: "cont" input_shape { dim: 5 dim: 2 }\n'
    for n, name in enumerate(("there", "back")):
        settings = ("recurrent_param { num_output: 8 }", params(10 * n + 10, 3))
        text += layer("LSTM", name, "data cont", name, *settings)
    text += layer("Concat", "j", "there back", "j", "concat_param { axis: 2 }") + linear("score", "j", 4, "axis: 2")
    found = learned(followed(text, BothWays())[0])
    for n, end in enumerate(("", "_reverse")):
        for role, first in (("weight_ih", 10), ("bias_ih", 11), ("weight_hh", 12)):
            assert found[f"cells.{role}_l0{end}"] == own(10 * n + first)


def test_the_draft_for_a_stacked_module_binds_as_it_is() -> None:
    recipe, model = recipe_of(recurrent_net(2)), Recurrent(2)
    with pytest.raises(IncompleteBindingError) as caught:
        bind(recipe, model)
    drafted = tomllib.loads(caught.value.draft)
    binding = bind(recipe, model, drafted, unclaimed=(0, 0))
    assert names(binding)["r1/2"] == "cells.weight_hh_l1"


# Many layers at once, and layers of ends that the model does not have.


def test_a_hint_about_many_layers_is_one_pattern_or_stands_in_the_draft_in_full() -> None:
    words = ["ash", "bay", "cob", "dew", "elm", "fir", "gum", "hay", "ivy", "jut", "kea", "lei", "map", "nut", "oak"]
    every = [f"{one}{other}" for one in words for other in words]
    chosen = random.Random(5).sample(every, 150)
    text, before = IMAGE, "data"
    for name in every:
        text += conv(name, before)
        before = name
    model = nn.Sequential(
        *(nn.Conv2d(4 if n else 3, 4, 3, padding=1, bias=name not in chosen) for n, name in enumerate(every))
    )
    with pytest.raises(IncompleteBindingError) as caught:
        bind(recipe_of(text), model)
    hint = caught.value.hint or ""
    assert "... and" not in hint
    assert "which the draft of a names file has in full" in hint
    option = re.findall(r"^# .*--skip '(.*?)'", caught.value.draft, re.M)[0]
    binding = bind(recipe_of(text), model, skip=[option])
    assert {one.blob.layer for one in binding.blobs if one.name is None} == set(chosen)


def with_heads() -> str:
    text = conv("stem", "data", params=params(1)) + conv("deep", "stem", params=params(3))
    text += conv("aux1/conv", "stem", 6, params=params(5)) + linear("aux1/fc", "aux1/conv", 7)
    text += conv("aux2/conv", "deep", 6, params=params(7)) + linear("aux2/fc", "aux2/conv", 7)
    text += conv("last", "deep", params=params(9)) + layer(
        "InnerProduct", "score", "last", "", "inner_product_param { num_output: 7 }", params(11)
    )
    for name in ("aux1/fc", "aux2/fc", "score"):
        text += layer("SoftmaxWithLoss", f"{name}/loss", f"{name} label")
    return IMAGE + 'input: "label" input_shape { dim: 2 }\n' + text


class Headless(nn.Module):
    def __init__(self, bias: bool = True, classes: int = 7) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1, bias=bias), nn.Conv2d(4, 4, 3, padding=1, bias=bias)
        self.c, self.d = nn.Conv2d(4, 4, 3, padding=1, bias=bias), nn.Linear(256, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.d(self.c(self.b(self.a(x))).flatten(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("bias", "classes"), [(True, 7), (True, 3), (False, 3)])
def test_the_layers_of_auxiliary_heads_are_left_out_in_one_round_with_all_else_that_differs(
    bias: bool, classes: int
) -> None:
    model = Headless(bias, classes)
    binding, given = followed(with_heads(), model)
    assert "aux.*" in given["skip"]
    expected = {"a.weight": 1, "b.weight": 3, "c.weight": 9, "d.weight": 11, "d.bias": 12}
    if bias:
        expected |= {"a.bias": 2, "b.bias": 4, "c.bias": 10}
    assert learned(binding) == {name: own(first) for name, first in expected.items()}


class WithHeads(Headless):
    def __init__(self) -> None:
        super().__init__()
        self.aux1, self.aux2 = (nn.Sequential(nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(216, 7)) for _ in "12")

    def forward(self, x: Tensor) -> Any:
        a = self.a(x)
        b = self.b(a)
        return self.d(self.c(b).flatten(1)), self.aux1(a), self.aux2(b)


def test_heads_that_only_the_model_has_need_multipliers_and_leave_the_rest_bound() -> None:
    kept = [line for line in with_heads().splitlines(keepends=True) if "aux" not in line]
    found = learned(followed("".join(kept), WithHeads())[0])
    assert {name: pair for name, pair in found.items() if "aux" not in name} == learned(
        bind(recipe_of("".join(kept)), Headless())
    )
    assert {pair for name, pair in found.items() if "aux" in name} == {(1.0, 1.0)}


# Names alone, with numbers that begin otherwise.


class Numbered(nn.Module):
    """Its forward cannot be followed."""

    def __init__(self, first: int, count: int = 3, inputs: int = 4, last: Mapping[str, int] | None = None) -> None:
        super().__init__()
        for n in range(count):
            self.add_module(f"conv{n + first}", nn.Conv2d(4 if n else inputs, 4, 3, padding=1))
        for name, outputs in (last or {}).items():
            self.add_module(name, nn.Linear(256, outputs))

    def forward(self, mode: str) -> Tensor:
        raise ValueError(mode)


def numbered_net(inputs: int = 4) -> str:
    image = IMAGE.replace("dim: 3", f"dim: {inputs}")
    return image + "".join(
        conv(f"conv{n}", f"conv{n - 1}" if n > 1 else "data", params=params(10 * n)) for n in (1, 2, 3)
    )


@pytest.mark.parametrize("inputs", [3, 4])
def test_a_numbering_that_begins_elsewhere_binds_by_no_equal_name_and_is_offered_as_a_whole(inputs: int) -> None:
    text, model = numbered_net(inputs), Numbered(0, inputs=inputs)
    with pytest.raises(IncompleteBindingError, match="3 layers have no certain counterpart") as caught:
        bind(recipe_of(text), model)
    assert "--reshaped" not in (caught.value.hint or "")
    found = learned(followed(text, model)[0])
    assert [found[f"conv{n}.weight"] for n in range(3)] == [own(10), own(20), own(30)]


def test_equal_numbers_bind_where_they_leave_nothing_over_on_one_side() -> None:
    assert names(bind(recipe_of(numbered_net()), Numbered(1)))["conv2/0"] == "conv2.weight"
    more = bind(recipe_of(numbered_net()), Numbered(0, count=4), unclaimed=(1, 1))
    assert names(more)["conv2/0"] == "conv2.weight"


class Pair(nn.Module):
    """Two models of equal names, of which one is the net; its forward cannot be followed."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("teacher", "student"):
            part = nn.Module()
            for n in (1, 2, 3):
                part.add_module(f"conv{n}", nn.Conv2d(4, 4, 3, padding=1))
            self.add_module(name, part)

    def forward(self, mode: str) -> Tensor:
        raise ValueError(mode)


def test_names_that_two_parts_of_a_model_have_alike_bind_neither() -> None:
    with pytest.raises(IncompleteBindingError, match="3 layers have no certain counterpart") as caught:
        bind(recipe_of(numbered_net()), Pair())
    ways = 'conv1 = "teacher.conv1"  or  conv1 = "student.conv1"'
    assert f"decide in a names file: {ways}" in (caught.value.hint or "")
    model = Pair()
    for parameter in model.teacher.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(IncompleteBindingError) as caught:
        bind(recipe_of(numbered_net()), model)
    assert 'decide in a names file: conv1 = "student.conv1"' in (caught.value.hint or "")
