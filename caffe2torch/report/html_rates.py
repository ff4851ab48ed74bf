"""The learning rate over the run, per group: two pictures for the page, and the stretches of the run as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from caffe2torch.recipe import SolverSettings
from caffe2torch.report.plots import THEMED, Curve, Panel, draw, page_svg
from caffe2torch.report.rates import Stretch, curve, effective, stretches
from caffe2torch.report.strip import Speed
from caffe2torch.report.words import number

__all__ = ["Picture", "RatesView", "StretchView", "rate_curves", "rates_view"]

_MOST_STRETCHES = 40
_MOST_CURVES = 8  # a legend of more would hide the picture


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawing, ready for the page."""

    caption: str
    svg: str


@dataclass(frozen=True, slots=True)
class StretchView:
    """Consecutive iterations and the rates in them: the global one, then each group's."""

    iterations: str
    rates: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RatesView:
    """What the page says of the rate. ``missing`` says why there is nothing to draw."""

    speeds: tuple[Speed, ...]
    pictures: tuple[Picture, ...]
    stretches: tuple[StretchView, ...]
    more: int
    summary: str
    missing: str = ""


def rates_view(solver: SolverSettings, speeds: Sequence[Speed]) -> RatesView:
    """The rates of a run of ``max_iter`` iterations. Raises ``MissingExtraError`` where matplotlib is missing."""
    moving = tuple(speed for speed in speeds if speed.value != 0)
    if not solver.max_iter:
        return RatesView(moving, (), (), 0, "", "The solver states no max_iter, so there is no run to draw.")
    parts = stretches(solver.policy, solver.max_iter)
    shown = tuple(_stretch(part, moving) for part in parts[:_MOST_STRETCHES])
    curves = rate_curves(solver, parts, moving)
    summary = _summary(parts, solver.max_iter)
    if len(curves) < len(moving):
        summary += f" {len(curves)} of the {len(moving)} multipliers are drawn."
    marks = [part.first for part in parts[1:]]
    pictures = []
    scales = [("linear", "linear scale", False)]
    if any(y > 0 for one in curves for _, y in one.points):
        scales.append(("log", "logarithmic scale", True))
    for name, caption, log in scales:
        drawing = draw([Panel("rate", curves, marks, log=log)], THEMED, width=4.4, height=2.9)
        title = f"Learning rate over the run, {caption}"
        pictures.append(Picture(caption, page_svg(drawing, f"rates-{name}", title, summary)))
    return RatesView(moving, tuple(pictures), shown, max(len(parts) - _MOST_STRETCHES, 0), summary)


def rate_curves(solver: SolverSettings, parts: Sequence[Stretch], speeds: Sequence[Speed]) -> list[Curve]:
    """A curve for each multiplier of the rate, the global rate where there is none."""
    points = curve(solver.policy, parts)
    if not speeds:
        return [Curve("global rate", points)]
    count = min(len(speeds), _MOST_CURVES)
    drawn = [speeds[k * (len(speeds) - 1) // max(count - 1, 1)] for k in range(count)]  # the ends, and between
    return [
        Curve(f"lr ×{speed.text}", [(i, effective(rate, speed.value)) for i, rate in points], series)
        for series, speed in enumerate(drawn)
    ]


def _stretch(part: Stretch, speeds: Sequence[Speed]) -> StretchView:
    iterations = f"{part.first:,}" if part.first == part.last else f"{part.first:,} – {part.last:,}"
    factors = [1.0, *(speed.value for speed in speeds)]
    return StretchView(iterations, tuple(_rates(part, factor) for factor in factors))


def _rates(part: Stretch, factor: float) -> str:
    begins, ends = number(effective(part.begins, factor)), number(effective(part.ends, factor))
    return f"{begins} → {ends}" if part.glides and part.first != part.last else begins


def _summary(parts: Sequence[Stretch], iterations: int) -> str:
    """The run in a sentence."""
    run = f"{iterations:,} iterations"
    begins, ends = number(parts[0].begins), number(parts[-1].ends)
    if len(parts) == 1 and not parts[0].glides:
        return f"The global rate is {begins} throughout the {run}."
    if len(parts) == 1:
        return f"The global rate goes from {begins} to {ends} over the {run}, changing all the way."
    count = len(parts) - 1
    changes = "once" if count == 1 else f"{count} times"
    places = ", ".join(f"{part.first:,}" for part in parts[1:9]) + (", …" if count > 8 else "")
    return f"The global rate goes from {begins} to {ends} over the {run} and turns {changes}, at iteration {places}."
