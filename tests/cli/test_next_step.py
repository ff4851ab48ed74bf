"""The last line of a report: a command that can be copied, and that does what the report needs next."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner
from standard_input import standard_input

from caffe2torch.cli import main

LAYER = """\
layer {{ name: "{0}" type: "InnerProduct" bottom: "{1}" top: "{0}"
  param {{ lr_mult: 1 }} param {{ lr_mult: 2 decay_mult: 0 }}
  inner_product_param {{ num_output: {2} }} }}
"""
NET = 'input: "data" input_shape { dim: 2 dim: 3 }\n' + LAYER.format("a", "data", 4) + LAYER.format("b", "a", 2)
LOSS = """input: "label" input_shape { dim: 2 }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "b" bottom: "label" top: "loss" }
"""
SOLVER = 'base_lr: 0.01 momentum: 0.9 weight_decay: 0.0005 lr_policy: "step" gamma: 0.1 stepsize: 100 max_iter: 300\n'
PORT = """\
import torch

class Net(torch.nn.Module):
    def __init__(self, frozen=False):
        super().__init__()
        self.a, self.b = torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)
        self.b.bias.requires_grad_(not frozen)
    def forward(self, x):
        return self.b(self.a(x))

def one_group(model):
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.0005)

def right_groups(model):
    weights = [p for name, p in model.named_parameters() if "weight" in name]
    biases = [p for name, p in model.named_parameters() if "bias" in name and p.requires_grad]
    groups = [{"params": weights}, {"params": biases, "lr": 0.02, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=0.01, momentum=0.9, weight_decay=0.0005)

def of_another_model(model):
    return right_groups(Net())

def with_a_closure(model):
    return torch.optim.LBFGS(model.parameters())

def steps(optimizer):
    return torch.optim.lr_scheduler.StepLR(optimizer, 100, 0.1)

def loss():
    return torch.nn.CrossEntropyLoss(reduction="sum")
"""
FILES = ("net.prototxt", "solver.prototxt")
AUDIT = ("audit", *FILES, "--model", "my port.py:Net(frozen=False)", "--optimizer", "my port.py:one_group")
RIGHT = (*AUDIT[:-1], "my port.py:right_groups")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, a script and a factory that a shell must have quoted."""
    work = tmp_path / "it's a folder"
    work.mkdir()
    monkeypatch.chdir(work)
    Path("net.prototxt").write_text(NET)
    Path("solver.prototxt").write_text(SOLVER)
    Path("my port.py").write_text(PORT)
    return work


def run(*arguments: str) -> tuple[int, str]:
    """Exit status, and the next command, if there is one; it is the last line, after the verdict."""
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    lines = result.stdout.splitlines()
    assert result.exit_code < 2, result.stderr
    assert [line for line in lines[:-1] if line.startswith("Next: ")] == []
    return result.exit_code, lines[-1].removeprefix("Next: ") if lines[-1].startswith("Next: ") else ""


def follow(command: str) -> tuple[int, str]:
    """Type a command as a shell would read it."""
    program, *arguments = shlex.split(command)
    assert program == "caffe2torch"
    return run(*arguments)


def test_after_a_right_translation_the_next_command_writes_the_optimizer() -> None:
    status, command = run("translate", *FILES, "--model", "my port.py:Net(frozen=False)", "--report", "r.txt")
    assert status == 0
    assert command == (
        "caffe2torch translate net.prototxt solver.prototxt --model 'my port.py:Net(frozen=False)' -o optimizer.py"
    )
    assert follow(command) == (0, "")  # what it wrote needs no second writing
    assert "build_optimizer" in Path("optimizer.py").read_text()


@pytest.mark.parametrize("optimizer", ["one_group", "of_another_model", "with_a_closure"])
@pytest.mark.parametrize("scheduler", [(), ("--scheduler", "my port.py:steps")])
def test_a_bad_audit_ends_right_when_its_next_commands_are_followed(optimizer: str, scheduler: tuple[str, ...]) -> None:
    status, command = run(*AUDIT[:-1], f"my port.py:{optimizer}", *scheduler, "--report=r.txt", "--force")
    assert (status, command.endswith(" --fix optimizer.py")) == (1, True)
    status, command = follow(command)
    written = "--optimizer optimizer.py:build_optimizer --scheduler optimizer.py:build_scheduler"
    assert (status, command.endswith(written)) == (1, True)
    assert follow(command) == (0, "")


def test_what_one_may_know_of_is_accepted_by_the_next_command() -> None:
    status, command = run(*RIGHT, "--scheduler", "my port.py:steps")
    assert (status, command.endswith(" --accept rate_change")) == (1, True)
    assert follow(command) == (0, "")
    frozen = (*FILES, "--model", "my port.py:Net(frozen=True)", "--optimizer", "my port.py:right_groups")
    status, command = run("audit", *frozen, "--scheduler", "my port.py:steps")
    assert (status, command.endswith(" --accept frozen --accept rate_change")) == (1, True)
    assert follow(command) == (0, "")


def test_no_command_is_named_that_would_not_help() -> None:
    assert run(*RIGHT)[1] == ""  # right
    assert run(*AUDIT, "--by-role") == (1, "")
    Path("net.prototxt").write_text(NET + LOSS)
    assert run(*RIGHT, "--loss", "my port.py:loss") == (1, "")
    Path("net.prototxt").write_text(NET)
    Path("solver.prototxt").write_text(SOLVER + 'momentum_policy: "poly" momentum_power: 1 max_momentum: 0.95\n')
    assert run("translate", *FILES, "--model", "my port.py:Net") == (0, "")  # no file can carry this solver
    assert run(*AUDIT) == (1, "")


def test_only_text_has_a_next_command() -> None:
    for style in ("json", "md"):
        result = CliRunner().invoke(main, ["translate", *FILES, "--format", style])
        assert "Next: " not in result.stdout
    CliRunner().invoke(main, ["translate", *FILES, "--report", "r.txt"])
    assert "Next: " not in Path("r.txt").read_text()


def test_a_file_that_exists_is_not_named() -> None:
    Path("optimizer.py").touch()
    Path("optimizer2.py").symlink_to("nowhere")
    command = run("translate", *FILES)[1]
    assert command.endswith(" -o optimizer3.py")
    assert follow(command)[0] == 0


def test_what_came_from_a_pipe_cannot_be_typed_again() -> None:
    with standard_input(NET):
        assert run("translate", "-", "solver.prototxt") == (0, "")


@pytest.mark.parametrize(
    "outputs",
    [["--report", "r.json"], ["--report=r.json"], ["--write-names", "n.toml", "--force"], ["--lock", "l.json"]],
)
def test_outputs_that_are_written_are_not_asked_for_again(outputs: list[str]) -> None:
    command = run("translate", *outputs, *FILES)[1]
    assert command == "caffe2torch translate net.prototxt solver.prototxt -o optimizer.py"
    assert follow(command) == (0, "")


def test_an_audits_lock_is_an_input_and_stays() -> None:
    model = AUDIT[3:5]
    assert run("translate", *FILES, *model, "--lock", "l.json")[0] == 0
    status, command = run("audit", "--lock", "l.json", *AUDIT[3:])
    assert (status, "--lock l.json" in command) == (1, True)
    assert follow(command)[0] == 1
    assert Path("optimizer.py").exists()
