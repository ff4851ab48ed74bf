"""A report has every blob in exactly one row, every parameter in one row or left over, and blames what deserves it."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from small_net import SGD, SmallNet, groups_of, recipe_of, report_of, wrong

from caffe2torch.binding.plan import Binding, BoundBlob, Evidence, Kind, Unclaimed, plan_groups
from caffe2torch.optim.build import build_optimizer
from caffe2torch.recipe import (
    BlobUse,
    LearnableBlob,
    LrPolicy,
    Note,
    PolicyType,
    Severity,
    SourceLocation,
    Stated,
    Statement,
    TrainingRecipe,
)
from caffe2torch.verification.report import FaultKind, Report
from caffe2torch.verification.run_probe import observe
from caffe2torch.verification.verify import verify

FORCED = Stated(Statement.FORCED, Statement.FORCED)
PLACE = SourceLocation("train.prototxt", 5, 1)


def statistics(
    names: tuple[str | None, str | None, None] = ("conv1_bn.running_mean", "conv1_bn.running_var", None),
) -> list[BoundBlob]:
    """BatchNorm's three blobs: two buffers and a factor that torch lacks."""
    made = []
    for index, (role, name) in enumerate(zip(("mean", "variance", "factor"), names, strict=True)):
        blob = LearnableBlob("bn", "BatchNorm", index, role, (4,), 0.0, 1.0, FORCED, PLACE)
        made.append(BoundBlob(blob, Kind.BUFFER if name else Kind.NONE, name, "equal names"))
    return made


def report_with(
    extra: list[BoundBlob], unclaimed: tuple[Unclaimed, ...] = (), model: torch.nn.Module | None = None
) -> Report:
    net = SmallNet()
    recipe, binding = recipe_of(net)
    recipe = replace(recipe, blobs=(*recipe.blobs, *(bound.blob for bound in extra)))
    binding = replace(binding, blobs=(*binding.blobs, *extra), unclaimed=unclaimed)
    groups = groups_of(net)
    if model is not None:
        net.add_module("extra", model)
        groups[0]["params"] += list(model.parameters())
    seen = observe(net, torch.optim.SGD(groups, momentum=0.9), SGD)
    return verify(recipe, binding, plan_groups(recipe, binding), seen)


def test_every_blob_and_every_parameter_stands_once() -> None:
    left = (Unclaimed("extra.weight", (2, 3), 1.0, 1.0), Unclaimed("extra.bias", (2,), 1.0, 1.0))
    report = report_with(statistics(), left, torch.nn.Linear(3, 2))
    data = report.to_dict()
    assert report.ok, str(report)
    rows, unclaimed = data["parameters"], data["unclaimed_parameters"]
    assert isinstance(rows, list)
    assert isinstance(unclaimed, list)
    assert Counter((row["layer"], row["blob"]) for row in rows).most_common(1)[0][1] == 1
    assert len(rows) == 13
    names = [row["parameter"] for row in rows if row["kind"] == "parameter"] + [row["parameter"] for row in unclaimed]
    model = SmallNet()
    model.add_module("extra", torch.nn.Linear(3, 2))
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert data["unbound_blobs"] == ["bn/2"]
    assert [row["kind"] for row in rows[-3:]] == ["buffer", "buffer", "none"]


def test_a_parameter_without_a_blob_must_be_meant() -> None:
    """Trained without a word it is wrong; with multipliers it is held to them; frozen and left out it is fine."""
    unmeant = report_with([], (), torch.nn.PReLU())
    assert wrong(unmeant) == {"extra.weight": "mismatch"}
    assert unmeant.wrong[0].reason == "no blob of the net stands for it, and the optimizer trains it"
    other = report_with([], (Unclaimed("extra.weight", (1,), 2.0, 1.0),), torch.nn.PReLU())
    assert other.wrong[0].reason == "lr is 0.1, you stated 0.2 (2 times too small)"
    model, meant = SmallNet(), SmallNet()
    for one, frozen in ((model, True), (meant, False)):
        one.extra = torch.nn.PReLU()
        one.extra.weight.requires_grad_(not frozen)
    recipe, binding = recipe_of(SmallNet())
    for one, verdicts in ((model, {}), (meant, {"extra.weight": "missing"})):
        groups = groups_of(one)
        groups[0]["params"] = [p for p in groups[0]["params"] if p is not one.extra.weight]
        seen = observe(one, torch.optim.SGD(groups, momentum=0.9), SGD)
        assert wrong(verify(recipe, binding, plan_groups(recipe, binding), seen)) == verdicts


def test_a_blob_that_learns_in_caffe_cannot_be_a_buffer_or_nothing() -> None:
    blob = LearnableBlob("scale", "Scale", 0, "scale", (4,), 1.0, 1.0, FORCED, PLACE)
    as_buffer = report_with([BoundBlob(blob, Kind.BUFFER, "conv1_bn.running_mean", "the user's names")])
    assert wrong(as_buffer) == {"conv1_bn.running_mean": "mismatch"}
    as_nothing = report_with([BoundBlob(blob, Kind.NONE, None, "nothing")])
    assert [row.reason for row in as_nothing.wrong] == ["nothing in the model stands for it; Caffe trains it"]
    skipped = report_with([BoundBlob(blob, Kind.NONE, None, Evidence.SKIPPED)])
    assert skipped.ok
    assert skipped.rows[-1].verdict == "skipped"
    assert "10 of 11 rows ok, 1 skipped" in str(skipped)


def test_two_blobs_for_one_parameter_are_a_duplicate() -> None:
    blob = LearnableBlob("copy", "Convolution", 0, "weight", (4, 3, 3, 3), 1.0, 1.0, FORCED, PLACE)
    report = report_with([BoundBlob(blob, Kind.PARAMETER, "conv1.weight", "the user's names")])
    assert [row.verdict for row in report.wrong] == ["duplicate", "duplicate"]
    assert "2 blobs stand for this one parameter" in report.wrong[0].reason


def test_a_shared_blob_is_one_row() -> None:
    model = SmallNet()
    recipe, binding = recipe_of(model)
    shared = replace(
        recipe.blobs[0], shared_with=(BlobUse("conv1_p", "Convolution", 0, SourceLocation("t.prototxt", 9, 3)),)
    )
    recipe = replace(recipe, blobs=(shared, *recipe.blobs[1:]))
    binding = replace(binding, blobs=(replace(binding.blobs[0], blob=shared), *binding.blobs[1:]))
    seen = observe(model, torch.optim.SGD(groups_of(model), momentum=0.9), SGD)
    report = verify(recipe, binding, plan_groups(recipe, binding), seen)
    assert report.ok
    row = report.rows[0].to_dict()
    assert row["shared_with"] == [
        {"layer": "conv1_p", "layer_type": "Convolution", "blob": 0, "where": "t.prototxt:9:3"}
    ]
    assert "conv1/0 weight +1 shared" in str(report)


def test_fine_tuning_factors_are_expected_and_told() -> None:
    model = SmallNet()
    recipe, binding = recipe_of(model)
    groups = plan_groups(recipe, binding, {"conv_classifier": 10})
    report = verify(recipe, binding, groups, observe(model, build_optimizer(model, groups, SGD), SGD))
    assert report.ok
    weight, bias = (row.to_dict() for row in report.rows[-2:])
    assert (weight["finetune"], weight["lr_mult"], weight["expected"]) == (10, 1, {"lr": 1.0, "weight_decay": 0.0005})
    assert (bias["finetune"], bias["lr_mult"], bias["expected"]) == (10, 2, {"lr": 2.0, "weight_decay": 0.0})
    plain = plan_groups(recipe, binding)
    assert sorted(wrong(verify(recipe, binding, groups, observe(model, build_optimizer(model, plain, SGD), SGD)))) == [
        "conv_classifier.bias",
        "conv_classifier.weight",
    ]


def test_a_frozen_blob_is_right_at_rate_0_left_out_or_without_gradient_and_wrong_when_trained() -> None:
    frozen = ((0.0, 1.0), (0.0, 0.0))
    for how in ("lr 0", "left out", "requires_grad", "trained"):
        model = SmallNet()
        recipe, binding = recipe_of(model, others=frozen)
        norms = [p for n, p in model.named_parameters() if "_bn" in n]
        convolutions = [p for n, p in model.named_parameters() if "_bn" not in n]
        groups = [{"params": norms, "lr": 0.1, "weight_decay": 0.0005}]
        if how != "left out":
            groups.append({"params": convolutions, "lr": 0.0 if how == "lr 0" else 0.1})
        for p in convolutions:
            p.requires_grad_(how != "requires_grad")
        seen = observe(model, torch.optim.SGD(groups, momentum=0.9), SGD)
        report = verify(recipe, binding, plan_groups(recipe, binding), seen)
        assert report.ok == (how != "trained"), how
        assert report.rows[0].expected.lr == 0
        assert report.rows[0].expected.weight_decay == pytest.approx(0.0005)
        assert report.rows[0].to_dict()["trainable"] is False
        if how == "trained":
            assert report.rows[0].reason == "it is trained at lr 0.1; Caffe freezes it"
        else:
            assert report.rows[0].to_dict()["observed"] == {"lr": 0.0, "weight_decay": None}


def test_the_contract_of_a_row_and_of_the_whole() -> None:
    model = SmallNet()
    report = report_of(model, torch.optim.SGD(groups_of(model), momentum=0.9))
    data = report.to_dict()
    assert list(data)[:4] == ["ok", "net", "model", "iteration"]
    assert {key: data[key] for key in ("ok", "net", "model")} == {"ok": True, "net": "small", "model": "SmallNet"}
    solver = data["solver"]
    assert isinstance(solver, dict)
    assert solver["type"] == "SGD"
    assert solver["lr_policy"] == "fixed"
    assert (solver["base_lr"], solver["momentum"], solver["weight_decay"]) == (0.1, 0.9, 0.0005)
    rows = data["parameters"]
    assert isinstance(rows, list)
    wanted = {
        "layer": "conv1", "blob": 0, "role": "weight", "parameter": "conv1.weight", "kind": "parameter",
        "shape": [4, 3, 3, 3], "lr_mult": 1.0, "decay_mult": 1.0,
        "stated": {"lr_mult": "explicit", "decay_mult": "explicit"}, "where": "train.prototxt:14:3", "group": 0,
        "trainable": True, "expected": {"lr": 0.1, "weight_decay": 0.0005},
        "observed": {"lr": 0.1, "weight_decay": 0.0005}, "verdict": "ok", "reason": "",
    }  # fmt: skip
    assert {key: rows[0][key] for key in wanted} == wanted


def test_sizes_that_are_not_known_are_null() -> None:
    model = SmallNet()
    recipe, binding = recipe_of(model)
    unknown = [replace(recipe.blobs[0], shape=(4, None, 3, 3)), replace(recipe.blobs[1], shape=None)]
    recipe = replace(recipe, blobs=(*unknown, *recipe.blobs[2:]))
    bound = [replace(one, blob=blob) for one, blob in zip(binding.blobs, recipe.blobs, strict=True)]
    binding = Binding("SmallNet", tuple(bound))
    seen = observe(model, torch.optim.SGD(groups_of(model), momentum=0.9), SGD)
    report = verify(recipe, binding, plan_groups(recipe, binding), seen)
    assert [row.to_dict()["shape"] for row in report.rows[:2]] == [[4, None, 3, 3], None]


def test_a_rate_that_is_nan_in_caffe_is_nan_here_too() -> None:
    """poly without max_iter: NaN from the first iteration on, which JSON has no number for."""
    policy = LrPolicy(PolicyType.POLY, base_lr=0.1, power=0.5)
    solver = replace(SGD, policy=policy)
    model = SmallNet()
    recipe, binding = recipe_of(model, solver)
    groups = plan_groups(recipe, binding)
    report = verify(recipe, binding, groups, observe(model, build_optimizer(model, groups, solver), solver))
    assert math.isnan(report.rows[0].expected.lr or 0.0)
    assert report.ok, str(report)
    assert report.rows[0].to_dict()["expected"] == {"lr": None, "weight_decay": 0.0005}


def test_what_is_not_finite_in_caffe_is_not_finite_here_either() -> None:
    """iter_size 0 divides by zero; a rate of NaN reaches frozen blobs too, for 0 times NaN is NaN."""
    model = SmallNet()
    for solver, others in (
        (replace(SGD, iter_size=0), ((1.0, 1.0), (2.0, 0.0))),
        (replace(SGD, policy=LrPolicy(PolicyType.POLY, 0.1, power=0.5)), ((0.0, 1.0), (0.0, 0.0))),
    ):
        recipe, binding = recipe_of(model, solver, others=others)
        groups = plan_groups(recipe, binding)
        report = verify(recipe, binding, groups, observe(model, build_optimizer(model, groups, solver), solver))
        assert report.ok, str(report)
    finite = verify(recipe, binding, groups, observe(model, torch.optim.SGD(groups_of(model), momentum=0.9), solver))
    assert len(finite.wrong) == 4  # the frozen ones stay where they are, which only a hook of ours changes


def test_what_was_not_looked_at_is_noted() -> None:
    model = SmallNet()
    solver = replace(SGD, policy=LrPolicy(PolicyType.STEP, 0.1, gamma=0.1, stepsize=10), max_iter=100)
    report = report_of(model, torch.optim.SGD(groups_of(model), momentum=0.9), solver)
    assert report.ok
    schedule = next(check for check in report.checks if check.name == "rate schedule")
    assert schedule.result == "not seen"
    assert "no scheduler was given: only the rate of iteration 0 was looked at" in schedule.seen

    class Slow(torch.optim.lr_scheduler.LRScheduler):
        def get_lr(self) -> list[float]:
            return [group["lr"] for group in self.optimizer.param_groups]

    far = replace(solver, policy=replace(solver.policy, stepsize=600_000), max_iter=10**7)
    optimizer = torch.optim.SGD(groups_of(model), momentum=0.9)
    report = report_of(model, optimizer, far, Slow(optimizer))
    assert [note.severity for note in report.notes] == [Severity.WARNING] * 3
    assert "iteration 599998 was not looked at: it is 599998 steps of the scheduler away" in report.notes[0].message


def test_notes_of_recipe_binding_and_caller_are_passed_on() -> None:
    model = SmallNet()
    recipe, binding = recipe_of(model)
    notes = [Note(PLACE, Severity.INFO, said) for said in ("of the net", "of the binding", "of the caller")]
    recipe = TrainingRecipe(recipe.net_name, recipe.blobs, recipe.solver, (notes[0],))
    binding = replace(binding, notes=(notes[1],))
    seen = observe(model, torch.optim.SGD(groups_of(model), momentum=0.9), SGD)
    report = verify(recipe, binding, plan_groups(recipe, binding), seen, notes=notes[2:])
    assert list(report.notes) == notes


def test_clipping_is_measured_where_the_solver_clips() -> None:
    solver = replace(SGD, clip_gradients=5.0)
    model = SmallNet()
    recipe, binding = recipe_of(model, solver)
    groups = plan_groups(recipe, binding)
    for clip, message in ((5.0, None), (2.0, "clips gradients at a norm of 2;"), (None, None)):
        optimizer = build_optimizer(model, groups, replace(solver, clip_gradients=clip))
        report = verify(recipe, binding, groups, observe(model, optimizer, solver))
        assert report.ok == (message is None)
        assert not report.wrong
        clipping = report.checks[-1]
        assert clipping.name == "clipping"
        if clip == 5:
            assert (clipping.result, clipping.seen) == ("ok", "inside the step, at a norm of 5")
        elif clip is None:  # which the loop may do
            assert (clipping.result, clipping.kinds) == ("not seen", ())
            assert "your loop has to, at a norm of 5" in clipping.seen
        else:
            assert message in clipping.text
            assert clipping.kinds == (FaultKind.CLIP,)
    ours = verify(recipe, binding, groups, observe(model, optimizer, solver), translating=True)
    assert ours.differing == (ours.checks[-1],)
    assert "clips gradients at no norm" in ours.checks[-1].text


def test_a_parameter_that_its_user_froze_is_a_warning_in_a_translation_and_a_fault_in_an_audit() -> None:
    model = SmallNet()
    recipe, binding = recipe_of(model)
    groups = plan_groups(recipe, binding)
    model.conv1.weight.requires_grad_(False)
    for held in (True, False):
        optimizer = torch.optim.SGD(groups_of(model), momentum=0.9)
        if not held:
            optimizer.param_groups[0]["params"].pop(0)
        seen = observe(model, optimizer, SGD)
        audited = verify(recipe, binding, groups, seen)
        assert wrong(audited) == {"conv1.weight": "frozen"}
        assert not audited.ok
        accepted = audited.accepting([FaultKind.FROZEN])
        assert accepted.ok
        assert accepted.rows[0].verdict == "accepted"
        translated = verify(recipe, binding, groups, seen, translating=True)
        assert translated.ok
        assert translated.rows[0].verdict == "frozen"
        assert "1 parameter that Caffe trains stay frozen: conv1.weight" in str(translated)
