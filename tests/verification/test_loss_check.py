"""The check ``loss`` of an audit: what the net's loss is, and how the user's differs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.nn import functional

from caffe2torch.auditing import audit
from caffe2torch.cli import main
from caffe2torch.errors import ModelError
from caffe2torch.lock import lock_of
from caffe2torch.reading import read_recipe
from caffe2torch.recipe import TrainingRecipe
from caffe2torch.testing import assert_optimizer_matches
from caffe2torch.translation import translate
from caffe2torch.verification.report import Check, Report

NET = """
layer { name: "data" type: "Input" top: "data" top: "label"
        input_param { shape { dim: 2 dim: 3 dim: 4 dim: 8 } shape { dim: 2 dim: 5 dim: 4 dim: 8 } } }
layer { name: "score" type: "Convolution" bottom: "data" top: "score"
        convolution_param { num_output: 5 kernel_size: 1 } }
layer { name: "loss" type: "SigmoidCrossEntropyLoss" bottom: "score" bottom: "label" }
"""


class Port(nn.Module):
    """The net in torch."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Conv2d(3, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.score(x)


def make_optimizer(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def right(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.binary_cross_entropy_with_logits(scores, targets, reduction="sum") / len(scores)


def make_right() -> Any:
    return right


def recipe_of(folder: Path) -> TrainingRecipe:
    (folder / "net.prototxt").write_text(NET)
    (folder / "solver.prototxt").write_text('base_lr: 0.1 lr_policy: "fixed"')
    return read_recipe(folder / "net.prototxt", folder / "solver.prototxt")


def found(report: Report) -> Check:
    (check,) = (check for check in report.checks if check.name == "loss")
    return check


def test_the_same_loss_is_ok(tmp_path: Path) -> None:
    model = Port()
    report = audit(recipe_of(tmp_path), model, make_optimizer(model), loss=right)
    assert report.ok
    assert str(found(report).result) == "ok"


def test_another_divisor_differs_counts_and_can_be_accepted(tmp_path: Path) -> None:
    recipe, model = recipe_of(tmp_path), Port()
    wrong = nn.BCEWithLogitsLoss()
    report = audit(recipe, model, make_optimizer(model), loss=wrong)
    assert not report.ok
    assert not report.wrong
    assert "yours divides by 320 elements, Caffe's by 2 images: the effective lr is 160 times smaller" in str(
        found(report).text
    )
    assert audit(recipe, model, make_optimizer(model), loss=wrong, accept=["loss"]).ok
    with pytest.raises(AssertionError, match="loss: score: yours divides by 320 elements"):
        assert_optimizer_matches(recipe, model, make_optimizer(model), loss=wrong)


def test_without_one_it_is_not_seen_and_says_what_the_nets_is(tmp_path: Path) -> None:
    recipe, model = recipe_of(tmp_path), Port()
    for report in (audit(recipe, model, make_optimizer(model)), translate(recipe, model=model).report):
        assert report.ok
        assert str(found(report).result) == "not seen"
        assert found(report).text.startswith("SigmoidCrossEntropyLoss, a sum divided by the batch")


def test_a_loss_that_is_not_translated_is_not_seen_and_named(tmp_path: Path) -> None:
    recipe_of(tmp_path)
    (tmp_path / "net.prototxt").write_text(NET.replace("SigmoidCrossEntropyLoss", "MultiBoxLoss"))
    t = translate(tmp_path / "net.prototxt", tmp_path / "solver.prototxt", Port())
    assert t.report.ok
    assert str(found(t.report).result) == "not seen"
    assert "the loss MultiBoxLoss is not translated" in found(t.report).text
    assert "build_loss" not in t.source()


def test_a_lock_has_no_loss_to_compare_with(tmp_path: Path) -> None:
    t = translate(recipe_of(tmp_path), model=Port())
    lock = lock_of(t.recipe, t.binding, t.groups)
    assert "loss" not in [check.name for check in audit(lock, t.model, t.optimizer, t.scheduler).checks]
    with pytest.raises(ModelError, match="a lock does not have the net's loss"):
        audit(lock, t.model, t.optimizer, t.scheduler, loss=right)


def test_what_is_no_loss_is_refused(tmp_path: Path) -> None:
    model = Port()
    with pytest.raises(ModelError, match="the loss is an object of type str"):
        audit(recipe_of(tmp_path), model, make_optimizer(model), loss="mse")  # type: ignore[arg-type]


def test_a_loss_that_does_not_run_is_an_error_and_no_silent_green(tmp_path: Path) -> None:
    model = Port()
    with pytest.raises(ModelError, match="your loss fails on the net's scores and labels: TypeError") as caught:
        audit(recipe_of(tmp_path), model, make_optimizer(model), loss=lambda *, only: only)
    assert "a scalar, of score, label" in str(caught.value)


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("make_nothing", "returns nothing"),
        ("right", "it is called without arguments, and gives what the option is about"),
    ],
)
def test_a_factory_that_gives_no_loss_is_named(tmp_path: Path, factory: str, words: str) -> None:
    recipe_of(tmp_path)
    files = [str(tmp_path / name) for name in ("net.prototxt", "solver.prototxt")]
    options = [
        "--model",
        f"{__file__}:Port",
        "--optimizer",
        f"{__file__}:make_optimizer",
        "--loss",
        f"{__file__}:{factory}",
    ]
    done = CliRunner().invoke(main, ["audit", *files, *options])
    assert (done.exit_code, words in done.output) == (2, True), done.output


def make_nothing() -> None:
    """What forgets to return its loss."""


@pytest.mark.parametrize(("factory", "status", "result"), [("make_right", 0, "ok"), ("torch.nn:MSELoss", 1, "differs")])
def test_on_the_command_line_it_is_a_factory(tmp_path: Path, factory: str, status: int, result: str) -> None:
    recipe_of(tmp_path)
    files = [str(tmp_path / name) for name in ("net.prototxt", "solver.prototxt")]
    options = ["--model", f"{__file__}:Port", "--optimizer", f"{__file__}:make_optimizer", "--format", "json"]
    loss = factory if ":" in factory else f"{__file__}:{factory}"
    done = CliRunner().invoke(main, ["audit", *files, *options, "--loss", loss])
    assert done.exit_code == status, done.output
    (check,) = (check for check in json.loads(done.stdout)["checks"] if check["check"] == "loss")
    assert check["result"] == result
