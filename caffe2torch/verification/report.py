"""The report as data: a row for every blob, a line for every parameter that is left, and what explains many at once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

from caffe2torch.binding.plan import Kind
from caffe2torch.recipe import LearnableBlob, Note, SolverSettings, Source
from caffe2torch.solver.float32 import shortest

__all__ = ["Cause", "Effective", "Fault", "FaultKind", "Report", "ReportRow", "UnclaimedRow", "Verdict"]


class Verdict(StrEnum):
    """What was found of a row."""

    OK = "ok"
    MISMATCH = "mismatch"
    MISSING = "missing"
    DUPLICATE = "duplicate"


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
    """One rule that explains the faults of many rows, or a fault of the set-up as a whole (no ``parameters``)."""

    kinds: tuple[FaultKind, ...]
    message: str
    parameters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, repr=False)
class Report:
    """Expected against observed, whole: ``rows`` in the order of the recipe's blobs.

    ``iteration`` is the one whose rate ``expected`` and ``observed`` stand for. ``causes`` come first when it is read.
    ``notes`` are the recipe's, the binding's and the probe's own. ``sources`` are the files' texts, for the page that
    shows them.

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

    @property
    def wrong(self) -> tuple[ReportRow | UnclaimedRow, ...]:
        """The rows that are not ok, in their order."""
        rows: tuple[ReportRow | UnclaimedRow, ...] = (*self.rows, *self.unclaimed)
        return tuple(row for row in rows if row.verdict is not Verdict.OK)

    @property
    def ok(self) -> bool:
        """Whether everything learns as in Caffe."""
        return not self.wrong and not any(not cause.parameters for cause in self.causes)

    def to_dict(self) -> dict[str, object]:
        """The JSON report, as plain dictionaries and lists; numbers that JSON lacks (NaN) are ``None``."""
        from caffe2torch.report.solver_table import solver_dict

        return {
            "ok": self.ok,
            "net": self.net,
            "model": self.model,
            "iteration": self.iteration,
            "solver": solver_dict(self.solver),
            "causes": [
                {
                    "kinds": [str(kind) for kind in cause.kinds],
                    "message": cause.message,
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
        from caffe2torch.report.text import render_text

        return render_text(self)

    def _repr_html_(self) -> str:
        from caffe2torch.report.html import render_fragment

        return render_fragment(self)


def note_dict(note: Note) -> dict[str, object]:
    """A note of the JSON report."""
    where = None if note.where is None else str(note.where)
    return {"where": where, "severity": str(note.severity), "message": note.message}


def _plain(x: float | None) -> float | None:
    return None if x is None or not math.isfinite(x) else shortest(x)


# What can be wrong with an optimizer, by kind: the words that reports group by and that users accept by.


class FaultKind(StrEnum):
    """A kind of departure from Caffe; ``accept`` takes these words."""

    MISSING = "missing"  # no param group holds the parameter, or the model has none
    DUPLICATE = "duplicate"  # it stands in the groups more than once, or for more than one blob
    LR = "lr"
    WEIGHT_DECAY = "weight_decay"
    FROZEN = "frozen"  # Caffe trains it, here nothing moves it
    TRAINED = "trained"  # Caffe freezes it, here it moves
    ITER_SIZE = "iter_size"
    MOMENTUM = "momentum"
    RATE_CHANGE = "rate_change"
    SCHEDULE = "schedule"
    EPSILON = "epsilon"
    REGULARIZATION = "regularization"
    RULE = "rule"  # another solver, or none that is known
    CLIP = "clip"
    UNCLAIMED = "unclaimed"  # no blob of the net stands for it
    UNOBSERVED = "unobserved"


@dataclass(frozen=True, slots=True)
class Fault:
    """One departure: its kind, and the sentence that a person reads.

    Of a rate at an ``iteration``, ``seen`` is what it was and ``due`` what Caffe's would be.
    """

    kind: FaultKind
    message: str
    iteration: int | None = None
    seen: float | None = None
    due: float | None = None
