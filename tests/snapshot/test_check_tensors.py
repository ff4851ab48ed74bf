"""A checkpoint's file is plain data: what torch would build besides is refused before anything is computed from it."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from caffe2torch.errors import SnapshotError
from caffe2torch.snapshot.check_tensors import check_archive, check_tensors, kind_problem


def loaded(tmp_path: Path, content: object) -> object:
    """What ``torch.load`` makes of ``content`` after it was saved."""
    torch.save(content, tmp_path / "run.pt")
    check_archive(tmp_path / "run.pt")
    return torch.load(tmp_path / "run.pt", map_location="cpu", weights_only=True)


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch advises against some of these, too
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: torch.eye(3).to_sparse(), "sparse"),
        (lambda: torch.eye(3).to_sparse_csr(), "sparse"),
        (lambda: torch.empty(3, device="meta"), "meta device"),
        (lambda: torch.zeros(1).expand(10**12), "1,000,000,000,000 numbers in 4 bytes"),
        (lambda: torch.zeros(2, dtype=torch.complex64), "complex"),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "quantized"),
    ],
    ids=["sparse", "csr", "meta", "expanded", "complex", "quantized"],
)
def test_a_tensor_that_is_no_weight_is_refused_with_its_place(
    tmp_path: Path, make: Callable[[], torch.Tensor], words: str
) -> None:
    content = loaded(tmp_path, {"model": {"a": torch.ones(2), "b.weight": make()}})
    with pytest.raises(SnapshotError, match=words) as error:
        check_tensors("run.pt", content)
    assert str(error.value).startswith("run.pt: is damaged: ['model']['b.weight'] is a ")


def test_what_training_leaves_is_plain(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last), nn.BatchNorm2d(4), nn.Linear(2, 2))
    model.add_module("tied", model[2])
    content = {"model": model.state_dict(), "view": torch.zeros(4, 6)[1:, ::2], "empty": torch.zeros(0, 3), "n": None}
    check_tensors("run.pt", loaded(tmp_path, content))


def test_containers_that_hold_themselves_or_double_without_end_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(SnapshotError, match="nested more than 16 deep"):
        check_tensors("run.pt", loaded(tmp_path, {"model": loop}))
    double: list[object] = []
    for _ in range(15):
        double = [double] * 10
    monkeypatch.setattr("caffe2torch.snapshot.check_tensors._MOST", 1000)
    with pytest.raises(SnapshotError, match="more than 1,000 values"):
        check_tensors("run.pt", {"model": double})
    with pytest.raises(SnapshotError, match=r"\['model'\] is a set"):
        check_tensors("run.pt", {"model": {1}})


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    torch.save({"model": torch.zeros(1000)}, tmp_path / "run.pt")
    with zipfile.ZipFile(tmp_path / "run.pt") as stored, zipfile.ZipFile(tmp_path / "bomb.pt", "w") as packed:
        for info in stored.infolist():
            packed.writestr(info.filename, stored.read(info), zipfile.ZIP_DEFLATED)
    torch.load(tmp_path / "bomb.pt", weights_only=True)  # torch reads it
    with pytest.raises(SnapshotError, match="compressed member"):
        check_archive(tmp_path / "bomb.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "run.pt").read_bytes()[:-30])
    with pytest.raises(SnapshotError, match="is damaged, or no checkpoint"):
        check_archive(tmp_path / "cut.pt")


def test_a_kind_of_numbers_takes_the_place_of_its_own_kind_only() -> None:
    kinds = {"float": torch.zeros(2), "half": torch.zeros(2).half(), "count": torch.zeros(2, dtype=torch.int64)}
    fitting = {(a, b) for a in kinds for b in kinds if kind_problem(kinds[a], kinds[b]) is None}
    assert fitting == {(a, b) for a in kinds for b in kinds if (a == "count") == (b == "count")}
