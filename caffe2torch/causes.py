"""What explains many rows at once: one wrong rule is said once, before the rows that it made wrong."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from caffe2torch.caffe.policies import weight_decay_at
from caffe2torch.measure.fault import FaultKind
from caffe2torch.measure.lanes import rate_at
from caffe2torch.measure.observation import Observations
from caffe2torch.measure.reading import close
from caffe2torch.recipe import LearnableBlob, SolverSettings
from caffe2torch.report.data import Cause, ReportRow, Verdict

__all__ = ["find_causes"]

_NUMBERS = {FaultKind.LR, FaultKind.WEIGHT_DECAY}


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
    alike: dict[object, list[ReportRow]] = {}
    multipliers = _Multipliers(solver, iteration)
    for row in rows:
        if row.verdict is not Verdict.OK and not observations.problem:
            alike.setdefault(_signature(row, multipliers), []).append(row)
    shared = [_cause(group, rows, multipliers) for group in alike.values() if len(group) > 1]
    return (*whole, *sorted(shared, key=lambda cause: -len(cause.parameters)))


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


class _Multipliers:
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


def _signature(row: ReportRow, multipliers: _Multipliers) -> object:
    """Rows of equal signature are wrong in the same way."""
    kinds = tuple(fault.kind for fault in row.faults)
    if set(kinds) <= _NUMBERS:
        return kinds, multipliers.of(row)
    return tuple((fault.kind, fault.message if fault.kind not in _NUMBERS else "") for fault in row.faults)


def _cause(group: Sequence[ReportRow], rows: Sequence[ReportRow], multipliers: _Multipliers) -> Cause:
    kinds = tuple(dict.fromkeys(fault.kind for fault in group[0].faults))
    found = multipliers.of(group[0])
    message = group[0].reason
    if found is not None and set(kinds) <= _NUMBERS:
        message = _treated(kinds, found, group, rows)
    return Cause(kinds, f"{_who(group, rows)}: {message}", tuple(row.parameter or row.blob.name for row in group))


def _treated(
    kinds: Sequence[FaultKind], found: tuple[float, float], group: Sequence[ReportRow], rows: Sequence[ReportRow]
) -> str:
    """``lr x2 and no decay, as if they were Convolution biases``."""
    said = []
    if FaultKind.LR in kinds:
        said.append(f"lr x{found[0]:g}")
    if FaultKind.WEIGHT_DECAY in kinds:
        said.append("no decay" if not found[1] else f"decay x{found[1]:g}")
    mine = {_class(row.blob) for row in group}
    alike = Counter(
        _class(row.blob)
        for row in rows
        if _class(row.blob) not in mine
        and close(row.blob.lr_mult * row.factor, found[0])
        and close(row.blob.decay_mult, found[1])
    )
    stated = Counter((row.blob.lr_mult * row.factor, row.blob.decay_mult) for row in group).most_common(1)[0][0]
    wanted = f"Caffe's are lr x{stated[0]:g} and decay x{stated[1]:g}"
    as_if = f", as if they were {_plural(*alike.most_common(1)[0][0])}" if alike else ""
    return f"{' and '.join(said)}{as_if} ({wanted})"


def _who(group: Sequence[ReportRow], rows: Iterable[ReportRow]) -> str:
    """``all 8 BatchNorm shifts``, ``8 of 12 BN shifts``, ``all 34 parameters``: the closest name for these rows."""
    everyone = [row for row in rows if row.parameter is not None]
    classes = Counter(_class(row.blob) for row in everyone)
    mine = Counter(_class(row.blob) for row in group)
    if len(group) == len(everyone):
        return f"all {len(group)} parameters"
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


def _strangers(rows: Sequence[ReportRow], observations: Observations) -> str:
    count = len(observations.strangers)
    missing = sum(row.verdict is Verdict.MISSING for row in rows)
    hint = ": it was built on another copy of the model, or before its parameters were replaced" if missing else ""
    return f"the optimizer holds {count} tensors that are not parameters of this model{hint}"
