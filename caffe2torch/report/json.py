"""The report as JSON: ``Report.to_dict()``, one value a line, the same on every run."""

from __future__ import annotations

import json

from caffe2torch.verification.report import Report

__all__ = ["render_json"]


def render_json(report: Report) -> str:
    """The JSON text; it ends with a line feed and holds ASCII alone."""
    return json.dumps(report.to_dict(), indent=2, allow_nan=False) + "\n"
