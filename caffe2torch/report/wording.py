"""Names and numbers as every report writes them."""

from __future__ import annotations

import json
import math
from typing import Any

from caffe2torch.errors import visible
from caffe2torch.recipe import LearnableBlob, Statement
from caffe2torch.solver.float32 import number
from caffe2torch.verification.report import Effective, ReportRow

__all__ = ["STATED", "blob_name", "json_text", "multipliers", "pair", "stated_text", "visible"]


def pair(effective: Effective) -> tuple[str, str]:
    """Rate and decay, ``-`` where there is none to show."""
    return number(effective.lr, "-"), number(effective.weight_decay, "-")


def multipliers(row: ReportRow) -> str:
    """``2, 0``; with the factor of fine-tuning ``2x10, 0``."""
    factor = "" if row.factor == 1 else f"x{row.factor:g}"
    return f"{row.blob.lr_mult:g}{factor}, {row.blob.decay_mult:g}"


def blob_name(blob: LearnableBlob) -> str:
    """``conv1/0 weight``, and how many more layers use it."""
    more = f" +{len(blob.shared_with)} shared" if blob.shared_with else ""
    return visible(f"{blob.name} {blob.role}{more}")


STATED = {
    Statement.EXPLICIT: "explicit",
    Statement.DEFAULTED: "default",
    Statement.SHARED: "shared",
    Statement.FORCED: "forced",
}
"""How a multiplier was stated, in one word."""


def stated_text(blob: LearnableBlob) -> str:
    """How the two multipliers were stated: one word where it is the same."""
    lr, decay = STATED[blob.stated.lr_mult], STATED[blob.stated.decay_mult]
    return lr if lr == decay else f"{lr}, {decay}"


def json_text(data: Any) -> str:
    """JSON as it is specified, which has no NaN and no infinity: they become ``null``.

    >>> print(json_text([0.5, float("nan")]), end="")
    [
      0.5,
      null
    ]
    """
    try:
        return json.dumps(data, indent=2, allow_nan=False) + "\n"
    except ValueError:
        return json.dumps(_with_null(data), indent=2, allow_nan=False) + "\n"


def _with_null(data: Any) -> Any:
    match data:
        case float():
            return data if math.isfinite(data) else None
        case dict():
            return {key: _with_null(value) for key, value in data.items()}
        case list() | tuple():
            return [_with_null(value) for value in data]
    return data
