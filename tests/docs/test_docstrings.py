"""Every example in a docstring runs, and gives what it says."""

from __future__ import annotations

import doctest
import importlib
import io
from pathlib import Path

import pytest
from places import REPOSITORY

PACKAGE = REPOSITORY / "caffe2torch"
WITH_EXAMPLES = sorted(file for file in PACKAGE.rglob("*.py") if ">>> " in file.read_text(encoding="utf-8"))


def module_name(file: Path) -> str:
    """The dotted name of a module of the package."""
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("name", [module_name(file) for file in WITH_EXAMPLES])
def test_the_examples_of_the_module_run(name: str) -> None:
    found = [test for test in doctest.DocTestFinder().find(importlib.import_module(name)) if test.examples]
    assert found, f"{name} has examples that doctest does not find"
    for test in found:
        complaints = io.StringIO()
        doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=complaints.write)
        assert not complaints.getvalue(), complaints.getvalue()
