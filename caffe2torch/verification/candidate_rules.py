"""What an optimizer may be doing instead of Caffe's rule: the usual departures, each with its name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product

from caffe2torch.recipe import Regularization, SolverSettings, SolverType
from caffe2torch.solver.float32 import format32, round32
from caffe2torch.solver.update_rules import SOLVERS, Decay, Epsilon, History, Rule
from caffe2torch.verification.fit import close
from caffe2torch.verification.probe_sequence import Movements, Window
from caffe2torch.verification.report import Fault, FaultKind

__all__ = ["CandidateRule", "caffe_rule", "candidates", "rate_change"]


@dataclass(frozen=True, slots=True)
class CandidateRule:
    """A rule that is not Caffe's for this solver, the momentum it runs at, and what sets it apart."""

    rule: Rule
    momentum: float
    faults: tuple[Fault, ...]


def caffe_rule(solver: SolverSettings) -> Rule:
    """The rule that Caffe applies under these settings, whose numbers are float32."""
    return Rule(
        solver.type,
        momentum2=round32(solver.momentum2),
        delta=round32(solver.delta),
        rms_decay=round32(solver.rms_decay),
        decay=Decay.L1 if solver.regularization is Regularization.L1 else Decay.L2,
        divisor=float(solver.iter_size),
        gradient=solver.clip_gradients != 0,
    )


def candidates(solver: SolverSettings, window: Window, seen: Movements) -> Iterator[CandidateRule]:
    """Departures from Caffe's rule, the smallest first.

    ``window`` and ``seen`` are what the fitted ones (momentum, dampening) are read from.
    """
    expected = replace(caffe_rule(solver), momentum2=solver.momentum2, delta=solver.delta, rms_decay=solver.rms_decay)
    yield CandidateRule(expected, solver.momentum, ())  # the same numbers in double precision are no departure
    own = _linear(expected, solver.momentum, window, seen) if expected.linear else _adaptive(expected, solver.momentum)
    for rule, momentum in (*own, *_others(expected, window, seen)):
        for decay in dict.fromkeys((expected.decay, Decay.L2, Decay.L1, Decay.DECOUPLED)):
            found = replace(rule, decay=decay)
            if (found, momentum) != (expected, solver.momentum):
                yield CandidateRule(found, momentum, tuple(_faults(solver, expected, found, momentum)))
    row = SOLVERS[expected.type]
    if "momentum" in row.settings and not row.linear:  # any other momentum, as people write it
        for percent, place, decay in product(range(1, 100), row.epsilons, (expected.decay, Decay.DECOUPLED)):
            found = replace(expected, epsilon=place, decay=decay)
            yield CandidateRule(found, percent / 100, tuple(_faults(solver, expected, found, percent / 100)))


def _linear(expected: Rule, momentum: float, window: Window, seen: Movements) -> Iterator[tuple[Rule, float]]:
    """SGD and Nesterov, with the momentum that a single gradient leaves behind."""
    sequences = {sequence.name: moved for sequence, moved in zip(window.sequences, seen, strict=True)}
    first, after, later = sequences["gradient at 0"][:3]
    second, third = sequences["gradient at 1"][1], sequences["gradient at 2"][2]
    fitted = later / after if after else 0.0
    at_one_rate = fitted * second / third if third else fitted  # what torch's history shows, without the rate's change
    # At a constant ratio of rates both explain all: then the rounder one, and of equals torch's, is what was written.
    pairs = zip(_written(at_one_rate), _written(fitted), strict=True)
    momenta = dict.fromkeys((momentum, *chain.from_iterable(pairs)))
    dampening = 1.0 - second / first if first else 0.0
    other = SolverType.NESTEROV if expected.type is SolverType.SGD else SolverType.SGD
    for value, kind in product(momenta, (expected.type, other)):
        rule = replace(expected, type=kind)
        for history in History:
            yield replace(rule, history=history), value
        for damped in _written(dampening):
            yield replace(rule, history=History.RATE_OUTSIDE, dampening=damped), value


def _written(fitted: float) -> tuple[float, ...]:
    """A fitted number, after those that somebody may have written: a rate that changes blurs it a little."""
    return (*(round(fitted, digits) for digits in (2, 3, 4)), fitted)


def _others(expected: Rule, window: Window, seen: Movements) -> Iterator[tuple[Rule, float]]:
    """The rules of other solvers, with torch's defaults."""
    if not expected.linear:
        yield from _linear(replace(expected, type=SolverType.SGD), 0.9, window, seen)
    for kind, row in SOLVERS.items():
        if kind is not expected.type and not row.linear:
            momentum = 0.9 if "momentum" in row.settings else 0.0
            delta, epsilon = row.stock_eps
            yield replace(expected, type=kind, delta=delta, epsilon=epsilon, momentum2=0.999, rms_decay=0.99), momentum


def _adaptive(expected: Rule, momentum: float) -> Iterator[tuple[Rule, float]]:
    """An adaptive rule at the settings that people write and that torch has as defaults."""
    deltas = dict.fromkeys((expected.delta, 1e-8, 1e-10, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0))
    row = SOLVERS[expected.type]
    momenta: Sequence[float] = (momentum,)
    if "momentum" in row.settings:
        momenta = tuple(dict.fromkeys((momentum, 0.9, 0.95, 0.99, 0.5, 0.0)))
    seconds: Sequence[float] = (expected.momentum2,)
    if "momentum2" in row.settings:
        seconds = tuple(dict.fromkeys((expected.momentum2, 0.999, 0.99, 0.95, 0.9)))
    memories: Sequence[float] = (expected.rms_decay,)
    if "rms_decay" in row.settings:
        memories = tuple(dict.fromkeys((expected.rms_decay, 0.99, 0.9, 0.95, 0.98, 0.999)))
    for value, second, memory in product(momenta, seconds, memories):
        for delta, place in product(deltas, row.epsilons):
            yield replace(expected, momentum2=second, rms_decay=memory, delta=delta, epsilon=place), value


def _faults(solver: SolverSettings, expected: Rule, found: Rule, momentum: float) -> Iterator[Fault]:
    """What sets a rule apart from Caffe's, one sentence each."""
    if found.type is not expected.type:
        yield Fault(FaultKind.RULE, f"it steps as {found.type}, the solver is {expected.type}")
        if expected.linear and found.linear and found.history is not expected.history and not found.dampening:
            yield rate_change(found)
        return
    if not close(momentum, solver.momentum):
        name = SOLVERS[found.type].momentum
        said = f"{name} is {format32(momentum)}" if momentum else f"there is no {name}"
        yield Fault(FaultKind.MOMENTUM, f"{said}, Caffe's momentum is {format32(solver.momentum)}")
    for ours, theirs, value, wanted in (
        ("beta 2", "momentum2", found.momentum2, expected.momentum2),
        ("alpha", "rms_decay", found.rms_decay, expected.rms_decay),
    ):
        if value != wanted:
            yield Fault(FaultKind.MOMENTUM, f"{ours} is {format32(value)}, Caffe's {theirs} is {format32(wanted)}")
    if found.dampening:
        said = f"gradients enter the momentum dampened by {format32(found.dampening)}, in Caffe they enter whole"
        yield Fault(FaultKind.MOMENTUM, said)
    elif found.history is not expected.history:
        yield rate_change(found)
    if found.delta != expected.delta:
        said = f"epsilon is {format32(found.delta)}, Caffe's delta is {format32(expected.delta)}"
        yield Fault(FaultKind.EPSILON, said)
    if found.epsilon is not expected.epsilon:
        place = "to the uncorrected root" if Epsilon.CORRECTED in SOLVERS[expected.type].epsilons else "to the root"
        yield Fault(FaultKind.EPSILON, f"epsilon is added {found.epsilon.value}, Caffe adds delta {place}")
    if found.decay is not expected.decay:
        how = "shrinks the weight by itself" if found.decay is Decay.DECOUPLED else f"is {found.decay}"
        said = f"weight decay {how}, Caffe's is {expected.decay} and joins the gradient"
        yield Fault(FaultKind.REGULARIZATION, said)


def rate_change(found: Rule) -> Fault:
    """What is wrong with a history at a change of the rate."""
    said = f"when the rate changes the momentum {found.history.value}; Caffe's {History.RATE_INSIDE.value}"
    return Fault(FaultKind.RATE_CHANGE, said)
