"""Probe tensors, and the steps of a copy of the optimizer on them: sequences in, movements out."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from caffe2torch.verification.optimizer_copy import OptimizerCopy, copy_optimizer
from caffe2torch.verification.optimizer_copy import step as take_step
from caffe2torch.verification.probe_sequence import Movements, ProbeSequence, Window

__all__ = ["Probed", "precision", "run_long", "run_window", "subjects_of", "undisturbed"]


@dataclass(frozen=True)
class Probed:
    """A tensor that the optimizer holds, the groups in which it does, and whether backward gives it a gradient."""

    tensor: torch.Tensor
    groups: tuple[int, ...]
    trains: bool

    def probe_tensor(self, numbers: int, *, along_last: bool = False) -> torch.Tensor:
        """A small tensor of as many axes, with the same attributes, and ``numbers`` along one axis."""
        shape = [1] * max(self.tensor.dim(), 1)
        shape[-1 if along_last else 0] = numbers
        device = torch.device("cpu") if self.tensor.device.type == "meta" else self.tensor.device
        zeros = torch.zeros(shape, dtype=_dtype(self.tensor), device=device)
        made = torch.nn.Parameter(zeros, requires_grad=self.trains)
        made.__dict__.update(vars(self.tensor))  # attributes by which an optimizer may treat a parameter specially
        return made


def subjects_of(optimizer: torch.optim.Optimizer) -> list[Probed]:
    """Every tensor that an optimizer holds, once each."""
    groups: dict[int, list[int]] = {}
    tensors: dict[int, torch.Tensor] = {}
    for index, group in enumerate(optimizer.param_groups):
        for tensor in group["params"]:
            groups.setdefault(id(tensor), []).append(index)
            tensors[id(tensor)] = tensor
    return [Probed(tensors[key], tuple(found), tensors[key].requires_grad) for key, found in groups.items()]


def precision(probed: Sequence[Probed]) -> float:
    """The spacing of numbers near 1 in the coarsest probe tensor."""
    return max((torch.finfo(_dtype(one.tensor)).eps for one in probed), default=2.0**-52)


def run_window(
    carrier: OptimizerCopy,
    probed: Sequence[Probed],
    window: Window,
    sequences: Sequence[ProbeSequence],
    *,
    along_last: bool = False,
    started: bool = False,
) -> dict[int, torch.Tensor]:
    """Step a fresh copy of ``carrier`` through a window: ``id`` of each tensor to its movements, (sequences, steps).

    ``started`` is as in ``copy_optimizer``. Whatever the optimizer's ``step()`` raises goes through.
    """
    made = {id(one.tensor): one.probe_tensor(len(sequences), along_last=along_last) for one in probed}
    onto = {id(carrier.probe_tensors[key]): probe_tensor for key, probe_tensor in made.items()}
    return _steps(copy_optimizer(carrier.optimizer, carrier.scheduler, onto, started=started), made, window, sequences)


def _steps(
    optimizer_copy: OptimizerCopy, made: dict[int, torch.Tensor], window: Window, sequences: Sequence[ProbeSequence]
) -> dict[int, torch.Tensor]:
    stated = [[torch.nan if w is None else w for w in sequence.weights] for sequence in sequences]
    weights = torch.tensor(stated).double().T.contiguous()  # by step, as the gradients
    gradients = torch.tensor([sequence.gradients for sequence in sequences], dtype=torch.float64).T.contiguous()
    before: dict[int, list[torch.Tensor]] = {key: [] for key in made}
    after: dict[int, list[torch.Tensor]] = {key: [] for key in made}
    for step in range(window.steps):
        gradient, wanted, kept = gradients[step], weights[step], weights[step].isnan()
        keeps_some = bool(kept.any())
        for key, probe_tensor in made.items():
            numbers = probe_tensor.detach().view(-1)
            numbers.copy_(torch.where(kept, numbers.double().cpu(), wanted) if keeps_some else wanted)
            if probe_tensor.requires_grad:
                probe_tensor.grad = gradient.view(probe_tensor.shape).to(probe_tensor, copy=True)
            before[key].append(numbers.clone())
        take_step(optimizer_copy.optimizer)
        for key, probe_tensor in made.items():  # read anew: a step may have given the parameter other data
            after[key].append(probe_tensor.detach().reshape(-1).clone())
        if window.moving and step + 1 < window.steps:
            optimizer_copy.scheduler.step()
    return {key: torch.stack(after[key], 1).double().cpu() - torch.stack(before[key], 1).double().cpu() for key in made}


FEW = 4
"""How many parameters take part in the long window: one for each of the param groups' settings, as far as that goes."""


def run_long(carrier: OptimizerCopy, probed: Sequence[Probed], window: Window, started: bool) -> dict[int, Movements]:
    """The movements of a few tensors through a window in which the sequences hold their weights; others take no part.

    This is ``run_window`` for hundreds of steps, at a cost that no audit shows.
    """
    groups = carrier.optimizer.param_groups
    settings = [repr({name: value for name, value in group.items() if name != "params"}) for group in groups]
    kinds = {settings[one.groups[0]]: one for one in reversed(probed) if one.trains and len(one.groups) == 1}
    few = list(reversed(kinds.values()))[:FEW]
    made = {id(one.tensor): one.probe_tensor(len(window.sequences)) for one in few}
    onto = {id(held): held for held in carrier.probe_tensors.values()}
    onto |= {id(carrier.probe_tensors[key]): tensor for key, tensor in made.items()}
    optimizer = copy_optimizer(carrier.optimizer, carrier.scheduler, onto, started=started).optimizer
    taking_part = {id(tensor) for tensor in made.values()}
    for group in optimizer.param_groups:
        group["params"] = [tensor for tensor in group["params"] if id(tensor) in taking_part]
    gradients = torch.tensor([sequence.gradients for sequence in window.sequences], dtype=torch.float64).T.contiguous()
    weights = torch.tensor([sequence.weights[0] for sequence in window.sequences], dtype=torch.float64)
    probes = []
    for tensor in made.values():
        each = gradients.to(tensor, copy=True).reshape(-1, *tensor.shape).unbind()
        probes.append((tensor, weights.to(tensor).reshape(tensor.shape), each))
    moved: list[list[torch.Tensor]] = [[] for _ in probes]
    for step in range(window.steps):
        for tensor, weight, each in probes:
            tensor.detach().copy_(weight)
            tensor.grad = each[step]
        take_step(optimizer)
        for (tensor, weight, _), steps in zip(probes, moved, strict=True):
            steps.append(tensor.detach() - weight)
    return {
        key: tuple(map(tuple, torch.stack(steps).reshape(window.steps, -1).double().cpu().T.tolist()))
        for key, steps in zip(made, moved, strict=True)
    }


@contextmanager
def undisturbed(probed: Sequence[Probed]) -> Iterator[None]:
    """Leave every random number generator as it was, and keep what the probe provokes from warning the user."""
    states: list[Any] = [random.getstate()]
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        states.append(numpy.random.get_state())
    devices = {one.tensor.device for one in probed if one.tensor.device.type == "cuda"}
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    # A default device slows every call of torch down: it is set only where the user has set another one.
    default_device: Any = nullcontext() if torch.empty(0).device.type == "cpu" else torch.device("cpu")
    every: list[Any] = [_global_optimizer_pre_hooks, _global_optimizer_post_hooks]
    everywhere = [(hooks, dict(hooks)) for hooks in every]
    for hooks, _ in everywhere:
        hooks.clear()
    try:
        with default_device, torch.random.fork_rng(devices=sorted(devices, key=str)), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for hooks, kept in everywhere:
            hooks.update(kept)
        torch.set_default_dtype(dtype)
        random.setstate(states[0])
        if numpy is not None:
            numpy.random.set_state(states[1])


def _dtype(tensor: torch.Tensor) -> torch.dtype:
    """Double precision, so that a tiny decay of a weight is no rounding error; what Metal lacks is float32 there."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64
