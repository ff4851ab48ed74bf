"""One parameter judged: is what was seen of it what Caffe's solver would have done with these multipliers?

The verdict does not rest on fitted numbers: the solver's own rule, at the rates, momenta and decays that the recipe
gives, must reproduce every movement. Numbers are fitted to show them, and to say what is wrong (``blame.py``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from caffe2torch.recipe import SolverSettings
from caffe2torch.solver.lr_policy import weight_decay_at
from caffe2torch.verification.blame import blame, number
from caffe2torch.verification.candidate_rules import Suspect, caffe_rule
from caffe2torch.verification.course import Course
from caffe2torch.verification.fault import Fault, FaultKind
from caffe2torch.verification.fit import FINEST_DECAY, close, explained, read, still
from caffe2torch.verification.observation import Observation
from caffe2torch.verification.probe_sequence import Window, rate_at
from caffe2torch.verification.report import Effective

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


class Judge:
    """Judges the parameters of one optimizer; those that moved alike are judged once.

    ``summed`` says whether gradients arrive as Caffe has them, summed over ``iter_size`` passes, so that the optimizer
    must divide; else the training loop has averaged them already.
    """

    def __init__(
        self, solver: SolverSettings, windows: tuple[Window, ...], iteration: int, precision: float, summed: bool
    ) -> None:
        self.solver = solver
        self.windows = windows
        self.iteration = iteration
        self.precision = precision
        self.rule = replace(caffe_rule(solver), divisor=float(solver.iter_size) if summed else 1.0)
        self.own_rules = (self.rule, replace(self.rule, gradient=True))  # clipping may be left to the training loop
        self._judged: dict[object, Judgement] = {}
        self._known: list[Suspect] = []

    def expected(self, multipliers: Multipliers) -> Effective:
        """The effective rate and decay at the iteration that the report stands for."""
        rate = rate_at(self.solver.policy, self.iteration)
        decay = weight_decay_at(self.solver, self.iteration)
        return Effective(rate * multipliers.lr_mult, decay * multipliers.decay_mult)

    def judge(self, multipliers: Multipliers, seen: Observation) -> Judgement:
        """Hold what was seen of a parameter that the optimizer holds against what Caffe would do."""
        key = (multipliers, seen.windows, seen.requires_grad, seen.elementwise)
        if key not in self._judged:
            observed, faults = self._judge(multipliers, seen)
            self._judged[key] = Judgement(self.expected(multipliers), observed, faults)
        return self._judged[key]

    def _judge(self, multipliers: Multipliers, seen: Observation) -> tuple[Effective, tuple[Fault, ...]]:
        courses = [
            Course.of(self.solver, window, multipliers.lr_mult, multipliers.decay_mult) for window in self.windows
        ]
        rates = [pace.rate for course in courses for pace in course.paces if pace.rate]  # NaN, too, is a rate
        if still(seen.windows):
            return Effective(0.0, None), self._unmoved(rates, seen) if rates else ()
        observed = self._observed(courses[0], seen)
        if not seen.elementwise:
            said = "what happens to one of its numbers depends on the others; in Caffe it does not"
            return observed, (Fault(FaultKind.RULE, said),)
        if not rates:
            said = f"it is trained at lr {number(observed.lr)}; Caffe freezes it"
            return observed, (Fault(FaultKind.TRAINED, said),)
        for rule in self.own_rules:
            if all(
                explained(rule, course.window, moved, course.paces, self.precision)
                for course, moved in zip(courses, seen.windows, strict=True)
            ):
                return self._agreed(observed, courses[0]), ()
        blamed, faults = blame(self.own_rules[1], self.solver, courses, seen.windows, self.precision, self._known)
        return blamed, tuple(faults)

    def _observed(self, course: Course, seen: Observation) -> Effective:
        """Rate and decay as Caffe's rule would have them from the first window."""
        rule = self.own_rules[1]
        if not self.rule.gradient and explained(
            self.rule, course.window, seen.windows[0], course.paces, self.precision
        ):
            return Effective(None, None)  # without gradients, rate and decay only show as their product
        reading = read(
            rule, course.window, seen.windows[0], course.momenta, fading=course.fading, precision=self.precision
        )
        return Effective(reading.lr, reading.weight_decay)

    def _agreed(self, observed: Effective, course: Course) -> Effective:
        """What was seen, without a decay that is told too coarsely to be shown beside the right one."""
        decay, due = observed.weight_decay, course.paces[0].weight_decay
        if decay is None or close(decay, due, 1e-3):
            return observed
        return replace(observed, weight_decay=0.0 if abs(decay) < FINEST_DECAY and not due else None)

    def _unmoved(self, rates: list[float], seen: Observation) -> tuple[Fault, ...]:
        if not self.rule.gradient:
            return ()
        why = "no step moves it" if seen.requires_grad else "it is frozen, its requires_grad is False"
        return (Fault(FaultKind.FROZEN, f"{why}; Caffe trains it at lr {number(rates[0])}"),)
