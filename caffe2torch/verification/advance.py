"""Carry a scheduler on to a later iteration, as a training loop would: one ``step()`` after the other."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import lr_scheduler

from caffe2torch.optim.schedule import CaffeLRScheduler
from caffe2torch.solver.lr_policy import step_at

__all__ = ["OutOfReachError", "advance"]

NEAR = 20_000
"""Steps of a few microseconds that are taken one by one even where a scheduler can be set to an iteration at once."""

FARTHEST = 500_000
"""Steps beyond which a scheduler that cannot be set is not followed."""

REMEMBERED = 8
"""Changes of the rate that are written down on the way."""


class OutOfReachError(Exception):
    """An iteration that a scheduler cannot be carried on to; the message says why."""


def advance(scheduler: Any, at: int, to: int, changes: list[int]) -> bool:
    """Step ``scheduler`` from iteration ``at`` to ``to``, and add to ``changes`` the iterations at which rates change.

    Gives False where it was set to the iteration instead. Raises ``OutOfReachError``.
    """
    if to - at > NEAR and _leap(scheduler, to):
        return False
    if to - at > FARTHEST:
        raise OutOfReachError(f"it is {to - at} steps of the scheduler away")
    rates = _rates(scheduler)
    for iteration in range(at + 1, to + 1):
        scheduler.step()
        now = _rates(scheduler)
        if now != rates and len(changes) < REMEMBERED:
            changes.append(iteration)
        rates = now
    return True


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


def _rates(scheduler: Any) -> list[float]:
    groups = getattr(getattr(scheduler, "optimizer", None), "param_groups", ())
    return [float(group["lr"]) if isinstance(group.get("lr"), float | int | torch.Tensor) else 0.0 for group in groups]
