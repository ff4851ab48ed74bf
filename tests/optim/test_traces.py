"""Every recorded run of real Caffe, followed by the library's optimizer and by the emitted file's."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from emitted import load
from torch.optim.lr_scheduler import LRScheduler
from traces import CASES, HERE, Trace, tolerance

from caffe2torch.emit import emit
from caffe2torch.optim.build import build_optimizer
from caffe2torch.optim.schedule import CaffeLRScheduler, build_scheduler
from caffe2torch.recipe import PolicyType

Built = tuple[torch.nn.Module, torch.optim.Optimizer, LRScheduler]
Builder = Callable[[Trace], Built]


def by_library(trace: Trace) -> Built:
    recipe, model = trace.recipe(), trace.model()
    assert recipe.solver is not None
    optimizer = build_optimizer(model, trace.groups(recipe), recipe.solver)
    return model, optimizer, build_scheduler(optimizer, recipe.solver)


def by_emitted_file(trace: Trace) -> Built:
    recipe, model = trace.recipe(), trace.model()
    module = load(emit(recipe, trace.groups(recipe), model_name="Model"))
    optimizer = module.build_optimizer(model)
    return model, optimizer, module.build_scheduler(optimizer)


def difference(trace: Trace, model: torch.nn.Module, t: int, prefix: str = "weight") -> float:
    """The largest difference of any weight from Caffe's after iteration ``t``; infinite if other weights are NaN."""
    worst, ours = 0.0, dict(model.named_parameters())
    for name, theirs in trace.weights(t, prefix):
        mine = ours[name].detach().numpy()
        if not np.array_equal(np.isnan(mine), np.isnan(theirs)):
            return float("inf")
        apart = np.abs(mine - theirs)
        worst = max(worst, float(np.max(apart[~np.isnan(apart)], initial=0.0)))
    return worst


def assert_follows(trace: Trace, built: Built, until: int | None = None) -> None:
    """Train through the recorded run; weights and rates are Caffe's at every iteration."""
    model, optimizer, scheduler = built
    recipe = trace.recipe()
    assert recipe.solver is not None
    allowed = tolerance(recipe.solver) * trace.movement
    largest = np.nanmax(np.abs(trace.arrays["lr"])) * max(abs(group["lr_mult"]) for group in optimizer.param_groups)
    for t in range(until or trace.iterations):
        for group in optimizer.param_groups:
            rate = trace.arrays["lr"][t] * np.float32(group["lr_mult"])
            assert abs(group["lr"] - rate) <= 2e-7 * largest or np.isnan([group["lr"], rate]).all()
        if isinstance(scheduler, CaffeLRScheduler) and recipe.solver.policy.type is PolicyType.MULTISTEP:
            assert scheduler.current_step == trace.arrays["current_step"][t]
        trace.feed(model, t)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        assert difference(trace, model, t) <= allowed


@pytest.mark.parametrize("build", [by_library, by_emitted_file])
@pytest.mark.parametrize("trace", CASES)
def test_weights_and_rates_are_those_of_caffe_at_every_iteration(trace: Trace, build: Builder) -> None:
    # Past max_iter Caffe's rate is NaN, and so are frozen blobs then: 0 * NaN. Plain torch leaves those alone.
    assert_follows(trace, build(trace), 31 if build is by_emitted_file and trace.case == "sgd_poly_past_max" else None)


@pytest.mark.parametrize("trace", CASES)
def test_so_they_are_without_fused_kernels(trace: Trace) -> None:
    recipe, model = trace.recipe(), trace.model()
    assert recipe.solver is not None
    optimizer = build_optimizer(model, trace.groups(recipe), recipe.solver, fused=False)
    assert_follows(trace, (model, optimizer, build_scheduler(optimizer, recipe.solver)))


def test_the_comparison_sees_a_wrong_weight_and_a_missing_nan() -> None:
    trace = next(trace for trace in HERE if trace.case == "sgd_poly_past_max")
    model = trace.model("weight", 5)
    assert difference(trace, model, 5) == 0
    assert difference(trace, model, 6) > 1e-3
    assert difference(trace, model, 35) == float("inf")
    assert difference(trace, trace.model("weight", 35), 5) == float("inf")


@pytest.mark.parametrize("trace", [case for case in CASES if "iter3" in case.values[0].case])
def test_gradients_that_backward_adds_up_do_as_well(trace: Trace) -> None:
    """Three times ``backward`` a step, as in a user's loop, instead of the sum that Caffe recorded."""
    key = "micro" if any(name.startswith("micro/") for name in trace.arrays) else "accum"
    if f"{key}/{trace.names[0]}" not in trace.arrays:
        pytest.skip("the trimmed trace has sums only")
    model, optimizer, scheduler = by_library(trace)
    for t in range(trace.iterations):
        for k in range(3):
            losses = []
            for name, p in model.named_parameters():
                parts = trace.arrays[f"{key}/{name}"][t]
                part = parts[k] if key == "micro" or k == 0 else parts[k] - parts[k - 1]
                if p.requires_grad:
                    losses.append((p * torch.from_numpy(part.copy())).sum())
            torch.stack(losses).sum().backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        assert difference(trace, model, t) <= 3e-6 * trace.movement


ACCEPTED = ("base_lr_missing", "iter_size_zero", "momentum_one_adam", "poly_without_max_iter")


@pytest.mark.shared
@pytest.mark.parametrize("case", ACCEPTED)
def test_nonsense_that_caffe_accepts_ends_as_it_ends_there(case: str, shared: Path) -> None:
    folder = shared / "goldens" / "bvlc_errors" / case
    said = re.search(r"lr of iteration 2: (\S+) finite weights: (\w+)", (folder / "caffe_said.txt").read_text())
    assert said is not None
    trace = Trace(folder)
    recipe = trace.recipe()
    assert recipe.solver is not None
    torch.manual_seed(0)
    model = torch.nn.ParameterDict({blob.name: torch.nn.Parameter(torch.randn(3)) for blob in recipe.blobs})
    optimizer = build_optimizer(model, trace.groups(recipe), recipe.solver)
    scheduler = build_scheduler(optimizer, recipe.solver)
    for iteration in range(3):
        if iteration == 2:
            assert scheduler.rate() == pytest.approx(float(said[1]), rel=1e-7)
        for p in model.values():
            p.grad = torch.randn(3) if p.requires_grad else None
        optimizer.step()
        scheduler.step()
    assert all(bool(p.isfinite().all()) for p in model.values()) is (said[2] == "True")
