"""In the middle of a run: saved, copied, pickled, moved, skipped, interrupted; the trajectory goes on bit for bit."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from functools import cache

import pytest
import torch
from emitted import load
from torch.optim.lr_scheduler import LRScheduler

from caffe2torch.emit import emit
from caffe2torch.plan import GroupMember, GroupPlan
from caffe2torch.pytorch.optimizer import build_optimizer
from caffe2torch.pytorch.schedule import build_scheduler
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
STOCK = {
    SolverType.SGD: torch.optim.SGD,
    SolverType.NESTEROV: torch.optim.SGD,
    SolverType.ADAGRAD: torch.optim.Adagrad,
    SolverType.RMSPROP: torch.optim.RMSprop,
    SolverType.ADADELTA: torch.optim.Adadelta,
    SolverType.ADAM: torch.optim.Adam,
}


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


WAYS = [by_state_dict, by_deepcopy, by_pickle, by_double_and_back, by_another_layout]


@pytest.mark.parametrize("builder", [build, build_emitted])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", SOLVERS)
def test_the_trajectory_goes_on(name: str, way: Callable[..., Run], builder: Callable[[SolverSettings], Run]) -> None:
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
def test_the_stock_class_does_the_work(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, optimizer, _ = run = build(SOLVERS[name])
    stock = STOCK[SOLVERS[name].type]
    assert isinstance(optimizer, stock)
    kernels = {torch.optim.SGD: "_fused_sgd_", torch.optim.Adam: "_fused_adam_", torch.optim.Adagrad: "_fused_adagrad_"}
    if stock in kernels:
        kernel, calls = getattr(torch, kernels[stock]), []
        monkeypatch.setattr(torch, kernels[stock], lambda *args, **kwargs: (calls.append(1), kernel(*args, **kwargs)))
        train(run, range(1))
        assert len(calls) == 2  # one for each group that learns


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


def test_what_users_see_in_the_groups_is_true_before_and_after_a_step() -> None:
    model, optimizer, scheduler = build(SOLVERS["SGD clipped"])
    seen = []
    optimizer.register_step_pre_hook(lambda opt, *_: seen.append([group["lr"] for group in opt.param_groups]))
    optimizer.register_step_post_hook(lambda opt, *_: seen.append([group["lr"] for group in opt.param_groups]))
    train((model, optimizer, scheduler), range(1))
    assert len(seen) == 2, "hooks run once, even with a plain SGD about"
    assert seen[0] == seen[1] == pytest.approx([0.05, 0.1, 0.0])
    weights_group = optimizer.param_groups[0]
    assert weights_group["weight_decay"] == pytest.approx(0.01)
    assert weights_group["momentum"] == 0.9
    assert weights_group["dampening"] == 0
    assert (weights_group["name"], weights_group["lr_mult"], weights_group["decay_mult"]) == ("weights", 1.0, 1.0)
    assert weights_group["param_names"] == ["conv.weight", "head.weight", "seldom.weight"]
    assert "lr_scale" not in weights_group


def test_hooks_run_once_beside_a_plain_optimizer_of_the_stock_class() -> None:
    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)  # which makes torch wrap hooks around SGD.step
    _, optimizer, _ = run = build(SOLVERS["SGD"])
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    train(run, range(3))
    assert len(calls) == 3


def test_a_step_that_fails_leaves_the_groups_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("out of order")

    _, optimizer, _ = build(SOLVERS["SGD"])
    groups, before = optimizer.param_groups, [dict(group) for group in optimizer.param_groups]
    monkeypatch.setattr(torch, "_fused_sgd_", fails)
    with pytest.raises(RuntimeError, match="out of order"):
        optimizer.step()
    assert optimizer.param_groups is groups
    for group, was in zip(groups, before, strict=True):
        assert group.keys() - was.keys() <= {"lr_reference"}
        assert all(group[key] is value for key, value in was.items())


def test_sparse_gradients_do_what_dense_ones_do() -> None:
    """Caffe's Embed has a dense gradient: rows that no index asked for decay and move like any other."""
    solver = SOLVERS["SGD clipped"]
    group = GroupPlan("table", 1.0, 1.0, (GroupMember("weight", None),))
    tables = []
    for sparse in (False, True):
        torch.manual_seed(0)
        table = torch.nn.Embedding(5, 3, sparse=sparse)
        optimizer = build_optimizer(table, (group,), solver)
        for _ in range(3):
            (7 * table(torch.tensor([1, 3, 1])).square().sum()).backward()
            optimizer.step()
            optimizer.zero_grad()
        tables.append(table.weight.detach())
    assert torch.equal(*tables)


def test_a_parameter_without_a_gradient_decays_and_moves_by_its_history() -> None:
    model, optimizer, _ = run = build(SOLVERS["SGD"])
    train(run, range(1))  # iteration 0 uses the seldom branch
    before, bias = model.seldom.weight.detach().clone(), model.seldom.bias.detach().clone()
    loss(model, 1).backward()
    assert model.seldom.weight.grad is None
    optimizer.step()
    assert not torch.equal(model.seldom.weight, before)
    assert not torch.equal(model.seldom.bias, bias)


def test_a_parameter_that_its_user_freezes_stays_as_it_is() -> None:
    model, _, _ = run = build(SOLVERS["SGD"])
    train(run, range(2))
    model.head.weight.requires_grad_(False)
    before = model.head.weight.detach().clone()
    train(run, range(2, 4))
    assert torch.equal(model.head.weight, before)


def test_frozen_parameters_need_no_gradient_and_no_memory() -> None:
    model, optimizer, _ = run = build(SOLVERS["Adam"])
    assert not model.frozen.weight.requires_grad
    before = model.frozen.weight.detach().clone()
    train(run, range(3))
    assert torch.equal(model.frozen.weight, before)
    assert not optimizer.state.get(model.frozen.weight)


def test_gradients_that_lie_otherwise_in_memory_are_not_mixed_up() -> None:
    straight, odd = build(SOLVERS["SGD"]), build(SOLVERS["SGD"])
    train(straight, range(5))
    model, optimizer, scheduler = odd
    for t in range(5):
        loss(model, t).backward()
        for p in model.parameters():
            if p.grad is not None and p.ndim == 2:
                p.grad = p.grad.t().contiguous().t()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    assert_same(weights(odd), weights(straight))


def test_a_group_that_is_added_later_trains_as_well() -> None:
    _, optimizer, _ = build(SOLVERS["SGD"])
    extra = torch.nn.Parameter(torch.ones(3))
    optimizer.add_param_group({"params": [("extra", extra)], "lr": 0.1, "name": "extra"})
    extra.grad = torch.ones(3)
    optimizer.step()
    assert torch.allclose(extra, torch.full((3,), 0.9))


def test_a_checkpoint_of_training_from_scratch_loads_into_fine_tuning() -> None:
    scratch = build(SOLVERS["SGD"])
    train(scratch, range(3))
    model = net()
    faster = (*GROUPS[:1], GroupPlan("biases", 20.0, 0.0, GROUPS[1].members, factor=10.0), *GROUPS[2:])
    optimizer = build_optimizer(model, faster, SOLVERS["SGD"])
    scheduler = build_scheduler(optimizer, SOLVERS["SGD"])
    model.load_state_dict(scratch[0].state_dict())
    optimizer.load_state_dict(scratch[1].state_dict())
    scheduler.load_state_dict(scratch[2].state_dict())
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.0125, 0.25, 0.0])
    train((model, optimizer, scheduler), range(3, 6))
