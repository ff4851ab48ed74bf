"""Snapshots through a translation: fine-tuning SegNetBasic from start to end, and what a user sees of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import snapshot_files as files
import torch
from segnet_replay import SOLVER, from_fixtures, parameter_name

import caffe2torch
from caffe2torch.errors import SnapshotError
from caffe2torch.snapshot.files import read_caffemodel


@pytest.fixture
def place(fixtures: Path, tmp_path: Path) -> Path:
    """A folder with SegNetBasic for three classes and for five, its solver and its snapshot."""
    for name in ("snap_iter_10.caffemodel", "snap_iter_10.solverstate"):
        shutil.copy(fixtures / "snapshots/segnet" / name, tmp_path / name)
    net = (fixtures / "segnet_basic/train.prototxt").read_text().replace("num_output: 64", "num_output: 8")
    (tmp_path / "net3.prototxt").write_text(net)
    (tmp_path / "net5.prototxt").write_text(net.replace("num_output: 3 ", "num_output: 5 "))
    (tmp_path / "solver.prototxt").write_text(SOLVER)
    return tmp_path


def test_segnet_basic_is_fine_tuned_to_other_classes(place: Path, fixtures: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = caffe2torch.SegNetBasic(4, 5, 8)
    t = caffe2torch.translate(
        place / "net5.prototxt", place / "solver.prototxt", model, finetune={"conv_classifier": 10.0}
    )
    head = model.conv_classifier.weight.detach().clone()
    (note,) = t.load_caffemodel(place / "snap_iter_10.caffemodel")
    assert "conv_classifier/0 (weight) is 3x8x1x1 in the file, 5x8x1x1 in the net; the layer is new" in note.message
    for layer in read_caffemodel(place / "snap_iter_10.caffemodel").layers:
        for index, array in enumerate(layer.blobs):
            if layer.name != "conv_classifier":
                parameter = model.get_parameter(parameter_name(f"{layer.name}/{index}")).detach().numpy()
                np.testing.assert_array_equal(parameter, array.reshape(parameter.shape))
    assert torch.equal(model.conv_classifier.weight, head)
    rates = {name: group["lr"] for group in t.optimizer.param_groups for name in group["param_names"]}
    assert rates["conv_classifier.weight"] == pytest.approx(1.0)
    assert rates["conv_classifier.bias"] == pytest.approx(2.0)
    assert rates["conv1.bias"] == pytest.approx(0.2)
    images = from_fixtures(fixtures, "basic_32x24_step", tmp_path)["data"][0]
    labels = (images[:, 0] > 0).long() + 2 * (images[:, 1] > 0).long()  # something that five classes can learn
    losses = []
    for _ in range(12):
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        t.optimizer.step()
        t.scheduler.step()
        t.optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_without_a_factor_another_head_is_refused_and_nothing_is_loaded(place: Path) -> None:
    torch.manual_seed(0)
    model = caffe2torch.SegNetBasic(4, 5, 8)
    t = caffe2torch.translate(place / "net5.prototxt", place / "solver.prototxt", model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(SnapshotError, match="conv_classifier/0"):
        t.load_caffemodel(place / "snap_iter_10.caffemodel")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_state_takes_its_own_weights_and_weights_given_win(place: Path) -> None:
    t = caffe2torch.translate(place / "net3.prototxt", place / "solver.prototxt", caffe2torch.SegNetBasic(4, 3, 8))
    assert t.load_solverstate(place / "snap_iter_10.solverstate") == ()
    assert t.scheduler.last_epoch == 10
    recorded = t.model.conv1.weight.detach().clone()
    (place / "snap_iter_10.caffemodel").rename(place / "moved.caffemodel")
    with torch.no_grad():
        t.model.conv1.weight.zero_()
    with pytest.raises(SnapshotError, match="are not there"):
        t.load_solverstate(place / "snap_iter_10.solverstate")
    assert not t.model.conv1.weight.any()
    t.load_solverstate(place / "snap_iter_10.solverstate", place / "moved.caffemodel")
    assert torch.equal(t.model.conv1.weight, recorded)


def test_nan_is_loaded_and_warned_of(place: Path) -> None:
    layers = {
        layer.name: [np.array(blob) for blob in layer.blobs]
        for layer in read_caffemodel(place / "snap_iter_10.caffemodel").layers
    }
    layers["conv1"][1][0] = np.nan
    path = files.caffemodel(place / "nan\x1b[31m.caffemodel", layers)
    t = caffe2torch.translate(place / "net3.prototxt", place / "solver.prototxt", caffe2torch.SegNetBasic(4, 3, 8))
    with pytest.warns(UserWarning, match=r"nan\\x1b\[31m\.caffemodel: 1 of the numbers of conv1\.bias are NaN"):
        t.load_caffemodel(path)
    assert torch.isnan(t.model.conv1.bias[0])


def test_a_checkpoint_of_training_from_scratch_serves_fine_tuning(place: Path) -> None:
    scratch = caffe2torch.translate(
        place / "net3.prototxt", place / "solver.prototxt", caffe2torch.SegNetBasic(4, 3, 8)
    )
    assert scratch.initialize(torch.Generator().manual_seed(5)) == ()
    scratch.save(place / "run.pt")
    fine = caffe2torch.translate(
        place / "net5.prototxt",
        place / "solver.prototxt",
        caffe2torch.SegNetBasic(4, 5, 8),
        finetune={"conv_class.*": 10},
    )
    notes = fine.load(place / "run.pt", finetune=True)
    assert len(notes) == 2
    assert torch.equal(fine.model.conv4.weight, scratch.model.conv4.weight)


def test_filling_is_repeatable_and_by_the_prototxts_fillers(place: Path) -> None:
    t = caffe2torch.translate(place / "net3.prototxt", place / "solver.prototxt", caffe2torch.SegNetBasic(4, 3, 8))
    weights = []
    for _ in range(2):
        t.initialize(torch.Generator().manual_seed(5))
        weights.append(torch.cat([parameter.detach().flatten() for parameter in t.model.parameters()]))
    assert torch.equal(*weights)
    assert float(t.model.conv2.weight.detach().std()) == pytest.approx((2 / (8 * 49)) ** 0.5, rel=0.1)  # msra
    assert t.model.conv2_bn.bias.detach().unique().tolist() == [np.float32(0.001)]
