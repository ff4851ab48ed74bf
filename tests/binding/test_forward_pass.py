"""Old code is traced as it is: what it does to GPUs, to ``train()`` and at the end of its forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from nets import IMAGE, conv, layer, linear, messages, names, recipe_of
from torch import Tensor, nn
from torchvision.ops import roi_pool

from caffe2torch.binding.bind import bind
from caffe2torch.binding.plan import Binding
from caffe2torch.errors import BindingError
from caffe2torch.verification.check_model import check_model

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


def blob(name: str, *sizes: int) -> str:
    return f'input: "{name}" input_shape {{ {" ".join(f"dim: {size}" for size in sizes)} }}\n'


DETECTOR = conv("one", "data", 4) + conv("two", "one", 6)
DETECTOR += layer("ROIPooling", "pool", "two rois", "", "roi_pooling_param { pooled_h: 2 pooled_w: 2 }")
DETECTOR += linear("three", "pool", 5) + linear("four", "three", 7)


class Detector(nn.Module):
    """It looks at regions, which are rows of five numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.s = nn.Linear(5, 7)
        self.r = nn.Linear(24, 5)
        self.q = nn.Conv2d(4, 6, 3, padding=1)
        self.p = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor, rois: Tensor) -> Tensor:
        return self.s(self.r(roi_pool(self.q(self.p(x)), rois, 2).flatten(1)))


class RegionsFirst(Detector):
    def forward(self, rois: Tensor, data: Tensor) -> Tensor:
        return super().forward(data, rois)


class RegionsIfAny(Detector):
    def forward(self, x: Tensor, rois: Tensor | None = None) -> Tensor:
        return self.q(self.p(x)) if rois is None else super().forward(x, rois)


class AnyNumber(Detector):
    def forward(self, *inputs: Tensor) -> Tensor:
        return super().forward(*inputs)


class OneRegion(Detector):
    def forward(self, x: Tensor, flip: bool = False) -> Tensor:
        return super().forward(x.flip(3) if flip else x, x.new_zeros(1, 5))


@pytest.mark.parametrize("rois", ["", blob("rois", 9, 5), blob("rois", 9, 5, 1, 1)])
@pytest.mark.parametrize("port", [Detector, RegionsFirst, RegionsIfAny, AnyNumber])
def test_a_detector_is_given_regions(rois: str, port: type[nn.Module]) -> None:
    binding = bind(recipe_of(IMAGE, rois, DETECTOR), port())
    regions = (9, 5) if rois else (2, 5)
    assert f"from one forward pass on the meta device with (2, 3, 8, 8), {regions}" in messages(binding.notes)
    assert {"three/0": "r.weight", "four/0": "s.weight", **names(binding)} == names(binding)


def test_a_port_that_takes_fewer_inputs_is_given_those_that_a_gradient_flows_through() -> None:
    binding = bind(recipe_of(blob("rois", 9, 5), IMAGE, DETECTOR), OneRegion())
    assert "from one forward pass on the meta device with (2, 3, 8, 8)" in messages(binding.notes)
    assert "(9, 5)" not in messages(binding.notes)


class TwoImages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Conv2d(4, 6, 3, padding=1)
        self.p = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, image: Tensor, depth: Tensor) -> Tensor:
        return self.q(self.p(torch.cat([image, depth], 1)))


def test_two_images_keep_their_own_channels() -> None:
    text = layer("Concat", "both", "a b") + conv("one", "both", 4) + conv("two", "one", 6)
    binding = bind(recipe_of(blob("a", 1, 3, 8, 8), blob("b", 1, 1, 8, 8), text), TwoImages())
    assert "on the meta device with (2, 3, 8, 8), (2, 1, 8, 8)" in messages(binding.notes)


class Captions(nn.Module):
    """Frames and words of the same sequences: their sizes belong to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.r = nn.Linear(4, 7)
        self.e = nn.Embedding(9, 4)
        self.p = nn.Conv2d(3, 4, 8)

    def forward(self, image: Tensor, words: Tensor) -> Tensor:
        return self.r(self.p(image).reshape(*words.shape, 4) + self.e(words))


def test_frames_are_as_many_as_their_words_and_words_are_whole_numbers() -> None:
    text = layer("Convolution", "one", "data", "", "convolution_param { num_output: 4 kernel_size: 8 }")
    text += layer("Reshape", "frames", "one", "", "reshape_param { shape { dim: 3 dim: 2 dim: 4 } }")
    text += layer("Embed", "embed", "words", "", "embed_param { num_output: 4 input_dim: 9 bias_term: false }")
    text += layer("Eltwise", "sum", "frames embed") + linear("ip", "sum", 7, "axis: 2")
    binding = bind(recipe_of(blob("data", 6, 3, 8, 8), blob("words", 3, 2), text), Captions())
    assert "on the meta device with (6, 3, 8, 8), (3, 2)" in messages(binding.notes)
    assert names(binding)["embed/0"] == "e.weight"


def test_the_check_of_the_model_has_its_sizes_with_and_without_regions() -> None:
    recipe = recipe_of(IMAGE, blob("rois", 9, 5), DETECTOR)
    for port, size in ((Detector, "3x8x8, 5"), (OneRegion, "3x8x8")):
        check = check_model(recipe, bind(recipe, port()))
        assert f"sizes at {size}" in check.seen


@pytest.mark.parametrize(
    "shapes",
    [{"rois": (4, 5), "data": (2, 3, 8, 8)}, {"data": (2, 3, 8, 8), "rois": (4, 5)}, [(2, 3, 8, 8), (4, 5)]],
    ids=["names in another order", "names", "in order"],
)
@pytest.mark.parametrize("port", [Detector, RegionsFirst])
def test_shapes_that_the_user_states_go_to_the_nets_inputs(port: type[nn.Module], shapes: Any) -> None:
    if port is RegionsFirst and isinstance(shapes, list):
        shapes = shapes[::-1]
    recipe = recipe_of(IMAGE, blob("rois", 9, 5), DETECTOR)
    binding = bind(recipe, port(), input_shapes=shapes)
    assert "one forward pass on the meta device" in messages(binding.notes)
    if not isinstance(shapes, list):
        assert "sizes at 3x8x8, 5" in check_model(recipe, binding).seen


def test_words_that_the_user_gives_a_shape_are_whole_numbers() -> None:
    text = layer("Embed", "e", "words", "", "embed_param { num_output: 4 input_dim: 9 bias_term: false }")
    recipe = recipe_of(blob("words", 3, 2), text + linear("ip", "e", 5, "axis: 2"))
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 5))
    assert "the meta device with (7, 2)" in messages(bind(recipe, model, input_shapes=[(7, 2)]).notes)


def test_an_argument_that_is_called_like_an_input_by_chance_is_not_all_that_is_given() -> None:
    class Named(Old):
        def forward(self, x: Tensor, data: Tensor | None = None) -> Tensor:
            return super().forward(x if data is None else data)

    assert "the meta device with (2, 3, 8, 8)" in messages(bound(Named()).notes)


class Recurrent(nn.Module):
    """It knows no sequence indicators."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(4, 5)
        self.p = nn.LSTM(6, 4)

    def forward(self, frames: Tensor) -> Tensor:
        return self.q(self.p(frames)[0])


class Continued(Recurrent):
    def forward(self, x: Tensor, goes_on: Tensor) -> Tensor:  # type: ignore[override]
        assert goes_on.shape == x.shape[:2]
        return super().forward(x * goes_on.unsqueeze(2))


class ContinuedIfSaid(Continued):
    def forward(self, x: Tensor, goes_on: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return super().forward(x, x.new_ones(x.shape[:2]) if goes_on is None else goes_on)


@pytest.mark.parametrize(
    ("port", "shapes"),
    [(Recurrent, "(4, 2, 6)"), (Continued, "(4, 2, 6), (4, 2)"), (ContinuedIfSaid, "(4, 2, 6)")],
)
def test_a_port_may_do_without_the_indicators_of_an_lstm(port: type[nn.Module], shapes: str) -> None:
    text = layer("LSTM", "a", "frames cont", "", "recurrent_param { num_output: 4 }") + linear("b", "a", 5, "axis: 2")
    recipe = recipe_of(blob("frames", 4, 2, 6), blob("cont", 4, 2), text)
    binding = bind(recipe, port(), unclaimed={"p.bias_hh_l0": (0.0, 0.0)})
    assert messages(binding.notes).endswith(f"one forward pass on the meta device with {shapes}")
    assert names(binding)["b/0"] == "q.weight"
