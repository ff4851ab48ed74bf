from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import caffe2torch
from caffe2torch.auditing import right_source
from caffe2torch.errors import SolverError
from caffe2torch.recipe import NetRecipe, Note, Severity, TrainingRecipe, require_solver

NET = 'layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 2 } }'
NOTE = Note(None, Severity.INFO, "a note")


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "net.prototxt"
    path.write_text(NET)
    return path


@pytest.fixture
def solver(tmp_path: Path) -> Path:
    path = tmp_path / "solver.prototxt"
    path.write_text('net: "net.prototxt" base_lr: 0.1 lr_policy: "fixed"')
    return path


def test_what_is_read_has_a_solver_by_its_type(net: Path, solver: Path) -> None:
    alone = caffe2torch.read_recipe(net)
    assert type(alone) is NetRecipe
    assert alone.solver is None
    for whole in (caffe2torch.read_recipe(net, solver), caffe2torch.read_recipe(None, solver)):
        assert type(whole) is TrainingRecipe
        assert isinstance(whole, NetRecipe)
        assert require_solver(whole) is whole
        assert replace(alone, notes=whole.notes, inputs={"data": (1, 3)}) == NetRecipe(
            whole.net_name, whole.blobs, whole.notes, whole.layers, inputs={"data": (1, 3)}
        )


def test_a_training_recipe_takes_its_solver_third_as_in_version_0_1(net: Path, solver: Path) -> None:
    whole = require_solver(caffe2torch.read_recipe(net, solver))
    made = TrainingRecipe(whole.net_name, whole.blobs, whole.solver, (NOTE,), whole.layers)
    assert made == replace(whole, notes=(NOTE,))
    assert made.solver is whole.solver


def test_a_net_recipe_takes_no_solver(net: Path, solver: Path) -> None:
    whole = require_solver(caffe2torch.read_recipe(net, solver))
    with pytest.raises(TypeError, match="solver"):
        NetRecipe("net", (), solver=whole.solver)  # type: ignore[call-arg]  # the point of the test
    with pytest.raises((TypeError, ValueError), match="solver"):
        replace(caffe2torch.read_recipe(net), solver=whole.solver)


@pytest.mark.parametrize(
    "call",
    [
        lambda recipe, model, _: caffe2torch.translate(recipe, model=model),
        lambda recipe, model, optimizer: caffe2torch.audit(recipe, model, optimizer),
        lambda recipe, model, optimizer: caffe2torch.audit(recipe, model, optimizer, by_role=True),
        lambda recipe, model, optimizer: caffe2torch.testing.assert_optimizer_matches(recipe, model, optimizer),
        lambda recipe, model, _: right_source(recipe, model),
    ],
)
@pytest.mark.parametrize("spelling", ["read", "a solver of None"])
def test_a_net_alone_is_refused_with_one_message(net: Path, spelling: str, call: Callable[..., object]) -> None:
    recipe = caffe2torch.read_recipe(net)
    if spelling == "a solver of None":
        recipe = TrainingRecipe(recipe.net_name, recipe.blobs, None)  # type: ignore[arg-type]  # what 0.1 allowed
    model = torch.nn.Sequential()
    model.add_module("ip", torch.nn.Linear(3, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(SolverError, match="a net alone does not say how it is trained") as error:
        call(recipe, model, optimizer)
    assert error.value.hint == "give the solver's prototxt beside the net's"
