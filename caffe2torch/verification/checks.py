"""What was found of the run as a whole: one check for each question that does not concern one parameter alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from caffe2torch.recipe import Accumulation, SolverSettings, SolverType
from caffe2torch.solver.float32 import number, round32
from caffe2torch.solver.lr_policy import rate
from caffe2torch.solver.requirements import has_momentum
from caffe2torch.solver.update_rules import SOLVERS, Epsilon, History, Rule, StepSettings
from caffe2torch.verification.diagnose import ASCENT, ASCENT_FIX, AUDIT_FIX, Judgement
from caffe2torch.verification.fit import close, leaving
from caffe2torch.verification.probe_sequence import Movements, Observations, Window, changes
from caffe2torch.verification.rate_schedule import first_change, schedule_check
from caffe2torch.verification.report import (
    Check,
    Fault,
    FaultKind,
    Result,
)
from caffe2torch.verification.simulate import effect

__all__ = ["AccumulationReading", "notes_of", "run_checks"]


@dataclass(frozen=True, slots=True)
class AccumulationReading:
    """How the gradients of ``iter_size`` passes were taken to arrive, and how well that fits.

    Attributes:
        accumulation: The reading under which the rows were judged.
        fits: How many rows are right under each reading that was tried.
        rows: Of how many.
        stated: What the user says that the loop does.
        known: Whether the two readings could be distinguished.
        other: What the rows would be under the other reading, where the two could not be distinguished.
        group_scale: As ``Report.group_scale``.
    """

    accumulation: Accumulation = Accumulation.SUM
    fits: Mapping[Accumulation, int] | None = None
    rows: int = 0
    stated: Accumulation | None = None
    known: bool = True
    other: str = ""
    group_scale: tuple[float, float] = (1.0, 1.0)


def run_checks(
    solver: SolverSettings,
    judged: Mapping[str, Judgement],
    observations: Observations,
    reading: AccumulationReading,
    *,
    translating: bool,
) -> tuple[Check, ...]:
    """The checks that have a subject under this solver, from what was seen of each parameter that moves."""
    hooks = _hooks(observations)
    if observations.problem or not observations.windows:
        unseen = Check("update rule", Result.NOT_SEEN, _rule(solver), seen="the optimizer could not be observed")
        return (unseen, hooks) if hooks else (unseen,)
    found = [
        _update_rule(solver, judged, observations),
        schedule_check(solver, judged, observations),
        _momentum(solver, judged, observations),
        _accumulation(solver, observations, reading),
        _clipping(observations.collecting(solver), observations, reading.accumulation, translating=translating),
        hooks,
    ]
    return tuple(check for check in found if check is not None)


def _update_rule(solver: SolverSettings, judged: Mapping[str, Judgement], observations: Observations) -> Check:
    kinds = (FaultKind.RULE, FaultKind.MOMENTUM, FaultKind.EPSILON, FaultKind.REGULARIZATION)
    faults, concerned = _faults(judged, kinds)
    late = _in_the_long_run(solver, judged, observations)
    if late is not None:
        faults.append(late)
    if observations.by_weights:
        said = "large weights change how the numbers beside them move, as a bound on the weights' norm does"
        faults.append(Fault(FaultKind.RULE, f"{said}; in Caffe they do not"))
        concerned = concerned or observations.by_weights
    expected = _rule(solver)
    if not faults and not judged:
        return Check("update rule", Result.NOT_SEEN, expected, seen="no step moves anything")
    if not faults:
        return Check("update rule", Result.OK, expected, seen=expected + _not_long(observations))
    adams = solver.type is SolverType.ADAM and {fault.kind for fault in faults} <= {
        FaultKind.EPSILON,
        FaultKind.MOMENTUM,
    }
    port = _as_stock(solver, judged) if adams else None
    return Check(
        "update rule",
        Result.DIFFERS,
        expected,
        tuple(faults),
        effect=effect(solver, port) if port is not None else "",
        fix=ASCENT_FIX if faults == [ASCENT] else AUDIT_FIX,
        parameters=concerned,
    )


def _not_long(observations: Observations) -> str:
    """How many kinds of param groups the long window left out, if any."""
    looked_at, kinds = observations.kinds
    if looked_at == kinds:
        return ""
    return f"; beyond {observations.windows[0].steps} steps {looked_at} of {kinds} kinds of param groups were looked at"


def _as_stock(solver: SolverSettings, judged: Mapping[str, Judgement]) -> SolverSettings | None:
    """The solver of whose stock translation the port was seen to be, in momenta and epsilon; ``None`` if of none."""
    fitted = [one.fitted for one in judged.values() if one.fitted is not None]
    seen = {(rule.type, rule.epsilon, rule.dampening, round32(at.momentum)) for rule, at in fitted}
    numbers = {(round32(rule.momentum2), round32(rule.delta)) for rule, _ in fitted}
    place = Epsilon.CORRECTED if solver.type is SolverType.ADAM else Epsilon.CAFFE
    if len(seen) != 1 or len(numbers) != 1 or next(iter(seen))[:3] != (solver.type, place, 0.0):
        return None
    rule, at = fitted[0]
    if rule.linear and not close(at.momentum, solver.momentum):
        return None  # what lies between the changes is taken in one move of both, which one momentum makes
    return replace(solver, momentum=at.momentum, momentum2=rule.momentum2, delta=rule.delta)


def _in_the_long_run(
    solver: SolverSettings, judged: Mapping[str, Judgement], observations: Observations
) -> Fault | None:
    """Where a parameter leaves the rule that explains its first steps; one that schedules its own rate does not."""
    long = observations.long
    if long is None:
        return None
    found: list[tuple[int, str]] = []
    for seen in observations.parameters:
        fitted = judged[seen.parameter].fitted if seen.long and seen.elementwise and seen.parameter in judged else None
        if fitted is None:
            continue
        rule, setting = fitted
        leaves = leaving(rule, long, seen.long, [setting] * long.steps, observations.precision)
        if leaves and not _schedules_itself(solver, rule, setting, long, seen.long):
            what = "its weight decay is another one" if set(leaves) == {"decay"} else "it moves otherwise than before"
            found.append((min(leaves.values()), what))
    if not found:
        return None
    step, what = min(found)
    return Fault(FaultKind.RULE, f"from step {step + 1} on {what}")


def _schedules_itself(solver: SolverSettings, rule: Rule, setting: StepSettings, long: Window, seen: Movements) -> bool:
    """Whether the steps follow the policy without a scheduler."""
    rates = [rate(solver.policy, long.iteration + k) for k in range(long.steps)]
    if not rates[0] or len(set(rates)) == 1:
        return False
    settings = [replace(setting, rate=setting.rate * due / rates[0]) for due in rates]
    return any(not leaving(replace(rule, history=history), long, seen, settings) for history in History)


def _hooks(observations: Observations) -> Check | None:
    """The user's own code around a step, which is bound to what is trained and thus was not run."""
    steps, gradients = observations.hooks, observations.gradient_hooks
    if not steps and not gradients:
        return None
    names = ", ".join(gradients[:3]) + (f" and {len(gradients) - 3} more" if len(gradients) > 3 else "")
    found = [f"{steps} step hook{'s' * (steps > 1)} of the optimizer"] if steps else []
    found += [f"hooks on the gradients of {names}"] if gradients else []
    said = f"not run, since bound to what you train: {', '.join(found)}; do what they do inside step() to have it seen"
    return Check("hooks", Result.NOT_SEEN, "nothing changes a gradient before the step", seen=said)


def _rule(solver: SolverSettings) -> str:
    """``SGD, momentum 0.9, L2 decay``."""
    parts = [str(solver.type), *(f"{name} {getattr(solver, name):g}" for name in SOLVERS[solver.type].settings)]
    return ", ".join([*parts, f"{solver.regularization} decay"] if solver.weight_decay else parts)


def _momentum(solver: SolverSettings, judged: Mapping[str, Judgement], observations: Observations) -> Check | None:
    name, expected = "momentum at rate changes", "the history keeps the rates that it was made with"
    faults, concerned = _faults(judged, (FaultKind.RATE_CHANGE,))
    constant = first_change(solver, 0, changes(solver.policy, solver.max_iter)) is None
    if constant or (not faults and not has_momentum(solver)):
        return None  # nothing changes in Caffe: a scheduler that does change the rate is the schedule's fault
    if faults:
        forgets = all(History.RATE_OUTSIDE.value in fault.message for fault in faults)
        port = _as_stock(solver, judged) if forgets else None
        return Check(
            name,
            Result.DIFFERS,
            expected,
            tuple(faults),
            effect=effect(solver, port) if port is not None else "",
            fix=AUDIT_FIX,
            parameters=concerned,
        )
    if not any(judgement.change_seen for judgement in judged.values()):
        moving = observations.windows[0].moving or observations.metric
        why = "no change of the rate was seen" if moving else "no scheduler was given"
        return Check(name, Result.NOT_SEEN, expected, seen=why, fix="" if moving else "give the scheduler as well")
    if any(fault.kind in (FaultKind.RULE, FaultKind.MOMENTUM) for one in judged.values() for fault in one.run):
        return None  # another rule has another history; the update rule says so
    return Check(name, Result.OK, expected, seen=expected)


def _accumulation(solver: SolverSettings, observations: Observations, reading: AccumulationReading) -> Check | None:
    passes, calls = solver.iter_size, observations.calls
    if passes == calls == 1:
        return None
    expected = f"the gradients of {passes} passes are summed, and the step divides" if passes > 1 else "a step a pass"
    if calls not in (1, passes):
        message = f"step() moves parameters once in {calls} calls, Caffe's iter_size is {passes}"
        fix = f"collect {passes} passes" if passes > 1 else "let each call of step() move them"
        fix += f", or state iter_size: {calls} in the solver, if that is what you train with"
        return Check("accumulation", Result.DIFFERS, expected, (Fault(FaultKind.ITER_SIZE, message),), fix=fix)
    who = "the step" if calls == 1 else f"step() moves parameters once in {calls} calls, and"
    divides = f"{who} divides by iter_size" if reading.group_scale[0] == 1 else "the groups' lr is Caffe's / iter_size"
    sums = f"{divides}: your loop has to sum the gradients of {passes} passes"
    averages = f"{who} does not divide by iter_size: your loop has to average over {passes} passes"
    if calls > 1:
        sums = f"{divides}: your loop has to call it after each pass"
        averages = f"{who} does not divide by iter_size: your loop has to divide each loss by {passes}"
    said = sums if reading.accumulation is Accumulation.SUM else averages
    if reading.stated is not None and reading.stated is not reading.accumulation:
        message = f"{said}, and you say that it does {'sum' if reading.stated is Accumulation.SUM else 'average'}"
        fix = f"let it {'sum' if reading.accumulation is Accumulation.SUM else 'average'}, or {AUDIT_FIX}"
        return Check("accumulation", Result.DIFFERS, expected, (Fault(FaultKind.ITER_SIZE, message),), fix=fix)
    if not reading.known:
        seen = (
            f"it was not seen whether the step expects the sum or the mean of {passes} passes; the rows are read as "
            f"the {reading.accumulation}{reading.other}"
        )
        return Check("accumulation", Result.NOT_SEEN, expected, seen=seen, fix="say it: --accumulation sum or mean")
    if calls > 1 and reading.accumulation is Accumulation.MEAN and reading.stated is None:
        fix = f"divide by {passes} in step(); or divide each loss, and say so: --accumulation mean"
        return Check("accumulation", Result.DIFFERS, expected, (Fault(FaultKind.ITER_SIZE, said),), fix=fix)
    if reading.fits:
        other = Accumulation.MEAN if reading.accumulation is Accumulation.SUM else Accumulation.SUM
        why = "as you say" if reading.stated else f"read as the {reading.accumulation}"
        said += (
            f" ({why}, {reading.fits[reading.accumulation]} of {reading.rows} rows fit; "
            f"as the {other} {reading.fits[other]})"
        )
    return Check("accumulation", Result.OK, expected, seen=said)


def _clipping(
    solver: SolverSettings, observations: Observations, accumulation: Accumulation, *, translating: bool
) -> Check | None:
    clip, seen = solver.clip_gradients, observations.clip
    what = f"the optimizer clips {_clipped(observations)}"
    if not clip:
        clips = observations.clips and not observations.by_weights
        if clip is not None or not (clips or seen or observations.value_clip):
            return None
        fault = Fault(FaultKind.CLIP, f"{what}, the solver does not")
        return Check("clipping", Result.DIFFERS, "no clipping", (fault,), fix="let the step not clip")
    wanted = clip if accumulation is Accumulation.SUM else clip / max(solver.iter_size, 1)
    expected = f"the norm of all gradients is at most {wanted:g}"
    if accumulation is Accumulation.MEAN and solver.iter_size > 1:
        expected += f" (clip_gradients {clip:g} / iter_size {solver.iter_size}, as the gradients are averaged)"
    if seen is None and not observations.value_clip:
        return Check("clipping", Result.NOT_SEEN, expected, seen="no gradient moves anything")
    right = not observations.clip_scope and close(seen or 0.0, wanted, 1e-3)
    if right and observations.clips_decay:
        message = f"{what}, and the weight decay with them; Caffe adds the decay after it clips"
        fix = "clip the gradients first, then add the decay, as torch's own weight_decay does inside step()"
        return Check("clipping", Result.DIFFERS, expected, (Fault(FaultKind.CLIP, message),), fix=fix)
    if right:
        return Check("clipping", Result.OK, expected, seen=f"inside the step, at a norm of {wanted:g}")
    if seen == math.inf and not observations.value_clip and not translating:
        said = f"the step does not clip: your loop has to, at a norm of {wanted:g} over all gradients"
        return Check("clipping", Result.NOT_SEEN, expected, seen=said)
    caffes = f"Caffe's {clip:g} on the sum of {solver.iter_size} is {wanted:g} on an average"
    if wanted == clip:
        caffes = f"Caffe's clip_gradients is {wanted:g}"
    over = ", over all gradients" if observations.value_clip or observations.clip_scope else ""
    decay = ", and the weight decay with them" if observations.clips_decay else ""
    message = f"{what}{decay}; {caffes}{over}"
    return Check("clipping", Result.DIFFERS, expected, (Fault(FaultKind.CLIP, message),), fix=AUDIT_FIX)


def _clipped(observations: Observations) -> str:
    """What an optimizer clips, and at what bound where that is known."""
    scope, bound = observations.clip_scope, observations.clip
    if observations.value_clip:
        return f"each number of a gradient at {observations.value_clip:.4g}"
    if scope == "unknown":
        return "gradients, by other norms than that of all"
    if bound is None:
        return "gradients by their norm"
    norm = "no norm" if bound == math.inf else f"a norm of {number(float(f'{bound:.3g}'))}"
    return f"{scope or 'gradients'} at {norm}"


def _faults(judged: Mapping[str, Judgement], kinds: Sequence[FaultKind]) -> tuple[list[Fault], tuple[str, ...]]:
    """One fault of each kind and message, and the parameters that have one where not all do."""
    found = {name: [fault for fault in one.run if fault.kind in kinds] for name, one in judged.items()}
    concerned = tuple(name for name, faults in found.items() if faults)
    distinct = dict.fromkeys((fault.kind, fault.message) for faults in found.values() for fault in faults)
    return [Fault(kind, message) for kind, message in distinct], concerned if len(concerned) < len(found) else ()


def notes_of(observations: Observations) -> Iterator[str]:
    """What happened while the optimizer was observed that its user should know."""
    yield from observations.said
    if observations.calls > 1 and observations.windows and observations.windows[0].moving:
        yield (
            f"step() moves parameters once in {observations.calls} calls, which are one iteration of Caffe's: the "
            f"scheduler was stepped, and has to be, after each {observations.calls} of them"
        )
    if observations.touched:
        names = ", ".join(observations.touched[:3]) + (", ..." if len(observations.touched) > 3 else "")
        back = "they are as before again" if observations.restored else "they could NOT be put back"
        count = len(observations.touched)
        yield f"a step of the optimizer's copy changed {count} tensors of the real model ({names}); {back}"
