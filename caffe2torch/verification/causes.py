"""What explains many rows at once: one wrong rule is said once, before the rows that it made wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence

from caffe2torch.recipe import PolicyType, SolverSettings
from caffe2torch.verification.common_causes import Multiples, shared_causes
from caffe2torch.verification.fault import FaultKind
from caffe2torch.verification.fit import close
from caffe2torch.verification.observation import Observations
from caffe2torch.verification.probe_sequence import changes
from caffe2torch.verification.report import Cause, ReportRow, Verdict

__all__ = ["find_causes"]

_DISCRETE = {PolicyType.STEP, PolicyType.MULTISTEP, PolicyType.MULTIFIXED}


def find_causes(
    solver: SolverSettings,
    iteration: int,
    rows: Sequence[ReportRow],
    observations: Observations,
    inside: bool,
) -> tuple[Cause, ...]:
    """The faults of the set-up as a whole, then what two rows or more have in common, the widest first."""
    whole = []
    if observations.problem:
        whole.append(Cause((FaultKind.UNOBSERVED,), f"the optimizer could not be observed: {observations.problem}"))
    if observations.strangers:
        whole.append(Cause((FaultKind.UNCLAIMED,), _strangers(rows, observations)))
    clip = _clip(solver, observations, inside)
    if clip:
        whole.append(Cause((FaultKind.CLIP,), clip))
    wrong = [] if observations.problem else [row for row in rows if row.verdict is not Verdict.OK]
    schedule = _schedule(solver, rows, observations)
    return (*whole, *schedule, *shared_causes(wrong, rows, Multiples(solver, iteration)))


def _clip(solver: SolverSettings, observations: Observations, inside: bool) -> str:
    """What is wrong with the clipping of gradients, if anything; outside of the optimizer it cannot be seen."""
    if not solver.clip_gradients:
        clips = observations.clips and solver.clip_gradients is None
        return "the optimizer clips gradients by their norm, the solver does not" if clips else ""
    seen = observations.clip
    wanted = solver.clip_gradients if inside else solver.clip_gradients / solver.iter_size
    if seen is None or close(seen, wanted, 1e-3) or (seen == math.inf and not inside):
        return ""
    norm = "at no norm" if seen == math.inf else f"at a norm of {seen:.4g}"
    return f"the optimizer clips gradients {norm}, Caffe's clip_gradients is {wanted:g}"


def _schedule(solver: SolverSettings, rows: Sequence[ReportRow], observations: Observations) -> list[Cause]:
    """What the scheduler does to the rates, where they do not follow the policy."""
    late = {row.parameter: fault for row in rows for fault in row.faults if fault.kind is FaultKind.SCHEDULE}
    if not late:
        return []
    first = min(fault.iteration or 0 for fault in late.values())
    seen = {fault.seen for fault in late.values() if fault.iteration == first}
    due = {fault.due for fault in late.values() if fault.iteration == first}
    ours = next(iter(observations.changes), None)
    caffes = next(iter(changes(solver.policy, solver.max_iter)), None)
    if len(seen) == 1 < len(due):
        said = f"at iteration {first} the scheduler makes every lr {seen.pop():g}, whatever its multiplier"
    elif ours is not None and caffes is not None and solver.policy.type in _DISCRETE and ours != caffes:
        hint = ": is it meant to be stepped once an epoch?" if ours < caffes else ""
        said = f"the scheduler first changes the rate at iteration {ours}, Caffe's first at iteration {caffes}{hint}"
    elif ours is None and observations.followed and caffes is not None:
        said = f"the scheduler leaves the rate as it is; Caffe's first changes at iteration {caffes}"
    else:
        return []
    return [Cause((FaultKind.SCHEDULE,), said, tuple(str(parameter) for parameter in late))]


def _strangers(rows: Sequence[ReportRow], observations: Observations) -> str:
    count = len(observations.strangers)
    missing = sum(row.verdict is Verdict.MISSING for row in rows)
    hint = ": it was built on another copy of the model, or before its parameters were replaced" if missing else ""
    return f"the optimizer holds {count} tensors that are not parameters of this model{hint}"
