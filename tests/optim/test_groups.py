"""What an optimizer shows of itself, and what it does with parameters that are frozen, idle, odd or late."""

from __future__ import annotations

import pytest
import torch
from small_runs import GROUPS, SOLVERS, assert_same, build, loss, net, train, weights

from caffe2torch.binding.plan import GroupMember, GroupPlan
from caffe2torch.optim.build import build_optimizer
from caffe2torch.optim.schedule import build_scheduler
from caffe2torch.recipe import SolverType

STOCK = {
    SolverType.SGD: torch.optim.SGD,
    SolverType.NESTEROV: torch.optim.SGD,
    SolverType.ADAGRAD: torch.optim.Adagrad,
    SolverType.RMSPROP: torch.optim.RMSprop,
    SolverType.ADADELTA: torch.optim.Adadelta,
    SolverType.ADAM: torch.optim.Adam,
}

UNCLIPPED = [name for name in SOLVERS if SOLVERS[name].clip_gradients is None]


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


@pytest.mark.parametrize("name", UNCLIPPED)
def test_a_group_of_several_dtypes_learns_as_each_would_alone(name: str) -> None:
    """A fused kernel takes tensors of one kind at a time."""

    def trained(**parameters: torch.Tensor) -> tuple[torch.optim.Optimizer, torch.nn.ParameterDict]:
        model = torch.nn.ParameterDict(parameters)
        group = GroupPlan("all", 1.0, 1.0, tuple(GroupMember(key, None) for key in parameters))
        optimizer = build_optimizer(model, (group,), SOLVERS[name])
        for t in range(4):
            for p in model.values():
                p.grad = torch.arange(5, dtype=p.dtype, device=p.device) - t
            optimizer.step()
        return optimizer, model

    f32, f64 = torch.ones(5), torch.ones(5, dtype=torch.float64)
    (_, alone_32), (_, alone_64) = trained(f32=f32.clone()), trained(f64=f64.clone())
    optimizer, model = trained(f32=f32.clone(), f64=f64.clone())
    assert not optimizer.param_groups[0].get("fused")
    torch.testing.assert_close(model["f64"], alone_64["f64"], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model["f32"], alone_32["f32"], rtol=1e-6, atol=1e-6)


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


def test_a_step_that_fails_leaves_the_groups_as_they_were() -> None:
    model, optimizer, _ = run = build(SOLVERS["SGD"])
    train(run, range(1))
    groups, before = optimizer.param_groups, [dict(group) for group in optimizer.param_groups]
    loss(model, 0).backward()
    optimizer.state[model.conv.weight]["momentum_buffer"] = "no tensor"
    with pytest.raises((TypeError, AttributeError)):
        optimizer.step()
    assert optimizer.param_groups is groups
    for group, was in zip(groups, before, strict=True):
        assert group.keys() == was.keys()
        assert all(group[key] is value for key, value in was.items() if key != "fused")


def test_a_state_of_another_shape_is_refused() -> None:
    """A fused kernel would read beyond its end."""
    _, optimizer, _ = run = build(SOLVERS["SGD"])
    train(run, range(1))
    state = optimizer.state_dict()
    state["state"][0]["momentum_buffer"] = torch.zeros(1, 2, 3)
    with pytest.raises(ValueError, match=r"momentum_buffer of shape \(1, 2, 3\)"):
        optimizer.load_state_dict(state)


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
