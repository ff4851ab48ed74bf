"""Expected against observed: what recipe, binding and groups ask for, and what the live optimizer was seen to do."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from caffe2torch.binding.plan import Binding, BoundBlob, GroupPlan, Kind, Unclaimed
from caffe2torch.recipe import Note, Severity, SolverSettings, TrainingRecipe
from caffe2torch.verification.common_causes import find_causes
from caffe2torch.verification.diagnose import Judge, Judgement, Multipliers
from caffe2torch.verification.probe_sequence import Observation, Observations, changes
from caffe2torch.verification.report import Cause, Effective, Fault, FaultKind, Report, ReportRow, UnclaimedRow, Verdict

__all__ = ["Cause", "Effective", "Report", "ReportRow", "UnclaimedRow", "Verdict", "verify"]

NOTHING = Effective(0.0, None)
UNKNOWN = Effective(None, None)


def verify(
    recipe: TrainingRecipe,
    binding: Binding,
    groups: Sequence[GroupPlan],
    observations: Observations,
    *,
    model_name: str | None = None,
    inside: bool = True,
    notes: Iterable[Note] = (),
) -> Report:
    """Hold what an optimizer was seen to do to every parameter against what Caffe would do to its blob.

    ``groups`` has the multipliers of every parameter, fine-tuning factors applied; what the optimizer's own groups are
    is read from ``observations``. ``inside`` says that the optimizer's step does all of Caffe's: clips, and divides by
    ``iter_size`` gradients that were summed; else that is left to the training loop, which averages. ``notes`` are
    added to those of recipe and binding. ``recipe.solver`` must not be ``None``.
    """
    solver = recipe.solver
    assert solver is not None, "a net alone says nothing about an optimizer"
    windows = observations.windows
    iteration = windows[0].iteration if windows else 0
    judge = Judge(solver, windows, iteration, observations.precision, inside)
    asked = {
        member.parameter: (Multipliers(group.lr_mult, group.decay_mult), group.factor)
        for group in groups
        for member in group.members
    }
    seen = {observation.parameter: observation for observation in observations.parameters}
    claims = Counter(bound.name for bound in binding.blobs if bound.kind is Kind.PARAMETER)
    rows = tuple(_row(judge, bound, asked, seen, claims, observations) for bound in binding.blobs)
    claimed = {bound.name for bound in binding.blobs}
    given = {left.name: left for left in binding.unclaimed}
    unclaimed = tuple(
        _unclaimed(judge, given.get(name, Unclaimed(name, observation.shape)), observation, observations)
        for name, observation in seen.items()
        if name not in claimed
    )
    return Report(
        net=recipe.net_name,
        model=model_name or binding.model,
        solver=solver,
        iteration=iteration,
        rows=rows,
        unclaimed=unclaimed,
        causes=find_causes(solver, iteration, rows, observations, inside),
        notes=(*recipe.notes, *binding.notes, *notes, *_own_notes(solver, observations, inside)),
        sources=recipe.sources,
    )


def _row(
    judge: Judge,
    bound: BoundBlob,
    asked: Mapping[str, tuple[Multipliers, float]],
    seen: Mapping[str, Observation],
    claims: Counter[str | None],
    observations: Observations,
) -> ReportRow:
    blob = bound.blob
    observation = seen.get(bound.name or "") if bound.kind is Kind.PARAMETER else None
    multipliers, factor = asked.get(bound.name or "", (Multipliers(blob.lr_mult, blob.decay_mult), 1.0))
    if observation is not None:
        judgement, verdict = _held(judge, multipliers, observation, observations)
        if claims[bound.name] > 1:
            verdict = Verdict.DUPLICATE
            said = f"{claims[bound.name]} blobs stand for this one parameter, and Caffe does not share them"
            judgement = Judgement(
                judgement.expected, judgement.observed, (Fault(FaultKind.DUPLICATE, said), *judgement.faults)
            )
    else:
        judgement, verdict = _without_parameter(judge, multipliers, bound, observations)
    return ReportRow(
        blob=blob,
        kind=bound.kind,
        parameter=bound.name,
        how=bound.how,
        factor=factor,
        groups=observation.groups if observation else (),
        requires_grad=observation.requires_grad if observation else None,
        parameter_shape=observation.shape if observation else None,
        expected=judgement.expected,
        observed=judgement.observed,
        verdict=verdict,
        faults=judgement.faults,
    )


def _held(
    judge: Judge, multipliers: Multipliers, seen: Observation, observations: Observations
) -> tuple[Judgement, Verdict]:
    """A parameter of the model, with what the optimizer's groups make of it."""
    expected = judge.expected(multipliers)
    if not seen.groups:
        if multipliers.lr_mult == 0:
            return Judgement(expected, NOTHING, ()), Verdict.OK
        return Judgement(expected, NOTHING, (Fault(FaultKind.MISSING, "no param group holds it"),)), Verdict.MISSING
    if observations.problem:
        said = f"the optimizer could not be observed: {observations.problem}"
        judgement = Judgement(expected, UNKNOWN, (Fault(FaultKind.UNOBSERVED, said),))
    else:
        judgement = judge.judge(multipliers, seen)
    if len(seen.groups) > 1:
        fault = Fault(FaultKind.DUPLICATE, _twice(seen.groups))
        return Judgement(expected, judgement.observed, (fault, *judgement.faults)), Verdict.DUPLICATE
    return judgement, Verdict.MISMATCH if judgement.faults else Verdict.OK


def _without_parameter(
    judge: Judge, multipliers: Multipliers, bound: BoundBlob, observations: Observations
) -> tuple[Judgement, Verdict]:
    """A blob that is a buffer in torch, or nothing: right where Caffe does not train it either."""
    expected = judge.expected(multipliers)
    if bound.kind is Kind.NONE and bound.how.startswith("skipped"):
        return Judgement(expected, NOTHING, ()), Verdict.OK
    if bound.kind is Kind.PARAMETER:
        fault = Fault(FaultKind.MISSING, f"the model has no parameter {bound.name!r}")
        return Judgement(expected, NOTHING, (fault,)), Verdict.MISSING
    if bound.kind is Kind.BUFFER and bound.name in observations.buffers:
        fault = Fault(FaultKind.TRAINED, "it is a buffer, and a param group holds it")
        return Judgement(expected, UNKNOWN, (fault,)), Verdict.MISMATCH
    if multipliers.lr_mult == 0:
        return Judgement(expected, NOTHING, ()), Verdict.OK
    kind, what = (
        (FaultKind.FROZEN, "it is a buffer, which no optimizer trains; Caffe does")
        if bound.kind is Kind.BUFFER
        else (FaultKind.MISSING, "nothing in the model stands for it; Caffe trains it")
    )
    verdict = Verdict.MISMATCH if bound.kind is Kind.BUFFER else Verdict.MISSING
    return Judgement(expected, NOTHING, (Fault(kind, what),)), verdict


def _unclaimed(judge: Judge, left: Unclaimed, seen: Observation, observations: Observations) -> UnclaimedRow:
    """A parameter without a blob: as its user said, where that was said; else it must not train."""
    if left.lr_mult is not None and left.decay_mult is not None:
        judgement, verdict = _held(judge, Multipliers(left.lr_mult, left.decay_mult), seen, observations)
    elif not seen.groups and not seen.requires_grad:
        judgement, verdict = Judgement(UNKNOWN, NOTHING, ()), Verdict.OK
    elif not seen.groups:
        said = "no blob of the net stands for it and no param group holds it: give it multipliers, or freeze it"
        judgement, verdict = Judgement(UNKNOWN, NOTHING, (Fault(FaultKind.UNCLAIMED, said),)), Verdict.MISSING
    else:
        judgement, verdict = _held(judge, Multipliers(0.0, 0.0), seen, observations)
        if verdict is not Verdict.OK:
            said = "no blob of the net stands for it, and the optimizer trains it"
            judgement = Judgement(UNKNOWN, judgement.observed, (Fault(FaultKind.UNCLAIMED, said),))
    return UnclaimedRow(
        parameter=left.name,
        shape=seen.shape,
        lr_mult=left.lr_mult,
        decay_mult=left.decay_mult,
        groups=seen.groups,
        requires_grad=seen.requires_grad,
        expected=judgement.expected,
        observed=judgement.observed,
        verdict=verdict,
        faults=judgement.faults,
    )


def _twice(groups: Sequence[int]) -> str:
    places = [f"group {group}" + (f" {count} times" if count > 1 else "") for group, count in Counter(groups).items()]
    return f"it stands in {' and '.join(places)}: each step moves it {len(groups)} times"


def _own_notes(solver: SolverSettings, observations: Observations, inside: bool) -> Iterable[Note]:
    """What was not looked at, said rather than skipped."""
    for window, why in observations.unreached:
        yield Note(None, Severity.WARNING, f"iteration {window.iteration} was not looked at: {why}")
    windows = observations.windows
    if windows and not windows[0].moving and changes(solver.policy, solver.max_iter):
        said = f"no scheduler was given: only the rate of iteration {windows[0].iteration} was looked at"
        yield Note(None, Severity.INFO, f"{said}, not how policy {str(solver.policy.type)!r} changes it")
    if not inside and solver.iter_size > 1:
        said = f"judged for a loop that averages its gradients over {solver.iter_size} passes, not sums them as Caffe"
        yield Note(None, Severity.INFO, said)
    if not inside and solver.clip_gradients is not None and observations.clip == math.inf:
        norm = solver.clip_gradients / solver.iter_size
        said = f"the optimizer does not clip gradients: the training loop has to, at a norm of {norm:g}"
        yield Note(None, Severity.WARNING, said)
