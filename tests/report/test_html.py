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

from caffe2torch.reading import read_recipe
from caffe2torch.recipe import Note, Severity, Source, SourceLocation
from caffe2torch.report import render
from caffe2torch.report.html import render_fragment, render_html
from caffe2torch.report.html_sources import Link, listings
from caffe2torch.report.layer_overview import strip
from caffe2torch.report.rate_plot import seen_curves
from caffe2torch.report.wording import visible
from caffe2torch.solver.float32 import number
from caffe2torch.verification.common_causes import explained
from caffe2torch.verification.report import Effective, Fault, FaultKind, RateCurve, Report, ReportRow, Verdict


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


def _moved_to_ten_times(row: ReportRow) -> ReportRow:
    """The row of an optimizer whose rate is ten times Caffe's."""
    assert row.expected.lr is not None
    seen = Effective(10 * row.expected.lr, row.expected.weight_decay)
    fault = Fault(FaultKind.LR, f"lr is {seen.lr:g}, Caffe's is {row.expected.lr:g}")
    return replace(row, observed=seen, verdict=Verdict.MISMATCH, groups=(0,), faults=(fault,))


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
        assert cells["blob"] == f"{row['layer']}/{row['blob']}"
        assert cells["role"] == f"{row['role']}, {row['layer_type']}"
        assert cells["parameter"] == row["parameter"]
        assert cells["shape"] == "x".join(map(str, row["shape"]))
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
            assert cells[title] == number(row[side][key], "-"), title
        assert cells["verdict"].split()[1] == row["verdict"]
        assert row["where"].endswith(f"train.prototxt:{cells['line']}:{row['where'].rsplit(':')[-1]}")


def test_parameters_that_are_left_stand_in_a_table_of_their_own(wrong: Report, page: Element) -> None:
    (left,) = wrong.to_dict()["unclaimed_parameters"]
    (row,) = page.by_id("left").all("tbody")[0].all("tr")
    cells = cells_of(row)
    assert cells[:4] == [left["parameter"], "3x4", "-", "0"]
    assert cells[4:8] == ["-", "0.1", "-", "0"]
    assert cells[8] == f"≠ {left['verdict']} cause 2"
    assert left["reason"] in page.by_id("cause-2").words


def test_the_verdict_comes_first_then_the_causes_then_the_table(page: Element) -> None:
    sections = [section.attributes["id"] for section in page.all("section")]
    assert sections == ["attention", "blobs", "rate", "arguments", "notes", "sources"]
    attention = page.by_id("attention")
    assert attention.all("h2")[0].words == "31 of 35 rows ok, 2 mismatch, 1 missing, 1 duplicate"
    said = attention.words
    assert said.index("cause 1 3 of 34 parameters: lr x10") < said.index("cause 2 mismatch: no blob of the net stands")
    assert said.index("cause 2") < said.index("something that one should know")


def test_every_wrong_row_leads_to_the_card_of_its_cause_and_the_card_back(wrong: Report) -> None:
    report = explained(replace(wrong, causes=()))
    page = Page(render_html(report)).root
    cards = {card.attributes["id"]: card for card in page.all("article")}
    assert len(cards) == len(report.causes)
    identities = [f"row-{index}" for index in range(34)] + ["left-0"]
    for identity, row in zip(identities, report.all_rows, strict=True):
        links = [a.attributes["href"] for a in page.by_id(identity).all("a") if a.words.startswith("cause")]
        assert len(links) == (row in report.wrong), row.name
        for link in links:
            card = cards[link.removeprefix("#")]
            assert f"#{identity}" in {a.attributes["href"] for a in card.all("a")}
            (cause,) = (one for one in report.causes if row.name in one.parameters)
            assert cause.message in card.words


def test_a_card_says_what_where_why_and_the_fix_as_code(wrong: Report) -> None:
    report = explained(replace(wrong, causes=(), rows=tuple(map(_moved_to_ten_times, wrong.rows))))
    card = Page(render_html(report)).root.by_id("cause-1")
    assert [title.words for title in card.all("dt")] == ["What", "Where", "Why", "Fix"]
    what, where, why, fix = card.all("dd")
    assert what.words.startswith("34 parameters: conv1.weight, conv1.bias, conv1_bn.scale, conv1_bn.shift")
    lines = {place.attributes["href"] for place in where.all("a")}
    assert len(lines) == len({row.blob.where.line for row in wrong.rows})
    assert "Caffe applies lr 0.01 (lr_mult 1, stated) and weight decay 0.0005 (decay_mult 1, stated)" in why.words
    assert "seen were lr 0.1 and weight decay 0.0005" in why.words
    assert fix.all("code")[0].text == report.causes[0].code
    compile(f"[{report.causes[0].code}]", "fix", "eval")


def test_no_sentence_of_a_row_is_repeated(right: Report) -> None:
    """Of what makes nothing wrong either: every row here is accepted."""
    rows = tuple(
        replace(row, verdict=Verdict.ACCEPTED, faults=(Fault(FaultKind.LR, "it is so on purpose"),))
        for row in right.rows
    )
    page = Page(render_html(replace(right, rows=rows))).root
    assert page.text.count("it is so on purpose") == 1
    (card,) = page.all("article")
    assert card.words.startswith("note 1 accepted: it is so on purpose")
    assert "makes nothing wrong" in page.by_id("attention").words
    assert not [row for row in page.all("tr", role="row") if row.attributes.get("class") == "off"]


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
    assert shown[2]["blob"] == f"{name}1/0"
    assert shown[2]["role"] == f"{name}, {name}"
    assert shown[2]["parameter"] == f"{name}.2"


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
    columns = [li for li in page.by_id("strip").all("ol")[1].children if isinstance(li, Element)]
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


def test_a_deep_net_stands_in_labelled_stages(tmp_path: Path) -> None:
    report = deep_report(tmp_path, 100)
    page = Page(render_html(report)).root
    overview = page.by_id("strip")
    assert [stage.words for stage in overview.all("p")] == ["res0", "res1", "res2"]
    boxes = overview.all("a")
    assert [box.attributes["href"] for box in boxes] == [f"#row-{index}" for index in range(len(report.rows))]
    # A convolution, its BatchNorm and its Scale are one column; each stage can be filtered by.
    assert sum(bool(column.all("a")) for stage in overview.all("ol")[1:] for column in stage.all("li")) == 25
    offered = [option.words for option in page.by_id("filter-stage").all("option")]
    assert offered == ["all", "res0 (63)", "res1 (63)", "res2 (49)"]
    assert page.by_id("row-63").attributes["data-stage"] == "res1"


def test_boxes_shrink_with_the_number_of_blobs(right: Report, tmp_path: Path) -> None:
    sizes = [strip(deep_report(tmp_path, layers)).size for layers in (40, 300, 400)]
    assert sizes == ["named", "dense", "tiny"]
    assert not Page(render_html(right)).root.all("select", id="filter-stage")


def test_the_rate_is_told_where_it_changes(tmp_path: Path) -> None:
    page = Page(render_html(deep_report(tmp_path, 40))).root
    assert [cells_of(row) for row in page.by_id("segments").all("tr")] == [
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


def test_a_constant_rate_is_a_sentence_and_no_picture(right: Report) -> None:
    rate = Page(render_html(right)).root.by_id("rate")
    said = "The global rate is 0.01 throughout the 10,000 iterations. That is 0.01 at lr ×1, 0.02 at lr ×2, "
    assert said in rate.words
    assert not rate.all("svg")
    assert not rate.all("table")


def test_the_curve_of_an_audited_scheduler_lies_on_caffes(right: Report) -> None:
    """At the height of what was seen: the group's own lr here is half of that."""
    curves = (RateCurve((0,), ((0, 0.005), (9_999, 0.005))), RateCurve((1,), ((0, 0.01), (5_000, 0.001))))
    page = Page(render_html(replace(right, curves=curves))).root
    drawn = {text.words for text in page.by_id("rate").all("text")}
    assert {"Caffe, lr ×1", "Caffe, lr ×2", "group 0, seen", "group 1, seen"} <= drawn
    assert "The broad lines are Caffe’s" in page.by_id("rate").words
    drawn = seen_curves(replace(right, curves=curves), strip(right).speeds)
    assert [curve.points[0][1] for curve in drawn] == pytest.approx([0.01, 0.02])
    assert [curve.series for curve in drawn] == [0, 1]  # the colours of lr ×1 and lr ×2
    constant = replace(right, curves=curves[:1])
    assert not Page(render_html(constant)).root.by_id("rate").all("svg")


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


def test_without_matplotlib_the_page_has_no_pictures_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = Page(render(deep_report(tmp_path, 40), "html")).root
    rate = page.by_id("rate")
    assert not rate.all("svg")
    assert "It is not drawn, since matplotlib is not installed: pip install matplotlib." in rate.words
    assert len(rate.all("tr")) == 4  # the segments are there


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
    cells = ["conv1/1 bias, Convolution", "2, 0", "conv1.bias", "1", "0.02", "0.02", "0", "0", "✓ ok"]
    assert cells_of(rows[1]) == cells


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
