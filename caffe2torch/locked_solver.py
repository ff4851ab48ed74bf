"""Solver settings as plain JSON values and back: only what differs from Caffe's defaults, always in one order."""

from __future__ import annotations

from dataclasses import MISSING, fields
from enum import Enum
from typing import Any

from caffe2torch.recipe import LrPolicy, PolicyType, Ramp, Regularization, SolverSettings, SolverType

__all__ = ["solver_fields", "solver_from"]

_LEFT_OUT = {"places", "unsupported", "net", "random_seed"}


def solver_fields(settings: SolverSettings | LrPolicy | Ramp) -> dict[str, Any]:
    """Field to value, by the names of the dataclasses in ``recipe.py``."""
    said: dict[str, Any] = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        if field.name in _LEFT_OUT or (field.default is not MISSING and value == field.default):
            continue
        if isinstance(value, Enum):
            value = value.value
        elif isinstance(value, LrPolicy | Ramp):
            value = solver_fields(value)
        elif isinstance(value, tuple):
            value = list(value)
        said[field.name] = value
    return said


def solver_from(said: dict[str, Any]) -> SolverSettings:
    """The settings again. Raises ``KeyError``, ``TypeError`` or ``ValueError`` for what are none."""
    values = dict(said)
    policy: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in values.pop("policy").items()
    }
    policy["type"] = PolicyType(policy["type"])
    for ramp in ("momentum_ramp", "weight_decay_ramp"):
        if values.get(ramp) is not None:
            values[ramp] = Ramp(**values[ramp])
    if "regularization" in values:
        values["regularization"] = Regularization(values["regularization"])
    return SolverSettings(**{**values, "type": SolverType(values["type"]), "policy": LrPolicy(**policy)})
