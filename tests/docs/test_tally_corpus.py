"""The tally over a folder: what is found in it, what each case ends as, and that a bug cannot hide."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from places import REPOSITORY

NET = 'layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 3 } }'
SOLVER = 'base_lr: 0.1 lr_policy: "fixed" max_iter: 9'


@pytest.fixture(scope="module")
def tally() -> ModuleType:
    path = REPOSITORY / "examples" / "tally_corpus.py"
    spec = importlib.util.spec_from_file_location("tally_corpus", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tally_corpus"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = {
        "a pair/net.prototxt": NET,
        "a pair/solver.prototxt": SOLVER,
        "other/train_val.prototxt": NET,
        "other/solver.prototxt": SOLVER + " larc: true",
        "deploy.prototxt": NET,
        "broken.prototxt": NET + " }",
        "step_solver.prototxt": 'base_lr: 0.1 lr_policy: "step" gamma: 0.1',
        "exp.solver.prototxt": 'base_lr: 0.1 lr_policy: "exp" gamma: 0.1 max_iter: 9',
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_pairs_nets_and_solvers_are_found(tally: ModuleType, folder: Path) -> None:
    assert [(case.name, case.kind) for case in tally.find_cases(folder)] == [
        ("a pair", "pair"),
        ("other", "pair"),
        ("broken.prototxt", "net"),
        ("deploy.prototxt", "net"),
        ("exp.solver.prototxt", "solver"),
        ("step_solver.prototxt", "solver"),
    ]


def test_every_case_ends_as_a_recipe_or_one_clear_refusal(
    tally: ModuleType, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verdicts = {case.name: tally.judge(case, translate=False).verdict for case in tally.find_cases(folder)}
    assert verdicts == {
        "a pair": "recipe",
        "other": "recipe",
        "broken.prototxt": "refused: PrototxtError",
        "deploy.prototxt": "recipe",
        "exp.solver.prototxt": "settings",
        "step_solver.prototxt": "refused: SolverError",
    }
    assert tally.main([str(folder)]) == 0
    assert "TRACEBACK" not in capsys.readouterr().out


def test_a_rule_that_is_not_translated_is_refused_by_name(tally: ModuleType, folder: Path) -> None:
    outcomes = {case.name: tally.judge(case, translate=True) for case in tally.find_cases(folder)}
    assert outcomes["a pair"].verdict == "translated"
    assert outcomes["other"].verdict == "refused: UnsupportedError"
    assert "larc" in outcomes["other"].detail


def test_a_traceback_is_shown_and_fails(
    tally: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("a bug of ours")

    monkeypatch.setattr(tally.caffe2torch, "read_recipe", broken)
    assert tally.main([str(folder)]) == 1
    shown = capsys.readouterr()
    assert "TRACEBACK" in shown.out
    assert "a bug of ours" in shown.err
