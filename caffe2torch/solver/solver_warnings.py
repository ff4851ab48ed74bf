"""What Caffe accepts in a solver although it can hardly be meant: we do as Caffe does, with a note."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from caffe2torch.recipe import Note, PolicyType, Regularization, Severity, SolverSettings, SolverType
from caffe2torch.solver.float32 import format32
from caffe2torch.solver.lr_policy import POLICIES
from caffe2torch.solver.update_rules import SOLVERS

__all__ = ["solver_warnings"]


Found = tuple[str, str]
"""A field, and what there is to know about it."""


def solver_warnings(settings: SolverSettings, message: Any) -> tuple[Note, ...]:
    """Notes on a solver that Caffe accepts.

    Args:
        settings: The solver, read.
        message: Its protobuf message, for what is not in the settings.

    Returns:
        Warnings about what can hardly be meant, then what is good to know.
    """
    regularization = message.regularization_type
    warnings = [*_of_the_rate(settings), *_of_the_update(settings), *_of_forks(settings)]
    if regularization not in tuple(Regularization):
        text = f"regularization_type {regularization!r} is unknown; Caffe lets it pass while weight_decay is 0"
        warnings.append(("regularization_type", text))
    places = settings.places
    return tuple(
        Note(places.get(name, places["lr_policy"]), severity, text)
        for severity, found in ((Severity.WARNING, warnings), (Severity.INFO, _to_know(settings, message)))
        for name, text in found
    )


def _of_the_rate(settings: SolverSettings) -> Iterator[Found]:
    policy, stated = settings.policy, settings.places
    ramps = policy.warmup_iter is not None or policy.rampup_interval is not None
    if "base_lr" not in stated and (policy.type is not PolicyType.MULTIFIXED or ramps):
        yield "base_lr", "base_lr is not stated, so Caffe takes 0: nothing learns"
    if policy.base_lr < 0:
        yield "base_lr", f"base_lr is {format32(policy.base_lr)}: every step increases the loss"
    if "gamma" not in stated and "gamma" in POLICIES[policy.type].fields:
        yield "gamma", f"gamma is not stated, so Caffe takes 0: {POLICIES[policy.type].without_gamma}"
    if "power" not in stated and "power" in POLICIES[policy.type].fields:
        yield "power", "power is not stated, so Caffe takes 0: the rate stays base_lr"
    if policy.type is PolicyType.POLY and policy.max_iter == 0 and policy.power != 0 and policy.min_lr is None:
        text = "lr_policy 'poly' without max_iter: the rate is not a number at iteration 0 and infinite from then on"
        yield "max_iter", text
    if policy.type is PolicyType.MULTISTEP:
        if not policy.stepvalues:
            yield "stepvalue", "lr_policy 'multistep' without a stepvalue: the rate stays base_lr"
        if any(later < earlier for earlier, later in pairwise(policy.stepvalues)):
            text = "the stepvalues do not rise: Caffe takes them in their order, one an iteration, so some act late"
            yield "stepvalue", text
        if len(set(policy.stepvalues)) < len(policy.stepvalues):
            yield (
                "stepvalue",
                "a stepvalue stands twice: Caffe lowers the rate in as many iterations, one after the other",
            )


def _of_the_update(settings: SolverSettings) -> Iterator[Found]:
    kind, row, stated = settings.type, SOLVERS[settings.type], settings.places
    if settings.iter_size == 0:
        text = "iter_size is 0: Caffe reads no batch and divides by 0, so every weight is NaN after the first iteration"
        yield "iter_size", text
    elif settings.iter_size < 0:
        yield "iter_size", f"iter_size is {settings.iter_size}: Caffe reads no batch, only decay and momentum act"
    if not 0 <= settings.momentum < 1:
        effect = ": Adam divides by 0, no weight stays finite" if kind is SolverType.ADAM else ""
        yield "momentum", f"momentum is {format32(settings.momentum)}, which is outside 0 to 1{effect}"
    elif "momentum" in row.settings and not row.linear and "momentum" not in stated:
        yield "momentum", f"momentum is not stated, so {kind}'s {row.momentum} is 0"
    if "momentum2" in row.settings and not 0 <= settings.momentum2 < 1:
        yield (
            "momentum2",
            f"momentum2 is {format32(settings.momentum2)}, which is outside 0 to 1: {kind}'s correction fails",
        )
    if "delta" in row.settings and settings.delta <= 0:
        text = f"delta is {format32(settings.delta)}: where a gradient is exactly 0 the weight can become NaN"
        yield "delta", text
    if settings.clip_gradients == 0:
        yield "clip_gradients", "clip_gradients is 0: Caffe scales every gradient to 0; to switch it off, remove it"
    if settings.weight_decay < 0:
        yield "weight_decay", f"weight_decay is {format32(settings.weight_decay)}: weights grow"


def _of_forks(settings: SolverSettings) -> Iterator[Found]:
    policy, stated = settings.policy, settings.places
    if settings.momentum_ramp is not None and "max_momentum" not in stated:
        yield "momentum_policy", "max_momentum is not stated, so Caffe takes 0: momentum falls to 0"
    if settings.momentum_ramp is not None and "momentum_power" not in stated:
        yield (
            "momentum_policy",
            "momentum_power is not stated, so Caffe takes 0: momentum is max_momentum from the start",
        )
    if policy.warmup_iter is not None and policy.type is PolicyType.MULTISTEP:
        passed = [value for value in policy.stepvalues if value <= policy.warmup_iter]
        if len(passed) > 1:
            text = (
                "several stepvalues are within the warm-up: they act one an iteration afterwards; Intel's Caffe "
                "asks for the rate once a blob, and is faster"
            )
            yield "stepvalue", text


def _to_know(settings: SolverSettings, message: Any) -> Iterator[Found]:
    policy, stated = settings.policy, settings.places
    for name in ("gamma", "power", "stepsize", "stepvalue"):
        if name in stated and name not in POLICIES[policy.type].fields:
            yield name, f"lr_policy '{policy.type}' does not read {name}"
    if policy.type is PolicyType.SIGMOID and policy.gamma < 0:
        yield "gamma", "gamma is negative, so the rate falls; Caffe of December 2017 and later refuses it, forks do not"
    only_trains = message.train_net or message.HasField("train_net_param")
    if only_trains and len(message.test_iter) > len(message.test_net) + len(message.test_net_param):
        yield "test_iter", "test_iter without a test net, which Caffe refuses; testing is not translated"
    if message.weights:
        files = ", ".join(name for one in message.weights for name in one.split(","))
        yield "weights", f"training starts from the weights in {files}"
    row = SOLVERS[settings.type]
    for name in ("momentum2", "rms_decay", "delta"):
        if name in stated and name not in row.settings:
            yield name, f"{settings.type} does not read {name}"
    if settings.max_iter <= 0:
        said = "is not above 0" if "max_iter" in stated else "is not stated"
        yield "max_iter", f"max_iter {said}: Caffe's own train command would stop at once"
    if "rms_decay" in row.settings and "rms_decay" not in stated:
        yield "type", "rms_decay is not stated: BVLC's Caffe takes 0.99, forks that never gave it a default take 0"
    if policy.rampup_interval is not None:
        yield (
            "rampup_interval",
            "the rate rises with the square of the iteration, as in NVIDIA's 0.17; 0.16 began linearly",
        )
