"""Within one pair of counterparts: which blob is which tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from caffe2torch.binding.fitting import Fit, fit, spell
from caffe2torch.binding.graph import Held, Unit
from caffe2torch.recipe import LearnableBlob, TrainingRecipe

__all__ = ["Match", "Misfit", "blob_transposed", "match_tensors"]

_ALIKE = ({"weight", "scale", "slope"}, {"bias", "shift"})
"""Roles that differ in name only where the other side calls them otherwise."""


@dataclass(frozen=True, slots=True)
class Match:
    """A blob (index into ``TrainingRecipe.blobs``) and its tensor; ``None`` where torch has no counterpart."""

    blob: int
    tensor: Held | None
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Misfit:
    """A blob that cannot be the tensor that it should be, or that has none: both shapes, for a message."""

    blob: int
    tensor: Held | None
    reason: str


def match_tensors(
    recipe: TrainingRecipe, blobs: Sequence[int], module: Unit, cancelled: Mapping[int, bool] | None = None
) -> tuple[list[Match], list[Misfit]]:
    """Pair the blobs of a layer (or of a BatchNorm with its Scale) with a module's tensors by role, and check shapes.

    Three kinds of blobs may go without a tensor: BatchNorm's factor, which torch folds into its statistics;
    statistics, where the module keeps none; and a bias that a batch normalization subtracts again, where the module
    has none (``cancelled``, see ``biases_before_norms``).
    """
    free = list(module.held)
    matches: list[Match] = []
    misfits: list[Misfit] = []
    waiting = Counter(recipe.blobs[number].role for number in blobs)
    for number in blobs:
        blob = recipe.blobs[number]
        waiting[blob.role] -= 1
        tensor = _counterpart(blob, free, waiting[blob.role])
        if tensor is None:
            remark = _may_lack(blob, (cancelled or {}).get(number))
            if remark is None:
                misfits.append(Misfit(number, None, f"the module has no {blob.role}{module.remark}"))
            else:
                matches.append(Match(number, None, remark))
            continue
        free.remove(tensor)
        found = fit(blob.shape, tensor.shape or (), transpose=blob_transposed(recipe, blob))  # type: ignore[arg-type]
        if found is None:
            shapes = f"{spell(blob.shape)} in Caffe, {spell(tensor.shape)} in {tensor.key}"
            misfits.append(Misfit(number, tensor, f"its {blob.role} is {shapes}"))
        elif not tensor.trained and blob.role not in ("mean", "variance") and blob.lr_mult != 0:
            reason = (
                f"Caffe trains its {blob.role} (lr_mult {blob.lr_mult:g}), the model keeps {tensor.key} in a buffer"
            )
            misfits.append(Misfit(number, tensor, reason))
        else:
            matches.append(Match(number, tensor, _remark(blob, tensor, found)))
    return matches, misfits


def blob_transposed(recipe: TrainingRecipe, blob: LearnableBlob) -> bool:
    """Whether an InnerProduct keeps this weight as input x output (``transpose: true``)."""
    if blob.layer_type != "InnerProduct" or blob.role != "weight":
        return False
    return any(layer.name == blob.layer and bool(layer.settings.get("transpose")) for layer in recipe.layers)


def _counterpart(blob: LearnableBlob, free: list[Held], more: int) -> Held | None:
    """The tensor of the blob's role; of several the first, if ``more`` blobs of that role are left for the others.

    Blobs of a layer that no table knows have no roles: they are a module's parameters in order, if there are as many.
    """
    if blob.role == "unknown":
        trained = [held for held in free if held.trained]
        return trained[0] if len(trained) == 1 + more else None
    for wanted in ({blob.role}, *(alike for alike in _ALIKE if blob.role in alike)):
        found = [held for held in free if held.role in wanted]
        if len(found) == 1 + more or len(found) == 1:
            return found[0]
    return None


def _may_lack(blob: LearnableBlob, cancelled: bool | None) -> str | None:
    if blob.role == "factor":
        return "torch divides its running statistics already"
    if blob.role in ("mean", "variance"):
        return "the module keeps no running statistics"
    if blob.role == "bias" and cancelled is not None:
        if cancelled:
            return "the batch norm after it subtracts it again, and the model has none"
        return "the model has none: subtract it from the running mean of the batch norm after it when loading weights"
    return None


def _remark(blob: LearnableBlob, tensor: Held, found: Fit) -> str:
    if blob.role == "unknown" and tensor.role != "unknown":
        return "taken in order, since Caffe's roles are unknown"
    if found is Fit.TRANSPOSED:
        return "transposed"
    if found is Fit.RESHAPED and blob.role == "weight":
        return "reshaped"
    return ""
