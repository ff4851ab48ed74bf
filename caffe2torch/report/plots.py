"""Pictures of rates and distances, drawn by matplotlib; as SVG whose text stays text and whose colours CSS may set."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from caffe2torch.errors import MissingExtraError
from caffe2torch.report.wording import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["LIGHT", "THEMED", "Curve", "Panel", "draw", "page_svg", "png", "require_matplotlib", "svg"]

Palette = Mapping[str, str]

LIGHT: Palette = {
    "paper": "#ffffff",
    "ink": "#1c2430",
    "faint": "#c9d0d9",
    "series-1": "#1f5fa8",
    "series-2": "#b3470f",
    "series-3": "#2c7a4b",
    "series-4": "#7d3c98",
    "series-5": "#8a6a00",
    "series-6": "#5b6673",
}
"""Colours for a picture that stands alone."""
THEMED: Palette = {role: f"#0101{number:02x}" for number, role in enumerate(LIGHT, start=1)}
"""Stand-ins that ``page_svg`` replaces by the page's own CSS variables."""

_SERIES = 6
_DASHES = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (7, 2, 1.5, 2)), (0, (1, 1)), (0, (10, 3)))
_MOST_MARKS = 16
_COLUMNS = 4
_LETTERS, _LONGEST = 12, 40  # of a legend: to the inch, and in a label; longer ones lose their middle
_LINE, _HEIGHT = 0.19, 2.9  # inches: a line of the legend, a panel
_MOST_DECADES = 12  # of a logarithmic axis; a rate that goes on falling leaves the picture
_SETTINGS: Any = {  # every version of matplotlib has another type for them
    "svg.fonttype": "none",
    "svg.hashsalt": "caffe2torch",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # which matplotlib brings along, so that pictures are the same everywhere
    "font.size": 9.5,
    "text.parse_math": False,
    "axes.unicode_minus": False,
}
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"


@dataclass(frozen=True, slots=True)
class Curve:
    """Points joined by straight lines. ``series`` picks colour and dashes, ``pale`` marks what is only compared.

    A ``broad`` one is faint, for others to lie on it.
    """

    label: str
    points: Sequence[tuple[float, float]]
    series: int = 0
    pale: bool = False
    broad: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes over the iterations of a run; ``marks`` are iterations at which something changes."""

    title: str
    curves: Sequence[Curve]
    marks: Sequence[int] = ()
    log: bool = False
    percent: bool = False


def require_matplotlib() -> None:
    """Raise ``MissingExtraError`` where matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise MissingExtraError("drawing needs matplotlib, which is not installed", hint="pip install matplotlib")


def draw(panels: Sequence[Panel], palette: Palette = LIGHT, *, width: float = 5.0) -> Figure:
    """The panels above each other, over one axis of iterations; ``width`` is in inches.

    Raises ``MissingExtraError`` where matplotlib is not installed.
    """
    with _settings():
        from matplotlib.figure import Figure

        columns = [_columns(panel, width) for panel in panels]
        lines = sum(math.ceil(len(panel.curves) / count) - 1 for panel, count in zip(panels, columns, strict=True))
        size = (width, _HEIGHT * len(panels) + _LINE * lines)
        figure = Figure(figsize=size, layout="constrained", facecolor=palette["paper"])
        every = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for panel, axes, count in zip(panels, every, columns, strict=True):
            _fill(axes, panel, palette)
            if panel.curves:
                _explain(axes, palette, count)
        every[-1].set_xlabel("iteration", color=palette["ink"])
        figure.align_ylabels()
        return figure


def svg(figure: Figure, title: str, description: str) -> str:
    """The picture as an SVG file of its own, with a title and a description for those who do not see it."""
    return '<?xml version="1.0" encoding="utf-8"?>\n' + _svg(figure, "picture", title, description, inline=False)


def page_svg(figure: Figure, name: str, title: str, description: str) -> str:
    """The picture for the inside of an HTML page. ``name`` makes its ids unique there.

    Where it was drawn in ``THEMED`` colours it takes the page's: ``--plot-ink``, ``--plot-series-1``, ...
    """
    text = _svg(figure, name, title, description, inline=True)
    for role, color in THEMED.items():
        text = text.replace(color, f"var(--plot-{role})")
    return text


def png(figure: Figure) -> bytes:
    """The picture as PNG, at 200 dots per inch."""
    file = io.BytesIO()
    with _settings():
        figure.savefig(file, format="png", dpi=200, metadata={"Software": None})
    return file.getvalue()


@contextmanager
def _settings() -> Iterator[None]:
    require_matplotlib()
    import matplotlib as mpl

    with mpl.rc_context(_SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)  # a reader's fonts may well have it
        yield


def _fill(axes: Axes, panel: Panel, palette: Palette) -> None:
    ink, faint = palette["ink"], palette["faint"]
    axes.set_facecolor(palette["paper"])
    axes.set_ylabel(visible(panel.title), color=ink)
    for mark in panel.marks[:_MOST_MARKS]:
        axes.axvline(mark, color=faint, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
    for curve in panel.curves:
        kind = curve.series % _SERIES
        colour = palette[f"series-{kind + 1}"]
        shown = [(x, y) for x, y in curve.points if y > 0 or not panel.log]
        xs, ys = zip(*shown, strict=True) if shown else ((), ())
        width, alpha = (5.0, 0.35) if curve.broad else (1.0, 0.6) if curve.pale else (1.8, 1.0)
        dashes = "-" if curve.broad else _DASHES[kind]
        axes.plot(xs, ys, color=colour, linestyle=dashes, linewidth=width, alpha=alpha, label=_label(curve), zorder=2)
    heights = [y for curve in panel.curves for _, y in curve.points]
    positive = [y for y in heights if y > 0]
    if panel.log and positive:
        high = math.ceil(math.log10(max(positive)))
        low = max(math.floor(math.log10(min(positive))), high - _MOST_DECADES)
        axes.set_yscale("log")
        room = 0.06 * max(high - low, 1)  # or a rate of a whole power of ten would lie on the frame
        axes.set_ylim(10.0 ** (low - room), 10.0 ** (max(high, low + 1) + room))
        axes.minorticks_off()
    elif any(heights):
        axes.set_ylim(min(0.0, *heights), max(0.0, *heights) * 1.08)
    axes.locator_params(axis="x", nbins=5)  # labels of six digits beside each other
    axes.xaxis.set_major_formatter(_iterations)
    axes.yaxis.set_major_formatter(_percent if panel.percent else _plain)
    axes.grid(axis="y", color=faint, linewidth=0.5)
    axes.tick_params(colors=ink, color=faint, labelcolor=ink, labelsize=9)
    for side, spine in axes.spines.items():
        spine.set_color(faint)
        spine.set_visible(side in ("left", "bottom"))


def _explain(axes: Axes, palette: Palette, columns: int) -> None:
    """The legend, above the axes, where no curve can pass beneath it."""
    axes.legend(
        frameon=False,
        labelcolor=palette["ink"],
        fontsize=9,
        loc="lower left",
        bbox_to_anchor=(-0.02, 0.99),
        ncols=columns,
        handlelength=2.6,
        columnspacing=1.4,
        borderpad=0.2,
    )


def _columns(panel: Panel, width: float) -> int:
    """How many labels stand side by side above a panel ``width`` inches wide."""
    longest = max((len(_label(curve)) for curve in panel.curves), default=1)
    return max(1, min(len(panel.curves), _COLUMNS, int(width * _LETTERS / (longest + 8))))


def _label(curve: Curve) -> str:
    label = visible(curve.label)
    return label if len(label) <= _LONGEST else f"{label[: _LONGEST // 2]}…{label[-(_LONGEST // 2 - 1) :]}"


def _iterations(x: float, position: float | None = None) -> str:
    del position
    return f"{x / 1e6:,g}M" if abs(x) >= 1e6 else f"{x:,g}"


def _plain(y: float, position: float | None = None) -> str:
    del position
    return f"{y:.6g}"


def _percent(y: float, position: float | None = None) -> str:
    del position
    return f"{100 * y:.4g} %"


def _svg(figure: Figure, name: str, title: str, description: str, *, inline: bool) -> str:
    """Matplotlib's SVG without its dates and comments, titled, with ids that begin with ``name``."""
    from xml.etree import ElementTree as ET

    file = io.BytesIO()
    with _settings():
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _XLINK)
    root = ET.fromstring(file.getvalue())  # its comments, which repeat every text, are not read
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == "id":
                element.set(key, f"{name}-{value}")
            elif key == f"{{{_XLINK}}}href" or "url(#" in value:
                element.set(key, value.replace("#", f"#{name}-", 1))
    for child in list(root):
        style = inline and child.find(f"{{{_SVG}}}style") is not None  # its rules would reach the page around it
        if child.tag == f"{{{_SVG}}}metadata" or style:
            root.remove(child)
    for place, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ET.Element(f"{{{_SVG}}}{tag}", {"id": f"{name}-{tag}"})
        element.text = visible(text)
        root.insert(place, element)
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title {name}-desc")
    if inline:
        del root.attrib["width"], root.attrib["height"]
    return ET.tostring(root, encoding="unicode") + "\n"
