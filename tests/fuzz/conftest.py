"""How long each fuzz test may take, half a second or its part of what ``make fuzz`` gives to all, and by which seed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from fuzz import Feed, fuzz


@pytest.fixture
def feed(request: pytest.FixtureRequest, tmp_path: Path) -> Feed:
    """Feed what the first function makes to the second one."""
    tests = sum("feed" in getattr(item, "fixturenames", ()) for item in request.session.items)
    seconds = float(os.environ.get("FUZZ_SECONDS", 0.5 * tests)) / tests
    inputs = -(-int(os.environ.get("FUZZ_INPUTS", tests)) // tests)

    def run(make: Callable[[Random], bytes], read: Callable[[bytes], object]) -> None:
        seed = int(os.environ.get("FUZZ_SEED", "15"))
        tally = fuzz(make, read, seed=seed, seconds=seconds, inputs=inputs, kept=tmp_path / "failing input")
        print(f"{request.node.name}: {dict(tally)} by seed {seed}")
        assert tally["refused"], "nothing was damaged"
        assert tally["read"] or tally.total() < 100, "nothing whole came through"

    return run
