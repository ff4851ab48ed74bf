"""Set-ups that real Caffe was given and refused, or accepted: the command line comes to the same verdict."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from places import REPOSITORY

from caffe2torch.cli import main

ERRORS = REPOSITORY.parent / "shared" / "goldens" / "bvlc_errors"
CASES = sorted(path.name for path in ERRORS.iterdir()) if ERRORS.is_dir() else []
SOLVER = 'base_lr: 0.1 lr_policy: "fixed" momentum: 0.9\n'
BEFORE_2017 = {"sigmoid_negative_gamma"}  # refused since December 2017 only: forks and DIGITS train with it
NET = """
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 2 } }
"""


@pytest.mark.shared
@pytest.mark.parametrize("case", CASES)
def test_our_verdict_is_caffes(shared: Path, case: str) -> None:
    folder = shared / "goldens" / "bvlc_errors" / case
    caffe_accepts = case in BEFORE_2017 or (folder / "caffe_said.txt").read_text().startswith("exit 0")
    result = CliRunner().invoke(main, ["translate", str(folder / "net.prototxt"), str(folder / "solver.prototxt")])
    assert result.exit_code == (0 if caffe_accepts else 2), result.output
    if caffe_accepts:  # each of them hardly can be meant
        assert "warning" in result.stdout or case in BEFORE_2017
    else:
        assert result.stderr.startswith(f"error: {folder}")


def test_a_field_that_no_caffe_has_is_noted_by_inspect_and_refused_by_translate_unless_named(tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(NET)
    (tmp_path / "solver.prototxt").write_text(SOLVER + "weight_dacay: 0.0005\n")
    files = [str(tmp_path / "net.prototxt"), str(tmp_path / "solver.prototxt")]
    shown = CliRunner().invoke(main, ["inspect", *files])
    assert shown.exit_code == 0
    assert "weight_dacay" in shown.stdout
    refused = CliRunner().invoke(main, ["translate", *files])
    assert refused.exit_code == 2
    assert refused.stderr.startswith(f"error: {files[1]}:2:1: weight_dacay is not translated")
    assert "did you mean 'weight_decay'?" in refused.stderr
    assert CliRunner().invoke(main, ["translate", *files, "--without", "weight_dacay"]).exit_code == 0
