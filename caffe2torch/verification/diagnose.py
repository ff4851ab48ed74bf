"""One parameter judged: is what was seen of it what Caffe's solver would have done with these multipliers?

The verdict does not rest on fitted numbers: the solver's own rule, at the rates, momenta and decays that the recipe
gives, must reproduce every movement. Numbers are fitted to show them, and to say what is wrong (see
``candidate_rules.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

from caffe2torch.recipe import SolverSettings
from caffe2torch.solver.float32 import number
from caffe2torch.solver.lr_policy import rate, weight_decay_at
from caffe2torch.solver.update_rules import History, Rule, StepSettings
from caffe2torch.verification.candidate_rules import CandidateRule, caffe_rule, candidates, rate_change
from caffe2torch.verification.fit import FINEST_DECAY, TOLERANCE, Fit, close, explained, read, still
from caffe2torch.verification.probe_sequence import ExpectedSteps, Movements, Observation, Window
from caffe2torch.verification.report import Effective, Fault, FaultKind

__all__ = ["ASCENT", "ASCENT_FIX", "AUDIT_FIX", "RUN", "Judge", "Judgement", "Multipliers", "frozen"]

FLOAT32 = 2.0**-24
"""The relative rounding of one float32."""

UNDERFLOW = 1e-100
"""Movements below this are those of a rate that has run to nothing: rounding would be read as another rule."""

FINEST_RATE = 2.0**-50
"""Rates that differ by less than this part of the run's largest one are the same: ``1 - lr / reference``, torch's
dampening, does not hold more digits, and nothing moves by it that a weight could show."""

RUN = frozenset(
    {
        FaultKind.RULE,
        FaultKind.MOMENTUM,
        FaultKind.EPSILON,
        FaultKind.REGULARIZATION,
        FaultKind.SCHEDULE,
        FaultKind.RATE_CHANGE,
    }
)
"""What concerns the run and not the multipliers of one parameter, though it shows in each of them."""


@dataclass(frozen=True, slots=True)
class Multipliers:
    """``lr_mult`` with the factor of fine-tuning applied, and ``decay_mult``."""

    lr_mult: float
    decay_mult: float


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is expected and what was seen at the first iteration that was looked at.

    ``faults`` are those of the parameter's multipliers, ``run`` what concerns the whole run. ``change_seen`` says that
    its rate changed where it was looked at. ``fitted`` is the rule that explains the first window, with the settings of
    its first step.
    """

    expected: Effective
    observed: Effective
    faults: tuple[Fault, ...]
    run: tuple[Fault, ...] = ()
    change_seen: bool = False
    fitted: tuple[Rule, StepSettings] | None = None


class Judge:
    """Judges the parameters of one optimizer; those that moved alike are judged once.

    ``summed`` says whether gradients arrive as Caffe has them, summed over ``iter_size`` passes, so that the optimizer
    must divide; else the training loop has averaged them already. ``ascending`` is set where all parameters move up
    the gradient: that is a fault of the run then, and not of each row.
    """

    def __init__(
        self, solver: SolverSettings, windows: tuple[Window, ...], iteration: int, precision: float, summed: bool
    ) -> None:
        self.solver = solver
        self.windows = windows
        self.iteration = iteration
        self.precision = precision
        self.rule = replace(caffe_rule(solver), divisor=float(solver.iter_size) if summed else 1.0)
        self.ascending = False
        self._judged: dict[object, Judgement] = {}
        self._known: list[CandidateRule] = []

    def expected(self, multipliers: Multipliers) -> Effective:
        """The effective rate and decay at the iteration that the report stands for."""
        now = rate(self.solver.policy, self.iteration)
        decay = weight_decay_at(self.solver, self.iteration)
        return Effective(now * multipliers.lr_mult, decay * multipliers.decay_mult)

    def judge(self, multipliers: Multipliers, seen: Observation) -> Judgement:
        """Hold what was seen of a parameter that the optimizer holds against what Caffe would do."""
        key = (multipliers, seen.windows, seen.requires_grad, seen.elementwise, seen.scaled_by)
        if key not in self._judged:
            up = self.ascends(multipliers, seen)
            rule = replace(self.rule, divisor=-self.rule.divisor) if up else self.rule
            observed, faults, fitted = self._judge(multipliers, seen, rule)
            own = [ASCENT] if up and not self.ascending else []
            run = [ASCENT] if up and self.ascending else []
            self._judged[key] = Judgement(
                self.expected(multipliers),
                observed,
                (*own, *(fault for fault in faults if fault.kind not in RUN)),
                (*run, *(fault for fault in faults if fault.kind in RUN)),
                self._change_seen(seen),
                fitted,
            )
        return self._judged[key]

    def ascends(self, multipliers: Multipliers, seen: Observation) -> bool:
        """Whether a single gradient moves the parameter up it, where Caffe goes down."""
        moved = seen.windows[0][0][0] if seen.windows else 0.0  # of ``gradient at 0``
        return seen.elementwise and self.rule.gradient and moved * (self.expected(multipliers).lr or 0.0) > 0

    def _change_seen(self, seen: Observation) -> bool:
        """Whether a single gradient moved the parameter otherwise at another step of a window."""
        if not seen.elementwise:
            return False
        for window, moved in zip(self.windows, seen.windows, strict=True):
            pulls = [
                amounts[k]
                for sequence, amounts in zip(window.sequences, moved, strict=True)
                for k in range(window.steps)
                if sequence.name == f"gradient at {k}"
            ]
            if any(not close(one, pulls[0]) for one in pulls):
                return True
        return False

    def _judge(
        self, multipliers: Multipliers, seen: Observation, own: Rule
    ) -> tuple[Effective, tuple[Fault, ...], tuple[Rule, StepSettings] | None]:
        stepped = replace(own, gradient=True)  # clipping may be left to the training loop
        all_expected = [
            ExpectedSteps.of(self.solver, window, multipliers.lr_mult, multipliers.decay_mult)
            for window in self.windows
        ]
        rates = [
            setting.rate for expected in all_expected for setting in expected.settings if setting.rate
        ]  # NaN, too, is a rate
        if still(seen.windows):
            return Effective(0.0, None), self._unmoved(rates, seen) if rates and multipliers.lr_mult else (), None
        observed = self._observed(all_expected[0], seen, stepped)
        if not seen.elementwise:
            return Effective(None, None), (Fault(FaultKind.RULE, _among_others(own, seen)), _unreadable()), None
        if not rates:
            said = f"it is trained at lr {number(observed.lr)}; Caffe freezes it"
            return observed, (Fault(FaultKind.TRAINED, said),), None
        for rule in (own, stepped):
            if all(
                explained(rule, expected.window, moved, expected.settings, self.precision)
                for expected, moved in zip(all_expected, seen.windows, strict=True)
            ):
                return self._agreed(observed, all_expected[0]), (), (rule, all_expected[0].settings[0])
        blamed, faults, fitted = diagnose(stepped, self.solver, all_expected, seen.windows, self.precision, self._known)
        return blamed, tuple(faults), fitted

    def _observed(self, expected: ExpectedSteps, seen: Observation, rule: Rule) -> Effective:
        """Rate and decay as Caffe's rule would have them from the first window."""
        if not self.rule.gradient and explained(
            self.rule, expected.window, seen.windows[0], expected.settings, self.precision
        ):
            return Effective(None, None)  # without gradients, rate and decay only show as their product
        reading = read(
            rule,
            expected.window,
            seen.windows[0],
            expected.momenta,
            decay_ratios=expected.decay_ratios,
            precision=self.precision,
        )
        return Effective(reading.lr, reading.weight_decay)

    def _agreed(self, observed: Effective, expected: ExpectedSteps) -> Effective:
        """What was seen, without a decay that is read too coarsely to be shown beside the right one."""
        decay, due = observed.weight_decay, expected.settings[0].weight_decay
        if decay is None or close(decay, due, 1e-3):
            return observed
        return replace(observed, weight_decay=0.0 if abs(decay) < FINEST_DECAY and not due else None)

    def _unmoved(self, rates: list[float], seen: Observation) -> tuple[Fault, ...]:
        if not self.rule.gradient:
            return ()
        if not seen.requires_grad:
            return (frozen(rates[0]),)
        return (Fault(FaultKind.LR, f"no step moves it; Caffe trains it at lr {number(rates[0])}"),)


def _among_others(rule: Rule, seen: Observation) -> str:
    """What makes a number move otherwise among others, where the rule lets none."""
    first, second, *later = seen.windows[0][0]  # of ``gradient at 0``
    if first and close(second, -first, 1e-3) and max(map(abs, later)) < 1e-3 * abs(first):
        return (
            "every second call of step() takes back what the one before did, as in SAM's two passes; Caffe has one pass"
        )
    if seen.scaled_by == "weights":
        return "each parameter's step is scaled by the norm of its weights, as LARS and LAMB do; Caffe scales none"
    if seen.scaled_by == "gradient" and rule.linear:
        return "a step is as long whatever the norm of the gradient; in Caffe it is not"
    return "what happens to one number depends on the others; in Caffe it does not"


def frozen(rate: float) -> Fault:
    """Of a parameter that its user froze."""
    return Fault(FaultKind.FROZEN, f"it is frozen, its requires_grad is False; Caffe trains it at lr {number(rate)}")


ASCENT = Fault(FaultKind.RULE, "the weights go up the gradient, as with maximize=True; Caffe's go down")
AUDIT_FIX = "write the right file with caffe2torch audit ... --fix optimizer.py"
ASCENT_FIX = "remove maximize=True"


def _unreadable() -> Fault:
    return Fault(FaultKind.UNOBSERVED, "lr and weight_decay cannot be read under an update rule that is not known")


# What is wrong with a parameter that does not move as Caffe's solver would move it, in sentences.


def diagnose(
    rule: Rule,
    solver: SolverSettings,
    all_expected: Sequence[ExpectedSteps],
    seen: Sequence[Movements],
    precision: float,
    known: list[CandidateRule],
) -> tuple[Effective, list[Fault], tuple[Rule, StepSettings] | None]:
    """The numbers that were seen in the first window, and every way in which the windows differ from Caffe's.

    ``known`` are candidate rules that were found out before, which are tried first; a new one is added. The third is
    the rule that explains the first window, where one does at Caffe's own course of the rate.
    """
    reading, momentum, faults = _recognise(rule, solver, all_expected[0], seen[0], precision, known)
    if not reading.explains:
        return Effective(None, None), [*faults, _unreadable()], None
    numbers = Effective(reading.lr, reading.weight_decay)
    lr = reading.rates[0]
    if not all_expected[0].window.moving and any(
        rate is not None and not close(rate, lr or 0.0) for rate in reading.rates
    ):
        faults.append(Fault(FaultKind.RULE, "its rate changes from step to step, though nothing schedules it"))
    faults += _numbers(solver, all_expected[0], numbers)
    kinds = {fault.kind for fault in faults}
    scale = _factor(all_expected[0], reading)
    finest = FINEST_RATE * max(abs(setting.rate * scale) for expected in all_expected for setting in expected.settings)
    own = _schedule(all_expected[0], reading, scale, finest)
    own += _later(reading, momentum, all_expected, seen, precision, scale, finest)
    for fault in own:
        if fault.kind not in kinds:
            kinds.add(fault.kind)
            faults.append(fault)
    if lr is None or not _steady(all_expected[0], reading):
        return numbers, faults, None
    at = StepSettings(lr, all_expected[0].momenta[0] if momentum is None else momentum, numbers.weight_decay or 0.0)
    return numbers, faults, (reading.rule, at)


def _recognise(
    rule: Rule,
    solver: SolverSettings,
    expected: ExpectedSteps,
    moved: Movements,
    precision: float,
    known: list[CandidateRule],
) -> tuple[Fit, float | None, list[Fault]]:
    """The rule that explains the first window, its momentum where that is not Caffe's, and what sets it apart."""
    window = expected.window
    own = read(rule, window, moved, expected.momenta, decay_ratios=expected.decay_ratios, precision=precision)
    if own.explains and _steady(expected, own):
        return own, None, []
    unsteady: list[tuple[Fit, float | None, list[Fault]]] = [(own, None, [])] if own.explains else []
    for candidate in chain(known, candidates(solver, window, moved)):
        tried = replace(candidate.rule, divisor=rule.divisor, gradient=True)
        steady = (candidate.momentum,) * window.steps
        reading = read(tried, window, moved, steady, decay_ratios=expected.decay_ratios, precision=precision)
        if not reading.explains:
            continue
        if not _steady(expected, reading):
            unsteady.append((reading, candidate.momentum, list(candidate.faults)))
            continue
        if candidate not in known:
            known.append(candidate)
        return reading, candidate.momentum, list(candidate.faults)
    if unsteady:
        return unsteady[0]
    said = f"it does not step as Caffe's {solver.type} does, nor as any rule that is known here"
    return own, None, [Fault(FaultKind.RULE, said)]


def _steady(expected: ExpectedSteps, reading: Fit) -> bool:
    """Whether the rates of a reading are Caffe's times one factor: a rule that needs others is the less likely one."""
    pairs = [
        (setting.rate, rate) for setting, rate in zip(expected.settings, reading.rates, strict=True) if rate is not None
    ]
    return all(close(rate * pairs[0][0], pairs[0][1] * due) for due, rate in pairs)


def _numbers(solver: SolverSettings, expected: ExpectedSteps, seen: Effective) -> list[Fault]:
    """Rate and decay of the first window against Caffe's."""
    faults = []
    wanted, lr = expected.settings[0].rate, seen.lr
    if lr is not None and not close(lr, wanted):
        said = f"lr is {number(lr)}, Caffe's is {number(wanted)}{_times(lr, wanted)}"
        faults.append(Fault(FaultKind.LR, said))
    decay, due, passes = seen.weight_decay, expected.settings[0].weight_decay, solver.iter_size
    if decay is None:
        if due:
            said = f"weight decay cannot be seen at lr {number(lr)}; Caffe's is {number(due)}"
            faults.append(Fault(FaultKind.UNOBSERVED, said))
    elif not close(decay, due):
        said = f"weight_decay is {number(decay)}, Caffe's is {number(due)}"
        divided = passes > 1 and close(decay * passes, due)
        said += f": it is divided by iter_size, which is {passes}" if divided else _times(decay, due)
        faults.append(Fault(FaultKind.WEIGHT_DECAY, said))
    return faults


def _factor(expected: ExpectedSteps, reading: Fit) -> float:
    """By how much a parameter's rate is off at the first step that shows one."""
    pairs = zip(expected.settings, reading.rates, strict=True)
    return next((lr / setting.rate for setting, lr in pairs if lr and setting.rate), 1.0)


def _later(
    first: Fit,
    momentum: float | None,
    all_expected: Sequence[ExpectedSteps],
    seen: Sequence[Movements],
    precision: float,
    scale: float,
    finest: float,
) -> list[Fault]:
    """The windows after the first: do the rates follow the policy, and does the history keep its rates?"""
    faults: dict[FaultKind, Fault] = {}
    start = all_expected[0]
    for expected, moved in zip(all_expected[1:], seen[1:], strict=True):
        if max((abs(x) for sequence in moved for x in sequence), default=0.0) < UNDERFLOW:
            rates = tuple(0.0 for _ in expected.settings)
            for fault in _schedule(expected, replace(first, rates=rates), scale, finest):
                faults.setdefault(FaultKind.SCHEDULE, fault)
            continue
        momenta = expected.momenta if momentum is None else (momentum,) * expected.window.steps
        due, before = expected.settings[0].weight_decay, start.settings[0].weight_decay
        decay = (first.weight_decay or 0.0) * (due / before if before else 1.0)
        reading = _follow(first.rule, expected, moved, momenta, decay, precision)
        if reading.explains and reading.rule != first.rule:
            faults.setdefault(FaultKind.RATE_CHANGE, rate_change(reading.rule))
        elif not reading.explains:
            at = expected.window.iteration
            said = f"from iteration {at} on it no longer steps as at iteration {start.window.iteration}"
            faults.setdefault(FaultKind.RATE_CHANGE, Fault(FaultKind.RATE_CHANGE, said))
        for fault in _schedule(expected, reading, scale, finest):
            faults.setdefault(FaultKind.SCHEDULE, fault)
    return list(faults.values())


def _follow(
    rule: Rule, expected: ExpectedSteps, moved: Movements, momenta: Sequence[float], decay: float, precision: float
) -> Fit:
    """The rule of the first window on a later one, else that rule with a history that treats rates otherwise."""

    def reading(history: History) -> Fit:
        same = replace(rule, history=history)
        return read(
            same,
            expected.window,
            moved,
            momenta,
            decay_ratios=expected.decay_ratios,
            weight_decay=decay,
            precision=precision,
        )

    first = reading(rule.history)
    if first.explains or not rule.linear:
        return first
    others = (reading(history) for history in History if history is not rule.history)
    return next((other for other in others if other.explains), first)


def _schedule(expected: ExpectedSteps, reading: Fit, scale: float, finest: float) -> list[Fault]:
    """The first iteration of a window whose rate is not the policy's times ``scale``, up to ``finest``."""
    for iteration, setting, lr in zip(expected.window.iterations, expected.settings, reading.rates, strict=True):
        off = TOLERANCE + iteration * FLOAT32  # exp multiplies gamma so often, which Caffe has in float32
        if lr is None or not expected.window.moving or abs(lr - setting.rate * scale) <= finest:
            continue
        if not close(lr, setting.rate * scale, off):
            said = f"at iteration {iteration} lr is {number(lr)}, Caffe's is {number(setting.rate)}"
            return [Fault(FaultKind.SCHEDULE, said, iteration, lr, setting.rate, scale)]
    return []


def _times(seen: float, wanted: float) -> str:
    """`` (2 times as much)``, where that is a number that somebody may have written."""
    if not wanted or not seen:
        return ""
    ratio = seen / wanted
    for times, text in ((ratio, f"{ratio:.4g} times as much"), (1 / ratio, f"{1 / ratio:.4g} times too small")):
        if 1.01 < times <= 1e4 and close(times, float(f"{times:.2g}"), 1e-4):
            return f" ({text})"
    return ""
