"""Nets of every age become today's messages, as Caffe's own upgrade makes them, and keep their places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caffe2torch.errors import NetError
from caffe2torch.files import read_text
from caffe2torch.net.upgrade import Upgraded, upgrade
from caffe2torch.prototxt.schema import message, parse_net
from caffe2torch.recipe import Source

TYPES = {
    "ABSVAL": "AbsVal",
    "ACCURACY": "Accuracy",
    "ARGMAX": "ArgMax",
    "BNLL": "BNLL",
    "CONCAT": "Concat",
    "CONTRASTIVE_LOSS": "ContrastiveLoss",
    "CONVOLUTION": "Convolution",
    "DATA": "Data",
    "DECONVOLUTION": "Deconvolution",
    "DROPOUT": "Dropout",
    "DUMMY_DATA": "DummyData",
    "ELTWISE": "Eltwise",
    "EUCLIDEAN_LOSS": "EuclideanLoss",
    "EXP": "Exp",
    "FLATTEN": "Flatten",
    "HDF5_DATA": "HDF5Data",
    "HDF5_OUTPUT": "HDF5Output",
    "HINGE_LOSS": "HingeLoss",
    "IM2COL": "Im2col",
    "IMAGE_DATA": "ImageData",
    "INFOGAIN_LOSS": "InfogainLoss",
    "INNER_PRODUCT": "InnerProduct",
    "LRN": "LRN",
    "MEMORY_DATA": "MemoryData",
    "MULTINOMIAL_LOGISTIC_LOSS": "MultinomialLogisticLoss",
    "MVN": "MVN",
    "NONE": "",
    "POOLING": "Pooling",
    "POWER": "Power",
    "RELU": "ReLU",
    "SIGMOID": "Sigmoid",
    "SIGMOID_CROSS_ENTROPY_LOSS": "SigmoidCrossEntropyLoss",
    "SILENCE": "Silence",
    "SLICE": "Slice",
    "SOFTMAX": "Softmax",
    "SOFTMAX_LOSS": "SoftmaxWithLoss",
    "SPLIT": "Split",
    "TANH": "TanH",
    "THRESHOLD": "Threshold",
    "WINDOW_DATA": "WindowData",
}
"""V1's enum against today's names, as Caffe's ``UpgradeV1LayerType`` lists them."""


def upgraded(text: str) -> Upgraded:
    return upgrade(parse_net(Source("net.prototxt", text)))


def whole(net: Upgraded) -> Any:
    """The net as one message, as Caffe's own upgrade tool would write it."""
    one: Any = message("NetParameter")()
    one.CopyFrom(net.net)
    one.layer.extend(layer.message for layer in net.layers)
    return one


def places(net: Upgraded, layer: int = 0) -> list[str]:
    return [str(where) for where in net.layers[layer].params]


@pytest.mark.parametrize("age", ["v0", "v1"])
def test_old_nets_become_what_caffes_own_tool_makes_of_them(fixtures: Path, age: str) -> None:
    folder = fixtures / "caffe_said"
    expected = parse_net(read_text(folder / f"{age}.upgraded.prototxt")).message
    assert whole(upgrade(parse_net(read_text(folder / f"{age}.prototxt")))) == expected


@pytest.mark.shared
@pytest.mark.parametrize("case", ["legacy_v0_net", "legacy_v1_net"])
def test_recorded_old_nets_become_what_caffes_own_tool_makes_of_them(shared: Path, case: str) -> None:
    folder = shared / "goldens" / "bvlc" / case
    expected = parse_net(read_text(folder / "net.upgraded_by_caffe.prototxt")).message
    assert whole(upgrade(parse_net(read_text(folder / "net.prototxt")))) == expected


def test_every_v1_type_has_its_name_of_today() -> None:
    text = "\n".join(f'layers {{ name: "{old}" type: {old} }}' for old in TYPES)
    assert {layer.message.name: layer.type for layer in upgraded(text).layers} == TYPES
    known = message("V1LayerParameter").DESCRIPTOR.enum_types_by_name["LayerType"].values_by_name
    assert set(known) == set(TYPES)


def test_a_forks_v1_type_is_spelt_as_today_and_noted() -> None:
    net = upgraded('layers { name: "d" type: DENSE_IMAGE_DATA }\nlayers { name: "r" type: ROI_POOLING }')
    assert [layer.type for layer in net.layers] == ["DenseImageData", "ROIPooling"]
    assert [(str(note.where), note.message) for note in net.notes] == [
        ("net.prototxt:1:20", "layer type DENSE_IMAGE_DATA is none of BVLC Caffe's; read as a fork's 'DenseImageData'"),
        ("net.prototxt:2:20", "layer type ROI_POOLING is none of BVLC Caffe's; read as a fork's 'ROIPooling'"),
    ]


def test_a_multiplier_of_an_old_net_stands_where_its_number_stands() -> None:
    net = upgraded("layers { type: CONVOLUTION\n  blobs_lr: 1 blobs_lr: 2\n  weight_decay: 1 weight_decay: 0 }")
    assert places(net) == ["net.prototxt:2:3", "net.prototxt:2:15"]
    net = upgraded("layers { type: CONVOLUTION blobs_lr: 3\n  weight_decay: 1\n  weight_decay: 0 }")
    assert places(net) == ["net.prototxt:1:28", "net.prototxt:3:3"]
    net = upgraded('layers { layer { type: "conv"\n blobs_lr: 3 } }')
    assert places(net) == ["net.prototxt:2:2"]
    net = upgraded('layer { type: "Convolution"\n param { lr_mult: 1 }\n param { } }')
    assert places(net) == ["net.prototxt:2:2", "net.prototxt:3:2"]


def test_v1_lists_of_unequal_length_leave_the_rest_unstated() -> None:
    (layer,) = upgraded(
        'layers { type: INNER_PRODUCT param: "w" blobs_lr: 1 blobs_lr: 2 weight_decay: 5 blob_share_mode: PERMISSIVE }'
    ).layers
    weight, bias = layer.message.param
    assert (weight.name, weight.lr_mult, weight.decay_mult, weight.share_mode) == ("w", 1, 5, 1)
    assert bias.lr_mult == 2
    assert not bias.HasField("decay_mult")
    assert not bias.HasField("name")


multiplier = st.sampled_from((None, 0.0, 0.5, 1.0, 2.0, 10.0))
name = st.text('ab/_é"\\', max_size=4)


@given(st.lists(st.tuples(name, multiplier, multiplier), max_size=2), name)
def test_a_v1_layer_upgrades_to_the_layer_that_one_would_write_today(
    params: list[tuple[str, float | None, float | None]], layer: str
) -> None:
    # V1 can leave a value out at the end of its lists alone
    rates = [1.0 if lr is None else lr for _, lr, _ in params]
    decays = [1.0 if decay is None else decay for _, _, decay in params]
    quoted = '"' + layer.replace("\\", "\\\\").replace('"', '\\"') + '"'
    old = f"layers {{ name: {quoted} type: INNER_PRODUCT inner_product_param {{ num_output: 2 }} "
    old += " ".join([*(f"blobs_lr: {lr}" for lr in rates), *(f"weight_decay: {decay}" for decay in decays), "}"])
    new = f'layer {{ name: {quoted} type: "InnerProduct" inner_product_param {{ num_output: 2 }} '
    new += " ".join(f"param {{ lr_mult: {lr} decay_mult: {d} }}" for lr, d in zip(rates, decays, strict=True)) + "}"
    assert whole(upgraded(old)) == whole(upgraded(new))


def test_the_input_fields_become_a_layer_at_the_front() -> None:
    net = upgraded(
        'input: "a"\ninput: "b" input_dim: 1 input_dim: 2 input_dim: 3 input_dim: 4'
        ' input_dim: 5 input_dim: 6 input_dim: 7 input_dim: 8 layer { name: "r" type: "ReLU" }'
    )
    first = net.layers[0]
    assert (first.type, list(first.message.top), str(first.where)) == ("Input", ["a", "b"], "net.prototxt:1:1")
    shapes: Any = first.message.input_param.shape
    assert [list(shape.dim) for shape in shapes] == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert [layer.type for layer in upgraded('input: "a" input_shape { dim: 7 } layer { type: "ReLU" }').layers] == [
        "Input",
        "ReLU",
    ]
    # without sizes Caffe drops them, and so the blobs
    assert [layer.type for layer in upgraded('input: "a" layer { type: "ReLU" }').layers] == ["ReLU"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('input: "a"\ninput_dim: 1', "net.prototxt:2:1: 1 inputs need 4 input_dim"),
        ('input: "a" input: "b"\ninput_shape { dim: 1 }', "net.prototxt:2:1: 2 inputs need 2 input_shape"),
        ('\n layers { name: "x" }', "net.prototxt:2:2: a layer without a type"),
        ('layers { layer { name: "x" type: "convolution" } }', "net.prototxt:1:1: a V0 layer of type 'convolution'"),
        ('layers { layer { name: "x" } }', "net.prototxt:1:1: a V0 layer without a type"),
        (
            'layers { layer { type: "conv" } top: "c" } layers { layer { type: "padding" pad: 1 } bottom: "c" '
            'top: "p" }\nlayers { layer { name: "r" type: "relu" } bottom: "p" top: "p" }',
            "net.prototxt:2:1: a padding layer feeds the layer 'r', which Caffe refuses",
        ),
    ],
)
def test_what_caffe_cannot_upgrade_is_refused_at_its_place(text: str, message: str) -> None:
    with pytest.raises(NetError) as error:
        upgraded(text)
    assert str(error.value).startswith(message)


def test_a_v0_padding_layer_goes_into_the_convolution_after_it() -> None:
    net = upgraded(
        """
        input: "data" input_dim: 1 input_dim: 3 input_dim: 8 input_dim: 8
        layers { layer { name: "pad1" type: "padding" pad: 2 } bottom: "data" top: "padded" }
        layers { layer { type: "conv" num_output: 4 kernelsize: 5 pad: 9 stride: 2 } bottom: "padded" top: "c" }
        layers { layer { name: "pool1" type: "pool" kernelsize: 3 pool: AVE } bottom: "c" top: "p" }
        """
    )
    assert [layer.type for layer in net.layers] == ["Input", "Convolution", "Pooling"]
    conv, pool = net.layers[1].message, net.layers[2].message
    assert list(conv.bottom) == ["data"]
    settings = conv.convolution_param
    assert (list(settings.pad), list(settings.kernel_size), list(settings.stride)) == ([2], [5], [2])
    assert (pool.pooling_param.pool, pool.pooling_param.kernel_size) == (1, 3)


def test_a_v0_setting_that_means_nothing_to_its_layer_is_dropped_and_noted() -> None:
    net = upgraded('layers { layer { name: "r" type: "relu"\n num_output: 3 cropsize: 7 } }')
    (layer,) = net.layers
    assert layer.message.transform_param.crop_size == 7
    assert [(str(note.where), note.message) for note in net.notes] == [
        ("net.prototxt:2:2", "num_output means nothing to a 'relu' layer; Caffe drops it")
    ]


def test_old_transformations_move_out_of_the_data_parameters() -> None:
    net = upgraded(
        'layers { type: DATA data_param { crop_size: 9 mirror: true scale: 0.5 mean_file: "m" } }'
        'layers { name: "i" type: IMAGE_DATA image_data_param { crop_size: 32 } } layers { name: "r" type: RELU }'
    )
    data, image, relu = (layer.message for layer in net.layers)
    moved = data.transform_param
    assert (moved.crop_size, moved.mirror, moved.scale, moved.mean_file) == (9, True, 0.5, "m")
    assert not data.data_param.HasField("crop_size")
    assert image.transform_param.crop_size == 32
    assert not relu.HasField("transform_param")


@pytest.mark.parametrize("blocks", range(5))
def test_three_param_blocks_of_a_batch_norm_freeze_its_statistics(blocks: int) -> None:
    (layer,) = upgraded('layer { type: "BatchNorm" ' + "param { lr_mult: 1 } " * blocks + "}").layers
    stated = [(spec.lr_mult, spec.decay_mult) for spec in layer.message.param]
    assert stated == ([(0, 0)] * 3 if blocks == 3 else [(1, 1)] * blocks)


def test_an_upgrade_leaves_the_parsed_net_as_it_was() -> None:
    parsed = parse_net(Source("n", 'layer { type: "BatchNorm" ' + "param { lr_mult: 1 } " * 3 + "}"))
    before = parsed.message.SerializeToString()
    upgrade(parsed)
    assert parsed.message.SerializeToString() == before


def test_layers_of_today_beside_old_ones_are_ignored_with_a_warning() -> None:
    net = upgraded('layers { name: "old" type: RELU }\nlayer { name: "new" type: "ReLU" }')
    assert [layer.message.name for layer in net.layers] == ["old"]
    assert [str(note.where) for note in net.notes] == ["net.prototxt:2:1"]


def test_the_nets_own_fields_stay_as_caffe_keeps_them() -> None:
    fields = 'name: "n" force_backward: true state { level: 2 } '
    net = upgraded(fields + "layers { type: RELU }").net
    assert (net.name, net.force_backward, net.state.level) == ("n", True, 2)
    net = upgraded(fields + 'layers { layer { type: "relu" } }').net
    assert (net.name, net.force_backward, net.state.level) == ("n", True, 0)
