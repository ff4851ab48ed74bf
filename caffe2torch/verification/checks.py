"""What was found of the run as a whole: one check for each question that does not concern one parameter alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from caffe2torch.recipe import Accumulation, PolicyType, SolverSettings, SolverType
from caffe2torch.solver.float32 import round32
from caffe2torch.solver.lr_policy import rate, torch_scheduler
from caffe2torch.solver.requirements import has_momentum, ramps
from caffe2torch.solver.update_rules import SOLVERS, Epsilon, History, Rule, StepSettings
from caffe2torch.verification.diagnose import ASCENT, ASCENT_FIX, Judgement, number
from caffe2torch.verification.fit import close, leaving
from caffe2torch.verification.probe_sequence import Followed, Movements, Observations, SettingChange, Window, changes
from caffe2torch.verification.report import (
    Check,
    Fault,
    FaultKind,
    RateCurve,
    Report,
    ReportRow,
    Result,
    UnclaimedRow,
    Verdict,
)
from caffe2torch.verification.simulate import effect

__all__ = ["AccumulationReading", "along_the_run", "at_another_rate", "notes_of", "run_checks"]

Row = TypeVar("Row", ReportRow, UnclaimedRow)

AUDIT_FIX = "write the right file with caffe2torch audit ... --fix optimizer.py"


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
        _schedule(solver, judged, observations),
        _momentum(solver, judged, observations),
        _accumulation(solver, reading),
        _clipping(solver, observations, reading.accumulation, translating=translating),
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
    if not faults:
        return Check("update rule", Result.OK, expected, seen=expected)
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


def _schedule(solver: SolverSettings, judged: Mapping[str, Judgement], observations: Observations) -> Check | None:
    start, moving = observations.windows[0].iteration, observations.windows[0].moving
    caffes = [i for i in changes(solver.policy, solver.max_iter) if i > start]
    first = _first_change(solver, start, caffes)
    if observations.metric:
        said = f"the rate follows what {observations.metric} is given; it was not followed beyond iteration {start}"
        if solver.policy.type is PolicyType.PLATEAU:
            return Check("rate schedule", Result.NOT_SEEN, "the rate follows the test's loss", seen=said)
        policy = "the rate is constant" if first is None else f"{solver.policy.type}, changes at iteration {first}"
        fault = Fault(FaultKind.SCHEDULE, f"{said}; Caffe's follows the iteration alone")
        return Check("rate schedule", Result.DIFFERS, policy, (fault,), fix=AUDIT_FIX)
    if first is None and (not moving or observations.first_change is None):
        return None
    policy = "the rate is constant" if first is None else f"{solver.policy.type}, changes at iteration {first}"
    if not moving:
        seen = f"no scheduler was given: only the rate of iteration {observations.windows[0].iteration} was looked at"
        return Check("rate schedule", Result.NOT_SEEN, policy, seen=seen, fix="give the scheduler as well")
    late = {name: fault for name, one in judged.items() for fault in one.run if fault.kind is FaultKind.SCHEDULE}
    broken = [(window, why) for window, why in observations.unreached if ": " in why]
    ours = observations.first_change
    if broken:
        window, why = broken[0]
        message = f"at iteration {window.iteration} it raises {why}"
    elif first is None:
        message = f"the scheduler changes the rate at iteration {ours}, Caffe never does"
    elif late:
        message = _late(late, first, observations, solver)
    elif ours is not None and ours < first:
        message = _too_early(ours, first, observations.first_factor, solver)
    else:
        unseen = [str(window.iteration) for window, _ in observations.unreached]
        reached = [i for i in caffes[:3] or [first] if str(i - 2) not in unseen]
        where = ", ".join(map(str, reached))
        if caffes and len(unseen) >= len(caffes):
            return Check(
                "rate schedule", Result.NOT_SEEN, policy, seen=f"iteration {', '.join(unseen)} is out of reach"
            )
        return Check("rate schedule", Result.OK, policy, seen=f"as Caffe's where it was looked at ({where})")
    concerned = tuple(late) if late and len(late) < len(judged) else ()
    return Check(
        "rate schedule",
        Result.DIFFERS,
        policy,
        (Fault(FaultKind.SCHEDULE, message),),
        fix=_schedule_fix(solver),
        parameters=concerned,
    )


def _schedule_fix(solver: SolverSettings) -> str:
    if _first_change(solver, 0, changes(solver.policy, solver.max_iter)) is None:
        return "give no scheduler: Caffe's rate is constant"
    if not (code := torch_scheduler(solver.policy)):
        return AUDIT_FIX
    return f"scheduler = torch.optim.lr_scheduler.{code}, and scheduler.step() after each optimizer.step()"


def along_the_run(checks: Sequence[Check], solver: SolverSettings, followed: Followed) -> tuple[Check, ...]:
    """The checks with what the whole run shows of a scheduler.

    A curve is Caffe's where it is the same multiple of it everywhere; which multiple is a matter of the rows. What the
    scheduler changes besides the rate is a difference of the update rule.
    """
    rule = next((check for check in checks if check.name == "update rule"), None)
    schedule = next((check for check in checks if check.name == "rate schedule"), None)
    others = [check for check in checks if check not in (rule, schedule)]
    if rule is not None and followed.changed and not ramps(solver):
        rule = _with_changes(rule, followed.changed)
    if followed.curves and solver.policy.type is not PolicyType.PLATEAU:  # which follows the test's loss
        schedule = _whole_schedule(schedule, solver, followed.curves)
    return (*([rule] if rule else []), *([schedule] if schedule else []), *others)


def _with_changes(rule: Check, changed: Sequence[SettingChange]) -> Check:
    faults = [
        Fault(
            FaultKind.WEIGHT_DECAY if one.name == "weight_decay" else FaultKind.MOMENTUM,
            f"by iteration {one.iteration} the scheduler has changed {one.name} of group {one.group} from {one.before} "
            f"to {one.after}; Caffe leaves it as it is",
        )
        for one in changed
    ]
    return replace(rule, result=Result.DIFFERS, seen="", faults=(*rule.faults, *faults), fix=rule.fix or AUDIT_FIX)


def _whole_schedule(schedule: Check | None, solver: SolverSettings, curves: Sequence[RateCurve]) -> Check | None:
    if schedule is not None and schedule.result is Result.DIFFERS:
        return schedule
    constant = _first_change(solver, 0, changes(solver.policy, solver.max_iter)) is None
    policy = "the rate is constant" if constant else f"{solver.policy.type}"
    if (left := next((why for curve in curves if (why := _leaves(solver, curve)) is not None), None)) is not None:
        fault = Fault(FaultKind.SCHEDULE, left)
        return Check("rate schedule", Result.DIFFERS, policy, (fault,), fix=_schedule_fix(solver))
    last, ends = curves[0].points[-1][0], solver.max_iter - 1
    if last >= ends > 0 or (last == curves[0].points[0][0] and schedule is not None):
        return schedule
    seen = f"as Caffe's up to iteration {last}, not looked at beyond" + (
        f": max_iter is {ends + 1}" if ends > 0 else ""
    )
    found = schedule or Check("rate schedule", Result.OK, policy)
    changes_later = ends > 0 and rate(solver.policy, last) != rate(solver.policy, ends)
    return replace(found, result=Result.NOT_SEEN if changes_later else found.result, seen=seen)


def _leaves(solver: SolverSettings, curve: RateCurve) -> str | None:
    """Where a curve leaves Caffe's, in a sentence; ``None`` where it does not."""
    # Of several changes at one iteration Caffe makes one an iteration; a scheduler that is set there makes all.
    twice = {step + more for step, many in Counter(solver.policy.stepvalues).items() for more in range(many - 1)}
    pairs = [(i, own, rate(solver.policy, i)) for i, own in curve.points if i not in twice]
    largest = max((abs(due) for _, _, due in pairs), default=0.0)
    multiple = next((own / due for _, own, due in pairs if abs(due) > 1e-6 * largest), 0.0)
    tolerance = 0.05 if solver.policy.type is PolicyType.EXP else 1e-3  # Caffe's gamma is a float32 to a high power
    for iteration, own, due in pairs:
        if abs(own - multiple * due) > tolerance * abs(multiple) * max(abs(due), 1e-3 * largest):
            times = own / pairs[0][1] if pairs[0][1] else math.inf
            caffes = due / pairs[0][2] if pairs[0][2] else math.inf
            began = f"the rate of iteration {pairs[0][0]}"
            return f"at iteration {iteration} the rate is {number(times)} times {began}, Caffe's {number(caffes)} times"
    return None


def at_another_rate(report: Report, initial: Sequence[float | None]) -> Report:
    """The report where rows that a scheduler alone put at another rate are right, and the schedule is not.

    Such rows all have the same multiple of Caffe's rate, and groups whose ``initial_lr`` is Caffe's.
    """
    rows = [row for row in report.all_rows if row.expected.lr and row.observed.lr is not None and len(row.groups) == 1]
    multiples = {float(f"{(row.observed.lr or 0) / (row.expected.lr or 1):.4g}") for row in rows}
    begun = rate(report.solver.policy, report.iteration) / (rate(report.solver.policy, 0) or math.inf)
    base = [(initial[row.groups[0]], row.expected.lr) for row in rows]
    if len(multiples) != 1 or multiples == {1.0} or not begun:
        return report
    if any(own is None or not close(own * begun, due) for own, due in base if due is not None):
        return report
    (multiple,) = multiples
    message = f"at iteration {report.iteration} the scheduler makes every lr {number(multiple)} times Caffe's"
    checks = [check for check in report.checks if check.name != "rate schedule"]
    before = next((check for check in report.checks if check.name == "rate schedule"), None)
    faults = (Fault(FaultKind.SCHEDULE, message), *(before.faults if before else ()))
    policy = before.expected if before else f"{report.solver.policy.type}"
    found = Check("rate schedule", Result.DIFFERS, policy, faults, fix=_schedule_fix(report.solver))
    return replace(
        report,
        rows=tuple(map(_without_rate, report.rows)),
        unclaimed=tuple(map(_without_rate, report.unclaimed)),
        checks=(*checks[:1], found, *checks[1:]),
    )


def _without_rate(row: Row) -> Row:
    left = tuple(fault for fault in row.faults if fault.kind is not FaultKind.LR)
    alone = row.verdict is Verdict.MISMATCH and not left
    return replace(row, faults=left, verdict=Verdict.OK if alone else row.verdict)


def _first_change(solver: SolverSettings, start: int, caffes: Sequence[int]) -> int | None:
    """The first iteration after ``start`` at which Caffe's rate is another one."""
    near = (i for i in range(start + 1, start + 50) if rate(solver.policy, i) != rate(solver.policy, i - 1))
    return next(near, next(iter(caffes), None))


def _late(late: Mapping[str, Fault], caffes: int, observations: Observations, solver: SolverSettings) -> str:
    """Where the rates do not follow the policy, in Caffe's own numbers and the port's own."""
    first = min(fault.iteration or 0 for fault in late.values())
    at = [fault for fault in late.values() if fault.iteration == first]
    seen, due = {fault.seen for fault in at}, {fault.due for fault in at}
    ours = observations.first_change
    if len(seen) == 1 < len(due) and seen != {0.0}:
        return f"at iteration {first} the scheduler makes every lr {number(seen.pop())}, whatever its multiplier"
    if ours is not None and ours < caffes:
        return _too_early(ours, caffes, observations.first_factor, solver)
    if ours is None and observations.followed >= caffes:
        return f"the scheduler leaves the rate as it is; Caffe's first changes at iteration {caffes}"
    if ours is not None and caffes < ours and first <= ours:
        return f"the scheduler first changes the rate at iteration {ours}, Caffe's first changes at {caffes}"
    right = [fault for fault in at if close(fault.factor, 1.0)]
    if right:
        return right[0].message
    fault = at[0]
    return (
        f"at iteration {first} lr is {number(fault.seen)} where Caffe's is {number(fault.due)}, and it began at "
        f"{number(fault.factor)} times Caffe's"
    )


def _too_early(ours: int, caffes: int, factor: float | None, solver: SolverSettings) -> str:
    message = f"the scheduler first changes the rate at iteration {ours}, Caffe's first at iteration {caffes}"
    if factor is None or not close(factor, solver.policy.gamma):
        return message + ("" if factor is None else f"; it makes it {number(factor)} times what it was")
    return f"{message}: it counts epochs where Caffe counts iterations, or is stepped too often"


def _momentum(solver: SolverSettings, judged: Mapping[str, Judgement], observations: Observations) -> Check | None:
    name, expected = "momentum at rate changes", "the history keeps the rates that it was made with"
    faults, concerned = _faults(judged, (FaultKind.RATE_CHANGE,))
    constant = _first_change(solver, 0, changes(solver.policy, solver.max_iter)) is None
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


def _accumulation(solver: SolverSettings, reading: AccumulationReading) -> Check | None:
    passes = solver.iter_size
    if passes == 1:
        return None
    divides = (
        "the step divides by iter_size" if reading.group_scale[0] == 1 else "the groups' lr is Caffe's / iter_size"
    )
    sums = f"{divides}: your loop has to sum the gradients of {passes} passes"
    averages = f"the step does not divide by iter_size: your loop has to average over {passes} passes"
    said = sums if reading.accumulation is Accumulation.SUM else averages
    expected = f"the gradients of {passes} passes are summed, and the step divides"
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
    if not observations.clip_scope and close(seen or 0.0, wanted, 1e-3):
        return Check("clipping", Result.OK, expected, seen=f"inside the step, at a norm of {wanted:g}")
    if seen == math.inf and not observations.value_clip and not translating:
        said = f"the step does not clip: your loop has to, at a norm of {wanted:g} over all gradients"
        return Check("clipping", Result.NOT_SEEN, expected, seen=said)
    caffes = f"Caffe's {clip:g} on the sum of {solver.iter_size} is {wanted:g} on an average"
    if wanted == clip:
        caffes = f"Caffe's clip_gradients is {wanted:g}"
    over = ", over all gradients" if observations.value_clip or observations.clip_scope else ""
    message = f"{what}; {caffes}{over}"
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
    if observations.raised:
        yield observations.raised
    if observations.touched:
        names = ", ".join(observations.touched[:3]) + (", ..." if len(observations.touched) > 3 else "")
        back = "they are as before again" if observations.restored else "they could NOT be put back"
        count = len(observations.touched)
        yield f"a step of the optimizer's copy changed {count} tensors of the real model ({names}); {back}"
