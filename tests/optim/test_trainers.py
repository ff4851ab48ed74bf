"""What training loops do to an optimizer: freeze, compile, scale, replace, jump; with torch alone."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from emitted import load
from sharded_runs import ITERATIONS, NET, SCALED, SOLVERS, net, train, translated, weights
from torch import nn

import caffe2torch
from caffe2torch.errors import ModelError, SnapshotError, UnsupportedError

STEPPED = SOLVERS["SGD"]
CONSTANT = 'type: "SGD" momentum: 0.9 base_lr: 0.05 lr_policy: "fixed" weight_decay: 0.01 max_iter: 20 '


def movement(model: nn.Module) -> float:
    before, after = weights(net()), weights(model)
    return max(float((after[name] - before[name]).abs().max()) for name in after)


def apart(one: nn.Module, other: nn.Module) -> float:
    """The largest difference of a weight as a part of the largest movement."""
    ours, theirs = weights(one), weights(other)
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours) / movement(other)


@pytest.mark.parametrize("solver", [CONSTANT, *SOLVERS.values(), STEPPED + SCALED])
def test_a_tensor_as_lr_is_as_good_as_a_float(tmp_path: Path, solver: str) -> None:
    straight, other = net().double(), net().double()
    train(translated(tmp_path, straight, solver), straight, range(ITERATIONS))
    t = translated(tmp_path, other, solver)
    for group in t.optimizer.param_groups:
        group["lr"] = torch.tensor(group["lr"])
    train(t, other, range(ITERATIONS))
    assert isinstance(t.optimizer.param_groups[0]["lr"], torch.Tensor)
    assert apart(other, straight) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("solver", [STEPPED, STEPPED + SCALED, SOLVERS["Adam"]])
def test_a_compiled_step_and_model_learn_as_eager_ones(tmp_path: Path, solver: str) -> None:
    straight, other = net(), net()
    train(translated(tmp_path, straight, solver), straight, range(ITERATIONS))
    t = translated(tmp_path, other, solver)
    t.optimizer.step = torch.compile(t.optimizer.step, backend="aot_eager")  # type: ignore[method-assign]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about its own compiler
        train(t, torch.compile(other, backend="aot_eager"), range(ITERATIONS))
    assert apart(other, straight) < 1e-6


@pytest.mark.parametrize("solver", [CONSTANT, STEPPED, SOLVERS["Nesterov"], SOLVERS["Adam"]])
@pytest.mark.parametrize("to_none", [True, False])
def test_a_parameter_that_is_frozen_in_the_middle_stays_where_it_is(tmp_path: Path, solver: str, to_none: bool) -> None:
    model = net()
    t = translated(tmp_path, model, solver)
    train(t, model, range(2))
    model.a.weight.requires_grad_(False)
    t.optimizer.zero_grad(set_to_none=to_none)
    before = model.a.weight.clone()
    train(t, model, range(2, 4))
    assert torch.equal(model.a.weight, before)
    model.a.weight.requires_grad_(True)
    train(t, model, range(4, 5))
    assert not torch.equal(model.a.weight, before)


@pytest.mark.parametrize("solver", [CONSTANT, STEPPED])
@pytest.mark.parametrize("closure_by", ["position", "name"])
def test_a_step_with_a_closure_prepares_the_gradients_that_the_closure_makes(
    tmp_path: Path, solver: str, closure_by: str
) -> None:
    """As Lightning steps: a parameter without gradient decays all the same."""
    model = net()
    t = translated(tmp_path, model, solver)

    def closure() -> torch.Tensor:
        t.optimizer.zero_grad()
        loss: torch.Tensor = model.a(torch.ones(1, 30)).square().mean()
        loss.backward()
        return loss

    loss = t.optimizer.step(closure) if closure_by == "position" else t.optimizer.step(closure=closure)
    assert float(loss.detach()) > 0
    torch.testing.assert_close(model.b.weight, net().b.weight * (1 - 0.05 * 0.01), rtol=1e-6, atol=0)


def test_what_its_user_froze_stays_frozen_and_what_we_froze_is_released(tmp_path: Path) -> None:
    model = net()
    model.a.requires_grad_(False)
    t = translated(tmp_path, model, STEPPED)
    before = model.a.weight.clone()
    train(t, model, range(2))
    assert torch.equal(model.a.weight, before)
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]
    (tmp_path / "frozen.prototxt").write_text(NET.format(out=1001).replace("lr_mult: 1 ", "lr_mult: 0 "))
    (tmp_path / "solver.prototxt").write_text(STEPPED)
    caffe2torch.translate(tmp_path / "frozen.prototxt", tmp_path / "solver.prototxt", model)
    assert [p.requires_grad for p in model.parameters()] == [False, False, False, True]
    translated(tmp_path, model, STEPPED)
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]


def test_half_precision_gradients_are_clipped_by_a_norm_that_does_not_overflow(tmp_path: Path) -> None:
    model = net().half()
    t = translated(tmp_path, model, STEPPED + "clip_gradients: 1.0")
    before = weights(model)
    for p in model.parameters():
        p.grad = torch.full_like(p, 3000.0)
    t.optimizer.step()
    moved = {name: (value - before[name]).float() for name, value in weights(model).items()}
    norm = 3000 * sum(p.numel() for p in model.parameters()) ** 0.5
    assert float(moved["b.bias"].abs().max()) == pytest.approx(2 * 0.05 * 3000 / norm, rel=0.03)


def test_bf16_autocast_trains(tmp_path: Path) -> None:
    model = net()
    t = translated(tmp_path, model, STEPPED + SCALED)
    for iteration in range(3):
        for k in range(2):
            generator = torch.Generator().manual_seed(10 * iteration + k)
            with torch.autocast("cpu", torch.bfloat16):
                value = model(torch.randn(8, 30, generator=generator))
            value.float().square().mean().backward()
        t.optimizer.step()
        t.scheduler.step()
        t.optimizer.zero_grad()
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert movement(model) > 0


def test_a_scheduler_that_steps_twice_per_update_is_named_once(tmp_path: Path) -> None:
    """As Accelerate does by default with two processes."""
    model = net()
    t = translated(tmp_path, model, STEPPED)
    for iteration in range(4):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        t.optimizer.step()
        t.scheduler.step()
        if iteration == 2:
            with pytest.warns(UserWarning, match="step_scheduler_with_optimizer=False"):
                t.scheduler.step()
        else:
            t.scheduler.step()


def test_a_few_updates_that_a_gradient_scaler_skips_are_no_reason_to_warn(tmp_path: Path) -> None:
    model = net()
    t = translated(tmp_path, model, STEPPED)
    for skipped in (False, True, True, True, True, False, True, False, False, True, False):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        if not skipped:
            t.optimizer.step()
        t.scheduler.step()


@pytest.mark.parametrize(
    "policy", ['"step" stepsize: 3', '"multistep" stepvalue: 3 stepvalue: 3 stepvalue: 7', '"exp"']
)
def test_a_scheduler_that_is_set_to_an_iteration_gives_its_rate(tmp_path: Path, policy: str) -> None:
    """Ignite sets ``last_epoch`` and calls ``get_lr``; torch's deprecated ``step(epoch)`` is used to the same end."""
    solver = f"base_lr: 0.1 gamma: 0.5 momentum: 0.9 max_iter: 20 lr_policy: {policy}"
    straight = translated(tmp_path, net(), solver)
    rates = [straight.optimizer.param_groups[0]["lr"]]
    for _ in range(12):
        straight.optimizer.step()
        straight.scheduler.step()
        rates.append(straight.optimizer.param_groups[0]["lr"])
    t = translated(tmp_path, net(), solver)
    for iteration in (9, 2, 12, 0, 4):
        t.scheduler.last_epoch = iteration
        assert t.scheduler.get_lr()[0] == rates[iteration]
    t.optimizer.step()
    for iteration in (8, 9, 3):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch deprecates the argument
            t.scheduler.step(iteration)
        assert t.optimizer.param_groups[0]["lr"] == rates[iteration]


def test_a_model_that_gets_its_storage_or_a_layer_afterwards_is_refused_at_the_first_step(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = net()
    t = translated(tmp_path, model, STEPPED)
    model.to_empty(device="cpu")
    with pytest.raises(ModelError, match="was on the meta device when the optimizer was built"):
        t.optimizer.step()
    model = net()
    t = translated(tmp_path, model, STEPPED)
    model.b = nn.Linear(1001, 3)
    with pytest.raises(ModelError, match=r"'b.weight' was another tensor when the optimizer was built"):
        t.optimizer.step()
    with pytest.raises(ModelError, match="2 of the optimizer's 4 parameters are no longer in the model"):
        t.save(tmp_path / "run.pt")
    assert not (tmp_path / "run.pt").exists()


@pytest.mark.parametrize("how", ["dtype", "device"])
def test_defaults_of_torch_do_not_disturb_the_check(tmp_path: Path, how: str) -> None:
    model = net()
    if how == "dtype":
        torch.set_default_dtype(torch.bfloat16)
        try:
            t = translated(tmp_path, model, STEPPED + SCALED)
        finally:
            torch.set_default_dtype(torch.float32)
    else:
        with torch.device("meta"):
            t = translated(tmp_path, model, STEPPED + SCALED)
    assert t.report.ok, str(t.report)


@pytest.mark.parametrize("solver", [CONSTANT, STEPPED, SOLVERS["Adam"], SOLVERS["AdaGrad"]])
def test_a_state_without_buffers_loads(tmp_path: Path, solver: str) -> None:
    model = net()
    t = translated(tmp_path, model, solver)
    state = copy.deepcopy(t.optimizer.state_dict())
    state["state"] = {}
    train(t, model, range(2))
    t.optimizer.load_state_dict(state)
    train(t, model, range(2, 4))
    assert all(bool(p.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_a_layer_that_was_frozen_when_the_checkpoint_was_written_begins_with_an_empty_history(
    tmp_path: Path, kind: str
) -> None:
    frozen, free = tmp_path / "frozen.prototxt", tmp_path / "free.prototxt"
    free.write_text(NET.format(out=1001))
    frozen.write_text(NET.format(out=1001).replace("lr_mult: 1 ", "lr_mult: 0 "))
    (tmp_path / "solver.prototxt").write_text(SOLVERS[kind])
    model = net()
    t = caffe2torch.translate(frozen, tmp_path / "solver.prototxt", model)
    train(t, model, range(3))
    t.save(tmp_path / "run.pt")
    other = net()
    u = caffe2torch.translate(free, tmp_path / "solver.prototxt", other)
    with pytest.warns(UserWarning, match="a/0's lr_mult 0 -> 1"):
        u.load(tmp_path / "run.pt")
    history = u.optimizer.state[other.a.weight]
    assert not history["momentum_buffer" if kind == "SGD" else "exp_avg"].any()
    if kind == "Adam":
        assert float(history["step"]) == 3
    train(u, other, range(3, 4))
    assert not torch.equal(other.a.weight, model.a.weight)


def test_a_scripted_model_is_refused_by_one_error(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates TorchScript
        scripted = torch.jit.script(net())
    with pytest.raises(UnsupportedError, match="TorchScript"):
        translated(tmp_path, scripted, STEPPED)


def test_a_model_flattened_by_fsdp1_is_refused_by_one_error(tmp_path: Path) -> None:
    class FullyShardedDataParallel(nn.Module):
        """As torch's: it holds the module, and one flat parameter in place of all."""

        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self._fsdp_wrapped_module = module
            self._flat_param = nn.Parameter(torch.zeros(8))

    with pytest.raises(UnsupportedError, match="fully_shard"):
        translated(tmp_path, FullyShardedDataParallel(net()), STEPPED)


@pytest.mark.parametrize("solver", [CONSTANT, STEPPED, SOLVERS["Adam"]])
def test_the_emitted_file_goes_on_from_a_checkpoint_of_the_library(tmp_path: Path, solver: str) -> None:
    straight = net()
    t = translated(tmp_path, straight, solver)
    train(t, straight, range(3))
    t.save(tmp_path / "run.pt")
    train(t, straight, range(3, ITERATIONS))

    module, model = load(t.source()), net()
    checkpoint = torch.load(tmp_path / "run.pt", weights_only=True)
    model.load_state_dict(checkpoint["model"])
    optimizer = module.build_optimizer(model)
    optimizer.load_state_dict(checkpoint["optimizer"])
    scheduler = module.build_scheduler(optimizer, last_epoch=checkpoint["iteration"] - 1)
    for iteration in range(3, ITERATIONS):
        for k in range(2):
            generator = torch.Generator().manual_seed(10 * iteration + k)
            x, y = torch.randn(8, 30, generator=generator), torch.randint(3, (8,), generator=generator)
            nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    assert apart(model, straight) < 3e-6


def test_a_damaged_state_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    model = net()
    t = translated(tmp_path, model, STEPPED)
    train(t, model, range(2))
    t.save(tmp_path / "run.pt")
    from caffe2torch.snapshot.checkpoint import checksum

    content = torch.load(tmp_path / "run.pt", weights_only=True)
    content.pop("checksum")
    damages = {
        "kind": lambda c: c["optimizer"]["state"][0].update(momentum_buffer=torch.zeros(1001, 30, dtype=torch.int64)),
        "reference": lambda c: c["optimizer"]["param_groups"][0].update(reference_lr=float("nan")),
        "iteration": lambda c: c["scheduler"].update(last_epoch=10**30),
        "sparse": lambda c: c["optimizer"]["state"][0].update(momentum_buffer=torch.zeros(1001, 30).to_sparse()),
    }
    before = weights(model)
    for damage in damages.values():
        damaged = copy.deepcopy(content)
        damage(damaged)
        try:
            damaged["checksum"] = checksum(damaged)
        except (RuntimeError, TypeError):
            damaged["checksum"] = 0
        torch.save(damaged, tmp_path / "damaged.pt")
        with pytest.raises(SnapshotError):
            t.load(tmp_path / "damaged.pt")
        assert all(torch.equal(value, before[name]) for name, value in weights(model).items())
