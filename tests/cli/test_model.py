"""``caffe2torch model``: a net as a Python file."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from places import REPOSITORY

from caffe2torch.cli import main
from caffe2torch.errors import NetError
from caffe2torch.translation import translate

RUN = REPOSITORY / "fixtures" / "runs" / "sigmoid_nesterov_sum"
NET, SOLVER = str(RUN / "net.prototxt"), str(RUN / "solver.prototxt")


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["model", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_the_file_is_printed_or_written(tmp_path: Path) -> None:
    status, printed, _ = run(NET)
    assert status == 0
    assert "class SigmoidNesterovSum(nn.Module):" in printed
    file = tmp_path / "model.py"
    assert run(NET, "-o", str(file))[0] == 0
    assert file.read_text() == printed
    assert run(NET, "-o", str(file))[0] == 2
    assert run(NET, "-o", str(file), "--force")[0] == 0


def test_model_loss_and_optimizer_in_one_file_train_with_torch_alone(tmp_path: Path) -> None:
    assert run(NET, SOLVER, "--with", "loss,optimizer", "-o", str(tmp_path / "training.py"))[0] == 0
    program = """
import sys, torch, training
net = training.SigmoidNesterovSum()
training.initialize(net)
optimizer = training.build_optimizer(net)
scheduler = training.build_scheduler(optimizer)
torch.manual_seed(0)
batch = [torch.rand(shape) for shape in SHAPES]
before = net.loss(*batch).item()
for _ in range(20):
    optimizer.zero_grad()
    net.loss(*batch).backward()
    optimizer.step()
    scheduler.step()
assert 'caffe2torch' not in sys.modules
assert net.loss(*batch).item() < before, (before, net.loss(*batch).item())
"""
    import caffe2torch

    recipe = caffe2torch.read_recipe(NET)
    shapes = [shape for one in recipe.layers if not one.bottoms for shape in one.top_shapes]
    done = subprocess.run(
        [sys.executable, "-c", program.replace("SHAPES", repr(shapes))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_what_a_loss_was_given_is_written(fixtures: Path) -> None:
    status, printed, _ = run(str(fixtures / "segnet_basic" / "train.prototxt"), "--with", "loss")
    assert status == 0
    assert "CaffeSoftmaxLoss(class_weights=(0.259" in printed


def test_a_part_that_there_is_not_is_refused() -> None:
    status, _, message = run(NET, "--with", "loss,sceduler")
    assert status == 2
    assert "'sceduler' is none of optimizer, loss" in message


def test_an_optimizer_needs_a_solver() -> None:
    status, _, message = run(NET, "--with", "optimizer")
    assert status == 2
    assert "solver" in message


def test_layers_that_no_file_can_hold_are_named(tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text('layer { name: "a" type: "Python" bottom: "x" top: "a" }')
    status, _, message = run(str(tmp_path / "net.prototxt"))
    assert status == 2
    assert "a (Python)" in message


def test_a_size_that_no_file_states_is_asked_for_where_the_net_itself_is_wanted(tmp_path: Path) -> None:
    net, solver = tmp_path / "net.prototxt", tmp_path / "solver.prototxt"
    net.write_text(
        'layer { name: "d" type: "Data" top: "data" data_param { source: "db" } }\n'
        'layer { name: "c" type: "Convolution" bottom: "data" top: "c" '
        "convolution_param { num_output: 2 kernel_size: 1 } }"
    )
    solver.write_text('base_lr: 0.1 lr_policy: "fixed" max_iter: 10')
    unstated = r"'c/0', 2x\?x1x1, follows from the size of 'data', which no file states"
    done = CliRunner().invoke(main, ["model", str(net)])
    assert done.exit_code == 2
    assert re.search(unstated, done.output)
    assert "--input data=N,C,H,W" in done.output
    done = CliRunner().invoke(main, ["model", str(net), "--input", "data=4,3,8,8"])
    assert "nn.Conv2d(3, 2, 1)" in done.output
    t = translate(net, solver)
    assert t.report.ok
    assert any(re.search(unstated + ", and stands as 1", note.message) for note in t.report.notes)
    with pytest.raises(NetError, match=unstated):
        t.source(initialize=True)
    assert not any(
        "no file states" in note.message for note in translate(net, solver, inputs={"data": (4, 3, 8, 8)}).report.notes
    )


def test_the_input_that_is_asked_for_is_the_one_the_size_follows_from(tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text("""
layer { name: "images" type: "Data" top: "images" data_param { batch_size: 2 } transform_param { crop_size: 4 } }
layer { name: "features" type: "Data" top: "features" data_param { batch_size: 2 } }
layer { name: "c" type: "Convolution" bottom: "images" top: "c" convolution_param { num_output: 2 kernel_size: 3 } }
layer { name: "flat" type: "Flatten" bottom: "c" top: "flat" }
layer { name: "more" type: "Flatten" bottom: "features" top: "more" }
layer { name: "all" type: "Concat" bottom: "flat" bottom: "more" top: "all" }
layer { name: "ip" type: "InnerProduct" bottom: "all" top: "ip" inner_product_param { num_output: 3 } }
""")
    command = ["model", str(tmp_path / "net.prototxt"), "-o", str(tmp_path / "model.py")]
    for name, shape in {"images": "2,3,4,4", "features": "2,5,1,1"}.items():
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 2
        assert f"follows from the size of '{name}'" in done.output
        command += ["--input", f"{name}={shape}"]
    assert CliRunner().invoke(main, command).exit_code == 0
