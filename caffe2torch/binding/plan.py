"""What is to be learned by what: blobs bound to parameters, and the param groups that follow. Plain data, no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

from caffe2torch.binding.computation import Computation
from caffe2torch.errors import BindingError, visible
from caffe2torch.recipe import Filler, LearnableBlob, NetRecipe, Note, SolverSettings
from caffe2torch.wording import listed, matches

__all__ = [
    "Binding",
    "BoundBlob",
    "Evidence",
    "Filling",
    "GroupMember",
    "GroupPlan",
    "Kind",
    "Storage",
    "Unclaimed",
    "frozen_with_gradient",
    "plan_groups",
    "read_evidence",
    "users",
]


class Kind(StrEnum):
    """What a Caffe blob is on torch's side."""

    PARAMETER = "parameter"
    BUFFER = "buffer"
    NONE = "none"


class Evidence(StrEnum):
    """Why a blob is bound to its tensor, or to none; the values are the words of reports and locks."""

    NAMED = "the user's names"
    EQUAL_NAMES = "equal names"
    SPELLING = "names equal but for spelling"
    REMAINDER = "what names left of units that are alike"
    STRUCTURE = "structure"
    BUILT = "built from the net"
    NEARBY = "structure nearby"
    SKIPPED = "skipped by the user"
    CANCELLED = "skipped"  # a bias that the model lacks and a batch normalization subtracts again
    ROLE = "its role alone"
    NOT_NEEDED = "not in the model"  # a blob that Caffe does not train either


class Storage(StrEnum):
    """How a parameter stores what its blob holds; multipliers do not depend on it, loading weights does."""

    USUAL = "as torch's layer of that kind"
    TRANSPOSED = "transposed"  # inputs x outputs, as ``x @ weight`` takes it
    UNDECIDED = "not known"  # in one order or another: loading weights needs a decision
    OTHER = "another shape"  # the user states it (``reshaped``): the parameter has values of its own


@dataclass(frozen=True, slots=True)
class BoundBlob:
    """A blob and the tensor it became.

    Attributes:
        blob: The blob.
        kind: What it is on torch's side.
        name: As ``named_parameters()`` or ``named_buffers()`` of the bare model give it; ``None`` where torch has no
            counterpart.
        evidence: Why it is bound so.
        rivals: Other tensors that nothing distinguishes from it: the optimizer is the same whichever it is, but
            loading weights needs a decision.
        remark: What a report adds to the evidence.
        storage: How the tensor stores it.
    """

    blob: LearnableBlob
    kind: Kind
    name: str | None
    evidence: Evidence
    rivals: tuple[str, ...] = ()
    remark: str = ""
    storage: Storage = Storage.USUAL

    @property
    def how(self) -> str:
        """The evidence and the remark as reports and locks write them."""
        colon = self.evidence is Evidence.CANCELLED
        return f"{self.evidence}{': ' if colon else '; '}{self.remark}" if self.remark else str(self.evidence)


def read_evidence(how: str) -> tuple[Evidence, str]:
    """Evidence and remark of what ``BoundBlob.how`` wrote, in this version or an earlier one.

    >>> read_evidence("structure (interchangeable); transposed")
    (<Evidence.STRUCTURE: 'structure'>, 'interchangeable; transposed')

    Raises ``ValueError`` for any other text.
    """
    for mark in (": ", " (interchangeable)", "; "):
        first, found, remark = how.partition(mark)
        if found and first in set(Evidence):
            inner = "interchangeable" if mark == " (interchangeable)" else ""
            return Evidence(first), "; ".join(filter(None, (inner, remark.removeprefix("; "))))
    return Evidence(how), ""


@dataclass(frozen=True, slots=True)
class Unclaimed:
    """A parameter of the model that no blob stands for, with the multipliers its user gave it (``None``: none yet)."""

    name: str
    shape: tuple[int, ...]
    lr_mult: float | None = None
    decay_mult: float | None = None


@dataclass(frozen=True, slots=True, repr=False)
class Binding:
    """Every blob of the recipe, in its order, and every parameter of the model that is left.

    ``computation`` is what the model was seen to compute, where its forward pass was followed.
    """

    model: str
    blobs: tuple[BoundBlob, ...]
    unclaimed: tuple[Unclaimed, ...] = ()
    notes: tuple[Note, ...] = ()
    computation: Computation | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        bound = sum(one.name is not None for one in self.blobs)
        left = f"{len(self.unclaimed)} parameters without a blob"
        return visible(f"<Binding to {self.model}: {bound} of {len(self.blobs)} blobs, {left}>")


@dataclass(frozen=True, slots=True)
class GroupMember:
    """One parameter of a group; ``blob`` is ``None`` for one that only its user gave multipliers to."""

    parameter: str
    blob: LearnableBlob | None


@dataclass(frozen=True, slots=True, repr=False)
class GroupPlan:
    """One param group: equal multipliers, fine-tuning factor already applied to ``lr_mult``."""

    name: str
    lr_mult: float
    decay_mult: float
    members: tuple[GroupMember, ...]
    factor: float = 1.0

    def __repr__(self) -> str:
        names = [member.parameter for member in self.members]
        return visible(f"<GroupPlan {self.name!r}, {len(names)} parameters: {', '.join(listed(names, 3))}>")


@dataclass(frozen=True, slots=True)
class Filling:
    """How Caffe fills a parameter before training: its blob's own shape, and how that stands in the parameter.

    ``layout`` is ``same``, ``transposed`` or ``gates``, as ``binding/layout.py`` explains.
    """

    parameter: str
    shape: tuple[int, ...]
    layout: str
    filler: Filler

    @property
    def fields(self) -> dict[str, Any]:
        """The filler's type, and what it states otherwise than by default."""
        stated = {one.name: getattr(self.filler, one.name) for one in fields(Filler) if one.compare}
        default = Filler()
        return {name: value for name, value in stated.items() if name == "type" or value != getattr(default, name)}


def plan_groups(
    recipe: NetRecipe, binding: Binding, finetune: Mapping[str, float] | None = None
) -> tuple[GroupPlan, ...]:
    """Merge parameters of equal multipliers into groups, in the order in which Caffe first sees each pair.

    ``finetune`` maps a layer (its exact name, else a regular expression that matches the whole name) to a factor on
    ``lr_mult``. A layer named there gets groups of its own even at factor 1, so that the optimizer of a training from
    scratch and that of a fine-tuning have the same groups and load each other's ``state_dict``.

    Raises ``BindingError`` for a key that matches no layer with a learnable blob, that is no regular expression, when
    two keys claim one layer, or when nothing distinguishes a layer with a key from one without.
    """
    keys = _finetuned_layers(recipe, finetune or {})
    key_of = {bound.name: _key(bound, keys) for bound in binding.blobs}
    members: dict[tuple[str | None, float, float], list[GroupMember]] = {}
    for bound in binding.blobs:
        if bound.kind is not Kind.PARAMETER or bound.name is None:
            continue
        key = _key(bound, keys)
        if key is not None and any(key_of.get(rival) != key for rival in bound.rivals):
            raise BindingError(
                f"finetune names {key!r}, but {bound.name} could be another layer as well: nothing distinguishes it "
                f"from {', '.join(bound.rivals)}",
                where=bound.blob.where,
                hint=f"decide in a names file which module layer {bound.blob.layer!r} is",
            )
        equal = members.setdefault((key, bound.blob.lr_mult, bound.blob.decay_mult), [])
        equal.append(GroupMember(bound.name, bound.blob))
    for left in binding.unclaimed:
        if left.lr_mult is not None and left.decay_mult is not None:
            members.setdefault((None, left.lr_mult, left.decay_mult), []).append(GroupMember(left.name, None))
    groups = []
    for (key, lr_mult, decay_mult), group in members.items():
        factor = 1.0 if key is None else float((finetune or {})[key])
        name = f"lr x{lr_mult * factor:g}, decay x{decay_mult:g}"
        groups.append(
            GroupPlan(name if key is None else f"{key}: {name}", lr_mult * factor, decay_mult, tuple(group), factor)
        )
    return tuple(groups)


def frozen_with_gradient(groups: Sequence[GroupPlan], solver: SolverSettings) -> tuple[str, ...]:
    """Parameters that do not learn and for which Caffe computes a gradient all the same, which counts in clipping.

    These are all of them where the net says ``force_backward``, and blobs with a use that does not state lr_mult 0.
    """
    return tuple(
        member.parameter
        for group in groups
        if group.lr_mult == 0
        for member in group.members
        if solver.force_backward or (member.blob is not None and member.blob.lr_mult == 0 and member.blob.has_gradient)
    )


def _key(bound: BoundBlob, keys: Mapping[str, str]) -> str | None:
    """The key of ``finetune`` that claims one of the layers that use a blob."""
    return next((keys[layer] for layer in users(bound.blob) if layer in keys), None)


def _finetuned_layers(recipe: NetRecipe, finetune: Mapping[str, float]) -> dict[str, str]:
    """Layer name to the key of ``finetune`` that claims it."""
    layers = dict.fromkeys(layer for blob in recipe.blobs for layer in users(blob))
    claimed: dict[str, str] = {}
    for key in finetune:
        for name, _ in matches(key, layers, what="finetune", of="layer that learns", error=BindingError):
            if name in claimed:
                raise BindingError(f"finetune names layer {name!r} twice: by {claimed[name]!r} and by {key!r}")
            claimed[name] = key
    return claimed


def users(blob: LearnableBlob) -> list[str]:
    """The layers that use a blob, its own first."""
    return [blob.layer, *(use.layer for use in blob.shared_with)]
