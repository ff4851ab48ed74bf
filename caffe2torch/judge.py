"""One parameter judged: what the solver and its multipliers would do to it, against what was seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from caffe2torch.caffe.float32 import format32
from caffe2torch.caffe.policies import momentum_at, weight_decay_at
from caffe2torch.measure.fault import Fault, FaultKind
from caffe2torch.measure.lanes import Window, rate_at
from caffe2torch.measure.observation import Movements, Observation
from caffe2torch.measure.reading import FINEST_DECAY, Reading, close, read, still
from caffe2torch.measure.rules import History, Rule
from caffe2torch.measure.suspects import caffe_rule, rate_change, suspects
from caffe2torch.recipe import SolverSettings
from caffe2torch.report.data import Effective

__all__ = ["Judge", "Judgement", "Multipliers"]


@dataclass(frozen=True, slots=True)
class Multipliers:
    """``lr_mult`` with the factor of fine-tuning applied, and ``decay_mult``."""

    lr_mult: float
    decay_mult: float


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is expected and what was seen at the first iteration that was looked at, and every departure."""

    expected: Effective
    observed: Effective
    faults: tuple[Fault, ...]


@dataclass
class Judge:
    """Judges parameters of one optimizer. Those that moved alike are judged once.

    ``divides`` says whether the gradients of ``iter_size`` passes are summed, as in Caffe, so that the optimizer must
    divide; else the training loop has averaged them already.
    """

    solver: SolverSettings
    windows: tuple[Window, ...]
    iteration: int
    precision: float
    divides: bool = True

    def __post_init__(self) -> None:
        self._judged: dict[object, Judgement] = {}

    @cached_property
    def rule(self) -> Rule:
        """Caffe's rule for this solver."""
        rule = caffe_rule(self.solver)
        return rule if self.divides else replace(rule, divisor=1.0)

    def expected(self, multipliers: Multipliers) -> Effective:
        """The effective rate and decay at the iteration that the report stands for."""
        rate = rate_at(self.solver.policy, self.iteration)
        decay = weight_decay_at(self.solver, self.iteration)
        return Effective(rate * multipliers.lr_mult, decay * multipliers.decay_mult)

    def judge(self, multipliers: Multipliers, seen: Observation) -> Judgement:
        """Read what was seen of one parameter that the optimizer holds, and compare."""
        key = (multipliers, seen.windows, seen.requires_grad, seen.elementwise)
        if key not in self._judged:
            self._judged[key] = self._judge(multipliers, seen)
        return self._judged[key]

    def _judge(self, multipliers: Multipliers, seen: Observation) -> Judgement:
        expected = self.expected(multipliers)
        if still(seen.windows):
            return Judgement(expected, Effective(0.0, None), self._unmoved(multipliers, seen))
        window, moved = self.windows[0], seen.windows[0]
        reading, momentum, faults = self._recognise(window, moved)
        observed = Effective(reading.lr, _decay(reading))
        if not seen.elementwise:
            said = "what happens to one of its numbers depends on the others; in Caffe it does not"
            return Judgement(expected, observed, (*faults, Fault(FaultKind.RULE, said)))
        if multipliers.lr_mult == 0:
            said = f"it is trained at lr {_number(reading.lr)}; Caffe freezes it"
            return Judgement(expected, observed, (Fault(FaultKind.TRAINED, said),))
        faults += self._numbers(multipliers, window, reading)
        if reading.explains:
            faults += self._later(multipliers, seen, reading, momentum)
        return Judgement(expected, observed, tuple(faults))

    def _unmoved(self, multipliers: Multipliers, seen: Observation) -> tuple[Fault, ...]:
        rates = [rate_at(self.solver.policy, i) * multipliers.lr_mult for w in self.windows for i in w.iterations]
        if not any(rates) or not self.rule.gradient:
            return ()
        why = "no step moves it" if seen.requires_grad else "it is frozen, its requires_grad is False"
        return (Fault(FaultKind.FROZEN, f"{why}; Caffe trains it at lr {format32(next(filter(None, rates)))}"),)

    def _recognise(self, window: Window, moved: Movements) -> tuple[Reading, float, list[Fault]]:
        """The rule that explains a window: Caffe's, or the first suspect's, and what sets that apart."""
        momenta, fading = self._course(window)
        own = read(self.rule, window, moved, momenta, fading=fading, precision=self.precision)
        if own.explains:
            return own, momenta[0], []
        for suspect in suspects(self.solver, window, moved):
            rule = suspect.rule if self.divides else replace(suspect.rule, divisor=1.0)
            steady = [suspect.momentum] * window.steps
            reading = read(rule, window, moved, steady, fading=fading, precision=self.precision)
            if reading.explains:
                return reading, suspect.momentum, list(suspect.faults)
        said = f"it does not step as Caffe's {self.solver.type} does, nor as any rule that is known here"
        return own, momenta[0], [Fault(FaultKind.RULE, said)]

    def _numbers(self, multipliers: Multipliers, window: Window, reading: Reading) -> list[Fault]:
        """Rate and decay of the first window against Caffe's."""
        faults = []
        at = window.iterations
        wanted = [rate_at(self.solver.policy, i) * multipliers.lr_mult for i in at]
        lr = reading.rates[0]
        if lr is not None and not close(lr, wanted[0]):
            faults.append(
                Fault(FaultKind.LR, f"lr is {_number(lr)}, Caffe's is {_number(wanted[0])}{_times(lr, wanted[0])}")
            )
        else:
            faults += _schedule(at, wanted, reading.rates)
        decay, due = _decay(reading), weight_decay_at(self.solver, at[0]) * multipliers.decay_mult
        if decay is None:
            if reading.explains and self.rule.gradient:
                said = f"weight decay cannot be seen at lr {_number(reading.lr)}; Caffe's is {_number(due)}"
                faults += [Fault(FaultKind.UNOBSERVED, said)] if due else []
        elif not close(decay, due, floor=FINEST_DECAY * 1e-3):
            times = self.solver.iter_size
            if times > 1 and close(decay * times, due):
                said = (
                    f"weight_decay is {_number(decay)}, Caffe's is {_number(due)}: it is divided by iter_size {times}"
                )
                faults.append(Fault(FaultKind.ITER_SIZE, said))
            else:
                said = f"weight_decay is {_number(decay)}, Caffe's is {_number(due)}{_times(decay, due)}"
                faults.append(Fault(FaultKind.WEIGHT_DECAY, said))
        return faults

    def _later(self, multipliers: Multipliers, seen: Observation, first: Reading, momentum: float) -> list[Fault]:
        """The windows after the first: do the rates follow the policy, and does the history keep its rates?"""
        faults: dict[FaultKind, Fault] = {}
        start = self.windows[0].iteration
        own = rate_at(self.solver.policy, start) * multipliers.lr_mult
        scale = (first.rates[0] or 0.0) / own if own else 1.0
        rule = first.rule
        for window, moved in zip(self.windows[1:], seen.windows[1:], strict=True):
            momenta, fading = self._course(window)
            if momentum != momenta[0] and self.solver.momentum_ramp is None and self.solver.momentum_from_rate is None:
                momenta = [momentum] * window.steps
            decay = (first.weight_decay or 0.0) * self._faded(window)
            reading = self._follow(rule, window, moved, momenta, fading, decay)
            if reading.explains and reading.rule != rule:
                faults.setdefault(FaultKind.RATE_CHANGE, rate_change(reading.rule))
            elif not reading.explains:
                said = f"from iteration {window.iteration} on it no longer steps as at iteration {start}"
                faults.setdefault(FaultKind.RATE_CHANGE, Fault(FaultKind.RATE_CHANGE, said))
            wanted = [rate_at(self.solver.policy, i) * multipliers.lr_mult * scale for i in window.iterations]
            for fault in _schedule(window.iterations, wanted, reading.rates):
                faults.setdefault(FaultKind.SCHEDULE, fault)
        return list(faults.values())

    def _follow(
        self,
        rule: Rule,
        window: Window,
        moved: Movements,
        momenta: Sequence[float],
        fading: Sequence[float],
        decay: float,
    ) -> Reading:
        """The rule of the first window on a later one, else that rule with a history that treats rates otherwise."""
        histories = (rule.history, *(history for history in History if history is not rule.history))
        readings = (
            read(
                replace(rule, history=history), window, moved, momenta,
                fading=fading, weight_decay=decay, precision=self.precision,
            )
            for history in (histories if rule.linear else histories[:1])
        )  # fmt: skip
        first = next(readings)
        return first if first.explains else next((reading for reading in readings if reading.explains), first)

    def _course(self, window: Window) -> tuple[list[float], list[float]]:
        """Momentum at each step, and the decay at each step in terms of the first one's."""
        momenta = [momentum_at(self.solver, i, rate_at(self.solver.policy, i)) for i in window.iterations]
        decays = [weight_decay_at(self.solver, i) for i in window.iterations]
        return momenta, [decay / decays[0] if decays[0] else 1.0 for decay in decays]

    def _faded(self, window: Window) -> float:
        first = weight_decay_at(self.solver, self.windows[0].iteration)
        return weight_decay_at(self.solver, window.iteration) / first if first else 1.0


def _schedule(at: Sequence[int], wanted: Sequence[float], seen: Sequence[float | None]) -> list[Fault]:
    """The first iteration whose rate is not the policy's."""
    for iteration, rate, lr in zip(at, wanted, seen, strict=True):
        if lr is not None and not close(lr, rate):
            said = f"at iteration {iteration} lr is {_number(lr)}, Caffe's is {_number(rate)}{_times(lr, rate)}"
            return [Fault(FaultKind.SCHEDULE, said)]
    return []


def _decay(reading: Reading) -> float | None:
    """The decay of a reading, where rounding left next to nothing of it none at all."""
    decay = reading.weight_decay
    return decay if decay is None or abs(decay) > FINEST_DECAY * 1e-3 else 0.0


def _number(x: float | None) -> str:
    """A measured number as a person reads it: float32, at most six digits."""
    if x is None:
        return "unknown"
    short = f"{x:.6g}"
    return short if close(float(short), x, 1e-7) or x != x else format32(x)


def _times(seen: float, wanted: float) -> str:
    """``, 2 times as much``, where that is a number that somebody may have written."""
    if not wanted or not seen:
        return ""
    ratio = seen / wanted
    for times, text in ((ratio, f"{ratio:.4g} times as much"), (1 / ratio, f"{1 / ratio:.4g} times too small")):
        if 1 < times <= 1e4 and close(times, float(f"{times:.2g}"), 1e-4):
            return f" ({text})"
    return ""
