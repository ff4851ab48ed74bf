"""The text report: to the letter in two samples, as wide as asked, and showing hostile names as text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from report_runs import hostile, notebook, right

from caffe2torch.report import render
from caffe2torch.report.text import Column, layout, render_text


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("sample", [right, notebook])
def test_the_report_is_as_kept(sample: object, width: int, fixtures: Path) -> None:
    """``fixtures/reports``: looked at by a person; after a change that is meant, write them again and look again."""
    assert callable(sample)
    kept = fixtures / "reports" / f"{sample.__name__}-{width}.txt"
    assert render_text(sample(), width=width) == kept.read_text(encoding="utf-8")


def test_the_last_line_is_the_verdict() -> None:
    assert str(right()).splitlines()[-1] == "10 blobs, 10 parameters: all ok"
    assert str(notebook()).splitlines()[-1] == "6 of 10 rows ok, 2 mismatch, 2 missing"
    assert str(hostile()).splitlines()[-1] == "3 of 10 rows ok, 7 missing"


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_no_line_is_wider_than_asked(width: int) -> None:
    for report in (right(), notebook()):
        assert max(map(len, render_text(report, width=width).splitlines())) <= max(width, 78)


def test_every_row_is_there_whatever_the_width() -> None:
    for width in (40, 80, 200):
        text = render_text(right(), width=width)
        assert len(re.findall(r" ok$", text, re.MULTILINE)) == 11  # ten rows and the verdict


def test_colours_are_for_terminals_only() -> None:
    plain, coloured = render_text(notebook()), render_text(notebook(), colour=True)
    assert "\x1b" not in plain
    assert "\x1b[31mmismatch\x1b[0m" in coloured
    assert re.sub(r"\x1b\[\d*m", "", coloured) == plain


def test_coloured_text_is_as_wide_as_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert render(notebook(), colour=True) == render_text(notebook(), width=80, colour=True)
    assert render(notebook()) == render_text(notebook(), width=100)


def test_hostile_names_are_shown_as_text() -> None:
    text = render_text(hostile())
    assert all(c.isprintable() or c == "\n" for c in text)
    assert "\\x1b[31m\\u202eevil\\u2066" in text.replace("\n", "").replace(" ", "")
    assert "[red]" in text


def test_a_table_lines_up_wide_and_combining_characters() -> None:
    rows = [("a\u0301b", "1"), ("\u6f22\u5b57", "22"), ("plain", "333")]
    lines = list(layout([Column("name", folds=True), Column("n", right=True)], rows, 40))
    assert lines == ["name     n", "a\u0301b       1", "\u6f22\u5b57    22", "plain  333"]


def test_long_names_are_folded_at_separators_and_nothing_is_lost() -> None:
    name = "inception_4a/3x3_reduce/relu.weight"
    lines = list(layout([Column("name", folds=True), Column("n", right=True)], [(name, "1")], 20))
    assert all(len(line) <= 20 for line in lines)
    assert "".join(line[:17].strip() for line in lines[1:]) == name


def test_an_unknown_style_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown style 'pdf'"):
        render(right(), "pdf")
    assert render(right(), "text", width=80) == render_text(right(), width=80)
