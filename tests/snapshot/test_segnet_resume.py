"""SegNetBasic's recorded snapshot at iteration 10: on to iteration 20, where the fork of Caffe went on to itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from segnet_replay import Recording, distances, from_fixtures, from_shared, parameter_name, train
from snapshot_runs import Run, run_of

from caffe2torch.binding.bind import bind
from caffe2torch.reading import read_recipe
from caffe2torch.snapshot.files import find_learned_net, read_caffemodel, read_solverstate
from caffe2torch.snapshot.solver_state import resume

CASES = ["basic_32x24_step", "basic_36x24_step"]


def resumed(recording: Recording, folder: Path) -> Run:
    recipe, model = read_recipe(recording.net, recording.solver), recording.model()
    run = run_of(recipe, model, bind(recipe, model))
    state = read_solverstate(folder / "snap_iter_10.solverstate")
    weights = read_caffemodel(find_learned_net(state))
    assert resume(model, run.optimizer, run.scheduler, recipe, run.binding, state, weights) == ()
    assert run.scheduler.last_epoch == 10
    return run


def go_on(run: Run, recording: Recording) -> dict[str, float]:
    train(run.model, run.optimizer, run.scheduler, recording, range(10, 20))
    return distances(run.model, recording, 20)


def test_a_restored_run_ends_where_caffes_ends(fixtures: Path, tmp_path: Path) -> None:
    recording = from_fixtures(fixtures, "basic_32x24_step", tmp_path)
    assert max(go_on(resumed(recording, fixtures / "snapshots/segnet"), recording).values()) < 2e-6


@pytest.mark.shared
@pytest.mark.parametrize("case", CASES)
def test_both_recorded_runs_end_where_caffes_end(shared: Path, case: str) -> None:
    recording = from_shared(shared, case)
    found = go_on(resumed(recording, shared / "goldens/segnet" / case), recording)
    assert max(found.values()) < 2e-6


@pytest.mark.shared
@pytest.mark.parametrize("case", CASES)
def test_fed_caffes_own_gradients_a_restored_run_has_caffes_weights(shared: Path, case: str) -> None:
    recording, folder = from_shared(shared, case), shared / "goldens/segnet" / case
    run, gradients = resumed(recording, folder), np.load(folder / "grads.npz")
    for iteration in range(10, 20):
        for blob in gradients.files:
            parameter = run.model.get_parameter(parameter_name(blob))
            parameter.grad = torch.from_numpy(gradients[blob][iteration].copy()).reshape(parameter.shape)
        run.optimizer.step()
        run.scheduler.step()
    assert max(distances(run.model, recording, 20).values()) < 1e-6
