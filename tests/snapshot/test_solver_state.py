"""A run of Caffe's goes on in torch: from its own snapshots to the weights that Caffe itself went on to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import snapshot_files as files
import torch
from snapshot_runs import Run, run_of, text_file

from caffe2torch.binding.bind import bind
from caffe2torch.binding.skeleton import skeleton
from caffe2torch.errors import SnapshotError
from caffe2torch.reading import read_recipe
from caffe2torch.snapshot.contents import Blobs, LayerWeights, SolverState, Weights
from caffe2torch.snapshot.files import find_learned_net, read_caffemodel, read_solverstate
from caffe2torch.snapshot.solver_state import resume

ADAPTIVE = ("AdaGrad", "RMSProp", "AdaDelta", "Adam")
IN_FIXTURES = ["adadelta_step", "adam_step", "nesterov_step", "sgd_multistep_hdf5", "sgd_multistep_newsteps"]


def run_in(folder: Path) -> Run:
    """A net's skeleton about to train, all its weights 9."""
    other = folder / "solver_resume.prototxt"
    recipe = read_recipe(folder / "net.prototxt", other if other.exists() else folder / "solver.prototxt")
    model = skeleton(recipe)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(9)
    return run_of(recipe, model, bind(recipe, model))


def state_in(folder: Path) -> SolverState:
    (path,) = folder.glob("snap_iter_*.solverstate*")
    return read_solverstate(path)


def check_resumed(folder: Path) -> None:
    run, state = run_in(folder), state_in(folder)
    weights = read_caffemodel(find_learned_net(state))
    assert resume(run.model, run.optimizer, run.scheduler, run.recipe, run.binding, state, weights) == ()
    assert run.scheduler.last_epoch == 17
    trace = np.load(folder / "trace.npz")
    names = [str(name) for name in trace["param_names"]]
    begun = {name: run.parameter(name).detach().clone().numpy() for name in names}
    steps = len(trace["resumed_lr"])
    worst, moved = 0.0, 0.0
    for step in range(steps):
        assert run.scheduler.rate() == pytest.approx(float(trace["resumed_lr"][step]), rel=1e-6)
        for name in names:
            gradient = trace[f"grad/{name}"][step - steps]
            parameter = run.parameter(name)
            parameter.grad = torch.from_numpy(gradient.copy()) if parameter.requires_grad else None
        run.optimizer.step()
        run.scheduler.step()
        for name in names:
            ours, theirs = run.parameter(name).detach().numpy(), trace[f"resumed_weight/{name}"][step]
            worst = max(worst, float(np.abs(ours - theirs).max()))
            moved = max(moved, float(np.abs(theirs - begun[name]).max()))
    assert worst <= (3e-6 if run.recipe.solver.type in ADAPTIVE else 1e-6) * moved


@pytest.mark.parametrize("case", IN_FIXTURES)
def test_a_restored_run_follows_caffes(fixtures: Path, case: str) -> None:
    if case.endswith("hdf5"):
        pytest.importorskip("h5py", reason="HDF5 needs h5py")
    check_resumed(fixtures / "snapshots/resume" / f"snap_{case}")


@pytest.mark.shared
def test_every_recorded_restored_run_follows_caffes(shared: Path) -> None:
    cases = sorted((shared / "goldens/bvlc").glob("snap_*"))
    assert len(cases) == 10
    for folder in cases:
        check_resumed(folder)


def test_a_restored_multistep_counter_catches_up_one_step_an_iteration(fixtures: Path) -> None:
    folder = fixtures / "snapshots/resume/snap_sgd_multistep_newsteps"
    run, state = run_in(folder), state_in(folder)
    weights = read_caffemodel(find_learned_net(state))
    resume(run.model, run.optimizer, run.scheduler, run.recipe, run.binding, state, weights)
    counters = [run.scheduler.current_step]
    for _ in range(4):
        run.optimizer.step()
        run.scheduler.step()
        counters.append(run.scheduler.current_step)
    assert counters[0] == state.current_step + 1
    assert counters == [1, 2, 3, 3, 3]


NET = """
layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ dim: 1 dim: 4 }} }} }}
layer {{ name: "one" type: "InnerProduct" bottom: "data" top: "one" inner_product_param {{ num_output: 3 {extra} }} }}
layer {{ name: "two" type: "InnerProduct" bottom: "one" top: "two"
  inner_product_param {{ num_output: 2 bias_term: false }} }}
"""
SOLVER = 'type: "{type}" base_lr: 0.1 lr_policy: "fixed" momentum: {momentum} max_iter: 9\n'
SHAPES = [(3, 4), (3,), (2, 3)]


def small_run(tmp_path: Path, type_: str = "SGD") -> Run:
    net = text_file(tmp_path / "net.prototxt", NET.format(extra=""))
    solver = text_file(tmp_path / "solver.prototxt", SOLVER.format(type=type_, momentum=0.9))
    recipe = read_recipe(net, solver)
    model = skeleton(recipe)
    return run_of(recipe, model, bind(recipe, model))


def arrays(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    return [np.arange(1, 1 + np.prod(shape), dtype="f4").reshape(shape) * (1 + i) for i, shape in enumerate(shapes)]


def load(run: Run, path: Path) -> tuple[object, ...]:
    """Resume, with weights of 0."""
    zeros: dict[str, list[np.ndarray]] = {}
    for blob in run.recipe.blobs:
        zeros.setdefault(blob.layer, []).append(np.zeros(blob.shape, np.float32))
    weights = Weights("w", "", tuple(LayerWeights(name, Blobs.of(blobs)) for name, blobs in zeros.items()))
    state = read_solverstate(path)
    return resume(run.model, run.optimizer, run.scheduler, run.recipe, run.binding, state, weights)


def test_sgds_history_holds_the_rate_and_torchs_buffer_does_not(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    history = arrays(*SHAPES)
    load(run, files.solverstate(tmp_path / "s", 4, history))
    for name, caffes in zip(("one/0", "one/1", "two/0"), history, strict=True):
        buffer = run.optimizer.state[run.parameter(name)]["momentum_buffer"]
        np.testing.assert_allclose(buffer.numpy() * run.optimizer.param_groups[0]["reference_lr"], caffes, rtol=2e-7)


def test_adams_history_is_all_firsts_then_all_seconds_and_its_step_the_iteration(tmp_path: Path) -> None:
    run = small_run(tmp_path, "Adam")
    firsts, seconds = arrays(*SHAPES), [values * 100 for values in arrays(*SHAPES)]
    load(run, files.solverstate(tmp_path / "s", 4, firsts + seconds))
    for name, first, second in zip(("one/0", "one/1", "two/0"), firsts, seconds, strict=True):
        state = run.optimizer.state[run.parameter(name)]
        np.testing.assert_array_equal(state["exp_avg"].numpy(), first)
        np.testing.assert_array_equal(state["exp_avg_sq"].numpy(), second)
        assert float(state["step"]) == 4


@pytest.mark.parametrize("rate", ["0", "-0.1"])
def test_a_history_survives_a_rate_of_zero(tmp_path: Path, rate: str) -> None:
    # At iteration 4 a poly policy with max_iter 4 has the rate 0: Caffe still moves the weights by the history.
    net = text_file(tmp_path / "net.prototxt", NET.format(extra=""))
    solver = f'base_lr: {rate} lr_policy: "poly" power: 1 momentum: 0.5 max_iter: 4\n'
    recipe = read_recipe(net, text_file(tmp_path / "solver.prototxt", solver))
    model = skeleton(recipe)
    run = run_of(recipe, model, bind(recipe, model))
    history = arrays(*SHAPES)
    load(run, files.solverstate(tmp_path / "s", 4, history))
    assert run.scheduler.rate() == 0
    run.optimizer.step()
    for name, caffes in zip(("one/0", "one/1", "two/0"), history, strict=True):
        np.testing.assert_allclose(run.parameter(name).detach().numpy(), -0.5 * caffes, rtol=3e-7)


def test_a_transposed_layers_history_is_transposed_with_it(tmp_path: Path) -> None:
    recipe = read_recipe(
        text_file(tmp_path / "net.prototxt", NET.format(extra="transpose: true")),
        text_file(tmp_path / "solver.prototxt", SOLVER.format(type="AdaGrad", momentum=0)),
    )
    model = torch.nn.ModuleDict({"one": torch.nn.Linear(4, 3), "two": torch.nn.Linear(3, 2, bias=False)})
    run = run_of(recipe, model, bind(recipe, model))
    history = arrays((4, 3), (3,), (2, 3))
    load(run, files.solverstate(tmp_path / "s", 4, history))
    np.testing.assert_array_equal(run.optimizer.state[model["one"].weight]["sum"].numpy(), history[0].T)


def test_a_state_without_its_step_counter_is_loaded_as_caffe_does_with_a_note_where_it_counts(tmp_path: Path) -> None:
    net = text_file(tmp_path / "net.prototxt", NET.format(extra=""))
    whole = files.solverstate(tmp_path / "whole", 7, arrays(*SHAPES), current_step=2).read_bytes()
    (tmp_path / "cut").write_bytes(whole[:-2])
    for policy, notes in (
        ('lr_policy: "multistep" gamma: 0.1 stepvalue: 3 stepvalue: 5 stepvalue: 9', 1),
        ('lr_policy: "multistep" gamma: 0.1 stepvalue: 8', 0),
        ('lr_policy: "fixed"', 0),
    ):
        solver = text_file(tmp_path / "solver.prototxt", f"base_lr: 0.1 {policy} momentum: 0.9 max_iter: 20")
        recipe = read_recipe(net, solver)
        model = skeleton(recipe)
        run = run_of(recipe, model, bind(recipe, model))
        assert load(run, tmp_path / "whole") == ()
        found = load(run, tmp_path / "cut")
        assert len(found) == notes
        assert all("no current_step" in str(note) and "the 2 stepvalues" in str(note) for note in found)


@pytest.mark.parametrize(
    ("history", "message"),
    [
        (SHAPES[:2], "history of 2 blobs"),
        ([*SHAPES, (1,)], "history of 4 blobs"),
        ([*SHAPES, *SHAPES], "3: SGD keeps 1 for each of 3 learnable blobs"),
        ([(3, 4), (4,), (2, 3)], "history 1, of one/1, has another shape"),
        ([(4, 3), (3,), (2, 3)], "history 0, of one/0, has another shape"),
    ],
)
def test_a_state_of_another_net_is_refused_and_nothing_is_touched(
    tmp_path: Path, history: list[tuple[int, ...]], message: str
) -> None:
    run = small_run(tmp_path)
    run.optimizer.step()
    run.scheduler.step()
    before = [{k: v.clone() for k, v in state.items()} for state in run.optimizer.state.values()]
    state = read_solverstate(files.solverstate(tmp_path / "s", 4, arrays(*history)))
    model = read_caffemodel(files.caffemodel(tmp_path / "m", {"one": arrays((3, 4), (3,)), "two": arrays((2, 3))}))
    with pytest.raises(SnapshotError) as error:
        resume(run.model, run.optimizer, run.scheduler, run.recipe, run.binding, state, model)
    assert message in str(error.value)
    after = list(run.optimizer.state.values())
    assert all(torch.equal(a[key], b[key]) for a, b in zip(before, after, strict=True) for key in a)
    assert run.scheduler.last_epoch == 1
    assert all(not parameter.any() for parameter in run.model.parameters())


def test_old_states_with_four_axes_fit(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    body = b"".join(
        files.block(3, files.legacy(values.shape) + files.block(5, values.tobytes())) for values in arrays(*SHAPES)
    )
    (tmp_path / "s").write_bytes(files.number(1, 4) + body)
    load(run, tmp_path / "s")
    assert run.scheduler.last_epoch == 4


def test_nan_in_a_history_is_loaded_and_said(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    history = arrays(*SHAPES)
    history[1][0] = np.nan
    (note,) = load(run, files.solverstate(tmp_path / "s", 4, history))
    assert "one.bias" in str(note)
    assert torch.isnan(run.optimizer.state[run.parameter("one/1")]["momentum_buffer"][0])


def test_frozen_parameters_and_statistics_count_in_the_order_but_hold_no_state(tmp_path: Path) -> None:
    net = """
    layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 2 dim: 3 dim: 3 } } }
    layer { name: "bn" type: "BatchNorm" bottom: "data" top: "bn" }
    layer { name: "scale" type: "Scale" bottom: "bn" top: "scale" param { lr_mult: 0 } scale_param { bias_term: true } }
    """
    recipe = read_recipe(
        text_file(tmp_path / "n.prototxt", net),
        text_file(tmp_path / "s.prototxt", SOLVER.format(type="SGD", momentum=0.9)),
    )
    model = torch.nn.ModuleDict({"bn": torch.nn.BatchNorm2d(2)})
    run = run_of(recipe, model, bind(recipe, model))
    load(run, files.solverstate(tmp_path / "s", 4, arrays((2,), (2,), (1,), (2,), (2,))))
    bn = model["bn"]
    assert bn.weight not in run.optimizer.state
    buffer = run.optimizer.state[bn.bias]["momentum_buffer"] * run.optimizer.param_groups[-1]["reference_lr"]
    np.testing.assert_allclose(buffer.numpy(), [5, 10], rtol=2e-7)  # the fifth blob's
