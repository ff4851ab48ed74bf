"""An emitted optimizer file has the net's loss in it, and trains with it and torch alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from emitted import code_lines, load

from caffe2torch.errors import NetError
from caffe2torch.translation import Translation, translate

NET = """
layer {{ name: "data" type: "Input" top: "data" top: "label"
        input_param {{ shape {{ dim: 4 dim: 3 }} shape {{ dim: 4 }} }} }}
layer {{ name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param {{ num_output: 5 }} }}
{loss}"""
SOFTMAX = 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" loss_param { ignore_label: 2 } }'


def translated(folder: Path, loss: str) -> Translation:
    (folder / "net.prototxt").write_text(NET.format(loss=loss))
    (folder / "solver.prototxt").write_text('base_lr: 0.1 lr_policy: "fixed" momentum: 0.9')
    return translate(folder / "net.prototxt", folder / "solver.prototxt")


@pytest.mark.parametrize("weight", ["", "loss_weight: 0.5"])
def test_the_files_loss_is_that_of_the_translation(tmp_path: Path, weight: str) -> None:
    t = translated(tmp_path, SOFTMAX.replace("loss_param", f"{weight} loss_param"))
    loss = load(t.source()).build_loss()
    scores, labels = torch.randn(4, 5, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 2, 4, 1])
    torch.testing.assert_close(loss(scores, labels), t.loss(scores, labels))


@pytest.mark.parametrize(
    ("loss", "most"),
    [
        (SOFTMAX, 2),
        (SOFTMAX.replace("ignore_label: 2", "normalization: FULL"), 2),
        (SOFTMAX.replace("loss_param", "loss_weight: 0.5 loss_param"), 6),
        ('layer { name: "loss" type: "EuclideanLoss" bottom: "ip" bottom: "data" }', 6),
    ],
)
def test_a_loss_adds_a_few_lines(tmp_path: Path, loss: str, most: int) -> None:
    t = translated(tmp_path, loss)
    assert 0 < code_lines(t.source()) - code_lines(t.source(loss=False)) <= most


def test_a_net_without_a_loss_gives_a_file_without_one_and_an_error_that_says_so(tmp_path: Path) -> None:
    t = translated(tmp_path, "")
    assert "build_loss" not in t.source()
    with pytest.raises(NetError, match="has no loss"):
        t.loss  # noqa: B018  # a property that raises
