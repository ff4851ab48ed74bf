"""A Report as text, JSON, Markdown or HTML: functions, nothing else."""

from __future__ import annotations

from caffe2torch.report.data import Report

__all__ = ["render"]


def render(report: Report, style: str, *, colour: bool = False) -> str:
    """The report as ``text``, ``json`` or ``md``; it ends with a line feed. Raises ``ValueError`` for another style."""
    match style:
        case "text":
            from caffe2torch.report.text import render_text

            return render_text(report, colour=colour)
        case "json":
            from caffe2torch.report.json import render_json

            return render_json(report)
        case "md":
            from caffe2torch.report.markdown import render_markdown

            return render_markdown(report)
        case _:
            raise ValueError(f"unknown style {style!r}; there are 'text', 'json' and 'md'")
