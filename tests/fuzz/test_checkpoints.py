"""Checkpoints whose content was changed and whose checksum is right: loaded, or refused with nothing changed."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from checkpoint_runs import CASES, load, save, small_run, train
from fuzz import fuzz
from snapshot_runs import unchanged_on_refusal

from caffe2torch.snapshot.checkpoint import checksum

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

NUMBERS = (0, -5, 10**30, 2**64, True, 1.5, float("nan"), float("inf"), None, "", "nan", [], {}, [[]], b"")


def values(old: object, chance: Random) -> Any:
    """Something to put in the place of ``old``."""
    if not isinstance(old, torch.Tensor) or chance.random() < 0.2:
        return chance.choice((*NUMBERS, torch.zeros(2), torch.zeros(()), copy.deepcopy(old)))
    shape = old.shape
    return chance.choice(
        (
            lambda: torch.zeros(shape).to_sparse(),
            lambda: torch.empty(shape, device="meta"),
            lambda: torch.zeros(1).expand(10**12),
            lambda: torch.zeros(1).expand(shape) if shape else torch.zeros(1).expand(10**9),
            lambda: torch.zeros(shape, dtype=torch.complex64),
            lambda: torch.zeros(shape, dtype=torch.int64),
            lambda: torch.zeros(shape, dtype=torch.bool),
            lambda: torch.zeros(shape, dtype=torch.float64),
            lambda: torch.full(shape, float("nan")),
            lambda: torch.zeros((*shape, 1)),
        )
    )()


def change(content: dict[Any, Any], chance: Random) -> None:
    """Replace, remove or add one entry somewhere."""
    parent: Any = content
    key = chance.choice([key for key in parent if key != "checksum"])
    while isinstance(parent[key], dict | list) and parent[key] and chance.random() < 0.85:
        parent = parent[key]
        key = chance.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
    match chance.randrange(5):
        case 0:
            del parent[key]
        case 1 if isinstance(parent, dict):
            parent[chance.choice((*map(str, parent), 99, "other"))] = copy.deepcopy(parent[key])
        case _:
            parent[key] = values(parent[key], chance)


@pytest.mark.parametrize("case", ["adam", "sgd, multistep and clipped"])
@pytest.mark.parametrize("finetune", [False, True])
def test_changed_checkpoints_are_loaded_or_refused_whole(
    tmp_path: Path, seconds: float, case: str, finetune: bool
) -> None:
    run = small_run(tmp_path, CASES[case])
    train(run, 3)
    save(run, tmp_path / "whole.pt")
    whole = torch.load(tmp_path / "whole.pt", weights_only=True)
    path = tmp_path / "changed.pt"

    def make(chance: Random) -> bytes:
        content = copy.deepcopy(whole)
        for _ in range(chance.choice((1, 1, 1, 3))):
            change(content, chance)
        content.pop("checksum", None)
        try:
            content["checksum"] = checksum(content)
        except (TypeError, RuntimeError):
            content["checksum"] = 0
        file = io.BytesIO()
        torch.save(content, file)
        return file.getvalue()

    def read(data: bytes) -> None:
        path.write_bytes(data)
        unchanged_on_refusal(run, lambda: load(run, path, finetune=finetune))
        json.dumps(run.scheduler.state_dict(), allow_nan=False)
        load(run, tmp_path / "whole.pt")

    tally = fuzz(make, read, seed=15, seconds=seconds, kept=tmp_path / "kept")
    print(f"changed checkpoints of {case}, finetune {finetune}: {dict(tally)}")
