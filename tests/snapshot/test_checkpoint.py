"""Checkpoints: bit for bit, by name, checked, whole or not there."""

from __future__ import annotations

import errno
import os
import random
import struct
import subprocess
import sys
from pathlib import Path

import checkpoint_runs
import pytest
import snapshot_files as files
import torch
from checkpoint_runs import CASES, NET, Small, load, save, small_run, train
from snapshot_runs import Run
from torch import nn

from caffe2torch.errors import InputError, OutputError, SnapshotError
from caffe2torch.files import Counted
from caffe2torch.snapshot.checkpoint import checksum

SGD = CASES["sgd"]


def program(*arguments: object) -> str:
    """Run ``checkpoint_runs`` in a process of its own, as this one would import it."""
    search = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, checkpoint_runs.__file__, *map(str, arguments)],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": search},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def everything(run: Run) -> dict[str, torch.Tensor]:
    """All that a step could change."""
    names = {id(parameter): name for name, parameter in run.model.named_parameters()}
    state = {
        f"{names[id(p)]} {key}": value for p, values in run.optimizer.state.items() for key, value in values.items()
    }
    counters = {key: torch.tensor(value) for key, value in run.scheduler.state_dict().items()}
    groups = {f"lr {i}": torch.tensor(group["lr"]) for i, group in enumerate(run.optimizer.param_groups)}
    return {key: value.clone() for key, value in {**run.model.state_dict(), **state, **counters, **groups}.items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_run_goes_on_bit_for_bit_in_a_new_process(tmp_path: Path) -> None:
    after = {}
    for number, (case, solver) in enumerate(CASES.items()):
        run = small_run(tmp_path, solver)
        train(run, number)  # saved at another iteration each, before the first included
        save(run, tmp_path / f"{case}.pt")
        train(run, 8)
        after[case] = run.model.state_dict()
    program("go_on", tmp_path, 8)
    for case, weights in after.items():
        resumed = torch.load(tmp_path / f"{case}.after.pt", weights_only=True)
        assert equal(weights, resumed), case


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the child that is killed is forked")
def test_killed_while_saving_the_old_file_or_the_new_one_is_there_whole(tmp_path: Path) -> None:
    loaded, _, _, cut_off, *_ = program("be_killed", tmp_path, 5).replace(",", " ,").split()
    assert int(loaded) >= 6
    assert int(cut_off) >= 3


def test_loading_gives_back_all_state_whatever_went_before(tmp_path: Path) -> None:
    for solver in CASES.values():
        run = small_run(tmp_path, solver)
        train(run, 5)
        save(run, tmp_path / "c.pt")
        saved = everything(run)
        train(run, 3)
        assert not equal(everything(run), saved)
        assert load(run, tmp_path / "c.pt") == []
        assert equal(everything(run), saved)


def test_a_checkpoint_is_an_ordinary_torch_file_with_the_models_state_dict(tmp_path: Path) -> None:
    run = small_run(tmp_path, SGD)
    train(run, 2)
    save(run, tmp_path / "c.pt")
    content = torch.load(tmp_path / "c.pt", weights_only=True)
    Small().load_state_dict(content["model"])
    assert content["iteration"] == 2
    names = [name for group in content["optimizer"]["param_groups"] for name in group["param_names"]]
    assert sorted(names) == sorted(dict(run.model.named_parameters()))
    assert content["recipe"]["solver"]["type"] == "SGD"
    assert content["recipe"]["blobs"]["conv/1"] == {
        "shape": [4],
        "tensor": "conv.bias",
        "lr_mult": 2.0,
        "decay_mult": 0.0,
    }


def test_names_decide_not_the_order_of_parameters(tmp_path: Path) -> None:
    class Reordered(Small):
        def __init__(self) -> None:
            super().__init__()
            for name in ("ip", "bn", "conv", "fixed"):
                self._modules[name] = self._modules.pop(name)

    run, other = small_run(tmp_path, SGD), small_run(tmp_path, SGD, model=Reordered())
    train(run, 4)
    save(run, tmp_path / "c.pt")
    load(other, tmp_path / "c.pt")
    train(run, 3)
    train(other, 3)
    assert equal(everything(run), everything(other))


def test_a_wrapped_model_writes_what_the_bare_one_reads(tmp_path: Path) -> None:
    run, bare = small_run(tmp_path, SGD), small_run(tmp_path, SGD)
    train(run, 2)
    run.model = nn.DataParallel(run.model)
    save(run, tmp_path / "c.pt")
    load(bare, tmp_path / "c.pt")
    run.model = run.model.module
    assert equal(everything(run), everything(bare))


def test_fine_tuning_takes_the_weights_and_starts_the_optimizer_anew(tmp_path: Path) -> None:
    for solver in CASES.values():
        run, fresh = small_run(tmp_path, solver), small_run(tmp_path, solver)
        train(run, 5)
        save(run, tmp_path / "c.pt")
        weights = {name: value.clone() for name, value in run.model.state_dict().items()}
        assert load(run, tmp_path / "c.pt", finetune=True) == []  # an optimizer that has a history forgets it
        fresh.model.load_state_dict(weights)
        assert run.scheduler.last_epoch == 0
        train(run, 3)
        train(fresh, 3)
        assert equal(run.model.state_dict(), fresh.model.state_dict())


def test_fine_tuning_with_another_head_keeps_the_head_and_says_so(tmp_path: Path) -> None:
    run = small_run(tmp_path, SGD)
    train(run, 5)
    save(run, tmp_path / "c.pt")
    other = small_run(tmp_path, SGD, NET.replace("num_output: 3", "num_output: 7"), Small(7), ip=10.0)
    before = everything(other)
    with pytest.raises(SnapshotError, match=r"ip\.weight is \[3, 5\] in the file, \[7, 5\] in the model"):
        load(other, tmp_path / "c.pt", finetune=True)
    assert equal(everything(other), before)
    messages = load(other, tmp_path / "c.pt", finetune=True, new_layers=["ip"])
    assert [message.split(": ", 1)[1] for message in messages] == [
        "ip.weight is [3, 5] in the file, [7, 5] in the model; it is new and keeps its values",
        "ip.bias is [3] in the file, [7] in the model; it is new and keeps its values",
    ]
    assert torch.equal(other.model.conv.weight, run.model.conv.weight)
    assert torch.equal(other.model.ip.weight, before["ip.weight"])
    assert max(group["lr"] for group in other.optimizer.param_groups) == pytest.approx(1.0)
    train(other, 1)


def test_another_policy_or_other_multipliers_go_on_and_are_said(tmp_path: Path) -> None:
    run = small_run(tmp_path, SGD)
    train(run, 5)
    save(run, tmp_path / "c.pt")
    other = small_run(tmp_path, SGD.replace("stepsize: 3", "stepsize: 4"), NET.replace("lr_mult: 2", "lr_mult: 3"))
    (message,) = load(other, tmp_path / "c.pt")
    assert "conv/1's lr_mult 2 -> 3" in message
    assert "'stepsize': 3" in message
    assert other.scheduler.rate() == pytest.approx(0.05)
    # Caffe's history, which holds the rate, is the same although multipliers and groups are others.
    for name in ("conv.bias", "ip.weight"):
        histories = [
            one.optimizer.state[one.model.get_parameter(name)]["momentum_buffer"]
            * next(g["reference_lr"] for g in one.optimizer.param_groups if name in g["param_names"])
            for one in (run, other)
        ]
        torch.testing.assert_close(*histories, rtol=3e-7, atol=0)


@pytest.mark.parametrize(
    ("solver", "net", "classes", "message"),
    [
        (CASES["adam"], NET, 3, "the file is of a run with SGD, the solver is Adam"),
        (SGD, NET.replace("num_output: 3", "num_output: 7"), 7, "ip/0 has the shape [3, 5] in the file, [7, 5] now"),
        (SGD, NET.replace('"ip"', '"ip2"'), 3, "ip/0 is not in the net"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_and_nothing_changes(
    tmp_path: Path, solver: str, net: str, classes: int, message: str
) -> None:
    run = small_run(tmp_path, SGD)
    train(run, 2)
    save(run, tmp_path / "c.pt")
    model = Small(classes)
    if "ip2" in net:
        model.ip2 = model._modules.pop("ip")
    other = small_run(tmp_path, solver, net, model)
    before = everything(other)
    with pytest.raises(SnapshotError) as error:
        load(other, tmp_path / "c.pt")
    assert message in str(error.value)
    assert "finetune=True" in str(error.value)
    assert equal(everything(other), before)


def test_damage_anywhere_is_one_error_and_nothing_changes(tmp_path: Path) -> None:
    run = small_run(tmp_path, CASES["adam"])
    train(run, 3)
    save(run, tmp_path / "c.pt")
    before, whole, chance = everything(run), (tmp_path / "c.pt").read_bytes(), random.Random(2)
    refused = 0
    for kind in range(120):
        broken = bytearray(whole[: chance.randrange(len(whole))] if kind % 3 == 0 else whole)
        if kind % 3:
            broken[chance.randrange(len(broken))] ^= 1 << chance.randrange(8)
        path = tmp_path / "broken.pt"
        path.write_bytes(broken)
        said = files.complaint(lambda path: load(run, path), path)
        assert said == "" or said.startswith(str(path))
        refused += bool(said)
        assert equal(everything(run), before)  # also where a flipped bit fell into padding, and all was loaded
    assert refused > 80


def test_a_state_without_one_of_its_parts_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    run = small_run(tmp_path, CASES["adam"])
    train(run, 3)
    save(run, tmp_path / "whole.pt")
    before = everything(run)
    for part in ("step", "exp_avg", "exp_avg_sq"):
        content = torch.load(tmp_path / "whole.pt", weights_only=True)
        del content["optimizer"]["state"][1][part], content["checksum"]
        torch.save(content | {"checksum": checksum(content)}, tmp_path / "changed.pt")
        with pytest.raises(SnapshotError, match=f"lacks the state '{part}'"):
            load(run, tmp_path / "changed.pt")
        assert equal(everything(run), before)


def test_a_tensor_where_a_number_belongs_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    run = small_run(tmp_path, SGD)
    train(run, 3)
    save(run, tmp_path / "whole.pt")
    before = everything(run)
    content = torch.load(tmp_path / "whole.pt", weights_only=True)
    del content["checksum"]
    content["scheduler"]["last_epoch"] = torch.zeros(2)
    torch.save(content | {"checksum": checksum(content)}, tmp_path / "changed.pt")
    with pytest.raises(SnapshotError, match="is damaged"):
        load(run, tmp_path / "changed.pt")
    assert equal(everything(run), before)


def test_an_archive_that_goes_on_in_another_file_is_no_checkpoint(tmp_path: Path) -> None:
    run = small_run(tmp_path, SGD)
    save(run, tmp_path / "whole.pt")
    head, mark, tail = (tmp_path / "whole.pt").read_bytes().rpartition(b"PK\5\6")
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, 0, 2)  # of the second of two files
    (tmp_path / "part.pt").write_bytes(head + locator + mark + tail)
    with pytest.raises(SnapshotError, match="is damaged, or no checkpoint"):
        load(run, tmp_path / "part.pt")


def test_what_is_no_checkpoint_is_called_so(tmp_path: Path) -> None:
    run = small_run(tmp_path, SGD)
    torch.save({"model": run.model.state_dict()}, tmp_path / "plain.pt")
    torch.save(["list"], tmp_path / "list.pt")
    save(run, tmp_path / "whole.pt")
    content = torch.load(tmp_path / "whole.pt", weights_only=True)
    del content["checksum"]
    for key in ("model", "recipe", "scheduler", "optimizer"):
        for kind, changed in (("no", {**content, key: None}), ("empty", {**content, key: {}})):
            torch.save({**changed, "checksum": checksum(changed)}, tmp_path / f"{kind} {key}.pt")
    torch.save({**content, "model": {"a", "set"}, "checksum": 0}, tmp_path / "set.pt")
    torch.save({**content, "recipe": {"blobs": {"a", "set"}}, "checksum": 0}, tmp_path / "inner set.pt")
    (tmp_path / "text").write_text("net: 'train.prototxt'\n")
    for path in sorted({*tmp_path.glob("*.pt"), tmp_path / "text"} - {tmp_path / "whole.pt"}):
        if path.name == "empty optimizer.pt":
            continue  # before the first step there is no state
        with pytest.raises(SnapshotError, match=path.name.replace(".", r"\.")):
            load(run, path)
    for path in (tmp_path, tmp_path / "gone"):
        with pytest.raises(InputError):
            load(run, path)


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    run = small_run(tmp_path, SGD)
    with pytest.raises(OutputError, match="No such file"):
        save(run, tmp_path / "gone/c.pt")


def test_a_disk_that_is_full_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = small_run(tmp_path, SGD)
    save(run, tmp_path / "c.pt")
    before = (tmp_path / "c.pt").read_bytes()
    train(run, 1)
    written = 0

    def write(self: Counted, data: bytes) -> int:
        nonlocal written
        written += len(data)
        if written > 1000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(data)

    monkeypatch.setattr(Counted, "write", write)
    with pytest.raises(OutputError, match="No space left on device"):
        save(run, tmp_path / "c.pt")
    assert (tmp_path / "c.pt").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.pt", "net.prototxt", "solver.prototxt"]


def test_state_that_torch_would_not_load_safely_is_refused_when_it_is_saved(tmp_path: Path) -> None:
    class Tagged(Small):
        tag: object = {"runs": [1, 2.5, None, "a"]}

        def get_extra_state(self) -> object:
            return self.tag

        def set_extra_state(self, state: object) -> None:
            self.tag = state

    run = small_run(tmp_path, SGD, model=Tagged())
    save(run, tmp_path / "c.pt")
    run.model.tag = None
    assert load(run, tmp_path / "c.pt") == []
    assert run.model.tag == {"runs": [1, 2.5, None, "a"]}
    run.model.tag = Path("somewhere")
    with pytest.raises(OutputError, match="Path, which torch does not load"):
        save(run, tmp_path / "c.pt")
