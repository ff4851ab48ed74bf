"""Solvers against real Caffe's verdicts, recorded rates, real files, and anything at all."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from solver_texts import read, read_file

from caffe2torch.errors import Caffe2TorchError, NetError, PrototxtError, SolverError, UnsupportedError
from caffe2torch.reading import read_recipe
from caffe2torch.recipe import (
    LrPolicy,
    PolicyType,
    Severity,
)
from caffe2torch.solver.fork_rules import FORK_FIELDS
from caffe2torch.solver.lr_policy import momentum_at, next_step, rate, rates, step_at, weight_decay_at

ACCEPTED = {"base_lr_missing", "iter_size_zero", "momentum_one_adam", "poly_without_max_iter"}


@pytest.mark.shared
def test_our_verdict_on_every_wrong_set_up_is_caffes(shared: Path) -> None:
    cases = sorted((shared / "goldens" / "bvlc_errors").iterdir())
    assert len(cases) == 22
    for case in cases:
        refused_by_caffe = "exit 0" not in (case / "caffe_said.txt").read_text(encoding="utf-8")
        assert refused_by_caffe == (case.name not in ACCEPTED)
        files = case / "net.prototxt", case / "solver.prototxt"
        if case.name == "unknown_field":  # read and noted, so that a fork's file is not lost over one field
            (note,) = read_recipe(*files).notes
            assert (str(note.where), note.severity) == (f"{files[1]}:14:1", Severity.WARNING)
        elif case.name == "sigmoid_negative_gamma":  # refused since December 2017 only: forks and DIGITS train with it
            assert [note.message for note in read_recipe(*files).notes if "gamma is negative" in note.message]
        elif refused_by_caffe:
            with pytest.raises((NetError, PrototxtError, SolverError, UnsupportedError)) as caught:
                read_recipe(*files)
            assert caught.value.where is not None, case.name
        else:
            assert Severity.WARNING in [note.severity for note in read_recipe(*files).notes], case.name


@pytest.mark.shared
def test_rates_and_counters_of_every_recorded_run(shared: Path) -> None:
    runs = [*sorted((shared / "goldens" / "bvlc").iterdir()), *sorted((shared / "goldens" / "segnet").glob("basic_*"))]
    assert len(runs) == 81
    exact = (PolicyType.FIXED, PolicyType.STEP, PolicyType.EXP, PolicyType.MULTISTEP)
    for run in runs:
        trace = np.load(run / "trace.npz")
        policy = read_file(run / "solver.prototxt")[0].policy
        assert ulps(list(rates(policy, len(trace["lr"]))), trace["lr"]) <= (0 if policy.type in exact else 2), run.name
        if "current_step" not in trace:
            continue
        assert counters(policy, range(len(trace["lr"])), 0) == trace["current_step"].tolist(), run.name
        if "snap_iter" not in trace:
            continue
        resumed = run / "solver_resume.prototxt"
        policy = read_file(resumed if resumed.exists() else run / "solver.prototxt")[0].policy
        start, step = int(trace["snap_iter"]), int(trace["current_step"][int(trace["snap_iter"]) - 1])
        length = len(trace["resumed_lr"])
        assert trace["resumed_iter"].tolist() == list(range(start, start + length))
        assert ulps(list(rates(policy, length, start, step)), trace["resumed_lr"]) <= (0 if policy.type in exact else 2)
        assert counters(policy, trace["resumed_iter"].tolist(), step) == trace["resumed_current_step"].tolist()


def counters(policy: LrPolicy, iterations: range | list[int], step: int) -> list[int]:
    steps = []
    for iteration in iterations:
        step = next_step(policy, iteration, step)
        steps.append(step)
    return steps


def ulps(ours: list[float], theirs: np.ndarray) -> int:
    a, b = np.array(ours, np.float32), theirs.astype(np.float32)
    assert np.array_equal(np.isnan(a), np.isnan(b))
    return int(np.where(np.isnan(a), 0, np.abs(a.view(np.int32).astype(np.int64) - b.view(np.int32))).max())


@pytest.mark.shared
def test_every_real_solver_is_read_as_the_index_says(shared: Path) -> None:
    with (shared / "corpus" / "INDEX.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    refused = []
    for row in rows:
        try:
            settings, _ = read_file(shared / "corpus" / "pairs" / row["name"] / "solver.prototxt")
        except Caffe2TorchError as error:
            refused.append((row["name"], str(error.where).rpartition("prototxt:")[2]))
            continue
        policy = settings.policy
        assert policy.type == row["lr_policy"], row["name"]
        assert settings.type == row["solver_type"], row["name"]
        assert settings.iter_size == int(row["iter_size"] or 1), row["name"]
        assert settings.clip_gradients == (float(row["clip_gradients"]) if row["clip_gradients"] else None), row["name"]
        assert settings.regularization == (row["regularization"] or "L2"), row["name"]
        assert np.float32(settings.momentum) == np.float32(row["momentum"] or 0), row["name"]
        assert np.float32(settings.weight_decay) == np.float32(row["weight_decay"] or 0), row["name"]
        assert np.float32(policy.base_lr) == np.float32(row["base_lr"] or 0), row["name"]
        assert policy.stepvalues == tuple(int(value) for value in row["stepvalue"].split()), row["name"]
        assert math.isfinite(rate(policy, 0)), row["name"]
    assert refused == [("resnet18-badsolver", "15:14")]  # device_id: 0,1 is in no Caffe's format
    assert len(rows) == 103


@pytest.mark.shared
def test_odd_solvers_are_read_or_refused_with_a_place(shared: Path) -> None:
    verdicts = {}
    for path in sorted((shared / "corpus" / "odd").glob("*.solver.prototxt")):
        try:
            verdicts[path.name.partition(".")[0]] = read_file(path)[0].policy.type.value
        except Caffe2TorchError as error:
            verdicts[path.name.partition(".")[0]] = str(error.where).removeprefix(f"{path}:")
    assert verdicts == {
        "crlf": "multistep",
        "device-id-comma": "15:14",  # device_id: 0,1
        "device-id-list": "multistep",
        "duplicate-scalar": "7:1",  # update_interval, twice
        "enum-number-stepearly": "16:1",  # a policy of nobody's Caffe
        "multifixed": "multifixed",
        "no-lr-policy-adadelta": "1:1",
        "no-net": "step",
        "non-utf8-comment": "step",
        "template-at": "multistep",
        "typo-field": "3:1",  # test_intervall for test_interval
    }


# --- anything at all ---

VALUES = st.sampled_from(
    [
        "0",
        "1",
        "-1",
        "0.5",
        "-0",
        "1e39",
        "nan",
        "inf",
        "7",
        "true",
        '"poly"',
        '"opt"',
        '"step"',
        '"L1"',
        '"Adam"',
        "ADAM",
    ]
)
BVLC_FIELDS = (
    "type solver_type lr_policy base_lr gamma power stepsize stepvalue momentum momentum2 weight_decay delta rms_decay "
    "regularization_type clip_gradients iter_size max_iter average_loss random_seed net test_iter test_interval"
)
NAMES = st.sampled_from([*BVLC_FIELDS.split(), *FORK_FIELDS, "tpye"])


@given(st.sampled_from([*PolicyType]), st.dictionaries(NAMES, VALUES, max_size=8), st.integers(0, 2**31 - 1))
def test_any_solver_is_refused_clearly_or_has_a_rate_everywhere(
    policy: PolicyType, fields: dict[str, str], iteration: int
) -> None:
    fields.setdefault("lr_policy", f'"{policy}"')
    text = " ".join(f"{name}: {value}" for name, value in fields.items())
    try:
        settings, notes = read(text)
    except Caffe2TorchError as error:
        refused_at = str(error.where)
    else:
        refused_at = ""
    if refused_at:
        assert refused_at.startswith("solver.prototxt:1:")
        return
    assert settings.places.keys() == fields.keys()
    assert all(note.where is not None and note.message for note in notes)
    step = step_at(settings.policy, iteration)
    lr = rate(settings.policy, iteration, step)
    for value in (lr, momentum_at(settings, iteration, lr), weight_decay_at(settings, iteration)):
        assert math.isnan(value) or np.float32(value) == value
