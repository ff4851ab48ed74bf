"""A small net with a frozen layer and a branch that is seldom used, trained by each solver: for tests to interrupt."""

from __future__ import annotations

from functools import cache

import torch
from emitted import load
from torch.optim.lr_scheduler import LRScheduler

from caffe2torch.binding.plan import GroupMember, GroupPlan
from caffe2torch.emit import emit
from caffe2torch.optim.build import build_optimizer
from caffe2torch.optim.schedule import build_scheduler
from caffe2torch.recipe import LrPolicy, PolicyType, Ramp, Regularization, SolverSettings, SolverType, TrainingRecipe

STEPS = LrPolicy(PolicyType.MULTISTEP, base_lr=0.05, gamma=0.5, stepvalues=(2, 2, 4, 7))
SOLVERS = {
    "SGD": SolverSettings(SolverType.SGD, STEPS, momentum=0.9, weight_decay=0.01),
    "SGD clipped": SolverSettings(
        SolverType.SGD, STEPS, momentum=0.9, weight_decay=0.01, clip_gradients=2.0, iter_size=2
    ),
    "SGD ramped": SolverSettings(SolverType.SGD, STEPS, weight_decay=0.01, momentum_ramp=Ramp(0.9, 1.0, 10)),
    "SGD L1": SolverSettings(SolverType.SGD, STEPS, momentum=0.9, weight_decay=0.01, regularization=Regularization.L1),
    "Nesterov": SolverSettings(SolverType.NESTEROV, STEPS, momentum=0.9, weight_decay=0.01),
    "AdaGrad": SolverSettings(SolverType.ADAGRAD, STEPS, weight_decay=0.01),
    "RMSProp": SolverSettings(SolverType.RMSPROP, STEPS, weight_decay=0.01),
    "AdaDelta": SolverSettings(SolverType.ADADELTA, STEPS, momentum=0.95, delta=1e-3),
    "Adam": SolverSettings(SolverType.ADAM, STEPS, momentum=0.9, delta=0.1, clip_gradients=3.0),
}
ITERATIONS = 10


class Net(torch.nn.Module):
    """A convolution, a frozen layer, and a branch that is not always used."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(2, 4, 3)
        self.frozen = torch.nn.Linear(4, 4)
        self.head = torch.nn.Linear(4, 3)
        self.seldom = torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, seldom: bool) -> torch.Tensor:
        y = self.frozen(self.conv(x).mean((2, 3)))
        return self.head(y) + (self.seldom(y) if seldom else 0)


GROUPS = (
    GroupPlan("weights", 1.0, 1.0, tuple(GroupMember(f"{layer}.weight", None) for layer in ("conv", "head", "seldom"))),
    GroupPlan("biases", 2.0, 0.0, tuple(GroupMember(f"{layer}.bias", None) for layer in ("conv", "head", "seldom"))),
    GroupPlan("frozen", 0.0, 1.0, (GroupMember("frozen.weight", None), GroupMember("frozen.bias", None))),
)

Run = tuple[Net, torch.optim.Optimizer, LRScheduler]


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def build(solver: SolverSettings) -> Run:
    model = net()
    optimizer = build_optimizer(model, GROUPS, solver)
    return model, optimizer, build_scheduler(optimizer, solver)


@cache
def source(solver: SolverSettings) -> str:
    return emit(TrainingRecipe("net", (), solver), GROUPS, model_name="Net")


def build_emitted(solver: SolverSettings) -> Run:
    module, model = load(source(solver), "emitted_for_state"), net()
    optimizer = module.build_optimizer(model)
    return model, optimizer, module.build_scheduler(optimizer)


def loss(model: Net, t: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(t)
    p = model.conv.weight
    x = torch.randn(4, 2, 5, 5, generator=generator).to(p.device, p.dtype)
    return 5 * model(x, seldom=t % 3 == 0).square().mean()


def train(run: Run, iterations: range) -> None:
    model, optimizer, scheduler = run
    for t in iterations:
        loss(model, t).backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()


def weights(run: Run) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in run[0].named_parameters()}


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
