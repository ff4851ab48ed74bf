"""Old code is traced as it is: what it does to GPUs, to ``train()`` and at the end of its forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from nets import IMAGE, conv, linear, messages, names, recipe_of
from torch import Tensor, nn

from caffe2torch.binding.bind import bind
from caffe2torch.binding.plan import Binding
from caffe2torch.errors import BindingError

NET = conv("one", "data", 4) + conv("two", "one", 6) + conv("three", "two", 5, kernel=1) + linear("ip", "three", 7)
RIGHT = {"one/0": "p.weight", "two/0": "q.weight", "three/0": "r.weight", "ip/0": "s.weight"}


class Old(nn.Module):
    """Modules that share no name with the net, in no order."""

    def __init__(self, how: str = "") -> None:
        super().__init__()
        self.how = how
        self.s = nn.Linear(320, 7)
        self.r = nn.Conv2d(6, 5, 1)
        self.q = nn.Conv2d(4, 6, 3, padding=1)
        self.p = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        match self.how:
            case "cuda()":
                x = x.cuda()
            case "to(cuda)":
                x = x.to("cuda:0", non_blocking=True)
            case "device=":
                x = x + torch.zeros(x.shape, device=torch.device("cuda"))
            case "cuda.FloatTensor":
                x = x + torch.cuda.FloatTensor(2, 3, 8, 8)
            case "type":
                x = x.type(torch.cuda.FloatTensor)
            case "name of a type":
                x = x.type("torch.cuda.FloatTensor")
            case "type of the CPU":
                x = x.type(torch.FloatTensor)
            case "sizes":
                x = x + torch.cuda.FloatTensor(x.size()).fill_(0)
            case "number":
                x = x + torch.zeros(x.shape).to(torch.cuda.current_device())
            case "get_device()":
                x = x + torch.zeros(x.shape).pin_memory().cuda(x.get_device())
            case "synchronize()":
                with torch.cuda.device(0), torch.cuda.stream(torch.cuda.Stream()):
                    torch.cuda.Event(enable_timing=True).record()
                    torch.cuda.synchronize()
        x = self.r(self.q(self.p(x).relu()))
        return self.s(x.flatten(1))


class NoReturn(Old):
    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)


class Several(Old):
    def forward(self, x: Tensor) -> Sequence[Tensor]:  # type: ignore[override]
        x = self.r(self.q(self.p(x)))
        return [x, {"scores": self.s(x.flatten(1))}]  # type: ignore[list-item]


def bound(model: nn.Module) -> Binding:
    binding = bind(recipe_of(IMAGE, NET), model)
    assert names(binding).items() >= RIGHT.items()
    return binding


GPU = ["cuda()", "to(cuda)", "device=", "cuda.FloatTensor", "type", "name of a type", "type of the CPU", "sizes"]


@pytest.mark.parametrize("how", [*GPU, "number", "get_device()", "synchronize()"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="it is about machines without a GPU")
def test_a_forward_pass_that_wants_a_gpu_is_traced_without_one(how: str) -> None:
    before = torch.cuda.FloatTensor, torch.cuda.synchronize
    binding = bound(Old(how))
    assert "wiring is from one forward pass on the meta device with (2, 3, 8, 8)" in messages(binding.notes)
    assert (torch.cuda.FloatTensor, torch.cuda.synchronize) == before


@pytest.mark.parametrize("model", [NoReturn(), Several()])
def test_train_without_a_return_value_and_lists_of_outputs_are_traced(model: nn.Module) -> None:
    assert "one forward pass on the meta device" in messages(bound(model).notes)


def test_tensors_that_are_plain_attributes_are_no_obstacle() -> None:
    model = Old()
    model.priors = torch.zeros(5, 4)
    assert "one forward pass on the meta device" in messages(bound(model).notes)


class FailsLate(Old):
    def forward(self, x: Tensor) -> Tensor:
        x = self.r(self.q(self.p(x)))
        if float(x.sum()) > -1e9:
            raise ValueError("no class weights were given")
        return self.s(x.flatten(1))


def test_a_forward_pass_that_fails_late_is_used_as_far_as_it_went_and_that_is_said() -> None:
    model = FailsLate()
    model.ip = model.s
    del model.s
    binding = bind(recipe_of(IMAGE, NET), model)
    assert names(binding).items() >= {**RIGHT, "ip/0": "ip.weight"}.items()
    warned = messages(binding.notes)
    assert "ended early (ValueError: no class weights were given)" in warned
    assert "4 by equal names" not in warned
    with pytest.raises(BindingError, match="ended early: ValueError: no class weights were given"):
        bind(recipe_of(IMAGE, NET), FailsLate())  # nothing reaches the last layer, and no name does


def test_a_module_that_was_not_reached_keeps_its_equals_from_being_bound_by_place() -> None:
    class Decoy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.extra = nn.Conv2d(3, 4, 3, padding=1)
            self.main = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            self.extra(x)
            if float(x.sum()) > -1e9:
                raise ValueError("late")
            return self.main(x)

    with pytest.raises(BindingError, match="layer 'a' has no counterpart"):
        bind(recipe_of(IMAGE, conv("a", "data", 4)), Decoy(), unclaimed=(1.0, 1.0))
