"""Verdicts that were wrong once on real ports: rows stay right, and what concerns the run is stated once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import caffe2torch
from caffe2torch.auditing import audit
from caffe2torch.cli import main
from caffe2torch.reading import read_recipe
from caffe2torch.recipe import TrainingRecipe
from caffe2torch.verification import follow_scheduler
from caffe2torch.verification.report import Check, Report

TWO = """name: "two" input: "data" input_shape { dim: 2 dim: 3 }
layer { name: "a" type: "InnerProduct" bottom: "data" top: "a" param { lr_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
  inner_product_param { num_output: 4 } }
layer { name: "b" type: "InnerProduct" bottom: "a" top: "b" param { lr_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
  inner_product_param { num_output: 2 } }
"""
USUAL = "momentum: 0.9 weight_decay: 0.0005 "
STEP = f'base_lr: 0.001 {USUAL} lr_policy: "step" gamma: 0.1 stepsize: 1000 max_iter: 2500 '


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x))


def right(model: Two, lr: float = 0.001, weights_lr: float | None = None) -> torch.optim.SGD:
    return torch.optim.SGD(
        [
            {"params": [model.a.weight, model.b.weight], "lr": weights_lr or lr, "weight_decay": 0.0005},
            {"params": [model.a.bias, model.b.bias], "lr": 2 * lr},
        ],
        lr=lr,
        momentum=0.9,
    )


def recipe(folder: Path, solver: str) -> TrainingRecipe:
    (folder / "net.prototxt").write_text(TWO)
    (folder / "solver.prototxt").write_text(solver)
    return read_recipe(folder / "net.prototxt", folder / "solver.prototxt")


def step_lr(optimizer: torch.optim.Optimizer, every: int = 1000) -> Any:
    return torch.optim.lr_scheduler.StepLR(optimizer, every, 0.1)


def check(report: Report, name: str) -> Check:
    (found,) = [one for one in report.checks if one.name == name]
    return found


@pytest.mark.parametrize("scheduled", [False, True])
def test_a_loop_that_averages_is_no_fault_of_rows(tmp_path: Path, scheduled: bool) -> None:
    model = Two()
    optimizer = right(model)
    scheduler = step_lr(optimizer) if scheduled else None
    report = audit(recipe(tmp_path, STEP + "iter_size: 10"), model, optimizer, scheduler)
    assert not report.wrong
    accumulation = check(report, "accumulation")
    assert accumulation.result == "ok"
    assert "your loop has to average over 10 passes" in accumulation.seen
    assert "read as the mean, 4 of 4 rows fit; as the sum 0" in accumulation.seen
    assert [one.name for one in report.differing] == (["momentum at rate changes"] if scheduled else [])
    assert report.ok is not scheduled


def test_what_the_user_says_of_the_loop_holds(tmp_path: Path) -> None:
    model = Two()
    asked = recipe(tmp_path, STEP + "iter_size: 10")
    assert audit(asked, model, right(model), accumulation="mean").ok
    report = audit(asked, model, right(model), accumulation="sum")
    assert not report.wrong
    assert [one.name for one in report.differing] == ["accumulation"]
    assert "your loop has to average over 10 passes, and you say that it does sum" in report.differing[0].text


def test_a_loop_that_clips_is_told_at_which_norm(tmp_path: Path) -> None:
    for more, norm in (("clip_gradients: 40", 40), ("clip_gradients: 40 iter_size: 10", 4)):
        model = Two()
        optimizer = right(model)
        report = audit(recipe(tmp_path, STEP + more), model, optimizer, step_lr(optimizer), accept=["rate_change"])
        assert report.ok, str(report)
        clipping = check(report, "clipping")
        assert clipping.result == "not seen"
        assert f"your loop has to, at a norm of {norm} over all gradients" in clipping.seen


@pytest.mark.parametrize("every", [30, 10])
def test_numbers_are_caffes_or_the_ports_own_and_epochs_are_recognised(tmp_path: Path, every: int) -> None:
    model = Two()
    optimizer = right(model, 0.0001, weights_lr=0.001)
    solver = f'base_lr: 0.0001 {USUAL} lr_policy: "step" gamma: 0.1 stepsize: 5000 max_iter: 20000'
    report = audit(recipe(tmp_path, solver), model, optimizer, step_lr(optimizer, every))
    assert {row.parameter for row in report.wrong} == {"a.weight", "b.weight"}
    assert {row.reason for row in report.wrong} == {"lr is 0.001, Caffe's is 0.0001 (10 times as much)"}
    schedule = check(report, "rate schedule")
    assert f"first changes the rate at iteration {every}, Caffe's first at iteration 5000" in schedule.text
    assert "epochs" in schedule.text
    assert "-0" not in schedule.text


def test_a_rate_off_by_a_factor_does_not_enter_caffes_number_in_the_schedule(tmp_path: Path) -> None:
    model = Two()
    optimizer = right(model, 0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1000, 0.5)
    report = audit(recipe(tmp_path, STEP), model, optimizer, scheduler)
    schedule = check(report, "rate schedule")
    assert "at iteration 1000 lr is 0.005 where Caffe's is 0.0001, and it began at 10 times Caffe's" in schedule.text


def test_wrong_numbers_and_averaging_at_once_are_read_as_what_makes_most_of_them_right(tmp_path: Path) -> None:
    asked = recipe(tmp_path, f'base_lr: 0.001 {USUAL} lr_policy: "fixed" iter_size: 10')
    model = Two()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9, weight_decay=0.0001)
    report = audit(asked, model, optimizer)
    assert "read as the mean" in check(report, "accumulation").text
    reasons = {row.parameter: row.reason for row in report.wrong}
    assert reasons["a.weight"] == "weight_decay is 0.0001, Caffe's is 0.0005 (5 times too small)"
    hopeless = torch.optim.SGD(model.parameters(), lr=0.0023, momentum=0.9, weight_decay=0.00017)
    undecided = check(audit(asked, model, hopeless), "accumulation")
    assert undecided.result == "not seen"
    assert "it was not seen" in undecided.seen
    assert "as the mean, a.weight would be: lr is 0.0023" in undecided.seen


def pasted(report: Report, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Do what the printed code of every cause says: its groups take the parameters from where they were."""
    for cause in report.causes:
        for group in eval(f"[{cause.code}]", {"model": model}):
            moved = {id(p) for p in group["params"]}
            for old in optimizer.param_groups:
                old["params"] = [p for p in old["params"] if id(p) not in moved]
            optimizer.add_param_group(group)


@pytest.mark.parametrize("solver", ["SGD", "Nesterov", "AdaGrad"])
def test_a_fix_that_is_pasted_leaves_no_such_cause_whoever_divides_by_iter_size(tmp_path: Path, solver: str) -> None:
    """The loop sums and the stock step does not divide: the groups have to, by lr / 4 and weight_decay * 4."""
    model = Two()
    linear = solver != "AdaGrad"
    groups = [
        {"params": [model.a.weight, model.b.weight], "lr": 0.0025 if linear else 0.01, "weight_decay": 0.002},
        {"params": [model.a.bias, model.b.bias], "lr": 0.0025 if linear else 0.01, "weight_decay": 0.0005},
    ]
    text = f'type: "{solver}" base_lr: 0.01 weight_decay: 0.0005 delta: 1e-8 lr_policy: "fixed" iter_size: 4'
    text += " momentum: 0.9" if linear else ""
    if linear:
        optimizer: torch.optim.Optimizer = torch.optim.SGD(groups, momentum=0.9, nesterov=solver == "Nesterov")
    else:
        optimizer = torch.optim.Adagrad(groups, eps=4e-8)
    asked = recipe(tmp_path, text)
    wrong = audit(asked, model, optimizer, accumulation="sum")
    assert {row.parameter for row in wrong.wrong} == {"a.bias", "b.bias"}
    pasted(wrong, model, optimizer)
    found = audit(asked, model, optimizer, accumulation="sum")
    assert not found.causes, str(found)
    assert [group["lr"] for group in optimizer.param_groups][-1] == (0.005 if linear else 0.02)
    assert found.ok
    if linear:
        assert "your loop has to sum the gradients of 4 passes" in check(found, "accumulation").seen


@pytest.mark.parametrize("averages", [True, False])
def test_the_file_of_the_fix_is_for_the_loop_that_was_read(tmp_path: Path, averages: bool) -> None:
    recipe(tmp_path, f'base_lr: 0.01 {USUAL} lr_policy: "fixed" iter_size: 4')
    lr, decay = (0.01, 0.0005) if averages else (0.0025, 0.002)
    (tmp_path / "port.py").write_text(
        "import torch\n" + inspect.getsource(Two).replace("nn.", "torch.nn.") + "def make(model):\n"
        "    a, b = model.a, model.b\n"
        f"    groups = [{{'params': [a.weight, b.weight], 'weight_decay': {decay}}}, {{'params': [a.bias, b.bias]}}]\n"
        f"    return torch.optim.SGD(groups, lr={lr}, momentum=0.9)\n"
    )
    port = f"{tmp_path}/port.py"
    arguments = ["audit", f"{tmp_path}/net.prototxt", f"{tmp_path}/solver.prototxt", "--model", f"{port}:Two"]
    fix = tmp_path / "right.py"
    runner = CliRunner()
    assert runner.invoke(main, [*arguments, "--optimizer", f"{port}:make", "--fix", str(fix)]).exit_code == 1
    loop = ["--accumulation", "mean" if averages else "sum"]
    assert runner.invoke(main, [*arguments, "--optimizer", f"{fix}:build_optimizer", *loop]).exit_code == 0


def test_gradient_ascent_in_all_groups_is_said_once_by_the_update_rule(tmp_path: Path) -> None:
    for solver, made in (("SGD", torch.optim.SGD), ("Adam", torch.optim.Adam)):
        model = Two()
        settings = {"momentum": 0.9} if solver == "SGD" else {}
        groups = right(model).param_groups
        plain = [{key: group[key] for key in ("params", "lr", "weight_decay")} for group in groups]
        optimizer = made(plain, maximize=True, **settings)
        text = f'type: "{solver}" base_lr: 0.001 {USUAL} delta: 1e-12 lr_policy: "fixed"'
        report = audit(recipe(tmp_path, text), model, optimizer, accept=["epsilon"])
        assert not report.wrong, str(report)
        assert not report.causes
        rule = check(report, "update rule")
        assert [one.name for one in report.differing] == ["update rule"]
        assert rule.text.count("go up the gradient") == 1
    assert rule.parameters == ()


def test_gradient_ascent_in_some_groups_is_a_fault_of_their_rows_beside_what_else_is_wrong(tmp_path: Path) -> None:
    model = Two()
    optimizer = right(model)
    optimizer.param_groups[1]["maximize"] = True
    asked = recipe(tmp_path, STEP)
    report = audit(asked, model, optimizer)
    assert {row.parameter for row in report.wrong} == {"a.bias", "b.bias"}
    (cause,) = report.causes
    assert "the weights go up the gradient" in cause.message
    assert "times" not in cause.message
    assert cause.fix == "remove maximize=True from the group of them"
    assert check(report, "update rule").result == "ok"
    optimizer.param_groups[1]["lr"] = 0.001
    (cause,) = audit(asked, model, optimizer).causes
    assert "the weights go up the gradient" in cause.message
    assert "lr is 0.001, Caffe's is 0.002" in cause.message


@pytest.mark.parametrize("policy", ["fixed", "step"])
def test_a_schedule_that_follows_a_metric_differs_and_leaves_the_rest_judged(tmp_path: Path, policy: str) -> None:
    model = Two()
    optimizer = right(model)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    report = audit(recipe(tmp_path, STEP.replace("step", policy, 1)), model, optimizer, plateau)
    assert not report.wrong
    assert not report.causes
    assert [one.name for one in report.differing] == ["rate schedule"]
    assert "follows what ReduceLROnPlateau.step(metrics) is given" in str(report)
    assert "raise" not in str(report)


def test_a_parameter_in_two_optimizers_is_one_duplicate_that_names_both(tmp_path: Path) -> None:
    model = Two()
    stray = torch.optim.SGD([model.b.weight], lr=0.001, momentum=0.9, weight_decay=0.0005)
    report = audit(recipe(tmp_path, STEP), model, [right(model), stray])
    (row,) = report.wrong
    assert (row.name, str(row.verdict), row.observed.lr) == ("b.weight", "duplicate", 0.002)
    said = "it stands in group 0 of optimizer 1 and group 0 of optimizer 2: each step moves it 2 times"
    assert row.reason == said


def test_momentum_at_rate_changes_is_no_check_where_caffes_rate_is_constant(tmp_path: Path) -> None:
    for scheduler in (step_lr, lambda optimizer: step_lr(optimizer, 3), lambda _: None):
        model = Two()
        optimizer = right(model)
        solver = f'base_lr: 0.001 {USUAL} lr_policy: "fixed" max_iter: 2500'
        report = audit(recipe(tmp_path, solver), model, optimizer, scheduler(optimizer))
        assert "momentum at rate changes" not in [one.name for one in report.checks]
        assert report.ok is (scheduler(optimizer) is None)


class Clipping(torch.optim.SGD):
    """Clips in its step, by the norm or each number."""

    def __init__(self, groups: Any, norm: float | None = None, value: float | None = None) -> None:
        super().__init__(groups, lr=0.001, momentum=0.9)
        self.norm, self.value = norm, value

    def step(self, closure: Any = None) -> Any:
        parameters = [p for group in self.param_groups for p in group["params"]]
        if self.norm:
            nn.utils.clip_grad_norm_(parameters, self.norm)
        if self.value:
            nn.utils.clip_grad_value_(parameters, self.value)
        return super().step(closure)


@pytest.mark.parametrize(
    ("clip", "bounds", "said"),
    [
        ("", {"value": 5.0}, "clips each number of a gradient at 5, the solver does not"),
        ("", {"value": 0.1}, "clips each number of a gradient at 0.1, the solver does not"),
        ("", {"value": 1000.0}, "clips each number of a gradient at 1000, the solver does not"),
        ("", {"norm": 0.5}, "at a norm of 0.5, the solver does not"),
        ("", {"norm": 2000.0}, "at a norm of 2000, the solver does not"),
        ("clip_gradients: 10", {"norm": 5000.0}, "clips gradients at a norm of 5000; Caffe's clip_gradients is 10"),
        (
            "clip_gradients: 10",
            {"value": 1.0},
            "clips each number of a gradient at 1; Caffe's clip_gradients is 10, over all",
        ),
        ("clip_gradients: 10", {"value": 500.0}, "at 500; Caffe's clip_gradients is 10, over all"),
        ("clip_gradients: 10", {"norm": 10.0}, ""),
        ("clip_gradients: 0.1", {"norm": 0.1}, ""),
    ],
)
def test_a_step_that_clips_at_any_bound_is_one_check_that_differs(
    tmp_path: Path, clip: str, bounds: dict[str, float], said: str
) -> None:
    model = Two()
    optimizer = Clipping(right(model).param_groups, **bounds)
    report = audit(recipe(tmp_path, STEP + clip), model, optimizer)
    assert not report.wrong, str(report)
    assert [one.name for one in report.differing] == (["clipping"] if said else [])
    assert said in check(report, "clipping").text


class DividingAdadelta(torch.optim.Adadelta):
    """Its step divides what the loop has summed over four passes."""

    def step(self, closure: Any = None) -> Any:
        for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            p.grad = p.grad / 4
        return super().step(closure)


@pytest.mark.parametrize("stated", [None, "sum"])
def test_rows_that_cannot_be_read_are_no_evidence_for_a_reading(tmp_path: Path, stated: str | None) -> None:
    """Every rate is three times Caffe's: read as a mean nothing fits, which is not better than decays that do."""
    model = Two()
    groups = [
        {"params": [model.a.weight, model.b.weight], "lr": 0.03, "weight_decay": 0.0005},
        {"params": [model.a.bias, model.b.bias], "lr": 0.06},
    ]
    solver = f'type: "AdaDelta" base_lr: 0.01 {USUAL} delta: 1e-6 lr_policy: "fixed" iter_size: 4'
    optimizer = DividingAdadelta(groups, rho=0.9, eps=1e-6)
    report = audit(recipe(tmp_path, solver), model, optimizer, accumulation=stated)
    assert [(one.name, str(one.result)) for one in report.checks] == [
        ("update rule", "ok"),
        ("accumulation", "ok"),
        ("model", "ok"),
    ]
    assert "your loop has to sum" in check(report, "accumulation").seen
    assert all([str(fault.kind) for fault in row.faults] == ["lr"] for row in report.rows)


@pytest.mark.parametrize("nesterov", [False, True])
def test_another_momentum_is_named_while_the_rate_changes_at_every_step(tmp_path: Path, nesterov: bool) -> None:
    """2 % a step hide a momentum of 0.5 in torch's history, and the rows are right all the same."""
    model = Two()
    optimizer = right(model, 0.01)
    for group in optimizer.param_groups:
        group.update(momentum=0.5, nesterov=nesterov)
    solver = (
        f'type: "{"Nesterov" if nesterov else "SGD"}" base_lr: 0.01 {USUAL} lr_policy: "exp" gamma: 0.98 max_iter: 90'
    )
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.98)
    report = audit(recipe(tmp_path, solver), model, optimizer, scheduler)
    assert not report.wrong, str(report)
    assert "momentum is 0.5, Caffe's momentum is 0.9" in check(report, "update rule").text


def test_without_a_model_nothing_is_claimed_of_one(tmp_path: Path) -> None:
    t = caffe2torch.translate(recipe(tmp_path, STEP))
    assert t.report.ok
    assert t.report.to_dict()["model_checked"] is False
    text = str(t.report)
    assert text.startswith("two, planned (no model was checked)")
    assert text.splitlines()[-1].startswith("4 blobs planned in 2 groups; no model was checked")
    assert caffe2torch.translate(recipe(tmp_path, STEP), model=Two()).report.to_dict()["model_checked"] is True


def test_a_layer_that_its_user_skips_is_skipped_and_counted(tmp_path: Path) -> None:
    model = Two()
    del model.b
    model.forward = lambda x: model.a(x)  # type: ignore[method-assign]  # a port without its head
    t = caffe2torch.translate(recipe(tmp_path, STEP), model=model, skip=["b"])
    assert [str(row.verdict) for row in t.report.rows] == ["ok", "ok", "skipped", "skipped"]
    assert "2 of 4 rows ok, 2 skipped" in str(t.report).splitlines()[-1]


def test_several_optimizers_of_one_model_are_one_verdict(tmp_path: Path) -> None:
    asked = recipe(tmp_path, STEP)
    model = Two()

    def made(layer: nn.Linear, lr: float = 0.001) -> torch.optim.SGD:
        groups = [{"params": [layer.weight], "weight_decay": 0.0005}, {"params": [layer.bias], "lr": 2 * lr}]
        return torch.optim.SGD(groups, lr=lr, momentum=0.9)

    first, second = made(model.a), made(model.b)
    assert audit(asked, model, [first, second]).ok
    report = audit(asked, model, [first, second], [step_lr(first), None])
    assert not report.wrong
    schedule = check(report, "rate schedule")
    assert (schedule.result, schedule.parameters) == ("differs", ("b.weight", "b.bias"))
    both = audit(asked, model, [first, second], [step_lr(first), step_lr(second)])
    assert [one.name for one in both.differing] == ["momentum at rate changes"]
    off = audit(asked, model, [first, made(model.b, 0.1)])
    assert {row.parameter for row in off.wrong} == {"b.weight", "b.bias"}
    with pytest.raises(caffe2torch.Caffe2TorchError, match="not as many schedulers"):
        audit(asked, model, [first, second], [step_lr(first)])


def test_accepted_rows_are_counted_and_wrong_nowhere(tmp_path: Path) -> None:
    model = Two()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9, weight_decay=0.0005)
    report = audit(recipe(tmp_path, STEP), model, optimizer, accept=["lr", "weight_decay"])
    assert report.ok
    assert not report.causes
    assert "2 of 4 rows ok, 2 accepted" in str(report).splitlines()[-1]
    half = audit(recipe(tmp_path, STEP), model, optimizer, accept=["lr"])
    assert {row.reason for row in half.wrong} == {"weight_decay is 0.0005, Caffe's is 0"}


def test_a_port_on_stock_sgd_has_one_check_that_differs_with_its_effect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe(tmp_path, STEP)
    parts = [inspect.getsource(part) for part in (Two, right, step_lr)]
    header = ["from __future__ import annotations", "from typing import Any", "import torch", "from torch import nn"]
    (tmp_path / "port_of_two.py").write_text("\n".join([*header, *parts]))
    arguments = ["audit", "net.prototxt", "solver.prototxt", "--model", "port_of_two.py:Two"]
    arguments += ["--optimizer", "port_of_two.py:right", "--scheduler", "port_of_two.py:step_lr"]
    result = CliRunner().invoke(main, [*arguments, "--fix", "optimizer.py"])
    assert result.exit_code == 1, result.output
    verdict, next_step = result.stdout.splitlines()[-2:]
    assert next_step.endswith("--optimizer optimizer.py:build_optimizer --scheduler optimizer.py:build_scheduler")
    assert verdict == "4 of 4 rows ok; 1 of 4 checks differs: momentum at rate changes"
    assert "% of their movement away" in " ".join(result.stdout.split())
    accepted = CliRunner().invoke(main, [*arguments, "--accept", "rate_change"])
    assert accepted.exit_code == 0
    namespace: dict[str, Any] = {}
    exec((tmp_path / "optimizer.py").read_text(), namespace)
    model = Two()
    optimizer = namespace["build_optimizer"](model)
    report = audit(recipe(tmp_path, STEP), model, optimizer, namespace["build_scheduler"](optimizer))
    assert report.ok, str(report)
    shown = CliRunner().invoke(main, ["audit", "--help"]).stdout
    assert "rate_change" in shown
    assert "frozen" in shown


# The whole run of a scheduler, not its first changes alone.

schedulers = torch.optim.lr_scheduler
FIXED = f'base_lr: 0.001 {USUAL} lr_policy: "fixed" max_iter: 1000 '
MULTI = f'base_lr: 0.001 {USUAL} lr_policy: "multistep" gamma: 0.1 max_iter: 1000 ' + "stepvalue: {} " * 4


def schedule_of(folder: Path, solver: str, make: Any) -> Check | None:
    model = Two()
    optimizer = right(model)
    report = audit(recipe(folder, solver), model, optimizer, make(optimizer), accept=["rate_change"])
    assert not report.wrong, str(report)
    return next((check for check in report.checks if check.name == "rate schedule"), None)


@pytest.mark.parametrize(
    ("solver", "make", "where"),
    [
        (FIXED, lambda o: schedulers.StepLR(o, 300, 0.1), "0.1 times the rate of iteration 0, Caffe's 1 times"),
        (STEP, lambda o: schedulers.MultiStepLR(o, [1000], 0.1), "iteration 2"),
        (
            MULTI.format(100, 200, 300, 600),
            lambda o: schedulers.MultiStepLR(o, [100, 200, 300, 900], 0.1),
            "at iteration 6",
        ),
        (
            MULTI.format(100, 200, 300, 600),
            lambda o: schedulers.MultiStepLR(o, [100, 200, 300, 400, 600], 0.1),
            "at iteration 40",
        ),
        (
            f'base_lr: 0.001 {USUAL} lr_policy: "multistep" gamma: 0.1 stepvalue: 500 max_iter: 1100',
            lambda o: schedulers.StepLR(o, 500, 0.1),
            "at iteration 100",
        ),
    ],
)
def test_a_change_of_the_rate_that_only_one_of_both_has_is_found_wherever_it_is(
    tmp_path: Path, solver: str, make: Any, where: str
) -> None:
    check = schedule_of(tmp_path, solver, make)
    assert check is not None
    assert str(check.result) == "differs"
    assert where in check.text


@pytest.mark.parametrize(
    ("solver", "make"),
    [
        (STEP, lambda o: schedulers.StepLR(o, 1000, 0.1)),
        (MULTI.format(100, 200, 300, 600), lambda o: schedulers.MultiStepLR(o, [100, 200, 300, 600], 0.1)),
        (
            f'base_lr: 0.001 {USUAL} lr_policy: "exp" gamma: 0.9999 max_iter: 100000',
            lambda o: schedulers.ExponentialLR(o, 0.9999),
        ),
        (FIXED, lambda o: schedulers.LambdaLR(o, lambda _: 1.0)),
        (
            f'base_lr: 0.001 {USUAL} lr_policy: "poly" power: 0.9 max_iter: 5000',
            lambda o: schedulers.PolynomialLR(o, 5000, 0.9),
        ),
    ],
)
def test_a_scheduler_that_is_caffes_to_the_end_is_right(tmp_path: Path, solver: str, make: Any) -> None:
    check = schedule_of(tmp_path, solver, make)
    assert check is None or str(check.result) == "ok", check.text


@pytest.mark.parametrize(
    "make",
    [
        lambda o: schedulers.SequentialLR(o, [schedulers.LinearLR(o, 0.1, 1, 5), schedulers.StepLR(o, 1000, 0.1)], [5]),
        lambda o: schedulers.LambdaLR(o, lambda _: 0.5),
    ],
)
def test_a_rate_that_the_scheduler_alone_makes_another_one_is_no_fault_of_rows(tmp_path: Path, make: Any) -> None:
    check = schedule_of(tmp_path, STEP, make)
    assert check is not None
    assert str(check.result) == "differs"
    assert "at iteration 0 the scheduler makes every lr" in check.text


def test_groups_with_another_rate_are_a_fault_of_rows_with_a_scheduler_too(tmp_path: Path) -> None:
    model = Two()
    optimizer = right(model, lr=0.01)
    report = audit(recipe(tmp_path, STEP), model, optimizer, step_lr(optimizer), accept=["rate_change"])
    assert len(report.wrong) == 4
    assert not any(check.name == "rate schedule" for check in report.differing)


def test_where_caffes_rate_is_constant_the_fix_is_to_give_no_scheduler(tmp_path: Path) -> None:
    check = schedule_of(tmp_path, FIXED, lambda o: schedulers.StepLR(o, 3, 0.1))
    assert check is not None
    assert "give no scheduler" in check.text


class ByHand:
    """A schedule as many write it: it has no class of torch, and cannot be set to an iteration."""

    def __init__(self, optimizer: torch.optim.Optimizer, factor: Callable[[int], float], **settings: Any) -> None:
        self.optimizer, self.factor, self.settings, self.last_epoch = optimizer, factor, settings, 0
        self.first = [group["lr"] for group in optimizer.param_groups]

    def step(self) -> None:
        self.last_epoch += 1
        for group, lr in zip(self.optimizer.param_groups, self.first, strict=True):
            group["lr"] = lr * self.factor(self.last_epoch)
            if self.last_epoch == 500:
                group.update(self.settings)


FIVE = f'base_lr: 0.001 {USUAL} lr_policy: "multistep" gamma: 0.1 max_iter: 60000 ' + " ".join(
    f"stepvalue: {i}" for i in range(10_000, 60_000, 10_000)
)


@pytest.mark.parametrize("least", [3, 4, 5])
def test_a_scheduler_that_cannot_be_set_is_followed_to_the_last_change(tmp_path: Path, least: int) -> None:
    check = schedule_of(tmp_path, FIVE, lambda o: ByHand(o, lambda i: 0.1 ** min(i // 10_000, least)))
    assert check is not None
    assert str(check.result) == ("ok" if least == 5 else "differs"), check.text
    if least < 5:
        assert f"at iteration {least + 1}0" in check.text


def test_how_far_a_scheduler_was_followed_is_said_where_that_is_not_the_whole_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow_scheduler, "FARTHEST", 35_000)
    check = schedule_of(tmp_path, FIVE, lambda o: ByHand(o, lambda i: 0.1 ** min(i // 10_000, 3)))
    assert check is not None
    assert str(check.result) == "not seen"
    assert "as Caffe's up to iteration 34" in check.text
    assert "not looked at beyond: max_iter is 60000" in check.text


def test_a_drop_of_a_constant_rate_is_found_where_no_max_iter_is_stated(tmp_path: Path) -> None:
    solver = f'base_lr: 0.001 {USUAL} lr_policy: "fixed"'
    check = schedule_of(tmp_path, solver, lambda o: schedulers.StepLR(o, 30_000, 0.1))
    assert check is not None
    assert str(check.result) == "differs"
    check = schedule_of(tmp_path, solver, lambda o: schedulers.StepLR(o, 300_000, 0.1))
    assert check is not None
    assert str(check.result) == "ok"
    assert "up to iteration 99999, not looked at beyond" in check.text


@pytest.mark.parametrize(("name", "value"), [("weight_decay", 0.05), ("momentum", 0.5)])
@pytest.mark.parametrize("solver", [FIXED, STEP])
def test_a_setting_that_a_scheduler_changes_later_is_a_difference_of_the_update_rule(
    tmp_path: Path, solver: str, name: str, value: float
) -> None:
    model = Two()
    optimizer = right(model)
    scheduler = ByHand(optimizer, lambda i: 0.1 ** (i // 1000) if solver is STEP else 1.0, **{name: value})
    report = audit(recipe(tmp_path, solver), model, optimizer, scheduler, accept=["rate_change"])
    assert [check.name for check in report.differing] == ["update rule"]
    assert f"the scheduler has changed {name} of group 0 from " in report.differing[0].text
    assert report.wrong == ()
    accepted = audit(recipe(tmp_path, solver), model, optimizer, scheduler, accept=["rate_change", name])
    assert accepted.ok


def test_a_warm_up_is_not_taken_for_a_schedule_in_epochs(tmp_path: Path) -> None:
    check = schedule_of(tmp_path, STEP, lambda o: ByHand(o, lambda i: min(1.0, 0.5 + i / 100) * 0.1 ** (i // 1000)))
    assert check is not None
    assert str(check.result) == "differs"
    assert "epochs" not in check.text
    check = schedule_of(tmp_path, STEP, lambda o: schedulers.StepLR(o, 30, 0.1))
    assert check is not None
    assert "it may count epochs" in check.text


class Lookahead(torch.optim.SGD):
    """Goes half the way back to the weights of ``every`` steps ago."""

    every = 6

    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        for p in (p for group in self.param_groups for p in group["params"]):
            state = self.state[p]
            state["steps"] = state.get("steps", 0) + 1
            slow = state.setdefault("slow", p.detach().clone())
            if state["steps"] % self.every == 0:
                with torch.no_grad():
                    p.copy_(slow.add_(p - slow, alpha=0.5))


class Undecaying(torch.optim.SGD):
    """Drops its weight decay after 200 steps."""

    steps = 0

    def step(self, closure: Any = None) -> Any:
        self.steps += 1
        for group in self.param_groups:
            group["weight_decay"] *= self.steps <= 200
        return super().step(closure)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (Lookahead, "from step 6 on it moves otherwise than before"),
        (type("Lookahead50", (Lookahead,), {"every": 50}), "from step 50 on it moves otherwise than before"),
        (Undecaying, "from step 201 on its weight decay is another one"),
        (torch.optim.SGD, ""),
    ],
)
def test_what_a_step_does_only_after_many_steps_is_seen(tmp_path: Path, make: Any, said: str) -> None:
    model = Two()
    optimizer = make(right(model).param_groups, lr=0.01, momentum=0.9)
    report = audit(recipe(tmp_path, FIXED), model, optimizer)
    assert not report.wrong, str(report)
    assert [one.name for one in report.differing] == (["update rule"] if said else [])
    assert said in check(report, "update rule").text


def test_an_optimizer_that_follows_the_policy_by_itself_moves_as_before(tmp_path: Path) -> None:
    class Scheduling(torch.optim.SGD):
        steps = 0

        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                group["lr"] *= 0.1 if self.steps == 100 else 1.0
            self.steps += 1
            return super().step(closure)

    model = Two()
    solver = f'base_lr: 0.001 {USUAL} lr_policy: "step" gamma: 0.1 stepsize: 100 max_iter: 150'
    report = audit(recipe(tmp_path, solver), model, Scheduling(right(model).param_groups, momentum=0.9))
    assert check(report, "update rule").result == "ok", str(report)


def test_hooks_on_gradients_are_a_check_that_is_not_seen(tmp_path: Path) -> None:
    model = Two()
    optimizer = right(model)
    assert all(one.name != "hooks" for one in audit(recipe(tmp_path, FIXED), model, optimizer).checks)
    model.a.weight.register_hook(lambda gradient: gradient / 10)
    model.a.bias.register_post_accumulate_grad_hook(lambda p: p.grad.mul_(2))
    hooks = check(audit(recipe(tmp_path, FIXED), model, optimizer), "hooks")
    assert hooks.result == "not seen"
    assert "hooks on the gradients of a.weight, a.bias" in hooks.seen


@pytest.mark.parametrize("clip", ["", "clip_gradients: 10"])
@pytest.mark.parametrize("scope", ["param group", "parameter"])
def test_a_clip_of_less_than_all_gradients_is_named_with_its_own_bound(tmp_path: Path, clip: str, scope: str) -> None:
    class Scoped(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                for some in [group["params"]] if scope == "param group" else [[p] for p in group["params"]]:
                    nn.utils.clip_grad_norm_(some, 10)
            return super().step(closure)

    model = Two()
    report = audit(recipe(tmp_path, FIXED + clip), model, Scoped(right(model).param_groups, momentum=0.9))
    assert f"clips each {scope} at a norm of 10" in check(report, "clipping").text
    assert [one.name for one in report.differing] == ["clipping"]


def test_a_bound_on_the_norm_of_weights_is_not_called_a_clip(tmp_path: Path) -> None:
    class Bounded(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            super().step(closure)
            with torch.no_grad():
                for p in (p for group in self.param_groups for p in group["params"] if p.dim() > 1):
                    p.copy_(torch.renorm(p, 2, 0, 4.0))

    model = Two()
    report = audit(recipe(tmp_path, FIXED), model, Bounded(right(model).param_groups, momentum=0.9))
    assert [one.name for one in report.differing] == ["update rule"]
    assert "bound on the weights' norm" in check(report, "update rule").text


def test_a_clip_of_averages_is_held_against_caffes_on_the_sum(tmp_path: Path) -> None:
    model = Two()
    optimizer = Clipping(right(model).param_groups, norm=10.0)
    report = audit(recipe(tmp_path, FIXED + "iter_size: 4 clip_gradients: 10"), model, optimizer)
    assert "at a norm of 10; Caffe's 10 on the sum of 4 is 2.5 on an average" in check(report, "clipping").text


def test_the_effect_of_an_epsilon_is_that_of_the_ports_own(tmp_path: Path) -> None:
    solver = f'type: "Adam" base_lr: 0.001 {USUAL} delta: 1e-8 lr_policy: "fixed" max_iter: 500'
    effects = {}
    for eps in (1e-8, 0.1):
        model = Two()
        groups = [
            {"params": [model.a.weight, model.b.weight], "lr": 0.001, "weight_decay": 0.0005},
            {"params": [model.a.bias, model.b.bias], "lr": 0.002},
        ]
        effects[eps] = check(audit(recipe(tmp_path, solver), model, torch.optim.Adam(groups, eps=eps)), "update rule")
    assert effects[1e-8].effect
    assert effects[0.1].effect != effects[1e-8].effect


def test_no_fix_names_the_group_that_says_the_right_numbers_already(tmp_path: Path) -> None:
    model = Two()
    groups = right(model).param_groups
    kept = [{"params": g["params"], "lr": g["lr"], "weight_decay": g["weight_decay"]} for g in groups]
    solver = 'base_lr: 0.001 weight_decay: 0.0005 lr_policy: "fixed" max_iter: 100'
    report = audit(recipe(tmp_path, solver), model, torch.optim.ASGD(kept))  # its lambd decays what should not
    assert report.wrong
    assert all("their groups say so already" in cause.fix and not cause.code for cause in report.causes)
    moved = audit(recipe(tmp_path, solver), model, torch.optim.SGD(model.parameters(), lr=0.001, weight_decay=5e-4))
    assert moved.wrong
    assert all("a group with" in cause.fix for cause in moved.causes)


class Breaking(torch.optim.SGD):
    """Ends after some steps."""

    def step(self, closure: Any = None) -> Any:
        self.state["steps"] = self.state.get("steps", 0) + 1
        if self.state["steps"] > 50:
            raise RuntimeError("enough")
        return super().step(closure)


def test_steps_that_could_not_be_looked_at_are_said(tmp_path: Path) -> None:
    model = Two()
    solver = 'base_lr: 0.001 weight_decay: 0.0005 lr_policy: "fixed" max_iter: 1000'
    groups = [
        {"params": g["params"], "lr": g["lr"], "weight_decay": g["weight_decay"]} for g in right(model).param_groups
    ]
    report = audit(recipe(tmp_path, solver), model, Breaking(groups))
    assert report.wrong == ()
    assert "steps beyond the first 5 were not looked at: RuntimeError: enough" in str(report)
