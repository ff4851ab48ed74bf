"""What movements say: the learning rate and the weight decay that a rule must have had to make them.

Every rule is linear in the rate, and a sequence that holds its weight at 0 sees no decay: a single gradient at step k
gives the rate of step k. With the rates known, a sequence that has a weight and no gradient gives the decay. Then the
rule, with these numbers, must reproduce *all* sequences; where it does not, it is not the rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from caffe2torch.solver.update_rules import Decay, Rule, StepSettings, movements
from caffe2torch.verification.probe_sequence import Movements, ProbeSequence, Window

__all__ = ["FINEST_DECAY", "TOLERANCE", "Fit", "close", "explained", "leaving", "read", "still"]

TOLERANCE = 1e-5
"""Relative difference up to which two numbers count as the same: Caffe's are float32, a port's often are not."""

FINEST_DECAY = 1e-9
"""A decay must be read to within this, or it counts as not seen."""

_LONG_TOLERANCE = 1e-3
"""The same after hundreds of steps, in which a history adds such differences up."""

_HALVINGS = 60


@dataclass(frozen=True, slots=True)
class Fit:
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
    return not any(moved for window in seen for sequence in window for moved in sequence)


def read(
    rule: Rule,
    window: Window,
    seen: Movements,
    momenta: Sequence[float],
    *,
    decay_ratios: Sequence[float] = (),
    weight_decay: float | None = None,
    precision: float = 2.0**-52,
) -> Fit:
    """Fit ``rule`` to the movements of one window.

    ``momenta`` is the momentum of each step, ``decay_ratios`` the decay of each step in terms of the first one's (all 1
    where absent). ``weight_decay``, where given, is taken instead of fitted: a later window need not tell it again.
    """
    sequences = {sequence.name: (sequence, moved) for sequence, moved in zip(window.sequences, seen, strict=True)}
    rates = tuple(_rate(rule, momenta, step, *sequences[f"gradient at {step}"]) for step in range(window.steps))
    settings = [StepSettings(rate or 0.0, momentum, 0.0) for rate, momentum in zip(rates, momenta, strict=True)]
    weightless = [(sequence, moved) for sequence, moved in sequences.values() if not any(sequence.weights)]
    if max(_misfit(rule, settings, sequence, moved, precision) for sequence, moved in weightless) > 1:
        return Fit(rule, rates, None, explains=False)

    def misfit(decay: float | None) -> float:
        ratios = decay_ratios or (1.0,) * len(settings)
        at = [
            replace(setting, weight_decay=fade * (decay or 0.0)) for setting, fade in zip(settings, ratios, strict=True)
        ]
        return max(_misfit(rule, at, sequence, moved, precision) for sequence, moved in sequences.values())

    candidates = [weight_decay] if weight_decay is not None else _decays(rule, settings, sequences, precision)
    best = min(candidates, key=misfit)
    explains = misfit(best) <= 1
    if best is not None and abs(best) < FINEST_DECAY / 1000:  # rounding of none at all
        best = 0.0
    return Fit(rule, rates, best, explains)


def explained(
    rule: Rule, window: Window, seen: Movements, settings: Sequence[StepSettings], precision: float = 2.0**-52
) -> bool:
    """Whether a rule at known settings moves every sequence of a window as it was seen to move."""
    return all(
        _misfit(rule, settings, sequence, moved, precision) <= 1
        for sequence, moved in zip(window.sequences, seen, strict=True)
    )


def leaving(
    rule: Rule, window: Window, seen: Movements, settings: Sequence[StepSettings], precision: float = 2.0**-52
) -> dict[str, int]:
    """The sequences that leave a rule, and the first step at which they do; what is not finite is of no interest."""
    found = {}
    for sequence, moved in zip(window.sequences, seen, strict=True):
        made = movements(rule, settings, sequence.weights, sequence.gradients)
        if not all(map(math.isfinite, made)):
            continue
        room = _LONG_TOLERANCE * max(map(abs, made)) + 8 * precision * abs(sequence.weights[0] or 0.0)
        off = (k for k, (a, b) in enumerate(zip(made, moved, strict=True)) if not abs(a - b) <= room)
        if (first := next(off, None)) is not None:
            found[sequence.name] = first
    return found


def _rate(
    rule: Rule, momenta: Sequence[float], step: int, sequence: ProbeSequence, seen: Sequence[float]
) -> float | None:
    """The rate of the one step with a gradient; ``None`` where the rule would not move at any rate."""
    settings = [StepSettings(1.0, momentum, 0.0) for momentum in momenta]
    unit = movements(rule, settings, sequence.weights, sequence.gradients)[step]
    return seen[step] / unit if unit else None


def _decays(
    rule: Rule,
    settings: Sequence[StepSettings],
    sequences: dict[str, tuple[ProbeSequence, tuple[float, ...]]],
    precision: float,
) -> list[float | None]:
    """The decays that the sequences with a weight and no gradient allow; ``None`` where they show none."""
    if not any(setting.rate for setting in settings):
        return [None]
    if rule.linear or rule.decay is Decay.DECOUPLED:
        sequence, seen = sequences["decay"]
        unit = movements(
            rule,
            [replace(setting, weight_decay=1.0) for setting in settings],
            sequence.weights,
            sequence.gradients,
        )
        step = _clear_step(sequence, seen, unit, precision)
        return [None if step is None else seen[step] / unit[step]]
    found = [decay for name in ("remembered", "primed") for decay in _solve(rule, settings, *sequences[name])]
    return [*found, *([] if found else [None])]


def _clear_step(sequence: ProbeSequence, seen: Sequence[float], unit: Sequence[float], precision: float) -> int | None:
    """The step that tells the decay best. Where rate and decay are both tiny a weight swallows its own movement, but
    the history still tells it at the next step, when the weight has been set to 0.
    """
    rounding = precision * abs(sequence.weights[0] or 1.0)
    if unit[0] and abs(seen[0]) > 1e7 * rounding:
        return 0
    later = next((k for k in range(1, len(unit)) if unit[k]), None)
    if later is None and unit[0] and rounding < FINEST_DECAY * abs(unit[0]):
        return 0
    return later


def _solve(
    rule: Rule, settings: Sequence[StepSettings], sequence: ProbeSequence, seen: Sequence[float]
) -> Iterator[float]:
    """The decays at which a sequence makes its movement of step 1, which a weight and a gradient have a part in.

    The rules answer to a decay that weighs about as much as the gradient, and Adam's answer rises and falls again: so
    there may be two, and near its summit none may be found, but not in both of the sequences that are asked.
    """

    def excess(decay: float) -> float:
        at = [replace(setting, weight_decay=decay) for setting in settings]
        return movements(rule, at, sequence.weights, sequence.gradients)[1] - seen[1]

    if abs(excess(0.0)) <= 1e-10 * abs(seen[1]):
        yield 0.0
    weight = max(abs(w or 0.0) for w in sequence.weights) if rule.decay is Decay.L2 else 1.0
    unit = max(map(abs, sequence.gradients)) / weight
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


def _misfit(
    rule: Rule, settings: Sequence[StepSettings], sequence: ProbeSequence, seen: Sequence[float], precision: float
) -> float:
    """How far a rule is from moving a sequence as it was seen to move, in terms of what passes for the same."""
    made = movements(rule, settings, sequence.weights, sequence.gradients)
    lost = next((k for k, x in enumerate(made) if not math.isfinite(x)), len(made))
    if any(map(math.isfinite, seen[lost : lost + 1])):
        return math.inf  # what is not finite in Caffe has to be so here; what follows from it is of no interest
    made, seen = made[:lost], seen[:lost]
    weight, worst = 0.0, 0.0
    scale = TOLERANCE * max(map(abs, made), default=0.0)
    for placed, a, b in zip(sequence.weights, made, seen, strict=False):
        weight = weight if placed is None else placed
        off, room = abs(a - b), scale + 8 * precision * abs(weight)
        worst = max(worst, off / room if room else math.inf if off else 0.0) if off == off else math.inf
        weight += b
    return worst
