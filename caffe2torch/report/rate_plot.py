"""The global rate over a run: the segments that it consists of, and as many points as a faithful curve needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

from caffe2torch.errors import MissingExtraError
from caffe2torch.recipe import LrPolicy, PolicyType, SolverSettings
from caffe2torch.report.layer_overview import Speed
from caffe2torch.report.plots import THEMED, Curve, Panel, draw, page_svg
from caffe2torch.solver.float32 import number, round32
from caffe2torch.solver.lr_policy import POLICIES, ramp_end, rate

if TYPE_CHECKING:
    from caffe2torch.verification.report import Report
    from caffe2torch.verification.simulate import Divergence

__all__ = [
    "LONGEST_WALK",
    "Run",
    "curve",
    "divergence_panel",
    "effective",
    "rates_panels",
    "rates_view",
    "say_divergence",
    "say_rates",
    "seen_curves",
    "segments",
]

MOST_BREAKS = 1000
"""A policy with more steps than this in a run counts as varying: nobody reads a list of them."""
SAMPLES = 240


@dataclass(frozen=True, slots=True)
class RateSegment:
    """Iterations ``first`` to ``last``, both included: at one rate, or varying from ``begins`` to ``ends``."""

    first: int
    last: int
    begins: float
    ends: float
    varies: bool


def segments(policy: LrPolicy, iterations: int) -> tuple[RateSegment, ...]:
    """A run of ``iterations`` iterations, cut where its rate changes; neighbours of one rate are one segment.

    >>> policy = LrPolicy(PolicyType.MULTISTEP, base_lr=1.0, gamma=0.5, stepvalues=(10, 30))
    >>> [(part.first, part.last, part.begins) for part in segments(policy, 40)]
    [(0, 9, 1.0), (10, 29, 0.5), (30, 39, 0.25)]
    """
    found: list[RateSegment] = []
    ramp, steps = ramp_end(policy), POLICIES[policy.type].steps
    breaks = None if steps is None else steps(policy, iterations)
    if breaks is not None and len(breaks) > MOST_BREAKS:
        breaks = None
    varies = breaks is None
    cuts = sorted({0, iterations, *(i for i in (ramp, *(breaks or ())) if 0 < i < iterations)})
    for first, end in pairwise(cuts):
        part = RateSegment(first, end - 1, rate(policy, first), rate(policy, end - 1), first < ramp or varies)
        if part.varies and part.begins == part.ends and _flat(policy, part):
            part = RateSegment(first, end - 1, part.begins, part.ends, varies=False)
        before = found[-1] if found else None
        if before and not before.varies and not part.varies and _same(before.ends, part.begins):
            part = RateSegment(before.first, part.last, before.begins, part.ends, varies=False)
            found.pop()
        found.append(part)
    return tuple(found)


def curve(policy: LrPolicy, parts: Sequence[RateSegment]) -> tuple[tuple[int, float], ...]:
    """Iterations and their rates, to be joined by straight lines: both ends of every segment, more where it varies.

    Every point is exact. Rates that are no numbers (``poly`` past ``max_iter``) are left out.
    """
    points: dict[int, float] = {}
    for part in parts:
        places = _samples(part.first, part.last) if part.varies else (part.first, part.last)
        points |= {i: rate(policy, i) for i in places}
        if policy.type is PolicyType.SIGMOID and part.varies and policy.gamma:
            near = (round(policy.stepsize + k / abs(policy.gamma) / 2) for k in range(-16, 17))
            points |= {i: rate(policy, i) for i in near if part.first <= i <= part.last}
    return tuple((i, points[i]) for i in sorted(points) if math.isfinite(points[i]))


def effective(rate: float, lr_mult: float) -> float:
    """The rate of a parameter, as Caffe's float32 multiplies it."""
    return round32(rate * round32(lr_mult))


def _same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


def _flat(policy: LrPolicy, part: RateSegment) -> bool:
    """Whether a varying policy stays where it is: a gamma of 1, a power of 0."""
    return all(rate(policy, i) == part.begins for i in _samples(part.first, part.last))


def _samples(first: int, last: int) -> Iterator[int]:
    """Iterations spread evenly, and closer and closer towards both ends, where a rate may change fastest."""
    length = last - first
    yield from (first + length * k // SAMPLES for k in range(SAMPLES + 1))
    near = 1
    while near < length:
        yield from (first + near, last - near)
        near = near + 1 + near // 4


# The learning rate over the run, per group: two pictures for the page, and the segments of the run as a table.

_MOST_SEGMENTS = 40


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawing, ready for the page."""

    caption: str
    svg: str


@dataclass(frozen=True, slots=True)
class SegmentView:
    """Consecutive iterations and the rates in them: the global one, then each group's."""

    iterations: str
    rates: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RatesView:
    """What the page says of the rate: a summary; pictures and segments only where the rate changes."""

    summary: str
    speeds: tuple[Speed, ...] = ()
    pictures: tuple[Picture, ...] = ()
    segments: tuple[SegmentView, ...] = ()
    more: int = 0


def rates_view(report: Report, speeds: Sequence[Speed]) -> RatesView:
    """The rates of a run of ``max_iter`` iterations, and those that an audited scheduler gave the groups over them."""
    solver = report.solver
    moving = tuple(speed for speed in speeds if speed.value != 0)
    if not solver.max_iter:
        return RatesView("The solver states no max_iter, so there is no run to draw.")
    run = Run(solver, solver.max_iter)
    parts = run.segments
    summary = say_rates(run)
    seen = seen_curves(report, moving)
    constant = len(parts) == 1 and not parts[0].varies
    if constant:
        each = ", ".join(f"{number(effective(parts[0].begins, speed.value))} at lr ×{speed.text}" for speed in moving)
        summary += f" That is {each}." if each else ""
        if all(y == curve.points[0][1] for curve in seen for _, y in curve.points):
            return RatesView(summary)
    panels = rates_panels([run], [speed.value for speed in moving])
    if len(panels[0].curves) < len(moving):
        summary += f" {len(panels[0].curves)} of the {len(moving)} multipliers are drawn."
    if seen:
        summary += " The broad lines are Caffe’s, the thin ones what the scheduler that was audited gives its groups."
        panels = [replace(panel, curves=[*_beneath(panel.curves), *seen]) for panel in panels]
    try:
        pictures = tuple(_picture(panel, summary) for panel in panels)
    except MissingExtraError as error:
        pictures = ()
        summary += f" It is not drawn, since matplotlib is not installed: {error.hint}."
    segments = () if constant else tuple(_segment(part, moving) for part in parts[:_MOST_SEGMENTS])
    return RatesView(summary, moving, pictures, segments, max(len(parts) - _MOST_SEGMENTS, 0))


def _picture(panel: Panel, summary: str) -> Picture:
    name, caption = ("log", "logarithmic scale") if panel.log else ("linear", "linear scale")
    drawing = draw([replace(panel, title="rate")], THEMED, width=4.4)
    return Picture(caption, page_svg(drawing, f"rates-{name}", f"Learning rate over the run, {caption}", summary))


def _beneath(curves: Sequence[Curve]) -> Iterator[Curve]:
    """Caffe's curves, for others to lie on them."""
    return (replace(one, label=f"Caffe, {one.label}", broad=True) for one in curves)


def seen_curves(report: Report, speeds: Sequence[Speed]) -> list[Curve]:
    """The curves of the audited scheduler, at the height of what was seen of each group's parameters.

    A group whose blobs have one multiplier has that multiplier's colour.
    """
    series = {lr_mult: index for index, lr_mult in enumerate(_spread([speed.value for speed in speeds]))}
    curves = []
    for curve in report.curves[:_MOST_CURVES]:
        rows = [row for row in report.rows if row.groups and set(row.groups) <= set(curve.groups)]
        begins = curve.points[0][1]
        lr = next((row.observed.lr for row in rows if row.observed.lr), begins)
        factor = lr / begins if begins else 1.0  # an optimizer may step by more than the lr of its group
        mults = {row.blob.lr_mult * row.factor for row in rows}
        kind = series.get(mults.pop(), len(series)) if len(mults) == 1 else len(series)
        groups = f"group{'s' if len(curve.groups) > 1 else ''} {', '.join(map(str, curve.groups[:4]))}"
        more = ", …" if len(curve.groups) > 4 else ""
        curves.append(Curve(f"{groups}{more}, seen", [(i, y * factor) for i, y in curve.points], kind))
    return curves


def _segment(part: RateSegment, speeds: Sequence[Speed]) -> SegmentView:
    iterations = f"{part.first:,}" if part.first == part.last else f"{part.first:,} – {part.last:,}"
    factors = [1.0, *(speed.value for speed in speeds)]
    return SegmentView(iterations, tuple(_rates(part, factor) for factor in factors))


def _rates(part: RateSegment, factor: float) -> str:
    begins, ends = number(effective(part.begins, factor)), number(effective(part.ends, factor))
    return f"{begins} → {ends}" if part.varies and part.first != part.last else begins


# What the pictures show: the rate of each group over a run, and how far stock torch would leave Caffe's path on it.

T = TypeVar("T")


LONGEST_WALK = 20_000
"""Iterations that are simulated one by one at most, within some seconds; of a longer run those where the paths part."""
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
    def segments(self) -> tuple[RateSegment, ...]:
        """The run, cut where its rate changes."""
        return segments(self.solver.policy, self.iterations)


def rate_curves(run: Run, lr_mults: Sequence[float]) -> list[Curve]:
    """A curve for each multiplier of the rate that moves anything; the global rate where there is none.

    Of many multipliers the smallest, the largest and some between are drawn.
    """
    points = curve(run.solver.policy, run.segments)
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
    marks = [part.first for part in runs[0].segments[1:]]
    panels = [Panel("rate", curves, marks)]
    if any(y > 0 for one in curves for _, y in one.points):
        panels.append(Panel("rate, logarithmic", curves, marks, log=True))
    return panels


def divergence_panel(
    runs: Sequence[Run], multipliers: Sequence[tuple[float, float]], progress: Callable[[int], None] = lambda _: None
) -> tuple[Panel, tuple[Divergence, ...]]:
    """How far the stock translation would be from Caffe's path after each iteration, in percent of Caffe's own way."""
    from caffe2torch.verification.simulate import diverge  # brings torch, which a page of rates does without

    moving = _spread(sorted({pair for pair in multipliers if pair[0] != 0})) or [(1.0, 1.0)]
    found = tuple(
        diverge(run.solver, moving, run.iterations, LONGEST_WALK, set(_looks(run)), progress=progress) for run in runs
    )
    curves = [
        Curve(f"lr ×{lr:g}, decay ×{decay:g}{run.label}", _finite(one.iterations, distances), k, run.pale)
        for run, one in zip(runs, found, strict=True)
        for k, ((lr, decay), distances) in enumerate(zip(moving, one.distances, strict=True))
    ]
    marks = [part.first for part in runs[0].segments[1:]]
    return Panel("stock torch, away from Caffe's path", curves, marks, percent=True), found


def say_rates(run: Run) -> str:
    """The rate over the run in a sentence."""
    parts = run.segments
    length = f"{run.iterations:,} iterations"
    begins, ends = number(parts[0].begins), number(parts[-1].ends)
    if len(parts) == 1 and not parts[0].varies:
        return f"The global rate is {begins} throughout the {length}."
    if len(parts) == 1:
        return f"The global rate goes from {begins} to {ends} over the {length}, changing all the way."
    count = len(parts) - 1
    changes = "once" if count == 1 else f"{count} times"
    places = ", ".join(f"{part.first:,}" for part in parts[1:9]) + (", …" if count > 8 else "")
    return f"The global rate goes from {begins} to {ends} over the {length} and turns {changes}, at iteration {places}."


def say_divergence(run: Run, found: Divergence) -> str:
    """What the simulation says in a sentence or two, with what it leaves out."""
    from caffe2torch.verification.simulate import differences

    why = differences(run.solver)
    farthest = max((x for distances in found.distances for x in distances if math.isfinite(x)), default=0.0)
    span = f"{found.length:,} iterations"
    if found.run < found.length:
        span += f" ({found.run:,} of them simulated one by one)"
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
    end = run.iterations
    parts = run.segments
    yield from (i for i, _ in curve(run.solver.policy, parts) if i < end)
    yield from (end * k // 240 for k in range(240))
    yield end - 1
    for part in parts[1:_MOST_CHANGES]:
        yield from (part.first + after for after in _AFTER if part.first + after < end)
