"""Whether the rates of a run follow the policy: at its changes, and along the whole run of a scheduler."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from caffe2torch.recipe import PolicyType, SolverSettings
from caffe2torch.solver.float32 import number
from caffe2torch.solver.lr_policy import rate, torch_scheduler
from caffe2torch.solver.requirements import ramps
from caffe2torch.verification.diagnose import AUDIT_FIX, Judgement
from caffe2torch.verification.fit import close
from caffe2torch.verification.probe_sequence import Followed, Observations, SettingChange, changes
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

__all__ = ["along_the_run", "at_another_rate", "first_change", "schedule_check"]

Row = TypeVar("Row", ReportRow, UnclaimedRow)


def schedule_check(solver: SolverSettings, judged: Mapping[str, Judgement], observations: Observations) -> Check | None:
    """The check of the rate where windows were run; ``None`` where both rates are constant."""
    start, moving = observations.windows[0].iteration, observations.windows[0].moving
    caffes = [i for i in changes(solver.policy, solver.max_iter) if i > start]
    first = first_change(solver, start, caffes)
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
    if first_change(solver, 0, changes(solver.policy, solver.max_iter)) is None:
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
    constant = first_change(solver, 0, changes(solver.policy, solver.max_iter)) is None
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


def at_another_rate(report: Report, initial: Sequence[float | None], *, by_own: bool = False) -> Report:
    """The report where rows that a scheduler alone put at another rate are right, and the schedule is not.

    Such rows all have the same multiple of Caffe's rate, and groups whose ``initial_lr`` is Caffe's; or the scheduler
    has made that one, too, by its own arguments (``by_own``).
    """
    rows = [row for row in report.all_rows if row.expected.lr and row.observed.lr is not None and len(row.groups) == 1]
    multiples = {float(f"{(row.observed.lr or 0) / (row.expected.lr or 1):.4g}") for row in rows}
    begun = rate(report.solver.policy, report.iteration) / (rate(report.solver.policy, 0) or math.inf)
    base = [(initial[row.groups[0]], row.expected.lr) for row in rows]
    if len(multiples) != 1 or multiples == {1.0} or not begun:
        return report
    if not by_own and any(own is None or not close(own * begun, due) for own, due in base if due is not None):
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


def first_change(solver: SolverSettings, start: int, caffes: Sequence[int]) -> int | None:
    """The first iteration after ``start`` at which Caffe's rate is another one."""
    near = (i for i in range(start + 1, start + 50) if rate(solver.policy, i) != rate(solver.policy, i - 1))
    return next(near, next(iter(caffes), None))


def _late(late: Mapping[str, Fault], caffes: int, observations: Observations, solver: SolverSettings) -> str:
    """Where the rates do not follow the policy, in Caffe's own numbers and the port's own."""
    first = min(fault.iteration or 0 for fault in late.values())
    at = [fault for fault in late.values() if fault.iteration == first]
    seen, due = {fault.seen for fault in at}, {fault.due for fault in at}
    ours = observations.first_change
    if len(seen) == 1 < len(due) and seen != {0.0} and len(observations.stated) > 1:
        theirs = " and ".join(sorted(map(number, due)))
        return (
            f"at iteration {first} the scheduler makes every lr {number(seen.pop())}, whatever its group says; "
            f"Caffe's are {theirs}"
        )
    if solver.iter_size > 1 and _counts_passes(solver, at[0], ours, caffes):
        return (
            f"at iteration {first} lr is {number(at[0].seen)}, Caffe's is {number(at[0].due)}: the scheduler counts "
            f"passes, of which Caffe's iterations have iter_size {solver.iter_size}"
        )
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


def _counts_passes(solver: SolverSettings, fault: Fault, ours: int | None, caffes: int) -> bool:
    """Whether rates are those of a scheduler that is made for a step a pass, ``iter_size`` of them an iteration."""
    if ours is not None and ours == caffes * solver.iter_size:
        return True
    if ours is None or fault.iteration is None or fault.seen is None or not fault.factor:
        return False
    done = fault.iteration // solver.iter_size
    between = sorted(rate(solver.policy, i) for i in (done, done + 1))
    own = fault.seen / fault.factor
    return between[0] < between[1] and between[0] * (1 - 1e-6) <= own <= between[1] * (1 + 1e-6)


def _too_early(ours: int, caffes: int, factor: float | None, solver: SolverSettings) -> str:
    message = f"the scheduler first changes the rate at iteration {ours}, Caffe's first at iteration {caffes}"
    if factor is None or not close(factor, solver.policy.gamma):
        seen = "" if factor is None or number(factor) == "1" else f"; it makes it {number(factor)} times what it was"
        return message + seen
    return f"{message}: it may count epochs where Caffe counts iterations, or be stepped too often"
