from __future__ import annotations

import ast
from pathlib import Path

import caffe2torch
from caffe2torch.recipe import PolicyType, SolverType
from caffe2torch.solver.lr_policy import POLICIES
from caffe2torch.solver.update_rules import SOLVERS

PACKAGE = Path(caffe2torch.__file__).parent
ENUMS = ("PolicyType", "SolverType")


def test_every_policy_and_every_solver_has_a_row() -> None:
    assert set(POLICIES) == set(PolicyType)
    assert set(SOLVERS) == set(SolverType)
    for row in POLICIES.values():
        assert bool(row.without_gamma) == ("gamma" in row.fields)


def test_no_second_table_knows_policies_or_solvers() -> None:
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            keys = node.keys if isinstance(node, ast.Dict) else []
            if sum(ast.unparse(key).split(".")[0] in ENUMS for key in keys if key is not None) > 1:
                found.add(path.relative_to(PACKAGE).as_posix())
    assert found == {"solver/lr_policy.py", "solver/update_rules.py"}
