"""Expected against observed: what recipe, binding and groups ask for, and what the live optimizer was seen to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from caffe2torch.binding.plan import Binding, BoundBlob, Evidence, GroupPlan, Kind, Unclaimed
from caffe2torch.recipe import Accumulation, Note, Severity, TrainingRecipe
from caffe2torch.verification.checks import AccumulationReading, notes_of, run_checks
from caffe2torch.verification.common_causes import explained, whole_causes
from caffe2torch.verification.diagnose import Judge, Judgement, Multipliers, frozen
from caffe2torch.verification.fit import still
from caffe2torch.verification.probe_sequence import Observation, Observations
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
    accumulation: Accumulation = Accumulation.SUM,
    translating: bool = False,
    model_checked: bool = True,
    reading: AccumulationReading | None = None,
    notes: Iterable[Note] = (),
) -> Report:
    """Hold what an optimizer was seen to do to every parameter against what Caffe would do to its blob.

    Args:
        recipe: What the prototxts say.
        binding: Which blob is which parameter.
        groups: The multipliers of every parameter, fine-tuning factors applied; what the optimizer's own groups are is
            read from ``observations``.
        observations: What the optimizer was seen to do.
        accumulation: How the gradients of ``iter_size`` passes arrive: summed, so that the step divides, or averaged.
        translating: Whether the optimizer is the tool's own: then it has to clip itself, and a parameter that its user
            froze is a warning.
        model_checked: Whether the model is its user's, and not made from the net.
        reading: How ``accumulation`` was found, where it was not given.
        notes: Added to those of recipe and binding.

    Returns:
        The report.
    """
    solver = recipe.solver
    windows = observations.windows
    iteration = windows[0].iteration if windows else 0
    rows, unclaimed, judged = judge_rows(recipe, binding, groups, observations, accumulation)
    found = reading or AccumulationReading(accumulation)
    report = Report(
        net=recipe.net_name,
        model=binding.model,
        solver=solver,
        iteration=iteration,
        rows=rows,
        unclaimed=unclaimed,
        causes=tuple(whole_causes(rows, observations)),
        notes=(*recipe.notes, *binding.notes, *notes, *_own_notes(observations)),
        sources=recipe.sources,
        checks=run_checks(solver, judged, observations, found, translating=translating),
        model_checked=model_checked,
        translating=translating,
        accumulation=accumulation,
        group_scale=found.group_scale,
    )
    return explained(report)


def judge_rows(
    recipe: TrainingRecipe,
    binding: Binding,
    groups: Sequence[GroupPlan],
    observations: Observations,
    accumulation: Accumulation,
) -> tuple[tuple[ReportRow, ...], tuple[UnclaimedRow, ...], dict[str, Judgement]]:
    """The rows of a report, and by parameter what was seen of those that the optimizer moves."""
    solver = observations.collecting(recipe.solver)
    windows = observations.windows
    iteration = windows[0].iteration if windows else 0
    asked = {
        member.parameter: (Multipliers(group.lr_mult, group.decay_mult), group.factor)
        for group in groups
        for member in group.members
    }
    seen = {observation.parameter: observation for observation in observations.parameters}
    judge = Judge(solver, windows, iteration, observations.precision, accumulation is Accumulation.SUM)
    trained = [one for one in observations.parameters if one.parameter in asked and asked[one.parameter][0].lr_mult]
    judge.ascending = all(judge.ascends(asked[one.parameter][0], one) for one in trained if not still(one.windows))
    claims = Counter(bound.name for bound in binding.blobs if bound.kind is Kind.PARAMETER)
    judged: dict[str, Judgement] = {}
    rows = tuple(_row(judge, bound, asked, seen, claims, observations, judged) for bound in binding.blobs)
    claimed = {bound.name for bound in binding.blobs}
    given = {left.name: left for left in binding.unclaimed}
    unclaimed = tuple(
        _unclaimed(judge, given.get(name, Unclaimed(name, observation.shape)), observation, observations, judged)
        for name, observation in seen.items()
        if name not in claimed
    )
    return rows, unclaimed, judged


def _row(
    judge: Judge,
    bound: BoundBlob,
    asked: Mapping[str, tuple[Multipliers, float]],
    seen: Mapping[str, Observation],
    claims: Counter[str | None],
    observations: Observations,
    judged: dict[str, Judgement],
) -> ReportRow:
    blob = bound.blob
    observation = seen.get(bound.name or "") if bound.kind is Kind.PARAMETER else None
    multipliers, factor = asked.get(bound.name or "", (Multipliers(blob.lr_mult, blob.decay_mult), 1.0))
    if observation is not None:
        judgement, verdict = _held(judge, multipliers, observation, observations)
        once = len(observation.groups) == 1 and claims[bound.name] == 1
        if once and multipliers.lr_mult != 0 and judgement.observed.lr != 0 and not observations.problem:
            judged[observation.parameter] = judgement
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
        if not seen.requires_grad:
            return Judgement(expected, NOTHING, (frozen(expected.lr or 0.0),)), Verdict.FROZEN
        return Judgement(expected, NOTHING, (Fault(FaultKind.MISSING, "no param group holds it"),)), Verdict.MISSING
    if observations.problem:
        said = f"the optimizer could not be observed: {observations.problem}"
        judgement = Judgement(expected, UNKNOWN, (Fault(FaultKind.UNOBSERVED, said),))
    else:
        judgement = judge.judge(multipliers, seen)
    if len(seen.groups) > 1:
        fault = Fault(FaultKind.DUPLICATE, _twice(seen.groups, observations.places))  # its numbers follow from that
        return Judgement(expected, _rounded(judgement.observed), (fault,)), Verdict.DUPLICATE
    if {fault.kind for fault in judgement.faults} == {FaultKind.FROZEN}:
        return judgement, Verdict.FROZEN
    return judgement, Verdict.MISMATCH if judgement.faults else Verdict.OK


def _without_parameter(
    judge: Judge, multipliers: Multipliers, bound: BoundBlob, observations: Observations
) -> tuple[Judgement, Verdict]:
    """A blob that is a buffer in torch, or nothing: right where Caffe does not train it either."""
    expected = judge.expected(multipliers)
    if bound.evidence is Evidence.SKIPPED:
        return Judgement(expected, NOTHING, ()), Verdict.SKIPPED if multipliers.lr_mult else Verdict.OK
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


def _unclaimed(
    judge: Judge, left: Unclaimed, seen: Observation, observations: Observations, judged: dict[str, Judgement]
) -> UnclaimedRow:
    """A parameter without a blob: as its user said, where that was said; else it must not train."""
    if left.lr_mult is not None and left.decay_mult is not None:
        judgement, verdict = _held(judge, Multipliers(left.lr_mult, left.decay_mult), seen, observations)
        judgement = replace(judgement, faults=tuple(map(_as_stated, judgement.faults)))
        if len(seen.groups) == 1 and left.lr_mult != 0 and judgement.observed.lr != 0 and not observations.problem:
            judged[seen.parameter] = judgement
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


def _as_stated(fault: Fault) -> Fault:
    """A fault of a parameter that Caffe has no blob for: it departs from what its user stated."""
    message = fault.message.replace("Caffe's is", "you stated").replace("Caffe trains it at", "you stated")
    return replace(fault, message=message.replace("Caffe freezes it", "you stated lr_mult 0"))


def _rounded(seen: Effective) -> Effective:
    """What several moves a step come to: each begins where the last one ended, which blurs their sum a little."""
    return Effective(*(None if x is None else float(f"{x:.4g}") for x in (seen.lr, seen.weight_decay)))


def _twice(groups: Sequence[int], names: Sequence[str]) -> str:
    places = [names[group] + (f" {count} times" if count > 1 else "") for group, count in Counter(groups).items()]
    return f"it stands in {' and '.join(places)}: each step moves it {len(groups)} times"


def _own_notes(observations: Observations) -> Iterable[Note]:
    """What was not looked at, stated rather than left out, and what happened on the way."""
    for window, why in observations.unreached:
        yield Note(None, Severity.WARNING, f"iteration {window.iteration} was not looked at: {why}")
    for message in notes_of(observations):
        yield Note(None, Severity.WARNING, message)
