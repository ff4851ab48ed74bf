"""Mistakes of published ports, rebuilt small: for each a net, its solver, and the optimizer of the port."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from caffe2torch.reading import read_recipe
from caffe2torch.recipe import TrainingRecipe

WEIGHTS, BIASES = "param { lr_mult: 1 decay_mult: 1 }", "param { lr_mult: 2 decay_mult: 0 }"


def convolution(name: str, bottom: str, outputs: int, params: str = f"{WEIGHTS} {BIASES}", more: str = "") -> str:
    return (
        f'layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{name}" {params}\n'
        f"  convolution_param {{ num_output: {outputs} kernel_size: 1 {more} }} }}\n"
    )


def norm(name: str, bottom: str, params: str = "") -> str:
    return (
        f'layer {{ name: "{name}" type: "BatchNorm" bottom: "{bottom}" top: "{name}"\n'
        f"  {'param { lr_mult: 0 } ' * 3}}}\n"
        f'layer {{ name: "{name}_scale" type: "Scale" bottom: "{name}" top: "{name}" {params}\n'
        f"  scale_param {{ bias_term: true }} }}\n"
    )


INPUT = 'name: "port" input: "data" input_shape { dim: 1 dim: 3 dim: 9 dim: 9 }\n'
SGD = 'base_lr: 0.01 momentum: 0.9 weight_decay: 0.0005 max_iter: 1000 lr_policy: "fixed"'
STEP = 'base_lr: 0.01 momentum: 0.9 weight_decay: 0.0005 max_iter: 1000 lr_policy: "step" gamma: 0.1 stepsize: 300'


class Chain(nn.Sequential):
    """Layers one after the other, under Caffe's names."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)


@dataclass(frozen=True)
class Port:
    """A net, its solver, the model of the port and what its author built for it."""

    net: str
    model: Callable[[], nn.Module]
    optimizer: Callable[[nn.Module], Any]
    solver: str = SGD
    scheduler: Callable[[Any], Any] | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def recipe(self, folder: Path) -> TrainingRecipe:
        (folder / "train.prototxt").write_text(self.net)
        (folder / "solver.prototxt").write_text(self.solver)
        return read_recipe(folder / "train.prototxt", folder / "solver.prototxt")


def named(model: nn.Module, wanted: Callable[[str], bool]) -> list[nn.Parameter]:
    return [parameter for name, parameter in model.named_parameters() if wanted(name)]


def vgg() -> nn.Module:
    return Chain(conv1=nn.Conv2d(3, 4, 1), conv2=nn.Conv2d(4, 5, 1), score=nn.Conv2d(5, 2, 1))


def vgg_net(params: str = f"{WEIGHTS} {BIASES}", head: str | None = None) -> str:
    layers = convolution("conv1", "data", 4, params) + convolution("conv2", "conv1", 5, params)
    return INPUT + layers + convolution("score", "conv2", 2, head or params)


def resnet() -> nn.Module:
    return Chain(
        conv1=nn.Conv2d(3, 4, 1, bias=False), bn1=nn.BatchNorm2d(4),
        conv2=nn.Conv2d(4, 5, 1, bias=False), bn2=nn.BatchNorm2d(5),
        score=nn.Conv2d(5, 2, 1),
    )  # fmt: skip


def resnet_net(head: str, scale: str = "") -> str:
    bare = "bias_term: false"
    text = convolution("conv1", "data", 4, WEIGHTS, bare) + norm("bn1", "conv1", scale)
    text += convolution("conv2", "bn1", 5, WEIGHTS, bare) + norm("bn2", "conv2", scale)
    return INPUT + text + convolution("score", "bn2", 2, head)


class RebuiltEveryStep(torch.optim.SGD):
    """An optimizer that the training loop builds anew for every update, so that its momentum never accumulates."""

    def step(self, closure: Any = None) -> Any:
        self.state.clear()
        return super().step(closure)


def nested(model: nn.Module) -> list[nn.Parameter]:
    """A generator that walks into modules of modules yields their parameters again at every depth."""

    def walk() -> Iterator[nn.Parameter]:
        for module in model.modules():
            yield from (p for name, p in module.named_parameters() if not name.startswith("score"))

    return [p for p in walk() if p.shape[:1] != (2,)]


def deeplab_resnet(model: nn.Module) -> torch.optim.Optimizer:
    once = named(model, lambda name: not name.startswith("score"))
    head = named(model, lambda name: name.startswith("score"))
    optimizer = RebuiltEveryStep(
        [{"params": once, "lr": 0.01}, {"params": head, "lr": 0.1}], momentum=0.9, weight_decay=0.0005
    )
    optimizer.param_groups[0]["params"] = nested(model)
    return optimizer


class InverseCorrection:
    """Multiplies lr and momentum buffers: right for a history that contains the rate, which torch's does not."""

    def __init__(self, optimizer: torch.optim.SGD, every: int) -> None:
        self.optimizer = optimizer
        self.every = every
        self.last_epoch = 0

    def step(self) -> None:
        self.last_epoch += 1
        if self.last_epoch % self.every:
            return
        for group in self.optimizer.param_groups:
            group["lr"] *= 0.1
            for p in group["params"]:
                if "momentum_buffer" in self.optimizer.state[p]:
                    self.optimizer.state[p]["momentum_buffer"] *= 0.1


class RightCorrection(InverseCorrection):
    """The same the right way round: buf *= old / new."""

    def step(self) -> None:
        before = [group["lr"] for group in self.optimizer.param_groups]
        super().step()
        for group, old in zip(self.optimizer.param_groups, before, strict=True):
            for p in group["params"]:
                if "momentum_buffer" in self.optimizer.state[p] and old != group["lr"]:
                    self.optimizer.state[p]["momentum_buffer"] *= 100


def two_groups(model: nn.Module, lr: float = 0.01, decay: float = 0.0005, bias_decay: float = 0.0) -> torch.optim.SGD:
    """Weights at (1, 1), biases at (2, 0) unless said otherwise."""
    return torch.optim.SGD(
        [
            {"params": named(model, lambda name: not name.endswith("bias")), "lr": lr, "weight_decay": decay},
            {"params": named(model, lambda name: name.endswith("bias")), "lr": 2 * lr, "weight_decay": bias_decay},
        ],
        lr=lr,
        momentum=0.9,
    )
