"""Recorded runs of SegNetBasic, and what it takes to run them again in torch.

To go on from a snapshot: restore model, optimizer and scheduler, then ``train(..., range(10, 20))`` and look at
``distances(model, recording, 20)``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from caffe2torch.models import CaffeSoftmaxLoss, SegNetBasic

CHANNELS, CLASSES, WIDTH = 4, 3, 8
LOSS = CaffeSoftmaxLoss(class_weights=[0.2595, 4.5640, 0.9051], ignore_label=3)

SOLVER = """
base_lr: 0.1  lr_policy: "step"  gamma: 1.0  stepsize: 10000000
momentum: 0.9  weight_decay: 0.0005  max_iter: 20
"""


@dataclass(frozen=True)
class Recording:
    """A run of Caffe: its two prototxts, and arrays as ``fixtures/segnet_trace/README.md`` names them."""

    net: Path
    solver: Path
    arrays: dict[str, np.ndarray]

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(self.arrays[key].astype(np.float32))

    def of(self, kind: str) -> Iterator[tuple[str, Tensor]]:
        """Blob and array for each ``KIND/BLOB`` that was recorded."""
        for key in self.arrays:
            if key.startswith(f"{kind}/"):
                yield key.removeprefix(f"{kind}/"), self[key]

    def batch(self, iteration: int) -> tuple[Tensor, Tensor]:
        """Images and labels of an iteration."""
        return self["data"][iteration % 4], self["label"][iteration % 4]

    def model(self, kind: str = "init") -> SegNetBasic:
        """SegNetBasic with recorded weights."""
        model = SegNetBasic(CHANNELS, CLASSES, WIDTH)
        with torch.no_grad():
            for blob, weight in self.of(kind):
                parameter = model.get_parameter(parameter_name(blob))
                parameter.copy_(weight.reshape(parameter.shape))
        return model


def from_fixtures(fixtures: Path, case: str, scratch: Path) -> Recording:
    """A run kept with the project; its net is the fixture's with fewer features."""
    text = (fixtures / "segnet_basic" / "train.prototxt").read_text()
    (scratch / "net.prototxt").write_text(text.replace("num_output: 64", f"num_output: {WIDTH}"))
    (scratch / "solver.prototxt").write_text(SOLVER)
    with np.load(fixtures / "segnet_trace" / f"{case}.npz") as arrays:
        return Recording(scratch / "net.prototxt", scratch / "solver.prototxt", dict(arrays))


def from_shared(shared: Path, case: str) -> Recording:
    """A run with everything that was recorded, and the prototxts that Caffe read."""
    folder = shared / "goldens" / "segnet" / case
    with np.load(folder / "trace.npz") as arrays:
        return Recording(folder / "net.prototxt", folder / "solver.prototxt", dict(arrays))


def parameter_name(blob: str) -> str:
    """``conv1_bn/1`` as SegNetBasic names it: ``conv1_bn.bias``."""
    layer, index = blob.split("/")
    return f"{layer}.{('weight', 'bias')[int(index)]}"


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None,
    recording: Recording,
    iterations: Iterable[int],
) -> list[float]:
    """Run iterations as recorded, in the precision of the model; the losses."""
    dtype = next(model.parameters()).dtype
    losses = []
    for iteration in iterations:
        images, labels = recording.batch(iteration)
        loss = LOSS(model(images.to(dtype)), labels)
        loss.backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def distances(model: nn.Module, recording: Recording, iteration: int) -> dict[str, float]:
    """How far each blob is from Caffe's after ``iteration`` updates, over its largest value.

    A convolution's bias before a BN has no true gradient, and what moves it is rounding: it is measured by the largest
    movement in the net instead.
    """
    recorded = dict(recording.of(f"weight@{iteration}"))
    movement = max((recorded[blob] - start).abs().max() for blob, start in recording.of("init"))
    result = {}
    for blob, weight in recorded.items():
        layer, index = blob.split("/")
        parameter = model.get_parameter(parameter_name(blob)).detach()
        before_bn = index == "1" and f"{layer}_bn/0" in recorded
        result[blob] = furthest(parameter, weight, movement if before_bn else weight.abs().max())
    return result


def furthest(ours: Tensor, caffes: Tensor, scale: Tensor | None = None) -> float:
    """The largest difference, over Caffe's largest value or another scale."""
    difference = (ours.detach().double().reshape(caffes.shape) - caffes.double()).abs().max()
    return (difference / (caffes.abs().max() if scale is None else scale)).item()
