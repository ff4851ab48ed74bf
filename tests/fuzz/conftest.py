"""How long each fuzz test may take: half a second, or its part of what ``make fuzz`` gives to all of them."""

from __future__ import annotations

import os

import pytest


@pytest.fixture
def seconds(request: pytest.FixtureRequest) -> float:
    """Seconds for one fuzz test."""
    all_of_them = [item for item in request.session.items if "seconds" in getattr(item, "fixturenames", ())]
    return float(os.environ.get("FUZZ_SECONDS", 0.5 * len(all_of_them))) / len(all_of_them)
