"""The report as data: a row for every blob and every other parameter, a check for what concerns the whole run."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TypeVar

from caffe2torch.binding.plan import Kind
from caffe2torch.recipe import Accumulation, LearnableBlob, Note, SolverSettings, Source
from caffe2torch.solver.float32 import shortest
from caffe2torch.verification.layer_differences import Difference

__all__ = [
    "Cause",
    "Check",
    "Effective",
    "Fault",
    "FaultKind",
    "RateCurve",
    "Report",
    "ReportRow",
    "Result",
    "UnclaimedRow",
    "Verdict",
]


class Verdict(StrEnum):
    """What was found of a row."""

    OK = "ok"
    MISMATCH = "mismatch"
    MISSING = "missing"
    DUPLICATE = "duplicate"
    SKIPPED = "skipped"  # its user goes without it
    FROZEN = "frozen"  # its user set requires_grad to False
    ACCEPTED = "accepted"  # all that is wrong with it is of kinds that its user accepts


WRONG = (Verdict.MISMATCH, Verdict.MISSING, Verdict.DUPLICATE)


class Result(StrEnum):
    """What was found of a check."""

    OK = "ok"
    DIFFERS = "differs"
    ACCEPTED = "accepted"
    NOT_SEEN = "not seen"  # nothing was given to look at


@dataclass(frozen=True, slots=True)
class Effective:
    """What acts on a parameter at an iteration, all multipliers applied; ``None`` where it cannot be seen.

    A parameter that never moves shows no decay, and one that could not be probed shows neither.
    """

    lr: float | None
    weight_decay: float | None

    def to_dict(self) -> dict[str, float | None]:
        """As JSON has it: the shortest decimals of float32, no NaN."""
        return {"lr": _plain(self.lr), "weight_decay": _plain(self.weight_decay)}


@dataclass(frozen=True, slots=True)
class ReportRow:
    """A blob, what became of it, and whether it learns as in Caffe.

    ``groups`` are the param groups that hold its parameter, one entry each time; ``factor`` is that of fine-tuning;
    ``how`` says which evidence bound it; ``requires_grad`` is ``None`` where there is no parameter.
    """

    blob: LearnableBlob
    kind: Kind
    parameter: str | None
    how: str
    factor: float
    groups: tuple[int, ...]
    requires_grad: bool | None
    parameter_shape: tuple[int, ...] | None
    expected: Effective
    observed: Effective
    verdict: Verdict
    faults: tuple[Fault, ...] = ()

    @property
    def name(self) -> str:
        """The parameter, or the blob where there is none."""
        return self.parameter or self.blob.name

    @property
    def reason(self) -> str:
        """What is wrong, in one line; empty where nothing is."""
        return "; ".join(fault.message for fault in self.faults)

    def to_dict(self) -> dict[str, object]:
        """A row of the JSON report."""
        blob = self.blob
        row: dict[str, object] = {
            "layer": blob.layer,
            "layer_type": blob.layer_type,
            "blob": blob.index,
            "role": blob.role,
            "parameter": self.parameter,
            "kind": str(self.kind),
            "shape": None if blob.shape is None else list(blob.shape),
            "parameter_shape": None if self.parameter_shape is None else list(self.parameter_shape),
            "lr_mult": blob.lr_mult,
            "decay_mult": blob.decay_mult,
            "stated": {"lr_mult": str(blob.stated.lr_mult), "decay_mult": str(blob.stated.decay_mult)},
            "where": str(blob.where),
            "group": self.groups[0] if self.groups else None,
            "trainable": self.kind is Kind.PARAMETER and blob.lr_mult * self.factor != 0,
            "requires_grad": self.requires_grad,
            "finetune": self.factor,
            "bound_by": self.how,
            "expected": self.expected.to_dict(),
            "observed": self.observed.to_dict(),
            "verdict": str(self.verdict),
            "reason": self.reason,
            "faults": [str(fault.kind) for fault in self.faults],
        }
        row["shared_with"] = [
            {"layer": use.layer, "layer_type": use.layer_type, "blob": use.index, "where": str(use.where)}
            for use in blob.shared_with
        ]
        return row


@dataclass(frozen=True, slots=True)
class UnclaimedRow:
    """A parameter of the model that no blob stands for; its multipliers are what its user gave it, if any."""

    parameter: str
    shape: tuple[int, ...]
    lr_mult: float | None
    decay_mult: float | None
    groups: tuple[int, ...]
    requires_grad: bool
    expected: Effective
    observed: Effective
    verdict: Verdict
    faults: tuple[Fault, ...] = ()

    @property
    def name(self) -> str:
        """The parameter."""
        return self.parameter

    @property
    def reason(self) -> str:
        """What is wrong, in one line; empty where nothing is."""
        return "; ".join(fault.message for fault in self.faults)

    def to_dict(self) -> dict[str, object]:
        """An entry of ``unclaimed_parameters``."""
        return {
            "parameter": self.parameter,
            "shape": list(self.shape),
            "lr_mult": self.lr_mult,
            "decay_mult": self.decay_mult,
            "group": self.groups[0] if self.groups else None,
            "requires_grad": self.requires_grad,
            "expected": self.expected.to_dict(),
            "observed": self.observed.to_dict(),
            "verdict": str(self.verdict),
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class Cause:
    """What explains the faults of one row or of many, or a fault of the set-up as a whole (no ``parameters``).

    ``places`` is where the prototxt states their multipliers, ``fix`` what to do, and ``code`` that in Python, where it
    is known.
    """

    kinds: tuple[FaultKind, ...]
    message: str
    parameters: tuple[str, ...] = ()
    fix: str = ""
    places: tuple[str, ...] = ()
    code: str = ""

    @property
    def where(self) -> str:
        """``train.prototxt:31:1 and 7 more``; empty where no line of a prototxt is concerned."""
        more = f" and {len(self.places) - 1} more" if len(self.places) > 1 else ""
        return self.places[0] + more if self.places else ""

    @property
    def text(self) -> str:
        """The message, the place and the fix, on one line."""
        found = f"{self.message} [{self.where}]" if self.where else self.message
        return f"{found}. Fix: {self.fix}" if self.fix else found


@dataclass(frozen=True, slots=True)
class Check:
    """What was found of the run as a whole, in one respect.

    Attributes:
        name: ``update rule``, ``rate schedule``, ``momentum at rate changes``, ``accumulation``, ``clipping`` or
            ``model``.
        result: What was found.
        expected: What Caffe does.
        faults: What differs, one sentence each; accepted ones stay here.
        seen: What was seen, where nothing differs, or why nothing could be.
        effect: What the difference amounts to, where it was simulated.
        fix: What to do.
        parameters: The rows that it concerns, where it does not concern all.
        counts: Whether the report is not ok where it differs.
        differences: The layers' settings that differ, of the check ``model``.
    """

    name: str
    result: Result
    expected: str
    faults: tuple[Fault, ...] = ()
    seen: str = ""
    effect: str = ""
    fix: str = ""
    parameters: tuple[str, ...] = ()
    counts: bool = True
    differences: tuple[Difference, ...] = ()

    @property
    def kinds(self) -> tuple[FaultKind, ...]:
        """The kinds of its faults."""
        return tuple(dict.fromkeys(fault.kind for fault in self.faults))

    @property
    def text(self) -> str:
        """What was seen, what it amounts to and what to do, as sentences."""
        found = "; ".join(fault.message for fault in self.faults) or self.seen
        some = f" ({_some(self.parameters)})" if self.parameters else ""
        parts = [found + some, self.effect, f"Fix: {self.fix}" if self.fix and self.result is Result.DIFFERS else ""]
        return ". ".join(part.rstrip(".") for part in parts if part)

    def to_dict(self) -> dict[str, object]:
        """An entry of ``checks``."""
        return {
            "check": self.name,
            "result": str(self.result),
            "expected": self.expected,
            "seen": "; ".join(fault.message for fault in self.faults) or self.seen,
            "effect": self.effect,
            "fix": self.fix,
            "kinds": [str(kind) for kind in self.kinds],
            "parameters": list(self.parameters),
            **({"differences": [one.to_dict() for one in self.differences]} if self.differences else {}),
        }


@dataclass(frozen=True, slots=True)
class RateCurve:
    """The rate that a scheduler gave some param groups, ``(iteration, rate)`` at those that were looked at."""

    groups: tuple[int, ...]
    points: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True, repr=False)
class Report:
    """Expected against observed, whole: ``rows`` in the order of the recipe's blobs.

    ``iteration`` is the one whose rate ``expected`` and ``observed`` stand for. ``checks`` concern the run as a whole,
    ``causes`` explain every wrong row, each once. ``notes`` are the recipe's, the binding's and the probe's own.
    ``sources`` are the files' texts and ``curves`` the rates of an audited scheduler, for the page that shows them.
    ``model_checked`` is False where no model was given and the net's own parameters stood for it. ``bound`` is False
    where parameters were judged by their role alone, which is never ok. ``translating`` says that the optimizer is the
    tool's own: then a parameter that its user froze is no fault. ``group_names`` are what the param groups' own
    ``name`` entries say, empty where a group has none. ``accumulation`` is how the gradients of ``iter_size`` passes
    were taken to arrive, and ``group_scale`` what a param group has to say for an ``lr`` and a ``weight_decay`` of 1 in
    Caffe: a step that does not divide summed gradients needs ``1 / iter_size`` and ``iter_size``.

    ``str(report)`` is the text table; a notebook shows the report by itself.
    """

    net: str
    model: str
    solver: SolverSettings
    iteration: int
    rows: tuple[ReportRow, ...]
    unclaimed: tuple[UnclaimedRow, ...] = ()
    causes: tuple[Cause, ...] = ()
    notes: tuple[Note, ...] = ()
    sources: tuple[Source, ...] = field(default=(), repr=False, compare=False)
    checks: tuple[Check, ...] = ()
    model_checked: bool = True
    translating: bool = False
    bound: bool = True
    group_names: tuple[str, ...] = ()
    accumulation: Accumulation = Accumulation.SUM
    group_scale: tuple[float, float] = (1.0, 1.0)
    curves: tuple[RateCurve, ...] = field(default=(), repr=False, compare=False)

    @property
    def all_rows(self) -> tuple[ReportRow | UnclaimedRow, ...]:
        """The rows of blobs, then those of parameters that no blob stands for."""
        return (*self.rows, *self.unclaimed)

    @property
    def wrong(self) -> tuple[ReportRow | UnclaimedRow, ...]:
        """The rows for which the report is not ok, in their order; in an audit frozen ones are among them."""
        verdicts = WRONG if self.translating else (*WRONG, Verdict.FROZEN)
        return tuple(row for row in self.all_rows if row.verdict in verdicts)

    @property
    def differing(self) -> tuple[Check, ...]:
        """The checks that differ and are not accepted."""
        return tuple(check for check in self.checks if check.result is Result.DIFFERS)

    @property
    def ok(self) -> bool:
        """Whether everything that was seen learns as in Caffe."""
        counted = any(check.counts for check in self.differing)
        right = not self.wrong and not counted and all(cause.parameters for cause in self.causes)
        return self.bound and right

    def accepting(self, kinds: Collection[FaultKind]) -> Report:
        """The report of somebody who knows of departures of these kinds: they no longer make anything wrong."""
        if not kinds:
            return self
        return replace(
            self,
            rows=tuple(_accepted_row(row, kinds) for row in self.rows),
            unclaimed=tuple(_accepted_row(row, kinds) for row in self.unclaimed),
            checks=tuple(_accepted_check(check, kinds) for check in self.checks),
            causes=tuple(cause for cause in self.causes if not set(cause.kinds) <= set(kinds)),
        )

    def to_dict(self) -> dict[str, object]:
        """The JSON report, as plain dictionaries and lists; numbers that JSON lacks (NaN) are ``None``."""
        from caffe2torch.report.solver_table import solver_dict

        return {
            "ok": self.ok,
            "net": self.net,
            "model": self.model,
            "iteration": self.iteration,
            "model_checked": self.model_checked,
            "bound": self.bound,
            "groups": list(self.group_names),
            "solver": solver_dict(self.solver),
            "checks": [check.to_dict() for check in self.checks],
            "causes": [
                {
                    "kinds": [str(kind) for kind in cause.kinds],
                    "message": cause.message,
                    "where": list(cause.places),
                    "fix": cause.fix,
                    "code": cause.code,
                    "parameters": list(cause.parameters),
                }
                for cause in self.causes
            ],
            "parameters": [row.to_dict() for row in self.rows],
            "unbound_blobs": [row.blob.name for row in self.rows if row.kind is Kind.NONE],
            "unclaimed_parameters": [row.to_dict() for row in self.unclaimed],
            "notes": [note_dict(note) for note in self.notes],
        }

    def __repr__(self) -> str:
        from caffe2torch.report.text import verdict_line

        return f"<Report on {self.net or 'a net'} and {self.model}: {verdict_line(self)}>"

    def __str__(self) -> str:
        from caffe2torch.report.text import View, render_text

        return render_text(self, View())

    def _repr_html_(self) -> str:
        from caffe2torch.report.html import render_fragment

        return render_fragment(self)


Row = TypeVar("Row", ReportRow, UnclaimedRow)


def _accepted_row(row: Row, kinds: Collection[FaultKind]) -> Row:
    if not row.faults or row.verdict in (Verdict.OK, Verdict.SKIPPED):
        return row
    left = tuple(fault for fault in row.faults if fault.kind not in kinds)
    if not left:
        return replace(row, verdict=Verdict.ACCEPTED)
    return replace(row, faults=left)


def _accepted_check(check: Check, kinds: Collection[FaultKind]) -> Check:
    if check.result is not Result.DIFFERS:
        return check
    left = tuple(fault for fault in check.faults if fault.kind not in kinds)
    return replace(check, faults=left) if left else replace(check, result=Result.ACCEPTED)


def _some(names: Sequence[str]) -> str:
    """The first of many names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def note_dict(note: Note) -> dict[str, object]:
    """A note of the JSON report."""
    where = None if note.where is None else str(note.where)
    return {"where": where, "severity": str(note.severity), "message": note.message}


def _plain(x: float | None) -> float | None:
    return None if x is None or not math.isfinite(x) else shortest(x)


# What can be wrong, by kind: the words that reports group by and that users accept by.


class FaultKind(StrEnum):
    """A kind of departure from Caffe; ``accept`` takes these words."""

    # of a row
    MISSING = "missing"  # no param group holds the parameter, or the model has none
    DUPLICATE = "duplicate"  # it stands in the groups more than once, or for more than one blob
    LR = "lr"
    WEIGHT_DECAY = "weight_decay"
    FROZEN = "frozen"  # Caffe trains it, here its requires_grad is False, or it is a buffer
    TRAINED = "trained"  # Caffe freezes it, here it moves
    UNCLAIMED = "unclaimed"  # no blob of the net stands for it
    UNOBSERVED = "unobserved"
    # of the run
    RULE = "rule"  # another solver, or none that is known
    MOMENTUM = "momentum"
    EPSILON = "epsilon"
    REGULARIZATION = "regularization"
    SCHEDULE = "schedule"
    RATE_CHANGE = "rate_change"
    ITER_SIZE = "iter_size"
    CLIP = "clip"
    LOSS = "loss"  # the gradients of the loss
    MODEL = "model"  # a layer's setting; ``model:PATTERN`` accepts one by its name


@dataclass(frozen=True, slots=True)
class Fault:
    """One departure: its kind, and the sentence that a person reads.

    Of a rate at an ``iteration``, ``seen`` is what it was, ``due`` what Caffe's would be, and ``factor`` by how much
    the parameter's rate was off from the start, which is no fault of the schedule.
    """

    kind: FaultKind
    message: str
    iteration: int | None = None
    seen: float | None = None
    due: float | None = None
    factor: float = 1.0
