"""What a snapshot holds, whichever format it was written in."""

from __future__ import annotations

from dataclasses import dataclass

from caffe2torch.snapshot.blob_proto import Array

__all__ = ["LayerWeights", "SolverState", "Weights"]


@dataclass(frozen=True, slots=True, eq=False)
class LayerWeights:
    """A layer's blobs as its file has them: Caffe's order, layout and shape (old files: always four axes)."""

    name: str
    blobs: tuple[Array, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """What a ``.caffemodel`` holds: the layers that have blobs, in the file's order.

    A blob that several layers share stands under each of them in a binary file, under the first in an HDF5 file.
    """

    file: str
    net_name: str
    layers: tuple[LayerWeights, ...]


@dataclass(frozen=True, slots=True, eq=False)
class SolverState:
    """What a ``.solverstate`` holds.

    ``iteration`` counts the updates done; ``current_step`` those of the multistep policy. ``learned_net`` is the
    ``.caffemodel``'s path as the solver wrote it, relative to the folder it ran in. ``history`` is in the order of
    the learnable blobs, once or (Adam, AdaDelta) twice through.
    """

    file: str
    iteration: int
    current_step: int
    learned_net: str | None
    history: tuple[Array, ...]
