"""One layer each, run by real Caffe: torch's module with Caffe's weights gives Caffe's output."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from snapshot_runs import bound
from torch import Tensor, nn

from caffe2torch.reading import read_recipe
from caffe2torch.snapshot.files import read_caffemodel
from caffe2torch.snapshot.weights import load_weights


class Learned(nn.Module):
    """A tensor and what is done with it."""

    def __init__(self, shape: tuple[int, ...], compute: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full(shape, 7.0))
        self.compute = compute

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x, self.weight)


class EmbedWithBias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 5)
        self.bias = nn.Parameter(torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.table(x.long()) + self.bias
        return out


class LastOutput(nn.Module):
    """A recurrent layer, and Caffe's RNN's own output layer where there is one."""

    def __init__(self, inner: nn.Module, out: nn.Module | None = None) -> None:
        super().__init__()
        self.inner = inner
        self.out = out

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.inner(x)[0]
        return hidden if self.out is None else torch.tanh(self.out(hidden))


WEIGHT, BOTH = {"l/0": "0.weight"}, {"l/0": "0.weight", "l/1": "0.bias"}
STATISTICS = {"l/0": "0.running_mean", "l/1": "0.running_var", "l/2": None}
RECURRENT = {"l/0": "inner.weight_ih_l0", "l/1": "inner.bias_ih_l0", "l/2": "inner.weight_hh_l0"}

Case = tuple[Callable[[], nn.Module], dict[str, str | None]]
CASES: dict[str, Case] = {
    "batchnorm_alone": (lambda: nn.Sequential(nn.BatchNorm2d(5, affine=False)), STATISTICS),
    "batchnorm_scale": (
        lambda: nn.Sequential(nn.BatchNorm2d(5, eps=1e-3)),
        {**STATISTICS, "s/0": "0.weight", "s/1": "0.bias"},
    ),
    "bias": (lambda: Learned((5, 1, 1), torch.add), {"l/0": "weight"}),
    "conv": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1)), BOTH),
    "conv_grouped_dilated_rect": (
        lambda: nn.Sequential(nn.Conv2d(4, 8, (3, 5), padding=(2, 1), dilation=2, groups=2, bias=False)),
        WEIGHT,
    ),
    "deconv": (lambda: nn.Sequential(nn.ConvTranspose2d(6, 4, 4, 2, 1)), BOTH),
    "deconv_grouped": (lambda: nn.Sequential(nn.ConvTranspose2d(6, 6, 4, 2, 1, groups=6, bias=False)), WEIGHT),
    "embed": (EmbedWithBias, {"l/0": "table.weight", "l/1": "bias"}),
    "inner_product": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(40, 7)), {"l/0": "1.weight", "l/1": "1.bias"}),
    "inner_product as convolution": (lambda: nn.Sequential(nn.Conv2d(2, 7, (4, 5)), nn.Flatten()), BOTH),
    "inner_product_axis2": (lambda: nn.Sequential(nn.Linear(5, 6)), BOTH),
    "inner_product_transposed": (lambda: nn.Sequential(nn.Linear(10, 7)), BOTH),
    "inner_product_transposed as convolution": (
        lambda: nn.Sequential(nn.Unflatten(1, (10, 1, 1)), nn.Conv2d(10, 7, 1), nn.Flatten()),
        {"l/0": "1.weight", "l/1": "1.bias"},
    ),
    "lstm": (lambda: LastOutput(nn.LSTM(4, 5)), RECURRENT),
    "prelu": (lambda: nn.Sequential(nn.PReLU(5)), WEIGHT),
    "prelu_shared": (lambda: nn.Sequential(nn.PReLU()), WEIGHT),
    "rnn": (
        lambda: LastOutput(nn.RNN(4, 5), nn.Linear(5, 5)),
        {**RECURRENT, "l/3": "out.weight", "l/4": "out.bias"},
    ),
    "scale_no_bias": (lambda: Learned((5, 1, 1), torch.mul), {"l/0": "weight"}),
}


@pytest.mark.parametrize("file", ["model.caffemodel", "model.caffemodel.h5"])
@pytest.mark.parametrize("case", CASES)
def test_the_module_gives_caffes_output(fixtures: Path, case: str, file: str) -> None:
    if file.endswith(".h5"):
        pytest.importorskip("h5py", reason="HDF5 needs h5py")
    folder = fixtures / "snapshots/layers" / case.partition(" as ")[0]
    make, names = CASES[case]
    model = make().eval()
    recipe = read_recipe(folder / "net.prototxt", phase="TEST")
    notes = load_weights(model, recipe, bound(recipe, model, names), read_caffemodel(folder / file))
    assert notes == ()
    recorded = np.load(folder / "io.npz")
    with torch.no_grad():
        output = model(torch.from_numpy(recorded["data"])).numpy()
    expected = recorded["output"]
    assert output.shape == expected.shape
    assert np.abs(output - expected).max() <= 1e-6 * np.abs(expected).max()


@pytest.mark.shared
def test_every_recorded_layer_is_tried(shared: Path) -> None:
    recorded = {path.name for path in (shared / "goldens/layers").iterdir()}
    assert recorded == {case.partition(" as ")[0] for case in CASES}
