"""The table of layers: blobs and tops as real Caffe made them, and laws of the arithmetic behind."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caffe2torch.errors import NetError
from caffe2torch.net.build import read_layers, with_inputs
from caffe2torch.net.bvlc_layers import BVLC_LAYERS
from caffe2torch.net.fork_layers import FORK_LAYERS
from caffe2torch.net.forks import Dialect
from caffe2torch.net.layer_rules import LayerType, Node, no_blobs
from caffe2torch.net.layer_types import LAYER_TYPES
from caffe2torch.net.loss_settings import is_loss, loss_weights
from caffe2torch.net.shape_arithmetic import MisfitError, agree, conv_length, deconv_length, pool_length, product
from caffe2torch.prototxt.schema import parse_net
from caffe2torch.recipe import Layer, LearnableBlob, NetRecipe, Shape, Source, SourceLocation

LR0, BOTH0 = "param { lr_mult: 0 } ", "param { lr_mult: 0 decay_mult: 0 } "
CONV = "convolution_param { num_output: 8 kernel_size: 3"
CONV8 = "convolution_param { num_output: 8 "
RECURRENT = "recurrent_param { num_output: 5"
PROBES = {
    "Convolution g2 k3x5 nobias": ("Convolution", CONV8 + "group: 2 kernel_h: 3 kernel_w: 5 bias_term: false }"),
    "Convolution 3 spatial axes": (
        "Convolution",
        CONV8 + "kernel_size: 3 kernel_size: 3 kernel_size: 2 }",
        "2 6 5 5 5",
    ),
    "Deconvolution g2": ("Deconvolution", CONV8 + "group: 2 kernel_size: 4 }"),
    "InnerProduct": ("InnerProduct", "inner_product_param { num_output: 5 }"),
    "InnerProduct transpose": ("InnerProduct", "inner_product_param { num_output: 5 transpose: true }"),
    "InnerProduct axis 2": ("InnerProduct", "inner_product_param { num_output: 5 axis: 2 }"),
    "Embed": ("Embed", "embed_param { num_output: 5 input_dim: 11 }"),
    "Bias": ("Bias", ""),
    "Bias axis1 num_axes -1": ("Bias", "bias_param { num_axes: -1 }"),
    "Bias 2 bottoms": ("Bias", "", "2 6 4 3", "6"),
    "Scale": ("Scale", ""),
    "Scale bias_term": ("Scale", "scale_param { bias_term: true }"),
    "Scale axis0 num_axes2 bias": ("Scale", "scale_param { axis: 0 num_axes: 2 bias_term: true }"),
    "Scale num_axes0": ("Scale", "scale_param { num_axes: 0 }"),
    "Scale num_axes-1": ("Scale", "scale_param { num_axes: -1 }"),
    "Scale 2 bottoms": ("Scale", "", "2 6 4 3", "6"),
    "Scale 2 bottoms bias_term": ("Scale", "scale_param { bias_term: true }", "2 6 4 3", "6"),
    "PReLU": ("PReLU", ""),
    "PReLU channel_shared": ("PReLU", "prelu_param { channel_shared: true }"),
    "BatchNorm no param": ("BatchNorm", ""),
    "BatchNorm 3x lr 0": ("BatchNorm", LR0 * 3),
    "BatchNorm 3x lr 0 decay 0": ("BatchNorm", BOTH0 * 3),
    "BatchNorm 1x lr 0 decay 0": ("BatchNorm", BOTH0),
    "BatchNorm lr 1": ("BatchNorm", "param { lr_mult: 1 } " * 3),
    "BatchNorm decay only": ("BatchNorm", "param { decay_mult: 0 } " * 3),
    "BatchNorm 4 param blocks": ("BatchNorm", LR0 * 4),
    "BatchNorm 1 axis": ("BatchNorm", "", "7"),
    "LSTM": ("LSTM", RECURRENT + "}", "4 2 6", "4 2"),
    "LSTM static": ("LSTM", RECURRENT + "}", "4 2 6", "4 2", "2 7"),
    "LSTM static, params 2": (
        "LSTM",
        RECURRENT + "} param { lr_mult: 3 } param { lr_mult: 4 }",
        "4 2 6",
        "4 2",
        "2 7",
    ),
    "LSTM static expose_hidden": (
        "LSTM",
        RECURRENT + " expose_hidden: true }",
        "4 2 6",
        "4 2",
        "2 7",
        "1 2 5",
        "1 2 5",
    ),
    "RNN": ("RNN", RECURRENT + "}", "4 2 6", "4 2"),
    "RNN static": ("RNN", RECURRENT + "}", "4 2 6", "4 2", "2 7"),
    "Parameter": ("Parameter", "parameter_param { shape { dim: 3 dim: 4 } }", None),
    "Conv 3 param blocks (too many)": ("Convolution", CONV + " } " + "param { } " * 3),
    "Conv 2 params, nobias (too many)": ("Convolution", CONV + " bias_term: false } param { } param { }"),
    "Conv 1 param block": ("Convolution", CONV + " } param { lr_mult: 3 decay_mult: 0 }"),
    "Conv 1 named twice inside layer": ("Convolution", CONV + ' } param { name: "p" } param { name: "p" }', "2 8 4 3"),
    "ReLU param block (too many)": ("ReLU", "param { lr_mult: 1 }"),
}
"""Every probe as a layer: its type, its settings and params, and its bottoms' sizes (one of 2x6x4x3 if absent)."""


def net_of(kind: str, settings: str, *bottoms: str | None) -> str:
    sizes = [size for size in (bottoms or ("2 6 4 3",)) if size is not None]
    text = ""
    for i, size in enumerate(sizes):
        dims = " ".join(f"dim: {one}" for one in size.split())
        text += f'layer {{ name: "in{i}" type: "Input" top: "in{i}" input_param {{ shape {{ {dims} }} }} }}\n'
    names = " ".join(f'bottom: "in{i}"' for i in range(len(sizes)))
    return text + f'layer {{ name: "l" type: "{kind}" {names} top: "out" {settings} }}'


def read(text: str) -> tuple[tuple[Layer, ...], tuple[LearnableBlob, ...]]:
    _, layers, blobs, _ = read_layers(parse_net(Source("net.prototxt", text)))
    return layers, blobs


def spell(shape: Shape | None) -> str:
    assert shape is not None
    return "x".join(map(str, shape)) or "()"


def probes(folder: Path) -> dict[str, str]:
    lines = (folder / "probes.tsv").read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t") for line in lines if "\t" in line)


@pytest.mark.parametrize("probe", PROBES)
def test_a_layer_has_the_blobs_that_caffe_gave_it(fixtures: Path, probe: str) -> None:
    said = probes(fixtures / "caffe_said")[probe]
    text = net_of(*PROBES[probe])
    if said.startswith("REFUSED"):
        with pytest.raises(NetError):
            read(text)
        return
    _, blobs = read(text)
    shapes = " | ".join(spell(blob.shape) for blob in blobs) or "none"
    assert f"{shapes} ; lr {[b.lr_mult for b in blobs]} decay {[b.decay_mult for b in blobs]}" == said


def test_every_probe_is_tried(fixtures: Path) -> None:
    assert probes(fixtures / "caffe_said").keys() == PROBES.keys()


@pytest.mark.shared
def test_the_probes_are_those_that_were_recorded(fixtures: Path, shared: Path) -> None:
    recorded = (shared / "tables" / "PROBES.tsv").read_text(encoding="utf-8")
    assert (fixtures / "caffe_said" / "probes.tsv").read_text(encoding="utf-8") == recorded


def top_of(kind: str, settings: str, *bottoms: str | None, top: int = 0) -> Shape | None:
    layers, _ = read(net_of(kind, settings, *bottoms))
    return layers[-1].top_shapes[top]


@pytest.mark.parametrize(
    ("kind", "settings", "bottoms", "expected"),
    [
        (
            "Convolution",
            "convolution_param { num_output: 8 kernel_size: 3 pad: 1 stride: 2 }",
            ["2 6 9 8"],
            (2, 8, 5, 4),
        ),
        ("Convolution", "convolution_param { num_output: 8 kernel_size: 3 dilation: 2 }", ["2 6 9 9"], (2, 8, 5, 5)),
        (
            "Convolution",
            "convolution_param { num_output: 8 kernel_h: 3 kernel_w: 1 pad_h: 1 stride_h: 2 stride_w: 1 }",
            ["2 6 9 9"],
            (2, 8, 5, 9),
        ),
        (
            "Convolution",
            "convolution_param { num_output: 8 axis: 2 kernel_size: 3 }",
            ["2 6 4 9 9"],
            (2, 6, 8, 7, 7),
        ),
        (
            "Deconvolution",
            "convolution_param { num_output: 8 kernel_size: 4 stride: 2 pad: 1 }",
            ["2 6 5 7"],
            (2, 8, 10, 14),
        ),
        ("Pooling", "pooling_param { kernel_size: 2 stride: 2 }", ["2 6 5 7"], (2, 6, 3, 4)),
        ("Pooling", "pooling_param { kernel_size: 2 stride: 2 round_mode: FLOOR }", ["2 6 5 7"], (2, 6, 2, 3)),
        ("Pooling", "pooling_param { kernel_size: 2 stride: 2 pad: 1 }", ["2 6 5 7"], (2, 6, 3, 4)),
        ("Pooling", "pooling_param { kernel_size: 1 stride: 2 pad_h: 0 }", ["2 6 4 4"], (2, 6, 3, 3)),
        ("Pooling", "pooling_param { global_pooling: true }", ["2 6 5 7"], (2, 6, 1, 1)),
        ("LRN", "", ["2 6 5 7"], (2, 6, 5, 7)),
        ("Concat", "", ["2 6 5 7", "2 3 5 7"], (2, 9, 5, 7)),
        ("Concat", "concat_param { axis: -1 }", ["2 6", "2 3"], (2, 9)),
        ("Concat", "concat_param { concat_dim: 0 }", ["2 6", "3 6"], (5, 6)),
        ("Eltwise", "", ["2 6 5", "2 6 5"], (2, 6, 5)),
        ("Flatten", "", ["2 6 5 7"], (2, 210)),
        ("Flatten", "flatten_param { axis: 1 end_axis: 2 }", ["2 6 5 7"], (2, 30, 7)),
        ("Reshape", "reshape_param { shape { dim: 0 dim: -1 dim: 7 } }", ["2 6 5 7"], (2, 30, 7)),
        ("Reshape", "reshape_param { shape { dim: 3 dim: 2 } axis: 1 num_axes: 1 }", ["2 6 5"], (2, 3, 2, 5)),
        ("Reshape", "reshape_param { shape { dim: 1 } axis: -1 num_axes: 0 }", ["2 6 5"], (2, 6, 5, 1)),
        ("Crop", "", ["2 6 9 9", "2 3 5 7"], (2, 6, 5, 7)),
        ("Crop", "crop_param { axis: 3 }", ["2 6 9 9", "2 3 5 7"], (2, 6, 9, 7)),
        ("Tile", "tile_param { tiles: 3 }", ["2 6 5"], (2, 18, 5)),
        ("Reduction", "reduction_param { axis: 1 }", ["2 6 5"], (2,)),
        ("Reduction", "", ["2 6 5"], ()),
        ("ArgMax", "argmax_param { axis: 1 }", ["2 6 5"], (2, 1, 5)),
        ("ArgMax", "argmax_param { out_max_val: true top_k: 3 }", ["2 6 5 5"], (2, 2, 3, 1)),
        ("ArgMax", "", ["2 6"], (2, 1, 1)),
        ("InnerProduct", "inner_product_param { num_output: 4 axis: 2 }", ["2 6 5 7"], (2, 6, 4)),
        ("Embed", "embed_param { num_output: 4 input_dim: 9 }", ["3 2"], (3, 2, 4)),
        ("LSTM", RECURRENT + "}", ["4 2 6", "4 2"], (4, 2, 5)),
        ("RNN", RECURRENT + "}", ["4 2 6", "4 2"], (4, 2, 5)),
        ("SPP", "spp_param { pyramid_height: 3 }", ["2 6 9 9"], (2, 126)),
        ("SPP", "spp_param { pyramid_height: 1 }", ["2 6 9 9"], (2, 6, 1, 1)),
        ("Im2col", "convolution_param { kernel_size: 3 pad: 1 }", ["2 6 9 9"], (2, 54, 9, 9)),
        ("Filter", "", ["2 6 5", "2"], (None, 6, 5)),
        ("BatchReindex", "", ["2 6 5", "9"], (9, 6, 5)),
        ("Accuracy", "", ["2 6", "2"], ()),
        ("SoftmaxWithLoss", "", ["2 6", "2"], ()),
        ("Data", "data_param { batch_size: 4 } transform_param { crop_size: 9 }", [None], (4, None, 9, 9)),
        (
            "Data",
            "data_param { batch_size: 4 } transform_param { mean_value: 1 mean_value: 2 }",
            [None],
            (4, 2, None, None),
        ),
        ("Data", "transform_param { force_gray: true }", [None], (None, 1, None, None)),
        ("ImageData", "image_data_param { new_height: 8 new_width: 9 }", [None], (1, 3, 8, 9)),
        ("ImageData", "image_data_param { is_color: false batch_size: 7 }", [None], (7, 1, None, None)),
        ("WindowData", "window_data_param { batch_size: 7 } transform_param { crop_size: 9 }", [None], (7, None, 9, 9)),
        ("HDF5Data", "hdf5_data_param { batch_size: 7 }", [None], None),
        ("MemoryData", "memory_data_param { batch_size: 7 channels: 1 height: 8 width: 9 }", [None], (7, 1, 8, 9)),
        ("DummyData", "dummy_data_param { shape { dim: 3 dim: 4 } }", [None], (3, 4)),
        ("DummyData", "dummy_data_param { num: 1 channels: 2 height: 3 width: 4 }", [None], (1, 2, 3, 4)),
        ("Input", "", [None], None),
    ],
)
def test_a_bvlc_layer_shapes_its_top_as_its_reshape_does(
    kind: str, settings: str, bottoms: list[str | None], expected: Shape | None
) -> None:
    assert top_of(kind, settings, *bottoms) == expected


@pytest.mark.parametrize(
    ("kind", "settings", "bottoms", "expected"),
    [
        ("Upsample", "upsample_param { scale: 2 }", ["2 6 5 7", "2 6 5 7"], (2, 6, 10, 14)),
        ("Upsample", "upsample_param { scale: 2 pad_out_h: true }", ["2 6 5 7", "2 6 5 7"], (2, 6, 9, 14)),
        ("Upsample", "upsample_param { upsample_h: 9 upsample_w: 8 }", ["2 6 5 7", "2 6 5 7"], (2, 6, 9, 8)),
        ("Interp", "interp_param { shrink_factor: 4 zoom_factor: 3 }", ["2 6 33 33"], (2, 6, 25, 25)),
        ("Interp", "interp_param { height: 7 width: 9 }", ["2 6 33 33"], (2, 6, 7, 9)),
        ("Interp", "interp_param { shrink_factor: 8 pad_beg: -1 pad_end: 0 }", ["2 1 306 306"], (2, 1, 39, 39)),
        ("Permute", "permute_param { order: 0 order: 2 order: 3 order: 1 }", ["2 6 5 7"], (2, 5, 7, 6)),
        ("Permute", "permute_param { order: 2 }", ["2 6 5 7"], (5, 2, 6, 7)),
        (
            "PriorBox",
            "prior_box_param { min_size: 30 max_size: 60 aspect_ratio: 2 aspect_ratio: 3 }",
            ["2 6 5 7", "2 3 300 300"],
            (1, 2, 5 * 7 * 6 * 4),
        ),
        ("ROIPooling", "roi_pooling_param { pooled_h: 6 pooled_w: 7 }", ["2 6 5 7", "9 5"], (9, 6, 6, 7)),
        ("PSROIPooling", "psroi_pooling_param { output_dim: 21 group_size: 7 }", ["2 6 5 7", "9 5"], (9, 21, 7, 7)),
        ("Axpy", "", ["2 6 1 1", "2 6 5 7", "2 6 5 7"], (2, 6, 5, 7)),
        ("Reorg", "reorg_param { stride: 2 }", ["2 6 4 8"], (2, 24, 2, 4)),
        ("Normalize", "norm_param { across_spatial: false }", ["2 6 5 7"], (2, 6, 5, 7)),
        ("DepthwiseConvolution", CONV + " group: 2 }", ["2 6 5 7"], (2, 8, 3, 5)),
        ("BN", "", ["2 6 5 7"], (2, 6, 5, 7)),
        (
            "DenseBlock",
            "denseblock_param { numTransition: 3 initChannel: 6 growthRate: 4 }",
            ["2 6 5 7"],
            (2, 18, 5, 7),
        ),
        ("MarginInnerProduct", "margin_inner_product_param { num_output: 9 }", ["2 6", "2"], (2, 9)),
        ("SegAccuracy", "", ["2 6 5 7", "2 1 5 7"], (1, 1, 1, 3)),
        ("ContinuationIndicator", "continuation_indicator_param { time_step: 8 batch_size: 2 }", [], (8, 2)),
        ("Pooling", "pooling_param { kernel_size: [3, 2, 2] stride: [2, 2, 2] }", ["2 6 9 4 4"], (2, 6, 4, 2, 2)),
        ("Convolution", CONV + " hole: 2 }", ["2 6 9 9"], (2, 8, 5, 5)),
        (
            "VideoData",
            "video_data_param { batch_size: 4 new_length: 5 num_segments: 3 modality: FLOW } "
            "transform_param { crop_size: 9 }",
            [None],
            (4, 30, 9, 9),
        ),
        (
            "AnnotatedData",
            "data_param { batch_size: 4 } transform_param { force_color: true resize_param { height: 8 width: 9 } }",
            [None],
            (4, 3, 8, 9),
        ),
        ("SomethingElse", "", ["2 6 5 7"], None),
        ("NovelLoss", "", ["2 6 5 7"], ()),
    ],
)
def test_a_forks_layer_shapes_its_top_as_the_fork_does(
    kind: str, settings: str, bottoms: list[str | None], expected: Shape | None
) -> None:
    assert top_of(kind, settings, *bottoms) == expected


def test_slices_part_an_axis() -> None:
    def sizes(settings: str) -> list[Shape | None]:
        text = net_of("Slice", settings, "2 9 5").replace('top: "out"', 'top: "a" top: "b" top: "c"')
        return list(read(text)[0][-1].top_shapes)

    assert sizes("slice_param { slice_point: 2 slice_point: 3 }") == [(2, 2, 5), (2, 1, 5), (2, 6, 5)]
    assert sizes("") == [(2, 3, 5)] * 3


def test_a_second_top_of_pooling_is_its_mask() -> None:
    text = net_of("Pooling", "pooling_param { kernel_size: 2 stride: 2 }").replace('"out"', '"out" top: "mask"')
    assert read(text)[0][-1].top_shapes == ((2, 6, 2, 2), (2, 6, 2, 2))


@pytest.mark.parametrize(
    ("settings", "roles", "shapes", "multipliers"),
    [
        ("", ["scale", "shift"], ["1x6x1x1"] * 2, [(1, 1)] * 2),
        ("bn_param { scale_filler { value: 1 } }", ["scale", "shift"], ["1x6x1x1"] * 2, [(1, 1)] * 2),
        (
            "param { decay_mult: 0 } bn_param { slope_filler { value: 1 } }",
            ["scale", "shift", "mean", "variance"],
            ["1x6"] * 4,
            [(1, 0), (1, 1), (0, 0), (0, 0)],
        ),
        (
            "param { lr_mult: 2 } bn_param { frozen: true }",
            ["scale", "shift", "mean", "variance"],
            ["1x6"] * 4,
            [(0, 0)] * 4,
        ),
        (
            "bn_param { moving_average: true }",
            ["scale", "shift", "mean", "variance"],
            ["1x6x1x1"] * 4,
            [(1, 1)] * 4,
        ),
        (
            "param { } param { } param { lr_mult: 0 } param { lr_mult: 0 decay_mult: 0 }",
            ["scale", "shift", "mean", "variance"],
            ["1x6"] * 4,
            [(1, 1), (1, 1), (0, 1), (0, 0)],
        ),
    ],
)
def test_a_bn_is_read_as_the_fork_that_its_fields_belong_to(
    settings: str, roles: list[str], shapes: list[str], multipliers: list[tuple[float, float]]
) -> None:
    _, blobs = read(net_of("BN", settings))
    assert [blob.role for blob in blobs] == roles
    assert [spell(blob.shape) for blob in blobs] == shapes
    assert [(blob.lr_mult, blob.decay_mult) for blob in blobs] == multipliers


@pytest.mark.parametrize(
    ("kind", "settings", "bottoms", "shapes"),
    [
        ("Normalize", "norm_param { channel_shared: false }", [], ["6"]),
        ("Normalize", "norm_param { }", [], ["()"]),
        ("Normalize", 'normalize_param { normalize_type: "L2" }', [], []),
        ("Normalize", "", [], []),
        ("DepthwiseConvolution", CONV + " group: 2 bias_term: false }", [], ["8x3x3x3"]),
        ("ConvolutionDepthwise", CONV + " }", [], ["8x1x3x3", "8"]),
        ("CenterLoss", "center_loss_param { num_output: 10 }", ["2 6", "2"], ["10x6"]),
        ("MarginInnerProduct", "margin_inner_product_param { num_output: 9 }", ["2 6", "2"], ["9x6"]),
        ("InnerDistance", "inner_distance_param { num_output: 9 }", ["2 6"], ["9x6"]),
        ("InnerDistance", "", ["2 6", "9 6"], []),
        ("Lstm", "lstm_param { num_output: 5 }", ["8 6"], ["20x6", "20x5", "20"]),
        ("LSTM", "lstm_param { num_output: 5 }", ["8 6"], ["20x6", "20x5", "20"]),
        ("MultiStageMeanfield", "", [], ["1x1x6x6"] * 3),
        ("BatchNorm", "batch_norm_param { scale_bias: true }", [], ["6", "6", "1", "6", "6"]),
        ("BatchNorm", "param { lr_mult: 1 } batch_norm_param { scale_bias: false }", [], ["6", "6", "1"]),
        ("BatchNorm", "batch_norm_param { use_weight_bias: true }", [], ["6", "6", "1"]),
        (
            "DenseBlock",
            "denseblock_param { numTransition: 2 initChannel: 6 growthRate: 4 }",
            [],
            ["4x6x3x3", "4x10x3x3", *["1x6x1x1", "1x10x1x1"] * 4, "1"],
        ),
        (
            "DenseBlock",
            "denseblock_param { numTransition: 1 initChannel: 6 growthRate: 4 use_BC: true }",
            [],
            ["4x16x3x3", *["1x6x1x1"] * 4, "16x6x1x1", *["1x16x1x1"] * 4, "1"],
        ),
    ],
)
def test_a_forks_layer_has_the_forks_blobs(kind: str, settings: str, bottoms: list[str], shapes: list[str]) -> None:
    _, blobs = read(net_of(kind, settings, *bottoms))
    assert [spell(blob.shape) for blob in blobs] == shapes


def test_nvidias_batch_norm_overrides_its_param_blocks() -> None:
    _, blobs = read(net_of("BatchNorm", "param { lr_mult: 7 } batch_norm_param { scale_bias: true }"))
    assert [(blob.role, blob.lr_mult, blob.decay_mult) for blob in blobs] == [
        ("mean", 0, 0),
        ("variance", 0, 0),
        ("factor", 0, 0),
        ("scale", 1, 1),
        ("shift", 1, 1),
    ]


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        ("Convolution", CONV8 + "}", "kernel_size is missing"),
        ("Convolution", CONV + " kernel_h: 3 }", "kernel_size and kernel_h/kernel_w are both given"),
        ("Convolution", CONV + " group: 4 }", "6 input channels do not divide into 4 groups"),
        ("Convolution", CONV8 + "kernel_size: 0 }", "kernel_size must be at least 1"),
        ("Convolution", CONV8 + "kernel_size: [3, 3, 3] }", "kernel_size is given 3 times for 2 spatial axes"),
        ("InnerProduct", "inner_product_param { num_output: 0 }", "num_output must be at least 1"),
        (
            "InnerProduct",
            "inner_product_param { num_output: 3 axis: 4 }",
            "axis 4 is out of range for a blob of 4 axes",
        ),
        ("Scale", "scale_param { axis: 3 num_axes: 2 }", "axis 3 and the 1 after it do not fit a bottom of 4 axes"),
        ("DenseBlock", "denseblock_param { numTransition: 1 initChannel: x growthRate: 1 }", "initChannel should be"),
        ("DenseBlock", "param { }", "DenseBlock refuses param blocks"),
    ],
)
def test_settings_that_fit_no_blob_are_refused_at_the_layer(kind: str, settings: str, expected: str) -> None:
    with pytest.raises(NetError) as error:
        read(net_of(kind, settings))
    assert error.value.message.startswith(f"layer 'l' ({kind}): {expected}")
    assert str(error.value.where) == "net.prototxt:2:1"


@pytest.mark.parametrize("kind", sorted(kind for kind, row in BVLC_LAYERS.items() if row.blobs is no_blobs))
def test_no_bvlc_layer_without_blobs_takes_a_param_block(kind: str) -> None:
    with pytest.raises(NetError, match="too many params"):
        read(net_of(kind, "param { lr_mult: 1 }"))


def blobless(row: LayerType) -> bool:
    """Whether a type has no blobs whatever its settings: its rule says so of a layer without any."""
    assert row.blobs is not None
    try:
        return row.blobs(Node("l", "", {}, (), (), (), 0, Dialect())) == ()
    except MisfitError:
        return False


@pytest.mark.parametrize(
    ("kind", "loss"),
    [
        *(("SoftmaxWithLoss", True), ("HingeLoss", True), ("SoftmaxWithLossOHEM", True), ("EuclideanLossWithTV", True)),
        *(("Yolov3", True), ("Softmax", False), ("Accuracy", False), ("LabelsequenceAccuracy", False)),
    ],
)
def test_a_loss_is_one_wherever_its_name_says_so(kind: str, loss: bool) -> None:
    layer = Layer("l", kind, ("a",), ("b",), {}, ((),), (), SourceLocation("net", 1, 1))
    assert is_loss(layer) is loss
    assert loss_weights(layer) == (float(loss),)


def test_a_type_has_one_row() -> None:
    assert not BVLC_LAYERS.keys() & FORK_LAYERS.keys()


def test_every_known_layer_has_a_rule_for_its_tops() -> None:
    without = {"HDF5Output", "LSTMUnit", "Silence"}  # no tops, or only inside Caffe's own LSTM
    assert {kind for kind, row in BVLC_LAYERS.items() if row.tops is None} == without
    learned = {kind for kind, row in LAYER_TYPES.items() if row.blobs is not None and not blobless(row)}
    assert {kind for kind in learned if LAYER_TYPES[kind].tops is None and "Loss" not in kind} == set()


@pytest.mark.parametrize(
    ("kind", "right"),
    [
        ("INNER_PRODUCT", "InnerProduct"),
        ("innerproduct", "InnerProduct"),
        ("convolution", "Convolution"),
        ("Batchnorm", "BatchNorm"),
        ("SOFTMAX_LOSS", "SoftmaxWithLoss"),
        ("Prelu", "PReLU"),
    ],
)
def test_a_misspelt_type_is_refused_with_the_right_one(kind: str, right: str) -> None:
    with pytest.raises(NetError) as error:
        read(net_of(kind, "inner_product_param { num_output: 5 }"))
    assert error.value.message == f"unknown layer type {kind!r}"
    assert error.value.hint == f'write type: "{right}"; Caffe refuses any other spelling'
    assert str(error.value.where) == "net.prototxt:2:19"


@pytest.mark.parametrize("kind", ["Bn", "SoftmaxLoss", "Conv", "RELU6", "FancyConvolution"])
def test_a_forks_own_type_is_no_misspelling(kind: str) -> None:
    assert read(net_of(kind, ""))[0][-1].type == kind


@pytest.mark.parametrize(
    ("kind", "settings", "weight", "top"),
    [
        (
            "Convolution3D",
            "kernel_size: 3 kernel_depth: 2 pad: 1 temporal_pad: 1 stride: 2 temporal_stride: 1",
            (8, 3, 2, 3, 3),
            (2, 8, 17, 15, 15),
        ),
        ("Convolution3D", "kernel_size: 3 kernel_depth: 3", (8, 3, 3, 3, 3), (2, 8, 14, 27, 27)),
        (
            "NdConvolution",
            "kernel_shape { dim: 3 dim: 7 dim: 7 } stride_shape { dim: 1 dim: 2 dim: 2 } "
            "pad_shape { dim: 1 dim: 3 dim: 3 }",
            (8, 3, 3, 7, 7),
            (2, 8, 16, 15, 15),
        ),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_a_3d_convolution_has_its_weight_and_bias(
    kind: str, settings: str, weight: Shape, top: Shape, bias: bool
) -> None:
    term = "" if bias else "bias_term: false"
    layers, blobs = read(net_of(kind, f"convolution_param {{ num_output: 8 {settings} {term} }}", "2 3 16 29 29"))
    assert [blob.shape for blob in blobs] == [weight, *([(8,)] if bias else [])]
    assert layers[-1].top_shapes == (top,)


def test_a_net_of_c3d_is_read() -> None:
    layers, blobs = read(
        """layers { name: "data" type: VIDEO_DATA top: "data" top: "label"
                 image_data_param { source: "x" batch_size: 30 new_length: 16 crop_size: 112 } }
        layers { name: "conv1a" type: CONVOLUTION3D bottom: "data" top: "conv1a" blobs_lr: 1 blobs_lr: 2
                 convolution_param { num_output: 64 kernel_size: 3 kernel_depth: 3 pad: 1 temporal_pad: 1 } }
        layers { name: "pool1" type: POOLING3D bottom: "conv1a" top: "pool1"
                 pooling_param { pool: MAX kernel_size: 2 kernel_depth: 1 stride: 2 temporal_stride: 1 } }
        layers { name: "fc" type: INNER_PRODUCT bottom: "pool1" top: "fc" inner_product_param { num_output: 5 } }"""
    )
    assert [layer.type for layer in layers] == ["VideoData", "Convolution3D", "Pooling3D", "InnerProduct"]
    assert [blob.shape for blob in blobs] == [(64, 3, 3, 3, 3), (64,), (5, 64 * 16 * 56 * 56), (5,)]


TOO_LARGE = {
    "num_output over 192 inputs": net_of("InnerProduct", "inner_product_param { num_output: 2000000000 }", "2 192"),
    "an embedding": net_of("Embed", "embed_param { num_output: 4000000000 input_dim: 4000000000 }", "2 2"),
    "concatenations": "\n".join(
        ['layer { name: "in" type: "Input" top: "b0" input_param { shape { dim: 1 dim: 3 } } }']
        + [
            f'layer {{ name: "c{i}" type: "Concat" bottom: "b{i}" bottom: "b{i}" top: "b{i + 1}" }}'
            for i in range(2000)
        ]
    ),
}


@pytest.mark.parametrize("case", TOO_LARGE)
def test_a_size_beyond_what_a_blob_holds_is_one_error_with_its_place(case: str) -> None:
    with pytest.raises(NetError, match="is too large") as error:
        read(TOO_LARGE[case])
    assert error.value.where is not None


@pytest.mark.parametrize("shape", [(1, 99999999999999999999), (65536, 65536), (0, 3), (-1,)])
def test_an_input_that_no_blob_can_be_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(NetError, match="the shape given for blob 'x' is none that a blob can have"):
        read_layers(parse_net(Source("net.prototxt", 'input: "x"')), inputs={"x": shape})


def test_a_filler_of_any_length_is_read() -> None:
    text = f"batch_norm_param {{ scale_bias: true scale_filler {{ value: {'9' * 400} }} }}"
    _, blobs = read(net_of("BatchNorm", text))
    assert blobs[3].filler is not None
    assert blobs[3].filler.value == math.inf


@pytest.mark.parametrize(
    "text",
    [
        'layer { name: "prior" type: "PriorBox" bottom: "data" top: "p" prior_box_param { min_size: 3 } } '
        'layer { name: "n" type: "Normalize" bottom: "data" top: "n" norm_param { channel_shared: false } }',
        'layer { name: "bn" type: "BN" bottom: "data" top: "n" param { } param { } param { } param { } }',
        'layer { name: "e" type: "Eltwise" bottom: "data" bottom: "more" top: "n" }',
        'layer { name: "l" type: "LSTM" bottom: "data" top: "n" lstm_param { num_output: 5 } }',
    ],
)
def test_sizes_filled_in_later_are_those_of_reading_with_them(text: str) -> None:
    data = 'layer { name: "data" type: "HDF5Data" top: "data" top: "more" }'
    parsed = parse_net(Source("net.prototxt", data + text))
    inputs = {"data": (2, 6, 5, 7)}

    def recipe(inputs: dict[str, tuple[int, ...]]) -> NetRecipe:
        name, layers, blobs, _ = read_layers(parsed, inputs=inputs)
        return NetRecipe(name, blobs, layers=layers)

    later = with_inputs(recipe({}), inputs)
    assert later == recipe(inputs)
    assert all(None not in (blob.shape or (None,)) for blob in later.blobs)


sizes = st.integers(1, 40)
small = st.integers(1, 6)


@given(sizes, small, st.integers(0, 4), small, st.integers(1, 3))
def test_a_convolution_has_as_many_outputs_as_its_window_has_places(
    size: int, kernel: int, pad: int, stride: int, dilation: int
) -> None:
    extent = dilation * (kernel - 1) + 1
    places = len(range(-pad, size + pad - extent + 1, stride))
    if places:
        assert conv_length(size, kernel, pad, stride, dilation) == places


@given(sizes, small, st.integers(0, 4), small, st.integers(1, 3))
def test_a_deconvolution_undoes_the_length_of_a_convolution(
    size: int, kernel: int, pad: int, stride: int, dilation: int
) -> None:
    try:
        longer = deconv_length(size, kernel, pad, stride, dilation)
    except MisfitError:
        return
    assert conv_length(longer, kernel, pad, stride, dilation) == size


@given(sizes, small, st.integers(0, 3), small)
def test_pooling_covers_its_image_and_starts_no_window_beyond_it(size: int, kernel: int, pad: int, stride: int) -> None:
    if size + 2 * pad < kernel or pad >= kernel:  # Caffe wants pad < kernel
        return
    length = pool_length(size, kernel, pad, stride, ceil=True, clip=bool(pad))
    assert length is not None
    last = (length - 1) * stride - pad
    assert not pad or last < size
    covered = last + kernel >= size + pad or last + stride >= size
    assert covered
    floor = pool_length(size, kernel, pad, stride, ceil=False, clip=bool(pad))
    assert floor is not None
    assert length - 1 <= floor <= length


@given(st.lists(st.none() | st.integers(1, 5), max_size=4), st.lists(st.none() | st.integers(1, 5), max_size=4))
def test_two_shapes_agree_in_either_order_and_know_at_least_what_each_knew(
    first: list[int | None], second: list[int | None]
) -> None:
    a, b = tuple(first), tuple(second)
    try:
        both = agree(a, b)
    except MisfitError:
        with pytest.raises(MisfitError):
            agree(b, a)
        return
    assert both == agree(b, a)
    assert both is not None
    for shape in (a, b):
        assert agree(shape, both) == both
    assert agree(None, a) == a


@given(st.lists(st.integers(0, 9)))
def test_a_product_is_unknown_as_soon_as_a_size_is(sizes: list[int]) -> None:
    assert product(sizes) == math.prod(sizes)
    assert product([*sizes, None]) is None


def test_sizes_that_the_file_does_not_state_stay_unknown() -> None:
    layers, blobs = read(
        """layer { name: "d" type: "HDF5Data" top: "data" }
        layer { name: "c" type: "Convolution" bottom: "data" top: "c"
                convolution_param { num_output: 8 kernel_size: 3 } }
        layer { name: "p" type: "Pooling" bottom: "c" top: "p" pooling_param { pool: AVE global_pooling: true } }
        layer { name: "ip" type: "InnerProduct" bottom: "p" top: "ip" inner_product_param { num_output: 5 } }"""
    )
    assert [blob.shape for blob in blobs] == [(8, None, 3, 3), (8,), (5, 8), (5,)]
    assert [layer.top_shapes for layer in layers] == [
        (None,),
        ((None, 8, None, None),),
        ((None, 8, 1, 1),),
        ((None, 5),),
    ]
