"""What rows that are wrong have in common: the closest name for them, and one sentence that is true of all."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from caffe2torch.recipe import LearnableBlob, PolicyType, SolverSettings
from caffe2torch.solver.lr_policy import weight_decay_at
from caffe2torch.verification.fit import close
from caffe2torch.verification.probe_sequence import Observations, changes, rate_at
from caffe2torch.verification.report import Cause, FaultKind, ReportRow, Verdict

__all__ = ["find_causes"]

_NUMBERS = {FaultKind.LR, FaultKind.WEIGHT_DECAY}


def shared_causes(wrong: Sequence[ReportRow], rows: Sequence[ReportRow], found: Multiples) -> list[Cause]:
    """What most rows have in common, then what most of the others have, as long as there are two that do.

    Rows may have in common what they got in place of what, or by how much that is off.
    """
    causes, left = [], list(wrong)
    while left:
        alike: dict[object, list[ReportRow]] = {}
        for row in left:
            for key in filter(None, (found.treatment(row), found.ratio(row))):
                alike.setdefault(key, []).append(row)
        key, group = max(alike.items(), key=lambda entry: len(entry[1]))  # the first of equals: a treatment
        if len(group) < 2:
            break
        kinds = tuple(dict.fromkeys(fault.kind for fault in group[0].faults))
        message = found.tell(key, group, rows)
        names = tuple(row.parameter or row.blob.name for row in group)
        causes.append(Cause(kinds, f"{_who(group, rows)}: {message}", names))
        left = [row for row in left if not any(row is other for other in group)]
    return causes


@dataclass(frozen=True)
class _Treatment:
    """Rows that are wrong in the same way: a multiplier that they got in place of another, or the same sentences."""

    kinds: tuple[FaultKind, ...]
    lr: tuple[float, float] | None = None  # got, wanted
    decay: tuple[float, float] | None = None
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Ratio:
    """Rows whose rate, and nothing else, is off by one factor."""

    lr: float


class Multiples:
    """Observed numbers in terms of the solver's own."""

    def __init__(self, solver: SolverSettings, iteration: int) -> None:
        self.rate = rate_at(solver.policy, iteration)
        self.decay = weight_decay_at(solver, iteration)

    def of(self, row: ReportRow) -> tuple[float, float] | None:
        """What ``lr_mult`` and ``decay_mult`` would have made the observed numbers."""
        lr, decay = row.observed.lr, row.observed.weight_decay
        if lr is None or decay is None or not self.rate or (decay and not self.decay):
            return None
        return _tidy(lr / self.rate), _tidy(decay / self.decay) if self.decay else 0.0

    def treatment(self, row: ReportRow) -> _Treatment:
        """What was done to a row."""
        kinds = tuple(fault.kind for fault in row.faults)
        got = self.of(row) if _NUMBERS.issuperset(kinds) else None
        if got is None:
            return _Treatment(kinds, reasons=tuple(fault.message for fault in row.faults))
        lr, decay = ((mine, theirs) for mine, theirs in zip(got, _stated(row), strict=True))
        return _Treatment(
            kinds, lr if FaultKind.LR in kinds else None, decay if FaultKind.WEIGHT_DECAY in kinds else None
        )

    def ratio(self, row: ReportRow) -> _Ratio | None:
        """By how much a row's rate is off."""
        lr, due = row.observed.lr, row.expected.lr
        if lr and due and [fault.kind for fault in row.faults] == [FaultKind.LR]:
            return _Ratio(_tidy(lr / due))
        return None

    def tell(self, key: object, group: Sequence[ReportRow], rows: Sequence[ReportRow]) -> str:
        """``lr x2 and no decay, as if they were Convolution biases (Caffe's are lr x1 and decay x1)``."""
        if isinstance(key, _Ratio):
            small = 0 < key.lr < 1
            return f"lr {_tidy(1 / key.lr):g} times too small" if small else f"lr {key.lr:g} times as much"
        assert isinstance(key, _Treatment)
        if key.reasons:
            return group[0].reason
        parts = [f"lr x{key.lr[0]:g}"] if key.lr else []
        if key.decay:
            parts.append(f"decay x{key.decay[0]:g}" if key.decay[0] else "no decay")
        wanted = {_stated(row) for row in group}
        if len(wanted) == 1:
            lr, decay = wanted.pop()
            theirs = f"Caffe's are lr x{lr:g} and decay x{decay:g}"
        else:
            theirs = f"Caffe's is x{(key.lr or key.decay or (0, 0))[1]:g}"
        return f"{' and '.join(parts)}{self._as_if(group, rows)} ({theirs})"

    def _as_if(self, group: Sequence[ReportRow], rows: Sequence[ReportRow]) -> str:
        """Of which other blobs the multipliers are that these rows got."""
        treated, mine = {self.of(row) for row in group}, {_class(row.blob) for row in group}
        got = treated.pop()
        if treated or got is None:
            return ""
        alike = Counter(
            _class(row.blob)
            for row in rows
            if _class(row.blob) not in mine and all(map(close, _stated(row), got)) and row.parameter is not None
        )
        return f", as if they were {_plural(*alike.most_common(1)[0][0])}" if alike else ""


def _stated(row: ReportRow) -> tuple[float, float]:
    return row.blob.lr_mult * row.factor, row.blob.decay_mult


def _who(group: Sequence[ReportRow], rows: Iterable[ReportRow]) -> str:
    """``all 8 BatchNorm shifts``, ``8 of 12 BN shifts``, ``all 34 parameters``: the closest name for these rows."""
    everyone = [row for row in rows if row.parameter is not None]
    classes = Counter(_class(row.blob) for row in everyone)
    mine = Counter(_class(row.blob) for row in group)
    if len(group) == len(everyone):
        return f"all {len(group)} parameters"
    layers = {row.blob.layer for row in group}
    if len(layers) == 1:
        of_layer = [row for row in everyone if row.blob.layer in layers]
        return f"{_share(len(group), len(of_layer))} blobs of layer {layers.pop()}"
    roles = {role for _, role in mine}
    if len(mine) == 1:
        (layer_type, role), count = next(iter(mine.items()))
        total = classes[layer_type, role]
        return f"{_share(count, total)} {_plural(layer_type, role)}"
    if len(roles) == 1:
        role = roles.pop()
        total = sum(count for (_, other), count in classes.items() if other == role)
        return f"{_share(len(group), total)} {_plural('', role)}"
    return f"{len(group)} of {len(everyone)} parameters"


def _share(count: int, total: int) -> str:
    return f"all {count}" if count == total else f"{count} of {total}"


def _class(blob: LearnableBlob) -> tuple[str, str]:
    return blob.layer_type, blob.role


def _plural(layer_type: str, role: str) -> str:
    ending = "es" if role.endswith(("s", "x")) else "s"
    return f"{layer_type} {role}{ending}".strip()


def _tidy(x: float) -> float:
    """A multiplier as somebody may have written it."""
    short = float(f"{x:.4g}")
    return short if close(short, x) else x


# What explains many rows at once: one wrong rule is said once, before the rows that it made wrong.

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
