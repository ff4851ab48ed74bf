"""The mistakes of published ports on the very nets that they were made on, which lie beside the repository."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mistakes import named

from caffe2torch.auditing import audit
from caffe2torch.binding.skeleton import skeleton
from caffe2torch.reading import read_recipe
from caffe2torch.recipe import TrainingRecipe
from caffe2torch.verification.report import Report

pytestmark = pytest.mark.shared


def recipe_of(shared: Path, pair: str) -> TrainingRecipe:
    folder = shared / "corpus/pairs" / pair
    net, solver = sorted(folder.glob("*.prototxt"))
    return read_recipe(net, solver)


def by_rule(recipe: TrainingRecipe, twice: float, bias_decay: float) -> Report:
    """The audit of an optimizer that treats everything called bias alike, on a model of the net's own blobs."""
    model, solver = skeleton(recipe), recipe.solver
    assert solver is not None
    lr, decay = solver.policy.base_lr, solver.weight_decay
    weights, biases = named(model, lambda n: "bias" not in n), named(model, lambda n: "bias" in n)
    optimizer = torch.optim.SGD(
        [
            {"params": weights, "weight_decay": decay},
            {"params": biases, "lr": twice * lr, "weight_decay": bias_decay * decay},
        ],
        lr=lr,
        momentum=solver.momentum,
    )
    return audit(recipe, model, optimizer)


def test_full_segnet_by_the_notebooks_rule_is_wrong_in_its_shifts_rates_alone(shared: Path) -> None:
    report = by_rule(recipe_of(shared, "segnet"), twice=2, bias_decay=0)
    shifts = [row.parameter for row in report.rows if row.blob.role == "shift"]
    assert len(shifts) == 25
    assert [row.parameter for row in report.wrong] == shifts
    assert {row.reason for row in report.wrong} == {"lr is 0.002, Caffe's is 0.001 (2 times as much)"}
    assert [cause.message for cause in report.causes] == [
        "all 25 BN shifts: lr x2, as if they were Convolution biases (Caffe's are lr x1 and decay x0)"
    ]


def test_openpose_with_decayed_biases(shared: Path) -> None:
    """All biases decay in the port, whose rates are right; the original has decay 0 on all 92."""
    recipe = recipe_of(shared, "openpose")
    assert recipe.solver is not None
    model, at = skeleton(recipe), recipe.solver.policy.base_lr
    groups = [{"params": [model.get_parameter(f"{b.layer}.{b.role}")], "lr": at * b.lr_mult} for b in recipe.blobs]
    report = audit(recipe, model, torch.optim.SGD(groups, lr=at, momentum=0.9, weight_decay=recipe.solver.weight_decay))
    assert {row.blob.role for row in report.wrong} == {"bias"}
    assert [cause.message for cause in report.causes] == ["all 92 Convolution biases: decay x1 (Caffe's is x0)"]


def test_faster_rcnn_with_biases_that_do_not_decay(shared: Path) -> None:
    """py-faster-rcnn's VGG-16 states only lr_mult: 2, so that its biases decay."""
    recipe = recipe_of(shared, "faster-rcnn-vgg16-e2e")
    report = by_rule(recipe, twice=2, bias_decay=0)
    trained = [row for row in report.rows if row.blob.role == "bias" and row.blob.lr_mult]
    undecayed = [row for row in report.wrong if "weight_decay is 0, Caffe's is 0.0005" in row.reason]
    assert {row.parameter for row in trained if row.blob.decay_mult} == {row.parameter for row in undecayed}
    assert len(undecayed) > 10


def test_ssd_with_one_group_for_all(shared: Path) -> None:
    recipe = recipe_of(shared, "pr-ssd-vgg-voc")
    report = by_rule(recipe, twice=1, bias_decay=1)
    assert {row.blob.role for row in report.wrong} == {"bias"}
    assert report.causes[0].message.startswith("all ")
    assert "as if they were Convolution weights (Caffe's are lr x2 and decay x0)" in report.causes[0].message
