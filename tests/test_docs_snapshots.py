"""Every example of docs/snapshots.md runs and prints what the page says."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "docs/snapshots.md"


def test_the_page_says_what_happens(
    fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = fixtures / "snapshots/resume/snap_sgd_multistep_newsteps"
    for name in ("net.prototxt", "solver.prototxt", "snap_iter_17.caffemodel", "snap_iter_17.solverstate"):
        shutil.copy(recorded / name, tmp_path / name)
    net = (tmp_path / "net.prototxt").read_text()
    (tmp_path / "net5.prototxt").write_text(
        net.replace("num_output: 2 ", "num_output: 5 ").replace("dim: 2 dim: 2", "dim: 2 dim: 5")
    )
    whole = (tmp_path / "snap_iter_17.caffemodel").read_bytes()
    (tmp_path / "cut.caffemodel").write_bytes(whole[: whole.index(b"ip_out", whole.index(b"sh2")) - 5])
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```(python|text)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) > 12
    scope: dict[str, object] = {}
    for kind, text in blocks:
        if kind == "python":
            capsys.readouterr()
            exec(compile(text, str(PAGE), "exec"), scope)
        else:
            assert capsys.readouterr().out == text
