"""Parameters that a part of the model holds beside its modules hide none of these, whatever they are for."""

from __future__ import annotations

import pytest
import torch
from nets import IMAGE, conv, linear, names, norm, recipe_of
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as all of torch's own documents write it

from caffe2torch.binding.bind import bind
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
