"""Whole nets as real Caffe ran them: every blob, loss and gradient in float64, and 20 iterations of training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from net_goldens import blob_values, float32_noise, load, net_errors, run_errors, tensors
from places import REPOSITORY

from caffe2torch import SegNetBasic, build_model, read_recipe
from caffe2torch.models import CaffeSoftmaxLoss

NETS = REPOSITORY.parent / "shared" / "goldens" / "nets"
RECORDED = sorted(path.parent.name for path in NETS.glob("*/rec.npz"))
SMALL = [name for name in RECORDED if name.startswith(("bvlc-cifar10", "bvlc-lenet", "bvlc-siamese"))] + [
    "bvlc-rc-hdf5-v1.TRAIN",
    "caffe-face-mnist.TRAIN",
    "digits-generic-regression.TEST",
    "dqn-hfo-critic-nonet.TRAIN",
    "enet-encoder.TRAIN",
    "mtcnn-12net@euclidean.TRAIN",
    "mtcnn-48net.TRAIN",
    "ndsb-nesterov.TEST",
    "pr-crnn-warpctc.TRAIN",
]
SMALL = [name for name in SMALL if name in RECORDED]
RUNS = sorted(path.name for path in (REPOSITORY / "fixtures" / "runs").iterdir())


def off(errors: dict[str, float], noise: float) -> dict[str, float]:
    return {name: error for name, error in errors.items() if not error <= noise}


@pytest.mark.shared
@pytest.mark.parametrize("name", SMALL)
def test_a_small_net_computes_what_caffe_recorded(shared: Path, name: str) -> None:
    errors = net_errors(shared / "goldens" / "nets" / name)
    assert len(errors) > 5
    assert off(errors, 1e-6) == {}


@pytest.mark.shared
@pytest.mark.parametrize("name", SMALL)
def test_in_float32_a_small_net_is_as_near_as_caffe_itself(shared: Path, name: str) -> None:
    folder = shared / "goldens" / "nets" / name
    noise = float32_noise(folder)
    errors = net_errors(folder, torch.float32)
    assert {key: error for key, error in errors.items() if error > max(3 * noise.get(key, 0), 2e-6)} == {}


@pytest.mark.shared
@pytest.mark.large
@pytest.mark.parametrize("name", [name for name in RECORDED if name not in SMALL])
def test_a_large_net_computes_what_caffe_recorded(shared: Path, name: str) -> None:
    assert off(net_errors(shared / "goldens" / "nets" / name), 1e-6) == {}


def unlearned(case: str) -> set[str]:
    """A bias before a BatchNorm: its gradient is rounding, which Adam makes a step of; the kept mean follows it."""
    return {"conv1/1", "bn1/0"} if case == "euclid_bn_adam_clip" else set()


@pytest.mark.parametrize("case", RUNS)
def test_a_built_net_trains_as_caffe_did(fixtures: Path, case: str) -> None:
    errors = run_errors(fixtures / "runs" / case)
    assert {name: error for name, error in off(errors, 3e-6).items() if name not in unlearned(case)} == {}


@pytest.mark.shared
def test_all_recorded_runs_are_followed(shared: Path) -> None:
    cases = sorted((shared / "goldens" / "runs").iterdir())
    found = {case.name: set(off(run_errors(case), 3e-6)) - unlearned(case.name) for case in cases}
    assert len(found) == 9
    assert {case: errors for case, errors in found.items() if errors} == {}


def test_the_built_net_of_segnet_basic_and_the_built_in_one_agree(fixtures: Path) -> None:
    recipe = read_recipe(fixtures / "segnet_basic" / "train.prototxt", inputs={"data": (2, 4, 32, 48)})
    sizes = {blob.name: blob.shape for blob in recipe.blobs}
    classes, width = sizes["conv_classifier/0"][:2]  # type: ignore[index]
    built, by_hand = build_model(recipe).double(), SegNetBasic(4, int(classes or 0), int(width or 0)).double()
    load(built, [value.copy() for value in blob_values(built)])
    with torch.no_grad():
        for ours, theirs in zip(tensors(built), by_hand.parameters(), strict=True):
            theirs.copy_(ours.reshape(theirs.shape))
    images = torch.rand(2, 4, 32, 48, dtype=torch.float64)
    scores = built(images)
    torch.testing.assert_close(scores, by_hand(images), rtol=0, atol=1e-12 * scores.abs().max().item())
    labels = torch.randint(0, int(classes or 0), (2, 1, 32, 48))
    built.loss(images, labels).backward()  # type: ignore[no-untyped-call]
    loss = next(module for module in built.modules() if isinstance(module, CaffeSoftmaxLoss))
    loss(by_hand(images), labels).backward()
    for ours, theirs in zip(tensors(built), by_hand.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        largest = theirs.grad.abs().max().item()
        torch.testing.assert_close(ours.grad.reshape(theirs.shape), theirs.grad, rtol=0, atol=1e-8 * largest + 1e-15)


@pytest.mark.shared
def test_the_recorded_nets_are_all_there(shared: Path) -> None:
    records = list((shared / "goldens" / "nets").glob("*/rec.npz"))
    phases = {json.loads((record.parent / "meta.json").read_text())["phase"] for record in records}
    assert len(records) >= 100
    assert phases == {"TRAIN", "TEST"}
