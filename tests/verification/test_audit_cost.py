"""What an audit of 140 million parameters costs, measured by the benchmark in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from places import REPOSITORY

BENCHMARK = REPOSITORY / "benchmarks/audit_vgg16.py"


@pytest.mark.slow
def test_a_model_of_140_million_parameters_is_audited_in_little_time_and_memory() -> None:
    said = subprocess.run([sys.executable, str(BENCHMARK), "--json"], capture_output=True, text=True, check=True).stdout
    figures = json.loads(said)
    assert figures["million parameters"] == pytest.approx(138.36, abs=0.01)
    assert figures["seconds"] < 30
    assert figures["seconds in the middle of a run"] < 30
    assert figures["peak MB after"] < 3 * figures["model's MB"]
    assert figures["peak MB after"] - figures["peak MB before"] < 0.2 * figures["model's MB"]
    assert figures["peak MB at the end"] - figures["peak MB after a step"] < 0.2 * figures["model's MB"]
