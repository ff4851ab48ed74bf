"""Many ports: a right row is never wrong, and every planted mistake is named once, by its kind, and nothing else."""

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
WHOLE = os.environ.get("GRID_CASES")  # every right port, and so many with mistakes, as `make grid` sets it
SAMPLE = 6
PARTS = 8 if WHOLE else 1  # for several processes


def cases(kind: str) -> list[Case]:
    generator = random.Random(SEED)
    if kind == "mistakes":
        return list(islice(mistaken_cases(generator), int(WHOLE or SAMPLE)))
    right = list(right_cases())
    return right if WHOLE else generator.sample(right, SAMPLE)


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("kind", ["right", "mistakes"])
def test_the_audit_finds_what_was_planted_and_nothing_else(kind: str, part: int, tmp_path: Path) -> None:
    print(f"GRID_SEED={SEED}")
    failures: list[str] = []
    chosen = cases(kind)[part::PARTS]
    for case in chosen:
        port = build(case)
        report = audit(recipe_of(case, tmp_path), port.model, port.optimizer, port.scheduler)
        rows = {
            row.parameter: (str(row.verdict), [str(fault.kind) for fault in row.faults])
            for row in report.all_rows
            if row.verdict != "ok" or row.faults
        }
        checks = [(check.name, sorted(str(fault.kind) for fault in check.faults)) for check in report.differing]
        made = sorted((check, sorted(kinds)) for check, kinds in port.differs.items())
        explained = Counter(name for cause in report.causes for name in cause.parameters or ("the whole",))
        once = explained.keys() <= port.wrong.keys() and set(explained.values()) <= {1}
        if rows != port.wrong or sorted(checks) != made or not once:
            failures.append(f"{case}: rows {rows}, made {port.wrong}; checks {checks}, made {made}; causes {explained}")
    print(f"{len(chosen)} cases of {kind}, {len(failures)} failures")
    assert not failures, f"GRID_SEED={SEED}, {len(failures)} cases\n" + "\n".join(failures[:20])
