"""What is wrong with a parameter that does not move as Caffe's solver would move it, in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

from caffe2torch.recipe import SolverSettings
from caffe2torch.solver.float32 import format32
from caffe2torch.solver.update_rules import History, Rule
from caffe2torch.verification.candidate_rules import Suspect, rate_change, suspects
from caffe2torch.verification.course import Course
from caffe2torch.verification.fault import Fault, FaultKind
from caffe2torch.verification.fit import Reading, close, read
from caffe2torch.verification.observation import Movements
from caffe2torch.verification.report import Effective

__all__ = ["blame", "number"]


def blame(
    rule: Rule,
    solver: SolverSettings,
    courses: Sequence[Course],
    seen: Sequence[Movements],
    precision: float,
    known: list[Suspect],
) -> tuple[Effective, list[Fault]]:
    """The numbers that were seen in the first window, and every way in which the windows differ from Caffe's.

    ``known`` are suspects that were found out before, which are tried first; a new one is added.
    """
    reading, momentum, faults = _recognise(rule, solver, courses[0], seen[0], precision, known)
    faults += _numbers(solver, courses[0], reading)
    if reading.explains:
        kinds = {fault.kind for fault in faults}
        faults += [fault for fault in _later(reading, momentum, courses, seen, precision) if fault.kind not in kinds]
    if not faults:
        said = f"it does not quite step as Caffe's {solver.type} does, though rate and decay are the same"
        faults.append(Fault(FaultKind.RULE, said))
    return Effective(reading.lr, reading.weight_decay), faults


def _recognise(
    rule: Rule,
    solver: SolverSettings,
    course: Course,
    moved: Movements,
    precision: float,
    known: list[Suspect],
) -> tuple[Reading, float | None, list[Fault]]:
    """The rule that explains the first window, its momentum where that is not Caffe's, and what sets it apart."""
    window = course.window
    own = read(rule, window, moved, course.momenta, fading=course.fading, precision=precision)
    if own.explains and _steady(course, own):
        return own, None, []
    unsteady: list[tuple[Reading, float | None, list[Fault]]] = [(own, None, [])] if own.explains else []
    for suspect in chain(known, suspects(solver, window, moved)):
        suspected = replace(suspect.rule, divisor=rule.divisor, gradient=True)
        steady = (suspect.momentum,) * window.steps
        reading = read(suspected, window, moved, steady, fading=course.fading, precision=precision)
        if not reading.explains:
            continue
        if not _steady(course, reading):
            unsteady.append((reading, suspect.momentum, list(suspect.faults)))
            continue
        if suspect not in known:
            known.append(suspect)
        return reading, suspect.momentum, list(suspect.faults)
    if unsteady:
        return unsteady[0]
    said = f"it does not step as Caffe's {solver.type} does, nor as any rule that is known here"
    return own, None, [Fault(FaultKind.RULE, said)]


def _steady(course: Course, reading: Reading) -> bool:
    """Whether the rates of a reading are Caffe's times one factor: a rule that needs others is the less likely one."""
    pairs = [(pace.rate, rate) for pace, rate in zip(course.paces, reading.rates, strict=True) if rate is not None]
    return all(close(rate * pairs[0][0], pairs[0][1] * due) for due, rate in pairs)


def _numbers(solver: SolverSettings, course: Course, reading: Reading) -> list[Fault]:
    """Rate and decay of the first window against Caffe's."""
    faults = []
    wanted, lr = course.paces[0].rate, reading.rates[0]
    if lr is not None and close(lr, -wanted) and lr:
        return [Fault(FaultKind.RULE, "it goes up the gradient, as with maximize=True; Caffe goes down")]
    if lr is not None and not close(lr, wanted):
        said = f"lr is {number(lr)}, Caffe's is {number(wanted)}{_times(lr, wanted)}"
        faults.append(Fault(FaultKind.LR, said))
    elif reading.explains:
        faults += _schedule(course, reading, 1.0)
    decay, due, passes = reading.weight_decay, course.paces[0].weight_decay, solver.iter_size
    if decay is None:
        if reading.explains and due:
            said = f"weight decay cannot be seen at lr {number(reading.lr)}; Caffe's is {number(due)}"
            faults.append(Fault(FaultKind.UNOBSERVED, said))
    elif not close(decay, due):
        said = f"weight_decay is {number(decay)}, Caffe's is {number(due)}"
        if passes > 1 and close(decay * passes, due):
            faults.append(Fault(FaultKind.ITER_SIZE, f"{said}: it is divided by iter_size, which is {passes}"))
        else:
            faults.append(Fault(FaultKind.WEIGHT_DECAY, said + _times(decay, due)))
    return faults


def _later(
    first: Reading, momentum: float | None, courses: Sequence[Course], seen: Sequence[Movements], precision: float
) -> list[Fault]:
    """The windows after the first: do the rates follow the policy, and does the history keep its rates?"""
    faults: dict[FaultKind, Fault] = {}
    start = courses[0]
    scale = (first.rates[0] or 0.0) / start.paces[0].rate if start.paces[0].rate else 1.0
    for course, moved in zip(courses[1:], seen[1:], strict=True):
        momenta = course.momenta if momentum is None else (momentum,) * course.window.steps
        due, before = course.paces[0].weight_decay, start.paces[0].weight_decay
        decay = (first.weight_decay or 0.0) * (due / before if before else 1.0)
        reading = _follow(first.rule, course, moved, momenta, decay, precision)
        if reading.explains and reading.rule != first.rule:
            faults.setdefault(FaultKind.RATE_CHANGE, rate_change(reading.rule))
        elif not reading.explains:
            at = course.window.iteration
            said = f"from iteration {at} on it no longer steps as at iteration {start.window.iteration}"
            faults.setdefault(FaultKind.RATE_CHANGE, Fault(FaultKind.RATE_CHANGE, said))
        for fault in _schedule(course, reading, scale):
            faults.setdefault(FaultKind.SCHEDULE, fault)
    return list(faults.values())


def _follow(
    rule: Rule, course: Course, moved: Movements, momenta: Sequence[float], decay: float, precision: float
) -> Reading:
    """The rule of the first window on a later one, else that rule with a history that treats rates otherwise."""

    def reading(history: History) -> Reading:
        same = replace(rule, history=history)
        return read(same, course.window, moved, momenta, fading=course.fading, weight_decay=decay, precision=precision)

    first = reading(rule.history)
    if first.explains or not rule.linear:
        return first
    others = (reading(history) for history in History if history is not rule.history)
    return next((other for other in others if other.explains), first)


def _schedule(course: Course, reading: Reading, scale: float) -> list[Fault]:
    """The first iteration of a window whose rate is not the policy's times ``scale``."""
    for iteration, pace, lr in zip(course.window.iterations, course.paces, reading.rates, strict=True):
        wanted = pace.rate * scale
        if lr is not None and not close(lr, wanted):
            said = f"at iteration {iteration} lr is {number(lr)}, Caffe's is {number(wanted)}{_times(lr, wanted)}"
            return [Fault(FaultKind.SCHEDULE, said, iteration, lr, wanted)]
    return []


def number(x: float | None) -> str:
    """A measured number as a person reads it: at most six digits where that is the same float32.

    >>> number(0.10000000149011612), number(1 / 3), number(None)
    ('0.1', '0.333333', 'unknown')
    """
    if x is None:
        return "unknown"
    short = f"{x:.6g}"
    return short if close(float(short), x) else format32(x)


def _times(seen: float, wanted: float) -> str:
    """`` (2 times as much)``, where that is a number that somebody may have written."""
    if not wanted or not seen:
        return ""
    ratio = seen / wanted
    for times, text in ((ratio, f"{ratio:.4g} times as much"), (1 / ratio, f"{1 / ratio:.4g} times too small")):
        if 1.01 < times <= 1e4 and close(times, float(f"{times:.2g}"), 1e-4):
            return f" ({text})"
    return ""
