"""Reports as people read them: functions from a ``Report`` or a recipe to text, and nothing else."""

from __future__ import annotations

from shutil import get_terminal_size

from caffe2torch.verification.report import Report

__all__ = ["render"]


def render(
    report: Report,
    style: str = "text",
    *,
    width: int | None = None,
    colour: bool = False,
    full: bool = False,
    only_wrong: bool = False,
    fit: bool = False,
    next_step: str = "",
) -> str:
    """A report as ``text``, ``json``, ``md`` or ``html``; all but ``style`` is for text.

    Args:
        report: The report.
        style: What to write.
        width: Columns; without it, text that has colours or is to ``fit`` is as wide as the terminal, and any other
            the same on every machine.
        colour: With a terminal's colours.
        full: Every row. Else a table that is longer than a screen has a line for each group and role.
        only_wrong: Only what is not right.
        fit: As wide and as long as the terminal is, which ``COLUMNS`` and ``LINES`` may state.
        next_step: What to do next, for the last line.

    Raises:
        ValueError: For another style.
    """
    match style:
        case "text":
            from caffe2torch.report.text import SCREEN, WIDTH, View, render_text

            terminal = get_terminal_size((WIDTH, SCREEN)) if colour or fit else None
            rows = terminal.lines if terminal else SCREEN
            columns = max(terminal.columns, 40) if terminal else WIDTH
            return render_text(report, View(width or columns, colour, None if full else rows, only_wrong, next_step))
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
