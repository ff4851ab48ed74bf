"""Which nets are SegNetBasic: the fixtures, however they are spelled, and none that differs in what it computes."""

from __future__ import annotations

import pytest

from caffe2torch.models.recognize import segnet_basic_for
from caffe2torch.reading import read_recipe

CONV = "num_output: 64  kernel_size: 7  pad: 3"
INPUT = 'input: "data"\ninput_shape { dim: 4  dim: 4  dim: 240  dim: 320 }'


@pytest.fixture
def net(fixtures, tmp_path):
    """The model recognized in the fixture's net after replacing some of its text, once or everywhere."""

    def recognized(*changes, everywhere=False):
        text = (fixtures / "segnet_basic" / "train.prototxt").read_text()
        for old, new in changes:
            assert old in text
            text = text.replace(old, new, -1 if everywhere else 1)
        path = tmp_path / "net.prototxt"
        path.write_text(text)
        return segnet_basic_for(read_recipe(path))

    return recognized


def sizes(model):
    return (model.in_channels, model.num_classes, model.width)


def test_the_fixtures_are_segnet_basic(fixtures):
    assert sizes(segnet_basic_for(read_recipe(fixtures / "segnet_basic" / "train.prototxt"))) == (4, 3, 64)
    assert sizes(segnet_basic_for(read_recipe(fixtures / "segnet_basic_camvid" / "train.prototxt"))) == (3, 11, 64)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (CONV, "num_output: 64  kernel_h: 7  kernel_w: 7  pad_h: 3  pad_w: 3"),
        (CONV, "num_output: 64  kernel_size: 7  kernel_size: 7  pad: 3  stride: 1  dilation: 1  group: 1"),
        ("kernel_size: 2  stride: 2", "kernel_h: 2  kernel_w: 2  stride_h: 2  stride_w: 2"),
        ("lr_mult: 1", "lr_mult: 0.5"),
        ('"relu1"', '"another name"'),
    ],
)
def test_spelling_and_multipliers_do_not_matter(net, old, new):
    assert sizes(net((old, new))) == (4, 3, 64)


def test_its_sizes_are_read_from_the_net(net):
    changes = (("num_output: 64", "num_output: 8"), ("num_output: 3 ", "num_output: 5 "))
    assert sizes(net(*changes, everywhere=True)) == (4, 5, 8)


def test_channels_that_no_file_states_stand_as_one(net):
    source = 'layer { name: "data" type: "HDF5Data" top: "data" hdf5_data_param { source: "list.txt" batch_size: 4 } }'
    assert sizes(net((INPUT, source))) == (1, 3, 64)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('name: "conv2"', 'name: "conv_2"'),
        (CONV, "num_output: 64  kernel_size: 5  pad: 2"),
        (CONV, "num_output: 64  kernel_size: 7  pad: 2"),
        (CONV, "num_output: 64  kernel_size: 7  pad_h: 3"),
        (CONV, CONV + "  stride: 2"),
        (
            f"  param {{ lr_mult: 2  decay_mult: 0 }}\n  convolution_param {{\n    {CONV}",
            f"  convolution_param {{\n    {CONV}  bias_term: false",
        ),
        (CONV, "num_output: 32  kernel_size: 7  pad: 3"),
        ("pool: MAX", "pool: AVE"),
        ("local_size: 5", "local_size: 3"),
        ("beta: 0.75", "beta: 0.5"),
        ('bottom: "pool4_mask"', 'bottom: "pool3_mask"'),
        ('type: "ReLU"', 'type: "TanH"'),
        ('type: "ReLU"  bottom: "conv1"  top: "conv1"', 'type: "ReLU"  bottom: "conv1"  top: "elsewhere"'),
        (
            'layer {\n  name: "upsample4"',
            'layer { name: "drop" type: "Dropout" bottom: "pool4" top: "pool4" }\nlayer {\n  name: "upsample4"',
        ),
        (
            "# ---- Scores",
            'layer { name: "more" type: "ReLU" bottom: "conv_decode1" top: "conv_decode1" }\n# ---- Scores',
        ),
        (
            'layer {\n  name: "loss"',
            'layer { name: "ip" type: "InnerProduct" bottom: "conv_classifier" top: "ip" '
            'inner_product_param { num_output: 2 } }\nlayer {\n  name: "loss"',
        ),
    ],
)
def test_what_computes_something_else_is_none(net, old, new):
    assert net((old, new)) is None


@pytest.mark.shared
def test_bayesian_segnet_basic_and_segnet_are_none(shared):
    for name in ("segnet-basic-bayesian", "segnet"):
        assert segnet_basic_for(read_recipe(shared / "corpus" / "pairs" / name / "net.prototxt")) is None
