"""The probe sees what an optimizer does, whatever it says, and leaves everything as it was."""

from __future__ import annotations

import copy
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from small_net import SGD, SmallNet, groups_of, names, recipe_of, report_of, wrong
from torch.optim.optimizer import register_optimizer_step_post_hook

from caffe2torch.binding.plan import plan_groups
from caffe2torch.verification.candidate_rules import caffe_rule
from caffe2torch.verification.fit import read
from caffe2torch.verification.follow_scheduler import FARTHEST, follow
from caffe2torch.verification.report import Result
from caffe2torch.verification.run_probe import observe
from caffe2torch.verification.verify import verify


@pytest.fixture
def model() -> SmallNet:
    torch.manual_seed(3)
    return SmallNet()


@pytest.fixture
def optimizer(model: SmallNet) -> torch.optim.SGD:
    return torch.optim.SGD(groups_of(model), lr=0.1, momentum=0.9)


def test_a_right_optimizer_is_all_ok(model: SmallNet, optimizer: torch.optim.SGD) -> None:
    report = report_of(model, optimizer)
    assert report.ok, str(report)
    assert len(report.rows) == 10
    for row in report.rows:
        assert row.observed.lr == pytest.approx(row.expected.lr, rel=1e-6)
        assert row.observed.weight_decay == pytest.approx(row.expected.weight_decay, rel=1e-6)


def test_one_group_with_another_rate_turns_its_rows_red(model: SmallNet, optimizer: torch.optim.SGD) -> None:
    optimizer.param_groups[1]["lr"] = 0.1
    report = report_of(model, optimizer)
    assert wrong(report) == {f"{layer}.bias": "mismatch" for layer in ("conv1", "conv2", "conv_classifier")}
    assert all("lr is 0.1, Caffe's is 0.2 (2 times too small)" in row.reason for row in report.wrong)


def test_a_multiplier_that_is_only_written_into_the_group_is_not_believed(model: SmallNet) -> None:
    groups = [group | {"lr": 0.1, "lr_mult": 2.0 if not group["weight_decay"] else 1.0} for group in groups_of(model)]
    report = report_of(model, torch.optim.SGD(groups, lr=0.1, momentum=0.9))
    assert sorted(wrong(report)) == ["conv1.bias", "conv2.bias", "conv_classifier.bias"]


def test_a_dropped_parameter_is_missing(model: SmallNet, optimizer: torch.optim.SGD) -> None:
    dropped = optimizer.param_groups[0]["params"].pop(1)
    assert dropped is model.conv1_bn.weight
    report = report_of(model, optimizer)
    assert wrong(report) == {"conv1_bn.weight": "missing"}
    assert report.wrong[0].reason == "no param group holds it"
    assert report.rows[2].groups == ()


def test_a_group_left_out_is_missing_whole(model: SmallNet, optimizer: torch.optim.SGD) -> None:
    del optimizer.param_groups[1]
    assert wrong(report_of(model, optimizer)) == {
        f"{layer}.bias": "missing" for layer in ("conv1", "conv2", "conv_classifier")
    }


def test_a_parameter_that_the_model_lost_is_missing(model: SmallNet, optimizer: torch.optim.SGD) -> None:
    recipe, binding = recipe_of(model)
    model.conv1.bias = None
    report = verify(recipe, binding, plan_groups(recipe, binding), observe(model, optimizer, SGD))
    assert wrong(report)["conv1.bias"] == "missing"
    assert "the model has no parameter 'conv1.bias'" in report.wrong[0].reason


def test_a_parameter_in_two_groups_is_a_duplicate(model: SmallNet, optimizer: torch.optim.SGD) -> None:
    optimizer.param_groups[0]["params"].append(model.conv2.bias)
    report = report_of(model, optimizer)
    assert wrong(report) == {"conv2.bias": "duplicate"}
    assert report.wrong[0].reason.startswith("it stands in group 0 and group 1: each step moves it 2 times")


def test_a_parameter_twice_in_one_group_is_a_duplicate(model: SmallNet, optimizer: torch.optim.SGD) -> None:
    optimizer.param_groups[1]["params"].append(model.conv2.bias)
    report = report_of(model, optimizer)
    assert wrong(report) == {"conv2.bias": "duplicate"}
    assert report.wrong[0].reason.startswith("it stands in group 1 2 times")


def test_two_swapped_parameters_are_both_wrong(model: SmallNet, optimizer: torch.optim.SGD) -> None:
    first, second = (group["params"] for group in optimizer.param_groups)
    first[0], second[0] = second[0], first[0]
    report = report_of(model, optimizer)
    assert wrong(report) == {"conv1.weight": "mismatch", "conv1.bias": "mismatch"}
    weight, bias = report.wrong
    assert weight.reason == "lr is 0.2, Caffe's is 0.1 (2 times as much); weight_decay is 0, Caffe's is 0.0005"
    assert bias.reason == "lr is 0.1, Caffe's is 0.2 (2 times too small); weight_decay is 0.0005, Caffe's is 0"


def test_a_frozen_parameter_is_wrong_where_caffe_trains_it(model: SmallNet, optimizer: torch.optim.SGD) -> None:
    model.conv1.weight.requires_grad_(False)
    report = report_of(model, optimizer)
    assert wrong(report) == {"conv1.weight": "frozen"}
    assert "its requires_grad is False; Caffe trains it at lr 0.1" in report.wrong[0].reason


def test_an_optimizer_of_another_copy_of_the_model_is_told_as_such(model: SmallNet) -> None:
    other = torch.optim.SGD(groups_of(copy.deepcopy(model)), lr=0.1, momentum=0.9)
    report = report_of(model, other)
    assert set(wrong(report).values()) == {"missing"}
    assert "10 tensors that are not parameters of this model: it was built on another copy" in report.causes[0].message


def test_nothing_of_the_users_is_touched(model: SmallNet, optimizer: torch.optim.SGD) -> None:
    """Bit for bit: parameters, gradients, buffers, state, groups, scheduler and every random number generator."""
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)

    def everything() -> list[Any]:
        tensors = [*model.state_dict().values(), *(p.grad for p in model.parameters())]
        tensors += [s["momentum_buffer"] for s in optimizer.state.values()]
        plain = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        held = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
        states = [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]
        scheduled = {k: v for k, v in vars(scheduler).items() if k != "optimizer"}
        return [[t.clone().tolist() for t in tensors], copy.deepcopy(plain), held, states, copy.deepcopy(scheduled)]

    before, attributes = everything(), set(vars(optimizer))
    observe(model, optimizer, SGD, scheduler)
    assert everything() == before
    assert set(vars(optimizer)) == attributes


def test_the_state_of_a_run_in_the_middle_does_not_colour_what_is_seen(model: SmallNet) -> None:
    for make in (torch.optim.SGD, torch.optim.Adagrad, torch.optim.Adam):
        optimizer = make(groups_of(model), lr=0.1)
        fresh = observe(model, optimizer, SGD)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        assert observe(model, optimizer, SGD).parameters == fresh.parameters


class Kept(torch.optim.Optimizer):
    """Keeps its settings beside its groups, as subclasses do that deepcopy loses."""

    def __init__(self, params: Any, rate: float) -> None:
        super().__init__(params, {})
        self.rate = rate

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # nobody here passes a closure
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(self.rate * p.grad)


class NormScaled(Kept):
    """Divides by the gradient's norm over the whole tensor, as LARS does."""

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # nobody here passes a closure
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(self.rate * p.grad / (p.grad.norm() + 1e-12))


class Clipping(torch.optim.SGD):
    """Clips by the norm of all gradients before it steps."""

    def step(self) -> None:  # type: ignore[override]  # nobody here passes a closure
        torch.nn.utils.clip_grad_norm_([p for g in self.param_groups for p in g["params"]], 1e-2)
        super().step()


class NeedsClosure(Kept):
    def step(self, closure: Any = None) -> None:
        closure()


def lr_seen(model: torch.nn.Module, optimizer: Any) -> set[float | None]:
    seen = observe(model, optimizer, SGD)
    assert not seen.problem, seen.problem
    moved = [p.windows[0] for p in seen.parameters]
    return {round(read(caffe_rule(SGD), seen.windows[0], m, [0.0] * 5).lr or 0.0, 12) for m in moved}


def test_what_a_subclass_keeps_beside_its_groups_goes_along(model: SmallNet) -> None:
    assert lr_seen(model, Kept(model.parameters(), 0.25)) == {0.25}


def test_a_step_that_a_scheduler_patched_is_not_taken_on_the_original(model: SmallNet) -> None:
    optimizer = Kept([{"params": list(model.parameters()), "lr": 1.0}], 0.25)
    torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    before = [p.detach().clone() for p in model.parameters()]
    assert lr_seen(model, optimizer) == {0.25}
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_norms_over_a_tensor_are_found_out(model: SmallNet) -> None:
    seen = observe(model, NormScaled(model.parameters(), 0.1), SGD)
    assert not any(p.elementwise for p in seen.parameters)
    report = report_of(model, NormScaled(model.parameters(), 0.1))
    assert "a step is as long whatever the norm of the gradient" in report.checks[0].text
    assert all("cannot be read" in row.reason for row in report.wrong)
    assert len(report.wrong) == 10


def test_a_clip_inside_the_optimizer_is_found_out_and_seen_through(model: SmallNet) -> None:
    optimizer = Clipping(groups_of(model), lr=0.1, momentum=0.9)
    seen = observe(model, optimizer, SGD)
    assert seen.clips
    assert all(p.elementwise for p in seen.parameters)
    report = report_of(model, optimizer)
    assert not report.ok
    assert not report.wrong
    assert "clips gradients at a norm of 0.01, the solver does not" in report.checks[-1].text


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda model: NeedsClosure(model.parameters(), 0.1), "TypeError"),
        (lambda model: torch.optim.LBFGS(model.parameters()), "closure"),
        (lambda model: torch.optim.SparseAdam(list(model.parameters())), "SparseAdam does not support dense"),
    ],
    ids=["closure", "lbfgs", "sparse"],
)
def test_what_cannot_be_probed_is_said(model: SmallNet, make: Callable[[SmallNet], Any], said: str) -> None:
    report = report_of(model, make(model))
    assert not report.ok
    assert said in report.causes[0].message
    assert set(wrong(report).values()) == {"mismatch"}


@pytest.mark.parametrize("wrap", [torch.nn.DataParallel, torch.compile], ids=["data parallel", "compiled"])
def test_names_are_those_of_the_bare_model(model: SmallNet, optimizer: Any, wrap: Callable[[Any], Any]) -> None:
    assert names(observe(wrap(model), optimizer, SGD).parameters) == [n for n, _ in model.named_parameters()]


def wrapper(module: str, attribute: str) -> type:
    """A class like Accelerate's and Lightning's optimizer wrappers, which delegate and add what only training needs."""

    class Wrapper:
        def __init__(self, optimizer: Any) -> None:
            self.optimizer = optimizer

        @property
        def param_groups(self) -> Any:
            return self.optimizer.param_groups

        def step(self) -> None:
            raise AssertionError("the wrapper's step needs a running trainer")

    Wrapper.__module__ = module
    Wrapper.__name__ = attribute
    return Wrapper


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("accelerate.optimizer", "AcceleratedOptimizer"),
        ("lightning.pytorch.core.optimizer", "LightningOptimizer"),
        ("lightning.fabric.wrappers", "_FabricOptimizer"),
        ("pytorch_lightning.core.optimizer", "LightningOptimizer"),
    ],
)
def test_the_optimizer_inside_a_wrapper_is_probed(model: SmallNet, optimizer: Any, module: str, name: str) -> None:
    assert report_of(model, wrapper(module, name)(optimizer)).ok


def test_the_optimizer_inside_accelerates_own_wrappers_is_probed(model: SmallNet, optimizer: torch.optim.SGD) -> None:
    accelerate = pytest.importorskip("accelerate")
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    prepared = accelerate.Accelerator(cpu=True).prepare(model, optimizer, scheduler)
    assert report_of(model, prepared[1], SGD, prepared[2]).ok


def test_the_optimizer_inside_lightnings_own_wrappers_is_probed(model: SmallNet, optimizer: torch.optim.SGD) -> None:
    lightning = pytest.importorskip("lightning")
    from lightning.pytorch.core.optimizer import LightningOptimizer

    assert report_of(model, LightningOptimizer(optimizer)).ok
    _, fabrics = lightning.Fabric(accelerator="cpu", devices=1).setup(model, optimizer)
    assert report_of(model, fabrics).ok


def test_a_step_hook_does_not_run_and_the_report_counts_it(model: SmallNet) -> None:
    """It is bound to what is trained: here it writes to the model's average, which nobody else restores."""
    optimizer = torch.optim.SGD(groups_of(model), momentum=0.9)
    average, everywhere = torch.zeros(1), torch.zeros(1)

    def count(*_: object) -> None:
        average.add_(1)

    def count_everywhere(*_: object) -> None:
        everywhere.add_(1)

    optimizer.register_step_pre_hook(count)
    optimizer.register_step_post_hook(count)
    handle = register_optimizer_step_post_hook(count_everywhere)
    try:
        report = report_of(model, optimizer)
        assert (average.item(), everywhere.item()) == (0, 0)
        optimizer.step()
        assert (average.item(), everywhere.item()) == (2, 1)
    finally:
        handle.remove()
    assert report.ok
    (hooks,) = (check for check in report.checks if check.name == "hooks")
    assert hooks.result is Result.NOT_SEEN
    assert "2 step hooks of the optimizer" in hooks.seen


LIVE: dict[str, torch.nn.Module] = {}


class Reaching(torch.optim.SGD):
    """Writes to the model that it was built for, past its parameters."""

    def step(self) -> None:  # type: ignore[override]  # nobody here passes a closure
        super().step()
        with torch.no_grad():
            LIVE["model"].conv1.weight.add_(1)


def test_a_step_that_reaches_the_model_is_undone_and_reported(model: SmallNet) -> None:
    LIVE["model"] = model
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    report = report_of(model, Reaching(groups_of(model), momentum=0.9))
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert "changed 1 tensors of the real model (conv1.weight); they are as before again" in report.notes[0].message


@pytest.mark.parametrize("started", [False, True], ids=["new", "in the middle of a run"])
@pytest.mark.parametrize("call", [1, 3, 8])
def test_a_step_that_raises_once_is_reported(model: SmallNet, call: int, started: bool) -> None:
    calls = [0]

    class Raising(torch.optim.SGD):
        def step(self) -> None:  # type: ignore[override]  # nobody here passes a closure
            calls[0] += 1
            if calls[0] == call + started:
                raise RuntimeError("once")
            super().step()

    optimizer = Raising(groups_of(model), momentum=0.9)
    if started:
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
    report = report_of(model, optimizer)
    assert "RuntimeError: once" in str(report)


STOCK = [c for c in vars(torch.optim).values() if isinstance(c, type) and issubclass(c, torch.optim.Optimizer)]


@pytest.mark.parametrize("make", [c for c in STOCK if c is not torch.optim.Optimizer], ids=lambda c: c.__name__)
def test_every_optimizer_of_torch_is_told_to_be_another_than_the_solvers(make: Any) -> None:
    model = torch.nn.Sequential(OrderedDict(ip=torch.nn.Linear(3, 4)))
    report = report_of(model, make([model.ip.weight], lr=0.1))
    rule = report.checks[0]
    expected = "not seen" if make.__name__ in ("LBFGS", "SparseAdam") else "differs"  # which cannot be stepped
    assert (rule.name, rule.result) == ("update rule", expected)
    assert not report.ok
    rules = {"Adadelta": "AdaDelta", "Adagrad": "AdaGrad", "Adam": "Adam", "AdamW": "Adam", "RMSprop": "RMSProp"}
    if make.__name__ in rules:
        assert f"it steps as {rules[make.__name__]}, the solver is SGD" in rule.text
        assert report.rows[0].observed.lr == pytest.approx(0.1)


def stepped(model: SmallNet) -> Iterator[tuple[str, torch.optim.Optimizer]]:
    groups = [{k: v for k, v in group.items() if k != "weight_decay"} for group in groups_of(model)]
    yield "foreach", torch.optim.SGD(groups_of(model), lr=0.1, momentum=0.9, foreach=True)
    yield "fused", torch.optim.SGD(groups_of(model), lr=0.1, momentum=0.9, fused=True)
    yield "loop", torch.optim.SGD(groups_of(model), lr=0.1, momentum=0.9, foreach=False)
    yield (
        "tensor lr",
        torch.optim.SGD(
            [
                group | {"lr": torch.tensor(group["lr"]), "weight_decay": w["weight_decay"]}
                for group, w in zip(groups, groups_of(model), strict=True)
            ],
            momentum=0.9,
        ),
    )


def test_every_implementation_of_one_rule_reads_the_same(model: SmallNet) -> None:
    for name, optimizer in stepped(model):
        report = report_of(model, optimizer)
        assert report.ok, f"{name}: {report}"


def test_scalars_halves_and_meta_tensors_are_probed() -> None:
    module = torch.nn.Module()
    module.number = torch.nn.Parameter(torch.tensor(1.0))
    module.short = torch.nn.Parameter(torch.ones(3, dtype=torch.float16))
    module.nowhere = torch.nn.Parameter(torch.ones(3, 4, device="meta"))
    seen = observe(module, torch.optim.SGD(module.parameters(), lr=0.1), SGD)
    assert [p.shape for p in seen.parameters] == [(), (3,), (3, 4)]
    assert {p.windows[0][0][0] for p in seen.parameters} == {-0.1}


def test_a_scheduler_is_followed_over_the_run_and_left_as_it_was(optimizer: torch.optim.SGD) -> None:
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [300, 700], gamma=0.1)
    before = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
    curves = follow(optimizer, scheduler, 1000).curves
    assert (optimizer.state_dict(), scheduler.state_dict()) == before
    assert sorted(group for curve in curves for group in curve.groups) == list(range(len(optimizer.param_groups)))
    for curve in curves:
        begins = optimizer.param_groups[curve.groups[0]]["lr"]
        assert curve.points[0] == (0, begins)
        assert curve.points[-1][0] == 999
        assert all(y == pytest.approx(begins * 0.1 ** ((i >= 300) + (i >= 700))) for i, y in curve.points)


def test_a_scheduler_is_followed_as_far_as_it_goes(optimizer: torch.optim.SGD) -> None:
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)  # its step() wants a loss
    assert {len(curve.points) for curve in follow(optimizer, plateau, 1000).curves} == {1}
    stepped = torch.optim.lr_scheduler.SequentialLR(  # which cannot be set to an iteration
        optimizer,
        [torch.optim.lr_scheduler.ConstantLR(optimizer), torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)],
        [2],
    )
    (curve, *_) = follow(optimizer, stepped, 1000 * FARTHEST).curves
    assert [i for i, _ in curve.points] == [0]
    (curve, *_) = follow(optimizer, stepped, 5).curves
    assert [i for i, _ in curve.points] == [0, 1, 2, 3, 4]
