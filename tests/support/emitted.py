"""An emitted file: as a module, imported where caffe2torch cannot be, and how long it is."""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any


def load(source: str, name: str = "emitted") -> ModuleType:
    """The module that ``source`` makes, which may import anything but caffe2torch; it can be pickled from."""

    def without_us(
        wanted: str,
        namespace: Mapping[str, Any] | None = None,
        local: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        if wanted.startswith("caffe2torch"):
            raise ModuleNotFoundError(f"an emitted file imports {wanted}")
        return __import__(wanted, namespace, local, fromlist or (), level)

    module = ModuleType(name)
    module.__dict__["__builtins__"] = {**vars(builtins), "__import__": without_us}
    sys.modules[name] = module
    exec(compile(source, f"<{name}>", "exec"), module.__dict__)
    return module


def code_lines(source: str) -> int:
    """Lines without blanks, comments and docstrings, and without the table of parameters."""
    tree = ast.parse(source)
    skipped: set[int] = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", [])
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            skipped |= set(range(body[0].lineno, (body[0].end_lineno or 0) + 1))
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "GROUPS":
            skipped |= set(range(node.lineno, (node.end_lineno or 0) + 1))
    lines = enumerate(source.splitlines(), start=1)
    return sum(bool(line.strip()) and not line.strip().startswith("#") and n not in skipped for n, line in lines)
