"""A binding that was attempted, and what it leaves over on either side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from caffe2torch.binding.graph import Unit
from caffe2torch.binding.model_graph import ModelGraph
from caffe2torch.binding.net_graph import NetGraph
from caffe2torch.binding.tensor_matching import Assignment, Findings
from caffe2torch.recipe import NetRecipe

__all__ = ["Attempt"]


@dataclass(frozen=True)
class Attempt:
    """What was found for a net and a model.

    Attributes:
        net: The net.
        model: The model.
        findings: Counterparts, and what was noticed on the way.
        assignment: What became of each blob.
        blobs: Blobs (indices) that nothing was found for.
        left: Parameters that no blob stands for: the shape, and whether they require a gradient.
        given: Of these, the ``(lr_mult, decay_mult)`` of those that the user gave some.
        ends: Layers that are taken as skipped, since they lead only to ends that the model does not have.
    """

    net: NetGraph
    model: ModelGraph
    findings: Findings
    assignment: Assignment
    blobs: Sequence[int]
    left: Mapping[str, tuple[tuple[int, ...], bool]]
    given: Mapping[str, tuple[float, float]]
    ends: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether nothing is left over, and everything fits."""
        return not (self.assignment.clashes or self.assignment.misfits or self.blobs or self.parameters or self.ends)

    @cached_property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Trained parameters, with shapes, that nothing was found for and nobody gave multipliers to."""
        return {name: shape for name, (shape, trains) in self.left.items() if trains and name not in self.given}

    @property
    def recipe(self) -> NetRecipe:
        """What was read of the net."""
        return self.net.recipe

    @cached_property
    def bound(self) -> set[str]:
        """The names of the tensors that stand for a blob."""
        return self.assignment.bound

    @cached_property
    def free(self) -> list[Unit]:
        """Units of the model none of whose tensors stands for a blob."""
        return [unit for unit in self.model.units if not any(tensor.key in self.bound for tensor in unit.tensors)]

    @cached_property
    def missing(self) -> set[int]:
        """Blobs (indices) that have no place, rather than one where they do not fit."""
        return set(self.blobs) - {misfit.blob for misfit, _ in self.assignment.misfits}

    @cached_property
    def unbound(self) -> list[Unit]:
        """Units of the net with blobs that have no place; those that are shared otherwise are told elsewhere."""
        shared = {name for clash in self.assignment.clashes for name in clash.layers}
        return [
            unit
            for unit in self.net.units
            if shared.isdisjoint(unit.parts) and any(tensor.key in self.missing for tensor in unit.tensors)
        ]

    @cached_property
    def idle(self) -> list[Unit]:
        """Units of the model that no layer claims and that learn."""
        claimed = {one.module.name for _, one in self.assignment.misfits}
        claimed |= {name for clash in self.assignment.clashes for name in clash.modules}
        return [
            unit
            for unit in self.free
            if unit.name not in claimed and any(tensor.key in self.parameters for tensor in unit.tensors)
        ]

    @cached_property
    def stray(self) -> list[str]:
        """Trained parameters that are left over of a unit that stands for a layer."""
        known = {tensor.key for unit in self.free for tensor in unit.tensors}
        known |= {misfit.tensor.key for misfit, _ in self.assignment.misfits if misfit.tensor is not None}
        return [name for name in self.parameters if name not in known]
