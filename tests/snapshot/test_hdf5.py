"""HDF5 snapshots say the same as binary ones; damage is one clear error."""

from __future__ import annotations

import random
import subprocess
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import snapshot_files as files
from places import SUPPORT

from caffe2torch.errors import SnapshotError
from caffe2torch.snapshot import hdf5
from caffe2torch.snapshot.files import read_caffemodel, read_solverstate

h5py = pytest.importorskip("h5py", reason="HDF5 needs h5py")

WEIGHT = np.arange(12, dtype="f4").reshape(3, 4)
BIAS = np.array([0.5, -2, 3], "f4")


def model(path: Path, layers: Mapping[str, Sequence[np.ndarray]]) -> Path:
    with h5py.File(path, "w") as file:
        for name, blobs in layers.items():
            group = file.create_group(f"data/{name}")
            for index, values in enumerate(blobs):
                group.create_dataset(str(index), data=values)
    return path


def state(path: Path, iteration: int, history: Sequence[np.ndarray], learned_net: str = "a.caffemodel.h5") -> Path:
    with h5py.File(path, "w") as file:
        file["iter"] = np.array([iteration], "i4")
        file["current_step"] = np.array([2], "i4")
        file["learned_net"] = np.bytes_(learned_net)
        for index, values in enumerate(history):
            file.create_dataset(f"history/{index}", data=values)
    return path


def test_a_model_has_its_layers_with_blobs(tmp_path: Path) -> None:
    path = model(tmp_path / "m.h5", {"ip": [WEIGHT, BIAS], "relu": [], "inception/1x1": [BIAS], "p": [BIAS[0]]})
    layers = {layer.name: layer.blobs for layer in read_caffemodel(path).layers}
    assert layers.keys() == {"ip", "inception/1x1", "p"}
    np.testing.assert_array_equal(layers["ip"][0], WEIGHT)
    np.testing.assert_array_equal(layers["inception/1x1"][0], BIAS)
    assert layers["p"][0].shape == ()


def test_a_state_has_its_history_in_the_order_of_numbers_not_of_names(tmp_path: Path) -> None:
    read = read_solverstate(state(tmp_path / "s.h5", 5, [BIAS + i for i in range(12)]))
    assert (read.iteration, read.current_step, read.learned_net) == (5, 2, "a.caffemodel.h5")
    np.testing.assert_array_equal(read.history[10], BIAS + 10)
    np.testing.assert_array_equal(read.history[2], BIAS + 2)


def test_wrong_files_are_called_what_they_are(tmp_path: Path) -> None:
    weights, solver = model(tmp_path / "m.h5", {"ip": [BIAS]}), state(tmp_path / "s.h5", 1, [BIAS])
    with pytest.raises(SnapshotError, match="state, not weights"):
        read_caffemodel(solver)
    with pytest.raises(SnapshotError, match="weights, not a solver's state"):
        read_solverstate(weights)
    with pytest.raises(SnapshotError, match="float"):
        read_caffemodel(model(tmp_path / "i.h5", {"ip": [np.arange(3)]}))
    with h5py.File(weights, "a") as file:
        file["data/ip/2"] = BIAS
    with pytest.raises(SnapshotError, match="none with number 1"):
        read_caffemodel(weights)


def test_a_size_that_the_file_cannot_hold_is_not_allocated(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.create_dataset("data/ip/0", shape=(1 << 40,), dtype="f4")  # HDF5 stores nothing until it is written
    with pytest.raises(SnapshotError, match="claims 4,398,046,511,104 bytes"):
        read_caffemodel(tmp_path / "m.h5")


def test_a_link_is_refused_wherever_it_is_and_wherever_it_leads(tmp_path: Path) -> None:
    other = model(tmp_path / "other.h5", {"ip": [BIAS]})
    states = state(tmp_path / "other_state.h5", 1, [BIAS])
    for place in ("data", "data/b", "data/a/1", "data/a/deep/er"):
        for link in (h5py.ExternalLink(str(other), "/data/ip"), h5py.SoftLink("/data/a")):
            with h5py.File(model(tmp_path / "m.h5", {} if place == "data" else {"a": [WEIGHT]}), "a") as file:
                file[place] = link
            with pytest.raises(SnapshotError, match=f"holds a link at '/{place}'"):
                read_caffemodel(tmp_path / "m.h5")
    for place in ("iter", "current_step", "learned_net", "history", "history/0"):
        with h5py.File(state(tmp_path / "s.h5", 1, [BIAS]), "a") as file:
            del file[place]
            file[place] = h5py.ExternalLink(str(states), place)
        with pytest.raises(SnapshotError, match=f"holds a link at '/{place}'"):
            read_solverstate(tmp_path / "s.h5")


def test_numbers_that_are_kept_in_another_file_are_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(48))
    source = h5py.VirtualSource(str(model(tmp_path / "other.h5", {"ip": [BIAS]})), "data/ip/0", shape=(3,))
    layout = h5py.VirtualLayout(shape=(3,), dtype="f4")
    layout[:] = source
    with h5py.File(tmp_path / "external.h5", "w") as file:
        file.create_dataset("data/ip/0", shape=(12,), dtype="f4", external=[(str(secret), 0, h5py.h5f.UNLIMITED)])
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        file.create_group("data/ip").create_virtual_dataset("0", layout)
    for name in ("external.h5", "virtual.h5"):
        with pytest.raises(SnapshotError, match="'/data/ip/0', whose numbers are in another file"):
            read_caffemodel(tmp_path / name)


def test_a_loop_ends_and_nesting_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(model(tmp_path / "m.h5", {"a": [WEIGHT]}), "a") as file:
        file["data/a/loop"] = file["data"]
        file["data/b"] = file["data/a"]  # a second name of the same group
    assert [layer.name for layer in read_caffemodel(tmp_path / "m.h5").layers] == ["a"]
    with h5py.File(tmp_path / "m.h5", "a") as file:
        file.create_group("data/" + "g/" * 3000)
    with pytest.raises(SnapshotError, match="nests groups more than 32 deep"):
        read_caffemodel(tmp_path / "m.h5")
    monkeypatch.setattr(hdf5, "_MOST", 99)
    with h5py.File(tmp_path / "wide.h5", "w") as file:
        for index in range(100):
            file.create_group(f"data/{index}")
    with pytest.raises(SnapshotError, match="more than 99 objects"):
        read_caffemodel(tmp_path / "wide.h5")


def packed(file: h5py.File, name: str, megabytes: int, chunks: int = 64) -> None:
    """A data set of zeros that takes a thousandth of its size in the file."""
    size = megabytes << 18
    dataset = file.create_dataset(name, (size,), "f4", chunks=(size // chunks,), compression="gzip")
    piece = zlib.compress(bytes(4 * size // chunks))
    for index in range(chunks):
        dataset.id.write_direct_chunk((index * (size // chunks),), piece)


def test_only_what_the_net_asks_for_is_unpacked(tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(
        'layer { name: "d" type: "Input" top: "d" input_param { shape { dim: 1 dim: 4 } } }\n'
        'layer { name: "ip" type: "InnerProduct" bottom: "d" top: "ip" inner_product_param { num_output: 3 } }'
    )
    (tmp_path / "solver.prototxt").write_text('base_lr: 0.1 lr_policy: "fixed"')
    with h5py.File(model(tmp_path / "m.h5", {"ip": [WEIGHT, BIAS]}), "a") as file:
        for layer in range(4):
            packed(file, f"data/other{layer}/0", 1000)
    with h5py.File(model(tmp_path / "wrong.h5", {}), "a") as file:
        packed(file, "data/ip/0", 4000)
    with h5py.File(state(tmp_path / "s.h5", 5, []), "a") as file:
        packed(file, "history/0", 4000)
        packed(file, "history/1", 4000)
    program = (
        f"import sys; sys.path.append({str(SUPPORT)!r})\n"
        "from memory import peak_bytes\n"
        "from caffe2torch.errors import SnapshotError\n"
        "from caffe2torch.reading import read_recipe\n"
        "from caffe2torch.snapshot.files import read_caffemodel, read_solverstate\n"
        "from caffe2torch.snapshot.match_blobs import blob_history, blob_weights\n"
        "before, recipe = peak_bytes(), read_recipe('net.prototxt', 'solver.prototxt')\n"
        "found, notes = blob_weights(recipe, read_caffemodel('m.h5'))\n"
        "print(len(found), len(notes), len(blob_weights(recipe, read_caffemodel('wrong.h5'), ['ip'])[0]))\n"
        "for read in (lambda: blob_weights(recipe, read_caffemodel('wrong.h5')),\n"
        "             lambda: blob_history(recipe, read_solverstate('s.h5'))):\n"
        "    try: read()\n"
        "    except SnapshotError as error: print('refused')\n"
        "print((peak_bytes() - before) >> 20)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    *said, megabytes = done.stdout.splitlines()
    assert said == ["2 1 0", "refused", "refused"]
    assert int(megabytes) < 300  # of what would be 4,000


def test_a_piece_larger_than_its_data_set_is_not_unpacked(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.create_dataset("data/ip/0", (3,), "f4", maxshape=(None,), chunks=(1 << 28,), compression="gzip")
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file.create_dataset("iter", (1,), "i4", maxshape=(None,), chunks=(1 << 28,), compression="gzip")
    for read, name in ((read_caffemodel, "m.h5"), (read_solverstate, "s.h5")):
        with pytest.raises(SnapshotError, match="in pieces larger than itself"):
            read(tmp_path / name)


@pytest.mark.parametrize("iteration", [2**64 - 1, 2**31, -1])
def test_a_count_that_caffe_cannot_have_written_is_refused(tmp_path: Path, iteration: int) -> None:
    with h5py.File(state(tmp_path / "s.h5", 1, [BIAS]), "a") as file:
        del file["iter"]
        file["iter"] = np.array([iteration], "u8" if iteration > 0 else "i8")
    files.solverstate(tmp_path / "s.solverstate", iteration, [])
    for name in ("s.h5", "s.solverstate"):
        with pytest.raises(SnapshotError, match="is damaged: iteration"):
            read_solverstate(tmp_path / name)


def test_damage_anywhere_is_one_error_or_other_numbers(tmp_path: Path) -> None:
    chance = random.Random(7)
    whole = {
        read_caffemodel: model(tmp_path / "m.h5", {"ip": [WEIGHT, BIAS], "fc": [WEIGHT]}).read_bytes(),
        read_solverstate: state(tmp_path / "s.h5", 5, [WEIGHT, BIAS]).read_bytes(),
    }
    path = tmp_path / "broken.h5"
    for read, raw in whole.items():
        for _ in range(150):
            broken = bytearray(raw[: chance.choice([len(raw), chance.randrange(1, len(raw))])])
            for _ in range(chance.choice([0, 1, 3, 20])):
                broken[chance.randrange(len(broken))] = chance.randrange(256)
            path.write_bytes(broken)
            said = files.complaint(read, path)
            assert said == "" or said.startswith(str(path))


def test_without_h5py_the_extra_is_named(tmp_path: Path) -> None:
    path = model(tmp_path / "m.h5", {"ip": [BIAS]})
    program = (
        "import sys; sys.modules['h5py'] = None\n"
        "from caffe2torch.snapshot.files import read_caffemodel\n"
        "from caffe2torch.errors import MissingExtraError\n"
        "try: read_caffemodel(sys.argv[1])\n"
        "except MissingExtraError as error: print(error.hint)\n"
    )
    said = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "pip install h5py"


@pytest.mark.shared
def test_recorded_hdf5_twins_equal_the_binary_files(shared: Path) -> None:
    cases = sorted((shared / "goldens/layers").glob("*/model.caffemodel"))
    assert len(cases) == 16
    for path in cases:
        binary, hdf5 = (
            {layer.name: layer.blobs for layer in read_caffemodel(p).layers}
            for p in (path, path.with_suffix(".caffemodel.h5"))
        )
        assert binary.keys() == hdf5.keys()
        for name, blobs in binary.items():
            assert len(blobs) == len(hdf5[name])
            for one, other in zip(blobs, hdf5[name], strict=True):
                np.testing.assert_array_equal(one, other)
    folder = shared / "goldens/bvlc/snap_sgd_multistep_hdf5"
    trace, read = np.load(folder / "trace.npz"), read_solverstate(folder / "snap_iter_17.solverstate.h5")
    assert (read.iteration, read.learned_net) == (17, "snap_iter_17.caffemodel.h5")
    for index, array in enumerate(read.history):
        np.testing.assert_array_equal(array, trace[f"snap_history/{index}"])


def test_numbers_in_one_piece_are_not_copied_and_compressed_ones_are_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.create_dataset("data/ip/0", data=WEIGHT)
        file.create_dataset("data/ip/1", data=np.zeros((100, 100), "f4"), compression="gzip", shuffle=True)
        file.create_dataset("data/ip/2", data=WEIGHT.astype(">f4"))
        file.create_dataset("data/ip/3", data=WEIGHT.astype("f8"), chunks=(1, 2))
    with h5py.File(tmp_path / "user.h5", "w", userblock_size=512) as file:
        file.create_dataset("data/ip/0", data=WEIGHT)
    ((first, zeros, swapped, double),) = (layer.blobs for layer in read_caffemodel(tmp_path / "m.h5").layers)
    assert not first.flags.owndata
    assert not first.flags.writeable
    for array in (first, swapped, double):
        np.testing.assert_array_equal(array, WEIGHT)
    assert zeros.shape == (100, 100)
    assert not zeros.any()
    # HDF5 looks for its signature at 0, 512, 1024, ...: what lies before it is the user's.
    np.testing.assert_array_equal(read_caffemodel(tmp_path / "user.h5").layers[0].blobs[0], WEIGHT)
