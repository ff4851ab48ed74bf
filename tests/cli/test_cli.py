"""The command line on good input: what it prints, what it writes, how it exits."""

from __future__ import annotations

import csv
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from caffe2torch.cli import main


def run(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert "Traceback" not in result.stderr
    return result


@pytest.fixture
def segnet(fixtures: Path) -> tuple[Path, Path]:
    folder = fixtures / "segnet_basic"
    return folder / "train.prototxt", folder / "solver.prototxt"


def test_segnet_basics_34_rows_are_those_that_caffe_holds(segnet: tuple[Path, Path], fixtures: Path) -> None:
    result = run("translate", *segnet, "--format", "json")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    with (fixtures / "segnet_basic" / "params.csv").open() as file:
        recorded = list(csv.DictReader(file))
    assert report["ok"]
    assert report["model"] == "SegNetBasic"
    assert len(report["parameters"]) == len(recorded) == 34
    assert report["unbound_blobs"] == report["unclaimed_parameters"] == []
    for row, caffe in zip(report["parameters"], recorded, strict=True):
        assert (row["layer"], str(row["blob"])) == (caffe["layer"], caffe["blob"])
        assert "x".join(map(str, row["shape"])) == caffe["shape"]
        assert (row["lr_mult"], row["decay_mult"]) == (float(caffe["lr_mult"]), float(caffe["decay_mult"]))
        assert row["expected"] == row["observed"]
        assert row["expected"]["lr"] == pytest.approx(0.01 * row["lr_mult"])
        assert row["expected"]["weight_decay"] == pytest.approx(0.0005 * row["decay_mult"])
        assert (row["verdict"], row["reason"]) == ("ok", "")


def test_inspect_lists_the_same_blobs_in_caffes_order(segnet: tuple[Path, Path]) -> None:
    blobs = json.loads(run("inspect", *segnet, "--format", "json").stdout)["blobs"]
    rows = json.loads(run("translate", *segnet, "--format", "json").stdout)["parameters"]
    same = ("layer", "blob", "role", "shape", "lr_mult", "decay_mult", "stated", "where", "shared_with")
    assert [[blob[key] for key in same] for blob in blobs] == [[row[key] for key in same] for row in rows]


@pytest.mark.parametrize("style", ["text", "json", "md"])
@pytest.mark.parametrize("verb", ["inspect", "translate"])
def test_every_style_names_every_blob(segnet: tuple[Path, Path], verb: str, style: str) -> None:
    printed = run(verb, *segnet, "--format", style).stdout.replace("\\_", "_")  # Markdown escapes it
    assert all(name in printed for name in ("conv1_bn", "conv_decode1_bn", "conv_classifier"))
    assert "\x1b" not in printed  # no colours where nobody looks at a terminal


def test_fine_tuning_multiplies_weight_and_bias_of_the_named_layer_alone(segnet: tuple[Path, Path]) -> None:
    rows = json.loads(run("translate", *segnet, "--finetune", "conv_classifier=10", "--format", "json").stdout)
    observed = {(row["layer"], row["blob"]): row["observed"]["lr"] for row in rows["parameters"]}
    assert observed[("conv_classifier", 0)] == pytest.approx(0.1)
    assert observed[("conv_classifier", 1)] == pytest.approx(0.2)
    assert observed[("conv1", 0)] == pytest.approx(0.01)
    assert observed[("conv1", 1)] == pytest.approx(0.02)


def test_a_finetune_pattern_that_matches_nothing_is_refused(segnet: tuple[Path, Path]) -> None:
    result = run("translate", *segnet, "--finetune", "classifier=10")
    assert result.exit_code == 2
    assert "'classifier'" in result.stderr
    assert "conv_classifier" in result.stderr


def test_every_output_is_written_and_the_optimizer_runs_without_caffe2torch(
    segnet: tuple[Path, Path], tmp_path: Path
) -> None:
    result = run(
        "translate", *segnet, "-o", tmp_path / "optimizer.py", "--report", tmp_path / "report.json",
        "--write-names", tmp_path / "names.toml",
    )  # fmt: skip
    assert result.exit_code == 0
    assert json.loads((tmp_path / "report.json").read_text())["ok"]
    again = run("translate", *segnet, "--names", tmp_path / "names.toml")
    assert again.exit_code == 0
    check = (
        "import sys; sys.modules['caffe2torch'] = None\n"
        "import torch, optimizer\n"
        "model = torch.nn.Module()\n"
        "for names in optimizer.GROUPS.values():\n"
        "    for name in names:\n"
        "        parent, leaf = name.rsplit('.', 1)\n"
        "        if not hasattr(model, parent): model.add_module(parent, torch.nn.Module())\n"
        "        setattr(getattr(model, parent), leaf, torch.nn.Parameter(torch.ones(2)))\n"
        "built = optimizer.build_optimizer(model)\n"
        "optimizer.build_scheduler(built)\n"
        "assert isinstance(built, torch.optim.SGD)\n"
        "print([round(group['lr'], 6) for group in built.param_groups])\n"
    )
    done = subprocess.run([sys.executable, "-c", check], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[0.01, 0.02]\n", "")


def test_a_solver_alone_is_enough_where_it_names_its_net(segnet: tuple[Path, Path]) -> None:
    assert run("translate", segnet[1]).exit_code == 0
    assert run("inspect", segnet[1]).exit_code == 0


def test_the_help_of_every_verb_shows_an_example() -> None:
    for verb in ("audit", "convert", "inspect", "translate"):
        assert f"caffe2torch {verb} " in run(verb, "--help").stdout


def test_a_snapshot_converts_to_a_checkpoint_that_torch_reads(fixtures: Path, tmp_path: Path) -> None:
    import torch

    folder = fixtures / "snapshots" / "resume" / "snap_adam_step"
    net, solver = folder / "net.prototxt", folder / "solver.prototxt"
    state = net.with_name("snap_iter_17.solverstate")
    result = run("convert", net, solver, "--state", state, "-o", tmp_path / "checkpoint.pt")
    assert result.exit_code == 0, result.stderr
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert run("convert", net, solver, "--state", state, "-o", tmp_path / "checkpoint.pt").exit_code == 2


def test_a_wrapped_model_is_translated_like_the_bare_one(segnet: tuple[Path, Path]) -> None:
    import torch

    import caffe2torch

    class Around(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = torch.compile(caffe2torch.SegNetBasic(4, 3, width=64))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            scores: torch.Tensor = self.body(images)
            return scores

    bare = caffe2torch.translate(*segnet, caffe2torch.SegNetBasic(4, 3, width=64))
    for model, prefix in ((torch.nn.DataParallel(caffe2torch.SegNetBasic(4, 3, width=64)), ""), (Around(), "body.")):
        wrapped = caffe2torch.translate(*segnet, model)
        assert wrapped.report.ok
        assert [group["param_names"] for group in wrapped.optimizer.param_groups] == [
            [prefix + name for name in group["param_names"]] for group in bare.optimizer.param_groups
        ]


def test_quiet_prints_nothing_and_exits_all_the_same(segnet: tuple[Path, Path]) -> None:
    result = run("translate", *segnet, "--quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "environment", "coloured"),
    [([], {}, True), (["--no-color"], {}, False), ([], {"NO_COLOR": "1"}, False)],
)
def test_colours_are_for_terminals_whose_owner_wants_them(
    segnet: tuple[Path, Path], arguments: list[str], environment: dict[str, str], coloured: bool
) -> None:
    """``script`` gives the command a terminal of its own."""
    if shutil.which("script") is None:
        pytest.skip("no command 'script' to make a terminal with")
    command = shlex.join([sys.executable, "-m", "caffe2torch", "translate", *map(str, segnet), *arguments])
    kept = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    done = subprocess.run(
        ["script", "-qec", command, "/dev/null"], capture_output=True, text=True, env=kept | environment, check=False
    )
    assert "all ok" in done.stdout
    assert ("\x1b[32m" in done.stdout) is coloured


def test_the_shell_can_complete_verbs() -> None:
    environment = os.environ | {
        "_CAFFE2TORCH_COMPLETE": "bash_complete",
        "COMP_WORDS": "caffe2torch tr",
        "COMP_CWORD": "1",
    }
    code = "from caffe2torch.cli import main; main(prog_name='caffe2torch')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.splitlines() == ["plain,translate"]
