"""Prototxts to messages: protobuf's own reading, and a note for everything that the schema does not know."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf import text_format
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st
from places import SUPPORT

from caffe2torch.errors import PrototxtError
from caffe2torch.prototxt.descriptors import Fact, facts
from caffe2torch.prototxt.parser import Block, read_text
from caffe2torch.prototxt.schema import Parsed, inline_net, is_solver, message, parse_net, parse_solver
from caffe2torch.recipe import Severity, Source


def net(text: str) -> Parsed:
    return parse_net(Source("net.prototxt", textwrap.dedent(text)))


def solver(text: str) -> Parsed:
    return parse_solver(Source("solver.prototxt", textwrap.dedent(text)))


def outcome(parse: Callable[[Source], Parsed], source: Source) -> Parsed | PrototxtError:
    try:
        return parse(source)
    except PrototxtError as error:
        return error


def by_protobuf(text: str, root: str, *, allow_unknown_field: bool = False) -> Message | None:
    """protobuf's own reading, ``None`` where it refuses."""
    result = message(root)()
    try:
        with warnings.catch_warnings():  # Python's codec, which protobuf uses, deprecates unknown escapes
            warnings.simplefilter("ignore", DeprecationWarning)
            text_format.Parse(text, result, allow_unknown_field=allow_unknown_field)
    except text_format.ParseError:
        return None
    return result


def same(one: Message, other: Message) -> bool:
    """Whether two messages are equal, NaN to NaN."""
    return one.SerializePartialToString(deterministic=True) == other.SerializePartialToString(deterministic=True)


def assert_aligned(block: Block, held: Message) -> None:
    """Every field of the message stands in the block as often as it has values, in their order, at every depth."""
    counts = {field.name: len(block.all(field.name)) for field in block.fields}
    for descriptor, value in held.ListFields():
        known = facts(held.DESCRIPTOR.name)[descriptor.name]
        values = list(value) if known.repeated else [value]
        assert counts.pop(descriptor.name) == len(values)
        if known.message is not None:
            for field, inner in zip(block.all(descriptor.name), values, strict=True):
                assert isinstance(field.value, Block)
                assert_aligned(field.value, inner)
    assert counts == {}


def notes(parsed: Parsed) -> list[tuple[str, str]]:
    assert all(note.severity is Severity.WARNING for note in parsed.notes)
    return [(str(note.where), note.message) for note in parsed.notes]


# ---------------------------------------------------------------------------------------------------------------------
# What protobuf accepts is read as protobuf reads it
# ---------------------------------------------------------------------------------------------------------------------


def prototxts(shared: Path) -> list[Path]:
    """All but the nets of `goldens/nets`, and what takes more than a second."""
    folders = [
        shared / "corpus",
        shared / "mappings",
        *(set((shared / "goldens").iterdir()) - {shared / "goldens/nets"}),
    ]
    files = (path for folder in folders for path in folder.rglob("*.prototxt"))
    return sorted(path for path in files if path.stat().st_size < 500_000)


@pytest.mark.shared
def test_every_recorded_file_is_read_as_protobuf_reads_it_or_gives_notes_or_one_error(shared: Path) -> None:
    files = prototxts(shared)
    assert len(files) > 400
    refused = []
    for file in files:
        source = read_text(file)
        parse, root = (parse_solver, "SolverParameter") if "solver" in file.name else (parse_net, "NetParameter")
        wanted = by_protobuf(source.text, root)
        parsed = outcome(parse, source)
        if isinstance(parsed, PrototxtError):
            assert wanted is None, parsed
            refused.append(file.relative_to(shared).as_posix())
            continue
        if wanted is not None:
            assert parsed.message == wanted
            assert parsed.block.unknown == ()
        elif "consolidated" not in file.parent.name:
            assert parsed.notes, file
        assert_aligned(parsed.block, parsed.message)
    assert refused == [
        "corpus/large/deeplabv2-resnet101-train-template.prototxt",
        "corpus/odd/device-id-comma.solver.prototxt",
        "corpus/odd/duplicate-message.net.prototxt",
        "corpus/odd/duplicate-source.net.prototxt",
        "corpus/odd/merge-conflict.net.prototxt",
        "corpus/odd/slash-comment.net.prototxt",
        "corpus/odd/template-dollar.net.prototxt",
        "corpus/odd/trailing-prose.net.prototxt",
        "corpus/pairs/resnet18-badsolver/solver.prototxt",
        "goldens/bvlc_errors/repeated_scalar/solver.prototxt",
    ]


@pytest.mark.shared
@pytest.mark.parametrize("case", ["repeated_scalar", "unknown_field"])
def test_the_line_that_caffe_complains_of_is_ours(shared: Path, case: str) -> None:
    folder = shared / "goldens" / "bvlc_errors" / case
    said = re.search(r"SolverParameter: (\d+):", (folder / "caffe_said.txt").read_text())
    assert said is not None
    source = read_text(folder / "solver.prototxt")
    if case == "unknown_field":  # Caffe refuses; here it is a note, and nothing else is lost
        (note,) = parse_solver(source).notes
        assert note.message == "unknown field 'weight_dacay' in SolverParameter; did you mean 'weight_decay'? ignored"
        where = note.where
    else:
        with pytest.raises(PrototxtError) as caught:
            parse_solver(source)
        where = caught.value.where
    assert f":{said[1]}:" in str(where)


PERFECTLY_LEGAL = r"""
    name: 'a' "b"  # side by side
    input: "data", input_dim: [0x1, 010, 3, 1];
    layer < name: "c" type: "Convolution"
      convolution_param { num_output: 3 kernel_size: [3, 5] pad: 1 pad: 2 weight_filler: { std: .5f } }
      param: [{ lr_mult: 1 }, < lr_mult: inf decay_mult: -nan >]
      include { phase: 0 stage: "\x41\n\303\251\t'" } include { phase: 0x1 }
      propagate_down: [t, False, 1] loss_weight: []
    >
    layers { type: 4 blobs_lr: 1 blob_share_mode: [STRICT, 1] layer { name: "v0" pool: AVE } }
    layer { type: "Convolution" pooling_param { pool: 2 kernel_size: 3 } }
"""


def test_the_whole_text_format_is_understood() -> None:
    parsed, wanted = net(PERFECTLY_LEGAL), by_protobuf(PERFECTLY_LEGAL, "NetParameter")
    assert wanted is not None
    assert same(parsed.message, wanted)
    assert notes(parsed) == []
    assert_aligned(parsed.block, parsed.message)


def values(fact: Fact) -> st.SearchStrategy[str]:
    """Source texts of a scalar type, most of them legal for it."""
    if fact.values is not None:
        return st.sampled_from([*fact.values, *map(str, fact.values.values()), "0x1"])
    legal = {
        "bool": st.sampled_from(["true", "false", "t", "f", "1", "0", "True"]),
        "float": st.floats(width=32).map(repr) | st.sampled_from(["1", "-2.5e3", "1.5f", "1e39", ".5", "-inf", "nan"]),
        "string": st.text(st.characters(codec="utf-8", exclude_characters='"\\\n'), max_size=5).map('"{}"'.format)
        | st.sampled_from(["'it'", "'a' \"b\"", r'"\x41\n\""', r'"\q"']),
    }
    legal["double"], legal["bytes"] = legal["float"], legal["string"]
    whole = st.integers(0, 9).map(str) | st.sampled_from(["0x1F", "017", "2147483647"])
    return legal.get(fact.type, whole if fact.type.startswith("u") else whole | st.integers(-9, -1).map(str))


blanks = st.sampled_from([" ", "\n", " # } comment {\n", "\r\n", "\t"])
separators = st.sampled_from(["", "", ",", ";"])


@st.composite
def texts(draw: st.DrawFn, root: str, foreign: st.SearchStrategy[str] = st.just(""), depth: int = 3) -> str:  # noqa: B008
    """A text that ``root`` knows, written in many ways, with whatever ``foreign`` draws between its fields."""
    known = facts(root)
    inner = {name: fact for name, fact in known.items() if depth > 0 or fact.message is None}
    text = ""
    for name in draw(st.lists(st.sampled_from(sorted(inner)), max_size=5, unique=True)) if inner else []:
        fact = inner[name]
        value = st.just("")
        if fact.message is None:
            value = values(fact)
        else:
            brackets = draw(st.sampled_from(["{%s}", "<%s>"]))
            value = texts(fact.message, foreign, depth - 1).map(lambda t, brackets=brackets: brackets % t)
        text += draw(foreign) + draw(blanks)
        if fact.repeated and draw(st.booleans()):
            listed = draw(st.lists(value, max_size=3))
            text += f"{name}:{draw(blanks)}[{','.join(listed)}]"
        else:
            colon = ":" if fact.message is None else draw(st.sampled_from(["", ":"]))
            text += f"{name}{colon}{draw(blanks)}{draw(value)}"
        text += draw(separators)
    return text + draw(foreign) + draw(blanks)


ROOTS = {"NetParameter": parse_net, "SolverParameter": parse_solver}
roots = st.sampled_from(sorted(ROOTS))


@given(st.data(), roots)
def test_generated_text_is_read_as_protobuf_reads_it(data: st.DataObject, root: str) -> None:
    text = data.draw(texts(root))
    parsed, wanted = ROOTS[root](Source("f", text)), by_protobuf(text, root)
    assert wanted is not None
    assert same(parsed.message, wanted)
    assert parsed.block.unknown == ()
    assert_aligned(parsed.block, parsed.message)


foreign_fields = st.sampled_from(
    [
        "",
        "",
        " rampup_lr: 0.1",
        " richness: [1, 2],",
        " multinode { lr_mult: 3 param { x: 1 } };",
        " permute_param < order: [] >",
        " [caffe.ext]: 'x'",
        " weight_dacay: 'a' \"}\" ",
        " kernel-size: 3\n",
        " nothing: []",
    ]
)


@given(st.data(), roots)
def test_unknown_fields_anywhere_are_noted_and_nothing_else_is_lost(data: st.DataObject, root: str) -> None:
    text = data.draw(texts(root, foreign_fields))
    parsed = ROOTS[root](Source("f", text))
    wanted = by_protobuf(text.replace("[caffe.ext]", "caffe_ext"), root, allow_unknown_field=True)
    assert wanted is not None
    assert same(parsed.message, wanted)
    assert_aligned(parsed.block, parsed.message)
    count = len(re.findall(r"rampup_lr|richness|multinode|permute_param|caffe.ext|dacay|kernel-size|nothing", text))
    assert len([note for note in parsed.notes if "unknown field" in note.message]) == count


garbage = st.sampled_from([*"{}<>[]:,;\"'\\#\n-+.01aé", "[1, 2]", "pad: 3", "TRAIN", "${A}", "0x", "'x'", "\\q"])


@given(st.data(), roots)
def test_damaged_text_is_read_as_protobuf_reads_it_or_gives_one_error(data: st.DataObject, root: str) -> None:
    text = data.draw(texts(root))
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 3)))
        text = text[:start] + data.draw(garbage) + text[end:]
    wanted = by_protobuf(text, root)
    parsed = outcome(ROOTS[root], Source("f", text))
    if isinstance(parsed, PrototxtError):
        assert wanted is None
        return
    if wanted is not None:
        assert same(parsed.message, wanted)
    assert_aligned(parsed.block, parsed.message)


# ---------------------------------------------------------------------------------------------------------------------
# What the schema does not know
# ---------------------------------------------------------------------------------------------------------------------


def test_an_unknown_field_is_noted_with_its_place_and_the_name_that_was_meant() -> None:
    parsed = solver("""\
        base_lr: 0.1
        weight_dacay: 0.0005
        momentum: 0.9 frobnicate { base_lr: 3 }
        rampup_lr: 0.01, min_lr: 1e-5
        """)
    assert notes(parsed) == [
        (
            "solver.prototxt:2:1",
            "unknown field 'weight_dacay' in SolverParameter; did you mean 'weight_decay'? ignored",
        ),
        ("solver.prototxt:3:15", "unknown field 'frobnicate' in SolverParameter; ignored"),
        ("solver.prototxt:4:1", "unknown field 'rampup_lr' in SolverParameter: a field of the fork nvidia"),
        ("solver.prototxt:4:18", "unknown field 'min_lr' in SolverParameter: a field of the fork nvidia"),
    ]
    assert by_protobuf("base_lr: 0.1 momentum: 0.9", "SolverParameter") == parsed.message
    assert [field.name for field in parsed.block.fields] == ["base_lr", "momentum"]
    assert [(field.name, field.value) for field in parsed.block.unknown if field.name != "frobnicate"] == [
        ("weight_dacay", "0.0005"),
        ("rampup_lr", "0.01"),
        ("min_lr", "1e-5"),
    ]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("tpye", "type"),
        ("botom", "bottom"),
        ("convolutionparam", "convolution_param"),
        ("hole", None),
        ("roi_param", None),
    ],
)
def test_a_name_is_suggested_only_when_it_is_close(name: str, meant: str | None) -> None:
    (note,) = net(f"layer {{ {name}: 1 }}").notes
    assert note.message.endswith(f"; did you mean {meant!r}? ignored" if meant else "; kept as written")


def test_the_same_unknown_field_is_noted_at_each_of_its_places() -> None:
    parsed = net("""\
        layer { name: "a" tpye: "ReLU" }
        layer { name: "b" tpye: "ReLU" }
        """)
    assert [where for where, _ in notes(parsed)] == ["net.prototxt:1:19", "net.prototxt:2:19"]
    assert [layer.value.unknown[0].name for layer in parsed.block.all("layer") if isinstance(layer.value, Block)] == [
        "tpye",
        "tpye",
    ]


def test_an_unknown_enum_value_is_noted_by_name_or_number_and_its_field_is_left_out() -> None:
    parsed = net("""\
        layers { name: "a" type: SEG_ACCURACY }
        layers { name: "b" type: RELU6 }
        layers { name: "c" type: CONVOLUTON }
        layers { name: "d" type: 0x63 }
        """)
    assert notes(parsed) == [
        ("net.prototxt:1:20", "unknown value SEG_ACCURACY of 'type' in V1LayerParameter; kept as written"),
        ("net.prototxt:2:20", "unknown value RELU6 of 'type' in V1LayerParameter: a value of the fork mobilenet-yolo"),
        (
            "net.prototxt:3:20",
            "unknown value CONVOLUTON of 'type' in V1LayerParameter; did you mean 'CONVOLUTION'? ignored",
        ),
        ("net.prototxt:4:20", "unknown value 0x63 of 'type' in V1LayerParameter; kept as written"),
    ]
    assert by_protobuf(" ".join(f'layers {{ name: "{name}" }}' for name in "abcd"), "NetParameter") == parsed.message
    assert_aligned(parsed.block, parsed.message)


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("[STRICT, FOO, 1]", "[STRICT, 1]"),
        ("[FOO, # a comma, in a comment\n PERMISSIVE, BAR]", "[PERMISSIVE]"),
        ("[FOO, FOO]", "[]"),
        ("[STRICT, PERMISSIVE, 7]", "[STRICT, PERMISSIVE]"),
    ],
)
def test_a_list_loses_its_unknown_values_alone(written: str, kept: str) -> None:
    around = "layers {{ name: 'a', blob_share_mode: {}, type: DATA }} name: 'n'"
    parsed = net(around.format(written))
    assert by_protobuf(around.format(kept), "NetParameter") == parsed.message
    assert_aligned(parsed.block, parsed.message)
    unknown = set(re.findall(r"FOO|BAR|7", written))
    assert {note.message.split()[2] for note in parsed.notes} == unknown


def test_an_unknown_list_is_noted_once() -> None:
    assert notes(solver("stagelr: [0.1, 0.2] stagelr: [] base_lr: 1")) == [
        (
            "solver.prototxt:1:11",
            "unknown field 'stagelr' in SolverParameter: a field of the forks intel, mobilenet-yolo",
        ),
        (
            "solver.prototxt:1:21",
            "unknown field 'stagelr' in SolverParameter: a field of the forks intel, mobilenet-yolo",
        ),
    ]


def test_a_list_that_a_fork_allows_for_a_single_field_is_noted() -> None:
    parsed = solver("device_id: [0, 1, 2, 3]\nbase_lr: 1")
    assert notes(parsed) == [
        (
            "solver.prototxt:1:13",
            "a list for 'device_id' in SolverParameter, which takes one value in BVLC's Caffe; ignored",
        )
    ]
    assert by_protobuf("base_lr: 1", "SolverParameter") == parsed.message
    assert len(parsed.block.unknown) == 4


def test_a_required_field_that_is_missing_is_noted_and_the_rest_is_read() -> None:
    parsed = net('layer { name: "a" }\nlayer { name: "b"\n  clip_param { min: 0 } }')
    assert notes(parsed) == [("net.prototxt:3:3", "clip_param does not state 'max', which Caffe requires")]
    assert parsed.message.layer[1].clip_param.HasField("min")  # type: ignore[attr-defined]  # made at run time


def test_odd_strings_are_noted_and_kept() -> None:
    parsed = solver(r"""
        net: "@NET@.prototxt"
        snapshot_prefix: "C:\data\n\\d"  # ${HOME} in a comment is nothing
        train_state { stage: "${STAGE}" }
        test_net: "C:\\data"  # a backslash that is escaped
        """)
    assert notes(parsed) == [
        ("solver.prototxt:2:1", "in the string of 'net', a template's @NET@ is not filled in"),
        (
            "solver.prototxt:3:1",
            r"in the string of 'snapshot_prefix', the escape \d is kept as it stands, but Caffe refuses it",
        ),
        ("solver.prototxt:4:15", "in the string of 'stage', a template's ${STAGE} is not filled in"),
    ]
    assert parsed.message.snapshot_prefix == "C:\\data\n\\d"  # type: ignore[attr-defined]  # made at run time


# ---------------------------------------------------------------------------------------------------------------------
# What is refused
# ---------------------------------------------------------------------------------------------------------------------

REFUSED = {
    "a scalar twice": (
        "base_lr: 0.1\nmomentum: 0.9\nbase_lr: 0.1",
        """\
        s:3:1: 'base_lr' is stated twice in the same SolverParameter
          found: the first one at 1:1
          expected: one 'base_lr'
          hint: Caffe refuses this too: delete one of them""",
    ),
    "a message twice": (
        "train_state { level: 1 }\ntrain_state { stage: 'a' }",
        """\
        s:2:1: 'train_state' is stated twice in the same SolverParameter
          found: the first one at 1:1
          expected: one 'train_state'
          hint: Caffe refuses this too: delete one of them""",
    ),
    "a word for a number": (
        "momentum: 0.9\nbase_lr: fast",
        """\
        s:2:1: 'base_lr' in SolverParameter cannot be fast
          expected: a number""",
    ),
    "a string for a number": (
        'max_iter: "100"',
        """\
        s:1:1: 'max_iter' in SolverParameter cannot be "100"
          expected: a whole number from -2147483648 to 2147483647""",
    ),
    "a fraction for a whole number": (
        "train_state { level: 1.5 }",
        """\
        s:1:15: 'level' in NetState cannot be 1.5
          expected: a whole number from -2147483648 to 2147483647""",
    ),
    "a number too large": (
        "stepvalue: [1, 2147483648]",
        """\
        s:1:16: 'stepvalue' in SolverParameter cannot be 2147483648
          expected: a whole number from -2147483648 to 2147483647""",
    ),
    "a negative size": (
        "net_param { layer { convolution_param { num_output: -1 } } }",
        """\
        s:1:41: 'num_output' in ConvolutionParameter cannot be -1
          expected: a whole number from 0 to 4294967295""",
    ),
    "a word for a truth": (
        "debug_info: yes",
        """\
        s:1:1: 'debug_info' in SolverParameter cannot be yes
          expected: true or false""",
    ),
    "a string without quotes": (
        "lr_policy: step",
        """\
        s:1:1: 'lr_policy' in SolverParameter cannot be step
          expected: text in quotes
          hint: lr_policy: "step\"""",
    ),
    "an enum in quotes": (
        "solver_mode: 'GPU'",
        """\
        s:1:1: 'solver_mode' in SolverParameter cannot be 'GPU'
          expected: one of CPU, GPU
          hint: an enum's value stands without quotes""",
    ),
    "escapes that are no text": (
        r"lr_policy: '\777'",
        """\
        s:1:1: 'lr_policy' in SolverParameter cannot be '\\777'
          expected: a string whose escapes are valid""",
    ),
    "bytes that are no UTF-8": (
        r"net: '\377' lr_policy: 'fixed'",
        """\
        s:1:1: 'net' in SolverParameter cannot be '\\377'
          expected: a string whose escapes are valid""",
    ),
    "a value for a block": (
        "train_state: 1",
        """\
        s:1:1: 'train_state' in SolverParameter cannot be the value 1
          expected: a block { ... }""",
    ),
    "a block for a value": (
        "base_lr { value: 1 }",
        """\
        s:1:1: 'base_lr' in SolverParameter cannot be a block
          expected: a number""",
    ),
    "a list for a single value": (
        "base_lr: [0.1, 0.2]",
        """\
        s:1:11: 'base_lr' in SolverParameter cannot be a list
          expected: a number""",
    ),
    "a list for a single block": (
        "train_state [{ level: 1 }]",
        """\
        s:1:14: 'train_state' in SolverParameter cannot be a list
          expected: a block { ... }""",
    ),
    "an empty list of values without its colon": (
        "stepvalue []",
        """\
        s:1:11: 'stepvalue []': Expected ":".""",
    ),
}


@pytest.mark.parametrize("blanks", range(4))
def test_a_listed_block_is_no_empty_list_wherever_it_begins(blanks: int) -> None:
    parsed = parse_net(Source("n", " " * blanks + "input_shape: [{ }]"))
    assert_aligned(parsed.block, parsed.message)


@pytest.mark.parametrize(("text", "error"), REFUSED.values(), ids=REFUSED.keys())
def test_what_caffe_refuses_is_refused_at_its_place(text: str, error: str) -> None:
    with pytest.raises(PrototxtError) as caught:
        parse_solver(Source("s", text))
    assert str(caught.value) == textwrap.dedent(error)
    assert by_protobuf(text, "SolverParameter") is None


def test_an_unknown_value_beside_a_known_one_states_the_field_once() -> None:
    parsed = solver("solver_mode: TPU solver_mode: CPU")
    assert by_protobuf("solver_mode: CPU", "SolverParameter") == parsed.message


# ---------------------------------------------------------------------------------------------------------------------
# Nets and solvers
# ---------------------------------------------------------------------------------------------------------------------

NET = 'name: "n" layer { name: "ip" type: "InnerProduct" }'
SOLVER = 'net: "n.prototxt" base_lr: 0.1 lr_policy: "fixed"'


def test_a_net_and_a_solver_swapped_are_recognised() -> None:
    with pytest.raises(PrototxtError, match="this is a solver, not a net") as caught:
        net(SOLVER)
    assert str(caught.value.where) == "net.prototxt:1:1"
    with pytest.raises(PrototxtError, match="this is a net, not a solver"):
        solver(NET)


def test_a_field_of_the_other_kind_alone_is_an_unknown_field() -> None:
    assert notes(net("base_lr: 0.1 " + NET)) == [
        ("net.prototxt:1:1", "unknown field 'base_lr' in NetParameter; ignored")
    ]


@pytest.mark.shared
def test_no_pair_is_taken_for_swapped_and_every_swapped_one_is(shared: Path) -> None:
    for folder in sorted((shared / "corpus" / "pairs").iterdir()):
        if folder.name in ("bvlc-lenet-consolidated", "resnet18-badsolver"):
            continue
        a_net, a_solver = read_text(folder / "net.prototxt"), read_text(folder / "solver.prototxt")
        parse_solver(a_solver)
        with pytest.raises(PrototxtError, match="this is a solver, not a net"):
            parse_net(a_solver)
        with pytest.raises(PrototxtError, match="this is a net, not a solver"):
            parse_solver(a_net)
        assert (is_solver(a_net), is_solver(a_solver)) == (False, True)


@pytest.mark.parametrize("name", ["net_param", "train_net_param"])
def test_the_net_inside_a_solver_is_found_with_its_own_notes_and_places(name: str) -> None:
    text = f"{name} {{\n  {NET}\n  layer {{ foo: 1 }}\n}}\nbase_lr: 0.1 frob: 1 lr_policy: 'fixed'"
    whole = solver(text)
    inner = inline_net(whole)
    assert inner is not None
    assert inner.message == by_protobuf(NET + "layer {}", "NetParameter")
    assert notes(inner) == [("solver.prototxt:3:11", "unknown field 'foo' in LayerParameter; kept as written")]
    assert [str(layer.where) for layer in inner.block.all("layer")] == ["solver.prototxt:2:13", "solver.prototxt:3:3"]
    assert_aligned(inner.block, inner.message)
    assert parse_net(Source("solver.prototxt", text)).message == inner.message
    assert len(whole.notes) == 2


def test_a_solver_without_a_net_inside_has_none() -> None:
    assert inline_net(solver(SOLVER)) is None


# ---------------------------------------------------------------------------------------------------------------------
# In one process with others
# ---------------------------------------------------------------------------------------------------------------------


def python(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


CONFLICTING = """
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    def register():  # as pycaffe's caffe_pb2 does: the same file name, package and messages, other fields
        file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe")
        for name in ("NetParameter", "LayerParameter", "ParamSpec", "SolverParameter"):
            message = file.message_type.add(name=name)
            message.field.add(name="name", number=77, label=1, type=9)
        descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
        found = descriptor_pool.Default().FindMessageTypeByName("caffe.NetParameter")
        return message_factory.GetMessageClass(found)(name="theirs").SerializeToString()

    def read():
        from caffe2torch.prototxt.schema import parse_net
        from caffe2torch.recipe import Source
        return parse_net(Source("f", 'name: "ours" layer { param { lr_mult: 2 } }')).message.SerializeToString()
"""


@pytest.mark.parametrize("order", ["register(), read()", "read(), register()"])
def test_another_caffe_proto_in_the_process_changes_nothing(order: str) -> None:
    said = python(textwrap.dedent(CONFLICTING) + f"\nprint(sorted([{order}]))")
    theirs = b"\xea\x04\x06theirs"
    ours = net('name: "ours" layer { param { lr_mult: 2 } }').message.SerializeToString()
    assert said.strip() == repr(sorted([theirs, ours]))


def test_reading_loads_neither_torch_nor_numpy() -> None:
    loaded = python("""
        import sys
        from caffe2torch.prototxt.schema import parse_net
        from caffe2torch.recipe import Source
        parse_net(Source("f", 'layer { tpye: "x" }'))
        print(sorted({name.split(".")[0] for name in sys.modules} & {"torch", "numpy"}))
        """)
    assert loaded.strip() == "[]"


@pytest.mark.shared
@pytest.mark.usefixtures("without_collector")
def test_a_large_net_takes_little_time(shared: Path) -> None:
    source = read_text(shared / "corpus" / "large" / "resnet152-deploy.prototxt")
    best = float("inf")
    for _ in range(5):
        start = time.process_time()
        parse_net(source)
        best = min(best, time.process_time() - start)
    assert best < 0.2


@pytest.mark.usefixtures("without_collector")
def test_the_cost_grows_with_the_number_of_layers() -> None:
    layer = 'layer { name: "c" tpye: "x" param { lr_mult: 1 } convolution_param { num_output: 64 pad: [1, 1] } }\n'

    def cost(layers: int) -> float:
        source = Source("f", layer * layers)
        best = float("inf")
        for _ in range(3):
            start = time.process_time()
            parse_net(source)
            best = min(best, time.process_time() - start)
        return best

    assert cost(2400) < 8 * 3 * cost(300)  # eight times the layers; three for a machine that is busy


# ---- Formats mixed by hand


@pytest.mark.parametrize(("field", "today"), [("blobs_lr: 0", "lr_mult"), ("weight_decay: 0", "decay_mult")])
def test_the_old_formats_multipliers_are_refused_in_todays_layer(field: str, today: str) -> None:
    with pytest.raises(
        PrototxtError, match="belongs to the old format, 'layers', and has no effect in 'layer'"
    ) as error:
        net(f'layer {{ name: "ip"\n  {field} }}')
    assert str(error.value.where) == "net.prototxt:2:3"
    assert error.value.found == field
    assert error.value.expected == f"param {{ {today}: ... }}, one block for each blob"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('layers { type: "InnerProduct" }', 'type: "InnerProduct"'),
        ('layers { name: "ip" param { lr_mult: 1 } type: "InnerProduct" }', "param { ... }"),
    ],
)
def test_todays_fields_in_a_layer_of_the_old_format_are_named_as_a_mixture(text: str, found: str) -> None:
    with pytest.raises(PrototxtError, match="mixes the two formats") as error:
        net(text)
    assert error.value.found == found
    assert error.value.hint == "write 'layer' instead of 'layers'"


@pytest.mark.parametrize(("old", "today"), [("INNER_PRODUCT", "InnerProduct"), ("SOFTMAX_LOSS", "SoftmaxWithLoss")])
def test_an_unquoted_type_gets_a_hint_that_is_right(old: str, today: str) -> None:
    with pytest.raises(PrototxtError) as error:
        net(f"layer {{ type: {old} }}")
    assert error.value.hint == f'type: "{today}"'


@pytest.mark.parametrize(("kind", "field"), [("RReLU", "rrelu_param"), ("FancyConv", "fancy_conv_param")])
def test_a_forks_own_settings_are_taken_for_no_misspelling(kind: str, field: str) -> None:
    (note,) = net(f'layer {{ type: "{kind}" {field} {{ a: 1 }} }}').notes
    assert note.message == f"unknown field {field!r} in LayerParameter: the settings of a fork's {kind} layer"


# ---- Signs, as C++'s parser takes them


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("lr_mult: - 2 decay_mult: 3", (-2.0, 3.0)),
        ("lr_mult: -\n # a comment\n2", (-2.0, 1.0)),
        ("lr_mult: -2 decay_mult: - 0.5", (-2.0, -0.5)),
        ("lr_mult: - inf", (-math.inf, 1.0)),
    ],
)
def test_a_minus_may_stand_apart_from_its_number(text: str, values: tuple[float, float]) -> None:
    parsed = net(f"layer {{ param {{ {text} }} }} layer {{ frob: 1 }}")
    (spec,) = parsed.message.layer[0].param  # type: ignore[attr-defined]  # protobuf's own class
    assert (spec.lr_mult, spec.decay_mult) == values


def test_a_minus_apart_may_stand_in_a_list() -> None:
    parsed = net('layer { type: "Reshape" reshape_param { shape { dim: [0, - 1, 2] } } }')
    assert list(parsed.message.layer[0].reshape_param.shape.dim) == [0, -1, 2]  # type: ignore[attr-defined]


@pytest.mark.parametrize("number", ["+1", "+ 1", "- -1", "-", '- "1"'])
def test_no_plus_and_no_second_sign_stands_before_a_number(number: str) -> None:
    with pytest.raises(PrototxtError) as error:
        net(f"layer {{ param {{ lr_mult: {number} }} }}")
    assert str(error.value.where) == "net.prototxt:1:26"


# ---- Time and memory in proportion to the text


def seconds(read: Callable[[], object]) -> float:
    start = time.process_time()
    read()
    return time.process_time() - start


def test_strings_that_never_end_cost_no_more_than_their_length() -> None:
    def read() -> None:
        with pytest.raises(PrototxtError):
            net("layer { name: " + "'\\" * 80_000)

    assert seconds(read) < 2


def test_a_solver_in_place_of_a_net_is_shown_as_it_begins_unknown_fields_included() -> None:
    with pytest.raises(PrototxtError) as error:
        net('test_intervall: 1 net: "net.prototxt" base_lr: 1')
    assert str(error.value.where) == "net.prototxt:1:1"
    assert error.value.found == "fields of SolverParameter: test_intervall, net, base_lr"


def test_of_many_unknown_fields_the_first_are_noted_and_the_rest_are_counted() -> None:
    text = "".join(f"frobnicate{i}: 1\n" for i in range(1500))
    parsed = net(text)
    assert len(parsed.notes) == 1001
    assert str(parsed.notes[-1].where) == "net.prototxt:1001:1"
    assert parsed.notes[-1].message.startswith("500 more unknown fields")
    assert len(parsed.block.unknown) == 1500


@pytest.mark.parametrize("blank", ["\r", " ", "\t", "\r\n", "\n"])
def test_blanks_after_a_net_cost_little_time_and_memory(blank: str) -> None:
    code = (
        f"import sys; sys.path.append({str(SUPPORT)!r})\n"
        "from memory import peak_bytes\nfrom caffe2torch.prototxt.schema import parse_net\n"
        "from caffe2torch.recipe import Source\n"
        "text = 'layer { name: \"ip\" }'; parse_net(Source('n', text)); blanks = 500_000 * sys.argv[1]\n"
        "before = peak_bytes()\n"
        "assert parse_net(Source('n', text + blanks + text)).message.layer[1].name == 'ip'\n"
        "print((peak_bytes() - before) / len(blanks))"
    )
    result = subprocess.run([sys.executable, "-c", code, blank], capture_output=True, text=True, check=True, timeout=60)
    assert float(result.stdout) < 60  # bytes for each byte of the text
