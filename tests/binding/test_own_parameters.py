"""Parameters that a part of the model holds beside its modules hide none of these, whatever they are for."""

from __future__ import annotations

import pytest
import torch
from nets import IMAGE, conv, layer, linear, messages, names, norm, recipe_of
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as all of torch's own documents write it

from caffe2torch.binding.bind import bind
from caffe2torch.binding.names import names_of
from caffe2torch.binding.plan import Evidence
from caffe2torch.errors import BindingError

NET = conv("one", "data", 4) + conv("two", "one", 4) + linear("score", "two", 5)
BOUND = {
    f"{layer}/{number}": f"{module}.{role}"
    for layer, module in (("one", "a"), ("two", "b"), ("score", "fc"))
    for number, role in enumerate(("weight", "bias"))
}


class Tempered(nn.Module):
    """Three layers and a number that the model learns beside them."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(256, 5)
        self.temp = nn.Parameter(torch.ones(()) if how == "logit_scale" else torch.ones(1))
        self.how = how

    def forward(self, image: Tensor) -> Tensor:
        x = self.b(torch.relu(self.a(image))).flatten(1)
        if self.how == "scaled in between":
            x = x * self.temp
        x = self.fc(x)
        if self.how == "temperature":
            x = x / self.temp
        if self.how == "logit_scale":
            x = F.normalize(x) * self.temp.exp()
        return x  # type: ignore[no-any-return]


@pytest.mark.parametrize("how", ["temperature", "logit_scale", "scaled in between", "unused"])
def test_a_parameter_at_the_root_is_all_that_is_left_over_and_gets_multipliers(how: str) -> None:
    recipe = recipe_of(IMAGE, NET)
    with pytest.raises(BindingError, match=r"temp \(1\) of the model belongs to no layer") as caught:
        bind(recipe, Tempered(how))
    assert "1 parameter belongs to no layer" in str(caught.value)
    assert (caught.value.hint or "").startswith("say how parameters without a layer learn")
    binding = bind(recipe, Tempered(how), unclaimed={"temp": (1.0, 0.0)})
    assert names(binding) == BOUND
    assert [(one.name, one.lr_mult, one.decay_mult) for one in binding.unclaimed] == [("temp", 1.0, 0.0)]


class Block(nn.Module):
    """A convolution and a batch norm whose scale and shift are parameters of the block."""

    def __init__(self, inputs: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4, affine=False)
        self.gamma, self.beta = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(x)) * self.gamma.view(1, -1, 1, 1) + self.beta.view(1, -1, 1, 1))


@pytest.mark.parametrize("shape", [(4,), (1, 4, 1, 1)], ids=str)
def test_a_scale_and_a_shift_that_forward_applies_after_a_batch_norm_are_its_own(shape: tuple[int, ...]) -> None:
    recipe = recipe_of(IMAGE, conv("c1", "data"), norm("n1", "c1"), conv("c2", "c1"), norm("n2", "c2"))
    bound = names(bind(recipe, nn.Sequential(Block(3, shape), Block(4, shape))))
    for number in (1, 2):
        place = str(number - 1)
        assert bound[f"c{number}/0"] == f"{place}.conv.weight"
        assert bound[f"n{number}/0"] == f"{place}.bn.running_mean"
        assert bound[f"n{number}/scale/0"] == f"{place}.gamma"
        assert bound[f"n{number}/scale/1"] == f"{place}.beta"


def of_the_batch(x: Tensor) -> Tensor:
    """A batch normalization, written out."""
    variance, mean = torch.var_mean(x, (0, 2, 3), unbiased=False, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-5)


class Normalized(nn.Module):
    """Convolutions, each with an operation ``how`` on parameters and buffers of any name, which stand anywhere."""

    def __init__(self, how: str, where: str) -> None:
        super().__init__()
        self.how, self.where = how, where
        self.a, self.b, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(256, 5)
        tensors = [(nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4))) for _ in range(2)]
        buffers = [(torch.zeros(4), torch.ones(4)) for _ in range(2)]
        if where == "lists":
            self.g = nn.ParameterList([one for one, _ in tensors])
            self.s = nn.ParameterDict({"xy"[number]: one for number, (_, one) in enumerate(tensors)})
        for number, ((gain, offset), (centre, spread)) in enumerate(zip(tensors, buffers, strict=True)):
            holder = self if where == "root" else nn.Module()
            suffix = number if where == "root" else ""
            if where != "lists":
                holder.register_parameter(f"offset{suffix}", offset)
                holder.register_parameter(f"gain{suffix}", gain)
            holder.register_buffer(f"spread{suffix}", spread)
            holder.register_buffer(f"centre{suffix}", centre)
            if where != "root":
                self.add_module(f"own{number}", holder)

    def tensors(self, number: int) -> dict[str, Tensor]:
        holder = self if self.where == "root" else getattr(self, f"own{number}")
        suffix = number if self.where == "root" else ""
        found = {role: getattr(holder, f"{role}{suffix}") for role in ("centre", "spread")}
        if self.where == "lists":
            return found | {"gain": self.g[number], "offset": self.s["xy"[number]]}
        return found | {role: getattr(holder, f"{role}{suffix}") for role in ("gain", "offset")}

    def own(self, x: Tensor, number: int) -> Tensor:
        one = self.tensors(number)
        centre, spread, gain, offset = one["centre"], one["spread"], one["gain"], one["offset"]
        match self.how:
            case "kept":
                return F.batch_norm(x, centre, spread, gain, offset, self.training)
            case "of the batch":
                return F.batch_norm(x, None, None, gain, offset, True)
            case "instance norm":
                return F.instance_norm(x, None, None, gain, offset)
            case "group norm":
                return F.group_norm(x, 2, gain, offset)
            case "layer norm":
                return F.layer_norm(x.movedim(1, -1), (4,), gain, offset).movedim(-1, 1)
            case "by hand":
                return of_the_batch(x) * gain.view(1, -1, 1, 1) + offset.view(1, -1, 1, 1)
            case "over channels by hand":
                x = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-5).sqrt()
                return x * gain.view(1, -1, 1, 1) + offset.view(1, -1, 1, 1)
            case "the batch's, scaled after it":
                x = F.batch_norm(x, None, None, None, None, True)
                return x * gain.view(1, -1, 1, 1) + offset.view(1, -1, 1, 1)
        x = F.batch_norm(x, centre, spread, None, None, self.training)
        return x * gain.view(1, -1, 1, 1) + offset.view(1, -1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.own(self.b(torch.relu(self.own(self.a(x), 0))), 1)
        return self.fc(torch.relu(x).flatten(1))  # type: ignore[no-any-return]

    def name(self, role: str, number: int) -> str:
        if self.where == "lists" and role in ("gain", "offset"):
            return f"g.{number}" if role == "gain" else f"s.{'xy'[number]}"
        return f"{role}{number}" if self.where == "root" else f"own{number}.{role}"


NORMED = conv("one", "data"), norm("n0", "one"), conv("two", "one"), norm("n1", "two"), linear("score", "two")


@pytest.mark.parametrize("where", ["root", "module", "lists"])
@pytest.mark.parametrize(
    "how", ["kept", "of the batch", "kept, scaled after it", "the batch's, scaled after it", "by hand"]
)
def test_what_a_batch_norm_is_given_says_what_each_tensor_is(how: str, where: str) -> None:
    model = Normalized(how, where)
    recipe = recipe_of(IMAGE, *NORMED)
    binding = bind(recipe, model)
    bound = names(binding)
    for number in range(2):
        found = [bound[f"n{number}/{blob}"] for blob in ("0", "1", "scale/0", "scale/1")]
        statistics = [model.name(role, number) if "kept" in how else None for role in ("centre", "spread")]
        assert found == [*statistics, model.name("gain", number), model.name("offset", number)]
    assert names(bind(recipe, model, names_of(binding))) == bound


class OwnNorm(nn.Module):
    """Looks like a scale and a shift by what it holds; the buffers' names say nothing."""

    def __init__(self, *, with_kept: bool, by_hand: bool) -> None:
        super().__init__()
        self.by_hand = by_hand
        self.weight, self.bias = nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4))
        self.register_buffer("v", torch.ones(4) if with_kept else None)
        self.register_buffer("m", torch.zeros(4) if with_kept else None)

    def forward(self, x: Tensor) -> Tensor:
        if self.by_hand:
            return of_the_batch(x) * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        return F.batch_norm(x, self.m, self.v, self.weight, self.bias, self.training or self.m is None)


@pytest.mark.parametrize(("with_kept", "by_hand"), [(True, False), (False, False), (False, True)])
def test_a_module_that_computes_a_batch_norm_is_one(with_kept: bool, by_hand: bool) -> None:
    one, two = (OwnNorm(with_kept=with_kept, by_hand=by_hand) for _ in range(2))
    convolutions = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
    model = nn.Sequential(convolutions[0], one, nn.ReLU(), convolutions[1], two, nn.Flatten(), nn.Linear(256, 5))
    recipe = recipe_of(IMAGE, *NORMED)
    binding = bind(recipe, model)
    for number, place in enumerate((1, 4)):
        found = [names(binding)[f"n{number}/{blob}"] for blob in ("0", "1", "scale/0", "scale/1")]
        kept = [f"{place}.m", f"{place}.v"] if with_kept else [None, None]
        assert found == [*kept, f"{place}.weight", f"{place}.bias"]
    assert names(bind(recipe, model, names_of(binding))) == names(binding)


@pytest.mark.parametrize("where", ["root", "module", "lists"])
@pytest.mark.parametrize("how", ["instance norm", "group norm", "layer norm", "over channels by hand"])
def test_other_normalizations_of_parameters_are_a_scale_and_a_shift(how: str, where: str) -> None:
    model = Normalized(how, where)
    scaled = [
        layer("Scale", f"n{number}", top, top, "scale_param { bias_term: true }") for number, top in enumerate("ab")
    ]
    recipe = recipe_of(IMAGE, conv("a", "data"), scaled[0], conv("b", "a"), scaled[1], linear("score", "b"))
    bound = names(bind(recipe, model))
    for number in range(2):
        assert [bound[f"n{number}/{blob}"] for blob in "01"] == [
            model.name(role, number) for role in ("gain", "offset")
        ]


class OfParameters(nn.Module):
    """Three layers whose tensors stand in a ``ParameterList`` or ``ParameterDict``."""

    def __init__(self, holder: type[nn.Module]) -> None:
        super().__init__()
        shapes = {"a": (4, 3, 3, 3), "b": (4, 4, 3, 3), "c": (5, 256)}
        made = {name: nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()}
        self.w = nn.ParameterList([*made.values()]) if holder is nn.ParameterList else nn.ParameterDict(made)
        self.bias = nn.ParameterList([nn.Parameter(torch.zeros(size)) for size in (4, 4, 5)])

    def forward(self, x: Tensor) -> Tensor:
        one, two, last = self.w.values() if isinstance(self.w, nn.ParameterDict) else self.w
        x = F.conv2d(x, one, self.bias[0], padding=1)
        x = F.conv2d(torch.relu(x), two, padding=1) + self.bias[1].view(-1, 1, 1)
        return F.linear(torch.relu(x).flatten(1), last) + self.bias[2]


@pytest.mark.parametrize("holder", [nn.ParameterList, nn.ParameterDict])
def test_written_names_of_layers_in_one_list_of_parameters_are_read_back(holder: type[nn.Module]) -> None:
    recipe, model = recipe_of(IMAGE, NET), OfParameters(holder)
    binding = bind(recipe, model)
    again = bind(recipe, model, names_of(binding))
    assert names(again) == names(binding)
    assert {bound.evidence for bound in again.blobs} == {Evidence.NAMED}
    assert not [note for note in again.notes if "contradicts" in note.message]


def test_a_list_that_holds_several_layers_is_no_module_of_one() -> None:
    recipe, model = recipe_of(IMAGE, NET), OfParameters(nn.ParameterList)
    with pytest.raises(BindingError, match="module 'w' holds the parameters of several layers") as caught:
        bind(recipe, model, {"one": "w"})
    assert "'w.0', 'w.1', 'w.2'" in (caught.value.hint or "")
    said = {"one": "w.0", "two": "w.1", "score": "w.2"}  # a layer by the first of its tensors
    assert names(bind(recipe, model, said)) == names(bind(recipe, model))


def test_names_that_contradict_the_wiring_are_still_said_to() -> None:
    recipe, model = recipe_of(IMAGE, conv("one", "data"), conv("two", "one"), conv("three", "two")), OfConvolutions()
    said = {"one/0": "w.0", "two/0": "w.2", "three/0": "w.1"}
    binding = bind(recipe, model, said)
    assert [bound.name for bound in binding.blobs if bound.blob.role == "weight"] == ["w.0", "w.2", "w.1"]
    assert "names contradicts the wiring" in messages(binding.notes)


class OfConvolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.ParameterList([nn.Parameter(torch.zeros(4, size, 3, 3)) for size in (3, 4, 4)])
        self.bias = nn.ParameterList([nn.Parameter(torch.zeros(4)) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        for weight, bias in zip(self.w, self.bias, strict=True):
            x = F.conv2d(torch.relu(x), weight, bias, padding=1)
        return x
