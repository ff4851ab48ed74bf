"""The page's colours have contrast in both schemes, by WCAG's formula: text 4.5 to 1, lines of pictures 3 to 1."""

from __future__ import annotations

import re

import pytest
from places import REPOSITORY


def colours(scheme: str) -> dict[str, str]:
    style = (REPOSITORY / "caffe2torch/report/templates/page.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    found = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", light))
    return found | (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", dark)) if scheme == "dark" else {})


def luminance(colour: str) -> float:
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_contrast(scheme: str) -> None:
    has = colours(scheme)
    texts = [
        (text, paper) for text in ("ink", "soft", "link") for paper in ("paper", "panel", "warn-paper", "bad-paper")
    ]
    texts += [("ink", f"t{k}") for k in range(7)] + [("ink", "good-paper")]
    texts += [("good", "good-paper"), ("good", "paper"), ("bad", "bad-paper"), ("bad", "paper"), ("warn", "paper")]
    for text, paper in texts:
        assert contrast(has[text], has[paper]) >= 4.5, (text, paper)
    for series in range(1, 7):
        assert contrast(has[f"plot-series-{series}"], has["paper"]) >= 3, series
