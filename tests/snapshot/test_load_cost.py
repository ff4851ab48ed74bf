"""What loading costs, on a file scaled down from the benchmark's: memory and time against reading and copying once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from places import REPOSITORY


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is counted as Linux counts it")
def test_loading_costs_at_most_twice_a_read_and_a_copy_and_little_more_memory_than_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    import load_caffemodel

    try:
        measured = load_caffemodel.compare(64, 1, tmp_path, ["once", "binary"])
    finally:
        sys.modules.pop("load_caffemodel", None)
    assert measured["binary"]["peak"] < 2.3
    assert measured["binary"]["seconds"] <= 2 * measured["once"]["seconds"]
