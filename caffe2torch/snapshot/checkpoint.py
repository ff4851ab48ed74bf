"""Checkpoints of our own: model, optimizer and scheduler by name, with the recipe that they belong to.

A checkpoint is an ordinary torch file that ``torch.load(path, weights_only=True)`` reads:

===============  ============================================================================================
``"format"``     ``"caffe2torch checkpoint 1"``
``"recipe"``     the net's name, its blobs (shape, multipliers, tensor) and its solver
``"iteration"``  the updates done
``"model"``      the ``state_dict`` of the model without wrappers
``"optimizer"``  parameter name to its state (``momentum_buffer``, ...)
``"reference"``  parameter name to the ``lr_reference`` that its momentum buffer is divided by (SGD, Nesterov)
``"scheduler"``  the scheduler's ``state_dict``
``"checksum"``   of all the above, since torch loads numbers with flipped bits without a word
===============  ============================================================================================

The state of a run is the checkpoint's, its settings are the recipe's: as in Caffe, a run may go on with another
policy, other multipliers or another momentum, and that is noted.
"""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from caffe2torch.binding.plan import Binding
from caffe2torch.binding.wrappers import bare, named_tensors
from caffe2torch.errors import InputError, OutputError, SnapshotError
from caffe2torch.files import whole_file
from caffe2torch.optim.schedule import CaffeLRScheduler
from caffe2torch.progress import Counted, bar
from caffe2torch.recipe import Note, TrainingRecipe
from caffe2torch.snapshot.checkpoint_check import (
    FORMAT,
    check_model,
    check_optimizer,
    check_recipe,
    check_whole,
    checksum,
    record,
)

__all__ = ["load_checkpoint", "save_checkpoint"]


def save_checkpoint(
    path: str | os.PathLike[str],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: CaffeLRScheduler,
    recipe: TrainingRecipe,
    binding: Binding,
) -> None:
    """Write a checkpoint, over an older one if there is one: killed at any moment, it is the old or the new, whole.

    Raises ``OutputError`` when the file cannot be written.
    """
    names = _names(model)
    groups = [(group, p) for group in optimizer.param_groups for p in group["params"]]
    content: dict[str, Any] = {
        "format": FORMAT,
        "recipe": record(recipe, binding),
        "iteration": scheduler.last_epoch,
        "model": bare(model).state_dict(),
        "optimizer": {names[id(p)]: dict(optimizer.state[p]) for _, p in groups if optimizer.state.get(p)},
        "reference": {names[id(p)]: float(group["lr_reference"]) for group, p in groups if "lr_reference" in group},
        "scheduler": scheduler.state_dict(),
    }
    try:
        content["checksum"] = checksum(content)
        with whole_file(path) as file, bar(f"saving {Path(path).name}", _size(content)) as advance:
            torch.save(content, Counted(file, advance))  # type: ignore[arg-type]  # torch calls write() alone
    except TypeError as error:
        raise OutputError(f"the model's state cannot be written: {error}", where=str(path)) from None
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # torch raises over the system's own error
        if not isinstance(cause, OSError):
            raise
        raise OutputError(f"cannot be written: {cause.strerror or cause}", where=str(path)) from None


def load_checkpoint(
    path: str | os.PathLike[str],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: CaffeLRScheduler,
    recipe: TrainingRecipe,
    binding: Binding,
    *,
    finetune: bool = False,
    new_layers: Collection[str] = (),
) -> tuple[Note, ...]:
    """Go on from a checkpoint bit for bit, or (``finetune``) begin anew from its weights; on an error nothing changes.

    With ``finetune`` the optimizer forgets its history and the scheduler returns to iteration 0, and layers that
    ``new_layers`` names (their name, or a regular expression that matches all of it) may be missing in the file or
    have other shapes there: they keep what the model has.

    Returns notes: what was kept, which settings are others than before. Raises ``InputError`` for a file that cannot
    be read, ``SnapshotError`` for one that is damaged or belongs to another net, model or solver.
    """
    content = check_whole(path, _read(path))
    parameters = _by_name(model, optimizer)
    notes: list[Note] = []
    states: Mapping[str, Mapping[str, Tensor]] = {}
    try:
        if not finetune:
            notes += check_recipe(path, content["recipe"], record(recipe, binding))
            states = check_optimizer(path, content, parameters, recipe)
        weights, kept = check_model(path, content["model"], bare(model), binding, new_layers if finetune else ())
        # Only a multistep policy counts steps: one that comes new to a run begins at 0 and catches up, as in Caffe.
        counters = {key: content["scheduler"].get(key, 0) for key in scheduler.state_dict()}
    except (KeyError, TypeError, AttributeError) as error:
        raise SnapshotError(f"is damaged: {error!r}", where=str(path)) from None
    bare(model).load_state_dict(weights, strict=False)
    if finetune:
        _forget(optimizer)
        scheduler.restore(0, 0)
    else:
        _remember(optimizer, parameters, states, content["reference"])
        scheduler.load_state_dict(counters)
    return (*notes, *kept)


def _remember(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, tuple[Tensor, dict[str, Any]]],
    states: Mapping[str, Mapping[str, Tensor]],
    references: Mapping[str, float],
) -> None:
    """Give each parameter its state, and each group the reference of its buffers."""
    for name, (_, group) in parameters.items():
        if name in references:
            group["lr_reference"] = references[name]
    saved = optimizer.state_dict()
    saved["state"] = {index: dict(states[name]) for index, name in enumerate(parameters) if name in states}
    for index, (name, (_, group)) in enumerate(parameters.items()):
        # Parameters that were in two groups may be in one now.
        if name in references and references[name] != group["lr_reference"]:
            buffer = saved["state"][index]["momentum_buffer"]
            saved["state"][index]["momentum_buffer"] = buffer * (references[name] / group["lr_reference"])
    optimizer.load_state_dict(saved)


def _forget(optimizer: torch.optim.Optimizer) -> None:
    """The state as it was before the first step: every solver's history begins as zeros, as does the count of steps."""
    for group in optimizer.param_groups:
        group.pop("lr_reference", None)
    for state in optimizer.state.values():
        for value in state.values():
            value.zero_()


def _by_name(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, tuple[Tensor, dict[str, Any]]]:
    """The optimizer's parameters in its order, by name, each with its group."""
    names = _names(model)
    return {names[id(p)]: (p, group) for group in optimizer.param_groups for p in group["params"]}


def _names(model: nn.Module) -> dict[int, str]:
    return {id(tensor): name for name, tensor in named_tensors(model)}


def _read(path: str | os.PathLike[str]) -> Any:
    place = Path(path)
    if not place.is_file():
        raise InputError("is a folder" if place.is_dir() else "is not there", where=str(path))
    reason = "it is no zip archive, as torch's files are"
    try:
        if zipfile.is_zipfile(path):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch wonders about what it is about to refuse
                return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch each raise their own on damage
        reason = str(error).split("\n", 1)[0]
    raise SnapshotError(
        f"is damaged, or no checkpoint: {reason}",
        where=str(path),
        hint="Caffe's own files are loaded by load_caffemodel",
    )


def _size(content: object) -> int:
    match content:
        case Tensor():
            return content.nbytes
        case Mapping():
            return sum(_size(value) for value in content.values())
    return 0
