"""What movements say: the learning rate and the weight decay that a rule must have had to make them.

Every rule is linear in the rate, and a lane that holds its weight at 0 sees no decay: a single gradient at step k gives
the rate of step k. With the rates known, a lane that has a weight and no gradient gives the decay. Then the rule, with
these numbers, must reproduce *all* lanes; where it does not, it is not the rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from caffe2torch.solver.update_rules import Decay, Pace, Rule, movements
from caffe2torch.verification.probe_sequence import Lane, Movements, Window

__all__ = ["FINEST_DECAY", "TOLERANCE", "Reading", "close", "explained", "read", "still"]

TOLERANCE = 1e-5
"""Relative difference up to which two numbers count as the same: Caffe's are float32, a port's often are not."""

FINEST_DECAY = 1e-9
"""A decay must be told to within this, or it counts as not seen."""

_HALVINGS = 60


@dataclass(frozen=True, slots=True)
class Reading:
    """The numbers with which a rule explains what was seen, and whether it explains all of it.

    ``rates`` is per step, ``None`` where a step of rate 0 or without gradient shows none; ``weight_decay`` is ``None``
    where nothing moves by which it could be seen.
    """

    rule: Rule
    rates: tuple[float | None, ...]
    weight_decay: float | None
    explains: bool

    @property
    def lr(self) -> float | None:
        """The first rate that could be seen."""
        return next((rate for rate in self.rates if rate is not None), None)


def close(a: float, b: float, tolerance: float = TOLERANCE) -> bool:
    """Whether two numbers are the same up to rounding; NaN is the same as NaN.

    >>> close(0.1, 0.10000000149), close(0.1, 0.2), close(float("nan"), float("nan"))
    (True, False, True)
    """
    if a == b or (math.isnan(a) and math.isnan(b)):
        return True
    return math.isfinite(a) and math.isfinite(b) and abs(a - b) <= tolerance * max(abs(a), abs(b))


def still(seen: Sequence[Movements]) -> bool:
    """Whether nothing moved at any step of any window."""
    return not any(moved for window in seen for lane in window for moved in lane)


def read(
    rule: Rule,
    window: Window,
    seen: Movements,
    momenta: Sequence[float],
    *,
    fading: Sequence[float] = (),
    weight_decay: float | None = None,
    precision: float = 2.0**-52,
) -> Reading:
    """Fit ``rule`` to the movements of one window.

    ``momenta`` is the momentum of each step, ``fading`` the decay of each step in terms of the first one's (all 1 where
    absent). ``weight_decay``, where given, is taken instead of fitted: a window later in a run need not tell it again.
    """
    lanes = {lane.name: (lane, moved) for lane, moved in zip(window.lanes, seen, strict=True)}
    rates = tuple(_rate(rule, momenta, step, *lanes[f"pull {step}"]) for step in range(window.steps))
    paces = [Pace(rate or 0.0, momentum, 0.0) for rate, momentum in zip(rates, momenta, strict=True)]
    weightless = [(lane, moved) for lane, moved in lanes.values() if not any(lane.weights)]
    if max(_misfit(rule, paces, lane, moved, precision) for lane, moved in weightless) > 1:
        return Reading(rule, rates, None, explains=False)

    def misfit(decay: float | None) -> float:
        fades = fading or (1.0,) * len(paces)
        at = [replace(pace, weight_decay=fade * (decay or 0.0)) for pace, fade in zip(paces, fades, strict=True)]
        return max(_misfit(rule, at, lane, moved, precision) for lane, moved in lanes.values())

    candidates = [weight_decay] if weight_decay is not None else _decays(rule, paces, lanes, precision)
    best = min(candidates, key=misfit)
    explains = misfit(best) <= 1
    if best is not None and abs(best) < FINEST_DECAY / 1000:  # rounding of none at all
        best = 0.0
    return Reading(rule, rates, best, explains)


def explained(rule: Rule, window: Window, seen: Movements, paces: Sequence[Pace], precision: float = 2.0**-52) -> bool:
    """Whether a rule at a known pace moves every lane of a window as it was seen to move."""
    return all(
        _misfit(rule, paces, lane, moved, precision) <= 1 for lane, moved in zip(window.lanes, seen, strict=True)
    )


def _rate(rule: Rule, momenta: Sequence[float], step: int, lane: Lane, seen: Sequence[float]) -> float | None:
    """The rate of the step at which a lane is pulled once; ``None`` where the rule would not move at any rate."""
    paces = [Pace(1.0, momentum, 0.0) for momentum in momenta]
    unit = movements(rule, paces, lane.weights, lane.gradients)[step]
    return seen[step] / unit if unit else None


def _decays(
    rule: Rule, paces: Sequence[Pace], lanes: dict[str, tuple[Lane, tuple[float, ...]]], precision: float
) -> list[float | None]:
    """The decays that the lanes with a weight and no gradient allow; ``None`` where they show none."""
    if not any(pace.rate for pace in paces):
        return [None]
    if rule.linear or rule.decay is Decay.DECOUPLED:
        lane, seen = lanes["decay"]
        unit = movements(rule, [replace(pace, weight_decay=1.0) for pace in paces], lane.weights, lane.gradients)
        step = _clear_step(lane, seen, unit, precision)
        return [None if step is None else seen[step] / unit[step]]
    found = [decay for name in ("remembered", "primed") for decay in _solve(rule, paces, *lanes[name])]
    return [*found, *([] if found else [None])]


def _clear_step(lane: Lane, seen: Sequence[float], unit: Sequence[float], precision: float) -> int | None:
    """The step that tells the decay best. Where rate and decay are both tiny a weight swallows its own movement, but
    the history still tells it at the next step, when the weight has been set to 0.
    """
    rounding = precision * abs(lane.weights[0] or 1.0)
    if unit[0] and abs(seen[0]) > 1e7 * rounding:
        return 0
    later = next((k for k in range(1, len(unit)) if unit[k]), None)
    if later is None and unit[0] and rounding < FINEST_DECAY * abs(unit[0]):
        return 0
    return later


def _solve(rule: Rule, paces: Sequence[Pace], lane: Lane, seen: Sequence[float]) -> Iterator[float]:
    """The decays at which a lane makes its movement of step 1, which a weight and a gradient have a part in.

    The rules answer to a decay that weighs about as much as the gradient, and Adam's answer rises and falls again: so
    there may be two, and near its summit none may be found, but not in both of the lanes that are asked.
    """

    def excess(decay: float) -> float:
        at = [replace(pace, weight_decay=decay) for pace in paces]
        return movements(rule, at, lane.weights, lane.gradients)[1] - seen[1]

    if abs(excess(0.0)) <= 1e-10 * abs(seen[1]):
        yield 0.0
    weight = max(abs(w or 0.0) for w in lane.weights) if rule.decay is Decay.L2 else 1.0
    unit = max(map(abs, lane.gradients)) / weight
    grid = [0.0, *(unit * 2.0 ** (k / 4) for k in range(-80, 65))]
    values = [excess(decay) for decay in grid]
    for low, high, below, above in zip(grid, grid[1:], values, values[1:], strict=False):
        if below == 0 and low:
            yield low
        elif below * above < 0:
            yield _root(excess, low, high)


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function changes its sign between two numbers."""
    sign = function(low)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) * sign > 0 else (low, middle)
    return (low + high) / 2


def _misfit(rule: Rule, paces: Sequence[Pace], lane: Lane, seen: Sequence[float], precision: float) -> float:
    """How far a rule is from moving a lane as it was seen to move, in terms of what passes for the same."""
    made = movements(rule, paces, lane.weights, lane.gradients)
    lost = next((k for k, x in enumerate(made) if not math.isfinite(x)), len(made))
    if any(map(math.isfinite, seen[lost : lost + 1])):
        return math.inf  # what is not finite in Caffe has to be so here; what follows from it is of no interest
    made, seen = made[:lost], seen[:lost]
    weight, worst = 0.0, 0.0
    scale = TOLERANCE * max(map(abs, made), default=0.0)
    for placed, a, b in zip(lane.weights, made, seen, strict=False):
        weight = weight if placed is None else placed
        off, room = abs(a - b), scale + 8 * precision * abs(weight)
        worst = max(worst, off / room if room else math.inf if off else 0.0) if off == off else math.inf
        weight += b
    return worst
