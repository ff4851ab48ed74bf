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

# The width of what is printed is a matter of the test, not of who runs it; xdist sets it for its workers.
for variable in ("COLUMNS", "LINES"):
    os.environ.pop(variable, None)

settings.register_profile(
    "caffe2torch",
    max_examples=50,
    deadline=None,  # a shared machine is slow at times; the suite's own budget is what counts
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("caffe2torch")


SLOW = (
    "binding/test_ambiguity.py::test_several_such_choices_are_one_error_whose_draft_leaves_them_open",
    "binding/test_branch_family.py",
    "binding/test_by_role.py::test_rows_go_by_role_and_the_report_is_never_ok",
    "binding/test_forward_pass.py::test_a_forward_pass_that_fails_late_is_used_as_far_as_it_went_and_that_is_said",
    "binding/test_isomorphism.py",
    "binding/test_matching.py::test_what_only_the_model_has_shifts_nothing_or_the_binding_is_refused",
    "binding/test_matching.py::test_what_only_the_net_has_can_be_skipped_and_shifts_nothing",
    "binding/test_model_untouched.py::test_a_model_that_decides_by_values_is_really_run",
    "binding/test_names_file.py::test_names_that_cannot_be_are_refused",
    "binding/test_port_family.py",
    "binding/test_segnet_basic.py",
    "cli/",
    "docs/",
    "emit/test_emit.py",
    "emit/test_model_source.py",
    "fuzz/",
    "models/",
    "net/test_net.py::test_cost_grows_linearly_with_the_layers",
    "net/test_net_any.py",
    "optim/test_norm.py",
    "optim/test_processes.py",
    "optim/test_solvers_agree.py",
    "optim/test_state.py",
    "optim/test_traces.py",
    "optim/test_trainers.py",
    "prototxt/test_memory.py",
    "prototxt/test_parser.py",
    "prototxt/test_schema.py",
    "report/test_browser.py",
    "report/test_divergence.py",
    "report/test_html.py",
    "report/test_plots.py",
    "report/test_text.py::test_a_word_is_never_broken_but_a_name_may_be_after_a_separator",
    "snapshot/test_checkpoint.py",
    "snapshot/test_fillers.py::test_what_caffe_refuses_is_refused_with_its_place_and_nothing_is_filled",
    "snapshot/test_hdf5.py",
    "snapshot/test_load_cost.py",
    "snapshot/test_solver_state.py::test_a_restored_run_follows_caffes",
    "snapshot/test_translation.py",
    "snapshot/test_wire.py",
    "solver/test_numpy_reference.py::test_the_reference_follows_caffe",
    "test_auditing.py",
    "test_distributions.py::test_the_wheel_has_every_file_of_the_package_and_its_license",
    "test_reprs.py::test_the_repr_of_recipe_groups_scheduler_and_translation_fits_on_a_screen",
    "test_torch_startup.py",
    "test_verdict_cases.py",
    "test_version_0_1.py::test_a_lock_says_what_it_said",
    "test_version_0_1.py::test_a_run_goes_on_from_its_checkpoint",
    "verification/test_audit_laws.py",
    "verification/test_check_model.py",
    "verification/test_compare_layers.py::test_one_planted_difference_is_found_and_nothing_else",
    "verification/test_fit.py::test_every_suspect_is_told_from_caffes_rule_or_is_it",
    "verification/test_fit.py::test_what_a_rule_was_run_with_is_read_back",
    "verification/test_grid.py",
    "verification/test_run_probe.py",
    "verification/test_verify.py",
)
"""What `make quick` leaves out, below tests/: folders, files and tests of a second and more, which start processes,
train or draw many cases. Tests that are marked as slow are left out as well."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of slow files."""
    for item in items:
        if item.nodeid.removeprefix("tests/").startswith(SLOW):
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
