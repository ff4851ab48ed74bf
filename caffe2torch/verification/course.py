"""What Caffe's solver would do at each step of a window, to a parameter of given multipliers."""

from __future__ import annotations

from dataclasses import dataclass

from caffe2torch.recipe import SolverSettings
from caffe2torch.solver.lr_policy import momentum_at, weight_decay_at
from caffe2torch.solver.update_rules import Pace
from caffe2torch.verification.probe_sequence import Window, rate_at

__all__ = ["Course"]


@dataclass(frozen=True, slots=True)
class Course:
    """A window as Caffe would live through it: what holds at each of its steps."""

    window: Window
    paces: tuple[Pace, ...]
    fading: tuple[float, ...]  # the decay of each step in terms of the first one's

    @classmethod
    def of(cls, solver: SolverSettings, window: Window, lr_mult: float, decay_mult: float) -> Course:
        """The course that a solver takes through a window for a parameter."""
        decays = [weight_decay_at(solver, i) for i in window.iterations]
        rates = [rate_at(solver.policy, i) for i in window.iterations]
        paces = tuple(
            Pace(rate * lr_mult, momentum_at(solver, i, rate), decay * decay_mult)
            for i, rate, decay in zip(window.iterations, rates, decays, strict=True)
        )
        return cls(window, paces, tuple(decay / decays[0] if decays[0] else 1.0 for decay in decays))

    @property
    def momenta(self) -> tuple[float, ...]:
        """The momentum of each step."""
        return tuple(pace.momentum for pace in self.paces)
