"""How long each fuzz test may take, half a second or its part of what ``make fuzz`` gives to all, and by which seed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from fuzz import Feed, fuzz


@pytest.fixture
def seconds(request: pytest.FixtureRequest) -> float:
    """Seconds for one fuzz test."""
    all_of_them = [item for item in request.session.items if "seconds" in getattr(item, "fixturenames", ())]
    return float(os.environ.get("FUZZ_SECONDS", 0.5 * len(all_of_them))) / len(all_of_them)


@pytest.fixture
def feed(request: pytest.FixtureRequest, seconds: float, tmp_path: Path) -> Feed:
    """Feed what the first function makes to the second one; ``FUZZ_SEED`` gives other inputs."""

    def run(make: Callable[[Random], bytes], read: Callable[[bytes], object]) -> None:
        seed = int(os.environ.get("FUZZ_SEED", "15"))
        tally = fuzz(make, read, seed=seed, seconds=seconds, kept=tmp_path / "failing input")
        print(f"{request.node.name}: {dict(tally)}")

    return run
