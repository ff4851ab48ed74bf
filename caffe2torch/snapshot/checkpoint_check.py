"""Whether a checkpoint belongs to this recipe, this model and this optimizer: asked before anything is changed."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from caffe2torch.binding.plan import Binding
from caffe2torch.errors import SnapshotError
from caffe2torch.recipe import Note, Severity, TrainingRecipe
from caffe2torch.snapshot.solver_state import HISTORY

__all__ = ["FORMAT", "check_model", "check_optimizer", "check_recipe", "check_whole", "checksum", "record"]

FORMAT = "caffe2torch checkpoint 1"

_KINDS: Mapping[str, type] = {
    "recipe": dict,
    "iteration": int,
    "model": dict,
    "optimizer": dict,
    "reference": dict,
    "scheduler": dict,
}
_NOT_SETTINGS = ("net", "unsupported", "places")
_LISTED = 8

Path = str | os.PathLike[str]


def record(recipe: TrainingRecipe, binding: Binding) -> dict[str, Any]:
    """A recipe and its binding as plain data, as far as a checkpoint depends on them."""
    solver = {} if recipe.solver is None else asdict(recipe.solver)
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
        "solver": _plain({name: value for name, value in solver.items() if name not in _NOT_SETTINGS}),
    }


def check_whole(path: Path, content: Any) -> dict[str, Any]:
    """The content of a file, if it is that of a checkpoint."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise SnapshotError("is no checkpoint of caffe2torch", where=str(path), found=str(found), expected=FORMAT)
    for key, kind in _KINDS.items():
        if not isinstance(content.get(key), kind):
            raise SnapshotError(f"is damaged: its {key!r} is not there", where=str(path))
    written = {key: value for key, value in content.items() if key != "checksum"}
    try:
        whole = content.get("checksum") == checksum(written)
    except TypeError:
        whole = False
    if not whole:
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


def check_recipe(path: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[Note]:
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
            f"is of another run: {_listed(problems)}",
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
    message = f"{path}: the run goes on with other settings than it had: {_listed(changed)}"
    return [Note(None, Severity.WARNING, message)]


def check_model(
    path: Path, saved: Mapping[str, Any], model: nn.Module, binding: Binding, new_layers: Collection[str]
) -> tuple[dict[str, Any], list[Note]]:
    """The part of a saved ``state_dict`` that ``model`` takes, and a note on what it does not."""
    now = model.state_dict()
    new = {  # modules, so that a new BatchNorm's counter of batches is new with it
        bound.name.rpartition(".")[0]
        for bound in binding.blobs
        if bound.name is not None
        and any(bound.blob.layer == layer or re.fullmatch(layer, bound.blob.layer) for layer in new_layers)
    }
    problems: dict[str, str] = {}
    for name in dict.fromkeys([*saved, *now]):
        before, after = saved.get(name), now.get(name)
        if name not in saved or name not in now:
            problems[name] = f"{name} is not in the {'file' if name not in saved else 'model'}"
        elif isinstance(after, Tensor) and not (isinstance(before, Tensor) and before.shape == after.shape):
            size = list(before.shape) if isinstance(before, Tensor) else type(before).__name__
            problems[name] = f"{name} is {size} in the file, {list(after.shape)} in the model"
    if errors := [problem for name, problem in problems.items() if name.rpartition(".")[0] not in new]:
        hint = "layers that are meant to be new must be named as such (a fine-tuning factor does that)"
        raise SnapshotError(f"is of another model: {_listed(errors)}", where=str(path), hint=hint)
    kept = [
        Note(None, Severity.INFO, f"{path}: {problem}; it is new and keeps its values") for problem in problems.values()
    ]
    return {name: value for name, value in saved.items() if name not in problems}, kept


def check_optimizer(
    path: Path,
    content: Mapping[str, Any],
    parameters: Mapping[str, tuple[Tensor, Mapping[str, Any]]],
    recipe: TrainingRecipe,
) -> Mapping[str, Mapping[str, Tensor]]:
    """The saved state of each parameter, if it is one that this optimizer can go on with."""
    expected = {*HISTORY[recipe.solver.type], "step"} if recipe.solver is not None else set()
    problems = []
    for name, state in content["optimizer"].items():
        if name not in parameters:
            problems.append(f"the optimizer has no parameter {name}")
            continue
        shape = parameters[name][0].shape
        for key, value in state.items() if isinstance(state, dict) else [("", None)]:
            if key not in expected or not isinstance(value, Tensor) or value.shape != (() if key == "step" else shape):
                problems.append(f"{name} has the state {key!r} of another kind or shape than this solver's")
            elif key == "momentum_buffer" and not isinstance(content["reference"].get(name), float):
                problems.append(f"the reference of {name} is missing")
    counters = content["scheduler"]
    if not isinstance(counters.get("last_epoch"), int) or not isinstance(counters.get("current_step", 0), int):
        problems.append("the scheduler's counters are missing")
    if problems:
        raise SnapshotError(f"is of another run: {_listed(problems)}", where=str(path))
    states: Mapping[str, Mapping[str, Tensor]] = content["optimizer"]
    return states


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


def _listed(items: Iterable[str]) -> str:
    items = list(items)
    return "; ".join(items[:_LISTED]) + (f"; and {len(items) - _LISTED} more" if len(items) > _LISTED else "")
