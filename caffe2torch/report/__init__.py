"""Reports as people read them: functions from a ``Report`` or a recipe to text, and nothing else."""

from __future__ import annotations

from shutil import get_terminal_size

from caffe2torch.verification.report import Report

__all__ = ["render"]


def render(report: Report, style: str = "text", *, width: int | None = None, colour: bool = False) -> str:
    """A report as ``text``, ``json``, ``md`` or ``html``; ``width`` and ``colour`` are for text on a terminal.

    Without a ``width``, coloured text is as wide as the terminal, and any other one the same on every machine.

    Raises ``ValueError`` for another style, ``MissingExtraError`` for ``html`` where matplotlib is not installed.
    """
    match style:
        case "text":
            from caffe2torch.report.text import WIDTH, render_text

            terminal = max(get_terminal_size((WIDTH, 24)).columns, 40) if colour else WIDTH
            return render_text(report, width=width or terminal, colour=colour)
        case "json":
            from caffe2torch.report.text import render_json

            return render_json(report)
        case "md":
            from caffe2torch.report.markdown import render_markdown

            return render_markdown(report)
        case "html":
            from caffe2torch.report.html import render_html

            return render_html(report)
        case _:
            raise ValueError(f"unknown style {style!r}; there are 'text', 'json', 'md' and 'html'")
