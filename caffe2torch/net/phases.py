"""Which layers take part: phase, level and stages against include and exclude rules (``net.cpp``, ``FilterNet``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from caffe2torch.errors import NetError, SourceLocation

__all__ = ["PHASES", "NetState", "included", "meets_rule", "merged"]

PHASES = ("TRAIN", "TEST")


@dataclass(frozen=True, slots=True)
class NetState:
    """The state that a net is built for: Caffe's ``NetState``."""

    phase: str = "TRAIN"
    level: int = 0
    stages: tuple[str, ...] = ()


def merged(state: NetState, *over: Any) -> NetState:
    """A state with ``NetState`` messages merged into it in turn: what they state wins, their stages are added.

    The solver merges the net's own ``state`` and then its ``train_state`` into phase TRAIN (``solver.cpp``,
    ``InitTrainNet``).
    """
    for one in over:
        state = NetState(
            PHASES[one.phase] if one.HasField("phase") else state.phase,
            one.level if one.HasField("level") else state.level,
            (*state.stages, *one.stage),
        )
    return state


def meets_rule(state: NetState, rule: Any) -> bool:
    """Whether a state meets a ``NetStateRule``: everything that the rule states must hold (``Net::StateMeetsRule``)."""
    return not (
        (rule.HasField("phase") and PHASES[rule.phase] != state.phase)
        or (rule.HasField("min_level") and state.level < rule.min_level)
        or (rule.HasField("max_level") and state.level > rule.max_level)
        or any(stage not in state.stages for stage in rule.stage)
        or any(stage in state.stages for stage in rule.not_stage)
    )


def included(layer: Any, where: SourceLocation, state: NetState) -> bool:
    """Whether a layer takes part: it meets one of its include rules, or none of its exclude rules.

    Raises:
        NetError: it has rules of both kinds.
    """
    include, exclude = layer.include, layer.exclude
    if not include:
        return not any(meets_rule(state, rule) for rule in exclude)
    if exclude:
        raise NetError(
            f"the layer {layer.name!r} has include rules and exclude rules",
            where=where,
            expected="rules of one kind",
            hint="Caffe refuses both together",
        )
    return any(meets_rule(state, rule) for rule in include)
