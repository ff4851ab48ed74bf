"""Carry a copy of a scheduler on to a later iteration, as a training loop would, and note what it does on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch.optim import lr_scheduler

from caffe2torch.optim.schedule import CaffeLRScheduler
from caffe2torch.solver.lr_policy import step_at
from caffe2torch.verification.optimizer_copy import bare_optimizer, bare_scheduler, copy_optimizer
from caffe2torch.verification.probe_sequence import Followed, SettingChange
from caffe2torch.verification.probe_tensors import subjects_of, undisturbed
from caffe2torch.verification.report import RateCurve

__all__ = ["OutOfReachError", "advance", "follow", "own_rates", "rates_of", "setting_of"]

NEAR = 20_000
"""Steps of a few microseconds that are taken one by one even where a scheduler can be set to an iteration at once."""

FARTHEST = 500_000
"""Steps beyond which a scheduler that cannot be set is not followed."""


class OutOfReachError(Exception):
    """An iteration that a scheduler cannot be carried on to; the message says why."""


def advance(scheduler: Any, at: int, to: int) -> None:
    """Step ``scheduler`` from iteration ``at`` to ``to``, or set it there. Raises ``OutOfReachError``."""
    if to - at > NEAR and _leap(scheduler, to):
        return
    if to - at > FARTHEST:
        raise OutOfReachError(f"it is {to - at} steps of the scheduler away")
    for _ in range(at, to):
        scheduler.step()


def _leap(scheduler: Any, to: int) -> bool:
    """Set a scheduler to an iteration where its class is known to need no other on the way."""
    if isinstance(scheduler, CaffeLRScheduler):
        scheduler.restore(to, step_at(scheduler.solver.policy, to))
    elif isinstance(scheduler, lr_scheduler.LambdaLR) and type(scheduler).get_lr is lr_scheduler.LambdaLR.get_lr:
        scheduler.last_epoch = to - 1
        scheduler.step()
    elif type(scheduler).__module__ == lr_scheduler.__name__ and hasattr(scheduler, "_get_closed_form_lr"):
        scheduler.step(to)
    else:
        return False
    return True


def setting_of(group: dict[str, Any], name: str) -> float:
    """A number that a group states, which may be a tensor; 0 where it states none."""
    value = group.get(name)
    return float(value) if isinstance(value, float | int | torch.Tensor) else 0.0


def rates_of(scheduler: Any) -> list[float]:
    """The ``lr`` of every group of a scheduler's optimizer."""
    groups = getattr(getattr(scheduler, "optimizer", None), "param_groups", ())
    return [setting_of(group, "lr") for group in groups]


def own_rates(scheduler: Any) -> str:
    """The class of a scheduler that gives groups the rates of its own arguments, whatever they say; empty of others.

    >>> own_rates(lr_scheduler.OneCycleLR(torch.optim.SGD([torch.ones(1)]), max_lr=0.1, total_steps=10))
    'OneCycleLR'
    """
    scheduler = bare_scheduler(scheduler)
    own = isinstance(scheduler, lr_scheduler.OneCycleLR | lr_scheduler.CyclicLR)
    return type(scheduler).__name__ if own else ""


LOOKS = 240
"""Iterations at which a scheduler is looked at over a run."""


def follow(optimizer: Any, scheduler: Any, iterations: int, *, start: int = 0) -> Followed:
    """The rate that a copy of ``scheduler`` gives each group from ``start`` on, and what else it changes.

    A scheduler that cannot be set to an iteration is stepped, ``FARTHEST`` times at most. Whatever it raises ends its
    curve, which may thus be shorter than the run. Groups of one curve are one.

    >>> weight = torch.nn.Parameter(torch.zeros(1))
    >>> optimizer = torch.optim.SGD([weight], lr=1.0)
    >>> follow(optimizer, lr_scheduler.StepLR(optimizer, 2), 4).curves
    (RateCurve(groups=(0,), points=((0, 1.0), (1, 1.0), (2, 0.1), (3, 0.1))),)
    """
    optimizer, scheduler = bare_optimizer(optimizer), bare_scheduler(scheduler)
    probed = subjects_of(optimizer)
    seen: dict[int, list[float]] = {}
    settings: dict[int, list[dict[str, Any]]] = {}
    with undisturbed(probed), suppress(Exception):  # the checks say what it is
        copied = copy_optimizer(
            optimizer, scheduler, {id(one.tensor): one.probe_tensor(1) for one in probed}, started=True
        )
        seen[start], settings[start] = rates_of(copied.scheduler), _settings(copied.scheduler)
        at = start
        for wanted in sorted({start + (iterations - 1 - start) * k // LOOKS for k in range(1, LOOKS + 1)}):
            if wanted <= at:
                continue
            if not _leap(copied.scheduler, wanted):
                if wanted - start > FARTHEST:
                    break
                for _ in range(at, wanted):
                    copied.scheduler.step()
            at = wanted
            seen[at], settings[at] = rates_of(copied.scheduler), _settings(copied.scheduler)
    groups: dict[tuple[float, ...], list[int]] = {}
    for index, curve in enumerate(zip(*seen.values(), strict=True)):
        groups.setdefault(curve, []).append(index)
    curves = (RateCurve(tuple(found), tuple(zip(seen, curve, strict=True))) for curve, found in groups.items())
    return Followed(tuple(curves), tuple(_changed(settings)))


def _settings(scheduler: Any) -> list[dict[str, Any]]:
    """What each group states besides its rate, as far as it is numbers."""
    groups = getattr(getattr(scheduler, "optimizer", None), "param_groups", ())
    return [
        {name: value for name, value in group.items() if isinstance(value, float | tuple) and name not in _RATES}
        for group in groups
    ]


_RATES = frozenset({"lr", "initial_lr"})


def _changed(settings: Mapping[int, list[dict[str, Any]]]) -> Iterator[SettingChange]:
    """The first change of every setting that is not what it was at the first look."""
    found: set[str] = set()
    first = next(iter(settings.values()), [])
    for iteration, groups in settings.items():
        for group, (before, now) in enumerate(zip(first, groups, strict=True)):
            for name in before.keys() & now.keys() - found:
                if now[name] != before[name] and now[name] == now[name]:
                    found.add(name)
                    yield SettingChange(iteration, group, name, before[name], now[name])
