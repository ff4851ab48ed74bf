"""Definitions of our own source, as text, for files that must do without caffe2torch."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from functools import cache
from importlib import resources

__all__ = ["definitions", "import_lines"]

MODULES = ("solver/lr_policy", "optim/solvers", "binding/layout", "snapshot/fillers", "models/loss_functions")
"""Where definitions are taken from, in the order in which an emitted file has them. They are read, not imported."""


def definitions(wanted: Iterable[str]) -> list[str]:
    """The source of the functions and classes called ``wanted``, and of all that they use of the same modules.

    >>> print(definitions(["step_factor"])[0].splitlines()[0])
    def step_factor(iteration: int, gamma: float, stepsize: int) -> float:
    """
    known = _definitions()
    found: set[str] = set()
    pending = set(wanted)
    while pending:
        name = pending.pop()
        if name in known and name not in found:
            found.add(name)
            pending |= _names(known[name])
    return [text for name, text in known.items() if name in found]


def import_lines(code: str) -> list[str]:
    """The import statements that ``code`` needs, in ruff's order.

    >>> import_lines("def norm(gradients: Sequence[torch.Tensor]) -> Any: ...")
    ['from collections.abc import Sequence', 'from typing import Any', '', 'import torch']
    """
    used = _names(code)
    lines = [f"import {name}" for name in ("inspect", "math") if name in used]
    for module, names in (("collections.abc", ("Callable", "Sequence")), ("typing", ("Any",))):
        if needed := [name for name in names if name in used]:
            lines.append(f"from {module} import {', '.join(needed)}")
    functional = ["import torch.nn.functional as F"] if "F" in used else []
    return [*lines, *[""][: len(lines)], "import torch", *functional]


@cache
def _definitions() -> dict[str, str]:
    found: dict[str, str] = {}
    for module in MODULES:
        text = resources.files("caffe2torch").joinpath(f"{module}.py").read_text(encoding="utf-8")
        lines = text.splitlines()
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                found[node.name] = "\n".join(lines[first - 1 : node.end_lineno])
    return found


def _names(code: str) -> set[str]:
    return {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}
