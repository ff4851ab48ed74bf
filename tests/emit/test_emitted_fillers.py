"""An emitted file that was asked to fills a model as the library does, number for number, with torch alone."""

from __future__ import annotations

import copy
from pathlib import Path

import emitted
import pytest
import torch
from click.testing import CliRunner
from snapshot_runs import bound, run_of, text_file
from torch import nn

import caffe2torch
from caffe2torch.cli import main
from caffe2torch.emit import emit
from caffe2torch.reading import read_recipe
from caffe2torch.snapshot.fillers import initialize, plan_fillings

NET = """
layer { name: "d" type: "Input" top: "d" input_param { shape { dim: 5 dim: 2 dim: 4 } } }
layer { name: "c" type: "Input" top: "c" input_param { shape { dim: 5 dim: 2 } } }
layer { name: "l" type: "LSTM" bottom: "d" bottom: "c" top: "l" recurrent_param { num_output: 6
  weight_filler { type: "gaussian" std: 0.01 sparse: 3 } bias_filler { type: "uniform" min: -1 max: 2 } } }
layer { name: "turned" type: "InnerProduct" bottom: "l" top: "t" inner_product_param { num_output: 7 axis: 2
  transpose: true weight_filler { type: "xavier" variance_norm: AVERAGE } bias_filler { value: 0.1 } } }
layer { name: "name\\"); import os" type: "InnerProduct" bottom: "t" top: "o"
  inner_product_param { num_output: 7 axis: 2 weight_filler { type: "positive_unitball" } } }
layer { name: "prelu" type: "PReLU" bottom: "o" top: "o" prelu_param { channel_shared: true } }
"""
SOLVER = 'base_lr: 0.1 lr_policy: "fixed" momentum: 0.9 max_iter: 9'


class Port(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.turned, self.prelu = nn.LSTM(4, 6), nn.Linear(6, 7), nn.PReLU()
        self.add_module('"); import os', nn.Linear(7, 7))


NAMES = {
    "l/0": "lstm.weight_ih_l0",
    "l/1": "lstm.bias_ih_l0",
    "l/2": "lstm.weight_hh_l0",
    "turned/0": "turned.weight",
    "turned/1": "turned.bias",
    'name"); import os/0': '"); import os.weight',
    'name"); import os/1': '"); import os.bias',
    "prelu/0": "prelu.weight",
}


def test_it_fills_as_the_library_does(tmp_path: Path) -> None:
    recipe = read_recipe(text_file(tmp_path / "n.prototxt", NET), text_file(tmp_path / "s.prototxt", SOLVER))
    ours = Port()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.fill_(9)
    theirs = copy.deepcopy(ours)
    run = run_of(recipe, ours, bound(recipe, ours, NAMES))
    fillings, notes = plan_fillings(ours, recipe, run.binding)
    assert notes == ()
    groups = caffe2torch.binding.plan.plan_groups(recipe, run.binding)
    file = emitted.load(emit(recipe, groups, model_name="Port", fillings=fillings), "filled")
    initialize(ours, recipe, run.binding, torch.Generator().manual_seed(8))
    file.initialize(theirs, torch.Generator().manual_seed(8))
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, theirs.get_parameter(name)), name
        assert not parameter.eq(9).any(), name


@pytest.mark.parametrize("asked", [True, False])
def test_only_when_asked(fixtures: Path, asked: bool) -> None:
    folder = fixtures / "segnet_basic"
    t = caffe2torch.translate(folder / "train.prototxt", folder / "solver.prototxt")
    text = t.source(initialize=asked)
    assert ("def initialize" in text) is asked
    assert ("def fill" in text) is asked
    assert ("initialize(model)\n" in text) is asked
    assert ("bernoulli" in text) is asked


def test_the_command_line_asks_for_it(fixtures: Path, tmp_path: Path) -> None:
    folder = fixtures / "segnet_basic"
    files = [str(folder / "train.prototxt"), str(folder / "solver.prototxt")]
    for name, flags in (("plain.py", []), ("filling.py", ["--initialize"])):
        result = CliRunner().invoke(main, ["translate", *files, "-o", str(tmp_path / name), *flags])
        assert result.exit_code == 0, result.output
    assert "def initialize" not in (tmp_path / "plain.py").read_text()
    assert "def initialize" in (tmp_path / "filling.py").read_text()
