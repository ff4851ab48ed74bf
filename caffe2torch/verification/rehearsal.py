"""Stand-ins for parameters, and a twin's life on them: lanes in, movements out."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from caffe2torch.verification.optimizer_copy import Twin, make_twin
from caffe2torch.verification.probe_sequence import Lane, Window

__all__ = ["Subject", "live", "precision", "subjects_of", "undisturbed"]


@dataclass(frozen=True)
class Subject:
    """A tensor that the optimizer holds, the groups in which it does, and whether backward gives it a gradient."""

    tensor: torch.Tensor
    groups: tuple[int, ...]
    trains: bool

    def stand_in(self, numbers: int, *, along_last: bool = False) -> torch.Tensor:
        """A small tensor of as many axes, with the same attributes, and ``numbers`` along one axis."""
        shape = [1] * max(self.tensor.dim(), 1)
        shape[-1 if along_last else 0] = numbers
        device = torch.device("cpu") if self.tensor.device.type == "meta" else self.tensor.device
        zeros = torch.zeros(shape, dtype=_dtype(self.tensor), device=device)
        made = torch.nn.Parameter(zeros, requires_grad=self.trains)
        made.__dict__.update(vars(self.tensor))  # attributes by which an optimizer may treat a parameter specially
        return made


def subjects_of(optimizer: torch.optim.Optimizer) -> list[Subject]:
    """Every tensor that an optimizer holds, once each."""
    groups: dict[int, list[int]] = {}
    tensors: dict[int, torch.Tensor] = {}
    for index, group in enumerate(optimizer.param_groups):
        for tensor in group["params"]:
            groups.setdefault(id(tensor), []).append(index)
            tensors[id(tensor)] = tensor
    return [Subject(tensors[key], tuple(found), tensors[key].requires_grad) for key, found in groups.items()]


def precision(subjects: Sequence[Subject]) -> float:
    """The spacing of numbers near 1 in the coarsest stand-in."""
    return max((torch.finfo(_dtype(subject.tensor)).eps for subject in subjects), default=2.0**-52)


def live(
    carrier: Twin, subjects: Sequence[Subject], window: Window, lanes: Sequence[Lane], *, along_last: bool = False
) -> dict[int, torch.Tensor]:
    """Step a fresh twin of ``carrier`` through a window: ``id`` of each tensor to its movements, (lanes, steps).

    Whatever the optimizer's ``step()`` raises goes through.
    """
    made = {id(subject.tensor): subject.stand_in(len(lanes), along_last=along_last) for subject in subjects}
    onto = {id(carrier.stand_ins[key]): stand_in for key, stand_in in made.items()}
    try:
        return _steps(make_twin(carrier.optimizer, carrier.scheduler, onto), made, window, lanes)
    except Exception:
        if not carrier.optimizer.state:
            raise
        twin = make_twin(carrier.optimizer, carrier.scheduler, onto, started=True)
        return _steps(twin, made, window, lanes)


def _steps(twin: Twin, made: dict[int, torch.Tensor], window: Window, lanes: Sequence[Lane]) -> dict[int, torch.Tensor]:
    weights = torch.tensor([[torch.nan if w is None else w for w in lane.weights] for lane in lanes]).double()
    gradients = torch.tensor([lane.gradients for lane in lanes], dtype=torch.float64)
    moved = {key: torch.zeros(len(lanes), window.steps, dtype=torch.float64) for key in made}
    for step in range(window.steps):
        before = {}
        for key, stand_in in made.items():
            now = stand_in.detach().reshape(-1).double().cpu()
            placed = torch.where(weights[:, step].isnan(), now, weights[:, step])
            with torch.no_grad():
                stand_in.copy_(placed.reshape(stand_in.shape))
            if stand_in.requires_grad:
                stand_in.grad = gradients[:, step].reshape(stand_in.shape).to(stand_in, copy=True)
            before[key] = stand_in.detach().reshape(-1).double().cpu().clone()
        twin.optimizer.step()
        for key, stand_in in made.items():
            moved[key][:, step] = stand_in.detach().reshape(-1).double().cpu() - before[key]
        if window.moving and step + 1 < window.steps:
            twin.scheduler.step()
    return moved


@contextmanager
def undisturbed(subjects: Sequence[Subject]) -> Iterator[None]:
    """Leave every random number generator as it was, and keep what the probe provokes from warning the user."""
    states: list[Any] = [random.getstate()]
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        states.append(numpy.random.get_state())
    devices = {subject.tensor.device for subject in subjects if subject.tensor.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=sorted(devices, key=str)), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        random.setstate(states[0])
        if numpy is not None:
            numpy.random.set_state(states[1])


def _dtype(tensor: torch.Tensor) -> torch.dtype:
    """Double precision, so that a tiny decay of a weight is no rounding error; what Metal lacks is float32 there."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64
