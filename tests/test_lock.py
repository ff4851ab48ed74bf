"""A lock file holds all that an audit needs, is the same on every run, and is refused where it is none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from small_net import SGD, SmallNet, groups_of, recipe_of, wrong
from solver_strategies import solvers
from torch import nn

from caffe2torch.auditing import audit
from caffe2torch.binding.plan import Unclaimed, plan_groups
from caffe2torch.errors import Caffe2TorchError, InputError, OutputError
from caffe2torch.lock import Lock, lock_of, read_lock, render_lock, solver_fields, solver_from
from caffe2torch.reading import read_recipe
from caffe2torch.recipe import Filler, Ramp, SolverSettings, SourceLocation


def small(finetune: dict[str, float] | None = None) -> Lock:
    model = SmallNet()
    recipe, binding = recipe_of(model)
    return lock_of(recipe, binding, plan_groups(recipe, binding, finetune))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "port.lock.json"
    path.write_text(render_lock(small({"conv_classifier": 10})), encoding="utf-8")
    return path


def test_what_is_read_back_is_what_was_written(file: Path) -> None:
    assert read_lock(file) == small({"conv_classifier": 10})
    assert render_lock(read_lock(file)) == file.read_text(encoding="utf-8")


def test_the_lock_is_that_of_the_prototxts(fixtures: Path, tmp_path: Path) -> None:
    """An audit by the lock alone says what the audit by the prototxts says."""
    from caffe2torch.binding.bind import bind
    from caffe2torch.models import SegNetBasic

    folder = fixtures / "segnet_basic"
    recipe = read_recipe(folder / "train.prototxt", folder / "solver.prototxt")
    model = SegNetBasic(4, 3)
    binding = bind(recipe, model)
    (tmp_path / "lock.json").write_text(render_lock(lock_of(recipe, binding, plan_groups(recipe, binding))))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.0005)
    by_lock = audit(read_lock(tmp_path / "lock.json"), model, optimizer)
    by_files = audit(recipe, model, optimizer)
    assert wrong(by_lock) == wrong(by_files) != {}
    assert [cause.message for cause in by_lock.causes] == [cause.message for cause in by_files.causes]


def test_one_blob_is_one_line_and_no_folder_is_in_it(file: Path) -> None:
    recipe, binding = recipe_of(SmallNet())
    elsewhere = [replace(blob, where=SourceLocation(f"/home/me/{blob.where.file}", 1, 1)) for blob in recipe.blobs]
    bound = [replace(one, blob=blob) for one, blob in zip(binding.blobs, elsewhere, strict=True)]
    moved = replace(recipe, blobs=tuple(replace(blob, filler=Filler()) for blob in elsewhere))
    binding = replace(binding, blobs=tuple(bound))
    text = render_lock(lock_of(moved, binding, plan_groups(moved, binding)))
    assert "/home/me" not in text
    lines = file.read_text(encoding="utf-8").splitlines()
    assert sum('"layer":' in line for line in lines) == 10
    other = render_lock(small()).splitlines()
    assert len(set(lines) - set(other)) <= 5  # two groups, two blobs, and a comma


def test_an_audit_by_the_lock_finds_what_changed(file: Path) -> None:
    model = SmallNet()
    optimizer = torch.optim.SGD(groups_of(model), momentum=0.9)
    assert sorted(wrong(audit(read_lock(file), model, optimizer))) == ["conv_classifier.bias", "conv_classifier.weight"]
    assert audit(small(), model, optimizer).ok
    model.extra = nn.PReLU()
    optimizer.add_param_group({"params": [model.extra.weight], "lr": 0.1})
    assert wrong(audit(small(), model, optimizer)) == {"extra.weight": "mismatch"}
    del model.conv2_bn
    assert wrong(audit(small(), model, optimizer))["conv2_bn.weight"] == "missing"


def test_parameters_without_a_blob_keep_the_multipliers_that_their_user_gave() -> None:
    recipe, binding = recipe_of(SmallNet())
    binding = replace(binding, unclaimed=(Unclaimed("extra.weight", (1,), 3.0, 0.0), Unclaimed("frozen", (2,))))
    made = lock_of(recipe, binding, plan_groups(recipe, binding))
    data = json.loads(render_lock(made))
    assert data["unclaimed_parameters"][0] == {"parameter": "extra.weight", "shape": [1], "group": 2}


def test_a_lock_needs_no_more_arguments(file: Path) -> None:
    model = SmallNet()
    with pytest.raises(Caffe2TorchError, match="a lock already says"):
        audit(read_lock(file), model, torch.optim.SGD(groups_of(model)), finetune={"conv1": 2})


@given(solvers())
def test_any_solver_is_read_back(solver: SolverSettings) -> None:
    assert solver_from(json.loads(json.dumps(solver_fields(solver)))) == solver
    forked = replace(
        solver,
        momentum_ramp=Ramp(0.99, 1.0, 10),
        policy=replace(solver.policy, stage_lrs=(0.1, 0.2), stage_iters=(1, 2), min_lr=0.0),
    )
    assert solver_from(json.loads(json.dumps(solver_fields(forked)))) == forked


BAD = {
    "not json": "{",
    "not a lock": "[]",
    "another object": '{"format": "other"}',
    "another version": '{"format": "caffe2torch lock", "version": 99}',
    "damaged": '{"format": "caffe2torch lock", "version": 1, "blobs": [{}]}',
    "nested": "[" * 100_000,
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_lock_is_one_clear_error(name: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text(BAD[name], encoding="utf-8")
    with pytest.raises(InputError) as error:
        read_lock(path)
    assert str(error.value).startswith(str(path))
    assert "this" in error.value.message


def test_a_lock_that_was_cut_is_one_clear_error(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    data = json.loads(text)
    for key in list(data):
        file.write_text(json.dumps({k: v for k, v in data.items() if k != key}), encoding="utf-8")
        with pytest.raises(InputError):
            read_lock(file)
    file.write_text(text[:700], encoding="utf-8")
    with pytest.raises(InputError, match="not JSON"):
        read_lock(file)
    with pytest.raises(InputError, match="no such file"):
        read_lock(file.parent / "nowhere.json")


def test_the_settings_of_the_hand_made_solver() -> None:
    assert solver_fields(SGD) == {
        "type": "SGD",
        "policy": {"type": "fixed", "base_lr": 0.1},
        "momentum": 0.9,
        "weight_decay": 0.0005,
    }


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("blobs", 0, "lr_mult"), "1"),
        (("blobs", 0, "lr_mult"), True),
        (("blobs", 0, "shape"), [4, "3"]),
        (("blobs", 0, "parameter"), 3),
        (("blobs", 0, "group"), 99),
        (("blobs", 0, "group"), -1),
        (("blobs", 0, "where"), None),
        (("groups", 0, "factor"), None),
        (("solver", "momentum"), float("nan")),
        (("solver", "policy", "stepvalues"), [1, "2"]),
        (("solver", "momentum_ramp"), {"maximum": 1, "power": "2", "max_iter": 3}),
        (("net",), ["segnet"]),
    ],
)
def test_a_value_of_another_kind_is_refused_when_the_lock_is_read(
    file: Path, path: tuple[str | int, ...], value: object
) -> None:
    data = json.loads(file.read_text())
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    file.write_text(json.dumps(data))
    with pytest.raises(InputError, match="this lock is damaged") as error:
        read_lock(file)
    assert "translate ... --lock" in str(error.value)


def test_a_number_that_json_cannot_hold_is_not_written() -> None:
    lock = small()
    assert lock.recipe.solver is not None
    solver = replace(lock.recipe.solver, momentum=float("nan"))
    with pytest.raises(OutputError, match="JSON cannot hold"):
        render_lock(replace(lock, recipe=replace(lock.recipe, solver=solver)))


def test_an_empty_file_says_that_a_lock_was_expected(tmp_path: Path) -> None:
    (tmp_path / "lock.json").write_text(" \n")
    with pytest.raises(InputError, match=r"is empty\n  expected: a lock file"):
        read_lock(tmp_path / "lock.json")
