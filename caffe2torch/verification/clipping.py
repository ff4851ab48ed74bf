"""Whether an optimizer clips gradients inside its step, and beyond which norm: told from what it does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from caffe2torch.verification.optimizer_copy import Twin
from caffe2torch.verification.probe_sequence import Lane, Window
from caffe2torch.verification.rehearsal import Subject, live

__all__ = ["clip_threshold"]

REACH = 16.0  # how far beyond the expected norm is looked
STEPS = 3
_TOLERANCE = 1e-4
_HALVINGS = 24


def clip_threshold(carrier: Twin, subjects: Sequence[Subject], window: Window, expected: float) -> float | None:
    """The norm over all gradients beyond which they are scaled down; infinite where that is far beyond ``expected``.

    ``None`` where no gradient moves anything.

    A clip makes large gradients do what smaller ones do. So the threshold is the smallest norm whose gradients, given
    in place of ``REACH`` times the expected norm, move every stand-in just as those do. A gradient of a quarter of the
    expected norm comes first, since an adaptive rule answers to sizes only by comparison.
    """
    numbers = sum(subject.trains for subject in subjects)
    if not numbers:
        return None
    unit = expected / math.sqrt(numbers)

    def moved(norm: float) -> dict[int, torch.Tensor]:
        gradients = (unit / 4, unit * norm, *(0.0,) * (STEPS - 2))
        lanes = (Lane("clip", (0.0,) * STEPS, gradients),)
        return live(carrier, subjects, replace(window, steps=STEPS, lanes=lanes), lanes)

    clipped = moved(REACH)
    if not any(bool(seen.any()) for seen in clipped.values()):
        return None

    def same(norm: float) -> bool:
        tried = moved(norm)
        return all(torch.allclose(tried[key], seen, rtol=1e-6, atol=0.0) for key, seen in clipped.items())

    if same(1 + _TOLERANCE) and not same(1 - _TOLERANCE):
        return expected
    if not same(REACH * 0.9):
        return math.inf
    low, high = 0.0, REACH
    for _ in range(_HALVINGS):
        middle = math.sqrt(max(low, REACH * 2.0**-20) * high)
        low, high = (low, middle) if same(middle) else (middle, high)
    return expected * high
