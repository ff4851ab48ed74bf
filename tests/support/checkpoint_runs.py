"""Programs that tests of checkpoints run in processes of their own.

``python checkpoint_runs.py go_on CHECKPOINT CASE ITERATIONS`` loads and goes on; ``... be_killed FOLDER SEED`` saves
over and over in a child that is killed.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from snapshot_runs import Run, run_of, text_file
from torch import nn

from caffe2torch.binding.bind import bind
from caffe2torch.reading import read_recipe
from caffe2torch.snapshot.checkpoint import load_checkpoint, save_checkpoint

NET = """
name: "small"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 8 dim: 2 dim: 6 dim: 6 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  param { lr_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "bn" }
layer { name: "scale" type: "Scale" bottom: "bn" top: "scale" scale_param { bias_term: true } }
layer { name: "fixed" type: "InnerProduct" bottom: "scale" top: "fixed" param { lr_mult: 0 } param { lr_mult: 0 }
  inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "ip" type: "InnerProduct" bottom: "fixed" top: "ip"
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
"""
STEP = 'base_lr: 0.1 lr_policy: "step" gamma: 0.5 stepsize: 3 weight_decay: 0.01 max_iter: 40\n'
CASES = {
    "sgd": 'type: "SGD" momentum: 0.9 ' + STEP,
    "sgd, no momentum": 'type: "SGD" ' + STEP,
    "sgd, ramped up from 0": 'type: "SGD" momentum: 0.9 rampup_interval: 6 ' + STEP,
    "sgd, multistep and clipped": 'type: "SGD" base_lr: 0.1 lr_policy: "multistep" gamma: 0.3 '
    "stepvalue: 3 stepvalue: 3 stepvalue: 7 momentum: 0.9 clip_gradients: 0.5 iter_size: 2 max_iter: 40",
    "nesterov": 'type: "Nesterov" momentum: 0.9 ' + STEP,
    "adagrad": 'type: "AdaGrad" ' + STEP,
    "rmsprop": 'type: "RMSProp" rms_decay: 0.9 ' + STEP,
    "adadelta": 'type: "AdaDelta" momentum: 0.9 delta: 1e-5 ' + STEP,
    "adam": 'type: "Adam" momentum: 0.9 ' + STEP,
}


class Small(nn.Module):
    """The net above."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
        self.fixed, self.ip = nn.Linear(64, 5), nn.Linear(5, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.ip(self.fixed(self.bn(self.conv(x)).flatten(1)).relu())
        return out


def small_run(folder: Path, solver: str, net: str = NET, model: nn.Module | None = None, **finetune: float) -> Run:
    recipe = read_recipe(text_file(folder / "net.prototxt", net), text_file(folder / "solver.prototxt", solver))
    torch.manual_seed(3)
    model = model or Small()
    return run_of(recipe, model, bind(recipe, model), **finetune)


def train(run: Run, iterations: int) -> None:
    """Iterations whose data depends on their number alone, so that a run that was interrupted sees the same."""
    for _ in range(iterations):
        generator = torch.Generator().manual_seed(run.scheduler.last_epoch)
        x, y = torch.randn(8, 2, 6, 6, generator=generator), torch.randint(3, (8,), generator=generator)
        nn.functional.cross_entropy(run.model(x), y).backward()
        run.optimizer.step()
        run.scheduler.step()
        run.optimizer.zero_grad()


def save(run: Run, path: Path) -> None:
    save_checkpoint(path, run.model, run.optimizer, run.scheduler, run.recipe, run.binding)


def load(run: Run, path: Path, **how: object) -> list[str]:
    notes = load_checkpoint(
        path,
        run.model,
        run.optimizer,
        run.scheduler,
        run.recipe,
        run.binding,
        **how,  # type: ignore[arg-type]
    )
    return [note.message for note in notes]


def go_on(folder: Path, iterations: int) -> None:
    """Load each case's checkpoint, train on, and leave the weights that came out."""
    for case, solver in CASES.items():
        with torch.no_grad():
            torch.manual_seed(99)
            other = Small()
        run = small_run(folder, solver, model=other)
        assert load(run, folder / f"{case}.pt") == []
        train(run, iterations)
        torch.save(run.model.state_dict(), folder / f"{case}.after.pt")


def be_killed(folder: Path, seed: int) -> None:
    """Save over and over in a child, kill it at any moment, and see that what is there is whole: one of its saves."""
    chance, path = random.Random(seed), folder / "run.pt"
    run = small_run(folder, CASES["adam"])
    run.model.ballast = nn.Parameter(torch.zeros(1 << 21), requires_grad=False)  # what makes a save take a while
    loaded, cut_off = 0, 0
    start = time.monotonic()
    train(run, 1)
    run.model.ballast.data.fill_(run.scheduler.last_epoch)
    save(run, path)
    took = time.monotonic() - start  # on a machine as busy as it is now
    for _ in range(100):  # until enough kills fell into a save, which leaves a part of a file under another name
        child = os.fork()
        if child == 0:
            while True:
                train(run, 1)
                run.model.ballast.data.fill_(run.scheduler.last_epoch)
                save(run, path)
        time.sleep(took * chance.uniform(0.2, 3))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if path.exists():
            load(run, path)
            assert run.model.ballast.unique().tolist() == [run.scheduler.last_epoch]
            loaded += 1
        left = list(folder.glob(".caffe2torch-*"))
        assert len(left) <= 1, "a save removes what the one before it left"
        cut_off += len(left)
        if loaded >= 6 and cut_off >= 3:
            break
    save(run, path)
    assert not list(folder.glob(".caffe2torch-*"))
    print(f"{loaded} loaded, {cut_off} cut off")


if __name__ == "__main__":
    if sys.argv[1] == "go_on":
        go_on(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        be_killed(Path(sys.argv[2]), int(sys.argv[3]))
