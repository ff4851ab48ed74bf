"""What a user says about names, in Python or in a TOML file, and what is said back when it cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from hypothesis import given
from hypothesis import strategies as st
from nets import IMAGE, conv, layer, linear, names, norm, recipe_of
from torch import Tensor, nn

from caffe2torch.binding.bind import bind
from caffe2torch.binding.names import names_of, read_names
from caffe2torch.binding.plan import Binding, Kind
from caffe2torch.binding.skeleton import skeleton
from caffe2torch.errors import BindingError, InputError
from caffe2torch.recipe import Severity, TrainingRecipe


class Opaque(nn.Module):
    """A model that cannot be run, so that names are all there is."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)])
        self.bn = nn.BatchNorm2d(4)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(256, 5))

    def forward(self, _: Tensor) -> Tensor:
        raise RuntimeError("never")


def net() -> TrainingRecipe:
    return recipe_of(IMAGE, conv("conv1", "data"), norm("n", "conv1"), conv("conv2", "conv1"), linear("fc", "conv2"))


BY_HAND = {"conv1": "down.0", "n": "bn", "conv2": "down.1", "fc": "head.1"}
BOUND = {
    "conv1/0": "down.0.weight",
    "conv1/1": "down.0.bias",
    "n/0": "bn.running_mean",
    "n/1": "bn.running_var",
    "n/2": None,
    "n/scale/0": "bn.weight",
    "n/scale/1": "bn.bias",
    "conv2/0": "down.1.weight",
    "conv2/1": "down.1.bias",
    "fc/0": "head.1.weight",
    "fc/1": "head.1.bias",
}


@pytest.mark.parametrize(
    "said",
    [
        BY_HAND,
        {**BY_HAND, "n": "module.bn", "fc": "_orig_mod.head.1"},
        {**BY_HAND, "fc/0": "head.1.weight", "fc/1": "head.1.bias", "n/scale": "bn"},
        {"conv1": "down.0", "conv2": "down.1", "n/0": "bn.running_mean", "n": "bn", "f(.)": "head.1"},
        {r"conv(?P<n>1|2)": r"down.\g<n>"},
    ],
)
def test_layers_blobs_and_patterns_can_be_named(said: dict[str, str]) -> None:
    model = Opaque()
    if "conv(?P<n>1|2)" in said:
        model.down = nn.ModuleDict({"1": nn.Conv2d(3, 4, 3), "2": nn.Conv2d(4, 4, 3)})
        said = {**said, "n": "bn", "fc": "head.1"}
        expected = {
            blob: name and name.replace("down.1", "down.2").replace("down.0", "down.1") for blob, name in BOUND.items()
        }
    else:
        expected = BOUND
    binding = bind(net(), model, said)
    assert names(binding) == expected
    assert all(bound.how.startswith("the user's names") for bound in binding.blobs)


def test_an_exact_name_wins_over_a_pattern() -> None:
    assert names(bind(net(), Opaque(), {**BY_HAND, "conv.*": "down.1"})) == BOUND


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"conv3": "down.0"}, "names: no layer that learns is called 'conv3', and it matches none as a pattern"),
        ({"conv1": "down.2"}, "names: the model has no module and no parameter 'down.2'"),
        ({"conv1": "down"}, "names: module 'down' holds no parameters itself"),
        ({"conv1": "down.0", "conv2": "down.0"}, "names binds layers 'conv1' and 'conv2' to one module, down.0"),
        ({"conv(1)": "down.0", "co.*1": "down.1"}, "names claims 'conv1' twice: by 'conv(1)' and by 'co.*1'"),
        ({"conv1": "down.0.weight"}, "names binds layer 'conv1' to one tensor, but it has 2 blobs"),
        ({"conv1/0": "down.0"}, "names binds blob 'conv1/0' to 'down.0', which is a module"),
        ({"conv1/0": "down.1.weight"}, "names binds blob 'conv1/0' to down.1.weight: it is 4x3x3x3 in Caffe, 4x4x3x3"),
        (
            {"conv(": "down.0"},
            "names: no layer that learns is called 'conv(', and it is no regular expression: missing",
        ),
        ({"conv(1)": r"down.\2"}, "has no such groups as"),
        ({"conv1/1": "bn.bias", "conv2/1": "bn.bias"}, "names binds blobs 'conv1/1' and 'conv2/1' to one tensor"),
    ],
)
def test_names_that_cannot_be_are_refused(said: dict[str, str], message: str) -> None:
    with pytest.raises(BindingError) as caught:
        bind(net(), Opaque(), said)
    assert message in str(caught.value)


def test_a_misspelled_name_gets_the_ones_that_are_close() -> None:
    with pytest.raises(BindingError, match="did you mean 'conv1'"):
        bind(net(), Opaque(), {"cnov1": "down.0"})
    with pytest.raises(BindingError, match=r"did you mean 'head\.1'"):
        bind(net(), Opaque(), {"fc": "hed.1"})


@pytest.mark.parametrize("option", ["names", "skip", "reshaped", "unclaimed"])
def test_a_pattern_that_matches_nothing_is_told_to_be_a_regular_expression(option: str) -> None:
    given: dict[str, Any] = {"names": {"layer-*": "down.0"}, "unclaimed": {"layer-*": (1.0, 1.0)}}
    with pytest.raises(BindingError, match=r"'layer-\*', and it matches none as a pattern") as caught:
        bind(net(), Opaque(), **{option: given.get(option, ["layer-*"])})
    assert "(a pattern is a regular expression for the whole name: 'conv.*', say)" in (caught.value.hint or "")


def test_what_the_user_says_is_followed_against_the_structure_and_that_is_noted() -> None:
    recipe = recipe_of(IMAGE, conv("a", "data"), conv("b", "a"), conv("c", "b"))
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    binding = bind(recipe, model, {"b": "2", "c": "1"})
    assert names(binding)["b/0"] == "2.weight"
    assert names(binding)["a/0"] == "0.weight"
    warnings = [note.message for note in binding.notes if note.severity is Severity.WARNING]
    assert warnings == ["names contradicts the wiring of net and model; names was followed"]


def test_a_module_of_a_layers_name_in_another_layers_place_is_bound_by_place_with_a_warning() -> None:
    recipe = recipe_of(IMAGE, conv("one", "data"), conv("two", "one"), conv("three", "two"))
    model = nn.Sequential()
    for name, inputs in (("one", 3), ("three", 4), ("two", 4)):
        model.add_module(name, nn.Conv2d(inputs, 4, 3))
    binding = bind(recipe, model)
    assert names(binding)["two/0"] == "three.weight"
    assert sum("not where the module of its own name does" in note.message for note in binding.notes) == 2
    by_name = bind(recipe, model, {"two": "two", "three": "three"})
    assert names(by_name)["two/0"] == "two.weight"


def test_names_equal_but_for_spelling_count_where_they_are_unique() -> None:
    recipe = recipe_of(IMAGE, conv("Conv1/3x3", "data"), conv("conv2.a", "Conv1/3x3"))

    class Model(Opaque):
        def __init__(self, *called: str) -> None:
            nn.Module.__init__(self)
            self.backbone = nn.Module()
            for number, name in enumerate(called):
                self.backbone.add_module(name, nn.Conv2d(3 if number == 0 else 4, 4, 3))

    binding = bind(recipe, Model("conv1_3x3", "conv2_a"))
    assert names(binding)["conv2.a/0"] == "backbone.conv2_a.weight"
    assert {bound.how for bound in binding.blobs} == {"names equal but for spelling"}
    with pytest.raises(BindingError, match=r"layer 'conv2\.a' has no counterpart"):
        bind(recipe, Model("conv1_3x3", "conv2_a", "conv2a"))


# --- the names file -----------------------------------------------------------------------------------------------


def test_a_names_file_says_what_names_says(tmp_path: Path) -> None:
    file = tmp_path / "names.toml"
    file.write_text('conv1 = "down.0"\n"fc/0" = "head.1.weight"\n\'conv(\\d)\' = \'down.\\1\'\n"dot.ted" = "x"\n')
    assert read_names(file) == {"conv1": "down.0", "fc/0": "head.1.weight", r"conv(\d)": r"down.\1", "dot.ted": "x"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("conv1 = down.0", "bad TOML: Invalid value (at line 1, column 9)"),
        ('conv1 = "a"\nconv1 = "b"', "bad TOML: Cannot overwrite a value"),
        ('conv1.x = "a"', "a name with dots must be quoted"),
        ("conv1 = 3", "'conv1' is bound to 3, not to a name"),
        ('[layers]\nconv1 = "a"', "write one line a layer, without sections"),
    ],
)
def test_a_bad_names_file_is_refused_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "names.toml"
    file.write_text(text)
    with pytest.raises(BindingError) as caught:
        read_names(file)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{file}: ")


def test_a_names_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_names(tmp_path / "absent.toml")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_names(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not UTF-8 text"):
        read_names(tmp_path / "binary")


def same(one: Binding, other: Binding) -> bool:
    return names(one) == names(other) and not any(bound.rivals for bound in other.blobs)


def test_a_written_binding_is_read_back_as_the_same(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1), nn.Flatten())
    model.append(nn.Linear(256, 5))
    binding = bind(net(), model)
    (tmp_path / "names.toml").write_text(tomli_w.dumps(names_of(binding)))
    said = read_names(tmp_path / "names.toml")
    assert said == {"conv1": "0", "n": "1", "n/scale": "1", "conv2": "2", "fc": "4"}
    again = bind(net(), model, said)
    assert same(binding, again)
    assert all(bound.how.startswith("the user's names") for bound in again.blobs if bound.kind is not Kind.NONE)


def test_writing_decides_what_was_interchangeable(tmp_path: Path) -> None:
    recipe = recipe_of(IMAGE, conv("l", "data"), conv("r", "data"), layer("Eltwise", "s", "l r"))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x, self.y = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

        def forward(self, image: Tensor) -> Tensor:
            return self.x(image) + self.y(image)  # type: ignore[no-any-return]

    binding = bind(recipe, Model())
    assert all(bound.rivals for bound in binding.blobs)
    (tmp_path / "names.toml").write_text(tomli_w.dumps(names_of(binding)))
    assert same(binding, bind(recipe, Model(), read_names(tmp_path / "names.toml")))


layer_names = st.text(st.sampled_from("ab./%\"'\\\n=[]#é ()*+0"), max_size=6)


@given(st.lists(layer_names, min_size=1, max_size=4, unique=True))
def test_layers_of_any_name_survive_the_file(called: list[str]) -> None:
    def quoted(name: str) -> str:
        return name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    text = [IMAGE.replace('"data"', '"?"'), conv(quoted(called[0]), "?", top="0")]
    text += [conv(quoted(name), str(n), top=str(n + 1)) for n, name in enumerate(called[1:])]
    recipe = recipe_of(*text)
    binding = bind(recipe, skeleton(recipe))
    said = names_of(binding)
    assert same(binding, bind(recipe, skeleton(recipe), said))


def test_two_layers_of_one_module_can_be_named_blob_by_blob() -> None:
    inputs = 'input: "data" input_shape { dim: 5 dim: 2 dim: 6 } input: "cont" input_shape { dim: 5 dim: 2 }\n'
    sizes = "recurrent_param { num_output: 8 }"
    lstms = layer("LSTM", "l0", "data cont", "", sizes) + layer("LSTM", "l1", "l0 cont", "", sizes)
    end = layer("InnerProduct", "fc", "l1", "", "inner_product_param { num_output: 4 axis: 2 }")

    class Stacked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.r, self.fc = nn.LSTM(6, 8, 2), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Any:
            return self.fc(self.r(x)[0])

    said = {r"l(\d)/0": r"r.weight_ih_l\1", r"l(\d)/1": r"r.bias_ih_l\1", r"l(\d)/2": r"r.weight_hh_l\1"}
    recipe = recipe_of(inputs, lstms, end)
    binding = bind(recipe, Stacked(), names=said, unclaimed=(0.0, 0.0))
    assert names(binding)["l1/2"] == "r.weight_hh_l1"
    assert names(bind(recipe, Stacked(), names_of(binding), unclaimed=(0.0, 0.0))) == names(binding)


def test_written_names_of_tied_parameters_are_read_back() -> None:
    shared = 'param { name: "w" } param { name: "b" }'
    recipe = recipe_of(IMAGE, conv("in", "data"), conv("l", "in", params=shared), conv("r", "l", params=shared))

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(size, 4, 3, padding=1) for size in (3, 4, 4))
            self.c.weight, self.c.bias = self.b.weight, self.b.bias

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(self.a(x)))  # type: ignore[no-any-return]

    binding = bind(recipe, Tied())
    assert names(bind(recipe, Tied(), names_of(binding))) == names(binding)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
def test_a_scripted_module_within_a_model_is_bound_by_name() -> None:
    inner = nn.Sequential()
    inner.add_module("b", nn.Conv2d(4, 4, 3, padding=1))
    model = nn.Module()
    model.add_module("a", nn.Conv2d(3, 4, 3, padding=1))
    model.add_module("inner", torch.jit.script(inner))
    binding = bind(recipe_of(IMAGE, conv("a", "data"), conv("b", "a")), model)
    assert names(binding)["b/0"] == "inner.b.weight"
