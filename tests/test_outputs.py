"""Outputs: whole or not at all, all of a set or none, never over an existing file unless asked, nothing left over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from caffe2torch.errors import OutputError
from caffe2torch.outputs import check_outputs, check_writable, whole_file, whole_files, write_files

RUN = "0123456789abcdef"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_new_file_holds_exactly_the_text(tmp_path: Path) -> None:
    write_files({tmp_path / "a.py": "naïve\n"})
    assert (tmp_path / "a.py").read_bytes() == "naïve\n".encode()


def test_an_existing_file_is_kept_without_force_and_replaced_with_it(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text("old")
    with pytest.raises(OutputError, match="exists already") as caught:
        write_files({path: "new"})
    assert caught.value.where == str(path)
    assert "--force" in (caught.value.hint or "")
    assert path.read_text() == "old"
    write_files({path: "new"}, force=True)
    assert path.read_text() == "new"


def test_when_one_of_several_outputs_is_refused_none_is_written(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("old")
    with pytest.raises(OutputError):
        write_files({tmp_path / "free": "x", tmp_path / "taken": "y"})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["taken"]


@pytest.mark.parametrize("name", [".", "missing/a.py"])
def test_a_place_that_cannot_hold_a_file_is_refused_before_work_starts(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError):
        check_writable(tmp_path / name)


def test_a_failed_write_leaves_the_old_file_and_no_debris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.py"
    path.write_text("old")

    def disk_full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OutputError, match="No space left on device"):
        write_files({path: "new"}, force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["a.py"]
    assert path.read_text() == "old"


def test_a_link_stays_a_link_and_a_device_a_device(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_files({tmp_path / "link": "new", "/dev/null": "gone"}, force=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"
    assert not Path("/dev/null").is_file()


def test_a_written_file_has_the_permissions_of_an_ordinary_one(tmp_path: Path) -> None:
    write_files({tmp_path / "a": ""})
    (tmp_path / "b").write_text("")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_an_output_over_another_an_input_or_stdout_is_refused_whatever_force_says(tmp_path: Path) -> None:
    net, link, hard = tmp_path / "net.prototxt", tmp_path / "link", tmp_path / "hard"
    net.write_text("net")
    link.symlink_to(net)
    hard.hardlink_to(net)
    for output in (net, link, hard):
        with pytest.raises(OutputError, match="over the input"):
            check_outputs([output], [net], force=True)
    for other in (tmp_path / "y", tmp_path / "sub/../y"):
        (tmp_path / "sub").mkdir(exist_ok=True)
        with pytest.raises(OutputError, match=r"over the output '.*y'"):
            check_outputs([tmp_path / "y", other])
    check_outputs([tmp_path / "x", None, tmp_path / "y"], [net, None, "absent"])
    with pytest.raises(OutputError, match="over the output"):
        write_files({tmp_path / "y": "a", str(tmp_path / "y"): "b"})
    assert net.read_text() == "net"
    program = "import sys; from caffe2torch.outputs import check_outputs; check_outputs(['out.txt'], force=True)"
    with (tmp_path / "out.txt").open("wb") as out:
        done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, stdout=out, stderr=subprocess.PIPE)
    assert b"over standard output" in done.stderr


@pytest.mark.parametrize("name", ["n" * 300, "null\0", "loop", "file/below"])
def test_a_name_that_no_file_can_have_is_one_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("")
    for write in (check_writable, lambda path: write_files({path: ""}), lambda path: whole_file(path).__enter__()):
        with pytest.raises(OutputError, match="cannot be written"):
            write(tmp_path / name)


def test_the_longest_name_that_a_file_can_have_can_be_written(tmp_path: Path) -> None:
    write_files({tmp_path / ("n" * 255): "whole", tmp_path / ("m" * 255): "whole"})
    assert len(names(tmp_path)) == 2


def test_a_stream_is_written_to_as_it_is_and_after_the_files(tmp_path: Path) -> None:
    program = (
        "from caffe2torch.outputs import write_files\n"
        "print('first', end=' ')\n"
        "write_files({'/dev/stdout': 'second', 'a': 'file'})\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("first second", "")
    with (tmp_path / "log").open("w") as log:
        subprocess.run([sys.executable, "-c", program], cwd=tmp_path, stdout=log, check=False)
    assert (tmp_path / "log").read_text() == "first "  # "a" was there: nothing is written, not even to the stream
    (tmp_path / "a").unlink()
    with pytest.raises(OutputError, match="/dev/full: cannot be written: No space left on device"):
        write_files({"/dev/full": "no", tmp_path / "a": "nor this"})
    assert names(tmp_path) == ["log"]


def test_when_one_of_several_cannot_be_moved_to_its_place_all_are_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_text("old")
    replace = Path.replace

    def refuse_c(self: Path, target: Path) -> Path:
        if target.name == "c":
            raise OSError(1, "Operation not permitted")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refuse_c)
    with pytest.raises(OutputError, match="c: cannot be written: Operation not permitted"):
        write_files({tmp_path / name: "new" for name in "abcd"}, force=True)
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_what_the_block_raises_passes_through_and_nothing_is_left(tmp_path: Path) -> None:
    def fail() -> None:
        with whole_files([tmp_path / "a", tmp_path / "b"]) as (first, _):
            first.write(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert names(tmp_path) == []


@pytest.mark.parametrize("kills", [8, pytest.param(60, marks=pytest.mark.slow)])
def test_killed_at_any_moment_every_file_is_whole_and_the_next_run_leaves_nothing(tmp_path: Path, kills: int) -> None:
    script = Path(__file__).parent / "support/killed_writer.py"
    done = subprocess.run([sys.executable, script, str(kills)], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    interrupted, completed = map(int, done.stdout.split())
    assert interrupted > kills / 3
    assert completed < interrupted


def interrupted_set(folder: Path, *, first: Path, moves: dict[str, str]) -> None:
    """What is left of a run that was killed when all was on disk."""
    (folder / f".caffe2torch-{RUN}.json").write_text(json.dumps({"folders": [str(first)], "files": moves}))
    for part in moves:
        (folder / part).write_text(f"new {part[-6]}")


def test_a_set_is_completed_when_its_journal_was_written_and_removed_when_not(tmp_path: Path) -> None:
    moves = {f".caffe2torch-{RUN}-0.part": "a", f".caffe2torch-{RUN}-1.part": "b"}
    (tmp_path / "a").write_text("old")
    interrupted_set(tmp_path, first=tmp_path, moves=moves)
    (tmp_path / f".caffe2torch-{RUN}-0.old").hardlink_to(tmp_path / "a")
    write_files({tmp_path / "other": ""})
    assert [(tmp_path / name).read_text() for name in ("a", "b")] == ["new 0", "new 1"]
    assert names(tmp_path) == ["a", "b", "other"]
    interrupted_set(tmp_path, first=tmp_path, moves=moves)
    (tmp_path / f".caffe2torch-{RUN}.json").unlink()
    write_files({tmp_path / "other": ""}, force=True)
    assert names(tmp_path) == ["a", "b", "other"]


def test_a_run_that_still_writes_is_left_alone(tmp_path: Path) -> None:
    with whole_files([tmp_path / "a", tmp_path / "b"]) as (first, second):
        first.write(b"first")
        write_files({tmp_path / "other": ""})
        second.write(b"second")
    assert names(tmp_path) == ["a", "b", "other"]


@pytest.mark.parametrize(
    "forged",
    [
        {"folders": ["."], "files": {f".caffe2torch-{RUN}-0.part": "../mine"}},
        {"folders": ["."], "files": {f".caffe2torch-{RUN}-0.part": "/mine"}},
        {"folders": ["."], "files": {"../mine": "stolen"}},
        {"folders": ["."], "files": {f".caffe2torch-{RUN}-0.part": ".."}},
        {"folders": [], "files": {}},
        {"folders": 3},
        [[[]]],
    ],
)
def test_a_forged_journal_moves_nothing_into_or_out_of_another_folder(tmp_path: Path, forged: object) -> None:
    (tmp_path / "mine").write_text("mine")
    folder = tmp_path / "fetched"
    folder.mkdir()
    (folder / f".caffe2torch-{RUN}.json").write_text(json.dumps(forged))
    (folder / f".caffe2torch-{RUN}-0.part").write_text("hostile")
    write_files({folder / "other": ""})
    assert (tmp_path / "mine").read_text() == "mine"
    assert names(tmp_path) == ["fetched", "mine"]
    assert names(folder) == ["other"]
