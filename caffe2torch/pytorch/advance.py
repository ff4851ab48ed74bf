"""Carry a scheduler on to a later iteration, as a training loop would: one ``step()`` after the other."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import lr_scheduler

__all__ = ["advance"]

FARTHEST = 200_000
"""Steps that are taken one by one; a few microseconds each."""

REMEMBERED = 8
"""Changes of the rate that are written down on the way."""


def advance(scheduler: Any, at: int, to: int, changes: list[int]) -> str | None:
    """Step ``scheduler`` from iteration ``at`` to ``to``, and add to ``changes`` the iterations at which rates change.

    A far iteration is reached at once by schedulers that compute a rate from its number alone. Gives ``None``, or why
    the iteration cannot be reached.
    """
    if to - at > FARTHEST:
        if not _leap(scheduler, to - 1):
            return f"it is {to - at} steps of the scheduler away"
        at = to - 1
    rates = _rates(scheduler)
    for iteration in range(at + 1, to + 1):
        scheduler.step()
        now = _rates(scheduler)
        if now != rates and len(changes) < REMEMBERED:
            changes.append(iteration)
        rates = now
    return None


def _leap(scheduler: Any, to: int) -> bool:
    """Set a scheduler to an iteration where its class is known to need no other."""
    if isinstance(scheduler, lr_scheduler.LambdaLR) and type(scheduler).get_lr is lr_scheduler.LambdaLR.get_lr:
        scheduler.last_epoch = to - 1
        scheduler.step()
        return True
    if type(scheduler).__module__ == lr_scheduler.__name__ and hasattr(scheduler, "_get_closed_form_lr"):
        scheduler.step(to)
        return True
    return False


def _rates(scheduler: Any) -> list[float]:
    groups = getattr(getattr(scheduler, "optimizer", None), "param_groups", ())
    return [float(group["lr"]) if isinstance(group.get("lr"), float | int | torch.Tensor) else 0.0 for group in groups]
