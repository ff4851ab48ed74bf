"""Programs of two processes under Accelerate: ``python accelerate_runs.py PROGRAM FOLDER RANK PORT``."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import torch
from accelerate import Accelerator
from sharded_runs import BATCH, SCALED, SOLVERS, net, translated, weights
from torch import nn
from trainer_runs import batches

SETTINGS = {"right": {"step_scheduler_with_optimizer": False}, "doubled": {}}


def main(program: str, folder: Path) -> None:
    """Train with one half of each batch per process; what was found, and warned of, goes into the folder."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, **SETTINGS[program])
    model = net()
    t = translated(folder, model, SOLVERS["SGD"] + SCALED, accumulation="mean")
    wrapped, optimizer, scheduler, loader = accelerator.prepare(
        model, t.optimizer, t.scheduler, batches(BATCH // accelerator.num_processes)
    )
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for inputs, labels in loader:
            with accelerator.accumulate(wrapped):
                accelerator.backward(nn.functional.cross_entropy(wrapped(inputs), labels))
                optimizer.step()
                if accelerator.sync_gradients:
                    scheduler.step()
                optimizer.zero_grad()
    if accelerator.is_main_process:
        messages = [str(warning.message) for warning in seen]
        found = {"weights": weights(model), "iteration": t.scheduler.last_epoch, "warnings": messages}
        torch.save(found, folder / "found.pt")
    accelerator.end_training()


if __name__ == "__main__":
    chosen, place, number, port = sys.argv[1:]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    os.environ |= {"RANK": number, "LOCAL_RANK": number}
    main(chosen, Path(place))
