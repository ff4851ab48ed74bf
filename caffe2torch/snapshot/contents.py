"""What a snapshot holds, whichever format it was written in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import overload

from caffe2torch.errors import SnapshotError
from caffe2torch.recipe import Shape
from caffe2torch.snapshot.wire import Array

__all__ = ["Blobs", "LayerWeights", "SolverState", "Weights", "solver_state"]

_LARGEST_COUNT = (1 << 31) - 1  # Caffe counts iterations and steps as int


class Blobs(Sequence[Array]):
    """Arrays of a snapshot in order, whose shapes are known before their numbers are read.

    The numbers of an array are read when it is asked for, where they are not in the mapped file as they are. So a file
    costs what the net takes of it, whatever else it holds.
    """

    def __init__(self, shapes: Iterable[Shape], read: Iterable[Callable[[], Array]]) -> None:
        self.shapes = tuple(shapes)
        self._read = tuple(read)

    @classmethod
    def of(cls, arrays: Iterable[Array]) -> Blobs:
        """Arrays that are there already."""
        held = tuple(arrays)
        return cls((array.shape for array in held), (lambda array=array: array for array in held))  # type: ignore[misc]  # mypy does not infer lambdas with defaults

    def __len__(self) -> int:
        return len(self.shapes)

    @overload
    def __getitem__(self, index: int) -> Array: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Array, ...]: ...

    def __getitem__(self, index: int | slice) -> Array | tuple[Array, ...]:
        if isinstance(index, slice):
            return tuple(read() for read in self._read[index])
        return self._read[index]()


@dataclass(frozen=True, slots=True, eq=False)
class LayerWeights:
    """A layer's blobs as its file has them: Caffe's order, layout and shape (old files: always four axes)."""

    name: str
    blobs: Blobs


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

    ``iteration`` counts the updates done; ``current_step`` those of the multistep policy, ``None`` where the file does
    not say (Caffe takes 0). ``learned_net`` is the ``.caffemodel``'s path as the solver wrote it, relative to the
    folder it ran in. ``history`` is in the order of the learnable blobs, once or (Adam, AdaDelta) twice through.
    """

    file: str
    iteration: int
    current_step: int | None
    learned_net: str | None
    history: Blobs


def solver_state(
    file: str, iteration: int, current_step: int | None, learned_net: str | None, history: Blobs
) -> SolverState:
    """A state whose counters Caffe can have written.

    Raises:
        SnapshotError: A counter is negative, or larger than Caffe's ``int``.
    """
    for name, count in (("iteration", iteration), ("step", current_step or 0)):
        if not 0 <= count <= _LARGEST_COUNT:
            raise SnapshotError(
                f"is damaged: {name} {count}", where=file, expected=f"a count from 0 to {_LARGEST_COUNT:,}"
            )
    return SolverState(file, iteration, current_step, learned_net, history)
