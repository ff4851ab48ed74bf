"""Two processes train as one: DDP, FSDP2, and what holds only a part of the parameters."""

from __future__ import annotations

from pathlib import Path

import pytest
import sharded_runs
import torch
from sharded_runs import ITERATIONS, SCALED, SOLVERS, net, train, translated, weights
from torch import nn
from two_processes import run

import caffe2torch


def distance(found: dict[str, torch.Tensor], right: nn.Module, start: nn.Module) -> float:
    """The largest difference of a weight as a part of the largest movement."""
    before, after = weights(start), weights(right)
    movement = max(float((after[name] - before[name]).abs().max()) for name in after)
    return max(float((found[name] - after[name]).abs().max()) for name in after) / movement


def test_a_model_sharded_by_fsdp2_learns_as_a_whole_one(tmp_path: Path) -> None:
    """All six solvers, with and without clipping and accumulation; the first weight has 1001 rows."""
    run(sharded_runs, "fsdp2", tmp_path)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    for name, solver in SOLVERS.items():
        for scaled in ("", SCALED):
            model = net().double()
            train(translated(tmp_path, model, solver + scaled), model, range(ITERATIONS))
            assert distance(found[name + scaled], model, net().double()) < 1e-9, name + scaled
    model = net()
    t = translated(tmp_path, model, SOLVERS["SGD"] + SCALED)
    train(t, model, range(ITERATIONS))
    assert distance(found["loaded"], model, net()) < 1e-5
    assert distance(found["distributed"], model, net()) < 1e-5
    other = net()
    u = translated(tmp_path, other, SOLVERS["SGD"] + SCALED)
    u.load(tmp_path / "run.pt")  # what two processes saved, one goes on with
    train(u, other, range(3, ITERATIONS))
    assert distance(weights(other), model, net()) < 1e-5
    t.initialize(torch.Generator().manual_seed(5))
    for name, value in weights(model).items():
        torch.testing.assert_close(found["initialized"][name], value)


@pytest.mark.shared
def test_a_sharded_model_takes_a_solver_state_of_caffe(tmp_path: Path, shared: Path) -> None:
    folder = shared / "goldens" / "bvlc" / "snap_sgd_step"
    for name in ("net.prototxt", "solver.prototxt"):
        (tmp_path / name).write_text((folder / name).read_text())
    (tmp_path / "snap.solverstate").write_bytes((folder / "snap_iter_17.solverstate").read_bytes())
    (tmp_path / "snap.caffemodel").write_bytes((folder / "snap_iter_17.caffemodel").read_bytes())
    run(sharded_runs, "resume", tmp_path)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    t = caffe2torch.translate(tmp_path / "net.prototxt", tmp_path / "solver.prototxt")
    t.load_solverstate(tmp_path / "snap.solverstate", tmp_path / "snap.caffemodel")
    assert found["iteration"] == 17
    for (name, p), value in zip(t.model.named_parameters(), found["weights"].values(), strict=True):
        torch.testing.assert_close(value, p.detach(), msg=name)
        if p.requires_grad:
            torch.testing.assert_close(found["buffers"][name], t.optimizer.state[p]["momentum_buffer"])


def test_ddp_with_no_sync_accumulates_and_clips_as_one_process(tmp_path: Path) -> None:
    run(sharded_runs, "ddp", tmp_path)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    model = net()
    train(translated(tmp_path, model, SOLVERS["SGD"] + SCALED), model, range(ITERATIONS))
    assert distance(found, model, net()) < 1e-5


def test_an_optimizer_with_a_part_of_the_parameters_refuses_to_clip(tmp_path: Path) -> None:
    run(sharded_runs, "zero", tmp_path)
    assert (
        "holds only a part of the parameters (as within ZeroRedundancyOptimizer)" in (tmp_path / "said.txt").read_text()
    )
