"""What every test may ask for: the recorded material, the fixtures, and runs that repeat themselves."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from places import REPOSITORY

# Small nets run faster on one thread than on two that wait for each other, and sums come out in one order. The
# variables count only before torch is first imported, which is left to the tests that need it.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

settings.register_profile(
    "caffe2torch",
    max_examples=50,
    deadline=None,  # a shared machine is slow at times; the suite's own budget is what counts
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("caffe2torch")


SLOW = (
    "binding/test_isomorphism.py",
    "cli/",
    "docs/test_docs.py",
    "fuzz/",
    "net/test_net_any.py",
    "optim/test_processes.py",
    "optim/test_solvers_agree.py",
    "optim/test_state.py",
    "optim/test_trainers.py",
    "report/test_html.py",
    "snapshot/test_checkpoint.py",
    "snapshot/test_load_cost.py",
    "test_auditing.py",
    "test_torch_startup.py",
    "test_verdict_cases.py",
    "verification/test_audit_laws.py",
)
"""What `make quick` leaves out, below tests/: files that start processes or train, besides what is marked as slow."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of slow files."""
    for item in items:
        if item.path.relative_to(REPOSITORY / "tests").as_posix().startswith(SLOW):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The folder of nets, solvers and traces that belong to the project."""
    return REPOSITORY / "fixtures"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of material recorded from real Caffe, beside the repository; skips where it is absent."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "goldens").is_dir():
        pytest.skip(f"the material recorded from Caffe is not here: no {folder}")
    return folder


@pytest.fixture(autouse=True)
def forget_scripts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Forget modules that a test wrote and imported: the next test may write another one of the same name."""
    before = set(sys.modules)
    yield
    folder = str(tmp_path_factory.getbasetemp())
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(folder):
            del sys.modules[name]


@pytest.fixture
def without_collector() -> Iterator[None]:
    """Time the work alone: how often Python's collector walks through all objects hangs on what other tests left."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
