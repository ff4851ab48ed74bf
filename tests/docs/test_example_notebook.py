"""The example notebook runs in a fresh kernel, and shows what is stored in it; the tutorial's is made from its page."""

from __future__ import annotations

import pytest
from tutorial_notebook import NOTEBOOK as TUTORIAL
from tutorial_notebook import PAGE, text_of


def test_the_tutorials_notebook_is_its_page() -> None:
    written = TUTORIAL.read_text(encoding="utf-8")
    assert written == text_of(PAGE.read_text(encoding="utf-8")), "python tests/support/tutorial_notebook.py writes it"


@pytest.mark.slow
def test_the_notebook_shows_what_is_stored_in_it() -> None:
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    pytest.importorskip("nbclient", reason="nbclient is not installed")
    import nbformat
    from stored_notebook import NOTEBOOK, executed, shown

    stored = nbformat.read(NOTEBOOK, as_version=4)
    fresh = executed()
    for before, after in zip(stored.cells, fresh.cells, strict=True):
        if before.cell_type == "code":
            assert bool(before.outputs) == bool(after.outputs)
            if not before.metadata.get("varies"):
                assert shown(after) == shown(before), "python tests/support/stored_notebook.py stores what it shows now"
    report = next(shown(cell) for cell in fresh.cells if "by_hand, finetune" in cell.source)
    assert "26 of 34 rows ok, 8 mismatch" in report
    assert "all 8 BN shifts: lr x2 and no decay, as if they were Convolution biases" in report
