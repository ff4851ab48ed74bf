"""The page holds what the JSON report holds, shows hostile names as text, needs nothing but itself, and stays small."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from html_tree import Element, Page
from places import REPOSITORY
from report_samples import HOSTILE, deep_report, renamed_report, right_report, wrong_report

from caffe2torch.errors import MissingExtraError
from caffe2torch.reading import read_recipe
from caffe2torch.recipe import Note, Severity, Source, SourceLocation
from caffe2torch.report import render
from caffe2torch.report.html import render_fragment, render_html
from caffe2torch.report.html_sources import Link, listings
from caffe2torch.report.wording import number, visible
from caffe2torch.verification.report import Report


@pytest.fixture(scope="module")
def right(fixtures: Path) -> Report:
    folder = fixtures / "segnet_basic"
    recipe = read_recipe(folder / "train.prototxt", folder / "solver.prototxt")
    return right_report(recipe, {"conv_classifier": 10.0})


@pytest.fixture(scope="module")
def wrong(right: Report) -> Report:
    return wrong_report(right, (3, 7, 11))


@pytest.fixture(scope="module")
def page(wrong: Report) -> Element:
    return Page(render_html(wrong)).root


def cells_of(row: Element) -> list[str]:
    return [child.words for child in row.children if isinstance(child, Element)]


def rows_of(page: Element) -> list[dict[str, str]]:
    """The table's rows, each cell under its column's heading."""
    table = page.by_id("rows")
    titles = [title.words for title in table.all("th", scope="col")]
    return [dict(zip(titles, cells_of(row), strict=True)) for row in table.all("tbody")[0].all("tr")]


def test_the_rows_are_those_of_the_json_report(wrong: Report, page: Element) -> None:
    wanted = wrong.to_dict()["parameters"]
    shown = rows_of(page)
    assert len(shown) == len(wanted) == 34
    for index, (row, cells) in enumerate(zip(wanted, shown, strict=True)):
        assert cells["#"] == str(index)
        assert cells["blob"] == f"{row['layer']}/{row['blob']} {row['role']}, {row['layer_type']}"
        assert cells["parameter"].split()[0] == row["parameter"]
        assert cells["parameter"].split()[1] == "x".join(map(str, row["shape"]))
        factor = "" if row["finetune"] == 1 else f"×{row['finetune']:g}"
        assert cells["lr_mult"] == f"{row['lr_mult']:g}{factor}"
        assert cells["decay_mult"] == f"{row['decay_mult']:g}"
        assert cells["group"].split()[0] == ("-" if row["group"] is None else str(row["group"]))
        for title, side, key in (
            ("lr", "expected", "lr"),
            ("lr seen", "observed", "lr"),
            ("decay", "expected", "weight_decay"),
            ("decay seen", "observed", "weight_decay"),
        ):
            assert cells[title] == number(row[side][key]), title
        assert cells["verdict"].split()[1] == row["verdict"]
        assert row["reason"] in cells["verdict"]
        assert row["where"].endswith(f"train.prototxt:{cells['line']}:{row['where'].rsplit(':')[-1]}")


def test_parameters_that_are_left_stand_in_a_table_of_their_own(wrong: Report, page: Element) -> None:
    (left,) = wrong.to_dict()["unclaimed_parameters"]
    (row,) = page.by_id("left").all("tbody")[0].all("tr")
    cells = cells_of(row)
    assert cells[:4] == [left["parameter"], "3x4", "-", "0"]
    assert cells[4:8] == ["-", "0.1", "-", "0"]
    assert left["verdict"] in cells[8]
    assert left["reason"] in cells[8]


def test_the_verdict_comes_first_then_what_needs_attention_then_the_table(wrong: Report, page: Element) -> None:
    sections = [section.attributes["id"] for section in page.all("section")]
    assert sections == ["attention", "blobs", "rate", "arguments", "notes", "sources"]
    attention = page.by_id("attention")
    assert attention.all("h2")[0].words == "31 of 35 rows ok, 2 mismatch, 1 missing, 1 duplicate"
    said = attention.words
    assert said.index("3 of 34 parameters: lr x10") < said.index("conv1_bn.shift lr is 0.1, Caffe's is 0.01")
    assert "something that one should know" in said
    for row in wrong.wrong:
        assert row.reason in said


def test_a_right_report_says_that_nothing_needs_attention(right: Report) -> None:
    attention = Page(render_html(right)).root.by_id("attention").words
    assert attention.startswith("✓ 34 blobs, 34 parameters: all ok")
    assert "Nothing needs attention." in attention


def test_every_link_leads_to_something_on_the_page(page: Element) -> None:
    identities = [e.attributes["id"] for e in page.walk() if "id" in e.attributes]
    assert len(identities) == len(set(identities))
    targets = [e.attributes["href"] for e in page.all("a")]
    assert len(targets) > 34 * 3  # from the strip to each row, from the row to its line, from the line back
    assert {target.removeprefix("#") for target in targets} <= set(identities)
    for attribute in ("aria-labelledby", "aria-describedby"):
        named = [name for e in page.walk() for name in e.attributes.get(attribute, "").split()]
        assert set(named) <= set(identities)


def test_nothing_is_fetched(wrong: Report) -> None:
    text = render_html(wrong)
    page = Page(text).root
    for element in page.walk():
        assert "src" not in element.attributes
        assert element.attributes.get("href", "#").startswith(("#", "data:,"))
    assert not re.search(r"url\((?!#)|@import", text)
    assert set(re.findall(r"https?://[^\"' ]+", text)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_the_pages_own_policy_allows_its_own_script_and_style_and_nothing_else(wrong: Report) -> None:
    page = Page(render_html(wrong)).root
    (meta,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    policy = dict(part.strip().split(" ", 1) for part in meta.attributes["content"].split(";"))
    assert policy["default-src"] == "'none'"
    (style,), (script,) = page.all("style"), page.all("script")
    for element, directive in ((style, "style-src-elem"), (script, "script-src")):
        digest = base64.b64encode(hashlib.sha256(element.text.encode()).digest()).decode()
        assert policy[directive] == f"'sha256-{digest}'"


def test_hostile_names_are_text(right: Report) -> None:
    report = renamed_report(right)
    for text in (render_html(report), render_fragment(report)):
        for character in "\x1b\u202e\u2066":
            assert character not in text
        page = Page(text).root
        assert len(page.all("script")) <= 1  # the page's own
        handlers = [name for e in page.walk() for name in e.attributes if name.startswith("on")]
        assert not handlers
        assert visible(HOSTILE) in page.text
    shown = rows_of(Page(render_html(report)).root)
    name = " ".join(visible(HOSTILE).split())
    assert shown[2]["blob"] == f"{name}1/0 {name}, {name}"
    assert shown[2]["parameter"] == f"{name}.2 64x4x7x7".replace("64x4x7x7", "1x64x1x1")


def test_line_breaks_in_names_do_not_break_lines(right: Report) -> None:
    text = render_html(renamed_report(right, "a\nb\r\x85\u2028c"))
    assert "a\\nb\\r\\x85\\u2028c" in text


def test_the_lines_that_matter_lead_to_their_rows_and_back(wrong: Report, page: Element) -> None:
    lines = wrong.sources[0].text.splitlines()
    for index, row in enumerate(wrong.rows):
        cells = page.by_id(f"row-{index}")
        (link,) = (a for a in cells.all("a") if a.attributes["class"] == "place")
        line = page.by_id(link.attributes["href"].removeprefix("#"))
        assert line.text.startswith(lines[row.blob.where.line - 1])
        back = {a.attributes["href"]: a.words for a in line.all("a")}
        assert back[f"#row-{index}"] == row.blob.name


def test_the_files_stand_there_whole(wrong: Report, page: Element) -> None:
    shown = page.by_id("sources").all("pre")
    assert len(shown) == len(wrong.sources) == 2
    for source, listing in zip(wrong.sources, shown, strict=True):
        lines = [span for span in listing.all("span") if "line" in span.attributes["class"].split()]
        assert [line.children[0] if line.children else "" for line in lines] == source.text.splitlines()


def test_notes_name_their_lines(right: Report) -> None:
    file = right.sources[0].file
    notes = (Note(SourceLocation(file, 23, 3), Severity.INFO, "see there"), Note(None, Severity.WARNING, "mind this"))
    page = Page(render_html(replace(right, notes=notes))).root
    items = page.by_id("notes").all("li")
    assert [item.words for item in items] == ["warning mind this", "info see there (train.prototxt:23)"]
    line = page.by_id(items[1].all("a")[0].attributes["href"].removeprefix("#"))
    assert line.text.strip().startswith("param { lr_mult: 1")
    assert "#note-1" in {a.attributes["href"] for a in line.all("a")}


def test_the_strip_has_a_box_for_every_blob_and_says_it_in_words(wrong: Report, page: Element) -> None:
    columns = [li for li in page.by_id("strip").children if isinstance(li, Element)]
    assert [column.all("bdi")[0].words for column in columns] == list(dict.fromkeys(r.blob.layer for r in wrong.rows))
    boxes = page.by_id("strip").all("a")
    assert [box.attributes["href"] for box in boxes] == [f"#row-{index}" for index in range(34)]
    assert boxes[1].attributes["aria-label"] == "conv1/1 bias, lr ×2, decay ×0, group 1, ok"
    assert boxes[1].words == "21"  # what multiplies the rate, and the group below it
    assert boxes[3].attributes["aria-label"].endswith("mismatch")
    assert boxes[33].attributes["aria-label"] == "conv_classifier/1 bias, lr ×20, decay ×0, group 3, ok"
    tints = {box.words[:-1]: re.findall(r"\bt\d", box.attributes["class"]) for box in boxes if box.words[-1] in "0123"}
    assert tints["1"] == ["t1"]
    assert tints["2"] == ["t2"]
    assert tints["20"] == ["t4"]


def test_frozen_blobs_are_hatched_and_called_frozen(tmp_path: Path) -> None:
    page = Page(render_html(deep_report(tmp_path, 40))).root
    frozen = [box for box in page.by_id("strip").all("a") if "frozen" in box.attributes["aria-label"]]
    assert frozen
    assert all("t0" in box.attributes["class"].split() for box in frozen)
    assert "frozen: 34 blobs" in page.by_id("blobs").words


def test_the_rate_is_told_where_it_changes(tmp_path: Path) -> None:
    page = Page(render_html(deep_report(tmp_path, 40))).root
    assert [cells_of(row) for row in page.by_id("stretches").all("tr")] == [
        ["iterations", "global rate", "lr ×1", "lr ×2"],
        ["0 – 29,999", "0.1", "0.1", "0.2"],
        ["30,000 – 59,999", "0.01", "0.01", "0.02"],
        ["60,000 – 89,999", "0.001", "0.001", "0.002"],
    ]
    pictures = page.by_id("rate").all("svg")
    assert [picture.all("title")[0].text for picture in pictures] == [
        "Learning rate over the run, linear scale",
        "Learning rate over the run, logarithmic scale",
    ]
    assert all("turns 2 times, at iteration 30,000, 60,000" in p.all("desc")[0].text for p in pictures)
    assert "lr ×2" in [text.text for text in pictures[0].all("text")]


def test_a_run_without_an_end_is_not_drawn(right: Report) -> None:
    solver = replace(right.solver, max_iter=0)
    page = Page(render_html(replace(right, solver=solver))).root
    assert "no max_iter" in page.by_id("rate").words
    assert not page.by_id("rate").all("svg")


def test_the_page_is_the_same_on_every_run(right: Report, fixtures: Path) -> None:
    once = hashlib.sha256(render_html(right).encode()).hexdigest()
    assert hashlib.sha256(render_html(right).encode()).hexdigest() == once
    script = (
        "import hashlib, sys; from caffe2torch.reading import read_recipe; from report_samples import right_report\n"
        "from caffe2torch.report.html import render_html\n"
        "report = right_report(read_recipe(sys.argv[1], sys.argv[2]), {'conv_classifier': 10.0})\n"
        "print(hashlib.sha256(render_html(report).encode()).hexdigest(), 'torch' in sys.modules)"
    )
    folder = fixtures / "segnet_basic"
    files = [str(folder / "train.prototxt"), str(folder / "solver.prototxt")]
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(REPOSITORY / "tests" / "support")}
    done = subprocess.run(
        [sys.executable, "-c", script, *files], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [once, "False"]


def test_pages_stay_small(wrong: Report, tmp_path: Path) -> None:
    assert len(render_html(wrong).encode()) < 200_000
    assert len(render_html(deep_report(tmp_path)).encode()) < 5_000_000


def test_controls_have_names_and_headings_scopes(page: Element) -> None:
    (html,) = page.all("html")
    assert html.attributes["lang"] == "en"
    for control in (*page.all("input"), *page.all("select")):
        assert any(control in label.walk() for label in page.all("label"))
    for table in page.all("table"):
        assert table.all("caption")
        assert all("scope" in heading.attributes for heading in table.all("th"))
    levels = [int(e.tag[1]) for e in page.walk() if re.fullmatch(r"h\d", e.tag)]
    assert levels[0] == 1
    assert all(deeper - level <= 1 for level, deeper in pairwise(levels))


def test_the_filters_offer_what_there_is(page: Element) -> None:
    offered = {
        name: [option.words for option in page.by_id(f"filter-{name}").all("option")]
        for name in ("verdict", "multipliers", "group")
    }
    assert offered["verdict"] == ["all", "ok (31)", "mismatch (1)", "missing (1)", "duplicate (1)"]
    assert offered["multipliers"] == ["all", "1, 1 (24)", "2, 0 (8)", "10, 1 (1)", "20, 0 (1)"]
    assert offered["group"] == ["all", "0 (22)", "1 (8)", "- (1)", "0 1 (1)", "2 (1)", "3 (1)"]


def test_fields_that_are_no_argument_are_named_with_their_lines(page: Element) -> None:
    said = page.by_id("unread").words
    assert said.endswith("net (4), display (12), snapshot (13), snapshot_prefix (14), solver_mode (15).")


def test_without_matplotlib_the_page_names_the_extra(right: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match="pip install matplotlib"):
        render(right, "html")


def test_a_notebook_shows_the_report_without_matplotlib(wrong: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    fragment = Page(wrong._repr_html_()).root
    assert not fragment.all("script")
    assert not fragment.all("html")
    said = fragment.words
    assert "✗ 31 of 35 rows ok, 2 mismatch, 1 missing, 1 duplicate" in said
    assert "3 of 34 parameters: lr x10" in said
    rows = fragment.all("tbody")[0].all("tr")
    assert len(rows) == 35
    assert cells_of(rows[1]) == ["conv1/1 bias", "2, 0", "conv1.bias", "1", "0.02", "0.02", "0", "0", "✓ ok"]


def test_render_knows_the_page(right: Report) -> None:
    assert render(right, "html") == render_html(right)
    assert render(right, "html").endswith("</html>\n")


def test_a_line_with_very_many_links_shows_some_and_counts_the_rest() -> None:
    source = Source("one.prototxt", "everything on one line")
    links = [Link(SourceLocation("one.prototxt", 1, k), f"conv{k}/0", f"#row-{k}") for k in range(1, 31)]
    (listing,) = listings([source], links)
    assert len(listing.lines[0].links) == 12
    assert listing.lines[0].more == 18


def test_places_beyond_the_file_are_shown_without_a_link(right: Report) -> None:
    note = Note(SourceLocation(right.sources[0].file, 100_000, 1), Severity.INFO, "far out")
    page = Page(render_html(replace(right, notes=(note,)))).root
    assert not page.by_id("notes").all("a")
