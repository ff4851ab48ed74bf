"""Nets and models that differ somewhere: the rest is bound, and never shifted by what only one side has."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import IMAGE, Port, Step, caffe_net, conv, inserted, linear, messages, names, programs, recipe_of
from torch import Tensor, nn

from caffe2torch.binding.bind import bind
from caffe2torch.binding.candidates import candidates
from caffe2torch.binding.graph import Wiring
from caffe2torch.binding.net_graph import caffe_wiring
from caffe2torch.binding.plan import Binding
from caffe2torch.errors import BindingError

LEARNING = st.sampled_from(["conv3", "conv1", "norm"])


def shifted(binding: Binding, port: Port, place: list[int]) -> list[str]:
    """Blobs that are said with certainty to be where they are not; ``place`` is each value's place in the port."""
    return [
        bound.blob.name
        for bound in binding.blobs
        if bound.name is not None and not bound.rivals
        if not bound.name.startswith(f"{port.module_of[place[int(bound.blob.layer.strip('s'))]]}.")
    ]


@given(programs(), st.data())
def test_what_only_the_model_has_shifts_nothing_or_the_binding_is_refused(
    program: list[Step], data: st.DataObject
) -> None:
    larger, place = list(program), list(range(len(program) + 1))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(larger)))
        larger = inserted(larger, at, data.draw(LEARNING))
        place = [value + (value > at) for value in place]
    if data.draw(st.booleans()):
        larger.append(Step("conv1", (len(larger),), 7))  # a head of a size of its own
    port = Port(larger, data.draw(st.integers(0, 99)))
    try:
        binding = bind(recipe_of(caffe_net(program)), port, unclaimed=(1.0, 1.0))
    except BindingError:
        return
    assert not shifted(binding, port, place)


@given(programs(), st.data())
def test_what_only_the_net_has_can_be_skipped_and_shifts_nothing(program: list[Step], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(program)))
    recipe = recipe_of(caffe_net(inserted(program, at, data.draw(LEARNING))))
    port = Port(program, data.draw(st.integers(0, 99)))
    binding = bind(recipe, port, skip=[f"s{at + 1}s?"])
    assert not shifted(binding, port, [value - (value > at) for value in range(len(program) + 2)])


def towers(*kernels: int) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(4 if n else 3, 4, kernel, padding=kernel // 2) for n, kernel in enumerate(kernels))
    )


def test_of_two_equal_layers_in_a_row_either_can_be_the_one_too_many() -> None:
    recipe = recipe_of(IMAGE, conv("a", "data"), conv("b", "a"))
    with pytest.raises(BindingError, match=r"layer 'b' could be 1 or 2"):
        bind(recipe, towers(3, 3, 3), unclaimed=(1.0, 1.0))
    assert names(bind(recipe, towers(3, 3, 3), {"b": "2"}, unclaimed=(1.0, 1.0)))["b/0"] == "2.weight"
    assert names(bind(recipe, towers(3, 5, 3), unclaimed=(1.0, 1.0)))["b/0"] == "2.weight"


def test_a_head_of_another_size_leaves_no_such_choice() -> None:
    recipe = recipe_of(IMAGE, conv("a", "data"), conv("b", "a"), conv("head", "b", 9, 1))
    model = nn.Sequential(*towers(3, 3), nn.Conv2d(4, 2, 1))
    binding = bind(recipe, model, skip=["head"], unclaimed=(1.0, 1.0))
    assert names(binding) == {"a/0": "0.weight", "a/1": "0.bias", "b/0": "1.weight", "b/1": "1.bias"} | {
        "head/0": None,
        "head/1": None,
    }


def test_candidates_leave_enough_before_and_after_them() -> None:
    def wiring(length: int) -> Wiring:
        return caffe_wiring(
            recipe_of(IMAGE, conv("v1", "data"), *(conv(f"v{n}", f"v{n - 1}") for n in range(2, length)))
        )

    net, model = wiring(4), wiring(6)
    assert candidates(net, model, {}) == {0: [0], 1: [1, 2, 3], 2: [2, 3, 4]}
    assert candidates(net, model, {2: 3}) == {0: [0], 1: [1, 2], 2: [3]}


class Auxiliary(nn.Module):
    """Three layers in a row, a head, and an auxiliary head after the first or the second of them."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.b1, self.b2, self.b3 = towers(3, 3, 3)
        self.aux1, self.head = nn.Linear(256, 5), nn.Linear(256, 5)
        self.after = after

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        values = [image]
        for part in (self.b1, self.b2, self.b3):
            values.append(part(values[-1]))
        return self.head(values[-1].flatten(1)), self.aux1(values[self.after].flatten(1))


HEADS = recipe_of(
    IMAGE, conv("b1", "data"), linear("aux1", "b1"), conv("b2", "b1"), linear("aux2", "b2"), conv("b3", "b2"),
    linear("head", "b3"),
)  # fmt: skip


def test_a_layer_is_no_module_that_stands_elsewhere_though_all_else_is_gone() -> None:
    assert names(bind(HEADS, Auxiliary(1), skip=["aux2"]))["aux1/0"] == "aux1.weight"
    with pytest.raises(BindingError, match="layer 'aux2' has no counterpart") as caught:
        bind(HEADS, Auxiliary(1), skip=["aux1"])
    assert (caught.value.hint or "").startswith("do not skip 'aux1', which module aux1 could be; leave out layers")
    assert 'aux2 = "aux1"' not in (caught.value.hint or "")
    with pytest.raises(BindingError, match="layer 'aux2' has no counterpart"):
        bind(HEADS, Auxiliary(1), skip=["aux1"], unclaimed=(1.0, 1.0))


def test_a_module_of_the_layers_name_that_stands_elsewhere_is_bound_and_that_is_said() -> None:
    binding = bind(HEADS, Auxiliary(2), skip=["aux2"])
    assert names(binding)["aux1/0"] == "aux1.weight"
    assert "layer 'aux1' stands elsewhere than module aux1; bound by name" in messages(binding.notes)
    assert names(bind(HEADS, Auxiliary(2), skip=["aux1"]))["aux2/0"] == "aux1.weight"
