"""Nets to learnable blobs: phase rules, order, multipliers, sharing, what is unknown; held against real Caffe."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from places import REPOSITORY

from caffe2torch.errors import NetError, SourceLocation
from caffe2torch.net.build import NetState, read_layers
from caffe2torch.net.phases import included, meets_rule
from caffe2torch.prototxt.schema import message, parse_net
from caffe2torch.reading import read_recipe
from caffe2torch.recipe import BlobUse, Layer, LearnableBlob, Note, Severity, Shape, Source, Statement

Net = tuple[tuple[Layer, ...], tuple[LearnableBlob, ...], tuple[Note, ...]]


def read(text: str, state: NetState | None = None, **inputs: tuple[int, ...]) -> Net:
    _, layers, blobs, notes = read_layers(parse_net(Source("net.prototxt", text)), state, inputs)
    return layers, blobs, notes


def ip(name: str, settings: str = "", bottom: str = "data", outputs: int = 3) -> str:
    return (
        f'layer {{ name: "{name}" type: "InnerProduct" bottom: "{bottom}" top: "{name}" {settings} '
        f"inner_product_param {{ num_output: {outputs} }} }}\n"
    )


DATA = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 } } }\n'


def spell(shape: Shape | None) -> str:
    return "?" if shape is None else "x".join("?" if size is None else str(size) for size in shape) or "()"


# ---- Multipliers


def test_each_multiplier_comes_with_how_it_was_stated() -> None:
    both = ip("both", "param { lr_mult: 1 decay_mult: 1 } param { lr_mult: 2 decay_mult: 0 }")
    half = ip("half", "param { lr_mult: 2 }")
    _, blobs, _ = read(
        DATA
        + both
        + half
        + ip("none")
        + 'layer { name: "bn" type: "BatchNorm" bottom: "none" top: "bn" param { lr_mult: 0 decay_mult: 3 } }\n'
    )
    explicit, defaulted, forced = Statement.EXPLICIT, Statement.DEFAULTED, Statement.FORCED
    assert [(b.name, b.lr_mult, b.decay_mult, b.stated.lr_mult, b.stated.decay_mult) for b in blobs] == [
        ("both/0", 1, 1, explicit, explicit),
        ("both/1", 2, 0, explicit, explicit),
        ("half/0", 2, 1, explicit, defaulted),
        ("half/1", 1, 1, defaulted, defaulted),
        ("none/0", 1, 1, defaulted, defaulted),
        ("none/1", 1, 1, defaulted, defaulted),
        ("bn/0", 0, 3, explicit, explicit),
        ("bn/1", 0, 1, forced, defaulted),
        ("bn/2", 0, 1, forced, defaulted),
    ]
    assert [(b.where.line, b.where.column - 1) for b in blobs[:4]] == [
        (2, both.index("param {")),
        (2, both.rindex("param { lr")),
        (3, half.index("param {")),
        (3, 0),  # without a block, the layer
    ]


def test_numbers_are_the_decimals_that_were_written() -> None:
    _, (weight, bias), _ = read(DATA + ip("ip", "param { lr_mult: 0.1 decay_mult: 1e-4 } param { lr_mult: .3 }"))
    assert (weight.lr_mult, weight.decay_mult, bias.lr_mult) == (0.1, 1e-4, 0.3)


@pytest.mark.parametrize("block", ["param { lr_mult: 1 }", "param { decay_mult: 0 }"])
def test_a_batch_norm_with_one_block_may_not_learn(block: str) -> None:
    with pytest.raises(NetError) as error:
        read(DATA + f'layer {{ name: "bn" type: "BatchNorm" bottom: "data" top: "bn"\n {block} }}')
    assert str(error.value.where) == "net.prototxt:3:2"
    assert error.value.expected == "lr_mult: 0"


def test_more_param_blocks_than_blobs_are_refused_at_the_first_one_too_many() -> None:
    with pytest.raises(NetError) as error:
        read(DATA + ip("ip", "param { lr_mult: 1 }\n param { lr_mult: 2 }\n param { }"))
    assert str(error.value) == (
        "net.prototxt:4:2: too many params specified for layer 'ip'\n"
        "  found: 3 param blocks\n  expected: at most 2: weight, bias\n  hint: Caffe refuses this net"
    )


def test_fillers_are_what_the_layer_states_or_caffes_default() -> None:
    _, blobs, _ = read(
        DATA
        + """layer { name: "conv" type: "Convolution" bottom: "image" top: "conv" convolution_param {
          num_output: 2 kernel_size: 1
          weight_filler { type: "gaussian" std: 0.01 sparse: 3 } } }
        layer { name: "scale" type: "Scale" bottom: "conv" top: "scale" scale_param { bias_term: true } }
        layer { name: "slope" type: "PReLU" bottom: "conv" top: "slope" }
        layer { name: "norm" type: "Normalize" bottom: "conv" top: "norm"
          norm_param { scale_filler { type: "constant" value: 20 } } }"""
    )
    fillers = {blob.name: blob.filler for blob in blobs}
    gaussian = fillers["conv/0"]
    assert gaussian is not None
    assert (gaussian.type, gaussian.std, gaussian.sparse, str(gaussian.where)) == (
        "gaussian",
        0.01,
        3,
        "net.prototxt:4:11",
    )
    stated = {
        name: filler and (filler.type, filler.value, filler.where and filler.where.line)
        for name, filler in fillers.items()
    }
    assert stated == {
        "conv/0": ("gaussian", 0, 4),
        "conv/1": ("constant", 0, None),
        "scale/0": ("constant", 1, None),
        "scale/1": ("constant", 0, None),
        "slope/0": ("constant", 0.25, None),
        "norm/0": ("constant", 20, 8),
    }


# ---- Sharing


def test_a_multiplier_that_one_sharer_alone_states_is_the_one_of_both() -> None:
    _, blobs, _ = read(
        DATA
        + ip("a", 'param { name: "w" }\n param { name: "b" lr_mult: 2 }')
        + ip("b", '\nparam { name: "w" lr_mult: 5 decay_mult: 0 }\n param { name: "b" lr_mult: 2 decay_mult: 7 }')
    )
    weight, bias = blobs
    assert (weight.lr_mult, weight.decay_mult, weight.stated.lr_mult) == (5, 0, Statement.SHARED)
    assert (bias.lr_mult, bias.decay_mult) == (2, 7)
    assert (bias.stated.lr_mult, bias.stated.decay_mult) == (Statement.EXPLICIT, Statement.SHARED)
    assert weight.shared_with == (BlobUse("b", "InnerProduct", 0, SourceLocation("net.prototxt", 5, 1), 5.0),)


@pytest.mark.parametrize(
    ("second", "what"),
    [
        ('param { name: "w" lr_mult: 3 }', "mismatched lr_mult"),
        ('param { name: "w" decay_mult: 0 }', "mismatched decay_mult"),
    ],
)
def test_sharers_that_state_different_multipliers_are_refused(second: str, what: str) -> None:
    with pytest.raises(NetError, match=what) as error:
        read(DATA + ip("a", 'param { name: "w" lr_mult: 1 decay_mult: 1 }') + ip("b", "\n" + second))
    assert str(error.value.where) == "net.prototxt:4:1"


def test_sharers_of_different_shapes_are_refused_unless_permissive() -> None:
    first = ip("a", 'param { name: "w" }', outputs=4)
    with pytest.raises(NetError, match="shape mismatch") as error:
        read(DATA + first + ip("b", 'param { name: "w" }', outputs=5))
    assert error.value.found == "5x3, as 'b' needs it"
    turned = ip("b", 'param { name: "w" share_mode: PERMISSIVE }', outputs=4).replace("}\n", "}\n", 1)
    turned = turned.replace("num_output: 4", "num_output: 4 transpose: true")
    _, blobs, _ = read(DATA + first + turned)
    assert [(blob.name, blob.shape) for blob in blobs] == [("a/0", (4, 3)), ("a/1", (4,)), ("b/1", (4,))]
    with pytest.raises(NetError, match="shape mismatch"):
        read(DATA + first + turned.replace("num_output: 4", "num_output: 5"))


multiplier = st.sampled_from((None, 0.0, 1.0, 2.5))


@given(st.lists(st.tuples(st.sampled_from(("", "p", "q")), multiplier, multiplier), min_size=1, max_size=5))
def test_sharing_keeps_caffes_laws(params: list[tuple[str, float | None, float | None]]) -> None:
    """One learnable blob for each name, in order of first sight; its multipliers are what any user states, else 1."""
    text = DATA
    for i, (name, lr, decay) in enumerate(params):
        fields = [f'name: "{name}"' if name else "", "" if lr is None else f"lr_mult: {lr}"]
        fields.append("" if decay is None else f"decay_mult: {decay}")
        text += ip(f"ip{i}", f"param {{ {' '.join(fields)} }}").replace(
            "num_output: 3", "num_output: 3 bias_term: false"
        )
    groups: dict[object, list[tuple[float | None, float | None]]] = {}
    for i, (name, lr, decay) in enumerate(params):
        groups.setdefault(name or i, []).append((lr, decay))
    stated = [[{one[k] for one in group if one[k] is not None} for k in (0, 1)] for group in groups.values()]
    if any(len(values) > 1 for pair in stated for values in pair):
        with pytest.raises(NetError, match="mismatched"):
            read(text)
        return
    layers, blobs, _ = read(text)
    assert [(b.lr_mult, b.decay_mult) for b in blobs] == [
        (min(lr, default=1), min(decay, default=1)) for lr, decay in stated
    ]
    assert [len(b.shared_with) for b in blobs] == [len(group) - 1 for group in groups.values()]
    used = [layer.blobs for layer in layers if layer.blobs]
    assert [index for (index,) in used] == [list(groups).index(name or i) for i, (name, _, _) in enumerate(params)]


# ---- Phase, level, stages

state_text = st.tuples(
    st.sampled_from(("TRAIN", "TEST")), st.integers(-2, 2), st.lists(st.sampled_from("abc"), max_size=3)
)


@st.composite
def rules(draw: st.DrawFn) -> str:
    parts = []
    for name, values in (("phase", ("TRAIN", "TEST")), ("min_level", range(-2, 3)), ("max_level", range(-2, 3))):
        if draw(st.booleans()):
            parts.append(f"{name}: {draw(st.sampled_from(tuple(values)))}")
    for name in ("stage", "not_stage"):
        parts += [f'{name}: "{stage}"' for stage in draw(st.lists(st.sampled_from("abc"), max_size=2))]
    return " ".join(parts)


def net_state(drawn: tuple[str, int, list[str]]) -> NetState:
    return NetState(drawn[0], drawn[1], tuple(drawn[2]))


@given(state_text, st.lists(rules(), max_size=3))
def test_include_and_exclude_are_each_others_opposite(drawn: tuple[str, int, list[str]], texts: list[str]) -> None:
    state, where = net_state(drawn), SourceLocation("n", 1, 1)
    layers = {
        kind: parse_net(
            Source("n", "layer { " + " ".join(f"{kind} {{ {text} }}" for text in texts) + " }")
        ).message.layer[0]  # type: ignore[attr-defined]
        for kind in ("include", "exclude")
    }
    met = any(meets_rule(state, rule) for rule in layers["include"].include)
    assert included(layers["exclude"], where, state) is not met
    assert included(layers["include"], where, state) is (met or not texts)


@given(state_text, rules())
def test_a_rule_holds_when_each_of_its_parts_does(drawn: tuple[str, int, list[str]], text: str) -> None:
    state = net_state(drawn)
    rule = parse_net(Source("n", f"layer {{ include {{ {text} }} }}")).message.layer[0].include[0]  # type: ignore[attr-defined]
    parts = []
    for descriptor, value in rule.ListFields():
        for one in value if descriptor.name.endswith("stage") else [value]:
            part = message("NetStateRule")()
            if descriptor.name.endswith("stage"):
                getattr(part, descriptor.name).append(one)
            else:
                setattr(part, descriptor.name, one)
            parts.append(part)
    assert meets_rule(state, rule) is all(meets_rule(state, part) for part in parts)


def test_rules_of_both_kinds_are_refused() -> None:
    with pytest.raises(NetError, match="include rules and exclude rules") as error:
        read('\n layer { name: "x" type: "ReLU" include { phase: TRAIN } exclude { phase: TEST } }')
    assert str(error.value.where) == "net.prototxt:2:2"


@given(st.permutations(range(4)))
def test_twins_of_the_other_phase_change_nothing_wherever_they_stand(order: list[int]) -> None:
    """TRAIN and TEST twins share their names; each phase sees its own, in the file's order."""
    train = [
        ip("one", "param { lr_mult: 1 } include { phase: TRAIN }"),
        ip("two", "param { lr_mult: 2 } include { phase: TRAIN }"),
    ]
    test = [
        ip("one", "param { lr_mult: 8 } include { phase: TEST }", outputs=7),
        ip("two", "param { lr_mult: 9 } exclude { phase: TRAIN }", outputs=7),
    ]
    alone = read(DATA + "".join(train))[1]
    mixed = [(train + test)[i] for i in order if i != 1]
    # the two layers of TRAIN keep their order; those of TEST stand anywhere
    places = sorted(mixed.index(one) for one in train if one in mixed)
    mixed.insert(places[0] + 1 if places else len(mixed), train[1])
    blobs = read(DATA + "".join(mixed))[1]

    def facts(some: tuple[LearnableBlob, ...]) -> list[tuple[object, ...]]:
        return [(b.name, b.shape, b.lr_mult, b.decay_mult) for b in some]

    assert facts(blobs) == facts(alone)
    assert {b.shape and b.shape[0] for b in read(DATA + "".join(mixed), NetState("TEST"))[1]} == {7}


# ---- What the file does not tell


def test_an_unknown_type_has_as_many_blobs_as_param_blocks() -> None:
    _, blobs, notes = read(
        DATA
        + 'layer { name: "x" type: "Mystery" bottom: "data" top: "x"\n param { lr_mult: 3 } param { decay_mult: 0 } }\n'
        + 'layer { name: "y" type: "MysteryConv" bottom: "data" top: "y" }\n'
        + 'layer { name: "z" type: "Enigma" bottom: "data" top: "z" }\n'
    )
    assert [(b.name, b.role, b.shape, b.lr_mult, b.decay_mult) for b in blobs] == [
        ("x/0", "unknown", None, 3, 1),
        ("x/1", "unknown", None, 1, 0),
    ]
    assert [(note.severity, note.where and note.where.line) for note in notes] == [
        (Severity.WARNING, 2),
        (Severity.WARNING, 4),
        (Severity.INFO, 5),
    ]
    assert "its 2 param blocks are taken for 2 blobs" in notes[0].message
    assert "though its name suggests some" in notes[1].message


def test_a_layer_without_a_type_is_refused() -> None:
    with pytest.raises(NetError, match="has no type"):
        read('layer { name: "x" bottom: "data" top: "x" }')


def test_inputs_give_the_sizes_that_the_file_does_not_state() -> None:
    text = 'layer { name: "d" type: "Data" top: "data" data_param { batch_size: 4 } }\n' + ip("ip")
    assert read(text)[1][0].shape == (3, None)
    layers, blobs, notes = read(text, data=(4, 2, 5, 5))
    assert (blobs[0].shape, layers[0].top_shapes, notes) == ((3, 50), ((4, 2, 5, 5),), ())
    with pytest.raises(NetError, match="has no blob 'image'") as error:
        read(text, image=(1,))
    assert error.value.hint == "its data blobs: 'data'"
    # what the user gives wins over the file, which is said
    _, blobs, notes = read(DATA + ip("ip"), data=(2, 9))
    assert blobs[0].shape == (3, 9)
    assert [note.message for note in notes] == ["blob 'data' is 2x3 in the file, and taken as 2x9"]


def test_an_eltwise_shows_the_size_of_the_data_that_it_adds() -> None:
    conv = (
        "layer {{ name: '{0}' type: 'Convolution' bottom: '{1}' top: '{0}' "
        "convolution_param {{ num_output: {2} {3} }} }}\n"
    )
    layers, blobs, _ = read(
        "layer { name: 'd' type: 'HDF5Data' top: 'data' }\n"
        + conv.format("up", "data", 64, "kernel_size: 3 pad: 1")
        + conv.format("down", "up", 2, "kernel_size: 3 pad: 1")
        + "layer { name: 'sum' type: 'Eltwise' bottom: 'data' bottom: 'down' top: 'sum' }"
    )
    assert [spell(blob.shape) for blob in blobs] == ["64x2x3x3", "64", "2x64x3x3", "2"]
    assert layers[0].top_shapes == ((None, 2, None, None),)


def test_bottoms_that_nobody_makes_are_a_warning_that_names_the_stages() -> None:
    net = 'layer { name: "d" type: "Input" top: "data" include { stage: "train" } }\n' + ip("ip")
    _, blobs, notes = read(net)
    assert len(blobs) == 2
    (note,) = notes
    assert str(note.where) == "net.prototxt:2:1"
    assert note.message == (
        "layer 'ip' takes blob 'data', which no layer before it makes in phase TRAIN (the net's rules ask for the "
        "stages train; given: none); Caffe refuses this net"
    )
    assert read(net, NetState(stages=("train",)))[2] == ()


def test_shapes_that_do_not_fit_are_a_warning_and_unknown() -> None:
    layers, _, notes = read(
        DATA
        + ip("a", outputs=4)
        + 'layer { name: "sum" type: "Eltwise" bottom: "data" bottom: "a" top: "sum" }\n'
        + 'layer { name: "out" type: "InnerProduct" bottom: "sum" top: "a" inner_product_param { num_output: 2 } }'
    )
    assert layers[2].top_shapes == (None,)
    assert [note.message for note in notes] == [
        "layer 'sum' (Eltwise): shapes 2x3 and 2x4 differ where they must be equal; shapes after it are unknown",
        "blob 'a' is made by more than one layer; Caffe refuses this net",
    ]


# ---- Settings, notes, names


def test_a_layers_settings_are_plain_python() -> None:
    layers, _, _ = read(
        """layer { name: "c" type: "Convolution" bottom: "x" top: "y" loss_weight: 0.1
             convolution_param { num_output: 2 kernel_size: 3 engine: CUDNN hole: 2 weight_filler { type: "xavier" } } }
           layer { name: "p" type: "Pooling" bottom: "y" top: "z" pooling_param { pool: MIN kernel_size: 2 } }
           layer { name: "l" type: "SoftmaxWithLoss" bottom: "z" bottom: "t" top: "l" loss_param { ignore_label: 11 } }
           layer { name: "b" type: "DenseBlock" bottom: "y" top: "w" denseblock_param {
             numTransition: 1 initChannel: 2 growthRate: 3 use_BC: false name: 'x' lots: [1, 2.5] } }"""
    )
    conv, pool, loss, block = (layer.settings for layer in layers)
    assert conv["kernel_size"] == (3,)
    assert conv["pad"] == ()
    assert (conv["engine"], conv["group"], conv["bias_term"], conv["hole"]) == ("CUDNN", 1, True, 2)
    assert conv["loss_weight"] == (0.1,)
    assert "kernel_h" not in conv
    assert isinstance(conv["weight_filler"], dict)
    assert conv["weight_filler"]["type"] == "xavier"
    assert (pool["pool"], pool["stride"]) == ("MIN", 1)
    assert isinstance(loss["loss_param"], dict)
    assert loss["loss_param"] == {"ignore_label": 11, "class_weighting": ()} | loss["loss_param"]
    assert "normalization" not in loss["loss_param"]  # VALID or BATCH_SIZE, by layer type and `normalize`
    assert (block["numTransition"], block["use_BC"], block["name"], block["lots"]) == (1, False, "x", (1, 2.5))


def test_what_many_layers_say_in_the_same_words_is_one_note() -> None:
    norms = "".join(f'layer {{ name: "n{i}" type: "BN" bottom: "data" top: "data" }}\n' for i in range(7))
    _, _, notes = read(
        'layer { name: "d" type: "Input" top: "data" input_param { shape { dim: 1 dim: 2 dim: 3 dim: 4 } } }\n' + norms
    )
    assert [note.message for note in notes] == [
        "read as SegNet's BN: 2 blobs, scale and shift, which learn as their param blocks say "
        "(and 6 more like it, lines 3, 4, 5, ...)",
        "BN's constants belong to the model: eps 1e-09, the batch's own statistics, none kept (7 layers)",
    ]


def test_what_the_optimizer_does_not_cover_is_noted_once_for_each_kind() -> None:
    _, _, notes = read(
        """layer { name: "d" type: "Data" top: "data" top: "t" transform_param { scale: .5 mirror: 1 mean_value: 9 } }
        layer { name: "bn" type: "BatchNorm" bottom: "data" top: "bn" batch_norm_param { eps: 0.001 } }
        layer { name: "bn2" type: "BatchNorm" bottom: "data" top: "bn2" batch_norm_param { eps: 0.001 } }
        layer { name: "drop" type: "Dropout" bottom: "bn" top: "drop" dropout_param { dropout_ratio: 0.7 } }
        layer { name: "aux" type: "SoftmaxWithLoss" bottom: "drop" bottom: "t" top: "aux" loss_weight: 0.3
                loss_param { ignore_label: 11 class_weighting: [0.5, 2, 3, 4] } propagate_down: [true, false] }
        layer { name: "loss" type: "SoftmaxWithLoss" bottom: "drop" bottom: "t" top: "loss" loss_weight: 1 }"""
    )
    assert {note.severity for note in notes} == {Severity.INFO}
    assert [(note.where and note.where.line, note.message) for note in notes] == [
        (5, "loss weights are not the optimizer's: the port's loss takes 'aux' x0.3 ('aux')"),
        (5, "the loss itself has settings to carry over: class_weighting of 4 numbers, ignore_label 11 ('aux')"),
        (
            2,
            "BatchNorm's constants belong to the model: eps 0.001, moving_average_fraction 0.999; "
            "torch's momentum is 1 - moving_average_fraction (2 layers)",
        ),
        (4, "dropout belongs to the model: ratio 0.7 ('drop')"),
        (5, "no gradient passes from 'aux' to 't': detach it in the port ('aux')"),
        (
            1,
            "the data layer gives (x - mean) * scale of BGR images, 0 to 255, where torchvision's own weights expect "
            "RGB in other units: TRAIN scale 0.5, mirror, mean_value 9 (torchvision: Normalize([9], [2]), "
            "RandomHorizontalFlip())",
        ),
    ]


@pytest.mark.parametrize(
    ("train", "test", "line"),
    [
        ("scale: 0.017", "scale: 0.017", "TRAIN and TEST scale 0.017 (torchvision: Normalize([0], [1 / 0.017]))"),
        (
            "mean_value: [104, 117, 123.68] crop_size: 9",
            "mean_value: [104, 117, 123.68] crop_size: 8",
            "TRAIN crop_size 9, mean_value 104, 117, 123.68 (torchvision: Normalize([104, 117, 123.68], [1]), "
            "RandomCrop(9)); TEST crop_size 8, mean_value 104, 117, 123.68 (torchvision: "
            "Normalize([104, 117, 123.68], [1]), CenterCrop(8) with its offset rounded down)",
        ),
        (
            'mean_file: "m" scale: 0.5',
            "mirror: true",
            "TRAIN scale 0.5, mean_file m (torchvision: subtract the image in mean_file, Normalize([0], [2])); "
            "TEST mirror (torchvision: RandomHorizontalFlip(), at random here, too)",
        ),
        (
            "mirror: true multi_scale: true distort_param { brightness_prob: 0.5 }",
            "scale: 1",
            "TRAIN mirror, multi_scale (torchvision: RandomHorizontalFlip(); a fork's own: multi_scale, distort_param)",
        ),
    ],
)
def test_the_data_of_both_phases_is_one_line_with_torchvisions_transforms(
    tmp_path: Path, train: str, test: str, line: str
) -> None:
    layer = 'layer {{ name: "d" type: "Data" top: "data" include {{ phase: {} }} transform_param {{ {} }} }}'
    (tmp_path / "net.prototxt").write_text("\n".join((layer.format("TRAIN", train), layer.format("TEST", test))))
    notes = [note.message for note in read_recipe(tmp_path / "net.prototxt").notes]
    (found,) = [message for message in notes if "the data layer gives" in message]
    assert found.split("units: ")[1] == line


def test_the_data_of_the_test_is_what_the_solver_tests(tmp_path: Path) -> None:
    layer = 'layer {{ name: "d" type: "Data" top: "data" include {{ {} }} transform_param {{ scale: {} }} }}'
    rules = ("phase: TRAIN", "phase: TEST stage: 'a'", "phase: TEST stage: 'b'")
    net, solver = tmp_path / "net.prototxt", tmp_path / "solver.prototxt"
    net.write_text("\n".join(map(layer.format, rules, (2, 4, 8))))
    solver.write_text('base_lr: 1 lr_policy: "fixed" test_state { stage: "b" }')
    (found,) = [note.message for note in read_recipe(net, solver).notes if "the data layer gives" in note.message]
    assert [scale in found for scale in ("TRAIN scale 2", "TEST scale 8", "scale 4")] == [True, True, False]


hostile = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)


def quoted(name: str) -> str:
    return '"' + "".join(f"\\{byte:03o}" for byte in name.encode()) + '"'


@given(st.lists(hostile, min_size=1, max_size=4, unique=True))
def test_names_are_data_whatever_they_hold(names: list[str]) -> None:
    text = DATA
    bottom = quoted("data")
    for name in names:
        text += f'layer {{ name: {quoted(name)} type: "InnerProduct" bottom: {bottom} top: {quoted(name + "?")} '
        text += f"param {{ name: {quoted(name)} lr_mult: 2 }} inner_product_param {{ num_output: 3 }} }}\n"
        bottom = quoted(name + "?")
    layers, blobs, _ = read(text)
    assert [layer.name for layer in layers[1:]] == names
    assert [blob.layer for blob in blobs] == [name for name in names for _ in range(2)]
    assert [layer.tops for layer in layers[1:]] == [(name + "?",) for name in names]


# ---- Against real Caffe


def test_segnet_basic_has_the_blobs_that_caffe_gave_it(fixtures: Path) -> None:
    recipe = read_recipe(fixtures / "segnet_basic" / "train.prototxt")
    with (fixtures / "segnet_basic" / "params.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(b.layer, b.layer_type, str(b.index), b.lr_mult, b.decay_mult) for b in recipe.blobs] == [
        (r["layer"], r["type"], r["blob"], float(r["lr_mult"]), float(r["decay_mult"])) for r in rows
    ]
    assert len(rows) == 34


@pytest.mark.shared
def test_full_size_segnet_has_caffes_34_blobs_exactly(shared: Path) -> None:
    folder = shared / "goldens" / "segnet" / "full"
    recipe = read_recipe(folder / "net.prototxt", folder / "solver.prototxt")
    with (folder / "params.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(b.layer, b.layer_type, str(b.index), spell(b.shape), b.lr_mult, b.decay_mult) for b in recipe.blobs] == [
        (r["layer"], r["type"], r["blob"], r["shape"], float(r["lr_mult"]), float(r["decay_mult"])) for r in rows
    ]


def golden_cases() -> list[str]:
    folder = REPOSITORY.parent / "shared" / "goldens" / "bvlc"
    return sorted(case.name for case in folder.iterdir()) if folder.is_dir() else []


@pytest.mark.shared
@pytest.mark.parametrize("case", golden_cases())
def test_recorded_runs_had_these_blobs_and_multipliers(shared: Path, case: str) -> None:
    folder = shared / "goldens" / "bvlc" / case
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    recipe = read_recipe(folder / "net.prototxt", folder / "solver.prototxt")
    assert [
        {"name": b.name, "shape": list(b.shape or ()), "lr_mult": b.lr_mult, "decay_mult": b.decay_mult}
        for b in recipe.blobs
    ] == meta["params"]
    aliases = [[f"{use.layer}/{use.index}", b.name] for b in recipe.blobs for use in b.shared_with]
    assert sorted(aliases) == sorted(meta["alias"])


@pytest.mark.shared
@pytest.mark.parametrize(
    ("case", "place", "said"),
    [
        ("shared_lr_mismatch", "net.prototxt:25:3", "shared param 'shared' has mismatched lr_mult"),
        ("shared_decay_mismatch", "net.prototxt:25:3", "shared param 'shared' has mismatched decay_mult"),
        (
            "shared_shape_mismatch",
            "net.prototxt:25:3",
            "cannot share param 'shared' owned by layer 'sh1' with layer 'sh2'",
        ),
        ("too_many_params", "net.prototxt:27:94", "too many params specified for layer 'ip_out'"),
    ],
)
def test_what_caffe_refused_is_refused_at_its_place(shared: Path, case: str, place: str, said: str) -> None:
    with pytest.raises(NetError) as error:
        read_recipe(shared / "goldens" / "bvlc_errors" / case / "net.prototxt")
    assert str(error.value.where).endswith(place)
    assert error.value.message.startswith(said)


MENDED = {
    # the variant of this table fills in num_output, which the file leaves to DIGITS
    ("digits-lenet-stages@stage=train", "ip2"),
}


def table_names() -> list[str]:
    folder = REPOSITORY.parent / "shared" / "tables"
    return (
        sorted(table.stem for table in folder.glob("*.csv") if table.stem != "LAYER_BLOBS") if folder.is_dir() else []
    )


@pytest.mark.shared
@pytest.mark.parametrize("table", table_names())
def test_a_real_net_has_the_blobs_that_caffe_gave_it(shared: Path, table: str) -> None:
    """Order, layer, index, multipliers, sharing; and shapes, where the table does not call a size guessed."""
    name, _, variant = table.partition("@stage=")
    if name.startswith("large__"):
        recipe = read_recipe(shared / "corpus" / "large" / f"{name.removeprefix('large__')}.prototxt")
    else:
        folder = shared / "corpus" / "pairs" / name
        broken = name == "resnet18-badsolver"  # its solver is no prototxt
        solver = None if broken else folder / "solver.prototxt"
        recipe = read_recipe(folder / "net.prototxt", solver, stages=[variant] if variant else [])
    with (shared / "tables" / f"{table}.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    owners = [row for row in rows if row["shares"] == "0"]
    assert [(b.layer, b.layer_type, str(b.index), b.lr_mult, b.decay_mult) for b in recipe.blobs] == [
        (r["layer"], r["type"], r["blob"], float(r["lr_mult"]), float(r["decay_mult"])) for r in owners
    ]
    for blob, row in zip(recipe.blobs, owners, strict=True):
        if row["shape_guessed"] == "0" and (table, blob.layer) not in MENDED:
            assert (blob.name, spell(blob.shape)) == (blob.name, row["shape"])
        else:  # what we do state of it is what Caffe had
            pattern = spell(blob.shape).split("x")
            guessed = row["shape"].split("x")
            assert len(pattern) == len(guessed)
            assert all(ours in ("?", theirs) for ours, theirs in zip(pattern, guessed, strict=True))
    shared_uses = [(use.layer, str(use.index), str(i)) for i, b in enumerate(recipe.blobs) for use in b.shared_with]
    assert sorted(shared_uses) == sorted((r["layer"], r["blob"], r["index"]) for r in rows if r["shares"] == "1")


# ---- Cost


def chain(layers: int) -> str:
    text = ['input: "b0" input_shape { dim: 1 dim: 8 dim: 32 dim: 32 }']
    text += [
        f'layer {{ name: "c{i}" type: "Convolution" bottom: "b{i}" top: "b{i + 1}" param {{ lr_mult: 1 }} param {{ }} '
        f'convolution_param {{ num_output: 8 kernel_size: 3 pad: 1 weight_filler {{ type: "xavier" }} }} }}'
        for i in range(layers)
    ]
    return "\n".join(text)


def seconds_to_read(layers: int) -> tuple[float, float]:
    """To parse a net of so many layers, and to read the parsed one."""
    source = Source("net.prototxt", chain(layers))
    start = time.process_time()
    parsed = parse_net(source)
    between = time.process_time()
    read_layers(parsed)
    return between - start, time.process_time() - between


@pytest.mark.usefixtures("without_collector")
def test_cost_grows_linearly_with_the_layers() -> None:
    seconds_to_read(50)
    small, large = (min(seconds_to_read(layers)[1] for _ in range(2)) for layers in (250, 2000))
    assert large < 22 * small  # 8 times the layers; room for a noisy machine, none for a square


@pytest.mark.shared
@pytest.mark.usefixtures("without_collector")
def test_resnet_152_is_read_at_six_times_the_cost_of_its_text_in_protobuf(shared: Path) -> None:
    path = shared / "corpus" / "large" / "resnet152-deploy.prototxt"

    def seconds(read: Callable[[], object]) -> float:
        start = time.process_time()
        read()
        return time.process_time() - start

    def protobufs_own() -> None:
        text_format.Parse(path.read_text(), message("NetParameter")())

    read_recipe(path)
    assert min(seconds(lambda: read_recipe(path)) / seconds(protobufs_own) for _ in range(5)) < 6


def test_a_blob_that_is_missing_or_made_twice_is_named_once() -> None:
    layers = """
        layer { name: "sum" type: "Eltwise" bottom: "gone" bottom: "gone" top: "a" }
        layer { name: "cut" type: "Slice" bottom: "a" top: "b" top: "b" top: "c" }"""
    _, _, _, notes = read_layers(parse_net(Source("net.prototxt", layers)))
    messages = [note.message for note in notes]
    assert sum("takes blob 'gone'" in message for message in messages) == 1
    assert messages.count("blob 'b' is made by more than one layer; Caffe refuses this net") == 1
