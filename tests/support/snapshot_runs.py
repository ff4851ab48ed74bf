"""What tests of snapshots share: bindings written by hand, and a whole set-up around a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from caffe2torch.binding.plan import Binding, BoundBlob, Kind, plan_groups
from caffe2torch.errors import Caffe2TorchError
from caffe2torch.optim.build import build_optimizer
from caffe2torch.optim.schedule import CaffeLRScheduler, build_scheduler
from caffe2torch.recipe import TrainingRecipe


def bound(recipe: TrainingRecipe, model: nn.Module, names: Mapping[str, str | None]) -> Binding:
    """A binding by hand: ``LAYER/INDEX`` to a tensor's name, or ``None`` for no counterpart."""
    parameters = {name for name, _ in model.named_parameters()}
    assert names.keys() == {blob.name for blob in recipe.blobs}
    blobs = []
    for blob in recipe.blobs:
        name = names[blob.name]
        kind = Kind.NONE if name is None else Kind.PARAMETER if name in parameters else Kind.BUFFER
        blobs.append(BoundBlob(blob, kind, name, "by hand"))
    return Binding(type(model).__name__, tuple(blobs))


@dataclass
class Run:
    """A model in training."""

    model: nn.Module
    recipe: TrainingRecipe
    binding: Binding
    optimizer: torch.optim.Optimizer
    scheduler: CaffeLRScheduler

    def parameter(self, blob: str) -> nn.Parameter:
        name = next(one.name for one in self.binding.blobs if one.blob.name == blob)
        assert name is not None
        return self.model.get_parameter(name)


def run_of(recipe: TrainingRecipe, model: nn.Module, binding: Binding, **finetune: float) -> Run:
    assert recipe.solver is not None
    optimizer = build_optimizer(model, plan_groups(recipe, binding, finetune), recipe.solver)
    return Run(model, recipe, binding, optimizer, build_scheduler(optimizer, recipe.solver))


def text_file(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def everything(run: Run) -> list[object]:
    """All that a refused file must leave as it is, as plain data."""
    state = run.optimizer.state_dict()
    tensors = [*run.model.state_dict().values(), *(v for one in state["state"].values() for v in one.values())]
    return [
        *(tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes() for tensor in tensors),
        repr(state["param_groups"]),
        repr(run.scheduler.state_dict()),
    ]


def unchanged_on_refusal(run: Run, read: Callable[[], object]) -> None:
    """Read a file that may be refused; if it is, nothing of the run has changed."""
    before = everything(run)
    try:
        read()
    except Caffe2TorchError:
        assert everything(run) == before, "refused, but something has changed"
        raise
