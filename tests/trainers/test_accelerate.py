"""Accelerate on two processes (gloo): both together train as one process in a plain loop."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sharded_runs import ITERATIONS, SCALED, SOLVERS
from trainer_runs import apart, trained_by_a_plain_loop
from two_processes import run

pytest.importorskip("accelerate", reason="Accelerate is not installed: pip install '.[trainers]'")


@pytest.mark.parametrize("program", ["right", "doubled"])
def test_two_processes_with_accumulation_train_as_one_unless_the_scheduler_steps_twice(
    tmp_path: Path, program: str
) -> None:
    """By default Accelerate steps a scheduler once per process, which our scheduler warns of."""
    import accelerate_runs

    run(accelerate_runs, program, tmp_path)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    straight = trained_by_a_plain_loop(tmp_path, SOLVERS["SGD"] + SCALED)
    named = [message for message in found["warnings"] if "step_scheduler_with_optimizer=False" in message]
    if program == "right":
        assert apart(found["weights"], straight) < 1e-5
        assert (found["iteration"], named) == (ITERATIONS, [])
    else:
        assert apart(found["weights"], straight) > 0.1
        assert (found["iteration"], len(named)) == (2 * ITERATIONS, 1)
