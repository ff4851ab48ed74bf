"""Files that version 0.1 wrote load in this one, and mean the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import caffe2torch
from caffe2torch.lock import read_lock

CASES = ["sgd", "sgd_multistep_clip_iter2", "nesterov", "adagrad", "rmsprop", "adadelta", "adam"]


def small() -> nn.Module:
    model = nn.Module()
    model.conv, model.fixed, model.ip = nn.Conv2d(2, 4, 3), nn.Linear(64, 5), nn.Linear(5, 3)
    return model


@pytest.mark.parametrize("case", CASES)
def test_a_run_goes_on_from_its_checkpoint(case: str, fixtures: Path) -> None:
    folder = fixtures / "version_0_1"
    model = small()
    t = caffe2torch.translate(folder / "net.prototxt", folder / f"{case}.solver.prototxt", model)
    assert t.load(folder / f"{case}.pt") == ()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(6):
        generator = torch.Generator().manual_seed(t.scheduler.last_epoch)
        for p in model.parameters():
            if p.requires_grad:
                p.grad = torch.randn(p.shape, generator=generator)
        t.optimizer.step()
        t.scheduler.step()
    after = torch.load(folder / f"{case}.after.pt", weights_only=True)
    movement = max(float((after[name] - before[name]).abs().max()) for name in after)
    for name, p in model.named_parameters():
        assert float((p.detach() - after[name]).abs().max()) <= 3e-6 * movement, name


@pytest.mark.parametrize("name", ["segnet_basic", "sgd_multistep_clip_iter2"])
def test_a_lock_says_what_it_said(name: str, fixtures: Path) -> None:
    lock = read_lock(fixtures / "version_0_1" / f"{name}.lock.json")
    if name == "segnet_basic":
        model: nn.Module = caffe2torch.SegNetBasic(in_channels=4, num_classes=3)
        t = caffe2torch.translate(
            fixtures / "segnet_basic" / "train.prototxt", fixtures / "segnet_basic" / "solver.prototxt", model
        )
    else:
        model = small()
        folder = fixtures / "version_0_1"
        t = caffe2torch.translate(folder / "net.prototxt", folder / f"{name}.solver.prototxt", model)
    assert caffe2torch.audit(lock, model, t.optimizer, t.scheduler).ok
    wrong = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    assert not caffe2torch.audit(lock, model, wrong).ok
