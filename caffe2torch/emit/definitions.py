"""Definitions of our own source, as text, for files that must do without caffe2torch."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from functools import cache
from importlib import resources

__all__ = ["MODEL", "OPTIMIZER", "definitions", "import_lines", "known"]

OPTIMIZER = ("solver/lr_policy", "optim/solvers", "binding/layout", "snapshot/fillers", "models/loss_functions")
MODEL = (
    *("models/functions", "models/layers", "models/segnet_basic"),
    *("net/normalization", "models/loss_functions", "models/loss_inputs", "models/loss_modules"),
    *("models/fork_losses", "models/fork_layers", "models/meanfield"),
)
"""Where the definitions of a file are taken from, in the order in which it has them. They are read, not imported."""

_FROM = {"collections.abc": ("Callable", "Mapping", "Sequence"), "enum": ("StrEnum",), "typing": ("Any",)}
_ERROR = '''class Caffe2TorchError(ValueError):
    """What was given does not fit."""

    def __init__(self, message: str, **sides: str) -> None:
        super().__init__("; ".join([message, *(f"{side}: {text}" for side, text in sides.items())]))'''


def definitions(wanted: Iterable[str], modules: tuple[str, ...] = OPTIMIZER) -> list[str]:
    """The source of what is called ``wanted`` in ``modules``, and of all that it uses of the same modules.

    >>> print(definitions(["step_factor"])[0].splitlines()[0])
    def step_factor(iteration: int, gamma: float, stepsize: int) -> float:
    """
    texts = known(modules)
    found: set[str] = set()
    pending = set(wanted)
    while pending:
        name = pending.pop()
        if name in texts and name not in found:
            found.add(name)
            pending |= _names(texts[name])
    return [text for name, text in texts.items() if name in found]


def import_lines(code: str) -> list[str]:
    """The import statements that ``code`` needs, in ruff's order.

    >>> import_lines("def norm(gradients: Sequence[torch.Tensor]) -> Any: ...")
    ['from collections.abc import Sequence', 'from typing import Any', '', 'import torch']
    """
    used = _names(code)
    lines = [f"import {name}" for name in ("inspect", "math") if name in used]
    for module, names in _FROM.items():
        if needed := [name for name in names if name in used]:
            lines.append(f"from {module} import {', '.join(needed)}")
    own = [name for name in ("Tensor", "nn") if name in used]
    torchs = {
        "import torch": "torch" in used or not own,
        "import torch.nn.functional as F": "F" in used,
        f"from torch import {', '.join(own)}": bool(own),
    }
    return [*lines, *[""][: len(lines)], *(line for line, needed in torchs.items() if needed)]


@cache
def known(modules: tuple[str, ...]) -> dict[str, str]:
    """The text of every class, function and constant of the modules, by name."""
    found = {"Caffe2TorchError": _ERROR}
    for module in modules:
        text = resources.files("caffe2torch").joinpath(f"{module}.py").read_text(encoding="utf-8")
        lines = text.splitlines()
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                found[node.name] = "\n".join(lines[first - 1 : node.end_lineno])
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                found[node.targets[0].id] = ast.get_source_segment(text, node) or ""
    return found


def _names(code: str) -> set[str]:
    return {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}
