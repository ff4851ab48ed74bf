"""What ``inspect`` may cost: a person waits for it, and a script calls it often."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

YARDSTICK = ("-c", "import argparse, dataclasses, json, google.protobuf.text_format")
"""What every reader of a prototxt has to import, so that the bounds hold on a slow machine too."""


def cpu_seconds(*arguments: str | Path) -> float:
    """User and system time of a process of Python as a whole, the interpreter's start included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def times_the_yardstick(*arguments: str | Path, most: float) -> float:
    """The least of a few pairs: what others do on the machine at the same time adds to a run, and takes nothing off."""
    command = ("-m", "caffe2torch", *arguments)
    least = float("inf")
    for _ in range(7):
        least = min(least, cpu_seconds(*command) / cpu_seconds(*YARDSTICK))
        if least < most:
            break
    return least


def test_segnet_basic_is_inspected_at_eight_times_the_cost_of_the_imports(fixtures: Path) -> None:
    folder = fixtures / "segnet_basic"
    assert times_the_yardstick("inspect", folder / "train.prototxt", folder / "solver.prototxt", most=8) < 8


@pytest.mark.shared
def test_resnet_152_is_inspected_at_sixteen_times_the_cost_of_the_imports(shared: Path) -> None:
    assert times_the_yardstick("inspect", shared / "corpus/large/resnet152-deploy.prototxt", most=16) < 16
