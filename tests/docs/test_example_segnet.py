"""The example trains, in both of its set-ups."""

from __future__ import annotations

import runpy


def test_the_example_learns_from_scratch_and_in_fine_tuning(fixtures, capsys):
    main = runpy.run_path(str(fixtures.parent / "examples" / "train_segnet_basic.py"))["main"]
    for losses in main(steps=4, size=(16, 24)):
        assert sum(losses[-2:]) < sum(losses[:2])
    printed = capsys.readouterr().out
    assert "conv_classifier: lr x1, decay x1   lr 0.01" in printed
    assert "conv_classifier: lr x20, decay x0  lr 0.2" in printed
