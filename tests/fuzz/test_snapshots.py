"""Damaged snapshots, checkpoints, names files and locks: read or refused, and on a refusal nothing has changed."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest
import snapshot_files as files
from checkpoint_runs import CASES, load, save, small_run, train
from fuzz import Feed, damaged
from snapshot_runs import Run, unchanged_on_refusal

from caffe2torch.binding.names import read_names
from caffe2torch.lock import lock_of, read_lock, render_lock
from caffe2torch.snapshot.files import read_caffemodel, read_solverstate
from caffe2torch.snapshot.solver_state import resume
from caffe2torch.snapshot.weights import load_weights

FIELDS = (
    *(files.varint(number << 3 | wire) for number in (1, 2, 3, 4, 5, 7, 8, 10, 12, 100) for wire in range(8)),
    *(files.varint(value) for value in (0, 127, 128, 1 << 31, 1 << 32, (1 << 63) - 1, (1 << 64) - 1)),
    b"\xff" * 11,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A small model in training, a few iterations in."""
    trained = small_run(tmp_path, CASES["adam"])
    train(trained, 3)
    return trained


def arrays(run: Run) -> dict[str, list[np.ndarray]]:
    """Blobs as the net has them, by layer."""
    found: dict[str, list[np.ndarray]] = {}
    for number, blob in enumerate(run.recipe.blobs):
        assert blob.shape is not None
        found.setdefault(blob.layer, []).append(np.full(blob.shape, number, "f4"))
    return found


def snapshots(run: Run, tmp_path: Path) -> tuple[list[bytes], list[bytes]]:
    """Whole weights and states: binary, and HDF5 plain and compressed."""
    import h5py

    weights = [files.caffemodel(tmp_path / "w", arrays(run)).read_bytes()]
    history = 2 * [array for blobs in arrays(run).values() for array in blobs]
    states = [files.solverstate(tmp_path / "s", 5, history, learned_net="w").read_bytes()]
    for packing in (None, "gzip"):
        with h5py.File(tmp_path / "w.h5", "w") as file:
            for layer, blobs in arrays(run).items():
                for index, values in enumerate(blobs):
                    file.create_dataset(f"data/{layer}/{index}", data=values, compression=packing)
        weights.append((tmp_path / "w.h5").read_bytes())
        with h5py.File(tmp_path / "s.h5", "w") as file:
            file["iter"], file["current_step"], file["learned_net"] = np.int32([5]), np.int32([0]), np.bytes_("w")
            for index, values in enumerate(history):
                file.create_dataset(f"history/{index}", data=values, compression=packing)
        states.append((tmp_path / "s.h5").read_bytes())
    return weights, states


@pytest.mark.parametrize("kind", [0, 1, 2], ids=["binary", "HDF5", "compressed HDF5"])
def test_damaged_weights_are_loaded_or_refused_whole(run: Run, tmp_path: Path, feed: Feed, kind: int) -> None:
    pytest.importorskip("h5py")
    whole = snapshots(run, tmp_path)[0][kind]
    path = tmp_path / "damaged"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        unchanged_on_refusal(run, lambda: load_weights(run.model, run.recipe, run.binding, read_caffemodel(path)))

    tokens = () if kind else FIELDS
    feed(lambda c: damaged(whole, c, tokens=tokens), read)


@pytest.mark.parametrize("kind", [0, 1, 2], ids=["binary", "HDF5", "compressed HDF5"])
def test_damaged_states_are_loaded_or_refused_whole(run: Run, tmp_path: Path, feed: Feed, kind: int) -> None:
    pytest.importorskip("h5py")
    whole = snapshots(run, tmp_path)[1][kind]
    path = tmp_path / "damaged"
    weights = read_caffemodel(tmp_path / "w")
    parts = (run.model, run.optimizer, run.scheduler, run.recipe, run.binding)

    def read(data: bytes) -> None:
        path.write_bytes(data)
        unchanged_on_refusal(run, lambda: resume(*parts, read_solverstate(path), weights))

    tokens = () if kind else FIELDS
    feed(lambda c: damaged(whole, c, tokens=tokens), read)


def test_damaged_checkpoints_are_refused_and_nothing_changes(run: Run, tmp_path: Path, feed: Feed) -> None:
    path = tmp_path / "run.pt"
    save(run, path)
    whole = path.read_bytes()

    def read(data: bytes) -> None:
        path.write_bytes(data)
        unchanged_on_refusal(run, lambda: load(run, path))

    feed(lambda c: damaged(whole, c), read)


def test_damaged_names_files_are_read_or_refused(tmp_path: Path, feed: Feed) -> None:
    whole = b'conv1 = "down.0.conv"\n\'conv(\\d)\' = \'up.\\1.conv\'\n"conv1/1" = "down.0.shift"\n'
    tokens = (b"[" * 3000, b"a = " + b"[" * 3000, b"9" * 5000, b'"""', b"\\u", b"[[", b"a.b.", b"= ", b"inf", b"\xff")
    path = tmp_path / "names.toml"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        read_names(path)

    feed(lambda c: damaged(whole, c, tokens=tokens), read)


def test_damaged_locks_are_read_or_refused(run: Run, tmp_path: Path, feed: Feed) -> None:
    from caffe2torch.binding.plan import plan_groups

    whole = render_lock(lock_of(run.recipe, run.binding, plan_groups(run.recipe, run.binding))).encode()
    words = 'null true -1 1e999 NaN [] {} [[ "" 99999999999999999999 "a:b:c" "-1:0:0" 3.5 "\\ud800"'
    tokens = (*(word.encode() for word in words.split()), b"[" * 5000, b"9" * 5000)
    path = tmp_path / "lock.json"

    def values(chance: Random) -> bytes:
        """One value of the lock replaced by a token; or any damage."""
        if chance.random() < 0.3:
            return damaged(whole, chance, tokens=tokens)
        places = [i for i in range(len(whole)) if whole[i : i + 2] == b": "]
        start = chance.choice(places) + 2
        end = min(whole.find(mark, start) % (len(whole) + 1) for mark in (b",", b"}", b"\n"))
        return whole[:start] + chance.choice(tokens) + whole[end:]

    def read(data: bytes) -> None:
        path.write_bytes(data)
        render_lock(read_lock(path))

    feed(values, read)
