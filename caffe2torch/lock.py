"""The lock file: what an optimizer has to do, parameter by parameter, so that a project can check it without prototxts.

JSON with one blob a line, in Caffe's order, so that two locks can be compared by eye and by ``diff``. It holds no paths
of a machine and no time of day: the same prototxts and model give the same bytes.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, replace
from enum import Enum
from functools import cache
from os import PathLike, fspath
from pathlib import PurePath
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from caffe2torch.binding.plan import Binding, BoundBlob, GroupMember, GroupPlan, Kind, Unclaimed, read_evidence
from caffe2torch.errors import InputError, OutputError
from caffe2torch.files import read_text
from caffe2torch.recipe import (
    Accumulation,
    BlobUse,
    LearnableBlob,
    LrPolicy,
    PolicyType,
    Ramp,
    Regularization,
    SolverSettings,
    SolverType,
    SourceLocation,
    Stated,
    Statement,
    TrainingRecipe,
)

__all__ = ["Lock", "lock_of", "read_lock", "render_lock", "solver_fields", "solver_from"]

FORMAT, VERSION = "caffe2torch lock", 2


@dataclass(frozen=True, slots=True)
class Lock:
    """A recipe, what its blobs are in one model, and the groups that follow: all that an audit needs."""

    recipe: TrainingRecipe
    binding: Binding
    groups: tuple[GroupPlan, ...]
    accumulation: Accumulation = Accumulation.SUM


def lock_of(
    recipe: TrainingRecipe,
    binding: Binding,
    groups: Sequence[GroupPlan],
    accumulation: Accumulation = Accumulation.SUM,
) -> Lock:
    """Keep of a translation what an optimizer has to do.

    Notes, fillers, layers and evidence are left out, and the folder of each place.
    """
    kept = {bound.blob: _kept(bound.blob) for bound in binding.blobs}
    solver = replace(recipe.solver, places={}, unsupported=(), net=None, random_seed=None)
    return Lock(
        TrainingRecipe(recipe.net_name, tuple(kept[bound.blob] for bound in binding.blobs), solver),
        Binding(
            binding.model,
            tuple(replace(bound, blob=kept[bound.blob], rivals=()) for bound in binding.blobs),
            binding.unclaimed,
        ),
        tuple(
            replace(
                group,
                members=tuple(
                    GroupMember(member.parameter, None if member.blob is None else kept[member.blob])
                    for member in group.members
                ),
            )
            for group in groups
        ),
        accumulation,
    )


def render_lock(locked: Lock) -> str:
    """The text of a lock file; it ends with a line feed.

    Raises:
        OutputError: A rate or a multiplier is no finite number, which JSON cannot hold.
    """
    try:
        return _render(locked)
    except ValueError as error:
        raise OutputError(
            f"a lock file is JSON, and this recipe has a number that JSON cannot hold: {error}",
            hint="an infinite or undefined rate trains nothing: correct the prototxt",
        ) from None


def _render(locked: Lock) -> str:
    group_of = {member.parameter: index for index, group in enumerate(locked.groups) for member in group.members}
    parts = {
        "format": FORMAT,
        "version": VERSION,
        "net": locked.recipe.net_name,
        "model": locked.binding.model,
        "solver": solver_fields(locked.recipe.solver),
        "accumulation": str(locked.accumulation),
    }
    lines = [f"  {json.dumps(key)}: {json.dumps(value, allow_nan=False)}," for key, value in parts.items()]
    groups = [
        {"name": g.name, "lr_mult": g.lr_mult, "decay_mult": g.decay_mult, "factor": g.factor} for g in locked.groups
    ]
    lines += [*_list("groups", groups), "  ],"]
    blobs = [_blob_fields(bound, group_of.get(bound.name or "")) for bound in locked.binding.blobs]
    lines += [*_list("blobs", blobs), "  ],"]
    left = [
        {"parameter": one.name, "shape": list(one.shape), "group": group_of.get(one.name)}
        for one in locked.binding.unclaimed
    ]
    lines += [*_list("unclaimed_parameters", left), "  ]"]
    return "\n".join(["{", *lines, "}"]) + "\n"


def read_lock(path: str | PathLike[str]) -> Lock:
    """Read a lock file.

    Raises ``InputError`` for a file that is missing or no text, no JSON, no lock, or a lock of a later version.
    """
    source = read_text(path, expected="a lock file")
    try:
        data = json.loads(source.text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"this is not JSON: {error}", where=fspath(path), expected="a lock file") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise InputError("this is not a lock file", where=fspath(path), expected=f'"format": "{FORMAT}"')
    if data.get("version") not in (1, VERSION):
        found = f'"version": {json.dumps(data.get("version"))}'
        raise InputError("this lock is of another version", where=fspath(path), found=found, expected=str(VERSION))
    try:
        lock = _lock_from(data)
        _check_types(lock, "lock")
        return lock
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        text = f"this lock is damaged: {type(error).__name__} {error}"
        raise InputError(text, where=fspath(path), hint="write it again: caffe2torch translate ... --lock") from None


def _lock_from(data: dict[str, Any]) -> Lock:
    blobs = [_blob_from(fields) for fields in data["blobs"]]
    bound = tuple(
        BoundBlob(blob, Kind(fields["kind"]), fields["parameter"], evidence, remark=remark)
        for blob, fields in zip(blobs, data["blobs"], strict=True)
        for evidence, remark in [read_evidence(fields["bound_by"])]
    )
    members: list[list[GroupMember]] = [[] for _ in data["groups"]]
    for fields in (*data["blobs"], *data["unclaimed_parameters"]):
        if fields["group"] is not None and fields["group"] not in range(len(members)):
            raise IndexError(f"there is no group {fields['group']!r}")
    for blob, fields in zip(blobs, data["blobs"], strict=True):
        if fields["group"] is not None:
            members[fields["group"]].append(GroupMember(fields["parameter"], blob))
    unclaimed = []
    for fields in data["unclaimed_parameters"]:
        group = {} if fields["group"] is None else data["groups"][fields["group"]]
        unclaimed.append(
            Unclaimed(fields["parameter"], tuple(fields["shape"]), group.get("lr_mult"), group.get("decay_mult"))
        )
        if group:
            members[fields["group"]].append(GroupMember(fields["parameter"], None))
    groups = tuple(
        GroupPlan(group["name"], group["lr_mult"], group["decay_mult"], tuple(held), group["factor"])
        for group, held in zip(data["groups"], members, strict=True)
    )
    recipe = TrainingRecipe(data["net"], tuple(blobs), solver_from(data["solver"]))
    accumulation = Accumulation.SUM if data["version"] == 1 else Accumulation(data["accumulation"])
    return Lock(recipe, Binding(data["model"], bound, tuple(unclaimed)), groups, accumulation)


def _check_types(value: object, place: str, expected: Any = None) -> None:
    """Raise ``TypeError`` where JSON put another kind of value into a dataclass than its annotation says."""
    if isinstance(value, float) and not math.isfinite(value):
        raise TypeError(f"{place} is {value}")
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and isinstance(value, expected or object):
        hints = _hints(type(value))
        for field in dataclasses.fields(value):
            _check_types(getattr(value, field.name), f"{place}.{field.name}", hints[field.name])
    elif isinstance(expected, UnionType):
        kind = next((one for one in get_args(expected) if one is not NoneType), None)
        if value is not None:
            _check_types(value, place, kind)
    elif get_origin(expected) is tuple and isinstance(value, tuple):
        for index, item in enumerate(value):
            _check_types(item, f"{place}[{index}]", get_args(expected)[0])
    else:
        kinds = (int, float) if expected is float else get_origin(expected) or expected
        if not isinstance(value, kinds) or (isinstance(value, bool) and expected is not bool):
            raise TypeError(f"{place} is {value!r}")


_hints = cache(get_type_hints)


def _list(key: str, entries: Sequence[dict[str, Any]]) -> list[str]:
    """The lines of a list, an entry each, without the closing bracket."""
    lines = [f"    {json.dumps(entry, allow_nan=False)}" for entry in entries]
    return [f"  {json.dumps(key)}: [", *(line + "," for line in lines[:-1]), *lines[-1:]]


def _blob_fields(bound: BoundBlob, group: int | None) -> dict[str, Any]:
    blob = bound.blob
    fields: dict[str, Any] = {
        "parameter": bound.name,
        "kind": str(bound.kind),
        "group": group,
        "layer": blob.layer,
        "type": blob.layer_type,
        "blob": blob.index,
        "role": blob.role,
        "shape": None if blob.shape is None else list(blob.shape),
        "lr_mult": blob.lr_mult,
        "decay_mult": blob.decay_mult,
        "stated": [str(blob.stated.lr_mult), str(blob.stated.decay_mult)],
        "where": str(blob.where),
        "bound_by": bound.how,
    }
    if blob.shared_with:
        fields["shared_with"] = [[use.layer, use.layer_type, use.index, str(use.where)] for use in blob.shared_with]
    return fields


def _blob_from(fields: dict[str, Any]) -> LearnableBlob:
    return LearnableBlob(
        layer=fields["layer"],
        layer_type=fields["type"],
        index=fields["blob"],
        role=fields["role"],
        shape=None if fields["shape"] is None else tuple(fields["shape"]),
        lr_mult=fields["lr_mult"],
        decay_mult=fields["decay_mult"],
        stated=Stated(*map(Statement, fields["stated"])),
        where=_place(fields["where"]),
        shared_with=tuple(
            BlobUse(layer, layer_type, index, _place(where))
            for layer, layer_type, index, where in fields.get("shared_with", ())
        ),
    )


def _kept(blob: LearnableBlob) -> LearnableBlob:
    """What a lock keeps of a blob."""
    uses = tuple(replace(use, where=_bare(use.where), lr_mult=None) for use in blob.shared_with)
    return replace(blob, where=_bare(blob.where), shared_with=uses, filler=None)


def _bare(where: SourceLocation) -> SourceLocation:
    """A place without its folder."""
    return replace(where, file=PurePath(where.file).name)


def _place(text: str) -> SourceLocation:
    file, line, column = text.rsplit(":", 2)
    return SourceLocation(file, int(line), int(column))


# Solver settings as plain JSON values and back: only what differs from Caffe's defaults, always in one order.

_LEFT_OUT = {"places", "unsupported", "net", "random_seed"}


def solver_fields(settings: SolverSettings | LrPolicy | Ramp) -> dict[str, Any]:
    """Field to value, by the names of the dataclasses in ``recipe.py``."""
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.name in _LEFT_OUT or (field.default is not MISSING and value == field.default):
            continue
        if isinstance(value, Enum):
            value = value.value
        elif isinstance(value, LrPolicy | Ramp):
            value = solver_fields(value)
        elif isinstance(value, tuple):
            value = list(value)
        fields[field.name] = value
    return fields


def solver_from(fields: dict[str, Any]) -> SolverSettings:
    """The settings again. Raises ``KeyError``, ``TypeError`` or ``ValueError`` for what are none."""
    values = dict(fields)
    policy: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in values.pop("policy").items()
    }
    policy["type"] = PolicyType(policy["type"])
    for ramp in ("momentum_ramp", "weight_decay_ramp"):
        if values.get(ramp) is not None:
            values[ramp] = Ramp(**values[ramp])
    if "regularization" in values:
        values["regularization"] = Regularization(values["regularization"])
    return SolverSettings(**{**values, "type": SolverType(values["type"]), "policy": LrPolicy(**policy)})
