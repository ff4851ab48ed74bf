"""proto/caffe.proto against the facts of BVLC's and the SegNet fork's own schemas, and against what is compiled."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from places import REPOSITORY

from caffe2torch.prototxt.descriptors import facts
from caffe2torch.prototxt.unknown_fields import LISTED_IN_FORKS, forks_with

COMPILED = REPOSITORY / "caffe2torch" / "prototxt" / "caffe_schema.binpb"
FORK_NAMES = REPOSITORY / "caffe2torch" / "prototxt" / "fork_names.csv"
FIELD = descriptor_pb2.FieldDescriptorProto

MOVED = {  # numbers of the SegNet fork that belong to other fields of BVLC's
    ("LayerParameter", "upsample_param"): 10137,
    ("LayerParameter", "dense_image_data_param"): 10138,
    ("LossParameter", "weight_by_label_freqs"): 10003,
}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def compiled_file() -> descriptor_pb2.FileDescriptorProto:
    return descriptor_pb2.FileDescriptorSet.FromString(COMPILED.read_bytes()).file[0]


def compiled_fields() -> dict[tuple[str, str], dict[str, str]]:
    """Every field of what is compiled, in the words of the facts."""
    return {
        (message.name, field.name): {
            "number": str(field.number),
            "label": FIELD.Label.Name(field.label).removeprefix("LABEL_").lower(),
            "type": " ".join(
                part
                for part in (
                    FIELD.Type.Name(field.type).removeprefix("TYPE_").lower(),
                    field.type_name.removeprefix(".caffe."),
                )
                if part
            ),
            "default": field.default_value,
            "deprecated": str(int(field.options.deprecated)),
            "packed": str(int(field.options.packed)),
        }
        for message in compiled_file().message_type
        for field in message.field
    }


def compiled_enums() -> dict[tuple[str, str], int]:
    file = compiled_file()
    enums = {enum.name: enum for enum in file.enum_type}
    for message in file.message_type:
        enums |= {f"{message.name}.{enum.name}": enum for enum in message.enum_type}
    return {(name, value.name): value.number for name, enum in enums.items() for value in enum.value}


@pytest.mark.shared
def test_every_field_of_bvlc_and_of_the_segnet_fork_is_there_as_it_is_and_no_other(shared: Path) -> None:
    wanted: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows(shared / "schema" / "caffe_proto_fields.csv"):  # BVLC's rows stand first, and BVLC's words count
        del row["fork"]
        key = row.pop("message"), row.pop("field")
        wanted.setdefault(key, row | ({"number": str(MOVED[key])} if key in MOVED else {}))
    assert compiled_fields() == wanted


@pytest.mark.shared
def test_only_numbers_that_bvlc_uses_otherwise_are_moved(shared: Path) -> None:
    facts_ = rows(shared / "schema" / "caffe_proto_fields.csv")
    taken = {(row["message"], row["number"]) for row in facts_ if row["fork"] == "bvlc"}
    known = {(row["message"], row["field"]) for row in facts_ if row["fork"] == "bvlc"}
    clashes = {
        (row["message"], row["field"])
        for row in facts_
        if row["fork"] == "segnet"
        and (row["message"], row["field"]) not in known
        and (row["message"], row["number"]) in taken
    }
    assert clashes == set(MOVED)


@pytest.mark.shared
def test_every_enum_value_of_bvlc_and_of_the_segnet_fork_is_there_and_no_other(shared: Path) -> None:
    wanted = {
        (row["enum"], row["value"]): int(row["number"]) for row in rows(shared / "schema" / "caffe_proto_enums.csv")
    }
    assert compiled_enums() == wanted


@pytest.mark.shared
def test_the_forks_of_every_name_that_we_do_not_know_are_as_recorded(shared: Path) -> None:
    known = set(compiled_fields()) | set(compiled_enums())
    owners = {owner for owner, _ in known}
    merged = [(row["message"], row["field"], row) for row in rows(shared / "schema" / "proto_merge.csv")]
    merged += [(row["enum"], row["value"], row) for row in rows(shared / "schema" / "proto_enum_merge.csv")]
    wanted = {
        (owner, name): row["forks_if_not_bvlc"]
        for owner, name, row in merged
        if owner in owners and (owner, name) not in known
    }
    assert {(row["owner"], row["name"]): row["forks"] for row in rows(FORK_NAMES)} == wanted


@pytest.mark.shared
def test_the_fields_that_may_be_lists_in_a_fork_alone_are_as_recorded(shared: Path) -> None:
    known = compiled_fields()
    recorded = {
        (row["message"], row["field"])
        for row in rows(shared / "schema" / "proto_merge.csv")
        if known.get((row["message"], row["field"]), {}).get("label") == "optional" and "repeated<-" in row["labels"]
    }
    assert recorded == LISTED_IN_FORKS


def test_a_name_that_our_schema_knows_is_no_forks() -> None:
    for row in rows(FORK_NAMES):
        fields = facts(row["owner"]) if "." not in row["owner"] and row["owner"] != "Phase" else {}
        assert row["name"] not in fields


def test_versions_of_one_fork_count_once() -> None:
    assert forks_with("SolverParameter", "rampup_lr") == ("nvidia",)
    assert forks_with("SolverParameter", "richness") == ("yjxiong",)
    assert forks_with("SolverParameter", "weight_dacay") == ()


def compile_in(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, folder / "proto" / "compile.py", *arguments], capture_output=True, text=True, check=False
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the schema's files, below a path with a space in it."""
    pytest.importorskip("grpc_tools", reason="protoc comes with grpcio-tools")
    root = tmp_path / "a checkout"
    shutil.copytree(REPOSITORY / "proto", root / "proto")
    (root / "caffe2torch" / "prototxt").mkdir(parents=True)
    shutil.copy(COMPILED, root / "caffe2torch" / "prototxt")
    return root


def test_what_is_compiled_is_what_the_source_says(checkout: Path) -> None:
    run = compile_in(checkout, "--check")
    assert (run.returncode, run.stderr) == (0, "")


def test_a_stale_file_is_reported_and_compiling_mends_it(checkout: Path) -> None:
    source = checkout / "proto" / "caffe.proto"
    source.write_text(source.read_text().replace("momentum2 = 39", "momentum2 = 390"))
    run = compile_in(checkout, "--check")
    assert run.returncode == 1
    assert run.stderr == "caffe_schema.binpb is stale: caffe.proto says something else; run 'make proto'\n"
    assert compile_in(checkout).returncode == 0
    assert compile_in(checkout, "--check").returncode == 0


@pytest.mark.parametrize("content", [None, b"", b"\xff no descriptors"])
def test_a_missing_or_damaged_file_is_stale(checkout: Path, content: bytes | None) -> None:
    compiled = checkout / "caffe2torch" / "prototxt" / "caffe_schema.binpb"
    compiled.unlink()
    if content is not None:
        compiled.write_bytes(content)
    run = compile_in(checkout, "--check")
    assert run.returncode == 1
    assert len(run.stderr.splitlines()) == 1


def test_a_comment_makes_nothing_stale(checkout: Path) -> None:
    source = checkout / "proto" / "caffe.proto"
    source.write_text(source.read_text() + "\n// no descriptor changes\n")
    assert compile_in(checkout, "--check").returncode == 0
