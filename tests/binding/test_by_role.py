"""Where no layer can be bound, a parameter is judged by its role alone, and the report says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from caffe2torch.auditing import audit
from caffe2torch.cli import main
from caffe2torch.errors import BindingError
from caffe2torch.reading import read_recipe
from caffe2torch.recipe import TrainingRecipe

CONVOLUTION = """
layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{name}" param {{ lr_mult: {lr} }}
        param {{ lr_mult: 2 decay_mult: 0 }} convolution_param {{ num_output: 4 kernel_size: 3 }} }}"""
SOLVER = 'base_lr: 0.1 lr_policy: "fixed" weight_decay: 0.01'


class Port(nn.Module):
    """Three convolutions where the net has two, none under its name or with its size."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Conv2d(5, 5, 1) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in self.parts:
            x = x + part(x)
        return x


def make_optimizer(model: nn.Module) -> torch.optim.SGD:
    """The second bias is not decayed less than its weight."""
    weights = [p for name, p in model.named_parameters() if name.endswith("weight") or name == "parts.1.bias"]
    biases = [p for name, p in model.named_parameters() if name.endswith("bias") and name != "parts.1.bias"]
    groups = [{"params": weights, "weight_decay": 0.01}, {"params": biases, "lr": 0.2}]
    return torch.optim.SGD(groups, lr=0.1)


def recipe_of(folder: Path, second_lr: float = 1) -> TrainingRecipe:
    layers = CONVOLUTION.format(name="a", bottom="data", lr=1), CONVOLUTION.format(name="b", bottom="a", lr=second_lr)
    text = 'name: "two" input: "data" input_shape { dim: 1 dim: 3 dim: 9 dim: 9 }' + "".join(layers)
    (folder / "net.prototxt").write_text(text)
    (folder / "solver.prototxt").write_text(SOLVER)
    return read_recipe(folder / "net.prototxt", folder / "solver.prototxt")


def test_rows_go_by_role_and_the_report_is_never_ok(tmp_path: Path) -> None:
    recipe, model = recipe_of(tmp_path), Port()
    with pytest.raises(BindingError):
        audit(recipe, model, make_optimizer(model))
    report = audit(recipe, model, make_optimizer(model), by_role=True)
    assert [row.parameter for row in report.wrong] == ["parts.1.bias"]
    assert [row.blob.name for row in report.rows[:2]] == ["Convolution/0", "Convolution/1"]
    assert report.to_dict()["bound"] is False
    assert "5 of 6 rows ok, judged by role, bound to no layer, 1 mismatch" in str(report)
    right = make_optimizer(model)
    right.param_groups[1]["params"].append(right.param_groups[0]["params"].pop(2))
    report = audit(recipe, model, right, by_role=True)
    assert not report.wrong
    assert not report.ok


def test_a_role_with_two_pairs_of_multipliers_is_refused_with_their_lines(tmp_path: Path) -> None:
    with pytest.raises(BindingError, match=r"several pairs of multipliers: \(1.0, 1.0\) at line 2 and \(5.0, 1.0\)"):
        audit(recipe_of(tmp_path, 5), Port(), make_optimizer(Port()), by_role=True)


def test_a_role_that_the_net_has_not_is_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(BindingError, match=r"no blob of the role of 0.weight, the weight of a Linear"):
        audit(recipe_of(tmp_path), model, torch.optim.SGD(model.parameters(), lr=0.1), by_role=True)


def test_on_the_command_line_it_is_an_option_and_the_exit_status_is_1(tmp_path: Path) -> None:
    recipe_of(tmp_path)
    files = [str(tmp_path / name) for name in ("net.prototxt", "solver.prototxt")]
    options = ["--model", f"{__file__}:Port", "--optimizer", f"{__file__}:make_optimizer", "--format", "json"]
    runner = CliRunner()
    refused = runner.invoke(main, ["audit", *files, *options])
    assert refused.exit_code == 2
    assert "--by-role" in refused.stderr
    judged = runner.invoke(main, ["audit", *files, *options, "--by-role"])
    assert judged.exit_code == 1
    assert json.loads(judged.stdout)["bound"] is False
