"""Many ports: a right row is never wrong, every difference of the run is named once, no mistake is missed."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from port_grid import Case, build, mistaken_cases, recipe_of, right_cases

from caffe2torch.auditing import audit

SEED = int(os.environ.get("GRID_SEED", time.time_ns() % 10**6))
WHOLE = os.environ.get("GRID_CASES")  # of each kind, as `make grid` sets it
SAMPLE = 6


def cases(kind: str) -> list[Case]:
    generator = random.Random(SEED)
    count = int(WHOLE or SAMPLE)
    if kind == "mistakes":
        return list(islice(mistaken_cases(generator), count))
    right = list(right_cases())
    return right if count >= len(right) else generator.sample(right, count)


@pytest.mark.parametrize("kind", ["right", "mistakes"])
def test_the_audit_finds_what_was_planted_and_nothing_else(kind: str, tmp_path: Path) -> None:
    print(f"GRID_SEED={SEED}")
    failures = []
    for case in cases(kind):
        port = build(case)
        report = audit(recipe_of(case, tmp_path), port.model, port.optimizer, port.scheduler)
        found = {row.parameter: str(row.verdict) for row in report.rows if row.verdict != "ok"}
        differing = Counter(check.name for check in report.differing)
        right = found.keys() == port.wrong.keys() and all(found[name] in port.wrong[name] for name in found)
        if not right or differing != Counter(port.differs):
            failures.append(f"{case}: rows {found}, made {port.wrong}; checks {dict(differing)}, made {port.differs}")
    assert not failures, f"GRID_SEED={SEED}, {len(failures)} cases\n" + "\n".join(failures[:20])
