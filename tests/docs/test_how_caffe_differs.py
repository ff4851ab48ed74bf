"""The numbers of docs/how-caffe-differs.md are those that the script measures on the recorded runs."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from places import REPOSITORY

PAGE = REPOSITORY / "docs" / "how-caffe-differs.md"


@pytest.fixture(scope="module")
def divergence() -> ModuleType:
    spec = importlib.util.spec_from_file_location("divergence", REPOSITORY / "benchmarks" / "divergence.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["divergence"] = module
    spec.loader.exec_module(module)
    return module


def on_the_page() -> dict[str, tuple[float, float]]:
    table = re.search(r"<!-- python benchmarks/divergence.py.*?-->\n(.*?)<!-- end -->", PAGE.read_text(), re.DOTALL)
    assert table is not None
    rows = [line.strip("| ").split(" | ") for line in table[1].splitlines()[2:]]
    return {what: (float(port), float(ours)) for what, port, ours in rows}


def agree(stated: float, measured: float) -> bool:
    """The same two digits where a number says something; where it is rounding, not much more: machines differ."""
    if max(stated, measured) >= 0.005:
        return abs(stated - measured) <= 0.0051
    return measured <= 3 * stated


def test_numbers_of_the_page_are_measured_on_the_runs_that_are_here(divergence: ModuleType) -> None:
    rows = divergence.measure(REPOSITORY / "fixtures" / "traces")
    stated = on_the_page()
    assert len(rows) >= 5
    for row in rows:
        port, ours = stated[row.what]
        assert agree(port, row.port), row
        assert agree(ours, row.ours), row


@pytest.mark.shared
def test_all_numbers_of_the_page_are_measured(divergence: ModuleType, shared: Path) -> None:
    rows = divergence.measure(shared / "goldens" / "bvlc")
    stated = on_the_page()
    assert [row.what for row in rows] == list(stated) == list(divergence.RUNS.values())
    for row in rows:
        port, ours = stated[row.what]
        assert agree(port, row.port), row
        assert agree(ours, row.ours), row


def test_the_comparison_sees_a_number_that_is_wrong() -> None:
    assert agree(0.47, 0.472)
    assert not agree(0.47, 0.48)
    assert not agree(2e-7, 0.3)
    assert not agree(2e-7, 1e-6)
