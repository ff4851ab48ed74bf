"""Outputs: whole or not at all, never over an existing file unless asked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from caffe2torch.errors import OutputError
from caffe2torch.outputs import check_writable, write_files


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
