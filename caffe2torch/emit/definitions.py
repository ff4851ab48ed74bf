"""Definitions of our own source, as text, for files that must do without caffe2torch."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import resources

__all__ = ["definitions", "import_lines"]

MODULES = ("solver/lr_policy", "optim/solvers", "binding/layout", "snapshot/fillers")
"""Where definitions are taken from, in the order in which an emitted file has them. They are read, not imported."""

IMPORTS = {
    "inspect": "import inspect",
    "math": "import math",
    "Callable": "from collections.abc import Callable",
    "Sequence": "from collections.abc import Sequence",
    "Any": "from typing import Any",
    "torch": "import torch",
}
"""What emitted code may import, by the name that needs it."""


def definitions(wanted: Iterable[str]) -> list[str]:
    """The source of the functions and classes called ``wanted``, and of all that they use of the same modules.

    >>> print(definitions(["step"])[0].splitlines()[0])
    def step(iteration: int, gamma: float, stepsize: int) -> float:
    """
    known = _definitions()
    found: dict[str, str] = {}
    pending = list(wanted)
    while pending:
        name = pending.pop()
        if name in known and name not in found:
            found[name] = known[name]
            pending += _names(known[name])
    return [found[name] for name in known if name in found]


def import_lines(code: str) -> list[str]:
    """The import statements that ``code`` needs, sorted as ruff sorts them."""
    used = _names(code)
    lines = [line for name, line in IMPORTS.items() if name in used]
    merged = _merged([line for line in lines if "torch" not in line])
    return [*merged, *([""] if merged else []), "import torch"]


def _merged(lines: Sequence[str]) -> list[str]:
    """One line for each module."""
    modules: dict[str, list[str]] = {}
    for line in lines:
        if line.startswith("from "):
            module, name = line.removeprefix("from ").split(" import ")
            modules.setdefault(module, []).append(name)
    plain = [line for line in lines if line.startswith("import ")]
    return [*plain, *(f"from {module} import {', '.join(sorted(names))}" for module, names in modules.items())]


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
