"""``caffe2torch audit``: the mistake that this project starts from, found from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from caffe2torch.cli import main

PORT = '''
import torch
import caffe2torch

FILES = {files!r}

def net():
    return caffe2torch.SegNetBasic(4, 3, width=64)

def notebook(net):
    """The hand-written optimizer: whatever has "bias" in its name learns twice as fast and does not decay."""
    weights = [p for name, p in net.named_parameters() if "bias" not in name]
    biases = [p for name, p in net.named_parameters() if "bias" in name]
    groups = [{{"params": weights, "weight_decay": 0.0005}}, {{"params": biases, "lr": 0.02}}]
    return torch.optim.SGD(groups, lr=0.01, momentum=0.9)

def translated(net):
    return caffe2torch.translate(*FILES, net).optimizer

def scheduler(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda iteration: 1.0)

def raises(net):
    raise RuntimeError("no optimizer today")
'''


@pytest.fixture
def files(fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    prototxts = [str(fixtures / "segnet_basic" / name) for name in ("train.prototxt", "solver.prototxt")]
    (tmp_path / "their_port.py").write_text(PORT.format(files=prototxts))
    return prototxts


def audit(*arguments: str) -> tuple[int, dict[str, object]]:
    result = CliRunner().invoke(
        main, ["audit", *arguments, "--model", "their_port.py:net", "--format", "json"], catch_exceptions=False
    )
    return result.exit_code, json.loads(result.stdout) if result.stdout else {"error": result.stderr}


def wrong(report: dict[str, object]) -> list[str]:
    rows = report["parameters"]
    assert isinstance(rows, list)
    return [row["parameter"] for row in rows if row["verdict"] != "ok"]


SHIFTS = [f"conv{k}_bn.bias" for k in (1, 2, 3, 4)] + [f"conv_decode{k}_bn.bias" for k in (4, 3, 2, 1)]


def test_the_notebooks_rule_mistreats_exactly_the_eight_bn_shifts_and_one_line_says_why(files: list[str]) -> None:
    status, report = audit(*files, "--optimizer", "their_port.py:notebook")
    assert status == 1
    assert wrong(report) == SHIFTS
    causes = report["causes"]
    assert isinstance(causes, list)
    assert len(causes) == 1
    assert "all 8 BN shifts: lr x2 and no decay" in causes[0]["message"]


def test_a_translated_optimizer_passes(files: list[str]) -> None:
    status, report = audit(*files, "--optimizer", "their_port.py:translated", "--scheduler", "their_port.py:scheduler")
    assert (status, wrong(report)) == (0, [])


def test_a_lock_does_without_the_prototxts(files: list[str], tmp_path: Path) -> None:
    written = CliRunner().invoke(main, ["translate", *files, "--model", "their_port.py:net", "--lock", "port.json"])
    assert written.exit_code == 0
    status, report = audit("--lock", "port.json", "--optimizer", "their_port.py:notebook")
    assert (status, wrong(report)) == (1, SHIFTS)
    status, report = audit("--lock", "port.json", "--optimizer", "their_port.py:translated")
    assert (status, wrong(report)) == (0, [])
    assert str(tmp_path) not in (tmp_path / "port.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--optimizer", "their_port.py:raises"], "no optimizer today"),
        (["--optimizer", "their_port.py:absent"], "absent"),
        (["--optimizer", "their_port.py:net"], "their_port.py:net"),
        (["--optimizer", "their_port.py:notebook", "--accept", "everything"], "everything"),
        (["--optimizer", "their_port.py:notebook", "--lock", "port.json"], "either"),
    ],
)
def test_what_cannot_be_audited_is_refused_with_a_reason(files: list[str], arguments: list[str], words: str) -> None:
    status, report = audit(*files, *arguments)
    assert status == 2
    assert words in str(report["error"])
