"""What rows that are wrong have in common: the closest name for them, and one sentence that is true of all."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from caffe2torch.binding.plan import Kind
from caffe2torch.recipe import LearnableBlob
from caffe2torch.solver.float32 import number
from caffe2torch.solver.lr_policy import rate, weight_decay_at
from caffe2torch.verification.diagnose import ASCENT_FIX, AUDIT_FIX
from caffe2torch.verification.fit import close
from caffe2torch.verification.probe_sequence import Observations
from caffe2torch.verification.report import Cause, FaultKind, Report, ReportRow, UnclaimedRow, Verdict

__all__ = ["explained", "whole_causes"]

Row = ReportRow | UnclaimedRow

_NUMBERS = {FaultKind.LR, FaultKind.WEIGHT_DECAY}

_PLURAL = {
    "it is a buffer": "they are buffers",
    "it is": "they are",
    "it stands": "they stand",
    "its": "their",
    "it": "them",
}
"""What stands for several in the place of one, tried one after the other."""


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
        causes.append(_cause(kinds, f"{_who(group, rows)}: {message}", group, rows, found.scale))
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

    def __init__(self, report: Report) -> None:
        self.rate = rate(report.solver.policy, report.iteration)
        self.decay = weight_decay_at(report.solver, report.iteration)
        self.scale = report.group_scale

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
            return group[0].reason if _NUMBERS.issuperset(key.kinds) else _of_several(group[0].reason)
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


def _of_several(reason: str) -> str:
    """What is wrong with one parameter, said of several.

    >>> _of_several("it is frozen, its requires_grad is False; Caffe trains it at lr 0.01")
    'they are frozen, their requires_grad is False; Caffe trains them at lr 0.01'
    """
    for pattern, words in _PLURAL.items():
        reason = re.sub(rf"\b{pattern}\b", words, reason)
    return reason


def _stated(row: ReportRow) -> tuple[float, float]:
    return row.blob.lr_mult * row.factor, row.blob.decay_mult


def _who(group: Sequence[ReportRow], rows: Iterable[ReportRow]) -> str:
    """``all 8 BatchNorm shifts``, ``8 of 12 BN shifts``, ``all 34 parameters``: the closest name for these rows."""
    everyone = [row for row in rows if row.kind is Kind.PARAMETER or any(row is one for one in group)]
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


# Every wrong row has one cause: what it shares with others, else its own.


def whole_causes(rows: Sequence[ReportRow], observations: Observations) -> Iterator[Cause]:
    """The faults of the set-up as a whole."""
    if observations.problem:
        yield Cause((FaultKind.UNOBSERVED,), f"the optimizer could not be observed: {observations.problem}")
    if observations.foreign:
        yield Cause((FaultKind.UNCLAIMED,), _foreign_tensors(rows, observations))


def explained(report: Report, stated: Sequence[tuple[float, float]] = (), scheduler: str = "") -> Report:
    """A report with the causes of its wrong rows after those of the set-up, the widest first.

    ``stated`` is what each param group says, ``lr`` and ``weight_decay``: where that is right already, no group mends
    a row. ``scheduler`` is the class of one that gives groups rates of its own: then no group mends a rate.
    """
    whole = [cause for cause in report.causes if not cause.parameters]
    if any(FaultKind.UNOBSERVED in cause.kinds for cause in whole):
        return replace(report, causes=tuple(whole))  # nothing was seen of any row
    bound = [row for row in report.wrong if isinstance(row, ReportRow)]
    causes = [*whole, *shared_causes(bound, report.rows, Multiples(report))]
    known = {name for cause in causes for name in cause.parameters}
    for row in report.wrong:
        if row.name not in known:
            kinds = tuple(dict.fromkeys(fault.kind for fault in row.faults))
            causes.append(_cause(kinds, f"{row.name}: {row.reason}", [row], report.rows, report.group_scale))
    said = {row.name for row in report.wrong if _says_it(row, stated, report.group_scale)}
    by_class = f"their groups say so already, but the step makes something else of it: {AUDIT_FIX}"
    causes = [
        replace(one, fix=by_class, code="") if one.parameters and said.issuperset(one.parameters) else one
        for one in causes
    ]
    if scheduler:
        by_scheduler = f"{scheduler} makes the rate of each group, whatever the group says: see rate schedule"
        causes = [replace(one, fix=by_scheduler, code="") if one.kinds == (FaultKind.LR,) else one for one in causes]
    return replace(report, causes=tuple(causes))


def _says_it(row: Row, stated: Sequence[tuple[float, float]], scale: tuple[float, float]) -> bool:
    """Whether the one group of a row with wrong numbers has the right ones."""
    kinds = {fault.kind for fault in row.faults}
    if len(row.groups) != 1 or row.groups[0] >= len(stated) or not kinds <= set(_NUMBERS):
        return False
    wanted = (row.expected.lr, row.expected.weight_decay)
    pairs = zip(stated[row.groups[0]], wanted, scale, strict=True)
    return all(due is not None and close(own, due * times) for own, due, times in pairs)


def _cause(
    kinds: tuple[FaultKind, ...],
    message: str,
    group: Sequence[Row],
    rows: Sequence[ReportRow],
    scale: tuple[float, float],
) -> Cause:
    places = dict.fromkeys(str(row.blob.where) for row in group if isinstance(row, ReportRow))
    names = tuple(dict.fromkeys(row.name for row in group))
    return Cause(kinds, message, names, _fix(group, rows, scale), tuple(places), _code(group, scale))


def _fix(group: Sequence[Row], rows: Sequence[ReportRow], scale: tuple[float, float]) -> str:
    """The group that these rows belong in, or what else puts them right."""
    kinds = {fault.kind for row in group for fault in row.faults}
    if FaultKind.DUPLICATE in kinds:
        return "let each parameter stand in one group, once"
    if any(row.requires_grad is None for row in group):
        return ""  # the model has no such parameter
    if kinds == {FaultKind.RULE}:
        return f"{ASCENT_FIX} from the group of {_pronoun(group)}"
    if kinds == {FaultKind.FROZEN}:
        return "requires_grad_(True), or accept it with --accept frozen"
    if kinds == {FaultKind.TRAINED}:
        return f"leave {_pronoun(group)} out of the groups, or requires_grad_(False)"
    if kinds == {FaultKind.UNCLAIMED}:
        return f"say what {_pronoun(group)} should learn with (--unclaimed), or requires_grad_(False)"
    if not kinds <= {*_NUMBERS, FaultKind.MISSING}:
        return ""
    places = []
    for lr, decay in dict.fromkeys((row.expected.lr, row.expected.weight_decay) for row in group):
        right = next(
            (
                row.parameter
                for row in rows
                if row.verdict is Verdict.OK
                and row.groups
                and (row.expected.lr, row.expected.weight_decay) == (lr, decay)
            ),
            None,
        )
        numbers = _in_a_group("lr {}, weight_decay {}", lr, decay, scale)
        places.append(f'the group of "{right}" ({numbers})' if right else f"a group with {numbers}")
    verb = "add" if kinds == {FaultKind.MISSING} else "move"
    return f"{verb} {_pronoun(group)} to {' and '.join(places)}" if len(places) <= 4 else ""


def _code(group: Sequence[Row], scale: tuple[float, float]) -> str:
    """The fix in Python: the param groups that these rows belong in, or the statement that puts them right."""
    kinds = {fault.kind for row in group for fault in row.faults}
    if any(row.requires_grad is None for row in group):
        return ""
    if kinds == {FaultKind.FROZEN}:
        return f"for name in {_names(group)}:\n    model.get_parameter(name).requires_grad_(True)"
    if not kinds <= {*_NUMBERS, FaultKind.MISSING}:
        return ""
    wanted: dict[tuple[float | None, float | None], list[Row]] = {}
    for row in group:
        wanted.setdefault((row.expected.lr, row.expected.weight_decay), []).append(row)
    return "\n".join(
        f'{{"params": [model.get_parameter(name) for name in {_names(members)}], '
        + _in_a_group('"lr": {}, "weight_decay": {}}},', lr, decay, scale)
        for (lr, decay), members in wanted.items()
        if lr is not None and decay is not None
    )


def _in_a_group(text: str, lr: float | None, decay: float | None, scale: tuple[float, float]) -> str:
    """What a group has to say so that its step makes these of it."""
    pairs = zip((lr, decay), scale, strict=True)
    return text.format(*(number(None if applied is None else applied * times) for applied, times in pairs))


def _names(group: Sequence[Row]) -> str:
    """A tuple of names as Python writes it, on lines of their own where there are many."""
    names = [repr(row.name) for row in group]
    return f"({', '.join(names)},)" if len(names) <= 3 else "(\n    {},\n)".format(",\n    ".join(names))


def _pronoun(group: Sequence[Row]) -> str:
    return "it" if len(group) == 1 else "them"


def _foreign_tensors(rows: Sequence[ReportRow], observations: Observations) -> str:
    count = len(observations.foreign)
    missing = sum(row.verdict is Verdict.MISSING for row in rows)
    hint = ": it was built on another copy of the model, or before its parameters were replaced" if missing else ""
    return f"the optimizer holds {count} tensors that are not parameters of this model{hint}"
