"""The learning rate over the run, per group: two pictures for the page, and the stretches of the run as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from caffe2torch.recipe import SolverSettings
from caffe2torch.report.layer_overview import Speed
from caffe2torch.report.pictures import Run, rates_panels, say_rates
from caffe2torch.report.plots import THEMED, draw, page_svg
from caffe2torch.report.rate_plot import Stretch, effective
from caffe2torch.report.wording import number

__all__ = ["Picture", "RatesView", "StretchView", "rates_view"]

_MOST_STRETCHES = 40


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
    run = Run(solver, solver.max_iter)
    parts = run.stretches
    shown = tuple(_stretch(part, moving) for part in parts[:_MOST_STRETCHES])
    panels = rates_panels([run], [speed.value for speed in moving])
    summary = say_rates(run)
    if len(panels[0].curves) < len(moving):
        summary += f" {len(panels[0].curves)} of the {len(moving)} multipliers are drawn."
    pictures = []
    for panel in panels:
        name, caption = ("log", "logarithmic scale") if panel.log else ("linear", "linear scale")
        drawing = draw([replace(panel, title="rate")], THEMED, width=4.4, height=2.9)
        title = f"Learning rate over the run, {caption}"
        pictures.append(Picture(caption, page_svg(drawing, f"rates-{name}", title, summary)))
    return RatesView(moving, tuple(pictures), shown, max(len(parts) - _MOST_STRETCHES, 0), summary)


def _stretch(part: Stretch, speeds: Sequence[Speed]) -> StretchView:
    iterations = f"{part.first:,}" if part.first == part.last else f"{part.first:,} – {part.last:,}"
    factors = [1.0, *(speed.value for speed in speeds)]
    return StretchView(iterations, tuple(_rates(part, factor) for factor in factors))


def _rates(part: Stretch, factor: float) -> str:
    begins, ends = number(effective(part.begins, factor)), number(effective(part.ends, factor))
    return f"{begins} → {ends}" if part.glides and part.first != part.last else begins
