"""Every layer computes what real Caffe recorded: outputs, gradients, shapes, statistics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from net_goldens import layer_errors
from nets import IMAGE, layer, recipe_of
from places import REPOSITORY

from caffe2torch import build_model, read_recipe
from caffe2torch.models.builders import BUILDERS
from caffe2torch.models.losses import LOSSES
from caffe2torch.net.layer_types import LAYER_TYPES
from caffe2torch.snapshot.files import read_caffemodel
from caffe2torch.snapshot.weights import load_weights

CARRIED = sorted(path.name for path in (REPOSITORY / "fixtures" / "layers").iterdir())
NOISE = 1e-6  # of the largest element; in float64 what is left is the rounding of the record


@pytest.mark.parametrize("case", CARRIED)
def test_a_layer_computes_what_caffe_recorded(fixtures: Path, case: str) -> None:
    errors = layer_errors(fixtures / "layers" / case)
    assert errors
    assert {name: error for name, error in errors.items() if error > NOISE} == {}


@pytest.mark.shared
def test_all_recorded_layers_compute_what_caffe_recorded(shared: Path) -> None:
    cases = sorted((shared / "goldens" / "layers_bvlc").iterdir())
    found = {case.name: {k: v for k, v in layer_errors(case).items() if v > NOISE} for case in cases}
    assert len(found) == 85
    assert {case: errors for case, errors in found.items() if errors} == {}


@pytest.mark.shared
def test_weights_files_of_single_layers_give_the_recorded_output(shared: Path) -> None:
    cases = sorted((shared / "goldens" / "layers").iterdir())
    for case in cases:
        recorded = np.load(case / "io.npz")
        recipe = read_recipe(case / "net.prototxt", phase="TEST")
        model = build_model(recipe).eval()
        assert model.binding is not None
        load_weights(model, recipe, model.binding, read_caffemodel(case / "model.caffemodel"))
        output = model(*(torch.from_numpy(recorded[name]) for name in ("data", "cont") if name in recorded))
        assert output.shape == recorded["output"].shape
        assert np.abs(output.detach().numpy() - recorded["output"]).max() <= NOISE * np.abs(recorded["output"]).max()
    assert len(cases) == 16


def test_every_built_type_is_one_that_reading_knows() -> None:
    """The tables of ``net/`` are the list of layer types: a row here that they lack would never be asked for."""
    assert set(BUILDERS) <= set(LAYER_TYPES)
    assert not set(BUILDERS) & set(LOSSES)


@pytest.mark.parametrize(
    ("pool", "size"),
    [("kernel_size: 3 pad: 2", 7), ("kernel_size: 3 pad: 2 stride: 2", 6), ("kernel_size: 2 pad: 1", 5)],
)
@pytest.mark.parametrize("kind", ["MAX", "AVE"])
def test_pooling_with_wide_padding_is_pooling_of_the_padded_image(pool: str, size: int, kind: str) -> None:
    net = f'input: "x" input_shape {{ dim: 1 dim: 2 dim: {size} dim: {size} }}'
    recipe = recipe_of(net, layer("Pooling", "y", "x", "", f"pooling_param {{ pool: {kind} {pool} }}"))
    x = torch.rand(1, 2, size, size) + 1
    y = build_model(recipe)(x)
    assert tuple(y.shape) == recipe.layers[-1].top_shapes[0]
    settings = {word[:-1]: int(value) for word, value in zip(*[iter(pool.split())] * 2, strict=True)}
    kernel, pad, stride = settings["kernel_size"], settings["pad"], settings.get("stride", 1)
    for (i, j), found in np.ndenumerate(y[0, 0].numpy()):
        top, left = i * stride - pad, j * stride - pad
        area = (min(top + kernel, size + pad) - top) * (min(left + kernel, size + pad) - left)
        window = x[0, 0, max(top, 0) : top + kernel, max(left, 0) : left + kernel]
        assert found == pytest.approx(float(window.max() if kind == "MAX" else window.sum() / area), rel=1e-5)


def test_stochastic_pooling_draws_values_of_the_window_in_proportion() -> None:
    recipe = recipe_of(
        IMAGE, layer("Pooling", "y", "data", "", "pooling_param { pool: STOCHASTIC kernel_size: 2 stride: 2 }")
    )
    model = build_model(recipe)
    x = torch.zeros(2, 3, 8, 8)
    x[:, :, ::2, ::2], x[:, :, 1::2, 1::2] = 1.0, 3.0
    torch.manual_seed(0)
    drawn = torch.stack([model(x) for _ in range(200)])
    assert set(drawn.unique().tolist()) == {1.0, 3.0}
    assert (drawn == 3).double().mean().item() == pytest.approx(0.75, abs=0.02)
    assert torch.equal(model.eval()(x), torch.full((2, 3, 4, 4), (1 + 9) / 4))


def test_a_recurrent_layer_goes_on_where_the_last_batch_ended_unless_a_sequence_begins() -> None:
    net = 'input: "x" input_shape { dim: 4 dim: 2 dim: 3 } input: "cont" input_shape { dim: 4 dim: 2 }'
    settings = 'recurrent_param { num_output: 5 weight_filler { type: "uniform" min: -1 max: 1 } }'
    for kind in ("LSTM", "RNN"):
        model = build_model(recipe_of(net, layer(kind, "y", "x cont", "", settings)))
        whole, on = torch.randn(4, 2, 3), torch.ones(4, 2)
        at_once = model(whole, on)
        model.get_submodule("y").state = []
        parts = torch.cat([model(whole[:2], on[:2]), model(whole[2:], on[2:])])
        torch.testing.assert_close(parts, at_once)
        begun = torch.zeros(4, 2)
        torch.testing.assert_close(model(whole, begun), model(whole, begun))
