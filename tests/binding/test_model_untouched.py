"""The model is a guest: it is not changed, and one that cannot be run is bound as far as that goes."""

from __future__ import annotations

import copy
import random
import warnings

import pytest
import torch
from nets import IMAGE, conv, linear, names, norm, recipe_of
from torch import Tensor, nn
from torch.nn import functional

from caffe2torch.binding.bind import bind
from caffe2torch.binding.skeleton import skeleton
from caffe2torch.errors import BindingError, ModelError
from caffe2torch.recipe import Severity


def test_binding_changes_nothing_in_the_model_or_around_it() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(), nn.Conv2d(4, 6, 3, padding=1))
    model.append(nn.Flatten()).append(nn.Linear(384, 5))
    recipe = recipe_of(IMAGE, conv("one", "data", 4), norm("n", "one"), conv("two", "one", 6), linear("three", "two"))
    calls: list[object] = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    before = copy.deepcopy(model.state_dict())
    attributes = {name: list(vars(module)) for name, module in model.named_modules()}
    torch.manual_seed(3)
    random.seed(3)
    expected = (torch.rand(1).item(), random.random())
    torch.manual_seed(3)
    random.seed(3)
    assert bind(recipe, model.eval())
    assert (torch.rand(1).item(), random.random()) == expected
    assert not calls
    assert not model.training
    assert not any(parameter.grad is not None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: list(vars(module)) for name, module in model.named_modules()} == attributes


def test_a_model_on_the_meta_device_binds_as_well() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(256, 5))
    assert names(bind(recipe_of(IMAGE, conv("one", "data"), linear("two", "one")), model))["two/0"] == "2.weight"


class Stubborn(nn.Module):
    """A model that decides by a value, so that neither the meta device nor symbolic tracing get through it."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.p = nn.Linear(4 * 64, 5), nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.p(image)
        if x.abs().sum().item() < 0:
            raise AssertionError
        return self.q(functional.relu(x).flatten(1))  # type: ignore[no-any-return]


def test_a_model_that_decides_by_values_is_really_run() -> None:
    binding = bind(recipe_of(IMAGE, conv("one", "data"), linear("two", "one")), Stubborn())
    assert names(binding)["two/0"] == "q.weight"
    assert (
        "one real forward pass with (2, 3, 8, 8) instead of one forward pass on the meta device"
        in binding.notes[0].message
    )


class Sized(Stubborn):
    """A model whose linear layer fits one size of image, which nothing states."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(4 * 21 * 35, 5)

    def forward(self, image: Tensor) -> Tensor:
        return self.q(self.p(image).flatten(1))  # type: ignore[no-any-return]


def test_a_size_that_nothing_states_is_traced_around_or_asked_for() -> None:
    recipe = recipe_of(conv("one", "data"), linear("two", "one"))
    assert "the model's wiring is from torch.fx instead of" in bind(recipe, Sized()).notes[0].message
    for shapes in ([(1, 3, 21, 35)], {"image": (1, 3, 21, 35)}, {"data": (1, 3, 21, 35)}):
        binding = bind(recipe, Sized(), input_shapes=shapes)  # type: ignore[arg-type]
        assert "one forward pass on the meta device with (1, 3, 21, 35)" in binding.notes[0].message
    with pytest.raises(ModelError, match="no input is called 'dta'"):
        bind(recipe, Sized(), input_shapes={"dta": (1, 3, 21, 35)})


class Unseen(Stubborn):
    """A model that can be run in no way that we know."""

    def forward(self, _: Tensor) -> Tensor:
        raise RuntimeError("only on the ship")


def test_a_model_that_cannot_be_traced_is_bound_by_names_alone_and_it_is_said() -> None:
    recipe = recipe_of(IMAGE, conv("p", "data"), linear("q", "p"))
    binding = bind(recipe, Unseen())
    assert {bound.how for bound in binding.blobs} == {"equal names"}
    assert any("only on the ship" in note.message for note in binding.notes if note.severity is Severity.WARNING)
    with pytest.raises(BindingError, match="names alone decide, since the model's wiring could not be seen"):
        bind(recipe_of(IMAGE, conv("one", "data"), linear("two", "one")), Unseen())
    assert (
        names(bind(recipe_of(IMAGE, conv("one", "data"), linear("Q", "one")), Unseen(), {"one": "p"}))["Q/0"]
        == "q.weight"
    )


def test_models_with_nothing_to_bind_are_refused() -> None:
    recipe = recipe_of(IMAGE, conv("c", "data"))
    with pytest.raises(ModelError, match="ReLU has no parameters"):
        bind(recipe, nn.ReLU())
    with warnings.catch_warnings(action="ignore"):
        lazy = nn.Sequential(nn.LazyConv2d(4, 3))
    with pytest.raises(ModelError, match=r"0\.weight has no shape yet"):
        bind(recipe, lazy)
    flat = nn.Module()
    flat.register_parameter("_flat_param", nn.Parameter(torch.zeros(9)))
    with pytest.raises(ModelError, match="FSDP has flattened"):
        bind(recipe, flat)


def test_a_parametrized_weight_is_named_as_such() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)))
    with pytest.raises(BindingError, match=r"the module has no weight .computed from other parameters"):
        bind(recipe_of(IMAGE, conv("c", "data")), model)


def test_a_skeleton_binds_under_any_names_in_any_module() -> None:
    recipe = recipe_of(IMAGE, conv("a", "data"), norm("n", "a"), conv("b", "a"), linear("c", "b"))
    parts = list(skeleton(recipe).children())
    random.Random(1).shuffle(parts)
    model = nn.ModuleDict({f"part{number}": part for number, part in enumerate(parts)})
    binding = bind(recipe, model)
    home = {part.layer: f"part{number}" for number, part in enumerate(parts)}  # type: ignore[attr-defined]
    assert {bound.name.rpartition(".")[0] == home[bound.blob.layer] for bound in binding.blobs if bound.name} == {True}
    assert all(bound.how.startswith("structure") for bound in binding.blobs)
