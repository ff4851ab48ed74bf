"""Probe tensors, and the steps of a copy of the optimizer on them: sequences in, movements out."""

from __future__ import annotations

import math
import random
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from caffe2torch.verification.optimizer_copy import OptimizerCopy, copy_optimizer
from caffe2torch.verification.optimizer_copy import step as take_step
from caffe2torch.verification.probe_sequence import Movements, ProbeSequence, Window

__all__ = [
    "Collected",
    "Probed",
    "collected_calls",
    "precision",
    "run_long",
    "run_window",
    "subjects_of",
    "undisturbed",
]


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
    copied = copy_optimizer(carrier.optimizer, carrier.scheduler, onto, started=started)
    copied.calls = carrier.calls
    return _steps(copied, made, window, sequences)


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
            before[key].append(numbers.clone())
        given = [(one, gradient.view(one.shape).to(one, copy=True)) for one in made.values() if one.requires_grad]
        _update(optimizer_copy.optimizer, given, optimizer_copy.calls)
        for key, probe_tensor in made.items():  # read anew: a step may have given the parameter other data
            after[key].append(probe_tensor.detach().reshape(-1).clone())
        if window.moving and step + 1 < window.steps:
            optimizer_copy.scheduler.step()
    return {key: torch.stack(after[key], 1).double().cpu() - torch.stack(before[key], 1).double().cpu() for key in made}


def _update(
    optimizer: torch.optim.Optimizer, given: Sequence[tuple[torch.Tensor, torch.Tensor]], calls: int = 1
) -> None:
    """One step of a window; ``calls`` calls, each with its part of the gradients, of one that collects them itself."""
    if calls == 1:
        for tensor, gradient in given:
            tensor.grad = gradient
        take_step(optimizer)
        return
    for _ in range(calls):
        _backward(optimizer, [(tensor, gradient / calls) for tensor, gradient in given])
        take_step(optimizer)


def _backward(optimizer: torch.optim.Optimizer, given: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """What a training loop does before each call of ``step()``."""
    optimizer.zero_grad()  # which an optimizer that collects in ``.grad`` makes do nothing in between
    for tensor, gradient in given:
        tensor.grad = gradient.clone() if tensor.grad is None else tensor.grad + gradient


FEW = 8
"""How many parameters take part in the long window: one for each of the param groups' settings, as far as that goes."""


def run_long(
    carrier: OptimizerCopy, probed: Sequence[Probed], window: Window, started: bool
) -> tuple[dict[int, Movements], int]:
    """The movements of a few tensors through a window in which the sequences hold their weights; others take no part.

    The second is how many kinds of param groups there are, of each of which a tensor would have to take part.
    This is ``run_window`` for hundreds of steps, at a cost that no audit shows. An optimizer that raises with a part of
    its parameters alone, as one that clips by the norm of all does, keeps the others.
    """
    try:
        return _run_long(carrier, probed, window, started, keep=False)
    except Exception:
        return _run_long(carrier, probed, window, started, keep=True)


def _run_long(
    carrier: OptimizerCopy, probed: Sequence[Probed], window: Window, started: bool, *, keep: bool
) -> tuple[dict[int, Movements], int]:
    optimizer, made, kinds = _on_a_few(carrier, probed, len(window.sequences), started, keep=keep)
    gradients = torch.tensor([sequence.gradients for sequence in window.sequences], dtype=torch.float64).T.contiguous()
    weights = torch.tensor([sequence.weights[0] for sequence in window.sequences], dtype=torch.float64)
    probes = []
    for tensor in made.values():
        each = gradients.to(tensor, copy=True).reshape(-1, *tensor.shape).unbind()
        probes.append((tensor, weights.to(tensor).reshape(tensor.shape), each))
    moved: list[list[torch.Tensor]] = [[] for _ in probes]
    for step in range(window.steps):
        for tensor, weight, _ in probes:
            tensor.detach().copy_(weight)
        _update(optimizer, [(tensor, each[step]) for tensor, _, each in probes], carrier.calls)
        for (tensor, weight, _), steps in zip(probes, moved, strict=True):
            steps.append(tensor.detach() - weight)
    movements: dict[int, Movements] = {
        key: tuple(map(tuple, torch.stack(steps).reshape(window.steps, -1).double().cpu().T.tolist()))
        for key, steps in zip(made, moved, strict=True)
    }
    return movements, kinds


def _on_a_few(
    carrier: OptimizerCopy, probed: Sequence[Probed], numbers: int, started: bool, *, keep: bool = False
) -> tuple[torch.optim.Optimizer, dict[int, torch.Tensor], int]:
    """A copy of the optimizer that steps a few tensors, one for each kind of param group, and how many kinds there are.

    Groups are of one kind where they say the same. Others are removed from the groups, or, with ``keep``, frozen zeros
    under gradients of zero.
    """
    groups = carrier.optimizer.param_groups
    settings = [repr({name: value for name, value in group.items() if name != "params"}) for group in groups]
    kinds = {settings[one.groups[0]]: one for one in reversed(probed) if one.trains and len(one.groups) == 1}
    few = list(reversed(kinds.values()))[:FEW]
    made = {id(one.tensor): one.probe_tensor(numbers) for one in few}
    others = {key: one.probe_tensor(1) for key, one in zip(carrier.probe_tensors, probed, strict=True)} if keep else {}
    onto = {id(held): others.get(key, held) for key, held in carrier.probe_tensors.items()}
    onto |= {id(carrier.probe_tensors[key]): tensor for key, tensor in made.items()}
    optimizer = copy_optimizer(carrier.optimizer, carrier.scheduler, onto, started=started).optimizer
    for other in others.values():
        other.grad = torch.zeros_like(other)
        other.requires_grad_(False)
    taking_part = {id(tensor) for tensor in made.values()}
    for group in () if keep else optimizer.param_groups:
        group["params"] = [tensor for tensor in group["params"] if id(tensor) in taking_part]
    return optimizer, made, len(kinds)


class Collected(NamedTuple):
    """How many calls of ``step()`` make one update, and why their gradients cannot be looked at as one, if so."""

    calls: int = 1
    problem: str = ""


MOST_CALLS = 64
"""Calls of ``step()`` over which an optimizer may collect gradients."""


def collected_calls(carrier: OptimizerCopy, probed: Sequence[Probed], started: bool) -> Collected:
    """Whether the optimizer moves parameters only at every so many calls, as one that collects gradients itself."""

    def moved(gradients: Sequence[float]) -> list[tuple[float, ...]]:
        optimizer, made, _ = _on_a_few(carrier, probed, 1, started)
        found = []
        for size in gradients:
            for tensor in made.values():
                tensor.detach().zero_()
            _backward(optimizer, [(tensor, torch.full_like(tensor, size)) for tensor in made.values()])
            take_step(optimizer)
            found.append(tuple(float(tensor.detach().sum()) for tensor in made.values()))
        return found

    moving = [call for call, amounts in enumerate(moved((1.0,) * (2 * MOST_CALLS))) if any(amounts)]
    if len(moving) < 2 or (calls := moving[1] - moving[0]) < 2:
        return Collected()
    if moving != list(range(moving[0], 2 * MOST_CALLS, calls)) or moving[0] >= calls:
        return Collected()
    if moving[0] < calls - 1:
        return Collected(calls, "it stands between two of those: audit it where it has just moved them")
    parts = [moved([float(call == one) for call in range(calls)])[-1] for one in (0, calls // 2, calls - 1)]
    if not all(math.isclose(a, b, rel_tol=1e-5) for part in parts for a, b in zip(part, parts[0], strict=True)):
        return Collected(calls, "the gradients of these calls, each after a zero_grad(), do not count alike")
    return Collected(calls)


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
