"""How far from Caffe a careful port to stock torch ends up, measured on recorded runs of Caffe, and how far we do.

    python benchmarks/divergence.py ../shared/goldens/bvlc
    python benchmarks/divergence.py fixtures/traces              the runs that belong to the project

The careful port has all that a person can say to ``torch.optim``: each group's effective lr at every iteration and its
weight_decay, momentum or betas, eps for delta, gradients averaged over iter_size and then clipped. Both get the
gradients that Caffe had. A number is the largest difference of any weight from Caffe's over 40 iterations, over the
largest way that any weight went.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from caffe2torch.binding.plan import Binding, BoundBlob, Kind, plan_groups
from caffe2torch.optim.build import build_optimizer
from caffe2torch.optim.schedule import build_scheduler
from caffe2torch.reading import read_recipe
from caffe2torch.recipe import SolverSettings, SolverType

RUNS = {
    "sgd_fixed": "SGD, constant rate",
    "sgd_step": "SGD, `step`",
    "sgd_exp": "SGD, `exp`",
    "sgd_inv": "SGD, `inv`",
    "sgd_multistep": "SGD, `multistep`",
    "sgd_poly": "SGD, `poly`",
    "sgd_sigmoid": "SGD, `sigmoid`",
    "nesterov_fixed": "Nesterov, constant rate",
    "nesterov_step": "Nesterov, `step`",
    "nesterov_poly": "Nesterov, `poly`",
    "sgd_fixed_iter3": "SGD, `iter_size: 3`",
    "sgd_fixed_clip": "SGD, `clip_gradients`",
    "sgd_fixed_iter3_clip": "SGD, both, averaged before clipping",
    "adagrad_step": "AdaGrad, `step`",
    "rmsprop_step": "RMSProp, `step`",
    "adadelta_step": "AdaDelta, `step`",
    "adam_step": "Adam, `delta: 1e-8`",
    "adam_fixed_bigdelta": "Adam, `delta: 0.1`",
}


@dataclass(frozen=True)
class Row:
    """One recorded run: what it is, and how far the careful port and the translation are from Caffe."""

    case: str
    what: str
    port: float
    ours: float


def measure(folder: Path) -> list[Row]:
    """The runs of ``RUNS`` that ``folder`` has."""
    found = [(folder / case, what) for case, what in RUNS.items() if (folder / case / "trace.npz").exists()]
    return [Row(case.name, what, apart(case, ported), apart(case, translated)) for case, what in found]


def apart(case: Path, optimizer_for: Any) -> float:
    """The largest difference from Caffe over the largest movement."""
    recipe = read_recipe(case / "net.prototxt", case / "solver.prototxt")
    with np.load(case / "trace.npz") as file:
        trace = dict(file)
    names = [blob.name for blob in recipe.blobs]
    model = torch.nn.ParameterDict({name: torch.tensor(trace[f"init/{name}"]) for name in names})
    step = optimizer_for(model, recipe)
    worst = way = 0.0
    for t, rate in enumerate(trace["lr"]):
        for name, p in model.items():
            p.grad = torch.tensor(trace[f"grad/{name}"][t]) if p.requires_grad else None
        step(float(rate))
        for name, p in model.items():
            theirs = trace[f"weight/{name}"][t]
            worst = max(worst, float(np.max(np.abs(p.detach().numpy() - theirs))))
            way = max(way, float(np.max(np.abs(theirs - trace[f"init/{name}"]))))
    return worst / way


def translated(model: torch.nn.ParameterDict, recipe: Any) -> Any:
    blobs = tuple(BoundBlob(blob, Kind.PARAMETER, blob.name, "of that name") for blob in recipe.blobs)
    optimizer = build_optimizer(model, plan_groups(recipe, Binding("recorded", blobs)), recipe.solver)
    scheduler = build_scheduler(optimizer, recipe.solver)

    def step(_: float) -> None:
        optimizer.step()
        scheduler.step()

    return step


def ported(model: torch.nn.ParameterDict, recipe: Any) -> Any:
    solver: SolverSettings = recipe.solver
    groups = []
    for blob in recipe.blobs:
        model[blob.name].requires_grad_(blob.lr_mult != 0)
        decay = solver.weight_decay * blob.decay_mult
        groups.append({"params": [model[blob.name]], "weight_decay": decay, "lr_mult": blob.lr_mult})
    optimizer = stock(groups, solver)

    def step(rate: float) -> None:
        gradients = [p for p in model.values() if p.grad is not None]
        for p in gradients:
            p.grad /= solver.iter_size
        if solver.clip_gradients is not None:
            torch.nn.utils.clip_grad_norm_(gradients, solver.clip_gradients)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["lr_mult"]
        optimizer.step()

    return step


def stock(groups: list[dict[str, Any]], solver: SolverSettings) -> torch.optim.Optimizer:
    match solver.type:
        case SolverType.SGD:
            return torch.optim.SGD(groups, momentum=solver.momentum)
        case SolverType.NESTEROV:
            return torch.optim.SGD(groups, momentum=solver.momentum, nesterov=True)
        case SolverType.ADAGRAD:
            return torch.optim.Adagrad(groups, eps=solver.delta)
        case SolverType.RMSPROP:
            return torch.optim.RMSprop(groups, alpha=solver.rms_decay, eps=solver.delta)
        case SolverType.ADADELTA:
            return torch.optim.Adadelta(groups, rho=solver.momentum, eps=solver.delta)
        case SolverType.ADAM:
            return torch.optim.Adam(groups, betas=(solver.momentum, solver.momentum2), eps=solver.delta)


def shown(number: float) -> str:
    """Two digits of a number that says something, the size of one that is rounding."""
    return f"{number:.2f}" if number >= 0.005 else f"{number:.0e}".replace("e-0", "e-")


def table(rows: list[Row]) -> str:
    """The rows as Markdown."""
    lines = ["| recorded run | careful port | caffe2torch |", "| --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {row.what} | {shown(row.port)} | {shown(row.ours)} |" for row in rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a folder of recorded runs")
    print(table(measure(parser.parse_args().folder)))


if __name__ == "__main__":
    main()
