"""A .caffemodel into a model: what belongs, what is refused by name, what is kept, and nothing by halves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import snapshot_files as files
import torch
from hypothesis import given
from hypothesis import strategies as st
from snapshot_runs import bound, text_file
from torch import nn

from caffe2torch.binding.bind import bind
from caffe2torch.binding.plan import Binding
from caffe2torch.binding.skeleton import skeleton
from caffe2torch.errors import BindingError, ModelError, SnapshotError
from caffe2torch.reading import read_recipe
from caffe2torch.recipe import Severity, TrainingRecipe
from caffe2torch.snapshot.files import Weights, read_caffemodel
from caffe2torch.snapshot.match_blobs import fits
from caffe2torch.snapshot.weights import load_weights

NET = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 4 } } }
layer { name: "one" type: "InnerProduct" bottom: "data" top: "one" inner_product_param { num_output: 3 } }
layer { name: "two" type: "InnerProduct" bottom: "one" top: "two" inner_product_param { num_output: 2 } }
"""
ONE = [np.arange(12, dtype="f4").reshape(3, 4), np.array([1, 2, 3], "f4")]
TWO = [np.arange(6, dtype="f4").reshape(2, 3) - 3, np.array([-1, 1], "f4")]
SHARED = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 } } }
layer { name: "a" type: "InnerProduct" bottom: "data" top: "a"
  param { name: "w" } inner_product_param { num_output: 3 bias_term: false } }
layer { name: "b" type: "InnerProduct" bottom: "a" top: "b"
  param { name: "w" } inner_product_param { num_output: 3 bias_term: false } }
"""


def net_of(tmp_path: Path, text: str = NET) -> tuple[nn.Module, TrainingRecipe, Binding]:
    recipe = read_recipe(text_file(tmp_path / "net.prototxt", text))
    model = skeleton(recipe)
    return model, recipe, bind(recipe, model)


def load(
    tmp_path: Path, parts: tuple[nn.Module, TrainingRecipe, Binding], layers: dict[str, list[np.ndarray]], **how: object
) -> list[str]:
    weights = read_caffemodel(files.caffemodel(tmp_path / "m.caffemodel", layers))
    return [note.message for note in load_weights(*parts, weights, **how)]  # type: ignore[arg-type]


def test_every_blob_reaches_its_parameter(tmp_path: Path) -> None:
    parts = net_of(tmp_path)
    assert load(tmp_path, parts, {"one": ONE, "relu": [], "two": TWO}) == []
    for name, values in zip(("one.weight", "one.bias", "two.weight", "two.bias"), ONE + TWO, strict=True):
        np.testing.assert_array_equal(parts[0].get_parameter(name).detach().numpy(), values)


@pytest.mark.parametrize(
    ("layers", "messages"),
    [
        ({"one": ONE}, ["'two' is not in the file"]),
        ({"one": ONE, "two": TWO[:1]}, ["'two' has 1 blobs in the file, 2 in the net"]),
        ({"one": ONE, "two": [*TWO, TWO[1]]}, ["'two' has 3 blobs in the file, 2 in the net"]),
        ({"one": ONE, "two": [TWO[0].T, TWO[1]]}, ["two/0 (weight) is 3x2 in the file, 2x3 in the net"]),
        (
            {"one": [ONE[0][:2], ONE[1][:2]]},
            ["one/0 (weight) is 2x4 in the file, 3x4", "one/1 (bias) is 2 in the file, 3", "'two' is not in the file"],
        ),
    ],
)
def test_a_model_of_another_net_is_refused_with_every_difference_and_nothing_is_copied(
    tmp_path: Path, layers: dict[str, list[np.ndarray]], messages: list[str]
) -> None:
    parts = net_of(tmp_path)
    with pytest.raises(SnapshotError) as error:
        load(tmp_path, parts, layers)
    assert all(message in str(error.value) for message in messages)
    assert "m.caffemodel" in str(error.value)
    assert all(not parameter.any() for parameter in parts[0].parameters())


def test_a_layer_that_is_meant_to_be_new_keeps_its_values_whole_and_is_noted(tmp_path: Path) -> None:
    for pattern in ("two", "tw.*"):
        parts = net_of(tmp_path)
        with torch.no_grad():
            parts[0].get_parameter("two.bias").fill_(7)
        # Another number of classes: the bias's shape would differ too, but here it agrees and must stay all the same.
        (message,) = load(tmp_path, parts, {"one": ONE, "two": [np.ones((5, 3), "f4"), TWO[1]]}, new_layers=[pattern])
        assert "two/0 (weight) is 5x3 in the file, 2x3 in the net; the layer is new and keeps its values" in message
        assert parts[0].get_parameter("two.bias").tolist() == [7, 7]
        assert parts[0].get_parameter("one.bias").tolist() == [1, 2, 3]


def test_a_new_layer_that_the_file_has_just_so_is_loaded(tmp_path: Path) -> None:
    parts = net_of(tmp_path)
    assert load(tmp_path, parts, {"one": ONE, "two": TWO}, new_layers=["two"]) == []
    assert parts[0].get_parameter("two.bias").tolist() == [-1, 1]


def test_a_new_layer_that_is_no_regular_expression_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BindingError, match=r"no layer that learns is called .*, and it is no regular expression"):
        load(tmp_path, net_of(tmp_path), {"one": ONE, "two": TWO}, new_layers=["("])


def test_a_new_layer_that_no_layer_matches_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BindingError, match="new_layers: no layer that learns is called 'three'"):
        load(tmp_path, net_of(tmp_path), {"one": ONE, "two": TWO}, new_layers=["three"])


def test_layers_that_only_the_file_has_are_noted(tmp_path: Path) -> None:
    (message,) = load(tmp_path, net_of(tmp_path), {"one": ONE, "aux": TWO, "two": TWO})
    assert message.endswith("skipped, since nothing here has them: aux")


def test_a_file_cut_between_two_layers_is_still_a_message_and_is_refused(tmp_path: Path) -> None:
    whole = files.caffemodel(tmp_path / "m", {"one": ONE, "two": TWO}).read_bytes()
    cut = tmp_path / "cut.caffemodel"
    cut.write_bytes(whole[: whole.index(files.layer("two", *map(files.blob, TWO)))])
    with pytest.raises(SnapshotError, match="'two' is not in the file"):
        load_weights(*net_of(tmp_path), read_caffemodel(cut))


def test_nan_and_infinity_are_loaded_and_said(tmp_path: Path) -> None:
    parts = net_of(tmp_path)
    bad = TWO[0].copy()
    bad[0, 0], bad[1, 1] = np.nan, np.inf
    (message,) = load(tmp_path, parts, {"one": ONE, "two": [bad, TWO[1]]})
    assert "2 of the numbers of two.weight are NaN or infinite" in message
    assert torch.isnan(parts[0].get_parameter("two.weight")[0, 0])


def test_numbers_whose_sum_overflows_are_no_infinities(tmp_path: Path) -> None:
    assert load(tmp_path, net_of(tmp_path), {"one": [np.full((3, 4), 3e38, "f4"), ONE[1]], "two": TWO}) == []


def test_a_shared_blob_takes_what_the_last_of_its_layers_has_as_in_caffe(tmp_path: Path) -> None:
    first, last = np.full((3, 3), 1, "f4"), np.full((3, 3), 2, "f4")
    parts = net_of(tmp_path, SHARED)
    assert load(tmp_path, parts, {"a": [first], "b": [first]}) == []
    (message,) = load(tmp_path, parts, {"a": [first], "b": [last]})
    assert "a/0 is shared, and differs in 'b', which is taken" in message
    assert parts[0].get_parameter("a.weight")[0, 0] == 2
    weights = read_caffemodel(files.caffemodel(tmp_path / "m", {"a": [last]}))
    assert load_weights(*parts, weights) == ()  # HDF5 has it under the first layer only


def test_batch_norm_divides_by_its_factor_and_a_factor_of_zero_gives_zero(tmp_path: Path) -> None:
    recipe = read_recipe(
        text_file(
            tmp_path / "n.prototxt",
            'layer { name: "d" type: "Input" top: "d" input_param { shape { dim: 1 dim: 2 dim: 1 dim: 1 } } }'
            'layer { name: "bn" type: "BatchNorm" bottom: "d" top: "bn" }',
        )
    )
    model = nn.ModuleDict({"bn": nn.BatchNorm2d(2, affine=False)})
    parts = model, recipe, bound(recipe, model, {"bn/0": "bn.running_mean", "bn/1": "bn.running_var", "bn/2": None})
    sums = [np.array([2, -4], "f4"), np.array([6, 8], "f4")]
    load(tmp_path, parts, {"bn": [*sums, np.array([4], "f4")]})
    assert (model["bn"].running_mean.tolist(), model["bn"].running_var.tolist()) == ([0.5, -1], [1.5, 2])
    load(tmp_path, parts, {"bn": [*sums, np.array([0], "f4")]})
    assert (model["bn"].running_mean.tolist(), model["bn"].running_var.tolist()) == ([0, 0], [0, 0])


def test_a_blob_without_a_place_in_the_model_is_said_unless_it_is_zero(tmp_path: Path) -> None:
    recipe = net_of(tmp_path)[1]
    model = nn.ModuleDict({"one": nn.Linear(4, 3, bias=False), "two": nn.Linear(3, 2)})
    names = {"one/0": "one.weight", "one/1": None, "two/0": "two.weight", "two/1": "two.bias"}
    parts = model, recipe, bound(recipe, model, names)
    (message,) = load(tmp_path, parts, {"one": ONE, "two": TWO})
    assert "one/1 (bias) is not zero, and the model has no place for it" in message
    assert load(tmp_path, parts, {"one": [ONE[0], np.zeros(3, "f4")], "two": TWO}) == []


def test_a_layer_that_the_model_was_bound_without_is_passed_over(tmp_path: Path) -> None:
    recipe, model = net_of(tmp_path)[1], nn.ModuleDict({"one": nn.Linear(4, 3)})
    parts = model, recipe, bind(recipe, model, skip=["two"])
    assert load(tmp_path, parts, {"one": ONE}) == []
    (message,) = load(tmp_path, parts, {"one": ONE, "two": [TWO[0].T]})
    assert message.endswith("skipped, since nothing here has them: two")


def test_a_wrapped_model_is_loaded_like_the_bare_one(tmp_path: Path) -> None:
    model, recipe, binding = net_of(tmp_path)
    assert load(tmp_path, (nn.DataParallel(model), recipe, binding), {"one": ONE, "two": TWO}) == []
    assert model.get_parameter("two.bias").tolist() == [-1, 1]


def test_a_model_without_storage_is_refused(tmp_path: Path) -> None:
    model, recipe, binding = net_of(tmp_path)
    with pytest.raises(ModelError, match="meta device"):
        load(tmp_path, (model.to("meta"), recipe, binding), {"one": ONE, "two": TWO})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_models_of_other_precision_and_memory_format_are_loaded(tmp_path: Path, dtype: torch.dtype) -> None:
    text = """
    layer { name: "d" type: "Input" top: "d" input_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 } } }
    layer { name: "c" type: "Convolution" bottom: "d" top: "c" convolution_param { num_output: 2 kernel_size: 3 } }
    """
    recipe = read_recipe(text_file(tmp_path / "n.prototxt", text))
    model = nn.ModuleDict({"c": nn.Conv2d(3, 2, 3)}).to(dtype).to(memory_format=torch.channels_last)
    values = [np.arange(54, dtype="f4").reshape(2, 3, 3, 3), np.array([1, 2], "f4")]
    assert load(tmp_path, (model, recipe, bind(recipe, model)), {"c": values}) == []
    np.testing.assert_array_equal(model["c"].weight.detach().float().numpy(), values[0])


@given(shape=st.lists(st.integers(1, 4), max_size=4).map(tuple))
def test_old_shapes_fit_their_own_padded_to_four_axes_and_no_other_size(shape: tuple[int, ...]) -> None:
    padded = (1,) * (4 - len(shape)) + shape
    assert fits(shape, shape)
    assert fits(padded, shape)
    assert fits(shape, (None,) * len(shape))
    assert not fits((*padded[:-1], padded[-1] + 1), shape or (1,))


def test_what_was_asked_for_is_said_and_what_was_not_is_warned_of(tmp_path: Path) -> None:
    parts = net_of(tmp_path)
    weights = read_caffemodel(files.caffemodel(tmp_path / "m", {"one": ONE, "aux": TWO}))
    assert {note.severity for note in load_weights(*parts, weights, new_layers=["two"])} == {Severity.INFO}
    weights = read_caffemodel(files.caffemodel(tmp_path / "m", {"one": ONE, "two": [TWO[0] * np.nan, TWO[1]]}))
    assert {note.severity for note in load_weights(*parts, weights)} == {Severity.WARNING}


def test_a_skeleton_holds_a_transposed_layer_as_torch_does(tmp_path: Path) -> None:
    # Square, so that the shape alone would not tell.
    text = NET.replace("num_output: 3", "num_output: 4 transpose: true")
    square = np.arange(16, dtype="f4").reshape(4, 4)
    parts = net_of(tmp_path, text)
    load(tmp_path, parts, {"one": [square, np.zeros(4, "f4")], "two": [np.ones((2, 4), "f4"), TWO[1]]})
    np.testing.assert_array_equal(parts[0].get_parameter("one.weight").detach().numpy(), square.T)
    assert net_of(tmp_path, NET.replace("num_output: 3", "num_output: 3 transpose: true"))[0].get_parameter(
        "one.weight"
    ).shape == (3, 4)


def test_weights_are_not_loaded_where_nothing_tells_two_tensors_apart(tmp_path: Path) -> None:
    net = tmp_path / "net.prototxt"
    net.write_text("""
        input: "data" input_shape { dim: 1 dim: 4 }
        layer { name: "a" type: "InnerProduct" bottom: "data" top: "a" inner_product_param { num_output: 4 } }
        layer { name: "b" type: "InnerProduct" bottom: "data" top: "b" inner_product_param { num_output: 4 } }
        layer { name: "sum" type: "Eltwise" bottom: "a" bottom: "b" top: "sum" }
    """)

    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.one(x) + self.other(x)

    recipe, model = read_recipe(net), Twins()
    before = [p.clone() for p in model.parameters()]
    weights = Weights("twins.caffemodel", "", ())
    with pytest.raises(BindingError, match="weights must not be guessed") as caught:
        load_weights(model, recipe, bind(recipe, model), weights)
    assert "names file" in (caught.value.hint or "")
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
