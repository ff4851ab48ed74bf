"""A small net, its recipe and its binding, made by hand: what the tests of probe, report and audit start from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from caffe2torch.binding.plan import Binding, BoundBlob, Kind, plan_groups
from caffe2torch.recipe import (
    LearnableBlob,
    LrPolicy,
    PolicyType,
    SolverSettings,
    SolverType,
    SourceLocation,
    Stated,
    Statement,
    TrainingRecipe,
)
from caffe2torch.verification.probe_sequence import Observation
from caffe2torch.verification.run_probe import observe
from caffe2torch.verification.verify import Report, verify

FIXED = LrPolicy(PolicyType.FIXED, base_lr=0.1)
SGD = SolverSettings(SolverType.SGD, FIXED, momentum=0.9, weight_decay=0.0005)
CONVOLUTION = ((1.0, 1.0), (2.0, 0.0))
TYPES = {"Conv2d": "Convolution", "BatchNorm2d": "BN", "Linear": "InnerProduct"}


class SmallNet(torch.nn.Module):
    """Convolution and BN, twice, and a classifier: ten parameters, as SegNetBasic spells them."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(channels, 4, 3)
        self.conv1_bn = torch.nn.BatchNorm2d(4)
        self.conv2 = torch.nn.Conv2d(4, 5, 3)
        self.conv2_bn = torch.nn.BatchNorm2d(5)
        self.conv_classifier = torch.nn.Conv2d(5, 2, 1)


def recipe_of(
    model: torch.nn.Module,
    solver: SolverSettings = SGD,
    *,
    norms: tuple[tuple[float, float], tuple[float, float]] = ((1.0, 1.0), (1.0, 1.0)),
    others: tuple[tuple[float, float], tuple[float, float]] = CONVOLUTION,
) -> tuple[TrainingRecipe, Binding]:
    """A recipe with a blob for every parameter, four lines of a file each, and the binding of equal names."""
    blobs, bound, line = [], [], 10
    for layer, module in model.named_modules():
        norm = isinstance(module, torch.nn.BatchNorm2d)
        for index, (name, parameter) in enumerate(module.named_parameters(recurse=False)):
            line += 4
            said = Statement.DEFAULTED if norm else Statement.EXPLICIT
            blob = LearnableBlob(
                layer=layer,
                layer_type=TYPES[type(module).__name__],
                index=index,
                role={"weight": "scale", "bias": "shift"}[name] if norm else name,
                shape=tuple(parameter.shape),
                lr_mult=(norms if norm else others)[name == "bias"][0],
                decay_mult=(norms if norm else others)[name == "bias"][1],
                stated=Stated(said, said),
                where=SourceLocation("train.prototxt", line, 3),
            )
            blobs.append(blob)
            bound.append(BoundBlob(blob, Kind.PARAMETER, f"{layer}.{name}", "equal names"))
    return TrainingRecipe("small", tuple(blobs), solver), Binding(type(model).__name__, tuple(bound))


def groups_of(model: torch.nn.Module, solver: SolverSettings = SGD) -> list[dict[str, Any]]:
    """The right param groups for ``recipe_of(model)``, one for (1, 1) and one for (2, 0)."""
    ones = [p for n, p in model.named_parameters() if not is_bias(n)]
    twos = [p for n, p in model.named_parameters() if is_bias(n)]
    lr, decay = solver.policy.base_lr, solver.weight_decay
    return [
        {"params": ones, "lr": lr, "weight_decay": decay},
        {"params": twos, "lr": 2 * lr, "weight_decay": 0.0},
    ]


def is_bias(name: str) -> bool:
    """A convolution's bias, not a BN's shift."""
    return name.endswith("bias") and "_bn" not in name


def report_of(
    model: torch.nn.Module, optimizer: Any, solver: SolverSettings = SGD, scheduler: Any = None, **more: Any
) -> Report:
    """The report on an optimizer for ``recipe_of(model, solver)``."""
    recipe, binding = recipe_of(model, solver)
    seen = observe(model, optimizer, solver, scheduler)
    return verify(recipe, binding, plan_groups(recipe, binding), seen, **more)


def wrong(report: Report) -> dict[str, str]:
    """Parameter to verdict, of the rows that are not ok."""
    return {str(row.parameter): str(row.verdict) for row in report.wrong}


def names(observations: Iterable[Observation]) -> list[str]:
    """The parameters' names."""
    return [observation.parameter for observation in observations]
