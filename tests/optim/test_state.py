"""In the middle of a run: saved, copied, pickled, moved, skipped, interrupted; the trajectory goes on bit for bit."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from small_runs import ITERATIONS, SOLVERS, Run, assert_same, build, build_emitted, loss, train, weights

from caffe2torch.recipe import SolverSettings


def by_state_dict(run: Run, anew: Callable[[], Run]) -> Run:
    file = io.BytesIO()
    torch.save([part.state_dict() for part in run], file)
    file.seek(0)
    other = anew()
    train(other, range(3))  # so that the state must replace another one
    for part, state in zip(other, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    return other


def by_deepcopy(run: Run, anew: Callable[[], Run]) -> Run:  # noqa: ARG001
    return copy.deepcopy(run)


def by_pickle(run: Run, anew: Callable[[], Run]) -> Run:  # noqa: ARG001
    return pickle.loads(pickle.dumps(run))


def by_double_and_back(run: Run, anew: Callable[[], Run]) -> Run:  # noqa: ARG001
    run[0].double()
    run[0].float()
    return run


def by_another_layout(run: Run, anew: Callable[[], Run]) -> Run:  # noqa: ARG001
    run[0].to(memory_format=torch.channels_last)
    return run


STOCK = ("AdaGrad", "RMSProp", "AdaDelta")
WAYS = [by_state_dict, by_deepcopy, by_pickle, by_double_and_back, by_another_layout]


@pytest.mark.parametrize("builder", [build, build_emitted])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", [name for name in SOLVERS if name != "SGD ramped"])
def test_the_trajectory_goes_on(name: str, way: Callable[..., Run], builder: Callable[[SolverSettings], Run]) -> None:
    if builder is build and way in (by_deepcopy, by_pickle) and name in STOCK:
        pytest.skip("torch copies no hooks, and one of ours gives missing gradients to a stock class")
    straight = builder(SOLVERS[name])
    train(straight, range(ITERATIONS))
    for stop in (0, 1, 5):
        run = builder(SOLVERS[name])
        train(run, range(stop))
        run = way(run, lambda: builder(SOLVERS[name]))
        if stop == 0 and way in (by_deepcopy, by_pickle):  # torch's own schedulers warn there, and so does ours
            with pytest.warns(UserWarning, match="overridden after learning rate scheduler"):
                train(run, range(1))
            stop = 1
        train(run, range(stop, ITERATIONS))
        if way is by_another_layout:  # sums of the forward pass then come out in another order
            for key, value in weights(straight).items():
                torch.testing.assert_close(weights(run)[key], value, rtol=1e-5, atol=1e-6)
        elif way in (by_deepcopy, by_pickle):  # torch copies no hooks, so nothing chooses fused kernels any more
            for key, value in weights(straight).items():
                torch.testing.assert_close(weights(run)[key], value, rtol=1e-6, atol=1e-6)
        else:
            assert_same(weights(run), weights(straight))


@pytest.mark.parametrize("name", SOLVERS)
def test_state_follows_the_parameters_to_double(name: str) -> None:
    straight, moved = build(SOLVERS[name]), build(SOLVERS[name])
    train(straight, range(8))
    train(moved, range(4))
    moved[0].double()
    train(moved, range(4, 8))
    for key, value in weights(straight).items():
        torch.testing.assert_close(weights(moved)[key].float(), value, rtol=1e-4, atol=1e-5)
    for p, state in moved[1].state.items():
        assert all(value.dtype == torch.float64 or key == "step" for key, value in state.items() if p.requires_grad)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("when", [0, 4])
def test_a_step_that_a_gradient_scaler_skips_did_not_happen(name: str, when: int) -> None:
    straight, scaled = build(SOLVERS[name]), build(SOLVERS[name])
    model, optimizer, scheduler = scaled
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1000)
    for t in range(ITERATIONS):
        if t == when:
            scaler.scale(loss(model, t)).backward()
            next(p for p in model.parameters() if p.grad is not None).grad.view(-1)[0] = float("inf")
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        scaler.scale(loss(model, t)).backward()
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        optimizer.zero_grad()
    train(straight, range(ITERATIONS))
    for key, value in weights(straight).items():
        torch.testing.assert_close(weights(scaled)[key], value, rtol=0, atol=0)  # scales are powers of two


@pytest.mark.parametrize("name", SOLVERS)
def test_closures_and_both_ways_to_zero_gradients(name: str) -> None:
    straight, other = build(SOLVERS[name]), build(SOLVERS[name])
    train(straight, range(ITERATIONS))
    model, optimizer, scheduler = other
    for t in range(ITERATIONS):

        def closure(t: int = t) -> torch.Tensor:
            optimizer.zero_grad(set_to_none=False)
            value = loss(model, t)
            value.backward()
            return value

        expected = loss(model, t)
        assert optimizer.step(closure) == expected
        scheduler.step()
    assert_same(weights(other), weights(straight))


@pytest.mark.parametrize("name", SOLVERS)
def test_a_state_that_is_cleared_begins_anew(name: str) -> None:
    cleared, fresh = build(SOLVERS[name]), build(SOLVERS[name])
    train(cleared, range(5))
    fresh[0].load_state_dict(cleared[0].state_dict())
    cleared[1].state.clear()
    fresh[2].load_state_dict(cleared[2].state_dict())
    train(cleared, range(5, 8))
    train(fresh, range(5, 8))
    for key, value in weights(fresh).items():
        torch.testing.assert_close(weights(cleared)[key], value, rtol=1e-6, atol=1e-7)
