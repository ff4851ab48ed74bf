"""The forks' solver fields: translated, refused by name, or noted as harmless."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
from solver_texts import PLAIN, read

from caffe2torch.errors import SolverError
from caffe2torch.recipe import (
    LrPolicy,
    PolicyType,
    Ramp,
    Severity,
)
from caffe2torch.solver.fork_rules import FORK_FIELDS, Meaning


def test_stages_are_read() -> None:
    settings, notes = read(
        'lr_policy: "multifixed" stagelr: 0.0001 stagelr: 0.001 stageiter: 1000 stageiter: 40000 max_iter: 40000'
    )
    assert settings.policy.stage_lrs == (0.0001, 0.001)
    assert settings.policy.stage_iters == (1000, 40000)
    assert settings.unsupported == ()
    assert [note.message for note in notes] == [
        "stagelr is Intel's and MobileNet-YOLO's field, translated",
        "stageiter is Intel's and MobileNet-YOLO's field, translated",
    ]


def test_warm_up_ramp_up_and_floor_are_read() -> None:
    policy = read(PLAIN + "warmup_iter: 50 warmup_start_lr: 0.003")[0].policy
    assert (policy.warmup_iter, policy.warmup_start_lr) == (50, 0.003)
    policy = read(PLAIN + "rampup_interval: 50 rampup_lr: 0.3 min_lr: 1.e-5")[0].policy
    assert (policy.rampup_interval, policy.rampup_lr, policy.min_lr) == (50, 0.3, 1e-5)


@pytest.mark.parametrize("text", ["warmup_iter: 0 warmup_start_lr: 1", "rampup_interval: 0 rampup_lr: 1"])
def test_a_warm_up_of_no_iterations_is_none(text: str) -> None:
    settings, notes = read(PLAIN + text)
    assert settings.policy == LrPolicy(PolicyType.FIXED, base_lr=0.1, max_iter=9)
    assert all("without effect here" in note.message for note in notes)


def test_momentum_and_decay_policies_are_read() -> None:
    settings, _ = read(
        PLAIN + 'momentum: 0.9 momentum_policy: "poly" max_momentum: 0.95 momentum_power: 2 '
        'weight_decay: 0.1 weight_decay_policy: "poly" max_weight_decay: 0.5 weight_decay_power: 1'
    )
    assert settings.momentum_ramp == Ramp(0.95, 2.0, 9)
    assert settings.weight_decay_ramp == Ramp(0.5, 1.0, 9)
    assert settings.momentum_from_rate is None
    assert read(PLAIN + 'momentum_policy: "opt" max_momentum: 0.95')[0].momentum_from_rate == 0.95
    assert read(PLAIN + 'momentum_policy: "opt"')[0].momentum_from_rate == math.inf
    assert read(PLAIN + 'momentum_policy: "fixed" max_momentum: 0.95')[0].momentum_ramp is None


def test_adam_does_not_read_a_momentum_policy() -> None:
    settings, _ = read(PLAIN + 'type: "Adam" momentum: 0.9 momentum_policy: "poly" max_momentum: 0.95')
    assert settings.momentum_ramp is None


REFUSED_BY_FORKS = {
    'lr_policy: "multifixed"': ("1:1", "lr_policy 'multifixed' needs a stageiter for each stagelr"),
    'lr_policy: "multifixed" stagelr: 1': ("1:1", "lr_policy 'multifixed' needs a stageiter for each stagelr"),
    'lr_policy: "multifixed" stagelr: "x" stageiter: 1': ("1:25", "stagelr takes a number"),
    'lr_policy: "multifixed" stagelr: 1 stageiter: 1.5': ("1:36", "stageiter takes a whole number"),
    'lr_policy: "fixed" min_lr: -1': ("1:20", "min_lr must not be negative"),
    'lr_policy: "poly" base_lr: 0.1 min_lr: 0.2': ("1:32", "min_lr must not be negative"),
    'lr_policy: "fixed" min_lr { }': ("1:20", "min_lr takes a number"),
    'lr_policy: "fixed" larc: 2': ("1:20", "larc takes true or false"),
    'lr_policy: "fixed" min_lr: 0 min_lr: 1': ("1:30", "min_lr is stated 2 times"),
    'lr_policy: "fixed" momentum_policy: "cosine"': ("1:20", "unknown momentum_policy 'cosine'"),
    'lr_policy: "fixed" warmup_iter: 5 rampup_interval: 5': ("1:35", "no Caffe reads both warmup_iter"),
}


@pytest.mark.parametrize("text", REFUSED_BY_FORKS)
def test_what_a_fork_refuses_is_refused_with_its_place(text: str) -> None:
    place, message = REFUSED_BY_FORKS[text]
    with pytest.raises(SolverError) as caught:
        read(text)
    assert str(caught.value.where) == f"solver.prototxt:{place}"
    assert caught.value.message.startswith(message)


UNSUPPORTED = {
    'lr_policy: "plateau" gamma: 0.1 plateau_winsize: 5': ("plateau", "1:1"),
    'lr_policy: "plateau" gamma: 0.1': ("plateau", "1:1"),
    'lr_policy: "fixed" larc_eta: 0.1 larc: true larc_policy: "clip"': ("larc", "1:34"),
    'lr_policy: "fixed" local_lr_auto: true local_gw_ratio: 0.1': ("local_lr_auto", "1:20"),
    'lr_policy: "fixed" stepearly: 1': ("stepearly", "1:20"),
    'lr_policy: "fixed" momentum_end: 0.5': ("momentum_start", "1:20"),
    'lr_policy: "fixed" update_interval: 2': ("update_interval", "1:20"),
    'lr_policy: "fixed" disabled_update: true': ("disabled_update", "1:20"),
    'lr_policy: "fixed" lookahead_steps: 6 lookahead: true': ("lookahead", "1:39"),
    'lr_policy: "fixed" rectified: true': ("rectified", "1:20"),
    'lr_policy: "fixed" decoupled: true': ("decoupled", "1:20"),
    'lr_policy: "fixed" amsgrad: true': ("amsgrad", "1:20"),
    'lr_policy: "fixed" weight_decay_policy: "poly" max_weight_decay: 1': ("weight_decay_policy", "1:20"),
}


@pytest.mark.parametrize("text", UNSUPPORTED)
def test_a_rule_that_is_not_translated_is_named_with_its_place_and_reason(text: str) -> None:
    settings, notes = read(text + " base_lr: 1 max_iter: 9")
    (one,) = settings.unsupported
    assert (one.name, str(one.where)) == (UNSUPPORTED[text][0], f"solver.prototxt:{UNSUPPORTED[text][1]}")
    assert one.reason
    stated = [note for note in notes if note.severity is Severity.WARNING and "not translated" in note.message]
    assert stated or one.name == "plateau"


@pytest.mark.parametrize(
    "text", ["larc: false larc_eta: 0.1", "local_lr_auto: false", "plateau_winsize: 5", "update_interval: 1"]
)
def test_a_rule_that_is_off_changes_nothing(text: str) -> None:
    settings, notes = read(PLAIN + text)
    assert settings == read(PLAIN)[0]
    assert all("without effect here" in note.message for note in notes)


@pytest.mark.parametrize("name", [name for name, row in FORK_FIELDS.items() if row.meaning is Meaning.HARMLESS])
def test_a_harmless_field_changes_nothing_and_is_noted_once(name: str) -> None:
    value = "[0, 1]" if name == "device_id" else "1"
    settings, notes = read(PLAIN + f"{name}: {value}")
    assert settings == read(PLAIN)[0]
    (note,) = notes
    assert note.severity is Severity.INFO
    assert note.message.startswith(f"{name} is ")


def test_an_unknown_field_keeps_its_schemas_note() -> None:
    (note,) = read(PLAIN + "weight_dacay: 0.1")[1]
    assert note.severity is Severity.WARNING
    assert "weight_dacay" in note.message
    assert "weight_decay" in note.message


@pytest.mark.shared
def test_every_solver_field_that_a_fork_added_is_classified(shared: Path) -> None:
    with (shared / "schema" / "proto_merge.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["message"] == "SolverParameter"]
    added = {row["field"] for row in rows if row["in_bvlc"] == "0"}
    assert len(added) > 30
    assert added <= FORK_FIELDS.keys()
