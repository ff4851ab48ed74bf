"""What the forks' own rules make of a solver: translated where they are plain formulas, refused by name where not.

Sources: ``SGDSolver::GetLearningRate``, ``GetMomentum`` and ``GetWeightDecay`` of Intel's and MobileNet-YOLO's Caffe
and of NVIDIA's 0.17. No run of these was recorded: each rule is tested against its formula.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any

from google.protobuf import text_format
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import BoolValue, FloatValue, Int32Value, StringValue

from caffe2torch.errors import SolverError
from caffe2torch.prototxt.parser import Block, Field
from caffe2torch.recipe import Note, PolicyType, Ramp, Severity, SolverSettings, Unsupported
from caffe2torch.solver.float32 import format32, shortest
from caffe2torch.solver.update_rules import SOLVERS

__all__ = ["FORK_FIELDS", "FORK_POLICIES", "FORK_SOLVERS", "ForkField", "Meaning", "apply_fork_rules"]

Stated = Mapping[str, Sequence[Field]]


def apply_fork_rules(settings: SolverSettings, unknown: Iterable[Field]) -> tuple[SolverSettings, tuple[Note, ...]]:
    """Add to BVLC's settings what the fields that its schema does not know mean in the forks that do.

    Args:
        settings: What BVLC's Caffe reads.
        unknown: The fields that it does not know. Those that are not in the table are left to their schema's note.

    Returns:
        The settings, and a note for each field. A rule that is a plain formula joins the policy, the momentum or the
        decay; one that is not joins ``unsupported``.

    Raises:
        SolverError: where the fork itself refuses, or a value is not what its field takes.
    """
    stated: dict[str, list[Field]] = {}
    for field in unknown:
        if field.name in FORK_FIELDS:
            stated.setdefault(field.name, []).append(field)
    settings = _with_decay_policy(_with_momentum_policy(_with_rates(settings, stated), stated), stated)
    rules = {row.rule for name in stated if (row := FORK_FIELDS[name]).rule}
    in_force = {rule for rule in rules if _in_force(rule, settings, stated)}

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
            consequence = row.reason or "it does not change what is learned"
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


def _in_force(rule: str, settings: SolverSettings, stated: Stated) -> bool:
    if rule in tuple(PolicyType):
        return settings.policy.type == rule
    if rule == "momentum_policy" and not SOLVERS[settings.type].linear:
        return False
    row = FORK_FIELDS[rule]
    if row.kind is None:  # a rule of which no more is known
        return any(FORK_FIELDS[name].rule == rule for name in stated)
    return row.on(_value(stated, rule))


def _with_rates(settings: SolverSettings, stated: Stated) -> SolverSettings:
    """Intel's stages and warm-up, NVIDIA's ramp-up and floor."""
    policy = settings.policy
    if policy.type is PolicyType.MULTIFIXED:
        lrs = tuple(map(_read, stated.get("stagelr", ())))
        iters = tuple(map(_read, stated.get("stageiter", ())))
        if not lrs or len(lrs) != len(iters):
            raise SolverError(
                "lr_policy 'multifixed' needs a stageiter for each stagelr, and at least one of them",
                where=settings.places["lr_policy"],
                found=f"{len(lrs)} stagelr, {len(iters)} stageiter",
                hint="write for each stage its rate and its last iteration",
            )
        policy = replace(policy, stage_lrs=lrs, stage_iters=iters)
    if (length := _value(stated, "warmup_iter")) > 0:
        start = _value(stated, "warmup_start_lr")
        policy = replace(policy, warmup_iter=length, warmup_start_lr=start)
    if (length := _value(stated, "rampup_interval")) > 0:
        start = _value(stated, "rampup_lr")
        policy = replace(policy, rampup_interval=length, rampup_lr=start)
    if policy.warmup_iter is not None and policy.rampup_interval is not None:
        raise SolverError(
            "no Caffe reads both warmup_iter, which is Intel's, and rampup_interval, which is NVIDIA's",
            where=settings.places["rampup_interval"],
            hint="keep the one that the net was trained with",
        )
    if "min_lr" in stated:
        policy = replace(policy, min_lr=_value(stated, "min_lr"))
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
    kind = _value(stated, "momentum_policy")
    if not SOLVERS[settings.type].linear:
        return settings
    maximum = _value(stated, "max_momentum")
    match kind:
        case "fixed":
            return settings
        case "poly":
            power = _value(stated, "momentum_power")
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
    if _value(stated, "weight_decay_policy") != "poly":
        return settings
    if "max_weight_decay" not in stated or "weight_decay_power" not in stated:
        reason = "NVIDIA's releases disagree on it unless max_weight_decay and weight_decay_power are both stated"
        refused = Unsupported("weight_decay_policy", settings.places["weight_decay_policy"], reason)
        return replace(settings, unsupported=(*settings.unsupported, refused))
    maximum = _value(stated, "max_weight_decay")
    power = _value(stated, "weight_decay_power")
    return replace(settings, weight_decay_ramp=Ramp(maximum, power, settings.max_iter))


def _value(stated: Stated, name: str) -> Any:
    """The value of a field that may stand once, or its default; floats as the shortest decimals of their float32."""
    fields = stated.get(name, ())
    if len(fields) > 1:
        raise SolverError(
            f"{name} is stated {len(fields)} times, and it takes one value",
            where=fields[1].where,
            hint=f"remove all but one; the first is at {fields[0].where}",
        )
    return _read(fields[0]) if fields else FORK_FIELDS[name].default


def _read(field: Field) -> Any:
    """A field's value, read by protobuf's own parser as if its schema knew the field."""
    wrapper = FORK_FIELDS[field.name].kind
    assert wrapper is not None
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
    return shortest(parsed.value) if wrapper is FloatValue else parsed.value


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
    """A row of the table.

    Attributes:
        forks: Whose field it is.
        meaning: What it does.
        rule: The rule that reads it: by this name a user accepts to go without a rule that is refused.
        reason: Why a rule is refused, or what a harmless field is for where that needs saying.
        kind: What the field takes, as protobuf's wrapper message; ``None`` where its type is not known.
        default: Its value where it is not stated.
        on: Whether the rule of the same name as the field is in force, from the field's value.
    """

    forks: str
    meaning: Meaning
    rule: str = ""
    reason: str = ""
    kind: type[Message] | None = None
    default: Any = None
    on: Callable[[Any], bool] = bool


_LARC = "each blob's rate follows from the norms of its weights and of its gradient"
_PRIVATE = "by its name it changes how the net learns, and the rule behind it is not known"
_DEEPDETECT = "DeepDetect's"


def _positive(value: float) -> bool:
    return value > 0


def _stated(value: object) -> bool:
    return value is not None


_T, _R, _P, _H = Meaning.TRANSLATED, Meaning.REFUSED, Meaning.PRECISION, Meaning.HARMLESS
FORK_FIELDS: Mapping[str, ForkField] = {
    # the rate
    "stagelr": ForkField("Intel's and MobileNet-YOLO's", _T, "multifixed", kind=FloatValue),
    "stageiter": ForkField("Intel's and MobileNet-YOLO's", _T, "multifixed", kind=Int32Value),
    "warmup_iter": ForkField("Intel's", _T, "warmup_iter", kind=Int32Value, default=0, on=_positive),
    "warmup_start_lr": ForkField("Intel's", _T, "warmup_iter", kind=FloatValue, default=0.0),
    "rampup_interval": ForkField("NVIDIA's", _T, "rampup_interval", kind=Int32Value, default=0, on=_positive),
    "rampup_lr": ForkField("NVIDIA's", _T, "rampup_interval", kind=FloatValue, default=0.0),
    "min_lr": ForkField("NVIDIA's", _T, "min_lr", kind=FloatValue, on=_stated),
    "plateau_winsize": ForkField("Intel's and SSD's", _R, "plateau", "the rate follows the smoothed loss"),
    "stepearly": ForkField("a private fork's", _R, "stepearly", _PRIVATE),
    # momentum and decay
    "momentum_policy": ForkField(
        "NVIDIA's", _T, "momentum_policy", kind=StringValue, default="fixed", on=lambda kind: kind != "fixed"
    ),
    "max_momentum": ForkField("NVIDIA's", _T, "momentum_policy", kind=FloatValue, default=0.0),
    "momentum_power": ForkField("NVIDIA's", _T, "momentum_policy", kind=FloatValue, default=0.0),
    "weight_decay_policy": ForkField(
        "NVIDIA's", _T, "weight_decay_policy", kind=StringValue, default="fixed", on=lambda kind: kind == "poly"
    ),
    "max_weight_decay": ForkField("NVIDIA's", _T, "weight_decay_policy", kind=FloatValue, default=0.0),
    "weight_decay_power": ForkField("NVIDIA's", _T, "weight_decay_policy", kind=FloatValue, default=0.0),
    "momentum_start": ForkField("a private fork's", _R, "momentum_start", _PRIVATE),
    "momentum_end": ForkField("a private fork's", _R, "momentum_start", _PRIVATE),
    "terminal_epoch_number": ForkField("a private fork's", _R, "momentum_start", _PRIVATE),
    "decoupled": ForkField(
        _DEEPDETECT, _R, "decoupled", "weight decay acts on the weights, not on the gradient", BoolValue, False
    ),
    # the update
    "larc": ForkField("NVIDIA's", _R, "larc", _LARC, BoolValue, False),
    "larc_policy": ForkField("NVIDIA's", _R, "larc", _LARC),
    "larc_eta": ForkField("NVIDIA's", _R, "larc", _LARC),
    "larc_turbo": ForkField("NVIDIA's", _R, "larc", _LARC),
    "local_lr_auto": ForkField("Intel's", _R, "local_lr_auto", _LARC, BoolValue, False),
    "local_gw_ratio": ForkField("Intel's", _R, "local_lr_auto", _LARC),
    "update_interval": ForkField(
        "a private fork's", _R, "update_interval", _PRIVATE, Int32Value, 1, on=lambda interval: interval != 1
    ),
    "disabled_update": ForkField(
        "Intel's", _R, "disabled_update", "the solver itself updates no weight", BoolValue, False
    ),
    "amsgrad": ForkField(
        _DEEPDETECT, _R, "amsgrad", "Adam divides by the largest second moment so far", BoolValue, False
    ),
    "rectified": ForkField(
        _DEEPDETECT, _R, "rectified", "Adam's first steps are damped by their variance (RAdam)", BoolValue, False
    ),
    "lookahead": ForkField(
        _DEEPDETECT, _R, "lookahead", "slow weights follow the fast ones every few steps", BoolValue, False
    ),
    "lookahead_steps": ForkField(_DEEPDETECT, _R, "lookahead", "slow weights follow the fast ones every few steps"),
    "lookahead_alpha": ForkField(_DEEPDETECT, _R, "lookahead", "slow weights follow the fast ones every few steps"),
    # number formats
    "solver_data_type": ForkField("NVIDIA's", _P),
    "data_type": ForkField("the OpenCL branch's", _P),
    # testing, logging, snapshots, devices
    "ap_version": ForkField("SSD's", _H),
    "debug_display": ForkField("a private fork's", _H),
    "device": ForkField("the OpenCL branch's", _H),
    "device_id": ForkField(  # there a list, so that it is unknown only where it is one
        "yjxiong's", _H, reason="an update sees as many times the samples as it lists devices"
    ),
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

FORK_POLICIES: Mapping[str, str] = {
    "cosine": "the rate follows a cosine down to a floor, and forks disagree about its settings",
    "sgdr": "the rate follows a cosine and restarts, by a fork's own stepsize, mult_factor and min_lr",
    "stepearly": _PRIVATE,
}
"""Rate policies that forks have and that are not translated, and why."""

FORK_SOLVERS: Mapping[str, str] = {
    "adamw": "Adam whose weight decay acts on the weights, not on the gradient",
    "amsgrad": "Adam that divides by the largest second moment so far",
    "amsgradw": "AMSGrad whose weight decay acts on the weights, not on the gradient",
    "radam": "Adam whose first steps are damped by their variance",
    "ranger": "RAdam with slow weights that follow the fast ones",
    "ranger_plus": "Ranger with further rules of its own",
    "sag": "the stochastic average gradient of NVIDIA's Caffe",
    "sgdw": "SGD whose weight decay acts on the weights, not on the gradient",
}
"""Solver types that forks have and that are not translated, in lower case, and what they are."""
