"""Who may import whom, and what importing must not cost."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = "import sys; print(*sorted({'torch', 'numpy', 'h5py', 'matplotlib'} & set(sys.modules)))"


def loaded_after(code: str) -> str:
    """The heavy packages that a fresh interpreter has loaded after ``code``."""
    result = subprocess.run([sys.executable, "-c", f"{code}\n{HEAVY}"], capture_output=True, text=True, check=True)
    return result.stdout.splitlines()[-1]


@pytest.mark.parametrize("code", ["import caffe2torch", "import caffe2torch.cli, caffe2torch.cli.inspect"])
def test_importing_loads_nothing_heavy(code: str) -> None:
    assert loaded_after(code) == ""


def test_the_check_itself_sees_a_heavy_import() -> None:
    assert "numpy" in loaded_after("import numpy")


def test_rooms_import_downward_only() -> None:
    code = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
