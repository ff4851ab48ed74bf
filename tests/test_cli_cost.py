"""What ``inspect`` may cost: a person waits for it, and a script calls it often."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest


def cpu_seconds(*arguments: str | Path) -> float:
    """User and system time of the command as a whole, the interpreter's start included: the best of three."""

    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "caffe2torch", *map(str, arguments)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return min(once() for _ in range(3))


def test_segnet_basic_is_inspected_in_half_a_second(fixtures: Path) -> None:
    folder = fixtures / "segnet_basic"
    assert cpu_seconds("inspect", folder / "train.prototxt", folder / "solver.prototxt") < 0.5


@pytest.mark.shared
def test_resnet_152_is_inspected_in_half_a_second(shared: Path) -> None:
    assert cpu_seconds("inspect", shared / "corpus" / "large" / "resnet152-deploy.prototxt") < 0.5
