"""Which solver field is which torch argument: every field that is stated is accounted for, with what it became."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import torch

from caffe2torch.prototxt.schema import parse_solver
from caffe2torch.recipe import PolicyType, SolverSettings, SolverType, Source
from caffe2torch.report.html_arguments import Argument, arguments, unread
from caffe2torch.solver.settings import read_solver


def read(text: str) -> SolverSettings:
    return read_solver(parse_solver(Source("solver.prototxt", text)))[0]


def table(text: str, lr_mults: tuple[float, ...] = (1.0, 2.0)) -> dict[str, Argument]:
    return {row.field: row for row in arguments(read(text), 0, lr_mults, (0.0, 1.0))}


def test_the_groups_get_rate_and_decay_with_their_multipliers() -> None:
    rows = table('base_lr: 0.1 lr_policy: "fixed" momentum: 0.9 weight_decay: 0.0005')
    assert (rows["base_lr"].argument, rows["base_lr"].becomes) == ("lr of each group", "0.1 (×1), 0.2 (×2)")
    assert rows["weight_decay"].argument == "weight_decay of each group"
    assert rows["weight_decay"].becomes == "0 (×0), 0.0005 (×1)"
    assert (rows["momentum"].value, rows["momentum"].argument, rows["momentum"].becomes) == ("0.9", "momentum", "0.9")
    assert str(rows["base_lr"].where) == "solver.prototxt:1:1"
    assert rows["type"].where is None  # Caffe's default


TYPES = {
    SolverType.SGD: ("torch.optim.SGD", {"momentum": "momentum"}),
    SolverType.NESTEROV: ("torch.optim.SGD(nesterov=True)", {"momentum": "momentum"}),
    SolverType.ADAGRAD: ("torch.optim.Adagrad", {"delta": "eps"}),
    SolverType.RMSPROP: ("torch.optim.RMSprop", {"rms_decay": "alpha", "delta": "eps"}),
    SolverType.ADADELTA: ("torch.optim.Adadelta", {"momentum": "rho", "delta": "eps"}),
    SolverType.ADAM: ("torch.optim.Adam", {"momentum": "betas[0]", "momentum2": "betas[1]", "delta": "eps"}),
}


@pytest.mark.parametrize("kind", SolverType)
def test_each_solver_names_the_class_and_the_arguments_that_it_really_has(kind: SolverType) -> None:
    rows = table(f'type: "{kind}" base_lr: 0.1 lr_policy: "fixed"')
    stock, numbers = TYPES[kind]
    assert rows["type"].becomes == stock
    assert {
        field: rows[field].argument for field in ("momentum", "momentum2", "rms_decay", "delta") if field in rows
    } == (numbers)
    parent = getattr(torch.optim, stock.removeprefix("torch.optim.").split("(")[0])
    taken = parent.__init__.__code__.co_varnames
    assert all(argument.split("[")[0] in taken for argument in numbers.values())


@pytest.mark.parametrize("policy", [kind for kind in PolicyType if kind is not PolicyType.PLATEAU])
def test_each_policy_shows_its_formula_and_the_fields_in_it(policy: PolicyType) -> None:
    stages = "stagelr: 0.1 stageiter: 100" if policy is PolicyType.MULTIFIXED else "stepvalue: 10"
    text = f'base_lr: 0.1 lr_policy: "{policy}" gamma: 0.5 power: 2 stepsize: 10 {stages} max_iter: 100'
    rows = table(text)
    formula = rows["lr_policy"].becomes
    for field in ("gamma", "power", "stepsize", "stepvalue", "stagelr"):
        if field in rows:
            assert (field in formula) == (rows[field].argument == "the scheduler"), field
    assert ("max_iter" in formula) == ("poly" in rows["max_iter"].how)


def test_fields_that_this_solver_does_not_read_say_so() -> None:
    rows = table('base_lr: 0.1 lr_policy: "fixed" gamma: 0.5 momentum2: 0.9 rms_decay: 0.5')
    assert rows["gamma"].how == "the policy fixed does not read it"
    assert rows["momentum2"].how == "SGD does not read it"
    assert rows["rms_decay"].argument == "none"


def test_clipping_summing_and_l1_happen_in_the_step() -> None:
    rows = table('base_lr: 0.1 lr_policy: "fixed" clip_gradients: 35 iter_size: 4 regularization_type: "L1"')
    assert {rows[name].argument for name in ("clip_gradients", "iter_size", "regularization_type")} == {"step()"}
    assert rows["iter_size"].becomes == "gradient / 4"
    assert "sign(w)" in rows["regularization_type"].how


def test_rules_of_forks_are_named_whether_translated_or_not() -> None:
    rows = table(
        'base_lr: 0.1 lr_policy: "step" gamma: 0.1 stepsize: 9 warmup_iter: 5 warmup_start_lr: 0.01 larc: true'
    )
    assert rows["warmup_iter"].argument == "the scheduler"
    assert rows["larc"].argument == "none"
    assert rows["larc"].how.startswith("not translated: ")


def test_every_field_that_a_file_states_is_either_an_argument_or_told_to_be_none(fixtures: Path) -> None:
    for file in sorted(fixtures.rglob("solver*.prototxt")):
        settings = read(file.read_text())
        rows = arguments(settings, 0, (1.0,), (1.0,))
        left = unread(settings, rows)
        assert {row.field for row in rows if row.where} | set(left) == set(settings.places), file
        assert not set(left) & {field.name for field in fields(settings)} - {"net", "random_seed"}, file
        assert list(left.values()) == sorted(left.values())
