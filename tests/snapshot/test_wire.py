"""Binary snapshots: every age and fork reads, the numbers stay where they are, damage is one clear error."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import snapshot_files as files
from hypothesis import given
from hypothesis import strategies as st

from caffe2torch.errors import InputError, SnapshotError
from caffe2torch.prototxt.schema import message as protobuf_message
from caffe2torch.snapshot.files import Weights, find_learned_net, read_caffemodel, read_solverstate
from caffe2torch.snapshot.wire import DamagedError, fields

WEIGHT = np.arange(12, dtype="f4").reshape(3, 4) - 5
BIAS = np.array([0.5, -2, 3e30], "f4")


def only_layer(weights: Weights) -> list[np.ndarray]:
    (layer,) = weights.layers
    return list(layer.blobs)


def written(tmp_path: Path, body: bytes, name: str = "m.caffemodel") -> Path:
    path = tmp_path / name
    path.write_bytes(body)
    return path


def model_of(tmp_path: Path, blob: bytes) -> Path:
    return written(tmp_path, files.layer("ip", blob))


def test_a_model_has_its_layers_names_shapes_and_numbers(tmp_path: Path) -> None:
    path = files.caffemodel(tmp_path / "m.caffemodel", {"ip": [WEIGHT, BIAS], "relu": [], "größe": [BIAS]}, "lenet")
    weights = read_caffemodel(path)
    assert (weights.net_name, [layer.name for layer in weights.layers]) == ("lenet", ["ip", "größe"])
    np.testing.assert_array_equal(weights.layers[0].blobs[0], WEIGHT)
    np.testing.assert_array_equal(weights.layers[0].blobs[1], BIAS)


def test_numbers_are_not_copied_out_of_the_file(tmp_path: Path) -> None:
    path = files.caffemodel(tmp_path / "m.caffemodel", {"ip": [WEIGHT]})
    (array,) = only_layer(read_caffemodel(path))
    assert not array.flags.owndata
    assert not array.flags.writeable


@pytest.mark.parametrize(
    "encoded",
    [
        files.block(5, WEIGHT.tobytes()),
        files.unpacked(WEIGHT),
        files.block(5, WEIGHT[0].tobytes()) + files.block(5, WEIGHT[1:].tobytes()),
        files.block(5, WEIGHT[0].tobytes()) + files.unpacked(WEIGHT[1:]),
        files.block(8, WEIGHT.astype("<f8").tobytes()),
        b"".join(files.varint(8 << 3 | 1) + v.tobytes() for v in WEIGHT.astype("<f8").reshape(-1)),
        files.number(10, 1) + files.block(12, WEIGHT.tobytes()),
        files.number(10, 2) + files.block(12, WEIGHT.astype("<f2").tobytes()),
        files.number(10, 0) + files.block(12, WEIGHT.astype("<f8").tobytes()),
    ],
    ids=[
        "packed", "unpacked", "two pieces", "packed, then unpacked", "double", "double, unpacked",
        "NVIDIA float", "NVIDIA float16", "NVIDIA double",
    ],
)  # fmt: skip
def test_every_way_of_writing_numbers_gives_the_same_array(tmp_path: Path, encoded: bytes) -> None:
    (array,) = only_layer(read_caffemodel(model_of(tmp_path, files.shape(WEIGHT.shape) + encoded)))
    np.testing.assert_array_equal(array, WEIGHT)


def test_the_gradient_that_a_blob_may_carry_is_passed_over(tmp_path: Path) -> None:
    body = files.blob(WEIGHT) + files.block(6, WEIGHT.tobytes())
    np.testing.assert_array_equal(only_layer(read_caffemodel(model_of(tmp_path, body)))[0], WEIGHT)


def test_old_shapes_have_four_axes(tmp_path: Path) -> None:
    body = files.legacy(WEIGHT.shape) + files.block(5, WEIGHT.tobytes())
    assert only_layer(read_caffemodel(model_of(tmp_path, body)))[0].shape == (1, 1, 3, 4)


def test_a_blob_without_axes_holds_one_number(tmp_path: Path) -> None:
    for body in (files.shape(()) + files.block(5, BIAS[:1].tobytes()), files.block(5, BIAS[:1].tobytes())):
        (array,) = only_layer(read_caffemodel(model_of(tmp_path, body)))
        assert (array.shape, float(array)) == ((), 0.5)


def test_v1_and_v0_layers_are_read(tmp_path: Path) -> None:
    # V1LayerParameter: name 4, type 5 (an enum), blobs 6; it may wrap a V0LayerParameter (layer 1): name 1, blobs 50.
    v1 = files.block(4, b"ip") + files.number(5, 14) + files.block(6, files.blob(WEIGHT))
    v0 = files.block(1, files.block(1, b"ip") + files.block(2, b"innerproduct") + files.block(50, files.blob(WEIGHT)))
    for layer in (v1, v0 + files.block(2, b"data") + files.block(3, b"ip")):
        weights = read_caffemodel(written(tmp_path, files.block(1, b"old") + files.block(2, layer)))
        assert weights.layers[0].name == "ip"
        np.testing.assert_array_equal(only_layer(weights)[0], WEIGHT)


def test_fields_of_any_fork_are_passed_over(tmp_path: Path) -> None:
    alien = b"".join(files.block(n, b"\xff\x07") + files.number(n + 1, 3) for n in (45, 137, 138, 200, 2001))
    layer = files.block(100, files.block(1, b"ip") + alien + files.block(7, files.blob(WEIGHT)) + alien)
    weights = read_caffemodel(written(tmp_path, alien + layer + alien))
    np.testing.assert_array_equal(only_layer(weights)[0], WEIGHT)


def test_a_state_has_its_counters_its_model_and_its_history(tmp_path: Path) -> None:
    path = files.solverstate(
        tmp_path / "s.solverstate", 17, [WEIGHT, BIAS], learned_net="runs/a.caffemodel", current_step=3
    )
    state = read_solverstate(path)
    assert (state.iteration, state.current_step, state.learned_net) == (17, 3, "runs/a.caffemodel")
    np.testing.assert_array_equal(state.history[0], WEIGHT)
    np.testing.assert_array_equal(state.history[1], BIAS)


def test_the_weights_of_a_state_are_found_where_it_says_or_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "kept").mkdir()
    state = read_solverstate(files.solverstate(tmp_path / "kept/s.solverstate", 1, [], learned_net="runs/a.caffemodel"))
    with pytest.raises(SnapshotError, match="are not there") as error:
        find_learned_net(state)
    assert "--weights" in str(error.value)
    beside = files.caffemodel(tmp_path / "kept/a.caffemodel", {"ip": [WEIGHT]})
    assert find_learned_net(state) == beside
    files.caffemodel(tmp_path / "runs/a.caffemodel", {"ip": [WEIGHT]})
    assert find_learned_net(state) == Path("runs/a.caffemodel")
    windows = read_solverstate(
        files.solverstate(tmp_path / "kept/w.solverstate", 1, [], learned_net="D:\\r\\a.caffemodel")
    )
    assert find_learned_net(windows) == beside
    with pytest.raises(SnapshotError, match="names no file"):
        find_learned_net(read_solverstate(files.solverstate(tmp_path / "n.solverstate", 1, [])))


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (files.shape((3, 5)) + files.block(5, WEIGHT.tobytes()), "12 numbers for the shape 3x5, which has 15"),
        (files.shape((3, 4)), "0 numbers for the shape 3x4"),
        (files.shape((3, 4)) + files.block(5, WEIGHT.tobytes()[:-1]), "47 bytes of numbers that take 4 each"),
        (files.shape((-3, 4)) + files.block(5, WEIGHT.tobytes()), "cannot have the shape -3x4"),
        (files.shape((0, 1 << 40)), "an axis of 1,099,511,627,776"),
        (files.shape((1,) * 33) + files.block(5, BIAS[:1].tobytes()), "cannot have the shape"),
        (files.number(7, 3) + files.block(5, WEIGHT.tobytes()), "field 7 of a blob is of another kind"),
        (files.number(10, 3) + files.block(12, b"\0" * 48) + files.shape((12,)), "raw_data of type 3 is not read"),
        (files.block(11, b"\0" * 48) + files.shape((12,)), "OpenCL"),
    ],
)
def test_a_blob_that_cannot_be_is_named_with_its_layer(tmp_path: Path, blob: bytes, message: str) -> None:
    with pytest.raises(SnapshotError, match="layer 'ip', blob 0") as error:
        read_caffemodel(model_of(tmp_path, blob))
    assert message in str(error.value)


def test_a_git_lfs_pointer_is_called_what_it_is(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 243862414\n"
    for read in (read_caffemodel, read_solverstate):
        with pytest.raises(SnapshotError, match="is a Git LFS pointer") as error:
            read(written(tmp_path, pointer))
        assert "git lfs pull" in str(error.value)


def test_an_empty_file_says_what_was_expected(tmp_path: Path) -> None:
    for read in (read_caffemodel, read_solverstate):
        with pytest.raises(InputError, match=r"is empty\n  expected: a \.caffemodel or \.solverstate"):
            read(written(tmp_path, b""))


def test_each_kind_of_wrong_file_is_called_what_it_is(tmp_path: Path) -> None:
    model = files.caffemodel(tmp_path / "m.caffemodel", {"ip": [WEIGHT]})
    state = files.solverstate(tmp_path / "s.solverstate", 3, [WEIGHT])
    text = written(tmp_path, b'name: "net"\r\nlayer { name: "ip" }\n', "train.prototxt")
    archive = written(tmp_path, b"PK\x03\x04" + b"\0" * 64, "model.pt")
    for read, path, message in (
        (read_caffemodel, state, "holds a solver's state, not weights"),
        (read_solverstate, model, "holds weights, not a solver's state"),
        (read_caffemodel, text, "is text"),
        (read_solverstate, text, "is text"),
        (read_caffemodel, archive, "zip archive"),
        (read_caffemodel, written(tmp_path, files.number(9, 1), "n"), "holds no layers"),
        (read_solverstate, written(tmp_path, files.number(9, 1), "n"), "holds no iteration"),
        (read_solverstate, written(tmp_path, files.number(1, -1), "i"), "iteration -1"),
    ):
        with pytest.raises(SnapshotError, match=message) as error:
            read(path)
        assert str(error.value).startswith(str(path))
    for path, message in (
        (tmp_path, "is a folder"),
        (tmp_path / "gone", "No such file"),
        (written(tmp_path, b"", "e"), "is empty"),
    ):
        with pytest.raises(InputError, match=message):
            read_caffemodel(path)


@given(data=st.data())
def test_damage_at_any_byte_is_one_error_or_other_numbers(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    body = (
        files.block(1, b"net")
        + files.layer("ip", files.blob(WEIGHT), files.blob(BIAS))
        + files.layer("old", files.legacy((3, 4)) + files.unpacked(WEIGHT))
        + files.block(2, files.block(4, b"v1") + files.block(6, files.blob(BIAS)))
    )
    state = files.solverstate(folder / "s", 9, [WEIGHT, BIAS], learned_net="m", current_step=1).read_bytes()
    for read, whole in ((read_caffemodel, body), (read_solverstate, state)):
        broken = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
        for _ in range(data.draw(st.integers(0, 4))):
            if broken:
                broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
        said = files.complaint(read, path := written(folder, bytes(broken), "x"))
        assert said == "" or said.startswith(str(path))


@given(st.binary(max_size=200))
def test_any_bytes_are_fields_or_damage(raw: bytes) -> None:
    position, stop = 0, len(raw)
    try:
        for field in fields(memoryview(raw)):
            assert position < field.end <= len(raw)
            position = field.end
    except DamagedError as error:
        stop = error.offset
    assert position <= stop <= len(raw)


def test_tags_that_alternate_cost_no_more_than_a_run(tmp_path: Path) -> None:
    # To look ahead to the end at each change of tag would be to read 36 GB: 120,000 times half of these 600 kB.
    pair = files.varint(5 << 3 | 5) + b"\0\0\0\0" + files.varint(6 << 3 | 5) + b"\0\0\0\0"
    path = model_of(tmp_path, files.shape((60_000,)) + pair * 60_000)
    start = time.perf_counter()
    (array,) = only_layer(read_caffemodel(path))
    assert array.shape == (60_000,)
    assert time.perf_counter() - start < 10


@pytest.mark.shared
def test_recorded_weights_equal_what_caffe_held(shared: Path) -> None:
    cases = sorted((shared / "goldens/bvlc").glob("*/final.caffemodel"))
    assert len(cases) > 70
    for path in cases:
        trace = np.load(path.parent / "trace.npz")
        owner = dict(trace["alias"].tolist()) if trace["alias"].size else {}
        for layer in read_caffemodel(path).layers:
            for index, array in enumerate(layer.blobs):
                key = owner.get(f"{layer.name}/{index}", f"{layer.name}/{index}")
                np.testing.assert_array_equal(array, trace[f"weight/{key}"][-1], err_msg=f"{path} {key}")


@pytest.mark.shared
def test_recorded_states_equal_what_caffe_held(shared: Path) -> None:
    cases = sorted((shared / "goldens/bvlc").glob("snap_*/snap_iter_17.solverstate"))
    assert len(cases) == 9
    for path in cases:
        trace, state = np.load(path.parent / "trace.npz"), read_solverstate(path)
        assert (state.iteration, state.current_step) == (17, int(trace["current_step"][16]))
        assert len(state.history) == sum(key.startswith("snap_history/") for key in trace.files)
        for index, array in enumerate(state.history):
            np.testing.assert_array_equal(array, trace[f"snap_history/{index}"])


@given(data=st.data())
def test_protobufs_own_writer_is_read_back_to_the_number(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    net = protobuf_message("NetParameter")(name="net", input=["data"], input_dim=[1, 2, 3])
    expected = []
    for index in range(data.draw(st.integers(1, 4))):
        current = data.draw(st.booleans())
        layer = (net.layer if current else net.layers).add(name=f"l{index}", bottom=["data"], top=[f"l{index}"])
        for _ in range(data.draw(st.integers(0, 3))):
            values = np.array(data.draw(st.lists(st.floats(width=32), max_size=6)), "f4")
            blob = layer.blobs.add()
            if data.draw(st.booleans()):
                blob.shape.dim.extend([values.size, 1])
            else:
                blob.num, blob.channels, blob.height, blob.width = 1, 1, values.size, 1
            (blob.data if data.draw(st.booleans()) else blob.double_data).extend(values)
            expected.append((layer.name, tuple(blob.shape.dim) or (1, 1, values.size, 1), values))
    path = written(tmp_path_factory.mktemp("oracle"), net.SerializeToString())
    found = [(layer.name, blob) for layer in read_caffemodel(path).layers for blob in layer.blobs]
    # Fields come in the order of their numbers: V1 layers (2) before layers (100).
    expected.sort(key=lambda item: item[0] in {layer.name for layer in net.layer})
    assert [(name, blob.shape) for name, blob in found] == [(name, shape) for name, shape, _ in expected]
    for (_, blob), (_, _, values) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(blob.reshape(-1), values)
