"""What ``inspect`` may cost: a person waits for it, and a script calls it often."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest


def cpu_seconds(*arguments: str | Path) -> float:
    """User and system time of the command as a whole, the interpreter's start included.

    The least of a few runs: what others do on the machine at the same time adds to a run, and takes nothing off.
    """

    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "caffe2torch", *map(str, arguments)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    least = once()
    for _ in range(9):
        if least < 0.5:
            break
        least = min(least, once())
    return least


def test_segnet_basic_is_inspected_in_half_a_second(fixtures: Path) -> None:
    folder = fixtures / "segnet_basic"
    assert cpu_seconds("inspect", folder / "train.prototxt", folder / "solver.prototxt") < 0.5


@pytest.mark.shared
def test_resnet_152_is_inspected_in_half_a_second(shared: Path) -> None:
    assert cpu_seconds("inspect", shared / "corpus" / "large" / "resnet152-deploy.prototxt") < 0.5
