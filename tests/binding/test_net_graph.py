"""Contracting nets and models to what learns and what meets: both sides by the same laws."""

from __future__ import annotations

import pytest
from nets import IMAGE, conv, layer, linear, norm, recipe_of, spelled

from caffe2torch.binding.isomorphism import without_tails
from caffe2torch.binding.net_graph import biases_before_norms, caffe_wiring, net_inputs


def net(*parts: str) -> list[str]:
    return spelled(without_tails(caffe_wiring(recipe_of(IMAGE, *parts))))


def test_layers_in_place_and_without_weights_are_transparent() -> None:
    text = (
        conv("a", "data")
        + layer("ReLU", "r", "a", "a")
        + layer("Pooling", "p", "a", "", "pooling_param { kernel_size: 2 }")
    )
    assert net(text, layer("Dropout", "d", "p", "p"), linear("b", "p")) == ["a <- in", "b <- a"]


def test_an_in_place_layer_that_learns_stands_between() -> None:
    assert net(conv("a", "data"), layer("PReLU", "p", "a", "a"), conv("b", "a")) == ["a <- in", "p <- a", "b <- p"]


def test_batch_norm_and_its_scale_are_one_unit() -> None:
    wiring = caffe_wiring(recipe_of(IMAGE, conv("a", "data"), norm("n", "a"), conv("b", "a")))
    assert spelled(wiring) == ["a <- in", "n <- a", "b <- n"]
    assert wiring.units[1].parts == ("n", "n/scale")
    assert [tensor.role for tensor in wiring.units[1].tensors] == ["mean", "variance", "factor", "scale", "shift"]


def test_a_scale_that_something_else_also_precedes_stands_alone() -> None:
    both = layer("BatchNorm", "n", "a", "m") + layer("Scale", "s", "m") + layer("Eltwise", "e", "m s")
    assert net(conv("a", "data"), both, conv("b", "e")) == ["a <- in", "n <- a", "s <- n", "b <- sum(n, s)"]


def test_concatenations_keep_their_order_and_are_flattened() -> None:
    ends = conv("a", "data") + conv("b", "data") + conv("c", "data")
    text = ends + layer("Concat", "x", "b a") + layer("Concat", "y", "x c") + conv("d", "y")
    assert net(text)[-1] == "d <- concat(b, a, c)"


def test_sums_of_sums_are_one_sum_unless_something_else_looks_at_the_inner_one() -> None:
    ends = conv("a", "data") + conv("b", "data") + conv("c", "data")
    inner = ends + layer("Eltwise", "x", "a b") + layer("ReLU", "r", "x", "x") + layer("Eltwise", "y", "x c")
    assert net(inner, conv("d", "y"))[-1] == "d <- sum(a, b, c)"
    assert net(inner, conv("d", "y"), conv("e", "x"))[-2:] == ["d <- sum(c, sum(a, b))", "e <- sum(a, b)"]


def test_axpy_is_a_product_and_a_sum() -> None:
    text = conv("a", "data") + conv("b", "data") + conv("s", "data") + layer("Axpy", "x", "s a b") + conv("d", "x")
    assert net(text)[-1] == "d <- sum(b, product(a, s))"


@pytest.mark.parametrize(("operation", "junction"), [("PROD", "product"), ("MAX", "max"), ("SUM", "sum")])
def test_eltwise_is_what_its_operation_says(operation: str, junction: str) -> None:
    text = (
        conv("a", "data")
        + conv("b", "data")
        + layer("Eltwise", "e", "a b", "", f"eltwise_param {{ operation: {operation} }}")
    )
    assert net(text, conv("c", "e"))[-1] == f"c <- {junction}(a, b)"


def test_masks_labels_and_sizes_are_not_inputs() -> None:
    text = (
        conv("a", "data")
        + layer("Pooling", "p", "a", "p mask", "pooling_param { kernel_size: 2 stride: 2 }")
        + conv("b", "p")
        + layer("Upsample", "u", "b mask", "", "upsample_param { scale: 2 }")
        + conv("c", "u")
        + layer("Crop", "x", "c data")
        + conv("d", "x")
    )
    assert net(text) == ["a <- in", "b <- a", "c <- b", "d <- c"]


def test_layers_that_share_all_blobs_are_one_unit_used_twice() -> None:
    shared = 'param { name: "w" } param { name: "b" }'
    text = 'input: "data_p" input_shape { dim: 2 dim: 3 dim: 8 dim: 8 }\n'
    recipe = recipe_of(IMAGE, text, conv("a", "data", params=shared), conv("a_p", "data_p", params=shared))
    wiring = caffe_wiring(recipe)
    assert [unit.parts for unit in wiring.units] == [("a", "a_p")]
    assert [node.unit for node in wiring.nodes] == [None, 0, 0]


def test_skipped_layers_are_transparent() -> None:
    recipe = recipe_of(IMAGE, conv("a", "data"), norm("n", "a"), conv("b", "a"))
    assert spelled(caffe_wiring(recipe, frozenset({"n", "n/scale"}))) == ["a <- in", "b <- a"]


def test_net_inputs_are_what_something_learnable_looks_at() -> None:
    data = layer("Data", "data", "", "image label", "transform_param { crop_size: 24 } data_param { batch_size: 2 }")
    recipe = recipe_of(data, conv("a", "image"), linear("b", "a"), layer("SoftmaxWithLoss", "loss", "b label"))
    assert [one.name for one in net_inputs(recipe)] == ["image"]


def blob(name: str, *sizes: int) -> str:
    return f'input: "{name}" input_shape {{ {" ".join(f"dim: {size}" for size in sizes)} }}\n'


LSTM = "recurrent_param { num_output: 4 }"


@pytest.mark.parametrize(
    ("text", "inputs"),
    [  # those through which a gradient flows have a star
        (
            [blob("flow", 2, 1, 8, 8), blob("image", 2, 3, 8, 8), layer("Concat", "x", "image flow"), conv("a", "x")],
            ["flow*", "image*"],
        ),
        (
            [blob("data", 2, 3), blob("more", 2, 3), layer("Eltwise", "x", "data more"), linear("a", "x")],
            ["data*", "more*"],
        ),
        (
            [blob("rois", 9, 5), IMAGE, conv("a", "data"), layer("ROIPooling", "p", "a rois"), linear("b", "p")],
            ["rois", "data*"],
        ),
        (  # the file of the old format makes no layer of it
            [IMAGE, conv("a", "data"), layer("ROIAlign", "p", "a rois"), linear("b", "p")],
            ["data*", "rois"],
        ),
        (  # regions that something not learned makes
            [
                *(IMAGE, blob("im_info", 1, 3), blob("gt_boxes", 1, 5), conv("a", "data")),
                layer("Python", "proposals", "a im_info gt_boxes", "rois labels"),
                *(layer("ROIPooling", "p", "a rois"), linear("b", "p"), layer("SoftmaxWithLoss", "loss", "b labels")),
            ],
            ["data*", "im_info", "gt_boxes"],
        ),
        (
            [
                blob("frames", 4, 2, 6),
                blob("cont", 4, 2),
                layer("LSTM", "a", "frames cont", "", LSTM),
                linear("b", "a"),
            ],
            ["frames*", "cont"],
        ),
        (
            [IMAGE, blob("label", 2), conv("a", "data"), layer("CenterLoss", "c", "a label")],
            ["data*"],
        ),
        (
            [
                IMAGE,
                blob("label", 2),
                layer(
                    "MarginInnerProduct", "a", "data label", "a lambda", "margin_inner_product_param { num_output: 3 }"
                ),
            ],
            ["data*", "label"],
        ),
        (
            [
                IMAGE,
                layer("Parameter", "p", "", "", "parameter_param { shape { dim: 3 } }"),
                layer("Scale", "x", "data p"),
                conv("a", "x"),
            ],
            ["data*"],
        ),
    ],
)
def test_net_inputs_come_in_through_any_bottom_that_is_no_label(text: list[str], inputs: list[str]) -> None:
    found = net_inputs(recipe_of(*text))
    assert [one.name + "*" * one.learned for one in found] == inputs


def test_regions_have_five_numbers_and_rows_of_a_table_are_whole_numbers() -> None:
    embed = layer("Embed", "words", "sentence", "", "embed_param { num_output: 4 input_dim: 9 }")
    text = [IMAGE, conv("a", "data"), layer("ROIPooling", "p", "a rois"), linear("b", "p"), embed]
    found = {one.name: one for one in net_inputs(recipe_of(*text))}
    assert found["rois"].shape == (None, 5)
    assert [name for name, one in found.items() if one.indices] == ["sentence"]


def test_a_bias_before_a_batch_norm_is_known_and_whether_its_value_matters() -> None:
    text = conv("a", "data") + norm("n", "a") + conv("b", "a") + layer("ReLU", "r", "b", "b") + norm("m", "b")
    recipe = recipe_of(IMAGE, text)
    assert {recipe.blobs[n].name: live for n, live in biases_before_norms(recipe).items()} == {"a/1": True}
    stored = text.replace('type: "BatchNorm"', 'type: "BatchNorm" batch_norm_param { use_global_stats: true }')
    assert set(biases_before_norms(recipe_of(IMAGE, stored)).values()) == {False}
