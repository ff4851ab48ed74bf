"""From counterparts to tensors: every blob gets one, no tensor two, and what cannot be is a problem with a reason."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from caffe2torch.binding.counterparts import Counterpart, How
from caffe2torch.binding.graph import Held
from caffe2torch.binding.tensor_matching import Match, Misfit, match_tensors
from caffe2torch.recipe import TrainingRecipe

__all__ = ["Assigned", "Assignment", "assign"]


@dataclass(frozen=True, slots=True)
class Assigned:
    """What became of one blob: its tensor (``None``: torch has none, ``remark`` says why), by which evidence."""

    tensor: Held | None
    how: str
    remark: str = ""
    rivals: tuple[str, ...] = ()


@dataclass(slots=True)
class Assignment:
    """Blob (index) to what became of it; blobs that cannot be where their layer belongs; sharing that differs."""

    blobs: dict[int, Assigned] = field(default_factory=dict)
    misfits: list[tuple[Misfit, Counterpart]] = field(default_factory=list)
    clashes: list[str] = field(default_factory=list)


def assign(
    recipe: TrainingRecipe,
    counterparts: Sequence[Counterpart],
    said: Mapping[int, Held],
    skipped: Collection[int],
    cancelled: Mapping[int, bool],
) -> Assignment:
    """Give each blob its tensor. ``said`` are tensors that the user named, ``skipped`` blobs to do without, and
    ``cancelled`` the biases that a batch norm subtracts again (``biases_before_norms``).
    """
    result = Assignment({number: Assigned(None, How.SKIPPED) for number in skipped})
    result.blobs.update({number: Assigned(tensor, How.SAID) for number, tensor in said.items()})
    taken = {tensor.key for tensor in said.values()}
    for one in counterparts:
        free = replace(one.module, held=tuple(held for held in one.module.held if held.key not in taken))
        open_blobs = [number for number in one.blobs if number not in said and number not in skipped]
        matches, misfits = match_tensors(recipe, open_blobs, free, cancelled)
        if one.groups != one.module.groups and matches and not misfits:
            first, reason = matches.pop(0), f"it has {one.groups} groups in Caffe, {one.module.groups} in the model"
            misfits.append(Misfit(first.blob, first.tensor, reason))
        result.misfits += [(misfit, one) for misfit in misfits]
        for match in matches:
            _take(recipe, result, match, one)
    _refuse_two_blobs_on_one_tensor(recipe, result)
    return result


def _take(recipe: TrainingRecipe, result: Assignment, match: Match, one: Counterpart) -> None:
    before = result.blobs.get(match.blob)
    if before is not None and before.tensor is not None and match.tensor is not None:
        if before.tensor.key != match.tensor.key:
            blob = recipe.blobs[match.blob]
            users = ", ".join(dict.fromkeys((blob.layer, *(use.layer for use in blob.shared_with))))
            result.clashes.append(
                f"Caffe shares one {blob.role} between layers {users}; the model has two parameters for it, "
                f"{before.tensor.key} and {match.tensor.key}: tie them, or remove the sharing"
            )
        return
    rivals = tuple(
        str(held.key) for rival in one.rivals for held in rival.held if match.tensor and held.role == match.tensor.role
    )
    how = f"{one.how} (interchangeable)" if rivals else one.how
    result.blobs[match.blob] = Assigned(match.tensor, how, match.remark, rivals)


def _refuse_two_blobs_on_one_tensor(recipe: TrainingRecipe, result: Assignment) -> None:
    owner: dict[object, int] = {}
    for number, assigned in sorted(result.blobs.items()):
        if assigned.tensor is None:
            continue
        first = owner.setdefault(assigned.tensor.key, number)
        if first != number:
            names = f"{recipe.blobs[first].name!r} and {recipe.blobs[number].name!r}"
            result.clashes.append(
                f"Caffe has two blobs, {names}, where the model has one parameter, {assigned.tensor.key}: "
                "share them in Caffe by param names, or give the model a parameter for each"
            )
