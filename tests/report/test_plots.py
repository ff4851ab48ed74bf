"""Pictures say what they show in words too, are the same on every run, and take hostile labels as text."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest

from caffe2torch.errors import MissingExtraError
from caffe2torch.recipe import LrPolicy, PolicyType, SolverSettings, SolverType
from caffe2torch.report.plots import THEMED, Curve, Panel, draw, page_svg, png, svg
from caffe2torch.report.rate_plot import Run, divergence_panel, rates_panels, say_divergence, say_rates

SVG = "{http://www.w3.org/2000/svg}"
STEP = SolverSettings(
    SolverType.SGD, LrPolicy(PolicyType.STEP, base_lr=0.1, gamma=0.1, stepsize=100), momentum=0.9, max_iter=250
)
RUN = Run(STEP, 250)


def texts(picture: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(picture).iter(f"{SVG}text")]


def standing() -> str:
    return svg(draw(rates_panels([RUN], [1.0, 2.0])), "The rate", "It falls twice.")


def test_a_picture_has_a_title_a_description_and_text_that_is_text() -> None:
    root = ET.fromstring(standing())
    assert root.attrib["role"] == "img"
    named = root.attrib["aria-labelledby"].split()
    assert [root.find(f"*[@id='{name}']").text for name in named] == ["The rate", "It falls twice."]
    assert {"lr ×1", "lr ×2", "iteration", "rate", "rate, logarithmic", "0.1", "0.01"} <= set(texts(standing()))


def test_pictures_are_the_same_on_every_run_and_bear_no_date() -> None:
    assert standing() == standing()
    assert not re.search(r"20\d\d-|<metadata|Matplotlib", standing())
    assert png(draw(rates_panels([RUN], [1.0]))) == png(draw(rates_panels([RUN], [1.0])))


def test_ids_of_two_pictures_on_a_page_differ() -> None:
    figure = rates_panels([RUN], [1.0])[:1]
    ids = [re.findall(r' id="([^"]+)"', page_svg(draw(figure, THEMED), name, "t", "d")) for name in ("one", "two")]
    assert len(ids[0]) == len(ids[1]) > 10
    assert not set(ids[0]) & set(ids[1])


@pytest.mark.parametrize("name", ["one", "two"])
def test_what_refers_within_a_picture_finds_it(name: str) -> None:
    picture = page_svg(draw(rates_panels([RUN], [1.0]), THEMED), name, "t", "d")
    ids = set(re.findall(r' id="([^"]+)"', picture))
    wanted = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', picture))
    assert wanted
    assert {one or other for one, other in wanted} <= ids


def test_on_a_page_the_pages_own_colours_are_used_and_no_style_reaches_out() -> None:
    picture = page_svg(draw(rates_panels([RUN], [1.0, 2.0]), THEMED), "rates", "t", "d")
    assert not re.findall(r"#[0-9a-f]{6}\b", picture)
    assert "var(--plot-series-1)" in picture
    assert "var(--plot-ink)" in picture
    assert "<style" not in picture


def test_hostile_labels_are_text() -> None:
    label = "<script>$\\frac{1}{2}$\u202e\x1b & 漢"
    picture = svg(draw([Panel("p", [Curve(label, [(0, 1.0), (1, 2.0)])])]), label, label)
    assert "<script>$\\frac{1}{2}$\\u202e\\x1b & 漢" in texts(picture)
    root = ET.fromstring(picture)
    assert not list(root.iter(f"{SVG}script"))
    assert root.find(f"{SVG}title").text == "<script>$\\frac{1}{2}$\\u202e\\x1b & 漢"


def test_a_rate_that_is_always_zero_has_no_logarithm() -> None:
    run = Run(SolverSettings(SolverType.SGD, LrPolicy(PolicyType.FIXED)), 10)
    panels = rates_panels([run], [1.0])
    assert [panel.log for panel in panels] == [False]
    assert "0" in texts(svg(draw(panels), "t", "d"))


def test_no_curve_lies_on_the_frame_of_a_logarithmic_axis() -> None:
    for base_lr, gamma in ((0.1, 0.1), (0.3, 0.9), (1.0, 1.0)):
        solver = replace(STEP, policy=replace(STEP.policy, base_lr=base_lr, gamma=gamma))
        panel = rates_panels([Run(solver, 250)], [1.0])[1]
        low, high = draw([panel]).axes[0].get_ylim()
        heights = [y for _, y in panel.curves[0].points]
        assert low < 0.95 * min(heights)
        assert high > 1.05 * max(heights)


def test_a_rate_that_falls_to_nothing_does_not_press_the_others_together() -> None:
    """As of a scheduler that counts iterations where it means epochs: 0.1 at every 30th of 10,000."""
    falling = Curve("seen", [(30 * k, 0.01 * 0.1**k) for k in range(320)])
    low, high = (
        draw([Panel("rate", [Curve("Caffe", [(0, 0.01), (9_999, 0.01)]), falling], log=True)]).axes[0].get_ylim()
    )
    assert 1e-15 < low < 1e-12
    assert 0.01 < high < 1


def test_frozen_groups_are_not_drawn_and_of_many_some_are() -> None:
    assert [curve.label for curve in rates_panels([RUN], [0.0, 2.0, 1.0, 2.0])[0].curves] == ["lr ×1", "lr ×2"]
    assert [curve.label for curve in rates_panels([RUN], [0.0])[0].curves] == ["global rate"]
    labels = [curve.label for curve in rates_panels([RUN], [k / 8 for k in range(1, 31)])[0].curves]
    assert len(labels) == 8
    assert (labels[0], labels[-1]) == ("lr ×0.125", "lr ×3.75")


def test_curves_show_the_rate_of_each_multiplier() -> None:
    one, two = rates_panels([RUN], [1.0, 2.0])[0].curves
    assert [(i, pytest.approx(2 * y)) for i, y in one.points] == list(two.points)
    assert dict(one.points)[99] == pytest.approx(0.1)
    assert dict(one.points)[100] == pytest.approx(0.01)


def test_sentences_say_what_the_pictures_show() -> None:
    assert say_rates(RUN) == (
        "The global rate goes from 0.1 to 0.001 over the 250 iterations and turns 2 times, at iteration 100, 200."
    )
    fixed = Run(SolverSettings(SolverType.SGD, LrPolicy(PolicyType.FIXED, base_lr=0.5), clip_gradients=1.0), 10)
    assert say_rates(fixed) == "The global rate is 0.5 throughout the 10 iterations."
    poly = Run(SolverSettings(SolverType.SGD, LrPolicy(PolicyType.POLY, base_lr=0.5, power=1.0, max_iter=10)), 10)
    assert say_rates(poly) == "The global rate goes from 0.5 to 0.05 over the 10 iterations, changing all the way."
    _, (found,) = divergence_panel([RUN], [(1.0, 1.0), (0.0, 0.0)])
    said = say_divergence(RUN, found)
    assert re.match(r"Over 250 iterations stock torch leaves Caffe's path by up to [\d.]+ %: at a change of the", said)
    _, (found,) = divergence_panel([fixed], [(1.0, 1.0)])
    assert say_divergence(fixed, found) == (
        "Stock torch follows Caffe's path over 10 iterations: nothing in this update differs. "
        "Clipping is left out: what it does depends on the size of real gradients."
    )
    early = Run(STEP, 50)
    _, (found,) = divergence_panel([early], [(1.0, 1.0)])
    assert say_divergence(early, found).startswith("Stock torch stays on Caffe's path over 50 iterations, though at a")


def test_without_matplotlib_drawing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError) as raised:
        draw([])
    assert raised.value.hint == "pip install matplotlib"
