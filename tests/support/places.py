"""Where the repository is, and the recorded material beside it."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
FIXTURES = REPOSITORY / "fixtures"
SUPPORT = REPOSITORY / "tests/support"
SHARED = REPOSITORY.parent / "shared"
