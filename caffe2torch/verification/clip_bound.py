"""Whether an optimizer clips gradients inside its step, and beyond which norm: read from what it does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from caffe2torch.verification.fit import close
from caffe2torch.verification.optimizer_copy import OptimizerCopy
from caffe2torch.verification.probe_sequence import ProbeSequence, Window
from caffe2torch.verification.probe_tensors import Probed, run_window

__all__ = ["REACH", "clip_scope", "clip_threshold", "clips_decay"]

REACH = 16.0  # how far beyond the expected norm is looked
STEPS = 3
_TOLERANCE = 1e-4
_HALVINGS = 25


def clip_threshold(
    carrier: OptimizerCopy, probed: Sequence[Probed], window: Window, expected: float, started: bool
) -> float | None:
    """The norm over all gradients beyond which they are scaled down; infinite where that is far beyond ``expected``.

    ``None`` where no gradient moves anything.

    A clip makes large gradients do what smaller ones do. So the threshold is the smallest norm whose gradients, given
    in place of ``REACH`` times the expected norm, move every probe tensor just as those do. A gradient of a quarter of
    the expected norm comes first, since an adaptive rule answers to sizes only by comparison.
    """
    numbers = sum(one.trains for one in probed)
    if not numbers:
        return None
    unit = expected / math.sqrt(numbers)

    def moved(norm: float) -> dict[int, torch.Tensor]:
        gradients = (unit / 4, unit * norm, *(0.0,) * (STEPS - 2))
        sequences = (ProbeSequence("clip", (0.0,) * STEPS, gradients),)
        return run_window(
            carrier, probed, replace(window, steps=STEPS, sequences=sequences), sequences, started=started
        )

    clipped = moved(REACH)
    if not any(bool(seen.any()) for seen in clipped.values()):
        return None

    def same(norm: float) -> bool:
        tried = moved(norm)
        added = min(1e-6 / (norm * expected), 1e-2)  # torch's clip_grad_norm_ divides by the norm + 1e-6
        return all(torch.allclose(tried[key], seen, rtol=1e-6 + added, atol=0.0) for key, seen in clipped.items())

    if same(1 + _TOLERANCE) and not same(1 - _TOLERANCE):
        return expected
    if not same(REACH * 0.9):
        return math.inf
    low, high = 0.0, REACH
    for _ in range(_HALVINGS):
        middle = math.sqrt(max(low, REACH * 2.0**-40) * high)
        low, high = (low, middle) if same(middle) else (middle, high)
    return expected * high


def clip_scope(
    carrier: OptimizerCopy, probed: Sequence[Probed], window: Window, found: float, started: bool
) -> tuple[float, str]:
    """The bound of a clip that was ``found`` with gradients everywhere, and what it bounds the norm of, if not of all.

    It is found again with a gradient for one parameter alone, and for those of one param group.
    """
    trained = [one for one in probed if one.trains]

    def beyond(some: Sequence[Probed]) -> float:
        chosen = {id(one.tensor) for one in some}
        given = [replace(one, trains=id(one.tensor) in chosen) for one in probed]
        return clip_threshold(carrier, given, window, found, started) or math.nan

    bound = beyond(trained[:1])
    if close(bound, found, 1e-3):
        return found, ""
    group = max(([one for one in trained if one.groups == other.groups] for other in trained), key=len)
    for scope, due in (("each parameter", bound * math.sqrt(len(group))), ("each param group", bound)):
        if math.isfinite(bound) and close(beyond(group), due, 1e-3):
            return bound, scope
    return found, "unknown"


def clips_decay(carrier: OptimizerCopy, probed: Sequence[Probed], window: Window, bound: float, started: bool) -> bool:
    """Whether a clip at ``bound`` scales weight decay, too: weights without a gradient beside a large one show it.

    The gradient comes at the second step, since an adaptive rule answers to sizes only by comparison.
    """
    sequences = {sequence.name: sequence for sequence in window.sequences}
    numbers = max(sum(one.trains for one in probed), 1)
    weight = (sequences["decay"].weights[0] or 0.0) / 4  # whose decay stays below the bound

    def decayed(norm: float) -> dict[int, torch.Tensor]:
        gradients = (0.0, norm * bound / math.sqrt(numbers), *(0.0,) * (STEPS - 2))
        lanes = (
            ProbeSequence("decay", (weight,) * STEPS, (0.0,) * STEPS),
            ProbeSequence("clip", (0.0,) * STEPS, gradients),
        )
        part = replace(window, steps=STEPS, sequences=lanes)
        return {key: moved[0] for key, moved in run_window(carrier, probed, part, lanes, started=started).items()}

    alone, beside = decayed(0.0), decayed(REACH)
    return any(not torch.allclose(beside[key], moved, rtol=1e-3, atol=0.0) for key, moved in alone.items())
