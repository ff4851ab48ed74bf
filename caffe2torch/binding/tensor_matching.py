"""Within each pair of counterparts: which blob is which tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from caffe2torch.binding.graph import TensorReference, Unit, UnitKind
from caffe2torch.binding.layout import DIRECTIONS, Fit, fit, stored
from caffe2torch.binding.net_graph import NetGraph
from caffe2torch.binding.plan import Evidence, Storage, users
from caffe2torch.recipe import LearnableBlob, NetRecipe
from caffe2torch.wording import shape_text

__all__ = ["Assigned", "Assignment", "Clash", "Counterpart", "Findings", "assign", "match_tensors"]


@dataclass(frozen=True, slots=True)
class Counterpart:
    """Blobs of a layer (or of several that are one unit) and the module that holds them, by which evidence.

    ``groups`` are the layer's: sizes can agree where they do not.
    """

    layer: str
    blobs: tuple[int, ...]
    module: Unit
    evidence: Evidence
    rivals: tuple[Unit, ...] = ()
    groups: int = 1


@dataclass(frozen=True, slots=True)
class Clash:
    """Sharing that differs, with the layers and modules that it is about.

    ``ties`` are pairs of the model's parameters that must become one; else ``advice`` says what to do.
    """

    text: str
    layers: tuple[str, ...]
    modules: tuple[str, ...] = ()
    ties: tuple[tuple[str, str], ...] = ()
    advice: str = ""


@dataclass(slots=True)
class Findings:
    """Counterparts, and what was noticed on the way.

    Attributes:
        found: The counterparts.
        ties: Units of the net that nothing distinguishes, with the modules that they could be.
        leads: For each tie the number of the one whose decision decides it, too.
        conflicting: Units of the net for which two claims lead to different modules, with these.
        warnings: What a person should read.
        agree: Whether the wirings are equal as wholes, at least but for sizes.
        absent: Blobs (indices) of frozen layers that no module could be.
        clashes: What only one side shares.
        elsewhere: Units of the net whose likeliest module stands elsewhere in the model.
        reordered: Units of the net whose inputs the model concatenates in another order; and whether their outputs
            stand in another order, too.
    """

    found: list[Counterpart] = field(default_factory=list)
    ties: list[tuple[tuple[Unit, ...], tuple[Unit, ...]]] = field(default_factory=list)
    leads: list[int] = field(default_factory=list)
    conflicting: dict[str, tuple[str, ...]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    agree: bool = False
    absent: frozenset[int] = frozenset()
    clashes: list[Clash] = field(default_factory=list)
    elsewhere: set[str] = field(default_factory=set)
    reordered: dict[str, bool] = field(default_factory=dict)


_ALIKE = ({"weight", "scale", "slope"}, {"bias", "shift"})
"""Roles that differ in name only where the other side calls them otherwise."""


@dataclass(frozen=True, slots=True)
class Match:
    """A blob (index into ``NetRecipe.blobs``) and its tensor; ``None`` where torch has no counterpart."""

    blob: int
    tensor: TensorReference | None
    remark: str = ""
    evidence: Evidence | None = None  # other than its counterpart's
    storage: Storage = Storage.USUAL


@dataclass(frozen=True, slots=True)
class Misfit:
    """A blob that cannot be the tensor that it should be, or that has none, and why."""

    blob: int
    tensor: TensorReference | None
    reason: str


def match_tensors(
    recipe: NetRecipe,
    blobs: Sequence[int],
    module: Unit,
    cancelled: Mapping[int, bool] | None = None,
    reshaped: Collection[int] = (),
) -> tuple[list[Match], list[Misfit]]:
    """Pair the blobs of a layer (or of a BatchNorm with its Scale) with a module's tensors by role, and check shapes.

    Blobs that may go without a tensor: BatchNorm's factor, which torch divides its statistics by at once; statistics,
    where the module keeps none; a bias that a batch normalization subtracts again (``cancelled``); and a bias, scale
    or shift that Caffe does not train. Blobs that are ``reshaped`` may have another shape in the model.
    """
    free = list(module.tensors)
    matches: list[Match] = []
    misfits: list[Misfit] = []
    waiting = Counter(recipe.blobs[number].role for number in blobs)
    for number in blobs:
        blob = recipe.blobs[number]
        waiting[blob.role] -= 1
        tensor = _tensor_for(blob, free, waiting[blob.role])
        if tensor is None:
            without = _may_lack(number, blob, (cancelled or {}).get(number))
            if without is None:
                misfits.append(Misfit(number, None, f"the module has no {blob.role}{module.remark}"))
            else:
                matches.append(without)
            continue
        free.remove(tensor)
        found = _stored(recipe, blob, tensor, module)
        if found is None and number in reshaped and (tensor.trained or blob.lr_mult == 0):
            remark = f"{shape_text(blob.shape)} in Caffe, {shape_text(tensor.shape)} in the model"
            matches.append(Match(number, tensor, remark, storage=Storage.OTHER))
        elif found is None:
            shapes = f"{shape_text(blob.shape)} in Caffe, {shape_text(tensor.shape)} in {tensor.key}"
            misfits.append(Misfit(number, tensor, f"its {blob.role} is {shapes}"))
        elif not tensor.trained and blob.role not in ("mean", "variance") and blob.lr_mult != 0:
            reason = (
                f"Caffe trains its {blob.role} (lr_mult {blob.lr_mult:g}), the model keeps {tensor.key} in a buffer"
            )
            misfits.append(Misfit(number, tensor, reason))
        else:
            matches.append(Match(number, tensor, _remark(blob, tensor, *found), storage=found[0]))
    return matches, misfits


def _tensor_for(blob: LearnableBlob, free: list[TensorReference], more: int) -> TensorReference | None:
    """The tensor of the blob's role; of several the first, if ``more`` blobs of that role are left for the others.

    Blobs of a layer that no table knows have no roles: they are a module's parameters in order, if there are as many.
    """
    if blob.role == "unknown":
        trained = [tensor for tensor in free if tensor.trained]
        return trained[0] if len(trained) == 1 + more else None
    for wanted in ({blob.role}, *(alike for alike in _ALIKE if blob.role in alike)):
        found = [tensor for tensor in free if tensor.role in wanted]
        if len(found) == 1 + more or len(found) == 1:
            return found[0]
    return None


def _may_lack(number: int, blob: LearnableBlob, cancelled: bool | None) -> Match | None:
    if blob.role == "factor":
        return Match(number, None, "torch divides its running statistics already")
    if blob.role in ("mean", "variance"):
        return Match(number, None, "the module keeps no running statistics")
    if blob.role in ("bias", "scale", "shift") and blob.lr_mult == 0:
        return Match(number, None, "Caffe does not train it, and the model has none", Evidence.NOT_NEEDED)
    if blob.role == "bias" and cancelled is not None:
        remark = (
            "the batch norm after it subtracts it again, and the model has none"
            if cancelled
            else "the model has none: subtract it from the running mean of the batch norm after it when loading weights"
        )
        return Match(number, None, remark, Evidence.CANCELLED)
    return None


def _stored(
    recipe: NetRecipe, blob: LearnableBlob, tensor: TensorReference, module: Unit
) -> tuple[Storage, Fit] | None:
    """As ``layout.stored``; and a convolution may be a transposed one with the same kernel, or the reverse."""
    crossed = blob.layer_type in ("Convolution", "Deconvolution") and (
        (module.kind is UnitKind.TRANSPOSED) != (blob.layer_type == "Deconvolution")
    )
    if not crossed or blob.role != "weight" or blob.shape is None or len(blob.shape) < 3 or module.groups != 1:
        return stored(recipe, blob, tensor)
    found = fit((blob.shape[1], blob.shape[0], *blob.shape[2:]), tensor.sizes)
    return None if found is None else (Storage.UNDECIDED, found)


def _remark(blob: LearnableBlob, tensor: TensorReference, storage: Storage, found: Fit) -> str:
    if str(tensor.key).endswith(DIRECTIONS):
        return "the weight is computed from it: loading weights needs a decision"
    if storage is Storage.UNDECIDED:
        return "its numbers stand in another order, or may: loading weights needs a decision"
    if storage is Storage.TRANSPOSED:
        return "stored as inputs x outputs"
    if blob.role == "unknown" and tensor.role != "unknown":
        return "taken in order, since Caffe's roles are unknown"
    if found is Fit.TRANSPOSED:
        return "transposed"
    return "reshaped" if found is Fit.RESHAPED and blob.role == "weight" else ""


# From counterparts to tensors: every blob gets one, no tensor two, and what cannot be is a problem with a reason.


@dataclass(frozen=True, slots=True)
class Assigned:
    """What became of one blob: its tensor (``None``: torch has none, ``remark`` says why), by which evidence."""

    tensor: TensorReference | None
    evidence: Evidence
    remark: str = ""
    rivals: tuple[str, ...] = ()
    storage: Storage = Storage.USUAL


@dataclass(slots=True)
class Assignment:
    """Blob (index) to what became of it; blobs that cannot be where their layer belongs; sharing that differs."""

    blobs: dict[int, Assigned] = field(default_factory=dict)
    misfits: list[tuple[Misfit, Counterpart]] = field(default_factory=list)
    clashes: list[Clash] = field(default_factory=list)

    @property
    def bound(self) -> set[str]:
        """The names of the tensors that stand for a blob."""
        return {str(one.tensor.key) for one in self.blobs.values() if one.tensor is not None}


def assign(
    net: NetGraph,
    findings: Findings,
    named: Mapping[int, TensorReference],
    skipped: Collection[int],
    reshaped: Collection[int],
) -> Assignment:
    """Give each blob its tensor.

    Args:
        net: The net.
        findings: What was found.
        named: Blob (index) to the tensor that the user states.
        skipped: Blobs (indices) to do without.
        reshaped: Blobs (indices) that may have another shape in the model.
    """
    recipe = net.recipe
    result = Assignment({number: Assigned(None, Evidence.SKIPPED) for number in skipped}, clashes=[*findings.clashes])
    for number, tensor in named.items():
        found = stored(recipe, recipe.blobs[number], tensor)
        storage = Storage.OTHER if found is None else found[0]
        remark = "" if found is None else _remark(recipe.blobs[number], tensor, *found)
        whole = next((one for one in findings.found if number in one.blobs), None)
        if whole is not None and _moved(findings, whole.layer, recipe.blobs[number].role, whole.module):
            match = _reordered(Match(number, tensor, remark, storage=storage))
            remark, storage = match.remark, match.storage
        result.blobs[number] = Assigned(tensor, Evidence.NAMED, remark, storage=storage)
    remark = "Caffe does not train it, and the model does without the layer"
    result.blobs.update({number: Assigned(None, Evidence.NOT_NEEDED, remark) for number in findings.absent})
    taken = {tensor.key for tensor in named.values()}
    for one in findings.found:
        free = replace(one.module, tensors=tuple(tensor for tensor in one.module.tensors if tensor.key not in taken))
        open_blobs = [number for number in one.blobs if number not in named and number not in skipped]
        matches, misfits = match_tensors(recipe, open_blobs, free, net.cancelled, reshaped)
        same = one.groups == one.module.groups or any(match.blob in reshaped for match in matches)
        if not same and matches and not misfits:
            first, reason = matches.pop(0), f"it has {one.groups} groups in Caffe, {one.module.groups} in the model"
            misfits.append(Misfit(first.blob, first.tensor, reason))
        result.misfits += [(misfit, one) for misfit in misfits]
        for match in matches:
            moved = _moved(findings, one.layer, recipe.blobs[match.blob].role, one.module)
            _take(recipe, result, _reordered(match) if moved else match, one)
    owner: dict[object, int] = {}
    for number, assigned in sorted(result.blobs.items()):
        if assigned.tensor is not None and (first_one := owner.setdefault(assigned.tensor.key, number)) != number:
            names = f"{recipe.blobs[first_one].name!r} and {recipe.blobs[number].name!r}"
            text = f"Caffe has two blobs, {names}, where the model has one parameter, {assigned.tensor.key}"
            advice = "share them in Caffe by param names, or give the model a parameter for each"
            layers = (recipe.blobs[first_one].layer, recipe.blobs[number].layer)
            result.clashes.append(Clash(text, layers, advice=advice))
    return result


def _moved(findings: Findings, layer: str, role: str, module: Unit) -> bool:
    """Whether numbers of a layer's tensor stand in another order, as channels do that it reads or meets."""
    by_channel = module.groups > 1 or module.kind in (UnitKind.NORM, UnitKind.SCALE, UnitKind.SLOPE)
    every = by_channel or findings.reordered.get(layer, False)
    return layer in findings.reordered and (every or role in ("weight", "input_weight"))


def _reordered(match: Match) -> Match:
    if match.tensor is None or match.storage not in (Storage.USUAL, Storage.TRANSPOSED):
        return match
    remark = "the model concatenates its inputs in another order: loading weights needs a decision"
    return replace(match, storage=Storage.UNDECIDED, remark="; ".join(filter(None, (match.remark, remark))))


def _take(recipe: NetRecipe, result: Assignment, match: Match, one: Counterpart) -> None:
    before = result.blobs.get(match.blob)
    if before is not None and before.tensor is not None and match.tensor is not None:
        if before.tensor.key != match.tensor.key:
            blob, keys = recipe.blobs[match.blob], (str(before.tensor.key), str(match.tensor.key))
            text = (
                f"Caffe shares one {blob.role} between layers {', '.join(dict.fromkeys(users(blob)))}; the model has "
                f"two parameters for it, {' and '.join(keys)}"
            )
            result.clashes.append(Clash(text, tuple(users(blob)), ties=(keys,)))
        return
    rivals = tuple(
        str(tensor.key)
        for rival in one.rivals
        for tensor in rival.tensors
        if match.tensor and tensor.role == match.tensor.role
    )
    result.blobs[match.blob] = Assigned(
        match.tensor, match.evidence or one.evidence, match.remark, rivals, match.storage
    )
