"""The audit finds what published ports got wrong, names it, and leaves alone what is right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from emitted import load
from mistakes import (
    BIASES,
    STEP,
    WEIGHTS,
    InverseCorrection,
    Port,
    RightCorrection,
    deeplab_resnet,
    named,
    resnet,
    resnet_net,
    two_groups,
    vgg,
    vgg_net,
)
from small_net import SGD as SOLVER
from small_net import SmallNet, groups_of
from torch import nn

from caffe2torch.auditing import audit
from caffe2torch.errors import Caffe2TorchError, ModelError, SolverError
from caffe2torch.models import SegNetBasic
from caffe2torch.reading import read_recipe
from caffe2torch.testing import assert_optimizer_matches
from caffe2torch.translation import translate
from caffe2torch.verification.report import Report

WITHOUT_DECAY = "param { lr_mult: 2 }"
TEN = "param { lr_mult: 10 decay_mult: 1 } param { lr_mult: 20 decay_mult: 0 }"


def audited(port: Port, folder: Path, **more: Any) -> Report:
    model = port.model()
    optimizer = port.optimizer(model)
    scheduler = None if port.scheduler is None else port.scheduler(optimizer)
    return audit(port.recipe(folder), model, optimizer, scheduler, **port.settings, **more)


def said(report: Report) -> list[str]:
    return [
        *(cause.message for cause in report.causes),
        *(fault.message for check in report.checks for fault in check.faults),
    ]


def wrong(report: Report) -> list[str | None]:
    return [row.parameter for row in report.wrong]


def notebook(model: nn.Module) -> torch.optim.SGD:
    """The rule of the notebook: names with ``bias`` get twice the rate and no decay."""
    return torch.optim.SGD(
        [
            {"params": named(model, lambda n: "bias" not in n and "classifier" not in n), "weight_decay": 0.0005},
            {"params": named(model, lambda n: "bias" in n and "classifier" not in n), "lr": 0.02},
            {"params": [model.conv_classifier.weight], "weight_decay": 0.0005},
            {"params": [model.conv_classifier.bias], "lr": 0.02},
        ],
        momentum=0.9,
        lr=0.01,
    )


def test_the_notebooks_rule_gets_exactly_the_eight_shifts_of_segnet_basic_wrong(fixtures: Path) -> None:
    folder = fixtures / "segnet_basic"
    recipe = read_recipe(folder / "train.prototxt", folder / "solver.prototxt")
    model = SegNetBasic(4, 3)
    report = audit(recipe, model, notebook(model))
    shifts = [f"{name}_bn.bias" for name in (*(f"conv{n}" for n in "1234"), *(f"conv_decode{n}" for n in "4321"))]
    assert wrong(report) == shifts
    assert said(report) == [
        "all 8 BN shifts: lr x2 and no decay, as if they were Convolution biases (Caffe's are lr x1 and decay x1)"
    ]
    assert report.causes[0].parameters == tuple(shifts)


def test_in_full_segnet_the_same_rule_gets_only_the_shifts_rates_wrong(tmp_path: Path) -> None:
    """There BN is written as (1,1) and (1,0)."""
    bn = 'layer {{ name: "conv{0}_bn" type: "BN" bottom: "conv{0}" top: "conv{0}_bn" {1} }}\n'
    params = f"{WEIGHTS} param {{ lr_mult: 1 decay_mult: 0 }}"
    net = vgg_net().replace('"conv1" top: "conv2"', '"conv1_bn" top: "conv2"') + bn.format(1, params)
    net = net.replace("conv_classifier", "score")

    def model() -> nn.Module:
        made = vgg()
        made.add_module("conv1_bn", nn.BatchNorm2d(4))
        return made

    report = audited(Port(net, model, two_groups), tmp_path)
    assert wrong(report) == ["conv1_bn.bias"]
    assert report.wrong[0].reason == "lr is 0.02, Caffe's is 0.01 (2 times as much)"


MISTAKES = {
    "deeplab-resnet: parameters several times, momentum lost, biases decayed": (
        Port(resnet_net(f"{TEN}", f"{WEIGHTS} {WEIGHTS}"), resnet, deeplab_resnet),
        ["no momentum, Caffe's momentum is 0.9", "in group 0 2 times"],
    ),
    "faster-rcnn.pytorch: biases not decayed where only lr_mult is written": (
        Port(vgg_net(f"{WEIGHTS} {WITHOUT_DECAY}"), vgg, two_groups),
        ["all 3 Convolution biases: no decay (Caffe's are lr x2 and decay x1)"],
    ),
    "Detectron.pytorch: momentum corrected the wrong way": (
        Port(vgg_net(), vgg, two_groups, STEP, lambda optimizer: InverseCorrection(optimizer, 300)),
        ["when the rate changes the momentum is scaled by new rate / old rate on top of that"],
    ),
    "ssd.pytorch: one group for all": (
        Port(
            vgg_net(),
            vgg,
            lambda model: torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.0005),
        ),
        ["all 3 Convolution biases: lr x1 and decay x1, as if they were Convolution weights"],
    ),
    "Realtime_Multi-Person_Pose_Estimation: all biases decayed": (
        Port(vgg_net(), vgg, lambda model: two_groups(model, bias_decay=0.0005)),
        ["all 3 Convolution biases: decay x1 (Caffe's are lr x2 and decay x0)"],
    ),
    "PSPNet: norms by a blanket rule, no head at 10x": (
        Port(
            resnet_net(TEN, "param { lr_mult: 1 decay_mult: 0 } param { lr_mult: 1 decay_mult: 0 }"),
            resnet,
            two_groups,
        ),
        [
            "all 2 Scale scales: decay x1, as if they were Convolution weights",
            "all 2 Scale shifts: lr x2",
            "all 2 blobs of layer score: lr 10 times too small",
        ],
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_of_a_published_port_is_found_and_named(name: str, tmp_path: Path) -> None:
    port, expected = MISTAKES[name]
    report = audited(port, tmp_path)
    assert not report.ok
    for message in expected:
        assert any(message in cause for cause in [*said(report), *(row.reason for row in report.wrong)]), str(report)


def test_the_momentum_of_the_wrong_correction_is_as_published() -> None:
    """30 steps after a drop by ten at a constant gradient: Caffe -107.6, stock torch -30.0, that port -22.2."""
    from caffe2torch.recipe import SolverType
    from caffe2torch.solver.update_rules import History, Rule, StepSettings, movements

    settings = [StepSettings(1.0, 0.9, 0.0)] * 200 + [StepSettings(0.1, 0.9, 0.0)] * 30
    weights, gradients = (0.0, *(None,) * 229), (1.0,) * 230
    made = {
        history: sum(movements(Rule(SolverType.SGD, history=history), settings, weights, gradients)[-30:])
        for history in History
    }
    assert made[History.RATE_INSIDE] == pytest.approx(-107.6, abs=0.1)
    assert made[History.RATE_OUTSIDE] == pytest.approx(-30.0, abs=0.1)
    assert made[History.RESCALED_INVERSELY] == pytest.approx(-22.2, abs=0.1)


def heads(model: nn.Module) -> torch.optim.SGD:
    """Four groups, as the DeepLab ports that are right have them."""
    body, head = (lambda name: not name.startswith("score")), (lambda name: name.startswith("score"))
    return torch.optim.SGD(
        [
            {"params": named(model, lambda n: body(n) and not n.endswith("bias")), "lr": 0.01},
            {"params": named(model, lambda n: body(n) and n.endswith("bias")), "lr": 0.02, "weight_decay": 0.0},
            {"params": named(model, lambda n: head(n) and not n.endswith("bias")), "lr": 0.1},
            {"params": named(model, lambda n: head(n) and n.endswith("bias")), "lr": 0.2, "weight_decay": 0.0},
        ],
        lr=0.01,
        momentum=0.9,
        weight_decay=0.0005,
    )


def lr_frozen(model: nn.Module) -> torch.optim.SGD:
    """A layer at lr 0 in its group, another one not in any group."""
    return torch.optim.SGD(
        [
            {"params": list(model.conv1.parameters()), "lr": 0.0},
            {"params": [model.score.weight], "weight_decay": 0.0005},
            {"params": [model.score.bias], "lr": 0.02},
        ],
        lr=0.01,
        momentum=0.9,
    )


FROZEN = "param { lr_mult: 0 decay_mult: 0 } param { lr_mult: 0 decay_mult: 0 }"
RIGHT = {
    "weights and biases": Port(vgg_net(), vgg, two_groups),
    "a head at ten times the rate": Port(vgg_net(head=TEN), vgg, heads),
    "frozen layers, by lr 0 and by absence": Port(vgg_net(FROZEN, f"{WEIGHTS} {BIASES}"), vgg, lr_frozen),
    "momentum corrected as Caffe's": Port(
        vgg_net(), vgg, two_groups, STEP, lambda optimizer: RightCorrection(optimizer, 300)
    ),
    "scheduler of a constant rate": Port(
        vgg_net(), vgg, two_groups, scheduler=lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda _: 1)
    ),
    "iter_size averaged by the loop, which clips as well": Port(
        vgg_net(), vgg, two_groups, SGD_ITER := 'base_lr: 0.01 momentum: 0.9 weight_decay: 0.0005 max_iter: 1000 '
        'lr_policy: "fixed" iter_size: 4 clip_gradients: 10',
    ),
    "AdaGrad": Port(
        vgg_net(f"{WEIGHTS} {WEIGHTS}"), vgg,
        lambda model: torch.optim.Adagrad(model.parameters(), lr=0.01, weight_decay=0.0005, eps=1e-8),
        'type: "AdaGrad" base_lr: 0.01 weight_decay: 0.0005 max_iter: 1000 lr_policy: "fixed"',
    ),
    "RMSProp": Port(
        vgg_net(f"{WEIGHTS} {WEIGHTS}"), vgg,
        lambda model: torch.optim.RMSprop(model.parameters(), lr=0.01, alpha=0.98),
        'type: "RMSProp" base_lr: 0.01 rms_decay: 0.98 max_iter: 1000 lr_policy: "fixed"',
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_port_is_not_blamed(name: str, tmp_path: Path) -> None:
    report = audited(RIGHT[name], tmp_path)
    assert report.ok, str(report)


OTHERS = {
    "decay divided by iter_size": (
        Port(vgg_net(), vgg, lambda model: two_groups(model, lr=0.0025), SGD_ITER),
        ["weight_decay is 0.000125, Caffe's is 0.0005: it is divided by iter_size, which is 4"],
    ),
    "stock momentum over a drop": (
        Port(vgg_net(), vgg, two_groups, STEP, lambda o: torch.optim.lr_scheduler.StepLR(o, 300, 0.1)),
        ["when the rate changes the momentum forgets the rates it was made with"],
    ),
    "a scheduler that counts epochs": (
        Port(vgg_net(), vgg, two_groups, STEP, lambda o: torch.optim.lr_scheduler.StepLR(o, 10, 0.1)),
        ["at iteration 10, Caffe's first at iteration 300"],
    ),
    "a scheduler that never changes the rate": (
        Port(vgg_net(), vgg, two_groups, STEP, lambda o: torch.optim.lr_scheduler.ConstantLR(o, 1.0)),
        ["the scheduler leaves the rate as it is; Caffe's first changes at iteration 300"],
    ),
    "a scheduler that flattens the multipliers": (
        Port(
            vgg_net(), vgg, two_groups, STEP,
            lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 1, eta_min=0.005),
        ),
        ["at iteration 1 the scheduler makes every lr 0.005, whatever its group says; Caffe's are 0.01 and 0.02"],
    ),
    "AdamW for Adam": (
        Port(
            vgg_net(f"{WEIGHTS} {WEIGHTS}"), vgg,
            lambda model: torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0005),
            'type: "Adam" base_lr: 0.01 momentum: 0.9 weight_decay: 0.0005 max_iter: 1000 lr_policy: "fixed"',
        ),
        ["epsilon is added inside the bias correction", "weight decay shrinks the weight by itself"],
    ),
    "Adam's epsilon": (
        Port(
            vgg_net(f"{WEIGHTS} {WEIGHTS}"), vgg,
            lambda model: torch.optim.Adam(model.parameters(), lr=0.01, eps=0.1),
            'type: "Adam" base_lr: 0.01 momentum: 0.9 delta: 0.1 max_iter: 1000 lr_policy: "fixed"',
        ),
        ["epsilon is added inside the bias correction, Caffe adds delta to the uncorrected root"],
    ),
    "Nesterov for SGD": (
        Port(vgg_net(), vgg, lambda model: nesterov(two_groups(model))),
        ["it steps as Nesterov, the solver is SGD"],
    ),
    "dampening": (
        Port(vgg_net(), vgg, lambda model: dampened(two_groups(model))),
        ["dampened by 0.9"],
    ),
    "L1 for L2": (
        Port(
            vgg_net(), vgg, two_groups,
            'base_lr: 0.01 momentum: 0.9 weight_decay: 0.0005 max_iter: 1000 lr_policy: "fixed" '
            'regularization_type: "L1"',
        ),
        ["weight decay is L2, Caffe's is L1"],
    ),
    "ascent": (
        Port(vgg_net(), vgg, lambda model: ascending(two_groups(model))),
        ["the weights go up the gradient"],
    ),
}  # fmt: skip


def nesterov(optimizer: torch.optim.SGD) -> torch.optim.SGD:
    for group in optimizer.param_groups:
        group["nesterov"] = True
    return optimizer


def dampened(optimizer: torch.optim.SGD) -> torch.optim.SGD:
    for group in optimizer.param_groups:
        group["dampening"] = 0.9
    return optimizer


def ascending(optimizer: torch.optim.SGD) -> torch.optim.SGD:
    for group in optimizer.param_groups:
        group["maximize"] = True
    return optimizer


@pytest.mark.parametrize("name", OTHERS)
def test_other_departures_are_named_for_what_they_are(name: str, tmp_path: Path) -> None:
    port, expected = OTHERS[name]
    report = audited(port, tmp_path)
    assert not report.ok
    for message in expected:
        assert any(message in line for line in [*said(report), *(row.reason for row in report.wrong)]), str(report)


def test_a_departure_that_is_accepted_makes_nothing_wrong_and_is_counted(tmp_path: Path) -> None:
    port, _ = OTHERS["stock momentum over a drop"]
    report = audited(port, tmp_path, accept=["rate_change"])
    assert report.ok
    assert [(check.name, check.result) for check in report.checks if check.result != "ok"] == [
        ("momentum at rate changes", "accepted")
    ]
    assert str(report).splitlines()[-1] == "6 blobs, 6 parameters: all ok; 1 check accepted"
    with pytest.raises(Caffe2TorchError, match="no kind of departure called 'momentun'"):
        audited(port, tmp_path, accept=["momentun"])


def test_translated_optimizers_pass_their_own_audit(fixtures: Path) -> None:
    folder = fixtures / "segnet_basic"
    t = translate(folder / "train.prototxt", folder / "solver.prototxt", finetune={"conv_classifier": 10})
    assert audit(t.recipe, t.model, t.optimizer, t.scheduler, finetune={"conv_classifier": 10}).ok
    assert len(audit(t.recipe, t.model, t.optimizer, t.scheduler).wrong) == 2


EMITTED = {
    "SGD": 'lr_policy: "step" gamma: 0.1 stepsize: 300 momentum: 0.9 iter_size: 2 clip_gradients: 35',
    "Nesterov": 'lr_policy: "poly" power: 0.9 momentum: 0.9',
    "AdaGrad": 'lr_policy: "exp" gamma: 0.999',
    "RMSProp": 'lr_policy: "inv" gamma: 0.001 power: 0.75 rms_decay: 0.98',
    "AdaDelta": 'lr_policy: "sigmoid" gamma: 0.01 stepsize: 500 momentum: 0.95 delta: 1e-6',
    "Adam": 'lr_policy: "multistep" gamma: 0.5 stepvalue: 30 stepvalue: 30 momentum: 0.9 regularization_type: "L1"',
}


@pytest.mark.parametrize("solver", EMITTED)
def test_an_emitted_file_passes_the_audit(solver: str, tmp_path: Path) -> None:
    """Its optimizer and scheduler are foreign tensors to the audit: torch alone, no class of this package."""
    text = f'type: "{solver}" base_lr: 0.01 weight_decay: 0.0005 max_iter: 1000 {EMITTED[solver]}'
    port = Port(vgg_net(head=TEN), vgg, two_groups, text)
    model = port.model()
    emitted = load(translate(port.recipe(tmp_path), model=model).source(), f"emitted_{solver}")
    optimizer = emitted.build_optimizer(model)
    scheduler = emitted.build_scheduler(optimizer)
    assert type(optimizer).__module__ != "caffe2torch.optim.solvers"
    report = audit(port.recipe(tmp_path), model, optimizer, scheduler)
    assert report.ok, str(report)
    assert not any("was not looked at" in note.message for note in report.notes)


@pytest.mark.parametrize("solver", EMITTED)
def test_the_middle_of_a_run_is_audited_at_its_own_iteration(solver: str, tmp_path: Path) -> None:
    text = f'type: "{solver}" base_lr: 0.01 weight_decay: 0.0005 max_iter: 1000 {EMITTED[solver]}'
    port = Port(vgg_net(head=TEN), vgg, two_groups, text)
    t = translate(port.recipe(tmp_path), model=port.model())
    for _ in range(33):
        for parameter in t.model.parameters():
            parameter.grad = torch.randn_like(parameter)
        t.optimizer.step()
        t.scheduler.step()
    report = audit(t.recipe, t.model, t.optimizer, t.scheduler)
    assert report.ok, str(report)
    assert report.iteration == 33
    assert report.rows[0].observed.lr == pytest.approx(t.optimizer.param_groups[0]["lr"], rel=1e-5)
    alone = audit(t.recipe, t.model, t.optimizer, iteration=33)
    assert alone.ok, str(alone)
    assert alone.iteration == 33


def test_what_is_no_model_optimizer_or_scheduler_is_refused(tmp_path: Path) -> None:
    port = RIGHT["weights and biases"]
    recipe, model = port.recipe(tmp_path), vgg()
    optimizer = two_groups(model)
    other = torch.optim.lr_scheduler.ConstantLR(two_groups(model))
    with pytest.raises(ModelError, match=r"not a torch\.nn\.Module"):
        audit(recipe, [], optimizer)  # type: ignore[arg-type]  # the point of the test
    with pytest.raises(ModelError, match="no param_groups and step"):
        audit(recipe, model, model)
    with pytest.raises(ModelError, match=r"which has no step\(\)"):
        audit(recipe, model, optimizer, 7)
    with pytest.raises(ModelError, match="another optimizer"):
        audit(recipe, model, optimizer, other)
    with pytest.raises(SolverError, match="no solver is given"):
        audit(read_recipe(tmp_path / "train.prototxt"), model, optimizer)


@pytest.mark.parametrize("name", MISTAKES)
def test_every_wrong_row_has_one_cause_with_its_place(name: str, tmp_path: Path) -> None:
    report = audited(MISTAKES[name][0], tmp_path)
    explained = [parameter for cause in report.causes for parameter in cause.parameters]
    assert sorted(explained) == sorted({row.name for row in report.wrong})
    for cause in report.causes:
        stated = {str(row.blob.where) for row in report.rows if row.name in cause.parameters}
        assert set(cause.places) == stated
        assert not cause.parameters or cause.where.startswith(cause.places[0])


def test_the_code_of_the_causes_put_into_the_groups_makes_the_audit_ok(tmp_path: Path) -> None:
    mended = 0
    for name in MISTAKES:
        port = MISTAKES[name][0]
        recipe, model = port.recipe(tmp_path), port.model()
        report = audit(recipe, model, port.optimizer(model), **port.settings)
        if not report.wrong or report.differing or not all(cause.code.startswith("{") for cause in report.causes):
            continue
        wrong = {row.name for row in report.wrong}
        right = [
            {
                "params": [model.get_parameter(row.name)],
                "lr": row.expected.lr,
                "weight_decay": row.expected.weight_decay,
            }
            for row in report.rows
            if row.name not in wrong and row.expected.lr
        ]
        groups = [group for cause in report.causes for group in eval(f"[{cause.code}]", {"model": model})]
        again = audit(recipe, model, torch.optim.SGD([*groups, *right], momentum=0.9), **port.settings)
        assert again.ok, f"{name}\n{again}"
        mended += 1
    assert mended >= 3


def test_a_report_has_the_names_of_the_param_groups(tmp_path: Path) -> None:
    recipe, model = Port(vgg_net(), vgg, two_groups).recipe(tmp_path), vgg()
    t = translate(recipe, model=model, finetune={"score": 10})
    names = tuple(group.name for group in t.groups)
    assert "score: lr x10, decay x1" in names
    listed = "; ".join(f"{index} {name}" for index, name in enumerate(names))
    assert f"Groups: {listed}." in " ".join(str(t.report).split())
    assert t.report.to_dict()["groups"] == list(names)
    mine = torch.optim.SGD(
        [{"params": [model.conv1.weight], "name": "first"}, {"params": [model.conv2.weight]}], lr=0.1
    )
    assert "Groups: 0 first; 1 -." in str(audit(recipe, model, mine))
    assert "Groups:" not in str(audit(recipe, model, two_groups(model)))


def test_the_assertion_fails_shortly_and_exactly(tmp_path: Path) -> None:
    port, _ = MISTAKES["ssd.pytorch: one group for all"]
    model = port.model()
    with pytest.raises(AssertionError) as failure:
        assert_optimizer_matches(port.recipe(tmp_path), model, port.optimizer(model))
    lines = str(failure.value).splitlines()
    assert lines[0] == "3 of 6 rows ok, 3 mismatch"
    assert lines[1].startswith("- all 3 Convolution biases: lr x1 and decay x1")
    assert lines[1].endswith("Fix: move them to a group with lr 0.02, weight_decay 0")
    assert len(lines) == 2
    one_wrong = two_groups(model)
    one_wrong.param_groups[1]["params"].remove(model.conv1.bias)
    with pytest.raises(AssertionError) as failure:
        assert_optimizer_matches(port.recipe(tmp_path), model, one_wrong)
    lines = str(failure.value).splitlines()
    assert lines[1].startswith("- conv1.bias: no param group holds it [")
    assert lines[1].endswith(
        'train.prototxt:2:106]. Fix: add it to the group of "conv2.bias" (lr 0.02, weight_decay 0)'
    )
    assert_optimizer_matches(port.recipe(tmp_path), model, two_groups(model))


def test_the_hand_made_recipe_and_the_audit_agree() -> None:
    """The net of the probe's own tests, through the audit's door."""
    from small_net import recipe_of

    model = SmallNet()
    recipe, _ = recipe_of(model)
    assert recipe.solver == SOLVER
    assert audit(recipe, model, torch.optim.SGD(groups_of(model), momentum=0.9)).ok
