"""Text to fields with their places: protobuf's text format, without a schema."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caffe2torch.errors import InputError, PrototxtError, SourceLocation
from caffe2torch.prototxt.parser import MAX_DEPTH, Block, Field, parse, read_text, unquote

Tree = list[tuple[str, "str | Tree"]]


def tree(block: Block) -> Tree:
    """Names and values alone."""
    return [(f.name, f.value if isinstance(f.value, str) else tree(f.value)) for f in block.fields]


def walk(block: Block) -> list[Field]:
    """Every field at any depth, in order."""
    return [g for f in block.fields for g in (f, *(walk(f.value) if isinstance(f.value, Block) else ()))]


def outcome(text: str) -> Block | PrototxtError:
    try:
        return parse(text, "f")
    except PrototxtError as error:
        return error


VALID: dict[str, tuple[str, Tree]] = {
    "nothing": ("", []),
    "comments alone": ("# a net\n  # of nothing", []),
    "a scalar": ("base_lr: 0.1", [("base_lr", "0.1")]),
    "scalars of every kind": (
        "a: -1 b: 0x1F c: 017 d: 1.5f e: -inf f: nan g: true h: MAX i: .5 j: 1e-3",
        [
            ("a", "-1"),
            ("b", "0x1F"),
            ("c", "017"),
            ("d", "1.5f"),
            ("e", "-inf"),
            ("f", "nan"),
            ("g", "true"),
            ("h", "MAX"),
            ("i", ".5"),
            ("j", "1e-3"),
        ],
    ),
    "commas and semicolons": (
        "a: 1, b: 2; c { d: 3, }, e: 4",
        [("a", "1"), ("b", "2"), ("c", [("d", "3")]), ("e", "4")],
    ),
    "braces and angles, with and without a colon": (
        "a { } b: { c: 1 } d < e: 2 > f: <>",
        [("a", []), ("b", [("c", "1")]), ("d", [("e", "2")]), ("f", [])],
    ),
    "strings side by side": ("a: 'x' \"y\" # why\n 'z' b: 1", [("a", "'x' \"y\" # why\n 'z'"), ("b", "1")]),
    "quotes and brackets inside strings": (r'a: "}\"{#" b: ' + r"'\'\\'", [("a", r'"}\"{#"'), ("b", r"'\'\\'")]),
    "a list": ("pad: [1, 2 # two\n, 3]", [("pad", "1"), ("pad", "2"), ("pad", "3")]),
    "a list of blocks": ("p: [{a: 1}, <a: 2>] q [{}]", [("p", [("a", "1")]), ("p", [("a", "2")]), ("q", [])]),
    "an empty list": ("pad: [], stride: 1", [("pad", ""), ("stride", "1")]),
    "an extension and an Any": (
        "[caffe.ext]: 1 [ type.googleapis.com/caffe.Blob ] { x: 2 }",
        [("[caffe.ext]", "1"), ("[type.googleapis.com/caffe.Blob]", [("x", "2")])],
    ),
    "carriage returns": ('a {\r\n  b: "c"\r\n}\r\n', [("a", [("b", '"c"')])]),
    "comments everywhere": ("a # b: 1\n: # c\n 2 # }", [("a", "2")]),
}


@pytest.mark.parametrize(("text", "wanted"), VALID.values(), ids=VALID.keys())
def test_valid_text_gives_its_fields(text: str, wanted: Tree) -> None:
    assert tree(parse(text, "f")) == wanted


INVALID = {
    "open block at the end": (
        "layer {\n  param { lr_mult: 1 }\n",
        """\
        f:3:1: the file ends inside 'layer {' of 1:7
          found: the end of the file
          expected: a field or '}'
          hint: the file is cut off, or a closing bracket is missing""",
    ),
    "cut off in a field": (
        "base_lr:",
        """\
        f:1:9: the file ends inside a field
          found: the end of the file
          expected: a value for 'base_lr'
          hint: is the file cut off?""",
    ),
    "one brace too many": (
        "layer { }\n}\n",
        """\
        f:2:1: a '}' closes nothing
          found: '}'
          expected: a field
          hint: one closing bracket too many, or an opening one is missing before it""",
    ),
    "the wrong bracket": (
        "layer {\n  param < lr_mult: 1 }\n}",
        """\
        f:2:22: a '}' stands inside 'param <' of 2:9
          found: '}'
          expected: a field or '>'""",
    ),
    "a merge conflict": (
        "pad: 1\n<<<<<<< HEAD\nstride: 1\n=======\nstride: 2\n>>>>>>> theirs\n",
        """\
        f:2:1: a merge conflict was left in the file
          found: '<<<<<<< HEAD'
          hint: keep one side and delete the lines that begin with <<<<<<<, ======= and >>>>>>>""",
    ),
    "the second side of a merge conflict": (
        "stride: 1\n=======\nstride: 2\n",
        """\
        f:2:1: a merge conflict was left in the file
          found: '======='
          hint: keep one side and delete the lines that begin with <<<<<<<, ======= and >>>>>>>""",
    ),
    "a shell's placeholder": (
        "num_output: ${NUM_LABELS}",
        """\
        f:1:13: the file is a template
          found: the placeholder ${NUM_LABELS}
          expected: a value for 'num_output'
          hint: fill in ${NUM_LABELS} and every other placeholder first""",
    ),
    "an @ placeholder": (
        "max_iter: @ITER@",
        """\
        f:1:11: the file is a template
          found: the placeholder @ITER@
          expected: a value for 'max_iter'
          hint: fill in @ITER@ and every other placeholder first""",
    ),
    "a template engine's placeholder": (
        "num_output: {{ classes }}",
        """\
        f:1:13: the file is a template
          found: the placeholder {{ classes }}
          expected: a field or '}'
          hint: fill in {{ classes }} and every other placeholder first""",
    ),
    "a comment of C++": (
        "pad: 1  // same\n",
        """\
        f:1:9: '//' begins no comment in a prototxt
          found: '// same'
          expected: a field
          hint: Caffe refuses this too: comments begin with '#'""",
    ),
    "prose after the net": (
        "layer { }\nContact GitHub API Training Shop\n",
        """\
        f:2:9: this is not in protobuf's text format
          found: 'GitHub API Training Shop'
          expected: ':' or '{' after 'Contact'
          hint: if the prototxt ends before this line, delete what follows""",
    ),
    "a list without brackets": (
        "device_id: 0,1\nmax_iter: 3",
        """\
        f:1:14: this is not in protobuf's text format
          found: '1'
          expected: a field
          hint: a list stands in brackets: [0, 1]""",
    ),
    "an open string": (
        'name: "conv1\ntype: "x"',
        """\
        f:1:7: a string is not closed on its line
          found: '"conv1'
          expected: a closing \"""",
    ),
    "JSON": (
        '"name": "x"',
        """\
        f:1:1: this is not in protobuf's text format
          found: '"name": "x"'
          expected: a field
          hint: names stand without quotes""",
    ),
    "an equals sign": (
        "base_lr = 0.1",
        """\
        f:1:9: this is not in protobuf's text format
          found: '= 0.1'
          expected: ':' or '{' after 'base_lr'
          hint: ':' stands between a name and its value""",
    ),
    "binary garbage": (
        "\x01\x02net",
        """\
        f:1:1: this is not in protobuf's text format
          found: '\\x01\\x02net'
          expected: a field
          hint: U+0001 can stand only in comments and strings""",
    ),
    "a scalar without a colon": (
        'name "x"',
        """\
        f:1:6: this is not in protobuf's text format
          found: '"x"'
          expected: ':' or '{' after 'name'
          hint: names stand without quotes""",
    ),
    "a list of scalars without a colon": (
        "pad [1]",
        """\
        f:1:6: this is not in protobuf's text format
          found: '1]'
          expected: '{', or ':' between 'pad' and '['""",
    ),
    "a list with a comma at its end": (
        "pad: [1, ]",
        """\
        f:1:10: a ']' stands inside 'pad [' of 1:6
          found: ']'
          expected: a value""",
    ),
    "a list without commas": (
        "pad: [1 2]",
        """\
        f:1:9: this is not in protobuf's text format
          found: '2]'
          expected: ',' or ']'""",
    ),
    "two separators": (
        "a: 1,, b: 2",
        """\
        f:1:6: this is not in protobuf's text format
          found: ', b: 2'
          expected: a field""",
    ),
}


@pytest.mark.parametrize(("text", "message"), INVALID.values(), ids=INVALID.keys())
def test_invalid_text_gives_one_clear_error(text: str, message: str) -> None:
    with pytest.raises(PrototxtError) as caught:
        parse(text, "f")
    assert str(caught.value) == re.sub("^        ", "", message, flags=re.MULTILINE)


def test_a_placeholder_elsewhere_in_the_line_is_not_what_is_wrong() -> None:
    with pytest.raises(PrototxtError, match="a ']' closes nothing"):
        parse("pad: 1 ] # ${PAD}", "f")


def test_a_placeholder_in_a_comment_or_string_is_no_error() -> None:
    assert tree(parse('# $n = 32 * k\nname: "${NET_ID}"', "f")) == [("name", '"${NET_ID}"')]


@pytest.mark.parametrize(("opener", "column"), [("a {", 3), ("a: [{", 4), ("a <", 3)])
@pytest.mark.parametrize("depth", [100, 100_000])
def test_deep_nesting_is_one_clear_error(opener: str, column: int, depth: int) -> None:
    with pytest.raises(PrototxtError, match=f"nested more than {MAX_DEPTH} deep") as caught:
        parse("# deep\n" + opener * depth, "f")
    assert caught.value.hint == f"the outermost of them opens at 2:{column}"


def test_what_is_allowed_to_nest_nests() -> None:
    block = parse("a {" * MAX_DEPTH + "}" * MAX_DEPTH, "f")
    assert len(walk(block)) == MAX_DEPTH


@pytest.mark.parametrize(
    "text",
    [" " * 200_000, "#" * 200_000, '"' * 200_000, "a: '" + "\\" * 200_001, "a: [" + "1, " * 100_000, "[" * 200_000],
)
@pytest.mark.usefixtures("without_collector")
def test_no_text_costs_more_than_its_length(text: str) -> None:
    start = time.process_time()
    result = outcome(text)
    assert not isinstance(result, PrototxtError) or len(str(result)) < 400
    assert time.process_time() - start < 5  # milliseconds; quadratic cost would be minutes


def net_of(layers: int) -> str:
    layer = 'layer { name: "conv%d" type: "Convolution" param { lr_mult: 1 } convolution_param { num_output: 64 } }\n'
    return "".join(layer % i for i in range(layers))


@pytest.mark.usefixtures("without_collector")
def test_the_cost_grows_with_the_number_of_layers() -> None:
    def cost(text: str) -> float:
        best = float("inf")
        for _ in range(3):
            start = time.process_time()
            block = parse(text, "f")
            for i in range(0, len(block.fields), 97):
                assert block.all("layer")[i].name == "layer"
            best = min(best, time.process_time() - start)
        return best

    assert cost(net_of(4000)) < 8 * 3 * cost(net_of(500))  # eight times the layers; three for a machine that is busy


# ---------------------------------------------------------------------------------------------------------------------
# Any tree of fields, written in any way, reads back
# ---------------------------------------------------------------------------------------------------------------------

names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,6}", fullmatch=True)
scalars = st.one_of(
    st.integers().map(str),
    st.floats().map(repr),
    st.sampled_from(["TRAIN", "true", "0x1F", "1.5f", "-inf", "''", r'"a\"}b"', r"'é\n'"]),
)
trees = st.recursive(
    st.lists(st.tuples(names, scalars), max_size=4),
    lambda inner: st.lists(st.tuples(names, scalars | inner), max_size=4),
    max_leaves=12,
)
blanks = st.sampled_from([" ", "\n", "\t", " # a { comment\n", "\r\n", "  "])


def write(fields: Tree, draw: st.DrawFn) -> str:
    text = ""
    for name, value in fields:
        text += draw(blanks) + name + draw(st.sampled_from(["", " "]))
        if isinstance(value, str):
            text += ":" + draw(st.sampled_from(["", " ", "\n"])) + value
        else:
            opener, closer = draw(st.sampled_from(["{}", "<>"]))
            text += draw(st.sampled_from(["", ":", " "])) + opener + write(value, draw) + draw(blanks) + closer
        text += draw(st.sampled_from(["", "", ",", " ;"]))
    return text


@st.composite
def written(draw: st.DrawFn) -> tuple[Tree, str]:
    fields = draw(trees)
    return fields, write(fields, draw) + draw(blanks)


@given(written())
def test_what_is_written_reads_back(pair: tuple[Tree, str]) -> None:
    fields, text = pair
    assert tree(parse(text, "f")) == fields


@given(written())
def test_every_place_and_span_is_where_the_field_stands(pair: tuple[Tree, str]) -> None:
    _, text = pair
    lines = text.split("\n")
    for field in walk(parse(text, "f")):
        start, end = field.span
        assert text[start:].startswith(field.name)
        assert lines[field.where.line - 1][field.where.column - 1 :].startswith(field.name)
        assert [
            (g.name, g.value if isinstance(g.value, str) else tree(g.value)) for g in parse(text[start:end], "f").fields
        ] == [(field.name, field.value if isinstance(field.value, str) else tree(field.value))]


def test_an_element_of_a_list_has_its_own_place_and_the_lists_span() -> None:
    text = "x: 1\npad: [1,\n  2], y: 2"
    _, first, second, _ = parse(text, "f").fields
    assert [(f.where.line, f.where.column, text[slice(*f.span)], f.listed) for f in (first, second)] == [
        (2, 7, "pad: [1,\n  2],", True),
        (3, 3, "pad: [1,\n  2],", True),
    ]


@given(st.text(st.sampled_from(list("ab{}<>[]:,;.\"'\\#\n 1-")), max_size=40))
def test_any_text_gives_fields_or_one_error_with_its_place(text: str) -> None:
    result = outcome(text)
    if isinstance(result, PrototxtError):
        assert isinstance(result.where, SourceLocation)
        assert 1 <= result.where.line <= text.count("\n") + 1


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ('"conv"', "conv"),
        ("'a' # b\n \"c\"", "ac"),
        (r'"\x41\102\n\"\\"', 'AB\n"\\'),
        (r'"C:\data"', "C:\\data"),  # an escape that Python deprecates, and protobuf keeps as it stands
        ('"\\xc3\\xa9"', "é"),
        ("TRAIN", None),
        ("1.5", None),
        (r'"\777"', None),
    ],
)
def test_a_strings_source_says_what_it_holds(value: str, wanted: str | None) -> None:
    assert unquote(value) == wanted


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"a: 1\r\n", "a: 1\r\n"),
        (b"\xef\xbb\xbfa: 1", "a: 1"),
        (b"# \x97 cp1252\nname: '\xc3\xa9'", "# \x97 cp1252\nname: 'é'"),
    ],
)
def test_text_is_read_as_it_stands(tmp_path: Path, content: bytes, wanted: str) -> None:
    file = tmp_path / "net.prototxt"
    file.write_bytes(content)
    source = read_text(file)
    assert (source.file, source.text) == (str(file), wanted)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", None),
        (b" \n\t", None),
        (b"\x89HDF\r\n\x1a\n", "HDF5 (a .caffemodel.h5 or .solverstate.h5?)"),
        (b"\n\x05conv1\x00\x00", "binary data (a .caffemodel or .solverstate?)"),
        ("name: 'x'".encode("utf-16"), "UTF-16 text"),
        (b"PK\x03\x04", "a zip archive (a PyTorch checkpoint?)"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, content: bytes, found: str | None) -> None:
    file = tmp_path / "net.prototxt"
    file.write_bytes(content)
    with pytest.raises(InputError, match="empty" if found is None else "not a text file") as caught:
        read_text(file)
    assert (caught.value.where, caught.value.found) == (str(file), found)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path, message in [(tmp_path / "none", "no such file"), (tmp_path, "a directory"), ("a\0b", "no file name")]:
        with pytest.raises(InputError, match=message):
            read_text(path)
