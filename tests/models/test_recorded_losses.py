"""Caffe's losses as torch modules give the losses and gradients that were recorded from Caffe."""

from __future__ import annotations

import pytest
import torch
from loss_cases import TOLERANCE, LossCase
from places import REPOSITORY

from caffe2torch import build_loss, read_recipe
from caffe2torch.errors import Caffe2TorchError, NetError, UnsupportedError
from caffe2torch.models.losses import stock_call
from caffe2torch.net.loss_settings import loss_weights, normalization

CASES = sorted(path.parent.name for path in (REPOSITORY / "fixtures" / "losses").glob("*/net.prototxt"))


def errors(case: LossCase) -> dict[str, float]:
    loss = build_loss(case.recipe)
    if case.matrix is not None:
        loss.losses[0].matrix = case.matrix
    blobs, known = case.blobs()
    return case.errors(loss(blobs), known)


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_are_caffes(name, fixtures):
    found = errors(LossCase.read(fixtures / "losses" / name))
    assert len(found) > 1
    assert max(found.values()) <= TOLERANCE, found


@pytest.mark.shared
def test_every_recorded_loss_is_caffes(shared):
    folders = sorted((shared / "goldens" / "losses").iterdir())
    assert len(folders) == 109
    wrong = {}
    for folder in folders:
        found = errors(LossCase.read(folder))
        if not max(found.values()) <= TOLERANCE:
            wrong[folder.name] = found
    assert not wrong


def recipe_of(tmp_path, layers: str):
    file = tmp_path / "net.prototxt"
    file.write_text(layers)
    return read_recipe(file)


def one(kind: str, more: str = "", bottoms: str = "x y") -> str:
    names = " ".join(f'bottom: "{name}"' for name in bottoms.split())
    return f'layer {{ name: "loss" type: "{kind}" {names} {more} }}'


@pytest.mark.parametrize(
    ("kind", "loss_param", "expected"),
    [
        ("SoftmaxWithLoss", "", "VALID"),
        ("SoftmaxWithLoss", "normalize: true", "VALID"),
        ("SoftmaxWithLoss", "normalize: false", "BATCH_SIZE"),
        ("SoftmaxWithLoss", "normalize: false normalization: VALID", "VALID"),
        ("SigmoidCrossEntropyLoss", "", "BATCH_SIZE"),
        ("SigmoidCrossEntropyLoss", "normalize: true", "VALID"),
        ("SigmoidCrossEntropyLoss", "normalization: VALID", "VALID"),
        ("SigmoidCrossEntropyLoss", "ignore_label: 255", "BATCH_SIZE"),
        ("InfogainLoss", "", "VALID"),
    ],
)
def test_what_is_stated_wins_and_the_default_is_the_layers(kind, loss_param, expected, tmp_path):
    (layer,) = recipe_of(tmp_path, one(kind, f"loss_param {{ {loss_param} }}")).layers
    assert normalization(layer) == expected


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (one("EuclideanLoss"), (1.0,)),
        (one("EuclideanLoss", 'top: "loss"'), (1.0,)),
        (one("EuclideanLoss", 'top: "loss" loss_weight: 0.1'), (0.1,)),
        (one("InfogainLoss", 'top: "loss" top: "p" loss_weight: 2 loss_weight: 0'), (2.0, 0.0)),
        (one("Power", 'top: "z"', "x"), (0.0,)),
        (one("Power", 'top: "z" loss_weight: 3', "x"), (3.0,)),
        (one("Silence", "", "x"), ()),
    ],
)
def test_a_loss_layers_first_top_counts_and_what_is_stated(layer, expected, tmp_path):
    assert loss_weights(recipe_of(tmp_path, layer).layers[-1]) == expected


REFUSED = {
    "two tops of SoftmaxWithLoss": one("SoftmaxWithLoss", 'top: "l" top: "p" loss_weight: 1 loss_weight: 0'),
    "loss_weight for some of its tops": one("InfogainLoss", 'top: "l" top: "p" loss_weight: 1'),
    "propagate_down for some of its bottoms": one("EuclideanLoss", "propagate_down: true"),
    "gives 'y' no gradient": one("SoftmaxWithLoss", "propagate_down: true propagate_down: true"),
    "refuses `normalize` for InfogainLoss": one("InfogainLoss", "loss_param { normalize: true }", "x y h"),
    "InfogainLoss needs a matrix": one("InfogainLoss"),
    "wrong number of bottoms for ContrastiveLoss": one("ContrastiveLoss"),
    "wrong number of bottoms for SoftmaxWithLoss": one("SoftmaxWithLoss", "", "x"),
    "has no loss": 'layer { name: "p" type: "Power" bottom: "x" top: "z" }',
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_caffe_refuses_is_refused_by_name(words, tmp_path):
    layers = REFUSED[words].replace("two tops of", "")
    with pytest.raises(NetError) as caught:
        build_loss(recipe_of(tmp_path, layers))
    message = str(caught.value)
    assert words.replace("two tops of SoftmaxWithLoss", "cannot build SoftmaxWithLoss with two tops") in message
    if "has no loss" not in words:
        assert "net.prototxt:1:1: layer 'loss'" in message


def test_a_forks_loss_is_refused_by_name(tmp_path):
    for kind, computed in (("TripletLoss", True), ("MultiBoxLoss", False)):
        with pytest.raises(UnsupportedError, match=f"'loss': the loss {kind} is not translated") as caught:
            build_loss(recipe_of(tmp_path, one(kind, "", "a p n")))
        assert ("build_model(recipe).loss computes it" in str(caught.value)) == computed


@pytest.mark.parametrize(
    ("kind", "bottoms", "shapes", "words"),
    [
        ("SoftmaxWithLoss", "x y", [(2, 3, 4), (2, 3)], "the labels do not fit the scores\n  found: (2, 3)"),
        ("SoftmaxWithLoss", "x y", [(3,), (3,)], "axis 1 of the scores cannot hold the classes"),
        ("SigmoidCrossEntropyLoss", "x y", [(2, 3), (3, 2)], "the targets do not fit the scores"),
        ("EuclideanLoss", "x y", [(2, 3), (2, 4)], "the second input does not fit the first input"),
        ("HingeLoss", "x y", [(2, 3), (3,)], "the labels do not fit the scores"),
        ("MultinomialLogisticLoss", "x y", [(2, 3), (2, 3)], "the labels do not fit the scores"),
        ("ContrastiveLoss", "x y z", [(2, 3, 2), (2, 3, 2), (2,)], "ContrastiveLoss compares vectors"),
        ("InfogainLoss", "x y z", [(2, 3), (2,), (2, 2)], "the matrix H does not fit the scores"),
        ("SmoothL1Loss", "x y i o", [(2, 3), (2, 3), (2,), (2, 3)], "the inside weights do not fit the first input"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_with_their_place(kind, bottoms, shapes, words, tmp_path):
    loss = build_loss(recipe_of(tmp_path, one(kind, "", bottoms)))
    with pytest.raises(Caffe2TorchError) as caught:
        loss(*(torch.zeros(shape) for shape in shapes))
    assert words in str(caught.value)
    assert "net.prototxt:1:1" in str(caught.value)


@pytest.mark.parametrize("kind", ["HingeLoss", "MultinomialLogisticLoss", "SoftmaxWithLoss", "InfogainLoss"])
@pytest.mark.parametrize("label", [-1, 3, -100])
def test_a_label_that_is_no_class_is_an_index_error(kind, label, tmp_path):
    bottoms = "x y h" if kind == "InfogainLoss" else "x y"
    inputs = [torch.full((2, 3), 0.2), torch.tensor([0, label]), torch.eye(3)]
    with pytest.raises(IndexError):
        build_loss(recipe_of(tmp_path, one(kind, "", bottoms)))(*inputs[: len(bottoms.split())])


def test_targets_that_want_a_gradient_are_refused(tmp_path):
    loss = build_loss(recipe_of(tmp_path, one("SigmoidCrossEntropyLoss")))
    with pytest.raises(Caffe2TorchError, match="gives the targets no gradient"):
        loss(torch.zeros(2, 3), torch.zeros(2, 3, requires_grad=True))


def test_a_bottom_that_propagates_nothing_down_gets_no_gradient(tmp_path):
    loss = build_loss(recipe_of(tmp_path, one("EuclideanLoss", "propagate_down: false propagate_down: true")))
    a, b = torch.ones(2, 3, requires_grad=True), torch.zeros(2, 3, requires_grad=True)
    loss(a, b).backward()
    assert a.grad is None
    assert torch.equal(b.grad, torch.full((2, 3), -0.5))


def test_smooth_l1_is_the_forks(tmp_path):
    """smooth_L1_loss_layer.cu, written out: weights inside and outside, sigma squared, divided by N alone."""
    generator = torch.Generator().manual_seed(0)
    a, b, inside, outside = (2 * torch.randn(2, 3, 4, generator=generator, dtype=torch.float64) for _ in range(4))
    recipe = recipe_of(tmp_path, one("SmoothL1Loss", "smooth_l1_loss_param { sigma: 3 }", "x y i o"))
    a.requires_grad_()
    value = build_loss(recipe)(a, b, inside, outside)
    value.backward()
    d = (inside * (a - b)).detach()
    small = d.abs() < 1 / 9
    assert bool(small.any())
    cost = torch.where(small, 0.5 * d * d * 9, d.abs() - 0.5 / 9)
    torch.testing.assert_close(value.detach(), (outside * cost).sum() / 2)
    torch.testing.assert_close(a.grad, outside * inside * torch.where(small, 9 * d, d.sign()) / 2)


def test_the_forks_first_smooth_l1_leaves_its_weights_out_of_the_gradient(tmp_path):
    a, b, weights = torch.tensor([[0.5, 4.0]], requires_grad=True), torch.zeros(1, 2), torch.tensor([[0.5, 2.0]])
    loss = build_loss(recipe_of(tmp_path, one("SmoothL1Loss", "", "x y w")))(a, b, weights)
    loss.backward()
    assert loss.item() == 0.5 * 0.25**2 + 7.5
    assert a.grad.tolist() == [[0.25, 1.0]]


def test_one_loss_layer_takes_its_bottoms_and_several_take_a_mapping(tmp_path):
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    single = build_loss(recipe_of(tmp_path, one("SoftmaxWithLoss", "loss_weight: 2")))
    assert single(x, y) == single({"x": x, "y": y, "more": y})
    layers = one("SoftmaxWithLoss") + one("Power", 'top: "z" loss_weight: 0.5', "x").replace('"loss"', '"p"')
    several = build_loss(recipe_of(tmp_path, layers))
    torch.testing.assert_close(several({"x": x, "y": y, "z": x}), single(x, y) / 2 + 0.5 * x.sum())
    assert several.blobs == ("x", "y", "z")
    with pytest.raises(Caffe2TorchError, match="expected: a mapping with x, y, z"):
        several(x, y)
    with pytest.raises(Caffe2TorchError, match="expected: a mapping with x, y, or 2 tensors in this order"):
        single(x)
    with pytest.raises(Caffe2TorchError, match="blobs of the loss are missing"):
        several({"x": x, "y": y})


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        ("SoftmaxWithLoss", "", "torch.nn.CrossEntropyLoss()"),
        ("SoftmaxWithLoss", "loss_param { ignore_label: 255 }", "torch.nn.CrossEntropyLoss(ignore_index=255)"),
        ("SoftmaxWithLoss", "loss_param { normalization: NONE }", 'torch.nn.CrossEntropyLoss(reduction="sum")'),
        ("SoftmaxWithLoss", "loss_param { normalization: FULL }", "torch.nn.CrossEntropyLoss()"),
        ("SoftmaxWithLoss", "loss_param { normalization: FULL ignore_label: 1 }", None),
        ("SoftmaxWithLoss", "loss_param { normalize: false }", None),
        ("SoftmaxWithLoss", "softmax_param { axis: 2 }", None),
        ("SigmoidCrossEntropyLoss", "", None),
        ("SigmoidCrossEntropyLoss", "loss_param { normalize: true }", "torch.nn.BCEWithLogitsLoss()"),
        ("SigmoidCrossEntropyLoss", "loss_param { normalize: true ignore_label: 1 }", None),
        (
            "SigmoidCrossEntropyLoss",
            "loss_param { normalization: NONE }",
            'torch.nn.BCEWithLogitsLoss(reduction="sum")',
        ),
        ("EuclideanLoss", "", None),
    ],
)
def test_the_torch_call_is_named_only_where_it_is_the_same(kind, settings, expected, tmp_path):
    recipe = recipe_of(tmp_path, one(kind, settings))
    assert stock_call(recipe.layers[-1]) == expected
    if expected is not None:
        scores = torch.randn(3, 4, 5)
        labels = torch.randint(4, (3, 5)) if "Cross" in expected and "BCE" not in expected else torch.rand(3, 4, 5)
        stock = eval(expected, {"torch": torch})
        torch.testing.assert_close(build_loss(recipe)(scores, labels), stock(scores, labels))
