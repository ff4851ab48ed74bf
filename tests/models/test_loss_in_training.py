"""Ports written by hand, with the net's loss and optimizer from its prototxts, train as recorded runs of Caffe did."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from places import REPOSITORY
from torch import Tensor, nn
from torch.nn import functional

from caffe2torch.translation import Translation, translate

BOUND = 3e-6  # of the largest movement


class TwoLayers(nn.Module):
    """Two fully connected layers, classified."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, data: Tensor) -> Tensor:
        return self.fc2(self.fc1(data).relu())

    def loss(self, t: Translation, data: Tensor, label: Tensor) -> Tensor:
        return t.loss(self(data), label.long())


class Normalized(nn.Module):
    """A convolution, BatchNorm and Scale, regression."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.scale1 = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4, eps=1e-5, momentum=0.001)
        self.fc = nn.Linear(48, 2)

    def forward(self, data: Tensor) -> Tensor:
        return self.fc(self.scale1(self.conv1(data)).relu().flatten(1))

    def loss(self, t: Translation, data: Tensor, target: Tensor) -> Tensor:
        return t.loss(self(data), target)


class FullyConvolutional(nn.Module):
    """Scores for every pixel, upsampled and cropped; some labels are ignored."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.score, self.up = nn.Conv2d(8, 4, 1), nn.ConvTranspose2d(4, 4, 4, 2, groups=4, bias=False)

    def forward(self, data: Tensor) -> Tensor:
        x = functional.max_pool2d(self.conv1(data).relu(), 2, 2)
        return self.up(self.score(self.conv2(x).relu()))[..., 1:7, 1:9]

    def loss(self, t: Translation, data: Tensor, label: Tensor) -> Tensor:
        return t.loss(self(data), label.squeeze(1).long())


class Siamese(nn.Module):
    """One branch, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.ip1, self.feat = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, data: Tensor, data_p: Tensor) -> tuple[Tensor, Tensor]:
        return self.feat(self.ip1(data).relu()), self.feat(self.ip1(data_p).relu())

    def loss(self, t: Translation, data: Tensor, data_p: Tensor, sim: Tensor) -> Tensor:
        return t.loss(*self(data, data_p), sim)


class Pixels(nn.Module):
    """A probability for every pixel, summed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.score = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 1, 1)

    def forward(self, data: Tensor) -> Tensor:
        return self.score(self.conv1(data).relu())

    def loss(self, t: Translation, data: Tensor, label: Tensor) -> Tensor:
        return t.loss(self(data), label)


class TwoHeads(nn.Module):
    """An auxiliary loss of weight 0.3 beside the main one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.aux_fc = nn.Conv2d(2, 5, 3, padding=1), nn.Linear(100, 3)
        self.conv2, self.fc = nn.Conv2d(5, 5, 3, stride=2), nn.Linear(10, 3)

    def forward(self, data: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv1(data).relu()
        return self.aux_fc(x.flatten(1)), self.fc(self.conv2(x).relu().flatten(1))

    def loss(self, t: Translation, data: Tensor, label: Tensor) -> Tensor:
        aux, main = self(data)
        return t.loss({"aux_fc": aux, "fc": main, "label": label.long()})


PORTS: Mapping[str, type[nn.Module]] = {
    "adadelta": TwoLayers,
    "default_decay_mult": TwoLayers,
    "euclid_bn_adam_clip": Normalized,
    "exp_nomomentum_frozen": TwoLayers,
    "fcn_sgd": FullyConvolutional,
    "siamese_inv": Siamese,
    "sigmoid_nesterov_sum": Pixels,
    "sigmoidpolicy_adagrad": TwoLayers,
    "two_heads_step_itersize2": TwoHeads,
}
UNLEARNED = {"euclid_bn_adam_clip": {"conv1.bias"}}
"""A bias before a BatchNorm: its gradient is rounding, of which Adam makes a step."""


def errors_of(case: Path) -> dict[str, float]:
    """How far loss and parameters stray in 20 iterations, over the loss itself and a parameter's largest movement."""
    trace = np.load(case / "trace.npz")
    model = PORTS[case.name]()
    t = translate(case / "net.prototxt", case / "solver.prototxt", model)
    recorded = OrderedDict((bound.name, trace[f"w_{bound.blob.layer}_{bound.blob.index}"]) for bound in t.binding.blobs)
    tensors = {name: p.detach() for name, p in model.named_parameters()}
    for name, values in recorded.items():
        if name in tensors:
            tensors[name].copy_(torch.from_numpy(values[0]).reshape(tensors[name].shape))
    inputs = [name[5:] for name in trace if name.startswith("data_")]
    passes = t.solver.iter_size
    errors: dict[str, float] = {"loss": 0.0}
    for iteration, recorded_loss in enumerate(trace["loss"]):
        total = 0.0
        t.optimizer.zero_grad()
        for j in range(passes):
            batch = {name: torch.from_numpy(trace[f"data_{name}"][iteration, j]) for name in inputs}
            loss = model.loss(t, **batch)  # type: ignore[operator]  # every port has one
            loss.backward()
            total += loss.item() / passes
        t.optimizer.step()
        t.scheduler.step()
        errors["loss"] = max(errors["loss"], abs(total / recorded_loss - 1))
        for name in recorded.keys() & tensors.keys():
            values = recorded[name]
            move = float(np.abs(values[-1] - values[0]).max()) or 1.0
            off = float(np.abs(tensors[name].numpy().reshape(values[0].shape) - values[iteration + 1]).max()) / move
            errors[name] = max(errors.get(name, 0.0), off)
    return {name: error for name, error in errors.items() if name not in UNLEARNED.get(case.name, ())}


@pytest.mark.parametrize("case", sorted(path.name for path in (REPOSITORY / "fixtures/runs").iterdir()))
def test_a_port_with_the_nets_loss_trains_as_caffe_did(fixtures: Path, case: str) -> None:
    errors = errors_of(fixtures / "runs" / case)
    assert {name: error for name, error in errors.items() if not error <= BOUND} == {}


@pytest.mark.shared
def test_ports_of_all_recorded_runs_train_as_caffe_did(shared: Path) -> None:
    found = {case: errors_of(shared / "goldens/runs" / case) for case in PORTS}
    assert {case: max(errors.values()) for case, errors in found.items() if max(errors.values()) > BOUND} == {}
    assert all(len(errors) >= 4 for errors in found.values())
