"""What was seen: for every parameter, in which groups it stands and how far each lane of its stand-in moved."""

from __future__ import annotations

from dataclasses import dataclass

from caffe2torch.verification.probe_sequence import Window

__all__ = ["Movements", "Observation", "Observations"]

Movements = tuple[tuple[float, ...], ...]
"""How far each lane moved at each step of a window: ``[lane][step]``."""


@dataclass(frozen=True, slots=True)
class Observation:
    """One parameter of the model. ``groups`` has the index of a param group for each time that it holds it.

    ``windows`` has the movements of each window, and is empty for a parameter that the optimizer does not hold.
    ``elementwise`` is False where what happens to a number depends on its neighbours.
    """

    parameter: str
    shape: tuple[int, ...]
    requires_grad: bool
    groups: tuple[int, ...]
    windows: tuple[Movements, ...] = ()
    elementwise: bool = True


@dataclass(frozen=True, slots=True)
class Observations:
    """What an optimizer does to every parameter of a model.

    ``windows`` are the experiments, in the order of every observation's own ``windows``. ``unreached`` are those that
    could not be run, with the reason. ``problem`` says why nothing could be observed at all. ``strangers`` are shapes
    of tensors that the optimizer holds and the model does not; ``buffers`` are names of buffers that it holds.
    ``changes`` are the first iterations, on the way to the last window, at which the scheduler changed a rate, as far
    as it was stepped through and not set to an iteration (``followed``).
    ``clips`` is True where only faint gradients left numbers independent: the optimizer clips by their norm. ``clip``
    is that norm where the solver has one to compare it with, infinite where nothing is clipped.
    ``precision`` is the spacing of numbers near 1 in what the stand-ins are made of.
    """

    windows: tuple[Window, ...]
    parameters: tuple[Observation, ...]
    unreached: tuple[tuple[Window, str], ...] = ()
    problem: str = ""
    strangers: tuple[tuple[int, ...], ...] = ()
    buffers: tuple[str, ...] = ()
    changes: tuple[int, ...] = ()
    followed: bool = True
    clips: bool = False
    clip: float | None = None
    precision: float = 2.0**-52
