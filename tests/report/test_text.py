"""The text report: to the letter in two samples, as wide as asked, and showing hostile names as text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from places import REPOSITORY
from report_runs import hostile, notebook, right

from caffe2torch.report import render
from caffe2torch.report.text import Column, View, layout, render_text, wrap
from caffe2torch.verification.report import Report, ReportRow


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("sample", [right, notebook])
def test_the_report_is_as_kept(sample: object, width: int, fixtures: Path) -> None:
    """``fixtures/reports``: looked at by a person; after a change that is meant, write them again and look again."""
    assert callable(sample)
    kept = fixtures / "reports" / f"{sample.__name__}-{width}.txt"
    assert render_text(sample(), View(width=width)) == kept.read_text(encoding="utf-8")


def test_the_last_line_is_the_verdict() -> None:
    assert str(right()).splitlines()[-1] == "10 blobs, 10 parameters: all ok"
    assert str(notebook()).splitlines()[-1] == "6 of 10 rows ok, 2 mismatch, 2 missing"
    assert str(hostile()).splitlines()[-1] == "3 of 10 rows ok, 7 missing"


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_no_line_is_wider_than_asked(width: int) -> None:
    for report in (right(), notebook()):
        assert max(map(len, render_text(report, View(width=width)).splitlines())) <= max(width, 78)


def test_every_row_is_there_whatever_the_width() -> None:
    for width in (40, 80, 200):
        text = render_text(right(), View(width=width))
        assert len(re.findall(r" ok$", text, re.MULTILINE)) == 11  # ten rows and the verdict


def test_colours_are_for_terminals_only() -> None:
    plain, coloured = render_text(notebook(), View()), render_text(notebook(), View(colour=True))
    assert "\x1b" not in plain
    assert "\x1b[31mmismatch\x1b[0m" in coloured
    assert re.sub(r"\x1b\[\d*m", "", coloured) == plain


def test_coloured_text_is_as_wide_as_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert render(notebook(), colour=True) == render_text(notebook(), View(width=80, colour=True))
    assert render(notebook()) == render_text(notebook(), View(width=100))


def test_hostile_names_are_shown_as_text() -> None:
    text = render_text(hostile(), View())
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
    assert render(right(), "text", width=80) == render_text(right(), View(width=80))


def test_checks_causes_table_verdict_and_next_command_come_in_this_order() -> None:
    text = render_text(notebook(), View(next_step="caffe2torch audit ... --fix optimizer.py"))
    parts = ["check        result", "What is wrong:", "blob   ", "6 of 10 rows ok", "Next: caffe2torch audit"]
    assert sorted(parts, key=text.index) == parts
    assert text.endswith("Next: caffe2torch audit ... --fix optimizer.py\n")


def test_the_next_command_stands_on_one_line_however_long_it_is() -> None:
    command = "caffe2torch translate " + "folder/" * 40 + "net.prototxt -o optimizer.py"
    assert render_text(right(), View(width=80, next_step=command)).splitlines()[-1] == f"Next: {command}"


@pytest.mark.parametrize("width", [40, 60, 80, 100])
@pytest.mark.parametrize("sample", [right, notebook])
def test_a_word_is_never_broken_but_a_name_may_be_after_a_separator(sample: Callable[[], Report], width: int) -> None:
    """Whatever the width, the same words stand in the text."""
    words = re.compile(r"[A-Za-z0-9]+")
    narrow, wide = (render_text(sample(), View(width=w)) for w in (width, 1000))
    assert Counter(words.findall(narrow)) == Counter(words.findall(wide))


def test_a_sentence_breaks_a_long_name_after_its_separators_alone() -> None:
    name = "inception_4a/3x3_reduce.branch_pool"
    lines = [*wrap(f"the blob {name} has no group", 20)]
    assert lines == ["the blob inception_", "  4a/3x3_reduce.", "  branch_pool has no", "  group"]


def test_a_long_table_has_a_line_for_blobs_that_are_alike_and_counts_them_all() -> None:
    report = notebook()
    folded, full = render_text(report, View(rows=9)), render_text(report, View(rows=10))
    assert full == render_text(report, View(rows=None))
    table = re.findall(r"^(?:Convolution|BN) \w+ +(\d+) .*?(\w+)$", folded, re.MULTILINE)
    assert Counter(verdict for count, verdict in table for _ in range(int(count))) == Counter(
        str(row.verdict) for row in report.rows
    )
    assert "10 rows by role; --full (render(report, full=True)) shows each." in folded
    assert folded.count("\n") < full.count("\n")
    assert render(report, full=True) == full


def test_only_wrong_shows_what_is_not_right_and_nothing_else() -> None:
    report = notebook()
    text = render(report, only_wrong=True, width=200)
    shown = re.findall(r"^(\S+ \w+)  ", text.partition("blob  ")[2], re.MULTILINE)
    assert shown == [f"{row.blob.name} {row.blob.role}" for row in report.wrong if isinstance(row, ReportRow)]
    assert "update rule" not in text
    assert text.splitlines()[-1] == str(report).splitlines()[-1]


def test_only_wrong_folds_rows_as_the_whole_table_does() -> None:
    folded = render_text(notebook(), View(only_wrong=True, rows=3, width=200))
    (row,) = re.findall(r"^BN shift +2 .*mismatch$", folded, re.MULTILINE)
    assert "4 rows by role; --full" in folded
    assert row


def test_what_was_not_seen_is_green_nowhere() -> None:
    text = render_text(notebook(), View(colour=True, width=200))
    assert re.search(r"^update rule +\x1b\[32mok", text, re.MULTILINE)
    assert not re.search(r"\x1b\[32mnot seen", text)
    css = (REPOSITORY / "caffe2torch/report/templates/page.css").read_text()
    assert not [rule for rule in css.splitlines() if "not-seen" in rule and "good" in rule]


def test_every_cause_has_its_rows_its_place_and_its_fix() -> None:
    text = render_text(notebook(), View(width=200))
    for cause in notebook().causes:
        assert f"- {cause.message}" in text
        assert f"  At {cause.where}" in text
        assert f"  Fix: {cause.fix}" in text
        assert ", ".join(cause.parameters) in text
