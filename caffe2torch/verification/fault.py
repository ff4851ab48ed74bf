"""What can be wrong with an optimizer, by kind: the words that reports group by and that users accept by."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Fault", "FaultKind"]


class FaultKind(StrEnum):
    """A kind of departure from Caffe; ``accept`` takes these words."""

    MISSING = "missing"  # no param group holds the parameter, or the model has none
    DUPLICATE = "duplicate"  # it stands in the groups more than once, or for more than one blob
    LR = "lr"
    WEIGHT_DECAY = "weight_decay"
    FROZEN = "frozen"  # Caffe trains it, here nothing moves it
    TRAINED = "trained"  # Caffe freezes it, here it moves
    ITER_SIZE = "iter_size"
    MOMENTUM = "momentum"
    RATE_CHANGE = "rate_change"
    SCHEDULE = "schedule"
    EPSILON = "epsilon"
    REGULARIZATION = "regularization"
    RULE = "rule"  # another solver, or none that is known
    CLIP = "clip"
    UNCLAIMED = "unclaimed"  # no blob of the net stands for it
    UNOBSERVED = "unobserved"


@dataclass(frozen=True, slots=True)
class Fault:
    """One departure: its kind, and the sentence that a person reads.

    Of a rate at an ``iteration``, ``seen`` is what it was and ``due`` what Caffe's would be.
    """

    kind: FaultKind
    message: str
    iteration: int | None = None
    seen: float | None = None
    due: float | None = None
