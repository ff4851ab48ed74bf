"""Recorded runs of real Caffe as tests see them: a model of the recorded weights, its groups, and what feeds it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from caffe2torch.caffe.schema import parse_solver
from caffe2torch.caffe.solver import read_solver
from caffe2torch.caffe.textfile import read_text
from caffe2torch.plan import GroupMember, GroupPlan
from caffe2torch.recipe import SolverSettings


@dataclass(frozen=True)
class Trace:
    folder: Path

    @property
    def case(self) -> str:
        return self.folder.name

    @cached_property
    def arrays(self) -> dict[str, Any]:
        with np.load(self.folder / "trace.npz") as file:
            return dict(file)

    @cached_property
    def solver(self) -> SolverSettings:
        return self.read("solver.prototxt")

    def read(self, name: str) -> SolverSettings:
        settings, _ = read_solver(parse_solver(read_text(self.folder / name)))
        net = self.folder / "net.prototxt"
        backward = net.exists() and "force_backward: true" in net.read_text()
        return replace(settings, force_backward=backward)

    @property
    def names(self) -> list[str]:
        return [str(name) for name in self.arrays["param_names"]]

    @property
    def groups(self) -> tuple[GroupPlan, ...]:
        multipliers = zip(self.names, self.arrays["lr_mult"], self.arrays["decay_mult"], strict=True)
        members: dict[tuple[float, float], list[GroupMember]] = {}
        for name, lr_mult, decay_mult in multipliers:
            members.setdefault((float(lr_mult), float(decay_mult)), []).append(GroupMember(name, None))
        return tuple(
            GroupPlan(f"lr x{lr:g}, decay x{decay:g}", lr, decay, tuple(m)) for (lr, decay), m in members.items()
        )

    def model(self) -> torch.nn.Module:
        """Parameters named as Caffe numbers its blobs, with the weights before iteration 0."""
        module = torch.nn.Module()
        for name in self.names:
            module.register_parameter(name, torch.nn.Parameter(torch.from_numpy(self.arrays[f"init/{name}"].copy())))
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

    @property
    def iterations(self) -> int:
        return len(self.arrays["lr"])

    @cached_property
    def movement(self) -> float:
        """The largest way that any weight has gone from where it began: what differences are compared with."""
        way = max(float(np.nanmax(np.abs(self.arrays[f"weight/{n}"] - self.arrays[f"init/{n}"]))) for n in self.names)
        return way or 1.0


def traces(folder: Path) -> list[Trace]:
    return [Trace(meta.parent) for meta in sorted(folder.glob("*/meta.json"))]
