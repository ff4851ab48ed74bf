"""Reports as people read them: functions from a ``Report`` or a recipe to text, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from shutil import get_terminal_size
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from caffe2torch.verification.report import Report

__all__ = ["FORMATS", "render"]


class Format(NamedTuple):
    """A format of a report: the ending of its file, the function that writes it, whether a terminal shows it well."""

    suffix: str
    module: str
    function: str
    printed: bool = True


FORMATS: Mapping[str, Format] = {
    "text": Format(".txt", "caffe2torch.report.text", "render_text"),
    "json": Format(".json", "caffe2torch.report.text", "render_json"),
    "md": Format(".md", "caffe2torch.report.markdown", "render_markdown"),
    "html": Format(".html", "caffe2torch.report.html", "render_html", printed=False),
}


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
    """A report in one of ``FORMATS``; all but ``style`` is for text.

    Args:
        report: The report.
        style: The format.
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
    if style not in FORMATS:
        raise ValueError(f"unknown style {style!r}; there are {', '.join(map(repr, FORMATS))}")
    written = getattr(import_module(FORMATS[style].module), FORMATS[style].function)
    if style != "text":
        return str(written(report))
    from caffe2torch.report.text import SCREEN, WIDTH, View

    terminal = get_terminal_size((WIDTH, SCREEN)) if colour or fit else None
    rows = terminal.lines if terminal else SCREEN
    columns = max(terminal.columns, 40) if terminal else WIDTH
    return str(written(report, View(width or columns, colour, None if full else rows, only_wrong, next_step)))
