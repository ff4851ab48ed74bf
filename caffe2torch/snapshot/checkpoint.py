"""Checkpoints of our own: model, optimizer and scheduler by name, with the recipe that they belong to.

A checkpoint is an ordinary torch file that ``torch.load(path, weights_only=True)`` reads:

===============  ============================================================================================
``"format"``     ``"caffe2torch checkpoint 2"``
``"recipe"``     the net's name, its blobs (shape, multipliers, tensor) and its solver
``"iteration"``  the updates done
``"model"``      the ``state_dict`` of the model without wrappers
``"optimizer"``  the optimizer's ``state_dict``, whose groups name their parameters
``"scheduler"``  the scheduler's ``state_dict``
``"checksum"``   of all the above, since torch loads numbers with flipped bits without a word
===============  ============================================================================================

So torch alone can go on from it, with an emitted file for instance (``docs/snapshots.md``). The state of a run is the
checkpoint's, its settings are the recipe's: as in Caffe, a run may go on with another policy, other multipliers or
another momentum, and that is noted. Format 1, of version 0.1, kept states by parameter's name.
"""

from __future__ import annotations

import math
import os
import warnings
import zipfile
import zlib
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from caffe2torch.binding.plan import Binding, users
from caffe2torch.binding.wrappers import bare, named_tensors
from caffe2torch.errors import BindingError, InputError, ModelError, OutputError, SnapshotError
from caffe2torch.files import Counted, bar
from caffe2torch.optim.schedule import CaffeLRScheduler
from caffe2torch.outputs import whole_file
from caffe2torch.recipe import Note, Severity, TrainingRecipe
from caffe2torch.snapshot.check_tensors import check_archive, check_tensors, kind_problem
from caffe2torch.snapshot.sharding import is_first_process, like, whole
from caffe2torch.snapshot.solver_state import set_state
from caffe2torch.solver.update_rules import SOLVERS
from caffe2torch.wording import listed, matches

__all__ = ["checksum", "load_checkpoint", "save_checkpoint"]


def save_checkpoint(
    path: str | os.PathLike[str],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: CaffeLRScheduler,
    recipe: TrainingRecipe,
    binding: Binding,
) -> None:
    """Write a checkpoint, over an older one if there is one: killed at any moment, it is the old or the new, whole.

    Of a model that is sharded over processes (FSDP2) every process calls this, and the first one writes the whole.

    Raises:
        OutputError: The file cannot be written.
        ModelError: The optimizer holds parameters that the model no longer has.
    """
    _by_name(model, optimizer)
    content: dict[str, Any] = {
        "format": FORMAT,
        "recipe": record(recipe, binding),
        "iteration": scheduler.last_epoch,
        "model": whole(bare(model).state_dict()),
        "optimizer": whole(optimizer.state_dict()),
        "scheduler": scheduler.state_dict(),
    }
    if not is_first_process():
        return
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
    module = bare(model)
    notes: list[Note] = []
    states: Mapping[str, Mapping[str, Tensor]] = {}
    try:
        if not finetune:
            notes += check_recipe(path, content["recipe"], record(recipe, binding))
            states = check_optimizer(path, content, parameters, recipe)
        weights, kept = check_model(path, content["model"], module, binding, new_layers if finetune else ())
        # Only a multistep policy counts steps: one that comes new to a run begins at 0 and catches up, as in Caffe.
        counters = {key: content["scheduler"].get(key, 0) for key in scheduler.state_dict()}
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:  # of tensors in odd places, too
        raise SnapshotError(f"is damaged: {error!r}", where=str(path)) from None
    now = module.state_dict()
    module.load_state_dict({name: like(value, now[name]) for name, value in weights.items()}, strict=False)
    if finetune:
        _forget(optimizer)
        scheduler.restore(0, 0)
    else:
        set_state(optimizer, {parameters[name][0]: state for name, state in states.items()})
        scheduler.load_state_dict(counters)
    return (*notes, *kept)


def _forget(optimizer: torch.optim.Optimizer) -> None:
    """The state as it was before the first step: every solver's history begins as zeros, as does the count of steps."""
    for state in optimizer.state.values():
        for value in state.values():
            value.zero_()


def _by_name(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, tuple[Tensor, dict[str, Any]]]:
    """The optimizer's parameters in its order, by name, each with its group."""
    names = {id(tensor): name for name, tensor in named_tensors(model)}
    held = [(p, group) for group in optimizer.param_groups for p in group["params"]]
    if gone := sum(id(p) not in names for p, _ in held):
        raise ModelError(
            f"{gone} of the optimizer's {len(held)} parameters are no longer in the model",
            hint="translate again after a module was replaced, or the model was wrapped by something that flattens it",
        )
    return {names[id(p)]: (p, group) for p, group in held}


def _read(path: str | os.PathLike[str]) -> Any:
    place = Path(path)
    if not place.is_file():
        raise InputError("is a folder" if place.is_dir() else "is not there", where=str(path))
    reason = "it is no zip archive, as torch's files are"
    try:
        if zipfile.is_zipfile(path):
            check_archive(path)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch wonders about what it is about to refuse
                return torch.load(path, map_location="cpu", weights_only=True)
    except SnapshotError:
        raise
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


# Whether a checkpoint belongs to this recipe, this model and this optimizer: asked before anything is changed.

FORMAT = "caffe2torch checkpoint 2"
FIRST_FORMAT = "caffe2torch checkpoint 1"
"""Of version 0.1: ``optimizer`` was parameter name to state, ``reference`` parameter name to reference rate."""

_KINDS: Mapping[str, type] = {"recipe": dict, "iteration": int, "model": dict, "optimizer": dict, "scheduler": dict}
_NOT_SETTINGS = ("net", "unsupported", "places")
_LISTED = 8

AnyPath = str | os.PathLike[str]


def record(recipe: TrainingRecipe, binding: Binding) -> dict[str, Any]:
    """A recipe and its binding as plain data, as far as a checkpoint depends on them."""
    return {
        "net": recipe.net_name,
        "blobs": {
            bound.blob.name: {
                "shape": None if bound.blob.shape is None else list(bound.blob.shape),
                "tensor": bound.name,
                "lr_mult": bound.blob.lr_mult,
                "decay_mult": bound.blob.decay_mult,
            }
            for bound in binding.blobs
        },
        "solver": _plain({name: value for name, value in asdict(recipe.solver).items() if name not in _NOT_SETTINGS}),
    }


def check_whole(path: AnyPath, content: Any) -> dict[str, Any]:
    """The content of a file, if it is that of a checkpoint and plain data throughout."""
    check_tensors(path, content)
    if not isinstance(content, dict) or content.get("format") not in (FORMAT, FIRST_FORMAT):
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise SnapshotError("is no checkpoint of caffe2torch", where=str(path), found=str(found), expected=FORMAT)
    for key, kind in _KINDS.items():
        if not isinstance(content.get(key), kind):
            raise SnapshotError(f"is damaged: its {key!r} is not there", where=str(path))
    written = {key: value for key, value in content.items() if key != "checksum"}
    try:
        as_written = content.get("checksum") == checksum(written)
    except TypeError:
        as_written = False
    if not as_written:
        raise SnapshotError("is damaged: what it holds is not what was written", where=str(path))
    return content


def checksum(content: Any, so_far: int = 0) -> int:
    """CRC-32 of plain data and tensors, in their order. Raises ``TypeError`` for anything else.

    >>> checksum({"w": torch.zeros(2)}) == checksum({"w": torch.tensor([0.0, -0.0])})
    False
    """
    match content:
        case Mapping():
            for key, value in content.items():
                so_far = checksum(value, zlib.crc32(repr(key).encode(), so_far))
            return so_far
        case Tensor():
            flat = content.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            return zlib.crc32(flat.numpy().data, zlib.crc32(f"{content.dtype} {tuple(content.shape)}".encode(), so_far))
        case list() | tuple():
            for item in content:
                so_far = checksum(item, so_far)
            return so_far
        case str() | bytes() | int() | float() | None:
            return zlib.crc32(repr(content).encode(), so_far)
    raise TypeError(f"it holds a {type(content).__name__}, which torch does not load with weights_only=True")


def check_recipe(path: AnyPath, saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[Note]:
    """Notes on settings that differ; raises ``SnapshotError`` where blobs, their tensors or the solver do."""
    problems = []
    for name in dict.fromkeys([*saved["blobs"], *now["blobs"]]):
        before, after = saved["blobs"].get(name), now["blobs"].get(name)
        if before is None or after is None:
            problems.append(f"{name} is {'not in the file' if before is None else 'not in the net'}")
            continue
        problems += [
            f"{name} has the {key} {before[key]} in the file, {after[key]} now"
            for key in ("shape", "tensor")
            if before[key] != after[key]
        ]
    old, new = saved["solver"], now["solver"]
    if old.get("type") != new.get("type"):
        problems.append(f"the file is of a run with {old.get('type')}, the solver is {new.get('type')}")
    if problems:
        raise SnapshotError(
            f"is of another run: {'; '.join(listed(problems, _LISTED))}",
            where=str(path),
            hint="its weights alone can be had: load it with finetune=True",
        )
    changed = [
        f"{name}'s {key} {saved['blobs'][name][key]:g} -> {now['blobs'][name][key]:g}"
        for key in ("lr_mult", "decay_mult")
        for name in saved["blobs"]
        if saved["blobs"][name][key] != now["blobs"][name][key]
    ]
    changed += [f"{key} {old.get(key)} -> {new.get(key)}" for key in {**old, **new} if old.get(key) != new.get(key)]
    if not changed:
        return []
    message = f"{path}: the run goes on with other settings than it had: {'; '.join(listed(changed, _LISTED))}"
    return [Note(None, Severity.WARNING, message)]


def check_model(
    path: AnyPath, saved: Mapping[str, Any], model: nn.Module, binding: Binding, new_layers: Collection[str]
) -> tuple[dict[str, Any], list[Note]]:
    """The part of a saved ``state_dict`` that ``model`` takes, and a note on what it does not."""
    now = model.state_dict()
    layers = dict.fromkeys(layer for bound in binding.blobs for layer in users(bound.blob))
    found = (matches(key, layers, what="new_layers", of="layer that learns", error=BindingError) for key in new_layers)
    chosen = {layer for names in found for layer, _ in names}
    new = {  # modules, so that a new BatchNorm's counter of batches is new with it
        bound.name.rpartition(".")[0]
        for bound in binding.blobs
        if bound.name is not None and not chosen.isdisjoint(users(bound.blob))
    }
    problems: dict[str, str] = {}
    for name in dict.fromkeys([*saved, *now]):
        before, after = saved.get(name), now.get(name)
        if name not in saved or name not in now:
            problems[name] = f"{name} is not in the {'file' if name not in saved else 'model'}"
        elif isinstance(after, Tensor) and not (isinstance(before, Tensor) and before.shape == after.shape):
            size = list(before.shape) if isinstance(before, Tensor) else type(before).__name__
            problems[name] = f"{name} is {size} in the file, {list(after.shape)} in the model"
        elif isinstance(before, Tensor) and isinstance(after, Tensor) and (other := kind_problem(before, after)):
            raise SnapshotError(f"is damaged: {name} {other}", where=str(path))
    if errors := [problem for name, problem in problems.items() if name.rpartition(".")[0] not in new]:
        hint = "layers that are meant to be new must be named as such (a fine-tuning factor does that)"
        raise SnapshotError(f"is of another model: {'; '.join(listed(errors, _LISTED))}", where=str(path), hint=hint)
    kept = [
        Note(None, Severity.INFO, f"{path}: {problem}; it is new and keeps its values") for problem in problems.values()
    ]
    return {name: value for name, value in saved.items() if name not in problems}, kept


def check_optimizer(
    path: AnyPath,
    content: Mapping[str, Any],
    parameters: Mapping[str, tuple[Tensor, Mapping[str, Any]]],
    recipe: TrainingRecipe,
) -> dict[str, dict[str, Tensor]]:
    """The saved state of each parameter as this optimizer goes on with it; raises ``SnapshotError`` if it cannot."""
    history = SOLVERS[recipe.solver.type].history
    kept = {*history} if "momentum_buffer" in history else {*history, "step"}
    saved, references = _states_by_name(content)
    states: dict[str, dict[str, Tensor]] = {}
    problems = []
    for name, state in saved.items():
        if name not in parameters:
            problems.append(f"the optimizer has no parameter {name}")
            continue
        p, group = parameters[name]
        for key, value in state.items() if isinstance(state, dict) else [("", None)]:
            shape = torch.Size() if key == "step" else p.shape
            if key not in kept or not _is_plain(value, shape):
                problems.append(f"{name} has the state {key!r} of another kind or shape than this solver's")
        if isinstance(state, dict) and state and (missing := kept - state.keys()):
            problems.append(f"{name} lacks the state {sorted(missing)[0]!r}")
        states[name] = dict(state) if isinstance(state, dict) else {}
        if "momentum_buffer" in states[name]:
            reference = references.get(name)
            if not isinstance(reference, float) or not math.isfinite(reference) or reference == 0:
                problems.append(f"the reference rate of {name} is missing")
            elif reference != group["reference_lr"]:
                states[name]["momentum_buffer"] = states[name]["momentum_buffer"] * (reference / group["reference_lr"])
    iteration, counters = content["iteration"], content["scheduler"]
    if counters.get("last_epoch") != iteration or not 0 <= iteration < 2**31:
        problems.append("the scheduler's counters are missing, or not those of its iteration")
    elif not all(isinstance(counters.get(key, 0), int) for key in ("current_step", "_step_count")):
        problems.append("the scheduler's counters are no numbers")
    elif not all(isinstance(rate, float) for rate in counters.get("_last_lr", ())):  # the groups may be others now
        problems.append("the scheduler's rates are no numbers")
    if problems:
        raise SnapshotError(f"is of another run: {'; '.join(listed(problems, _LISTED))}", where=str(path))
    if any(states.values()):
        for name, (p, _) in parameters.items():
            if p.requires_grad and not states.get(name):  # frozen then, trained now: Caffe's history begins as zeros
                states[name] = {key: torch.zeros(p.shape, dtype=p.dtype) for key in history}
                if "step" in kept:
                    states[name]["step"] = torch.tensor(float(iteration))
    return states


def _states_by_name(content: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The state of each parameter, and the rate that its momentum buffer is divided by."""
    if content["format"] == FIRST_FORMAT:
        return content["optimizer"], content["reference"]
    groups = content["optimizer"]["param_groups"]
    names = {index: name for g in groups for index, name in zip(g["params"], g["param_names"], strict=True)}
    references = {name: group.get("reference_lr") for group in groups for name in group["param_names"]}
    return {names[index]: state for index, state in content["optimizer"]["state"].items()}, references


def _is_plain(value: object, shape: torch.Size) -> bool:
    """Whether it is a dense floating-point tensor of ``shape`` that holds its numbers."""
    return (
        isinstance(value, Tensor)
        and value.shape == shape
        and value.layout is torch.strided
        and not value.is_meta
        and value.is_floating_point()
    )


def _plain(value: Any) -> Any:
    """Data that ``torch.load`` reads without running code: text instead of enums, lists instead of tuples."""
    match value:
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
        case str():
            return str(value)
        case tuple() | list():
            return [_plain(item) for item in value]
    return value
