"""Over random recipes: the library, the emitted file and the NumPy reference agree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from emitted import load
from hypothesis import event, given, settings
from hypothesis import strategies as st
from numpy_caffe import Caffe

from caffe2torch.binding.plan import GroupMember, GroupPlan
from caffe2torch.emit import emit
from caffe2torch.errors import UnsupportedError
from caffe2torch.optim.build import build_optimizer
from caffe2torch.optim.schedule import build_scheduler
from caffe2torch.recipe import LrPolicy, PolicyType, Ramp, Regularization, SolverSettings, SolverType, TrainingRecipe
from caffe2torch.solver.float32 import shortest

ITERATIONS = 12
SHAPES = ((), (1,), (3, 5), (37,))
"""A scalar, and sizes below and above what a vectorized kernel takes at a time."""


@dataclass(frozen=True)
class Task:
    """A recipe, and the seed of the weights and gradients that it is tried on."""

    solver: SolverSettings
    groups: tuple[GroupPlan, ...]
    seed: int

    @property
    def recipe(self) -> TrainingRecipe:
        return TrainingRecipe("random", (), self.solver)

    def model(self) -> torch.nn.Module:
        generator = torch.Generator().manual_seed(self.seed)
        module = torch.nn.Module()
        for i, shape in enumerate(SHAPES):
            module.register_parameter(f"p{i}", torch.nn.Parameter(torch.randn(shape, generator=generator)))
        return module

    def gradients(self, t: int) -> list[torch.Tensor | None]:
        """What backward leaves: now and then nothing, and of very different size."""
        generator = torch.Generator().manual_seed(self.seed * 1000 + t)
        size = 3.0 ** float(torch.randint(-2, 3, (), generator=generator))
        present = torch.rand(len(SHAPES), generator=generator) < 0.85
        drawn = [size * torch.randn(shape, generator=generator) for shape in SHAPES]
        return [g if there else None for g, there in zip(drawn, present, strict=True)]


def decimals(low: float, high: float) -> st.SearchStrategy[float]:
    """Numbers as a prototxt holds them: float32, as their shortest decimals."""
    return st.floats(low, high).map(shortest)


@st.composite
def policies(draw: st.DrawFn) -> LrPolicy:
    kind = draw(st.sampled_from([kind for kind in PolicyType if kind is not PolicyType.PLATEAU]))
    forks: dict[str, object] = {}
    if draw(st.integers(0, 4)) == 0:
        forks |= {"warmup_iter": draw(st.integers(1, 6)), "warmup_start_lr": draw(decimals(0, 0.1))}
    elif draw(st.integers(0, 4)) == 0:
        forks |= {"rampup_interval": draw(st.integers(1, 6)), "rampup_lr": draw(decimals(0, 0.1))}
    if draw(st.integers(0, 4)) == 0:
        forks["min_lr"] = draw(decimals(0, 0.001))
    stages = draw(st.lists(st.integers(0, ITERATIONS), min_size=1, max_size=4))
    return LrPolicy(
        kind,
        base_lr=draw(st.one_of(decimals(0.001, 0.2), st.sampled_from([0.0, 1e-14]))),
        gamma=draw(decimals(0, 1.2)),
        power=draw(st.one_of(st.just(0.0), decimals(0.1, 2))),
        stepsize=draw(st.integers(1, 8)),
        stepvalues=tuple(draw(st.lists(st.integers(0, ITERATIONS), max_size=4))),
        max_iter=draw(st.integers(ITERATIONS - 4, 2 * ITERATIONS)),
        stage_lrs=tuple(draw(decimals(0, 0.1)) for _ in stages),
        stage_iters=tuple(stages),
        **forks,
    )


@st.composite
def tasks(draw: st.DrawFn) -> Task:
    kind = draw(st.sampled_from(list(SolverType)))
    momentum = draw(st.one_of(st.sampled_from([0.0, 0.9]), decimals(0, 0.99)))
    ramp = st.one_of(st.none(), st.none(), st.builds(Ramp, decimals(0, 0.95), decimals(0.1, 2), st.just(ITERATIONS)))
    has_momentum = kind in (SolverType.SGD, SolverType.NESTEROV)
    solver = SolverSettings(
        type=kind,
        policy=draw(policies()),
        momentum=0.0 if kind in (SolverType.ADAGRAD, SolverType.RMSPROP) else momentum,
        momentum2=draw(decimals(0.5, 0.999)),
        weight_decay=draw(st.one_of(st.just(0.0), decimals(1e-4, 0.1))),
        regularization=draw(st.sampled_from(Regularization)),
        delta=draw(st.sampled_from([1e-8, 1e-3, 0.1])),
        rms_decay=draw(decimals(0.5, 0.999)),
        clip_gradients=draw(st.one_of(st.none(), st.just(0.0), decimals(0.1, 30))),
        iter_size=draw(st.sampled_from([1, 1, 2, 3, 7])),
        max_iter=ITERATIONS,
        momentum_ramp=draw(ramp) if has_momentum else None,
        momentum_from_rate=draw(st.sampled_from([None, None, 0.8])) if has_momentum else None,
        weight_decay_ramp=draw(ramp),
    )
    multiplier = st.sampled_from([1.0, 2.0, 0.1, 10.0, 0.0, -1.0])
    drawn = [(draw(multiplier), draw(st.sampled_from([1.0, 0.0, 2.5]))) for _ in SHAPES]
    groups = tuple(
        GroupPlan(f"p{i}", lr_mult, decay_mult, (GroupMember(f"p{i}", None),))
        for i, (lr_mult, decay_mult) in enumerate(drawn)
    )
    return Task(solver, groups, draw(st.integers(0, 10**6)))


def by_library(task: Task) -> list[list[np.ndarray]]:
    model = task.model()
    optimizer = build_optimizer(model, task.groups, task.solver)
    return follow(task, model, optimizer, build_scheduler(optimizer, task.solver))


def by_emitted_file(task: Task) -> list[list[np.ndarray]]:
    module, model = load(emit(task.recipe, task.groups, model_name="Random")), task.model()
    optimizer = module.build_optimizer(model)
    return follow(task, model, optimizer, module.build_scheduler(optimizer), complete=True)


def follow(
    task: Task,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    *,
    complete: bool = False,
) -> list[list[np.ndarray]]:
    weights = []
    for t in range(ITERATIONS):
        for p, gradient in zip(model.parameters(), task.gradients(t), strict=True):
            if p.requires_grad:
                p.grad = None if gradient is None else gradient.clone()
                if complete and p.grad is None:  # a stock class would skip the parameter, as the emitted file says
                    p.grad = torch.zeros_like(p)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        weights.append([p.detach().numpy().copy() for p in model.parameters()])
    return weights


def by_reference(task: Task) -> list[list[np.ndarray]]:
    names = [f"p{i}" for i in range(len(SHAPES))]
    lr_mult = {group.name: group.lr_mult for group in task.groups}
    decay_mult = {group.name: group.decay_mult for group in task.groups}
    start = {name: p.detach().numpy() for name, p in task.model().named_parameters()}
    caffe = Caffe(task.solver, lr_mult, decay_mult, start)
    weights = []
    for t in range(ITERATIONS):
        gradients = {}
        for name, shape, gradient in zip(names, SHAPES, task.gradients(t), strict=True):
            computed = gradient is not None and lr_mult[name] != 0
            gradients[name] = gradient.numpy() if computed and gradient is not None else np.zeros(shape, np.float32)
        with np.errstate(all="ignore"):
            caffe.step(gradients)
        weights.append([np.asarray(caffe.weights[name]) for name in names])
    return weights


def assert_agree(task: Task) -> None:
    library, reference = by_library(task), by_reference(task)
    try:
        emitted = by_emitted_file(task)
    except UnsupportedError:
        emitted = library
    start = [p.detach().numpy() for p in task.model().parameters()]
    ways = [float(np.max(np.abs(before))) for before in start]  # the largest so far: a weight may have come back
    for t in range(ITERATIONS):
        for before, ours, theirs in zip(start, library[t], emitted[t], strict=True):
            if not np.isnan(ours).any():  # past the end of poly a frozen blob becomes NaN, in the library alone
                size = max(float(np.max(np.abs(before), initial=0)), float(np.max(np.abs(ours), initial=0)))
                np.testing.assert_allclose(ours, theirs, rtol=5e-6, atol=5e-6 * size)
        for i, (ours, theirs) in enumerate(zip(library[t], reference[t], strict=True)):
            ways[i] = max(ways[i], float(np.max(np.abs(theirs - start[i]))))
            allowed = 5e-6 * ways[i] if np.isfinite(ways[i]) else 0.0
            np.testing.assert_allclose(ours, theirs, rtol=5e-6, atol=allowed, equal_nan=True)


@settings(max_examples=150)
@given(tasks())
def test_library_emitted_file_and_reference_agree(task: Task) -> None:
    event(f"{task.solver.type} {task.solver.policy.type}")
    assert_agree(task)


@pytest.mark.parametrize("kind", [SolverType.SGD, SolverType.NESTEROV])
@pytest.mark.parametrize("first", [1e-45, 1e-30, -1e-37])
def test_a_first_rate_next_to_nothing_does_not_make_histories_overflow(kind: SolverType, first: float) -> None:
    policy = LrPolicy(PolicyType.MULTIFIXED, stage_lrs=(0.0, first, 0.1, 1e-9), stage_iters=(1, 3, 6, 99))
    solver = SolverSettings(kind, policy, momentum=0.9, weight_decay=0.01)
    assert_agree(Task(solver, tuple(GroupPlan(f"p{i}", 2.0, 1.0, (GroupMember(f"p{i}", None),)) for i in range(4)), 3))


def test_the_comparison_sees_a_wrong_momentum() -> None:
    right = SolverSettings(SolverType.SGD, LrPolicy(PolicyType.EXP, base_lr=0.1, gamma=0.9), momentum=0.9)
    wrong = SolverSettings(SolverType.SGD, right.policy, momentum=0.9001)
    groups = tuple(GroupPlan(f"p{i}", 1.0, 1.0, (GroupMember(f"p{i}", None),)) for i in range(len(SHAPES)))
    ours, theirs = by_library(Task(right, groups, 1)), by_reference(Task(wrong, groups, 1))
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(ours[-1][3], theirs[-1][3], rtol=5e-6, atol=5e-6)
