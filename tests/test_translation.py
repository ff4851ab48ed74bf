"""What a translation gives besides its optimizer and scheduler."""

from __future__ import annotations

from pathlib import Path

import pytest

from caffe2torch.errors import SolverError
from caffe2torch.translation import Translation, translate

NET = """
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" param { lr_mult: 1 } param { lr_mult: 2 }
        inner_product_param { num_output: 2 } }
input: "data" input_shape { dim: 1 dim: 3 }"""


def translated(folder: Path, max_iter: str) -> Translation:
    (folder / "net.prototxt").write_text(NET)
    (folder / "solver.prototxt").write_text(f'base_lr: 0.1 lr_policy: "step" gamma: 0.5 stepsize: 4 {max_iter}')
    return translate(folder / "net.prototxt", folder / "solver.prototxt")


def test_its_rates_are_those_that_the_groups_get(tmp_path: Path) -> None:
    t = translated(tmp_path, "max_iter: 10")
    assert t.model is not None  # the net is filled once it is asked for
    found = t.rates()
    for iteration in range(10):
        assert [group["lr"] for group in t.optimizer.param_groups] == [found[g.name][iteration] for g in t.groups]
        t.optimizer.step()
        t.scheduler.step()
    assert {len(run) for run in found.values()} == {10}


def test_without_max_iter_the_number_has_to_be_said(tmp_path: Path) -> None:
    t = translated(tmp_path, "")
    with pytest.raises(SolverError, match="states no max_iter"):
        t.rates()
    assert {len(run) for run in t.rates(7).values()} == {7}
