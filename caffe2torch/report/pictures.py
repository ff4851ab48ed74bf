"""What the pictures show: the rate of each group over a run, and how far stock torch would leave Caffe's path on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from caffe2torch.recipe import SolverSettings
from caffe2torch.report.divergence import Divergence, differences, diverge
from caffe2torch.report.plots import Curve, Panel
from caffe2torch.report.rate_plot import Stretch, curve, effective, stretches
from caffe2torch.report.wording import number

T = TypeVar("T")

__all__ = ["LONGEST_WALK", "Run", "divergence_panel", "rate_curves", "rates_panels", "say_divergence", "say_rates"]

LONGEST_WALK = 1_000_000
"""Iterations that are simulated at most; a run that goes on is compared as far as that."""
_MOST_CURVES = 8  # a legend of more would hide the picture
_AFTER = (0, 1, 2, 3, 5, 8, 13, 20, 30, 50, 100, 200)  # iterations after a change of the rate, where the paths part
_MOST_CHANGES = 100


@dataclass(frozen=True, slots=True)
class Run:
    """A solver's run of ``iterations`` iterations. ``label`` tells two of them apart; ``pale`` ones are compared."""

    solver: SolverSettings
    iterations: int
    label: str = ""
    pale: bool = False

    @property
    def stretches(self) -> tuple[Stretch, ...]:
        """The run, cut where its rate changes."""
        return stretches(self.solver.policy, self.iterations)


def rate_curves(run: Run, lr_mults: Sequence[float]) -> list[Curve]:
    """A curve for each multiplier of the rate that moves anything; the global rate where there is none.

    Of many multipliers the smallest, the largest and some between are drawn.
    """
    points = curve(run.solver.policy, run.stretches)
    moving = sorted({lr_mult for lr_mult in lr_mults if lr_mult != 0})
    if not moving:
        return [Curve(f"global rate{run.label}", points, pale=run.pale)]
    return [
        Curve(f"lr ×{lr_mult:g}{run.label}", [(i, effective(rate, lr_mult)) for i, rate in points], series, run.pale)
        for series, lr_mult in enumerate(_spread(moving))
    ]


def rates_panels(runs: Sequence[Run], lr_mults: Sequence[float]) -> list[Panel]:
    """The rates of all runs, on a linear and, where any is positive, on a logarithmic scale."""
    curves = [one for run in runs for one in rate_curves(run, lr_mults)]
    marks = [part.first for part in runs[0].stretches[1:]]
    panels = [Panel("rate", curves, marks)]
    if any(y > 0 for one in curves for _, y in one.points):
        panels.append(Panel("rate, logarithmic", curves, marks, log=True))
    return panels


def divergence_panel(
    runs: Sequence[Run], multipliers: Sequence[tuple[float, float]], progress: Callable[[int], None] = lambda _: None
) -> tuple[Panel, tuple[Divergence, ...]]:
    """How far the stock translation would be from Caffe's path after each iteration, in percent of Caffe's own way."""
    moving = _spread(sorted({pair for pair in multipliers if pair[0] != 0})) or [(1.0, 1.0)]
    found = tuple(diverge(run.solver, moving, _looks(run), progress=progress) for run in runs)
    curves = [
        Curve(f"lr ×{lr:g}, decay ×{decay:g}{run.label}", _finite(one.iterations, distances), k, run.pale)
        for run, one in zip(runs, found, strict=True)
        for k, ((lr, decay), distances) in enumerate(zip(moving, one.distances, strict=True))
    ]
    marks = [part.first for part in runs[0].stretches[1:] if part.first < LONGEST_WALK]
    return Panel("stock torch, away from Caffe's path", curves, marks, percent=True), found


def say_rates(run: Run) -> str:
    """The rate over the run in a sentence."""
    parts = run.stretches
    length = f"{run.iterations:,} iterations"
    begins, ends = number(parts[0].begins), number(parts[-1].ends)
    if len(parts) == 1 and not parts[0].glides:
        return f"The global rate is {begins} throughout the {length}."
    if len(parts) == 1:
        return f"The global rate goes from {begins} to {ends} over the {length}, changing all the way."
    count = len(parts) - 1
    changes = "once" if count == 1 else f"{count} times"
    places = ", ".join(f"{part.first:,}" for part in parts[1:9]) + (", …" if count > 8 else "")
    return f"The global rate goes from {begins} to {ends} over the {length} and turns {changes}, at iteration {places}."


def say_divergence(run: Run, found: Divergence) -> str:
    """What the simulation says in a sentence or two, with what it leaves out."""
    why = differences(run.solver)
    farthest = max((x for distances in found.distances for x in distances if math.isfinite(x)), default=0.0)
    length = min(run.iterations, LONGEST_WALK)
    span = f"{length:,} iterations"
    if length < run.iterations:
        span = f"the first {length:,} of {run.iterations:,} iterations"
    if not why:
        said = f"Stock torch follows Caffe's path over {span}: nothing in this update differs."
    elif not farthest:
        said = f"Stock torch stays on Caffe's path over {span}, though {'; '.join(why)}."
    else:
        said = f"Over {span} stock torch leaves Caffe's path by up to {100 * farthest:.2g} %: {'; '.join(why)}."
    if run.solver.clip_gradients is not None:
        said += " Clipping is left out: what it does depends on the size of real gradients."
    return said


def _spread(values: Sequence[T]) -> list[T]:
    """At most so many as a legend can hold, the first and the last among them."""
    count = min(len(values), _MOST_CURVES)
    return [values[k * (len(values) - 1) // max(count - 1, 1)] for k in range(count)]


def _finite(iterations: Sequence[int], distances: Sequence[float]) -> list[tuple[int, float]]:
    """The points as far as both paths are numbers."""
    return [(i, x) for i, x in zip(iterations, distances, strict=True) if math.isfinite(x)]


def _looks(run: Run) -> Iterator[int]:
    """Iterations after which the paths are compared."""
    end = min(run.iterations, LONGEST_WALK)
    parts = run.stretches
    yield from (i for i, _ in curve(run.solver.policy, parts) if i < end)
    yield from (end * k // 240 for k in range(240))
    yield end - 1
    for part in parts[1:_MOST_CHANGES]:
        yield from (part.first + after for after in _AFTER if part.first + after < end)
