"""compare_losses names what a port's loss does otherwise than its net's, with the factor on the gradient."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - as all of torch's own documents write it

from caffe2torch import build_loss, read_recipe
from caffe2torch.verification.compare_losses import compare_losses, describe_loss

FLAT = (4, 6)
IMAGES = (4, 6, 5, 8)  # 160 labels, 960 scores


def recipe_of(tmp_path, layers: str, scores=FLAT):
    dims = " ".join(f"dim: {size}" for size in scores)
    file = tmp_path / "net.prototxt"
    file.write_text(
        f"""layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ {dims} }} }} }}
        layer {{ name: "x" type: "Power" bottom: "data" top: "x" }}
        layer {{ name: "z" type: "Power" bottom: "data" top: "z" }} {layers}"""
    )
    return read_recipe(file)


def one(kind: str, more: str = "", bottoms: str = "x y") -> str:
    names = " ".join(f'bottom: "{name}"' for name in bottoms.split())
    return f'layer {{ name: "loss" type: "{kind}" {names} top: "loss" {more} }}'


def aux(weight: float) -> str:
    head = 'layer {{ name: "{}" type: "SoftmaxWithLoss" bottom: "{}" bottom: "y" top: "{}" loss_weight: {} }}'
    return head.format("main", "x", "main", 1) + head.format("aux", "z", "aux", weight)


def half_mse(a, b):
    return F.mse_loss(a, b, reduction="sum") / (2 * a.shape[0])


def contrastive(a, b, similar, half=2):
    distance = (a - b).square().sum(1).sqrt()
    apart = (1 - distance).clamp_min(0).square()
    return torch.where(similar == 1, distance.square(), apart).sum() / (half * a.shape[0])


def smooth(a, b, inside, outside, beta=1 / 9):
    return (outside * F.smooth_l1_loss(inside * a, inside * b, beta=beta, reduction="none")).sum() / a.shape[0]


def hinge(x, y, power=1):
    sign = 1 - 2 * F.one_hot(y, x.shape[1])
    return F.relu(1 + sign * x).pow(power).sum() / x.shape[0]


SOFTMAX, SIGMOID = one("SoftmaxWithLoss"), one("SigmoidCrossEntropyLoss")
BATCH = one("SoftmaxWithLoss", "loss_param { normalize: false }")
IGNORE = one("SoftmaxWithLoss", "loss_param { ignore_label: 2 }")
WEIGHTS = (0.5, 1.0, 2.0, 4.0, 0.25, 3.0)
SEGNET = one(
    "SoftmaxWithLoss",
    f"loss_param {{ weight_by_label_freqs: true {' '.join(f'class_weighting: {w}' for w in WEIGHTS)} }}",
)
EUCLIDEAN, CONTRASTIVE = one("EuclideanLoss"), one("ContrastiveLoss", bottoms="x z y")
SMOOTH = one("SmoothL1Loss", "smooth_l1_param { sigma: 3 } smooth_l1_loss_param { sigma: 3 }", "x y in out")
TEN = one("SoftmaxWithLoss", "loss_weight: 10")

MISTAKES = {
    "batch for pixels": (
        BATCH,
        IMAGES,
        nn.CrossEntropyLoss(),
        4 / 160,
        "yours divides by 160 labels, Caffe's by 4 images: the effective lr is 40 times smaller",
    ),
    "pixels for batch": (
        SOFTMAX,
        IMAGES,
        lambda x, y: F.cross_entropy(x, y, reduction="sum") / x.shape[0],
        160 / 4,
        "yours divides by 4 images, Caffe's by 160 labels: the effective lr is 40 times larger",
    ),
    "sum for mean": (
        SOFTMAX,
        FLAT,
        nn.CrossEntropyLoss(reduction="sum"),
        4,
        "yours divides by 1, Caffe's by 4 labels: the effective lr is 4 times larger",
    ),
    "mean over the elements for the batch": (
        SIGMOID,
        IMAGES,
        nn.BCEWithLogitsLoss(),
        4 / 960,
        "yours divides by 960 elements, Caffe's by 4 images: the effective lr is 240 times smaller",
    ),
    "ignored label missing": (IGNORE, IMAGES, nn.CrossEntropyLoss(), None, "yours does not ignore label 2"),
    "ignored label out of range": (
        IGNORE.replace(": 2", ": 255"),
        IMAGES,
        nn.CrossEntropyLoss(),
        None,
        "does not ignore the label that Caffe ignores, and fails on it",
    ),
    "ignores another label": (
        SOFTMAX,
        IMAGES,
        nn.CrossEntropyLoss(ignore_index=0),
        None,
        "yours ignores label 0, Caffe's none",
    ),
    "ignored labels counted": (
        IGNORE,
        IMAGES,
        lambda x, y: F.cross_entropy(x, y, ignore_index=2, reduction="sum") / y.numel(),
        None,
        "yours divides by 160 labels, Caffe's by",
    ),
    "aux weight missing": (
        aux(0.3),
        FLAT,
        lambda b: F.cross_entropy(b["x"], b["y"]) + F.cross_entropy(b["z"], b["y"]),
        1 / 0.3,
        "yours lacks the loss_weight of 0.3: the effective lr is 3.333 times larger",
    ),
    "aux weight wrong": (
        aux(0.3),
        FLAT,
        lambda outputs, y: F.cross_entropy(outputs[0], y) + 0.4 * F.cross_entropy(outputs[1], y),
        4 / 3,
        "yours has weight 0.4, Caffe's 0.3: the effective lr is 1.333 times larger",
    ),
    "aux head missing": (
        aux(0.3),
        FLAT,
        lambda outputs, y: F.cross_entropy(outputs[0], y),
        0,
        "has no part in your loss; in Caffe's aux has weight 0.3",
    ),
    "loss_weight missing": (TEN, FLAT, nn.CrossEntropyLoss(), 0.1, "yours lacks the loss_weight of 10"),
    "1/2 missing": (
        EUCLIDEAN,
        IMAGES,
        lambda a, b: F.mse_loss(a, b, reduction="sum") / a.shape[0],
        2,
        "yours lacks the factor 1/2: the effective lr is 2 times larger",
    ),
    "mean for sum": (
        EUCLIDEAN,
        IMAGES,
        nn.MSELoss(),
        2 * 4 / 960,
        "yours divides by 960 elements, Caffe's by 4 images and yours lacks the factor 1/2: the effective lr is 120",
    ),
    "probabilities for scores": (
        SOFTMAX,
        FLAT,
        lambda x, y: F.cross_entropy(x.softmax(1), y),
        1,
        "yours applies the softmax twice: it takes probabilities for scores",
    ),
    "scores for log-probabilities": (
        SOFTMAX,
        IMAGES,
        nn.NLLLoss(),
        1,
        "yours lacks the log-softmax: it takes scores for log-probabilities",
    ),
    "sigmoid twice": (
        SIGMOID,
        IMAGES,
        lambda x, t: F.binary_cross_entropy_with_logits(x.sigmoid(), t, reduction="sum") / x.shape[0],
        1,
        "yours applies the sigmoid twice",
    ),
    "scores for probabilities": (
        one("MultinomialLogisticLoss"),
        FLAT,
        nn.CrossEntropyLoss(),
        1,
        "yours takes the probabilities for scores and applies a softmax to them",
    ),
    "class weights missing": (SEGNET, IMAGES, nn.CrossEntropyLoss(), 1, "yours leaves out the class weights"),
    "torch's weighted mean": (
        SEGNET,
        IMAGES,
        nn.CrossEntropyLoss(torch.tensor(WEIGHTS)),
        None,
        "the sum of the class weights of the labels, Caffe's by 160 labels",
    ),
    "contrastive without 1/2": (
        CONTRASTIVE,
        FLAT,
        lambda a, b, y: contrastive(a, b, y, half=1),
        2,
        "yours lacks the factor 1/2",
    ),
    "similar the other way round": (
        CONTRASTIVE,
        FLAT,
        lambda a, b, y: contrastive(a, b, 1 - y),
        1,
        "yours takes 1 for a pair that is not similar",
    ),
    "hinge of the other norm": (
        one("HingeLoss", "hinge_loss_param { norm: L2 }"),
        FLAT,
        hinge,
        1,
        "yours is the L1 hinge loss, Caffe's L2",
    ),
    "smooth L1 averaged": (
        SMOOTH,
        IMAGES,
        lambda a, b, i, o: smooth(a, b, i, o) * a.shape[0] / a.numel(),
        4 / 960,
        "yours divides by 960 elements, Caffe's by 4 images: the effective lr is 240 times smaller",
    ),
    "sigma missing": (SMOOTH, IMAGES, lambda a, b, i, o: smooth(a, b, i, o, 1.0), 1, "yours lacks sigma 3"),
    "another sign": (
        SOFTMAX,
        FLAT,
        lambda x, y: -F.cross_entropy(x, y),
        -1,
        "yours is -1 times Caffe's: training goes uphill",
    ),
    "not a number": (SOFTMAX, FLAT, lambda x, y: F.cross_entropy(x, y) * math.nan, None, "your gradient is not finite"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_planted_mistake_is_named_with_its_factor(name, tmp_path):
    layers, shape, loss, factor, words = MISTAKES[name]
    finding = compare_losses(recipe_of(tmp_path, layers, shape), loss)
    assert not finding.ok
    wrong = [fault for fault in finding.faults if words in fault.message]
    assert wrong, str(finding)
    if factor is not None:
        assert wrong[0].factor == pytest.approx(factor, rel=1e-3)
    clean = {"ignored label out of range": 2}.get(name, 1)
    assert len(finding.faults) <= clean, str(finding)


def test_a_constant_divisor_is_right_at_the_nets_own_batch(tmp_path):
    assert compare_losses(recipe_of(tmp_path, BATCH, IMAGES), lambda x, y: summed(x, y) / IMAGES[0]).ok
    (fault,) = compare_losses(read_recipe(_net_of_unknown_batch(tmp_path)), lambda x, y: summed(x, y) / 2).faults
    assert "the effective lr is the same for a batch of 2, and 1.5 times larger for a batch of 3" in fault.message


def summed(x, y):
    return F.cross_entropy(x, y, reduction="sum")


ONE = (1, *IMAGES[1:])


def test_a_sum_is_right_for_a_net_whose_batch_is_one(tmp_path):
    assert compare_losses(recipe_of(tmp_path, BATCH, ONE), summed).ok
    assert compare_losses(
        recipe_of(tmp_path, aux(0.3), (1, 6)), lambda o, y: summed(o[0], y) + 0.3 * summed(o[1], y)
    ).ok
    (fault,) = compare_losses(recipe_of(tmp_path, BATCH, ONE), nn.CrossEntropyLoss()).faults
    assert fault.factor == pytest.approx(1 / 40)
    assert "does not ignore label 2" in str(compare_losses(recipe_of(tmp_path, IGNORE, ONE), nn.CrossEntropyLoss()))


def test_a_factor_that_follows_the_batch_says_which_batch_it_is_of(tmp_path, monkeypatch):
    monkeypatch.setattr("caffe2torch.verification.loss_samples._MOST", 3 * 240)
    (fault,) = compare_losses(recipe_of(tmp_path, BATCH, IMAGES), summed).faults
    assert fault.message == (
        "yours divides by 1, Caffe's by 3 images: the effective lr is 3 times larger, in a sample of 3 images; "
        "the net's batch is 4"
    )
    (fault,) = compare_losses(recipe_of(tmp_path, BATCH, IMAGES), nn.CrossEntropyLoss()).faults
    assert fault.message.endswith("40 times smaller")  # for any batch
    recipe = read_recipe(_net_of_unknown_batch(tmp_path))
    (fault,) = compare_losses(recipe, summed).faults
    assert fault.message.endswith("2 times larger, in a sample of 2 images; the net's batch is not stated")


def _net_of_unknown_batch(folder):
    file = folder / "unknown.prototxt"
    file.write_text(
        f"""layer {{ name: "data" type: "Python" top: "data" }}
        layer {{ name: "x" type: "Convolution" bottom: "data" top: "x"
                 convolution_param {{ num_output: 6 kernel_size: 1 }} }} {BATCH}"""
    )
    return file


RIGHT = {
    "stock": (SOFTMAX, IMAGES, nn.CrossEntropyLoss()),
    "stock that ignores": (IGNORE, IMAGES, nn.CrossEntropyLoss(ignore_index=2)),
    "a mapping": (aux(0.3), FLAT, lambda b: F.cross_entropy(b["x"], b["y"]) + 0.3 * F.cross_entropy(b["z"], b["y"])),
    "outputs and labels": (aux(0.3), FLAT, lambda o, y: F.cross_entropy(o[0], y) + 0.3 * F.cross_entropy(o[1], y)),
    "all in a row": (aux(0.3), FLAT, lambda x, z, y: F.cross_entropy(x, y) + 0.3 * F.cross_entropy(z, y)),
    "labels as Caffe shapes them": (
        SOFTMAX,
        IMAGES,
        lambda x, y: F.cross_entropy(x, y.reshape(y.shape[0], 1, 5, 8)[:, 0]),
    ),
    "half a sum of squares": (EUCLIDEAN, IMAGES, half_mse),
    "the exact derivative of a distance": (CONTRASTIVE, FLAT, contrastive),
    "smooth L1": (SMOOTH, IMAGES, smooth),
    "hinge": (one("HingeLoss"), FLAT, hinge),
    "averaged by hand": (TEN, FLAT, lambda x, y: 10 * F.cross_entropy(x, y, reduction="sum") / len(y)),
}


@pytest.mark.parametrize("name", RIGHT)
def test_the_same_loss_in_other_words_is_right(name, tmp_path):
    layers, shape, loss = RIGHT[name]
    finding = compare_losses(recipe_of(tmp_path, layers, shape), loss)
    assert finding.ok, str(finding)
    assert str(finding).endswith("the user's loss is the same")


def in_place(x, y):
    x.mul_(2).div_(2)
    y[y == 2] = -100
    return F.cross_entropy(x, y)


def test_a_loss_may_change_what_it_is_given(tmp_path):
    assert compare_losses(recipe_of(tmp_path, IGNORE), in_place).ok


def test_nothing_of_the_users_changes(tmp_path):
    class Weighed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, x, y):
            torch.rand(3)
            return self.weight * F.cross_entropy(x, y)

    loss = Weighed()
    before = torch.get_rng_state()
    assert compare_losses(recipe_of(tmp_path, SOFTMAX), loss).ok
    assert loss.weight.grad is None
    assert torch.equal(torch.get_rng_state(), before)


def raising(error):
    def loss(*_):
        raise error

    return loss


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (raising(SystemExit(3)), "scores and labels: SystemExit: 3"),
        (raising(AssertionError()), "scores and labels: AssertionError"),
        (raising(ValueError("\n")), "scores and labels: ValueError"),
        (lambda x, y: F.cross_entropy(x, y, reduction="none"), "it gives (4,) where a scalar is expected"),
        (lambda x, y: F.cross_entropy(x, y).item(), "it gives float where a scalar is expected"),
        (lambda x, y: F.cross_entropy(x.detach(), y), "its value has no gradient"),
        (lambda x, y: x @ y, "your loss fails on the net's scores and labels: RuntimeError"),
    ],
)
def test_a_loss_that_cannot_be_run_is_not_seen(loss, words, tmp_path):
    finding = compare_losses(recipe_of(tmp_path, SOFTMAX), loss)
    assert not finding.ok
    assert words in finding.not_seen
    assert not finding.not_seen.endswith((":", " "))


@pytest.mark.parametrize(
    ("layers", "line"),
    [
        (IGNORE, "torch.nn.CrossEntropyLoss(ignore_index=2)"),
        (aux(0.3), "torch.nn.CrossEntropyLoss() + 0.3 * torch.nn.CrossEntropyLoss()"),
        (SIGMOID, "SigmoidCrossEntropyLoss, a sum divided by the batch (no torch call is the same)"),
        ("".join(SOFTMAX.replace('"loss"', f'"{name}"') for name in "abcd"), "4 terms of torch.nn.CrossEntropyLoss()"),
    ],
)
def test_the_nets_loss_is_one_line(layers, line, tmp_path):
    assert describe_loss(recipe_of(tmp_path, layers)) == line


@pytest.mark.shared
def test_caffes_own_losses_are_right(shared):
    wrong = {}
    for folder in sorted((shared / "goldens" / "losses").iterdir()):
        recipe = read_recipe(folder / "net.prototxt")
        finding = compare_losses(recipe, build_loss(recipe))
        if not finding.ok:
            wrong[folder.name] = str(finding)
    assert list(wrong) == ["infogain_source_file"], wrong  # whose matrix is in a file
