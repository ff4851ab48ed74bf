"""Programs of two processes: ``python sharded_runs.py PROGRAM FOLDER RANK PORT``. The test starts both and compares.

Each trains the same small net with gradients that depend on the iteration alone, so that one process without sharding
is the standard.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import caffe2torch

ITERATIONS = 6
BATCH = 8
NET = """
name: "net"
layer {{ name: "a" type: "InnerProduct" bottom: "data" top: "a"
  param {{ lr_mult: 1 }} param {{ lr_mult: 2 decay_mult: 0 }}
  inner_product_param {{ num_output: {out} weight_filler {{ type: "xavier" }} }} }}
layer {{ name: "b" type: "InnerProduct" bottom: "a" top: "b"
  param {{ lr_mult: 1 }} param {{ lr_mult: 2 decay_mult: 0 }}
  inner_product_param {{ num_output: 3 weight_filler {{ type: "xavier" }} }} }}
"""
STEP = 'base_lr: 0.05 lr_policy: "step" gamma: 0.5 stepsize: 2 weight_decay: 0.01 max_iter: 20 '
SCALED = "clip_gradients: 0.5 iter_size: 2 "
SOLVERS = {
    "SGD": 'type: "SGD" momentum: 0.9 ' + STEP,
    "Nesterov": 'type: "Nesterov" momentum: 0.9 ' + STEP,
    "AdaGrad": 'type: "AdaGrad" ' + STEP,
    "RMSProp": 'type: "RMSProp" rms_decay: 0.9 ' + STEP,
    "AdaDelta": 'type: "AdaDelta" momentum: 0.9 delta: 1e-5 ' + STEP,
    "Adam": 'type: "Adam" momentum: 0.9 ' + STEP,
}


class Net(nn.Module):
    """Its first weight of 1001 rows cannot be halved evenly."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(30, 1001), nn.Linear(1001, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.b(self.a(x).tanh())
        return out


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def translated(folder: Path, model: nn.Module, solver: str, **options: object) -> caffe2torch.Translation:
    rank = dist.get_rank() if dist.is_initialized() else 9
    net_file, solver_file = folder / f"net{rank}.prototxt", folder / f"solver{rank}.prototxt"
    net_file.write_text(NET.format(out=1001))
    solver_file.write_text(solver)
    return caffe2torch.translate(net_file, solver_file, model, **options)


def train(t: caffe2torch.Translation, model: nn.Module, iterations: range, rank: int = 0, world: int = 1) -> None:
    """Two backward passes per iteration; each process has its share of every batch."""
    for iteration in iterations:
        for k in range(2):
            generator = torch.Generator().manual_seed(10 * iteration + k)
            x, y = torch.randn(BATCH, 30, generator=generator), torch.randint(3, (BATCH,), generator=generator)
            x = x.to(next(model.parameters()).dtype)
            share = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
            if hasattr(model, "no_sync") and k == 0:
                with model.no_sync():
                    nn.functional.cross_entropy(model(x[share]), y[share]).backward()
            else:
                nn.functional.cross_entropy(model(x[share]), y[share]).backward()
        t.optimizer.step()
        t.scheduler.step()
        t.optimizer.zero_grad()


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone()
        for name, p in model.named_parameters()
    }


def fsdp2(folder: Path, rank: int) -> None:
    """All six solvers, clipping by the global norm and accumulation, and what a translation saves and loads."""
    from torch.distributed.checkpoint import load, save
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
    from torch.distributed.fsdp import fully_shard

    found = {}
    for name, solver in SOLVERS.items():
        for scaled in ("", SCALED):
            model = fully_shard(
                net().double()
            )  # in float32 adaptive rules show the order in which gradients are summed
            t = translated(folder, model, solver + scaled)
            train(t, model, range(ITERATIONS), rank=rank, world=2)
            found[name + scaled] = weights(model)
    model = fully_shard(net())
    t = translated(folder, model, SOLVERS["SGD"] + SCALED)
    train(t, model, range(3), rank=rank, world=2)
    t.save(folder / "run.pt")
    parts = dict(zip(("model", "optimizer"), get_state_dict(model, t.optimizer), strict=True))
    save(parts, checkpoint_id=folder / "distributed")
    dist.barrier()
    other = fully_shard(Net())
    u = translated(folder, other, SOLVERS["SGD"] + SCALED)
    u.load(folder / "run.pt")
    train(u, other, range(3, ITERATIONS), rank=rank, world=2)
    found["loaded"] = weights(other)
    third = fully_shard(Net())
    v = translated(folder, third, SOLVERS["SGD"] + SCALED)
    empty = dict(zip(("model", "optimizer"), get_state_dict(third, v.optimizer), strict=True))
    load(empty, checkpoint_id=folder / "distributed")
    set_state_dict(third, v.optimizer, model_state_dict=empty["model"], optim_state_dict=empty["optimizer"])
    v.scheduler.restore(3)
    train(v, third, range(3, ITERATIONS), rank=rank, world=2)
    found["distributed"] = weights(third)
    v.initialize(torch.Generator().manual_seed(5))
    found["initialized"] = weights(third)
    if rank == 0:
        torch.save(found, folder / "found.pt")


def resume(folder: Path, rank: int) -> None:
    """A Caffe solver's state into a sharded model."""
    from torch.distributed.fsdp import fully_shard

    recipe = caffe2torch.read_recipe(folder / "net.prototxt", folder / "solver.prototxt")
    model = fully_shard(caffe2torch.skeleton(recipe))
    t = caffe2torch.translate(recipe, model=model)
    t.load_solverstate(folder / "snap.solverstate", folder / "snap.caffemodel")
    found = weights(model)
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}  # others have no history
    buffers = {name: t.optimizer.state[p]["momentum_buffer"].full_tensor() for name, p in learning.items()}
    if rank == 0:
        torch.save({"weights": found, "buffers": buffers, "iteration": t.scheduler.last_epoch}, folder / "found.pt")


def ddp(folder: Path, rank: int) -> None:
    """Accumulation under ``no_sync``, then clipping: both processes and one alone come to the same weights."""
    model = nn.parallel.DistributedDataParallel(net())
    t = translated(folder, model, SOLVERS["SGD"] + SCALED)
    train(t, model, range(ITERATIONS), rank=rank, world=2)
    found = weights(model.module)
    if rank == 0:
        torch.save(found, folder / "found.pt")


def zero(folder: Path, rank: int) -> None:
    """An optimizer that holds a part of the parameters cannot know the norm of all gradients."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model = net()
    t = translated(folder, model, SOLVERS["SGD"] + SCALED)
    groups = [{**group, "params": list(group["params"])} for group in t.optimizer.param_groups]
    for group in groups:
        group.pop("param_names", None)
    optimizer = ZeroRedundancyOptimizer(groups, optimizer_class=type(t.optimizer), momentum=0.9, lr=0.05)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    try:
        optimizer.step()
        said = "nothing"
    except RuntimeError as error:
        said = str(error)
    if rank == 0:
        (folder / "said.txt").write_text(said)


PROGRAMS: dict[str, Callable[[Path, int], None]] = {"fsdp2": fsdp2, "resume": resume, "ddp": ddp, "zero": zero}

if __name__ == "__main__":
    program, place, number, port = sys.argv[1:]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": number, "WORLD_SIZE": "2"}
    dist.init_process_group("gloo")
    PROGRAMS[program](Path(place), int(number))
    dist.barrier()
    dist.destroy_process_group()
