"""Any net that protobuf accepts, however absurd, gives its blobs or one error of ours: no traceback, no hang."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from caffe2torch.errors import Caffe2TorchError
from caffe2torch.net.build import read_layers
from caffe2torch.net.layer_types import LAYER_TYPES, own_field
from caffe2torch.prototxt.descriptors import Fact, facts
from caffe2torch.prototxt.schema import parse_net
from caffe2torch.recipe import Source

TYPES = sorted({*LAYER_TYPES, "MysteryConv", "Python"})
_MESSAGES = """
    center_loss_param denseblock_param inner_distance_param interp_param lstm_param
    margin_inner_product_param norm_param normalize_param permute_param prior_box_param
    psroi_pooling_param reorg_param roi_pooling_param video_data_param
"""
_FIELDS = """
    aspect_ratio axis batch_size channel_shared flip frozen group_size growthRate height initChannel
    min_size modality new_length num_output num_segments numTransition order output_dim pad_beg pooled_h
    pooled_w reverse scale_bias scale_filler shrink_factor slope_filler stride transpose use_BC width
    zoom_factor
"""
FORK_MESSAGES, FORK_FIELDS = _MESSAGES.split(), _FIELDS.split()
FORK_VALUES = (
    "0",
    "1",
    "2",
    "3",
    "-1",
    "true",
    "0.5",
    '"s"',
    "RGB",
    "[1, 2]",
    '{ type: "x" value: 2 }',
    "{ std: RGB }",
)
NUMBERS = {
    "float": ("0", "1", "-1", "0.5", "inf", "nan", "1e30"),
    "double": ("0", "1", "nan"),
    "uint32": ("0", "1", "2", "3", "7", "4000000000"),
    "bool": ("true", "false"),
    "string": ('"a"', '"b"', '""', r'"\n"'),
}


def value(random: Random, fact: Fact) -> str:
    if fact.values is not None:
        return random.choice(list(fact.values))
    return random.choice(NUMBERS.get(fact.type, ("0", "1", "2", "3", "-1", "-2", "7", "-2147483648")))


def fields(random: Random, message: str, depth: int = 0) -> str:
    parts = []
    for name, fact in facts(message).items():
        if random.random() < 0.4:
            for _ in range(random.choice((1, 1, 2, 3)) if fact.repeated else 1):
                if fact.message is None:
                    parts.append(f"{name}: {value(random, fact)}")
                elif depth < 2 and fact.message != "BlobProto":
                    parts.append(f"{name} {{ {fields(random, fact.message, depth + 1)} }}")
    return " ".join(parts)


def fork_fields(random: Random) -> str:
    chosen = [(name, random.choice(FORK_VALUES)) for name in random.sample(FORK_FIELDS, 6)]
    return " ".join(f"{name} {one}" if one[0] == "{" else f"{name}: {one}" for name, one in chosen)


def net(random: Random) -> str:
    sizes = " ".join(f"dim: {random.choice((1, 2, 3, 4, 6, 8))}" for _ in range(random.choice((0, 1, 2, 3, 4, 4, 5))))
    text = [f'layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ {sizes} }} }} }}']
    if random.random() < 0.2:
        text = ['layer { name: "data" type: "HDF5Data" top: "data" }']
    blobs = ["data"]
    for i in range(random.randint(1, 5)):
        kind = random.choice(TYPES)
        own = own_field(kind)
        tops = [random.choice((f"t{i}_{k}", random.choice(blobs))) for k in range(random.choice((0, 1, 1, 1, 2, 3)))]
        parts = [f'bottom: "{random.choice(blobs)}"' for _ in range(random.choice((0, 1, 1, 1, 2, 2, 3)))]
        parts += [f'top: "{top}"' for top in tops]
        parts += [f"param {{ {fields(random, 'ParamSpec', 2)} }}" for _ in range(random.choice((0, 0, 0, 1, 2, 4)))]
        if own is not None and random.random() < 0.9:
            message = facts("LayerParameter")[own].message
            assert message is not None
            extra = fork_fields(random) if random.random() < 0.3 else ""
            parts.append(f"{own} {{ {fields(random, message, 1)} {extra} }}")
        if random.random() < 0.4:
            parts.append(f"{random.choice(FORK_MESSAGES)} {{ {fork_fields(random)} }}")
        if random.random() < 0.2:
            parts.append(f"transform_param {{ {fields(random, 'TransformationParameter', 1)} }}")
        blobs += tops
        text.append(f'layer {{ name: "l{i}" type: "{kind}" {" ".join(parts)} }}')
    return "\n".join(text)


@given(st.randoms(use_true_random=False))
@settings(max_examples=300)
def test_any_net_gives_blobs_or_our_own_error(random: Random) -> None:
    text = net(random)
    try:
        _, layers, blobs, notes = read_layers(parse_net(Source("net.prototxt", text)))
    except Caffe2TorchError:
        return
    assert [layer.name for layer in layers] == ["data", *(f"l{i}" for i in range(len(layers) - 1))]
    users = [(use.layer, use.index) for blob in blobs for use in (blob, *blob.shared_with)]
    assert sorted(users) == sorted((layer.name, i) for layer in layers for i in range(len(layer.blobs)))
    assert all(len(layer.top_shapes) == len(layer.tops) for layer in layers)
    assert all(note.where is not None for note in notes)
