"""Ports of one small net, right ones and ones with planted mistakes, each with the verdict that its making implies.

A port is built with torch alone from the choices of a ``Case``. What is expected of the audit is read off the choices,
never from ``caffe2torch.verification``: a row is wrong where a mistake was planted in it, a check differs where the
port's run differs from Caffe's.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from caffe2torch.reading import read_recipe
from caffe2torch.recipe import TrainingRecipe

SOLVERS = ("SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam")
POLICIES = {
    "fixed": "",
    "step": "gamma: 0.5 stepsize: 300",
    "exp": "gamma: 0.999",
    "inv": "gamma: 0.001 power: 0.75",
    "multistep": "gamma: 0.1 stepvalue: 250 stepvalue: 600",
    "poly": "power: 0.9",
    "sigmoid": "gamma: 0.01 stepsize: 500",
}
PASSES, CLIP, MAX_ITER, EPOCH = 4, 30.0, 1000, 20
BASE_LR, MOMENTUM, DECAY, DELTA = 0.01, 0.9, 0.0005, 1e-3
LAYERS = ("a", "b", "c")
NET = 'name: "grid" input: "data" input_shape { dim: 2 dim: 3 }\n' + "".join(
    f'layer {{ name: "{name}" type: "InnerProduct" bottom: "{bottom}" top: "{name}" param {{ lr_mult: 1 }} '
    f"param {{ lr_mult: 2 decay_mult: 0 }} inner_product_param {{ num_output: 3 }} }}\n"
    for bottom, name in itertools.pairwise(("data", *LAYERS))
)
ROW_MISTAKES = (
    "rate x2", "rate x10", "rate x0.1", "decay missing", "decay on biases", "bias lr missing",
    "frozen", "twice", "in no group",
)  # fmt: skip
RUN_MISTAKES = ("wrong momentum", "Nesterov for SGD", "AdamW for Adam", "wrong gamma", "wrong stepsize")


@dataclass(frozen=True)
class Case:
    """The choices that a port is built from."""

    solver: str
    policy: str
    accumulation: str  # sum, mean, none
    clip: str  # step, loop, none
    schedule: str  # right, epoch, none
    momentum: str  # stock, caffe
    mistakes: tuple[str, ...] = ()
    seed: int = 0

    def __str__(self) -> str:
        return "-".join(
            (self.solver, self.policy, self.accumulation, self.clip, self.schedule, self.momentum, *self.mistakes)
        )


def right_cases() -> Iterator[Case]:
    """Every combination of choices without a mistake."""
    for choices in itertools.product(
        SOLVERS, POLICIES, ("none", "sum", "mean"), ("none", "step", "loop"), ("right", "epoch", "none"),
        ("stock", "caffe"),
    ):  # fmt: skip
        yield Case(*choices)


def mistaken_cases(generator: random.Random) -> Iterator[Case]:
    """One or two mistakes at a time, on ports that are right otherwise, without end."""
    while True:
        mistakes = tuple(sorted(generator.sample([*ROW_MISTAKES, *RUN_MISTAKES], generator.choice((1, 2)))))
        case = Case(
            generator.choice(SOLVERS),
            generator.choice(list(POLICIES)),
            generator.choice(("none", "sum", "mean")),
            generator.choice(("none", "step", "loop")),
            generator.choice(("right", "none")),
            generator.choice(("stock", "caffe")),
            mistakes,
            generator.randrange(10**6),
        )
        if _possible(case):
            yield case


def _possible(case: Case) -> bool:
    has_momentum = case.solver in ("SGD", "Nesterov", "Adam", "AdaDelta")
    scheduled = case.schedule == "right"
    return all(
        {
            "wrong momentum": has_momentum and "Nesterov for SGD" not in case.mistakes,
            "Nesterov for SGD": case.solver == "SGD",
            "AdamW for Adam": case.solver == "Adam",
            "wrong gamma": scheduled and case.policy in ("step", "exp", "multistep", "inv"),
            "wrong stepsize": scheduled and case.policy in ("step", "multistep"),
        }.get(mistake, True)
        for mistake in case.mistakes
    ) and not {"decay missing", "decay on biases", "bias lr missing"} <= set(case.mistakes)


def solver_text(case: Case) -> str:
    """The solver's prototxt."""
    text = f'type: "{case.solver}" base_lr: {BASE_LR} lr_policy: "{case.policy}" {POLICIES[case.policy]} '
    text += f"max_iter: {MAX_ITER} weight_decay: {DECAY} "
    if case.solver in ("SGD", "Nesterov", "Adam", "AdaDelta"):
        text += f"momentum: {MOMENTUM} "
    if case.solver in ("AdaGrad", "RMSProp", "AdaDelta", "Adam"):
        text += f"delta: {DELTA} "
    if case.solver == "RMSProp":
        text += "rms_decay: 0.98 "
    if case.accumulation != "none":
        text += f"iter_size: {PASSES} "
    if case.clip != "none":
        text += f"clip_gradients: {CLIP} "
    return text


def recipe_of(case: Case, folder: Path) -> TrainingRecipe:
    """The recipe of the case's net and solver."""
    (folder / "net.prototxt").write_text(NET)
    (folder / "solver.prototxt").write_text(solver_text(case))
    return read_recipe(folder / "net.prototxt", folder / "solver.prototxt")


class Model(nn.Module):
    """Three linear layers."""

    def __init__(self) -> None:
        super().__init__()
        for name in LAYERS:
            setattr(self, name, nn.Linear(3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The output."""
        for name in LAYERS:
            x = getattr(self, name)(x)
        return x


def factor_at(case: Case, iteration: int) -> float:
    """The rate as a factor of base_lr, by the formulas of Caffe's documentation."""
    gamma = {"step": 0.5, "exp": 0.999, "inv": 0.001, "multistep": 0.1, "sigmoid": 0.01}.get(case.policy, 0.0)
    stepsize, stepvalues = 300, (250, 600)
    if "wrong gamma" in case.mistakes:
        gamma *= 0.9 if case.policy != "exp" else 0.99
    if "wrong stepsize" in case.mistakes:
        stepsize, stepvalues = 200, (150, 600)
    i = iteration
    match case.policy:
        case "step":
            return gamma ** (i // stepsize)
        case "exp":
            return gamma**i
        case "inv":
            return (1 + gamma * i) ** -0.75
        case "multistep":
            return gamma ** sum(i >= value for value in stepvalues)
        case "poly":
            return max(1 - i / MAX_ITER, 0.0) ** 0.9
        case "sigmoid":
            return 1 / (1 + math.exp(-gamma * (i - 500)))
    return 1.0


class Port(torch.optim.Optimizer):
    """An optimizer around a stock one: divides, clips, and corrects momentum and eps as the case asks for."""

    def __init__(self, case: Case, inner: torch.optim.Optimizer) -> None:
        self.case = case
        self.inner = inner
        self.steps = 0
        self.rates: list[float] = []
        super().__init__([{"params": _once(g["params"])} for g in inner.param_groups], {})
        self.param_groups = inner.param_groups

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # nobody here passes a closure
        """One update."""
        case, grads = self.case, [p.grad for g in self.param_groups for p in _once(g["params"]) if p.grad is not None]
        if case.clip == "step":
            wanted = CLIP / PASSES if case.accumulation == "mean" else CLIP
            norm = math.sqrt(sum(float(g.double().square().sum()) for g in grads))
            for g in grads:
                g.mul_(min(1.0, wanted / norm) if norm else 1.0)
        if case.accumulation == "sum":
            for g in grads:
                g.div_(PASSES)
        if case.momentum == "caffe":
            self._as_caffe()
        self.steps += 1
        self.inner.step()

    def _as_caffe(self) -> None:
        rates = [float(group["lr"]) for group in self.param_groups]
        if self.case.solver in ("SGD", "Nesterov"):
            for group, old, new in zip(self.param_groups, self.rates or rates, rates, strict=True):
                for p in _once(group["params"]):
                    if old != new and new and self.inner.state[p].get("momentum_buffer") is not None:
                        self.inner.state[p]["momentum_buffer"] *= old / new
        if self.case.solver == "Adam":
            for group in self.param_groups:
                group["eps"] = DELTA / math.sqrt(1 - group["betas"][1] ** (self.steps + 1))
        self.rates = rates


def _once(params: list[torch.Tensor]) -> list[torch.Tensor]:
    return list({id(p): p for p in params}.values())


@dataclass
class Built:
    """A port, and what an audit of it has to find, each once and nothing else.

    ``wrong`` has the verdict and the kind of fault by parameter, ``differs`` the kinds of faults by check.
    """

    model: nn.Module
    optimizer: Any
    scheduler: Any
    wrong: dict[str, tuple[str, list[str]]] = field(default_factory=dict)
    differs: dict[str, list[str]] = field(default_factory=dict)


def build(case: Case) -> Built:
    """The port of a case."""
    generator = random.Random(case.seed)
    model = Model()
    settings = {name: [BASE_LR, DECAY] for name, _ in model.named_parameters() if name.endswith("weight")}
    settings |= {name: [2 * BASE_LR, 0.0] for name, _ in model.named_parameters() if name.endswith("bias")}
    wrong: dict[str, tuple[str, list[str]]] = {}
    named = dict(model.named_parameters())
    repeated, dropped = set(), set()
    free = list(LAYERS)
    for mistake in case.mistakes:
        layer = generator.choice(free)
        if mistake in ROW_MISTAKES:
            free.remove(layer)
        name = f"{layer}.{generator.choice(('weight', 'bias'))}"
        match mistake:
            case "rate x2" | "rate x10" | "rate x0.1":
                settings[name][0] *= float(mistake[6:])
                wrong[name] = ("mismatch", ["lr"])
            case "decay missing":
                settings[f"{layer}.weight"][1] = 0.0
                wrong[f"{layer}.weight"] = ("mismatch", ["weight_decay"])
            case "decay on biases":
                settings[f"{layer}.bias"][1] = DECAY
                wrong[f"{layer}.bias"] = ("mismatch", ["weight_decay"])
            case "bias lr missing":
                settings[f"{layer}.bias"][0] = BASE_LR
                wrong[f"{layer}.bias"] = ("mismatch", ["lr"])
            case "frozen":
                named[name].requires_grad_(False)
                wrong[name] = ("frozen", ["frozen"])
            case "twice":
                repeated.add(name)
                wrong[name] = ("duplicate", ["duplicate"])
            case "in no group":
                dropped.add(name)
                wrong[name] = ("missing", ["missing"])
    groups = [
        {
            "params": [named[name]],
            "lr": lr * (factor_at(case, 0) if case.schedule == "none" else 1),
            "weight_decay": decay,
        }
        for name, (lr, decay) in settings.items()
        if name not in dropped
    ]
    inner = _stock(case, groups)
    for group in inner.param_groups:  # past the constructor, which warns
        group["params"] += [p for p in group["params"] if any(p is named[name] for name in repeated)]
    optimizer = Port(case, inner)
    scheduler = None
    if case.schedule == "right":
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: factor_at(case, i))
    elif case.schedule == "epoch":
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: factor_at(case, epoch * EPOCH))
    return Built(model, optimizer, scheduler, wrong, _differing(case))


def _stock(case: Case, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    momentum = 0.8 if "wrong momentum" in case.mistakes else MOMENTUM
    match case.solver:
        case "SGD" | "Nesterov":
            nesterov = case.solver == "Nesterov" or "Nesterov for SGD" in case.mistakes
            return torch.optim.SGD(groups, lr=0.1, momentum=momentum, nesterov=nesterov)
        case "AdaGrad":
            return torch.optim.Adagrad(groups, eps=DELTA)
        case "RMSProp":
            return torch.optim.RMSprop(groups, alpha=0.98, eps=DELTA)
        case "AdaDelta":
            return torch.optim.Adadelta(groups, rho=momentum, eps=DELTA)
    kind = torch.optim.AdamW if "AdamW for Adam" in case.mistakes else torch.optim.Adam
    return kind(groups, betas=(momentum, 0.999), eps=DELTA)


def _differing(case: Case) -> dict[str, list[str]]:
    """The checks in which the port's run is another one than Caffe's, each with the kinds of what differs."""
    changing = case.policy != "fixed"
    planted = {
        ("update rule", "momentum"): "wrong momentum" in case.mistakes,
        ("update rule", "rule"): "Nesterov for SGD" in case.mistakes,
        ("update rule", "regularization"): "AdamW for Adam" in case.mistakes,
        # Stock Adam adds eps after the bias correction, Caffe before it.
        ("update rule", "epsilon"): case.solver == "Adam" and case.momentum == "stock",
        ("rate schedule", "schedule"): changing
        and (case.schedule == "epoch" or bool({"wrong gamma", "wrong stepsize"} & set(case.mistakes))),
        ("momentum at rate changes", "rate_change"): changing
        and case.solver in ("SGD", "Nesterov")
        and case.momentum == "stock"
        and case.schedule != "none",
    }
    found: dict[str, list[str]] = {}
    for (check, kind), differs in planted.items():
        if differs:
            found.setdefault(check, []).append(kind)
    return found
