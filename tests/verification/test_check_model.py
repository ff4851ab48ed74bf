"""Where the check ``model`` appears, and what it counts for."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from ported_nets import PORTS
from torch import nn

import caffe2torch
from caffe2torch.cli import main
from caffe2torch.errors import ModelError
from caffe2torch.lock import lock_of
from caffe2torch.report import render
from caffe2torch.testing import assert_optimizer_matches
from caffe2torch.verification.report import Check, Report, Result

SOLVER = 'base_lr: 0.01 lr_policy: "fixed" momentum: 0.9'
MESSAGE = "You have eps 1e-05 (bn1), Caffe has 0.001"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    monkeypatch.chdir(tmp_path)
    Path("net.prototxt").write_text(PORTS["resnet"].net)
    Path("solver.prototxt").write_text(SOLVER)
    return "net.prototxt", "solver.prototxt"


def port(**changed: Any) -> nn.Module:
    model = PORTS["resnet"].build(**changed)
    return model.to_empty(device="cpu")


def model_check(report: Report) -> Check:
    return next(check for check in report.checks if check.name == "model")


def audited(files: tuple[str, str], **options: Any) -> Report:
    model = port(bn1_eps=1e-5)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9)
    return caffe2torch.audit(caffe2torch.read_recipe(*files), model, optimizer, **options)


def test_a_difference_does_not_count_unless_it_is_asked_for(files: tuple[str, str]) -> None:
    t = caffe2torch.translate(*files, port(bn1_eps=1e-5))
    assert t.report.ok
    assert model_check(t.report).result is Result.DIFFERS
    assert "1 of 2 checks differs: model" in str(t.report).splitlines()[-1]
    assert not caffe2torch.translate(*files, port(bn1_eps=1e-5), strict=True).report.ok
    assert caffe2torch.translate(*files, port(), strict=True).report.ok
    assert [audited(files, strict=strict).ok for strict in (False, True)] == [True, False]


@pytest.mark.parametrize("accept", ["model", "model:bn1.eps", "model:bn_conv1.eps", r"model:.*\.eps"])
def test_what_is_accepted_does_not_count_even_when_strict(files: tuple[str, str], accept: str) -> None:
    report = audited(files, strict=True, accept=[accept])
    assert (report.ok, model_check(report).result) == (True, Result.ACCEPTED)
    t = caffe2torch.translate(*files, port(bn1_eps=1e-5), strict=True, accept=[accept])
    assert (t.report.ok, model_check(t.report).result) == (True, Result.ACCEPTED)


def test_every_form_of_the_report_says_it(files: tuple[str, str]) -> None:
    report = audited(files)
    text = " ".join(str(report).split())
    assert MESSAGE in text
    assert "accept what is meant: --accept model:bn1.eps" in text
    assert MESSAGE.replace("(", r"\(").replace(")", r"\)") in render(report, "md").replace(r"\-", "-").replace(
        r"\.", "."
    )
    data = json.loads(render(report, "json"))
    (found,) = [check for check in data["checks"] if check["check"] == "model"]
    assert (found["result"], found["kinds"]) == ("differs", ["model"])
    assert found["differences"] == [
        {
            "name": "bn1.eps",
            "setting": "eps",
            "module": "bn1",
            "layer": "bn_conv1",
            "yours": "eps 1e-05",
            "caffes": "0.001",
            "effect": "",
            "where": str(report.rows[1].blob.where),
        }
    ]
    assert MESSAGE in report._repr_html_()


def test_an_assertion_says_it_where_it_is_strict(files: tuple[str, str]) -> None:
    model = port(bn1_eps=1e-5)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9)
    recipe = caffe2torch.read_recipe(*files)
    assert_optimizer_matches(recipe, model, optimizer)
    with pytest.raises(AssertionError, match=r"- model: You have eps 1e-05 \(bn1\), Caffe has 0.001"):
        assert_optimizer_matches(recipe, model, optimizer, strict=True)


def test_a_lock_holds_no_layers(files: tuple[str, str]) -> None:
    model = port(bn1_eps=1e-5)
    t = caffe2torch.translate(*files, model)
    lock = lock_of(t.recipe, t.binding, t.groups)
    report = caffe2torch.audit(lock, model, torch.optim.SGD(model.parameters(), 0.01, 0.9), strict=True)
    assert report.ok
    assert model_check(report).text == "a lock holds no layers: give the prototxts"
    assert model_check(report).result is Result.NOT_SEEN


def test_without_a_model_there_is_nothing_to_compare(files: tuple[str, str], fixtures: Path) -> None:
    assert "model" not in [check.name for check in caffe2torch.translate(*files).report.checks]
    folder = fixtures / "segnet_basic"
    t = caffe2torch.translate(folder / "train.prototxt", folder / "solver.prototxt")
    assert model_check(t.report).result is Result.OK


class Small(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU())


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.01, 0.9)


def test_the_command_line_takes_strict_and_accept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.prototxt").write_text(
        'input: "x" input_shape { dim: 1 dim: 3 dim: 9 dim: 9 } layer { name: "c" type: "Convolution" bottom: "x" '
        'top: "c" convolution_param { num_output: 4 kernel_size: 3 } } '
        'layer { name: "r" type: "ReLU" bottom: "c" top: "c" }'
    )
    Path("solver.prototxt").write_text(SOLVER)
    parts = ["import torch", "from torch import nn", inspect.getsource(Small), inspect.getsource(sgd)]
    Path("ported_small.py").write_text("\n".join(parts))
    common = ["net.prototxt", "solver.prototxt", "--model", "ported_small.py:Small"]
    commands = (["translate", *common], ["audit", *common, "--optimizer", "ported_small.py:sgd"])
    for command in commands:
        for options, status in (
            ([], 0),
            (["--strict"], 1),
            (["--strict", "--accept", "model:0.stride"], 0),
            (["--strict", "--accept", "model:0.padding"], 1),
        ):
            result = CliRunner().invoke(main, [*command, *options])
            assert result.exit_code == status, result.output
            assert "You have stride 2 (0), Caffe has 1, net.prototxt:1" in " ".join(result.stdout.split())


def test_a_model_whose_layers_are_not_bound_is_not_compared(files: tuple[str, str]) -> None:
    model = port(bn1_eps=1e-5)
    report = caffe2torch.audit(
        caffe2torch.read_recipe(*files), model, torch.optim.SGD(model.parameters(), 0.01, 0.9), by_role=True
    )
    assert model_check(report).text == "the model's layers are not bound to the net's"


def test_a_pattern_that_accepts_nothing_is_mentioned(files: tuple[str, str]) -> None:
    report = caffe2torch.translate(*files, port(bn1_eps=1e-5), accept=["model:nothing", "model:bn1.eps"]).report
    (check,) = (check for check in report.checks if check.name == "model")
    assert "no difference matches --accept model:nothing" in check.text
    assert "model:bn1.eps" not in check.text


@pytest.mark.parametrize("shapes", [(1, 3, 32, 32), [(1, "3")], 5, {"data": 3}])
def test_shapes_that_are_none_are_refused(files: tuple[str, str], shapes: object) -> None:
    with pytest.raises(ModelError, match="input_shapes is"):
        caffe2torch.translate(*files, port(), input_shapes=shapes)  # type: ignore[arg-type]
