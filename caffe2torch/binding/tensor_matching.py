"""Within one pair of counterparts: which blob is which tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import prod

from caffe2torch.binding.graph import Held, Unit
from caffe2torch.recipe import LearnableBlob, Shape, TrainingRecipe

__all__ = [
    "Assigned",
    "Assignment",
    "Counterpart",
    "Findings",
    "How",
    "assign",
    "blob_transposed",
    "fit",
    "match_tensors",
    "spell",
]

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


# Whether a blob's shape fits a tensor's: the axes that Caffe and torch write differently for the same numbers.
#
# ===================  ==========================  ==============================================
# layer                Caffe                       torch
# ===================  ==========================  ==============================================
# Convolution          O x I/group x kernel        the same
# Deconvolution        I x O/group x kernel        the same (ConvTranspose)
# InnerProduct         O x (C*H*W)                 the same; or O x C x H x W of a full-size Conv
# InnerProduct         (C*H*W) x O (`transpose`)   transposed
# BN, Scale, PReLU     1xC, 1xCx1x1 or no axes     C; one number
# Embed                input x O                   the same (Embedding)
# ===================  ==========================  ==============================================


class Fit(StrEnum):
    """How a blob lies in a tensor."""

    SAME = "the same shape"
    RESHAPED = "other axes, the same order"
    TRANSPOSED = "transposed"
    OPEN = "as far as the net states its sizes"


def fit(blob: Shape | None, tensor: tuple[int, ...], *, transpose: bool = False) -> Fit | None:
    """How a blob of Caffe's shape ``blob`` lies in a tensor of shape ``tensor``; ``None`` if it does not.

    Axes of length one may come and go, and neighbouring axes after the first may be one axis on the other side; the
    order of the numbers is the same then. Sizes that the net leaves open fit anything.

    >>> fit((1, 64, 1, 1), (64,)), fit((4096, 25088), (4096, 512, 7, 7))
    (<Fit.RESHAPED: 'other axes, the same order'>, <Fit.RESHAPED: 'other axes, the same order'>)
    >>> fit((64, 3, 7, 7), (3, 64, 7, 7)) is None
    True
    """
    if blob is None:
        return Fit.OPEN
    if transpose and len(blob) == 2:
        turned = fit((blob[1], blob[0]), tensor)
        return turned if turned in (None, Fit.OPEN) else Fit.TRANSPOSED
    known = tuple(size for size in blob if size is not None)
    if len(known) < len(blob):
        return Fit.OPEN if _open_fit(blob, tensor) else None
    if known == tensor:
        return Fit.SAME
    ours, theirs = (tuple(size for size in shape if size != 1) for shape in (known, tensor))
    if ours == theirs:
        return Fit.RESHAPED if _same_front(known, tensor) else None
    if known[:1] != tensor[:1]:
        return None
    return Fit.RESHAPED if _merged(ours, theirs) or _merged(theirs, ours) else None


def spell(shape: Shape | None) -> str:
    """A shape as people write it.

    >>> spell((64, None, 3, 3)), spell(()), spell(None)
    ('64x?x3x3', '()', 'unknown')
    """
    if shape is None:
        return "unknown"
    return "x".join("?" if size is None else str(size) for size in shape) or "()"


def _same_front(blob: tuple[int, ...], tensor: tuple[int, ...]) -> bool:
    """A vector fits a vector; with two axes or more on both sides, the first counts outputs and must agree."""
    if len(blob) < 2 or len(tensor) < 2:
        return True
    return blob[0] == tensor[0]


def _merged(fine: tuple[int, ...], coarse: tuple[int, ...]) -> bool:
    """Whether ``coarse`` is ``fine`` with neighbouring axes multiplied together."""
    sizes = iter(fine)
    for size in coarse:
        product = 1
        while product < size:
            product *= next(sizes, size + 1)
        if product != size:
            return False
    return next(sizes, None) is None


def _open_fit(blob: Shape, tensor: tuple[int, ...]) -> bool:
    known = [size for size in blob if size is not None]
    if len(blob) == len(tensor):
        return all(size is None or size == other for size, other in zip(blob, tensor, strict=True))
    if blob and tensor and blob[0] not in (None, 1) and blob[0] != tensor[0]:
        return False
    return prod(tensor) % max(1, prod(known)) == 0


# From counterparts to tensors: every blob gets one, no tensor two, and what cannot be is a problem with a reason.


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


# A counterpart: blobs of the net, the module of the model that holds them, and the evidence for it.


class How:
    """Evidence, in words for a report."""

    SAID = "the user's names"
    EQUAL = "equal names"
    ALIKE = "names equal but for spelling"
    LEFT = "what names left of units that are alike"
    PLACE = "structure"
    NEARBY = "structure nearby"
    SKIPPED = "skipped by the user"


@dataclass(frozen=True, slots=True)
class Counterpart:
    """Blobs of a layer (or of several that are one unit) and the module that holds them, by which evidence.

    ``groups`` are the layer's: sizes can agree where they do not.
    """

    layer: str
    blobs: tuple[int, ...]
    module: Unit
    how: str
    rivals: tuple[Unit, ...] = ()
    groups: int = 1


@dataclass(slots=True)
class Findings:
    """Counterparts, and what was seen on the way.

    ``ties``: units of the net that nothing tells apart, with the modules that they could be. ``torn``: units of the
    net for which two claims lead to different modules. ``warnings``: what a person should read.
    """

    found: list[Counterpart] = field(default_factory=list)
    ties: list[tuple[tuple[Unit, ...], tuple[Unit, ...]]] = field(default_factory=list)
    torn: dict[str, tuple[str, ...]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    agree: bool = False  # the wirings are equal as a whole, at least but for sizes
