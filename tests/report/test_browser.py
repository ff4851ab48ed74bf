"""The page in a real browser: nothing leaves it, rows are the JSON's, it sorts, filters and reads by keyboard alone.

Where Chromium, its driver or a package that these tests need is missing, they are skipped, and say which.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import DOWN, END, ENTER, ESCAPE, RIGHT, TAB, Browser, missing, wait_for
from report_samples import HOSTILE, deep_report, renamed_report, wrong_report

import caffe2torch
from caffe2torch.report.html import TITLES, render_fragment, render_html
from caffe2torch.report.wording import visible
from caffe2torch.verification.report import Report

NUMBER, BLOB, PARAMETER, LR_MULT, DECAY_MULT, GROUP, LR, VERDICT = (
    list(TITLES).index(title) for title in ("#", "blob", "parameter", "lr_mult", "decay_mult", "group", "lr", "verdict")
)
MISSING = missing()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=f"the page cannot be opened: {MISSING}")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("browser"))
    yield opened
    opened.driver.quit()


@pytest.fixture(scope="module")
def report(fixtures: Path) -> Report:
    """SegNetBasic's, as the tool really makes it: translated, probed, judged."""
    folder = fixtures / "segnet_basic"
    translation = caffe2torch.translate(
        folder / "train.prototxt", folder / "solver.prototxt", finetune={"conv_classifier": 10.0}
    )
    return translation.report


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a net of 308 blobs in five stages."""
    report = deep_report(tmp_path_factory.mktemp("deep"), 176)
    assert len(report.rows) == 308
    return render_html(report)


@pytest.fixture
def segnet(browser: Browser, report: Report) -> Browser:
    return browser.open(render_html(report))


def test_the_real_page_opens_without_a_complaint_and_fetches_nothing(segnet: Browser, report: Report) -> None:
    assert report.ok
    assert segnet.driver.title == "✓ SegNetBasic, as segnet_basic trains in Caffe"
    assert segnet.find("#verdict").text == "34 blobs, 34 parameters: all ok (1 check not seen)"
    assert segnet.complaints() == []


def test_its_rows_are_the_json_reports_rows(segnet: Browser, report: Report) -> None:
    wanted = report.to_dict()["parameters"]
    assert isinstance(wanted, list)
    rows = segnet.rows()
    assert len(rows) == len(wanted) == 34
    for row, cells in zip(wanted, rows, strict=True):
        assert cells[BLOB] == f"{row['layer']}/{row['blob']}"
        assert cells[PARAMETER] == row["parameter"]
        assert float(cells[LR_MULT].split("×")[0]) == row["lr_mult"]
        assert float(cells[DECAY_MULT]) == row["decay_mult"]
        assert int(cells[GROUP]) == row["group"]
        assert float(cells[LR]) == pytest.approx(row["expected"]["lr"])
        assert float(cells[LR + 1]) == pytest.approx(row["observed"]["lr"], rel=1e-5)
        assert float(cells[LR + 2]) == pytest.approx(row["expected"]["weight_decay"])
        assert float(cells[LR + 3]) == pytest.approx(row["observed"]["weight_decay"], rel=1e-5, abs=1e-12)
        assert cells[VERDICT] == f"✓ {row['verdict']}"


def test_the_real_page_is_small(report: Report) -> None:
    assert len(render_html(report).encode()) < 600_000


def test_a_click_on_a_heading_sorts_and_a_second_one_turns_it_round(segnet: Browser) -> None:
    heading = f"#rows thead th:nth-child({LR_MULT + 1})"
    button = segnet.find(f"{heading} button")
    button.click()
    rising = [float(text.split("×")[0]) for text in segnet.column(LR_MULT)]
    assert rising == sorted(rising)
    assert segnet.find(heading).get_attribute("aria-sort") == "ascending"
    mults = zip(segnet.column(NUMBER), segnet.column(LR_MULT), strict=True)
    same = [int(index) for index, mult in mults if mult == "1"]
    assert same == sorted(same)  # equals stay in Caffe's order
    button.click()
    falling = [float(text.split("×")[0]) for text in segnet.column(LR_MULT)]
    assert falling == sorted(falling, reverse=True)
    assert segnet.shown() == "34 of 34 rows, by lr_mult, falling"
    segnet.find("#rows thead th:nth-child(1) button").click()
    assert segnet.column(NUMBER) == [str(k) for k in range(34)]
    assert segnet.find(heading).get_attribute("aria-sort") is None


def test_names_sort_with_their_numbers(segnet: Browser) -> None:
    segnet.find("#rows thead th:nth-child(2) button").click()
    names = segnet.column(BLOB)
    assert names[0] == "conv_classifier/0"
    assert names.index("conv_decode2_bn/0") < names.index("conv_decode4/1")


def test_the_keyboard_sorts_too(segnet: Browser) -> None:
    segnet.run("document.querySelector('#filter-clear').focus()")
    segnet.press(TAB, TAB)
    assert segnet.focused() == "blob"
    segnet.press(ENTER)
    assert segnet.find("#rows thead th:nth-child(2)").get_attribute("aria-sort") == "ascending"
    segnet.press(" ")
    assert segnet.find("#rows thead th:nth-child(2)").get_attribute("aria-sort") == "descending"
    assert segnet.column(BLOB)[-1] == "conv_classifier/0"


def test_typing_filters_by_layer_and_parameter(segnet: Browser) -> None:
    field = segnet.find("#filter-text")
    field.click()
    field.send_keys("DECODE4 bias")
    assert segnet.column(PARAMETER) == ["conv_decode4.bias", "conv_decode4_bn.bias"]
    assert segnet.shown() == "2 of 34 rows"
    field.send_keys("x")
    assert segnet.rows() == []
    assert segnet.find("#none").is_displayed()
    field.send_keys(ESCAPE)
    assert len(segnet.rows()) == 34
    assert not segnet.find("#none").is_displayed()


def test_choosing_filters_by_verdict_multipliers_and_group(browser: Browser, report: Report) -> None:
    browser.open(render_html(wrong_report(report)))
    browser.run("document.querySelector('#filter-verdict').focus()")
    browser.press("m", "i", "s", "m")  # a select box goes to what is typed
    assert {cell.split()[1] for cell in browser.column(VERDICT)} == {"mismatch"}
    browser.find("#filter-clear").click()
    for identity, value, expected in (
        ("multipliers", "20, 0", ["conv_classifier/1"]),
        ("group", "2", ["conv_classifier/0"]),
    ):
        browser.find(f"#filter-{identity} option[value='{value}']").click()
        assert browser.column(BLOB) == expected
        browser.find("#filter-clear").click()
    assert len(browser.rows()) == 34
    assert browser.focused() == "filter-text"


def test_a_filter_marks_its_boxes_in_the_strip_and_a_stage_is_a_filter(browser: Browser, deep: str) -> None:
    browser.open(deep)
    marked = "return Array.from(document.querySelectorAll('#strip .box:not(.dim)'), (box) => box.hash)"
    shown = "return Array.from(document.querySelectorAll('#rows tbody tr:not([hidden])'), (row) => '#' + row.id)"
    browser.find("#filter-text").send_keys("bn variance")
    assert browser.shown() == "44 of 308 rows"
    assert browser.run(marked) == browser.run(shown)
    browser.find("#filter-text").send_keys(ESCAPE)
    assert len(browser.run(marked)) == 308
    stage = browser.find("#strip .stage:nth-child(2) button")
    stage.click()
    assert browser.shown() == "63 of 308 rows"
    assert browser.run(marked) == browser.run(shown)
    assert {name.split("_")[0] for name in browser.column(BLOB)} == {"res1"}
    stage.click()
    assert browser.shown() == "308 of 308 rows"


@pytest.mark.parametrize("width", [390, 1280])
def test_numbers_and_names_are_never_broken(browser: Browser, report: Report, deep: str, width: int) -> None:
    """Each stands on one line, and within its cell: of a long name, as long as a part of it."""
    lines = """
    const lines = (node) => {
      const range = document.createRange();
      range.selectNodeContents(node);
      return new Set(Array.from(range.getClientRects(), (rect) => Math.round(rect.top))).size;
    };
    """
    broken = """
    const runsOut = (cell) => cell.clientWidth && cell.scrollWidth > cell.clientWidth + 1;
    return Array.from(document.querySelectorAll("#rows tbody tr:nth-child(-n+80) :is(.n, .name, .place)"))
      .filter((cell) => cell.offsetParent && (lines(cell) > 1 || runsOut(cell)))
      .map((cell) => cell.textContent.trim());
    """
    parts = (
        "return Array.from(document.querySelector('#row-1 th .name').childNodes, (node) => [node.data, lines(node)])"
    )
    for page in (render_html(wrong_report(report)), deep):
        browser.open(page, width=width)
        assert browser.run(lines + broken) == []
    named = renamed_report(report, "a_name_of.many/parts_" * 6)
    browser.open(render_html(named), width=width)
    found = [(text, count) for text, count in browser.run(lines + parts) if text]
    assert len(found) > 20
    assert all(count == 1 for _, count in found), found


def test_the_strip_is_one_stop_and_arrows_walk_in_it(segnet: Browser) -> None:
    stops = segnet.run("return document.querySelectorAll('#strip a[tabindex=\"0\"]').length")
    assert stops == 1
    segnet.run("document.querySelector('#strip a').focus()")
    segnet.press(DOWN)
    assert segnet.focused() == "#row-1"
    segnet.press(RIGHT, RIGHT)
    assert segnet.focused() == "#row-5"
    segnet.press(END)
    assert segnet.focused() == "#row-33"
    segnet.press(ENTER)
    assert segnet.driver.current_url.endswith("#row-33")


def test_a_link_leads_to_its_row_even_where_the_filter_hides_it(segnet: Browser) -> None:
    segnet.find("#filter-text").send_keys("conv1")
    segnet.run("document.querySelector('#strip a[href=\"#row-20\"]').click()")
    top = "return document.querySelector('#row-20').getBoundingClientRect().top"
    wait_for(lambda: 0 < segnet.run(top) < 850)
    assert segnet.shown() == "34 of 34 rows"


def test_a_row_leads_to_its_line_and_the_line_back(segnet: Browser) -> None:
    segnet.run("for (const details of document.querySelectorAll('.listing')) details.open = false")
    segnet.find("#row-2 a.place").click()
    line = segnet.find(".line:target")
    wait_for(line.is_displayed)
    assert line.text.startswith("layer {")
    line.find_element("css selector", "a[href='#row-2']").click()
    assert segnet.find("tr:target").get_attribute("id") == "row-2"


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing_serious(browser: Browser, report: Report, width: int, dark: bool) -> None:
    browser.open(render_html(wrong_report(report)), width=width, dark=dark)
    paper = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(20, 24, 30)" if dark else "rgb(255, 255, 255)")
    assert browser.axe() == []
    assert browser.complaints() == []


@pytest.mark.parametrize("width", [320, 390, 820, 1280])
def test_nothing_runs_out_of_the_window(browser: Browser, report: Report, width: int) -> None:
    for shown in (report, renamed_report(report, "a_name_without_any_place_to_break" * 8)):
        browser.open(render_html(shown), width=width)
        assert browser.run("return document.documentElement.scrollWidth") <= width


def test_hostile_names_are_text_and_do_nothing(browser: Browser, report: Report) -> None:
    browser.open(render_html(renamed_report(report)))
    assert browser.run("return document.scripts.length") == 1
    assert browser.rows()[1][PARAMETER].startswith(" ".join(visible(HOSTILE).split()))
    assert browser.complaints() == []


def test_what_a_hostile_page_would_run_or_fetch_is_forbidden(browser: Browser, report: Report) -> None:
    """The policy holds even if an escape were forgotten: a script and a picture put into the page do nothing."""
    page = render_html(report).replace(
        "<main", "<script>window.ran = true</script><img src='https://example.invalid/x.png' onerror='ran = true'><main"
    )
    browser.open(page)
    assert browser.run("return window.ran === undefined")
    assert len(browser.driver.get_log("browser")) >= 2  # refused, and said so
    assert len(browser.rows()) == 34


def test_it_reads_without_scripts(browser: Browser, report: Report) -> None:
    browser.command("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(render_html(report))
        assert not browser.find("#tools").is_displayed()
        assert browser.find("#row-33").is_displayed()
        assert len(browser.driver.find_elements("css selector", "#rows thead button")) == 0
    finally:
        browser.command("Emulation.setScriptExecutionDisabled", value=False)


def test_it_prints(browser: Browser, report: Report) -> None:
    browser.open(render_html(report))
    browser.command("Emulation.setEmulatedMedia", media="print")
    assert not browser.find("#tools").is_displayed()
    assert browser.run("return getComputedStyle(document.querySelector('#rows thead')).display") == "table-header-group"
    browser.command("Emulation.setEmulatedMedia", media="")


def sheets(browser: Browser) -> int:
    """The pages of the PDF that printing makes."""
    pdf = base64.b64decode(browser.command("Page.printToPDF", preferCSSPageSize=True, printBackground=True)["data"])
    return len(re.findall(rb"/Type\s*/Page\b", pdf))


def test_a_page_of_308_blobs_prints_on_at_most_five_sheets(browser: Browser, deep: str) -> None:
    browser.open(deep)
    assert 1 < sheets(browser) <= 5


def test_paper_is_white_whatever_the_scheme(browser: Browser, report: Report) -> None:
    look = (
        "return ['body', '.banner', '.box', '#rows tbody tr'].map((selector) => {"
        "const style = getComputedStyle(document.querySelector(selector)); return style.color + style.backgroundColor})"
    )
    seen = []
    for scheme in ("light", "dark"):
        browser.open(render_html(wrong_report(report)))
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.command("Emulation.setEmulatedMedia", media="print", features=features)
        seen.append(browser.run(look))
    browser.command("Emulation.setEmulatedMedia", media="")
    assert seen[0] == seen[1]
    assert "rgb(255, 255, 255)" in seen[0][0]


def test_a_net_of_1400_layers_opens_and_filters_at_once(browser: Browser, tmp_path: Path) -> None:
    """Milliseconds until the new state is laid out, against those that the browser needs to lay the rows out anew."""
    report = deep_report(tmp_path)
    browser.open(render_html(report))
    assert len(report.rows) == 2450
    assert browser.complaints() == []

    def took(action: str, *arguments: str) -> float:
        timed = (
            f"const began = performance.now(); {action}; document.body.offsetHeight; return performance.now() - began"
        )
        return float(browser.run(timed, *arguments))

    rows = "for (const row of document.querySelectorAll('#rows tbody tr')) row.hidden = {}"
    field = (
        "const f = document.querySelector('#filter-text'); f.value = arguments[0]; f.dispatchEvent(new Event('input'))"
    )
    for text, count in (("res10", 63), ("", 2450), ("res38_branch8_conv bias", 0), ("conv", 700)):
        times, usual = [], []
        for _ in range(3):
            took(field, "nothing is called like that")
            usual.append(took(rows.format("false")))
            took(rows.format("true"))
            times.append(took(field, text))
        assert min(times) < 5 * min(usual), (text, times, usual)
        assert browser.shown() == f"{count} of 2450 rows"
    usual = [took("const body = document.querySelector('#rows tbody'); body.append(...body.rows)") for _ in range(3)]
    times = [took("document.querySelectorAll('#rows thead button')[3].click()") for _ in range(3)]
    assert min(times) < 5 * min(usual), (times, usual)


def test_the_notebooks_fragment_passes_too(browser: Browser, report: Report) -> None:
    fragment = render_fragment(wrong_report(report))
    around = (
        '<!DOCTYPE html><html lang="en"><title>notebook</title><body><main><h1>notebook</h1>{}</main></body></html>'
    )
    browser.open(around.format(fragment))
    browser.run("for (const details of document.querySelectorAll('details')) details.open = true")
    assert browser.axe() == []
    assert browser.complaints() == []
