"""What the forks' own rules make of a solver: translated where they are plain formulas, refused by name where not.

Sources: ``SGDSolver::GetLearningRate``, ``GetMomentum`` and ``GetWeightDecay`` of Intel's and MobileNet-YOLO's Caffe
and of NVIDIA's 0.17. No run of these was recorded: each rule is tested against its formula.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any

from google.protobuf import text_format
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import BoolValue, FloatValue, Int32Value, StringValue

from caffe2torch.errors import SolverError
from caffe2torch.prototxt.parser import Block, Field
from caffe2torch.recipe import Note, PolicyType, Ramp, Severity, SolverSettings, SolverType, Unsupported
from caffe2torch.solver.float32 import format32, shortest

__all__ = ["FORK_FIELDS", "Meaning", "apply_fork_rules"]

Stated = Mapping[str, Sequence[Field]]


def apply_fork_rules(settings: SolverSettings, unknown: Sequence[Field]) -> tuple[SolverSettings, tuple[Note, ...]]:
    """Add to BVLC's settings what the fields that its schema does not know mean in the forks that do.

    A rule that is a plain formula joins the policy, the momentum or the decay; one that is not joins ``unsupported``.
    Every field of the table gets a note; fields that are not in the table are left to their schema's note.

    Raises:
        SolverError: where the fork itself refuses, or a value is not what its field takes.
    """
    stated: dict[str, list[Field]] = {}
    for field in unknown:
        if field.name in FORK_FIELDS:
            stated.setdefault(field.name, []).append(field)
    settings = _with_decay_policy(_with_momentum_policy(_with_rates(settings, stated), stated), stated)
    in_force = _rules_in_force(settings, stated)

    refused = {one.name: one for one in settings.unsupported}
    if settings.policy.type is PolicyType.PLATEAU:
        refused["plateau"] = Unsupported("plateau", settings.places["lr_policy"], FORK_FIELDS["plateau_winsize"].reason)
    for name, fields in stated.items():
        row = FORK_FIELDS[name]
        if row.meaning is Meaning.REFUSED and row.rule in in_force:
            where = stated.get(row.rule, fields)[0].where
            refused.setdefault(row.rule, Unsupported(row.rule, where, row.reason))

    notes = []
    for name, fields in stated.items():
        row = FORK_FIELDS[name]
        severity, consequence = Severity.INFO, "translated"
        if row.meaning is Meaning.HARMLESS:
            consequence = "it does not change what is learned"
        elif row.meaning is Meaning.PRECISION:
            consequence = f"Caffe computed in {fields[0].value}, torch computes in the model's own number format"
        elif row.rule not in in_force:
            consequence = f"without effect here, as {row.rule} is off"
        elif row.rule in refused:
            severity = Severity.WARNING
            consequence = (
                f"not translated{f': {refused[row.rule].reason}' if name == row.rule else f', like {row.rule}'}"
            )
        notes.append(Note(fields[0].where, severity, f"{name} is {row.forks} field, {consequence}"))
    return replace(settings, unsupported=tuple(refused.values())), tuple(notes)


def _rules_in_force(settings: SolverSettings, stated: Stated) -> set[str]:
    policy = settings.policy
    rules = {
        "multifixed": policy.type is PolicyType.MULTIFIXED,
        "plateau": policy.type is PolicyType.PLATEAU,
        "warmup_iter": policy.warmup_iter is not None,
        "rampup_interval": policy.rampup_interval is not None,
        "min_lr": policy.min_lr is not None,
        "momentum_policy": settings.momentum_ramp is not None or settings.momentum_from_rate is not None,
        "weight_decay_policy": _value(stated, "weight_decay_policy", StringValue, "") == "poly",
        "momentum_start": any(FORK_FIELDS[name].rule == "momentum_start" for name in stated),
        "stepearly": "stepearly" in stated,
        "update_interval": _value(stated, "update_interval", Int32Value, 1) != 1,
        **{name: _value(stated, name, BoolValue, False) for name in ("larc", "local_lr_auto", "disabled_update")},
    }
    return {rule for rule, is_on in rules.items() if is_on}


def _with_rates(settings: SolverSettings, stated: Stated) -> SolverSettings:
    """Intel's stages and warm-up, NVIDIA's ramp-up and floor."""
    policy = settings.policy
    if policy.type is PolicyType.MULTIFIXED:
        lrs = tuple(shortest(_read(field, FloatValue)) for field in stated.get("stagelr", ()))
        iters = tuple(_read(field, Int32Value) for field in stated.get("stageiter", ()))
        if not lrs or len(lrs) != len(iters):
            raise SolverError(
                "lr_policy 'multifixed' needs a stageiter for each stagelr, and at least one of them",
                where=settings.places["lr_policy"],
                found=f"{len(lrs)} stagelr, {len(iters)} stageiter",
                hint="write for each stage its rate and its last iteration",
            )
        policy = replace(policy, stage_lrs=lrs, stage_iters=iters)
    if (length := _value(stated, "warmup_iter", Int32Value, 0)) > 0:
        start = shortest(_value(stated, "warmup_start_lr", FloatValue, 0.0))
        policy = replace(policy, warmup_iter=length, warmup_start_lr=start)
    if (length := _value(stated, "rampup_interval", Int32Value, 0)) > 0:
        start = shortest(_value(stated, "rampup_lr", FloatValue, 0.0))
        policy = replace(policy, rampup_interval=length, rampup_lr=start)
    if policy.warmup_iter is not None and policy.rampup_interval is not None:
        raise SolverError(
            "no Caffe reads both warmup_iter, which is Intel's, and rampup_interval, which is NVIDIA's",
            where=settings.places["rampup_interval"],
            hint="keep the one that the net was trained with",
        )
    if "min_lr" in stated:
        policy = replace(policy, min_lr=shortest(_value(stated, "min_lr", FloatValue, 0.0)))
        most = policy.base_lr if policy.type is PolicyType.POLY else math.inf
        if not 0.0 <= (policy.min_lr or 0.0) <= most:
            raise SolverError(
                "min_lr must not be negative, and for lr_policy 'poly' not above base_lr",
                where=settings.places["min_lr"],
                found=f"min_lr {format32(policy.min_lr or 0.0)}, base_lr {format32(policy.base_lr)}",
                expected="0 <= min_lr <= base_lr",
            )
    return replace(settings, policy=policy)


def _with_momentum_policy(settings: SolverSettings, stated: Stated) -> SolverSettings:
    """NVIDIA's ``momentum_policy``, which only its SGD and Nesterov read."""
    kind = _value(stated, "momentum_policy", StringValue, "fixed")
    if settings.type not in (SolverType.SGD, SolverType.NESTEROV):
        return settings
    maximum = shortest(_value(stated, "max_momentum", FloatValue, 0.0))
    match kind:
        case "fixed":
            return settings
        case "poly":
            power = shortest(_value(stated, "momentum_power", FloatValue, 0.0))
            return replace(settings, momentum_ramp=Ramp(maximum, power, settings.max_iter))
        case "opt":
            return replace(settings, momentum_from_rate=maximum if "max_momentum" in stated else math.inf)
    raise SolverError(
        f"unknown momentum_policy {kind!r}",
        where=settings.places["momentum_policy"],
        expected="'fixed', 'poly' or 'opt'",
    )


def _with_decay_policy(settings: SolverSettings, stated: Stated) -> SolverSettings:
    """NVIDIA's ``weight_decay_policy``, of which only ``poly`` does anything."""
    if _value(stated, "weight_decay_policy", StringValue, "fixed") != "poly":
        return settings
    if "max_weight_decay" not in stated or "weight_decay_power" not in stated:
        reason = "NVIDIA's releases disagree on it unless max_weight_decay and weight_decay_power are both stated"
        refused = Unsupported("weight_decay_policy", settings.places["weight_decay_policy"], reason)
        return replace(settings, unsupported=(*settings.unsupported, refused))
    maximum = shortest(_value(stated, "max_weight_decay", FloatValue, 0.0))
    power = shortest(_value(stated, "weight_decay_power", FloatValue, 0.0))
    return replace(settings, weight_decay_ramp=Ramp(maximum, power, settings.max_iter))


def _value(stated: Stated, name: str, wrapper: type[Message], default: Any) -> Any:
    """The value of a field that may stand once, or ``default``."""
    fields = stated.get(name, ())
    if len(fields) > 1:
        raise SolverError(
            f"{name} is stated {len(fields)} times, and it takes one value",
            where=fields[1].where,
            hint=f"remove all but one; the first is at {fields[0].where}",
        )
    return _read(fields[0], wrapper) if fields else default


def _read(field: Field, wrapper: type[Message]) -> Any:
    """A field's value, read by protobuf's own parser as if its schema knew the field."""
    kind = {FloatValue: "a number", Int32Value: "a whole number", BoolValue: "true or false", StringValue: "a string"}
    try:
        if isinstance(field.value, Block):
            raise text_format.ParseError("a block")
        parsed: Any = text_format.Parse(f"value: {field.value}", wrapper())
    except text_format.ParseError:
        found = "a block" if isinstance(field.value, Block) else field.value
        raise SolverError(
            f"{field.name} takes {kind[wrapper]}", where=field.where, found=found, expected=kind[wrapper]
        ) from None
    return parsed.value


# The solver fields that only forks of Caffe know, and what each does to the training.
#
# Sources: the ``SolverParameter`` messages of 28 forks, and the ``sgd_solver.cpp`` of those that added a rule.


class Meaning(Enum):
    """What a fork's field does to the training."""

    TRANSLATED = auto()  # a plain formula: solver/lr_policy.py evaluates it
    REFUSED = auto()  # changes what is learned, and is not translated
    PRECISION = auto()  # the number format that Caffe computed in; the formulas are the same
    HARMLESS = auto()  # testing, logging, snapshots, devices


@dataclass(frozen=True, slots=True)
class ForkField:
    """A row of the table: whose field it is, what it means, and the rule that must be in force for it to be read.

    ``rule`` is also the name by which a user accepts to go without one that is refused.
    """

    forks: str
    meaning: Meaning
    rule: str | None = None
    reason: str = ""


_LARC = "each blob's rate follows from the norms of its weights and of its gradient"
_PRIVATE = "by its name it changes how the net learns, and the rule behind it is not known"

_T, _R, _P, _H = Meaning.TRANSLATED, Meaning.REFUSED, Meaning.PRECISION, Meaning.HARMLESS
FORK_FIELDS: Mapping[str, ForkField] = {
    # the rate
    "stagelr": ForkField("Intel's and MobileNet-YOLO's", _T, "multifixed"),
    "stageiter": ForkField("Intel's and MobileNet-YOLO's", _T, "multifixed"),
    "warmup_iter": ForkField("Intel's", _T, "warmup_iter"),
    "warmup_start_lr": ForkField("Intel's", _T, "warmup_iter"),
    "rampup_interval": ForkField("NVIDIA's", _T, "rampup_interval"),
    "rampup_lr": ForkField("NVIDIA's", _T, "rampup_interval"),
    "min_lr": ForkField("NVIDIA's", _T, "min_lr"),
    "plateau_winsize": ForkField("Intel's and SSD's", _R, "plateau", "the rate follows the smoothed loss"),
    "stepearly": ForkField("a private fork's", _R, "stepearly", _PRIVATE),
    # momentum and decay
    "momentum_policy": ForkField("NVIDIA's", _T, "momentum_policy"),
    "max_momentum": ForkField("NVIDIA's", _T, "momentum_policy"),
    "momentum_power": ForkField("NVIDIA's", _T, "momentum_policy"),
    "weight_decay_policy": ForkField("NVIDIA's", _T, "weight_decay_policy"),
    "max_weight_decay": ForkField("NVIDIA's", _T, "weight_decay_policy"),
    "weight_decay_power": ForkField("NVIDIA's", _T, "weight_decay_policy"),
    "momentum_start": ForkField("a private fork's", _R, "momentum_start", _PRIVATE),
    "momentum_end": ForkField("a private fork's", _R, "momentum_start", _PRIVATE),
    "terminal_epoch_number": ForkField("a private fork's", _R, "momentum_start", _PRIVATE),
    # the update
    "larc": ForkField("NVIDIA's", _R, "larc", _LARC),
    "larc_policy": ForkField("NVIDIA's", _R, "larc", _LARC),
    "larc_eta": ForkField("NVIDIA's", _R, "larc", _LARC),
    "larc_turbo": ForkField("NVIDIA's", _R, "larc", _LARC),
    "local_lr_auto": ForkField("Intel's", _R, "local_lr_auto", _LARC),
    "local_gw_ratio": ForkField("Intel's", _R, "local_lr_auto", _LARC),
    "update_interval": ForkField("a private fork's", _R, "update_interval", _PRIVATE),
    "disabled_update": ForkField("Intel's", _R, "disabled_update", "the solver itself updates no weight"),
    # number formats
    "solver_data_type": ForkField("NVIDIA's", _P),
    "data_type": ForkField("the OpenCL branch's", _P),
    # testing, logging, snapshots, devices
    "ap_version": ForkField("SSD's", _H),
    "debug_display": ForkField("a private fork's", _H),
    "device": ForkField("the OpenCL branch's", _H),
    "device_id": ForkField("yjxiong's", _H),  # there a list, so that it is unknown only where it is one
    "engine": ForkField("Intel's", _H),
    "eval_type": ForkField("SSD's", _H),
    "group_id": ForkField("yjxiong's", _H),
    "log_avg_gradient_norm": ForkField("weiliu's", _H),
    "per_parameter_reduce": ForkField("NVIDIA's", _H),
    "richness": ForkField("yjxiong's", _H),
    "show_per_class_result": ForkField("SSD's", _H),
    "store_blobs_in_old_format": ForkField("NVIDIA's", _H),
    "test_and_snapshot_last_epochs": ForkField("NVIDIA's", _H),
    "test_before_snapshot": ForkField("weiliu's", _H),
    "test_offset": ForkField("Intel's", _H),
}
