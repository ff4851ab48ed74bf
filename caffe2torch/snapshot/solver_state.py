"""Caffe's history as the state of torch's optimizers, and back to a run that goes on.

==================  =======================  =====================================================================
solver              history of a blob        torch's state of its parameter
==================  =======================  =====================================================================
SGD, Nesterov       h, the rate inside       ``momentum_buffer`` = h / the group's ``reference_lr`` (``solvers.py``)
AdaGrad             h                        ``sum``
RMSProp             h                        ``square_avg``
AdaDelta            h1, h2                   ``square_avg``, ``acc_delta``
Adam                m, v                     ``exp_avg``, ``exp_avg_sq``; ``step`` = the updates done
==================  =======================  =====================================================================

Source: ``sgd_solver.cpp`` (``RestoreSolverStateFrom...``), ``solver.cpp`` (``Solver::Restore``).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from caffe2torch.binding.layout import layout_of
from caffe2torch.binding.plan import Binding, Kind
from caffe2torch.binding.wrappers import named_modules, named_tensors
from caffe2torch.errors import SnapshotError
from caffe2torch.optim.build import align_state
from caffe2torch.optim.schedule import CaffeLRScheduler
from caffe2torch.recipe import Note, Severity, TrainingRecipe
from caffe2torch.snapshot.files import SolverState, Weights
from caffe2torch.snapshot.match_blobs import blob_history, missing_step
from caffe2torch.snapshot.sharding import like
from caffe2torch.snapshot.weights import Copy, check, copy_all, plan_weights, tensor_like
from caffe2torch.solver.requirements import has_momentum
from caffe2torch.solver.update_rules import SOLVERS

__all__ = ["resume", "set_state"]


def resume(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: CaffeLRScheduler,
    recipe: TrainingRecipe,
    binding: Binding,
    state: SolverState,
    weights: Weights,
) -> tuple[Note, ...]:
    """Go on where Caffe's solver stopped: its weights, its history, its iteration and its step counter.

    Both files are checked before anything is changed. Returns notes; raises ``SnapshotError`` when either file does
    not belong to the net and the solver.
    """
    copies, notes = plan_weights(model, recipe, binding, weights)
    history = _plan_history(model, optimizer, recipe, binding, state)
    notes += copy_all(copies, weights.file)
    return notes + missing_step(recipe, state) + _restore(optimizer, scheduler, state, history)


def _plan_history(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    recipe: TrainingRecipe,
    binding: Binding,
    state: SolverState,
) -> dict[Tensor, dict[str, Copy]]:
    """What each parameter's state will be, checked; nothing is touched yet."""
    histories = blob_history(recipe, state)
    keys = SOLVERS[recipe.solver.type].history
    if keys == ("momentum_buffer",) and not has_momentum(recipe.solver):
        return {}  # torch keeps no history that is forgotten at once
    tensors, modules = dict(named_tensors(model)), dict(named_modules(model))
    learning = {id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
    planned: dict[Tensor, dict[str, Copy]] = {}
    for bound, arrays in zip(binding.blobs, histories, strict=True):
        if bound.kind is not Kind.PARAMETER or bound.name is None or id(tensors[bound.name]) not in learning:
            continue
        parameter, layout = tensors[bound.name], layout_of(recipe, bound, modules)
        for array in arrays:
            if problem := check(bound.name, parameter, array.size, state.file):
                raise SnapshotError(f"its history does not fit the model: {problem}", where=state.file)
        copies = [Copy(bound.name, parameter, array, layout) for array in arrays]
        planned[parameter] = dict(zip(keys, copies, strict=True))
    return planned


def _restore(
    optimizer: torch.optim.Optimizer,
    scheduler: CaffeLRScheduler,
    state: SolverState,
    history: dict[Tensor, dict[str, Copy]],
) -> tuple[Note, ...]:
    scheduler.restore(state.iteration, state.current_step or 0)
    references = {id(p): group["reference_lr"] for group in optimizer.param_groups for p in group["params"]}
    notes = []
    states = {}
    for parameter, copies in history.items():
        tensors = {key: tensor_like(copy) for key, copy in copies.items()}
        notes += [
            Note(None, Severity.WARNING, f"{state.file}: the history of {copies[key].name} holds NaN or infinity")
            for key, tensor in tensors.items()
            if not torch.isfinite(tensor).all()
        ]
        if "momentum_buffer" in tensors:
            tensors["momentum_buffer"].div_(references[id(parameter)])
        else:
            tensors["step"] = torch.tensor(float(state.iteration))
        states[parameter] = tensors
    set_state(optimizer, states)
    return tuple(notes)


def set_state(optimizer: torch.optim.Optimizer, states: Mapping[Tensor, Mapping[str, Tensor]]) -> None:
    """Replace the states of some parameters, and leave those of the others.

    Each tensor comes to lie, and to be sharded, as its parameter is; torch puts it on the parameter's device.
    """
    saved = optimizer.state_dict()
    for index, p in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        if p in states:
            saved["state"][index] = {
                key: like(value, p) if value.shape == p.shape else value for key, value in states[p].items()
            }
    optimizer.load_state_dict(saved)
    align_state(optimizer)
