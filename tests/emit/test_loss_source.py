"""The loss as source gives what Caffe recorded, with torch alone."""

from __future__ import annotations

import pytest
import torch
from loss_cases import TOLERANCE, LossCase
from places import REPOSITORY

from caffe2torch import build_loss, read_recipe
from caffe2torch.emit.definitions import import_lines
from caffe2torch.emit.loss import loss_source

CASES = sorted(path.parent.name for path in (REPOSITORY / "fixtures" / "losses").glob("*/net.prototxt"))


def built(recipe):
    source = loss_source(recipe)
    namespace: dict[str, object] = {}
    exec("\n".join([*import_lines(source), source]), namespace)
    return namespace["build_loss"]()


def as_torch_wants_them(case: LossCase, blobs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Labels as int64 without the class axis, and vectors without axes of size 1."""
    blobs = dict(blobs)
    for term in case.terms:
        if not term.loss_layer:
            continue
        scores, other = blobs[term.blobs[0]], term.blobs[1]
        match term.layer.type:
            case "SoftmaxWithLoss" | "InfogainLoss":
                sizes = list(scores.shape)
                del sizes[term.layer.settings["axis"]]
                blobs[other] = blobs[other].reshape(sizes).long()
            case "HingeLoss" | "MultinomialLogisticLoss":
                blobs[term.blobs[0]], blobs[other] = scores.flatten(1), blobs[other].flatten().long()
            case "ContrastiveLoss":
                blobs |= {name: blobs[name].flatten(1) for name in term.blobs[:2]}
                blobs[term.blobs[2]] = blobs[term.blobs[2]].flatten()
            case _:
                blobs[other] = blobs[other].reshape(scores.shape)
    return blobs


def errors(case: LossCase) -> dict[str, float]:
    blobs, known = case.blobs()
    ready = as_torch_wants_them(case, blobs)
    loss = built(case.recipe)
    if len(case.terms) == 1 and case.terms[0].loss_layer:
        inputs = [ready[name] for name in case.terms[0].blobs]
        return case.errors(loss(*inputs, *([] if case.matrix is None else [case.matrix])), known)
    return case.errors(loss(ready), known)


def all_ignored(name: str) -> bool:
    """Whether torch's own loss, which the source then is, gives NaN where Caffe gives 0."""
    return "allignored" in name and "softmax" in name


@pytest.mark.parametrize("name", [name for name in CASES if not all_ignored(name)])
def test_loss_and_gradients_of_the_source_are_caffes(name, fixtures):
    found = errors(LossCase.read(fixtures / "losses" / name))
    assert max(found.values()) <= TOLERANCE, found


@pytest.mark.shared
def test_the_source_of_every_recorded_loss_is_caffes(shared):
    wrong = {}
    for folder in sorted((shared / "goldens" / "losses").iterdir()):
        found = errors(LossCase.read(folder))
        if not max(found.values()) <= TOLERANCE:
            wrong[folder.name] = found
    assert all(map(all_ignored, wrong)), wrong


def recipe_of(tmp_path, layers: str):
    file = tmp_path / "net.prototxt"
    file.write_text(layers)
    return read_recipe(file)


LAYER = 'layer {{ name: "{0}" type: "{1}" bottom: "{2}" bottom: "y" top: "{0}" {3} }}'


def test_torchs_own_call_is_the_source_where_it_is_the_same(tmp_path):
    recipe = recipe_of(tmp_path, LAYER.format("l", "SoftmaxWithLoss", "x", "loss_param { ignore_label: 255 }"))
    assert loss_source(recipe) == (
        "def build_loss() -> torch.nn.Module:\n"
        '    """Caffe\'s SoftmaxWithLoss: loss(scores, labels)."""\n'
        "    return torch.nn.CrossEntropyLoss(ignore_index=255)\n"
    )


def test_several_losses_are_a_sum_over_named_blobs(tmp_path):
    layers = LAYER.format("a", "SoftmaxWithLoss", "x", "") + LAYER.format(
        "b", "SoftmaxWithLoss", "z", "loss_weight: 0.3"
    )
    source = loss_source(recipe_of(tmp_path, layers))
    assert '            F.cross_entropy(blobs["x"], blobs["y"])\n' in source
    assert '            + 0.3 * F.cross_entropy(blobs["z"], blobs["y"])\n' in source


def test_class_weights_are_in_the_source(tmp_path):
    weights = "loss_param { weight_by_label_freqs: true class_weighting: 0.5 class_weighting: 2 }"
    loss = built(recipe_of(tmp_path, LAYER.format("l", "SoftmaxWithLoss", "x", weights)))
    scores, labels = torch.zeros(1, 2, 3), torch.tensor([[0, 1, 1]])
    assert loss(scores, labels).item() == pytest.approx(1.5 * 0.6931472, rel=1e-6)


@pytest.mark.parametrize("bottoms", ['bottom: "i"', 'bottom: "i" bottom: "o"'])
def test_smooth_l1_in_the_source_is_the_modules(bottoms, tmp_path):
    layer = LAYER.format("l", "SmoothL1Loss", "x", bottoms + " smooth_l1_loss_param { sigma: 2 }")
    recipe = recipe_of(tmp_path, layer)
    inputs = [torch.randn(3, 4) for _ in range(2 + bottoms.count(":"))]
    gradients = []
    for loss in (built(recipe), build_loss(recipe)):
        first = inputs[0].clone().requires_grad_()
        loss(first, *inputs[1:]).backward()
        gradients.append(first.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    "layer",
    [
        'layer { name: "p" type: "Power" bottom: "x" top: "y" }',
        LAYER.format("l", "TripletLoss", "x", ""),
    ],
)
def test_without_a_loss_that_is_translated_there_is_no_source(layer, tmp_path):
    assert loss_source(recipe_of(tmp_path, layer)) is None


def test_a_name_in_the_prototxt_is_data(tmp_path):
    layers = "".join(LAYER.format(name, "EuclideanLoss", "'; import os; '", "") for name in "ab")
    loss = built(recipe_of(tmp_path, layers))
    assert loss({"'; import os; '": torch.ones(1, 2), "y": torch.zeros(1, 2)}).item() == 2.0


def test_the_source_needs_torch_alone(tmp_path):
    source = loss_source(recipe_of(tmp_path, LAYER.format("l", "ContrastiveLoss", "x", 'bottom: "s"')))
    assert "caffe2torch" not in source
    assert "import" not in source
    assert import_lines(source) == ["from collections.abc import Callable", "", "import torch"]
