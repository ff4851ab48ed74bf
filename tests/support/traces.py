"""Recorded runs of real Caffe as tests see them: a model of the recorded weights, its groups, and what feeds it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from places import REPOSITORY

from caffe2torch.binding.plan import Binding, BoundBlob, GroupPlan, Kind, plan_groups
from caffe2torch.reading import read_recipe
from caffe2torch.recipe import SolverSettings, SolverType, TrainingRecipe


@dataclass(frozen=True)
class Trace:
    """One recorded run; parameters of its model are named as Caffe numbers its blobs, ``ip_a/0``."""

    folder: Path

    @property
    def case(self) -> str:
        return self.folder.name

    @cached_property
    def arrays(self) -> dict[str, Any]:
        with np.load(self.folder / "trace.npz") as file:
            return dict(file)

    def recipe(self, solver: str = "solver.prototxt") -> TrainingRecipe:
        return read_recipe(self.folder / "net.prototxt", self.folder / solver)

    def groups(self, recipe: TrainingRecipe) -> tuple[GroupPlan, ...]:
        blobs = tuple(BoundBlob(blob, Kind.PARAMETER, blob.name, "of that name") for blob in recipe.blobs)
        return plan_groups(recipe, Binding("Model", blobs))

    @property
    def names(self) -> list[str]:
        return [str(name) for name in self.arrays["param_names"]]

    @property
    def iterations(self) -> int:
        return len(self.arrays["lr"])

    def model(self, prefix: str = "init", t: int | None = None) -> torch.nn.Module:
        """A model with the weights before iteration 0, or with ``prefix="weight"`` those after iteration ``t``."""
        module = torch.nn.Module()
        for name in self.names:
            values = self.arrays[f"{prefix}/{name}"]
            module.register_parameter(name, torch.nn.Parameter(torch.tensor(values if t is None else values[t])))
        return module

    def feed(self, model: torch.nn.Module, t: int) -> None:
        """Leave in ``model`` the gradients that iteration ``t`` of Caffe had; none where backward leaves none."""
        for name, p in model.named_parameters():
            gradient = self.arrays[f"grad/{name}"][t]
            if p.requires_grad or gradient.any():
                p.grad = torch.from_numpy(gradient.copy())

    def weights(self, t: int, prefix: str = "weight") -> Iterator[tuple[str, np.ndarray]]:
        for name in self.names:
            yield name, self.arrays[f"{prefix}/{name}"][t]

    @cached_property
    def movement(self) -> float:
        """The largest way that any weight has gone from where it began: what differences are compared with."""
        way = max(float(np.nanmax(np.abs(self.arrays[f"weight/{n}"] - self.arrays[f"init/{n}"]))) for n in self.names)
        return way or 1.0


def traces(folder: Path) -> list[Trace]:
    return [Trace(file.parent) for file in sorted(folder.glob("*/trace.npz"))]


def tolerance(solver: SolverSettings) -> float:
    """How far from Caffe's a weight may be, as a part of the largest movement."""
    return 1e-6 if solver.type in (SolverType.SGD, SolverType.NESTEROV) else 3e-6


HERE = traces(REPOSITORY / "fixtures" / "traces")
SHARED = traces(REPOSITORY.parent / "shared" / "goldens" / "bvlc")
CASES = [
    *(pytest.param(trace, id=f"here-{trace.case}") for trace in HERE),
    *(pytest.param(trace, id=trace.case, marks=pytest.mark.shared) for trace in SHARED),
]
