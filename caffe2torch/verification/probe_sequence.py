"""The experiments: what to feed an optimizer so that its steps show the rate, the decay and the history each by itself.

A *sequence* is what one number is given: the value it is set to before each step, and its gradient. Several sequences
are side by side in one small tensor in place of a parameter, as the elements of a real one would be. A
*window* is a few iterations of the run that the sequences go through from an empty history.
"""

from __future__ import annotations

import math
import random
import sys
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from caffe2torch.recipe import LrPolicy, PolicyType, Regularization, SolverSettings
from caffe2torch.solver import lr_policy
from caffe2torch.solver.lr_policy import momentum_at, rate, weight_decay_at
from caffe2torch.solver.update_rules import SOLVERS, StepSettings
from caffe2torch.verification.report import RateCurve

__all__ = [
    "ExpectedSteps",
    "Followed",
    "Movements",
    "Observation",
    "Observations",
    "ProbeSequence",
    "SettingChange",
    "Window",
    "changes",
    "design",
    "long_window",
]

STEPS = 5
LONG = 220  # steps of the one long window, as far as the run has as many
USUAL_DECAY = 5e-4  # what a decay that should not be there is likely to be
CHANGES = 3  # windows around this many changes of the rate
FARTHEST = 1e6  # a weight beyond this would drown its own movement in rounding
REMEMBERED, PRIMED = 4, 64  # how much more a gradient weighs than the decay before or after it


@dataclass(frozen=True, slots=True)
class ProbeSequence:
    """What one number is given, step by step. ``weights[k]`` is set before step k; ``None`` leaves what the last step
    made.

    ``name`` says what it is for, and is unique in a window: ``gradient at k`` (a single gradient, at step k, the
    weight held at 0 throughout), ``decay`` and ``decay twice`` (a weight at step 0, no gradient ever),
    ``remembered`` (a weight at step 0, gradients after it), ``primed`` (a gradient at step 0, a weight at step 1),
    ``free`` and ``free lightly`` (left alone with changing gradients), ``small`` and ``small squared`` (the gradient,
    or its square, as small as ``delta``), ``idle``.
    """

    name: str
    weights: tuple[float | None, ...]
    gradients: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Window:
    """Consecutive iterations, the first of them ``iteration``, and whether the rate moves along.

    ``moving`` is False where no scheduler is at hand: every step then is one of the first iteration.
    """

    iteration: int
    sequences: tuple[ProbeSequence, ...]
    moving: bool = True
    steps: int = STEPS

    @property
    def iterations(self) -> tuple[int, ...]:
        """The iteration of each step."""
        return tuple(self.iteration + k * self.moving for k in range(self.steps))


def sequences_for(solver: SolverSettings, numbers: int = 1) -> tuple[ProbeSequence, ...]:
    """The sequences of a window. ``numbers`` sequences' worth of gradients must stay below half of ``clip_gradients``.

    The gradient is 1 or a power of two below it; the weight is such that its decay weighs as much as a gradient.
    """
    g = 1.0
    if solver.clip_gradients:
        g = min(1.0, 2.0 ** math.floor(math.log2(solver.clip_gradients / (2 * math.sqrt(max(numbers, 1))))))
    decay, passes = abs(solver.weight_decay) or USUAL_DECAY, max(solver.iter_size, 1)
    w = min(g / (decay * passes), FARTHEST * g)
    least = g if solver.regularization is Regularization.L2 else min(g, REMEMBERED * decay * passes)
    primer = g if solver.regularization is Regularization.L2 else min(g, PRIMED * decay * passes)
    off: tuple[float, ...] = (0.0,) * STEPS
    sequences = [ProbeSequence(f"gradient at {k}", off, _only(k, g)) for k in range(STEPS)]
    sequences += [
        ProbeSequence("decay", _only(0, w), off),
        ProbeSequence("decay twice", _only(0, -2 * w), off),
        ProbeSequence("remembered", _only(0, w / REMEMBERED), (0.0, *(least,) * (STEPS - 1))),
        ProbeSequence("primed", _only(1, w / PRIMED), _only(0, primer)),
        ProbeSequence("free", (w / 3, *(None,) * (STEPS - 1)), tuple(g * x for x in (0.7, -0.4, 0.9, 0.3, -0.6))),
        ProbeSequence(
            "free lightly", (-1.0, *(None,) * (STEPS - 1)), tuple(g * x for x in (-0.2, 0.8, 0.0, -1.0, 0.5))
        ),
        ProbeSequence("idle", off, off),
    ]
    if not SOLVERS[solver.type].linear and solver.delta > 0:
        for name, size in (("small", 4 * solver.delta), ("small squared", math.sqrt(solver.delta))):
            sequences.append(ProbeSequence(name, off, (min(size * passes, g),) * STEPS))
    return tuple(sequences)


def long_window(window: Window, max_iter: int) -> Window:
    """Many steps at the rate of ``window``'s first one: a weight of 0 under gradients, and a weight without any.

    Both weights are set anew before every step, so that nothing adds up but what the optimizer itself remembers.
    """
    sequences = {sequence.name: sequence for sequence in window.sequences}
    size, weight = max(map(abs, sequences["free"].gradients)), sequences["decay"].weights[0]
    steps = max(min(LONG, (max_iter or LONG) - window.iteration), STEPS)
    numbers = random.Random(0)
    gradients = tuple(size * numbers.choice((-1.0, 1.0)) * numbers.uniform(0.3, 1.0) for _ in range(steps))
    lanes = (
        ProbeSequence("gradients", (0.0,) * steps, gradients),
        ProbeSequence("decay", (weight,) * steps, (0.0,) * steps),
    )
    return Window(window.iteration, lanes, moving=False, steps=steps)


def design(solver: SolverSettings, *, scheduled: bool, numbers: int = 1, start: int = 0) -> tuple[Window, ...]:
    """The windows of a run: where it starts, around the first changes of its rate, and where it ends.

    Without a scheduler (``scheduled``) nobody changes the rate, and there is one window. The first one lies where the
    rate is not 0, since nothing that a solver does could be seen there. ``start`` is the iteration that the scheduler
    already stands at.
    """
    sequences = sequences_for(solver, numbers)
    if not scheduled:
        return (Window(start, sequences, moving=False),)
    first = next((i for i in range(start, start + 100) if rate(solver.policy, i) != 0), start)
    wanted = [first, *(change - 2 for change in changes(solver.policy, solver.max_iter))]
    return tuple(Window(i, sequences) for i in sorted({max(i, first) for i in wanted}) if i >= start)


def changes(policy: LrPolicy, max_iter: int) -> list[int]:
    """Iterations at which the rate changes, as far as they are looked at: the first few, one near the end."""
    ramp = lr_policy.ramp_end(policy)
    until = max_iter or sys.maxsize
    if policy.type is PolicyType.STEP:  # which may be a very long list
        until = min(until, ramp + policy.stepsize * (CHANGES + 2))
    found = lr_policy.changes(policy, until)
    if found is None:
        middle = policy.stepsize if policy.type is PolicyType.SIGMOID else max_iter // 2
        found = [i for i in (middle, max_iter - STEPS + 2) if 0 < i < until and rate(policy, i) != rate(policy, i - 1)]
    after = [i for i in found if i > ramp][:CHANGES]
    return [ramp, *after] if 0 < ramp < until and rate(policy, ramp) != rate(policy, ramp - 1) else after


def _only(step: int, value: float) -> tuple[float, ...]:
    """``value`` at one step, 0 at the others."""
    return tuple(value if k == step else 0.0 for k in range(STEPS))


# What Caffe's solver would do at each step of a window, to a parameter of given multipliers.


@dataclass(frozen=True, slots=True)
class ExpectedSteps:
    """A window as Caffe would run it: what holds at each of its steps."""

    window: Window
    settings: tuple[StepSettings, ...]
    decay_ratios: tuple[float, ...]  # the decay of each step in terms of the first one's

    @classmethod
    def of(cls, solver: SolverSettings, window: Window, lr_mult: float, decay_mult: float) -> ExpectedSteps:
        """The expected steps that a solver takes through a window for a parameter."""
        decays = [weight_decay_at(solver, i) for i in window.iterations]
        rates = [rate(solver.policy, i) for i in window.iterations]
        settings = tuple(
            StepSettings(rate * lr_mult, momentum_at(solver, i, rate), decay * decay_mult)
            for i, rate, decay in zip(window.iterations, rates, decays, strict=True)
        )
        return cls(window, settings, tuple(decay / decays[0] if decays[0] else 1.0 for decay in decays))

    @property
    def momenta(self) -> tuple[float, ...]:
        """The momentum of each step."""
        return tuple(setting.momentum for setting in self.settings)


# What was seen: for every parameter, in which groups it stands and how far each sequence of its probe tensor moved.

Movements = tuple[tuple[float, ...], ...]
"""How far each sequence moved at each step of a window: ``[sequence][step]``."""


@dataclass(frozen=True, slots=True)
class Observation:
    """One parameter of the model. ``groups`` has the index of a param group for each time that it holds it.

    ``windows`` has the movements of each window, and is empty for a parameter that the optimizer does not hold.
    ``elementwise`` is False where what happens to a number depends on its neighbours, and ``scaled_by`` says by whose
    norm, where it is that of the ``weights``, or of the ``gradient``. ``long`` has the movements of the long window,
    for the few parameters that took part in it.
    """

    parameter: str
    shape: tuple[int, ...]
    requires_grad: bool
    groups: tuple[int, ...]
    windows: tuple[Movements, ...] = ()
    elementwise: bool = True
    scaled_by: str = ""
    long: Movements = ()


@dataclass(frozen=True, slots=True)
class Observations:
    """What an optimizer does to every parameter of a model.

    ``windows`` are the experiments, in the order of every observation's own ``windows``. ``unreached`` are those that
    could not be run, with the reason. ``problem`` says why nothing could be observed at all. ``foreign`` are shapes
    of tensors that the optimizer holds and the model does not; ``buffers`` are names of buffers that it holds.
    ``first_change`` is the first iteration at which the scheduler changed a rate, ``None`` where it did not up to
    iteration ``followed`` (0 where there is no scheduler), and ``first_factor`` what it multiplied the rate with.
    ``hooks`` is how many step hooks of the user's were not run, ``said`` what else its user should know, ``touched``
    names the tensors of the real model that it changed, which have been put back where ``restored``.
    ``clips`` is True where only faint gradients are looked at, since the optimizer clips others. ``clip`` is the norm
    beyond which it does, infinite where the solver has one and nothing is clipped; ``value_clip`` is the bound of each
    number by itself, and ``clip_scope`` what the norm is of, where it is not that of all gradients: ``each param
    group``, ``each parameter``, ``unknown``; ``clips_decay`` says that it scales weight decay as well. ``by_weights``
    are parameters of which a number moves otherwise beside large weights. ``precision`` is the spacing of numbers near
    1 in what the probe tensors are made of. ``stated`` is what each param group says at the first window, ``lr`` and
    ``weight_decay``, whatever the step makes of them. ``places`` are what the param groups are called, ``metric`` is
    what a scheduler's ``step`` has to be given, which thus was not called. ``long`` is the window of many steps that a
    few parameters took part in, if any could; ``kinds`` is of how many kinds of param groups one did, and how many
    there are. ``gradient_hooks`` are the parameters of which a gradient meets hooks, which were not run either.
    ``calls`` is how many calls of ``step()`` made one step here, since the optimizer collects gradients itself.
    """

    windows: tuple[Window, ...]
    parameters: tuple[Observation, ...]
    unreached: tuple[tuple[Window, str], ...] = ()
    problem: str = ""
    foreign: tuple[tuple[int, ...], ...] = ()
    buffers: tuple[str, ...] = ()
    first_change: int | None = None
    first_factor: float | None = None
    followed: int = 0
    hooks: int = 0
    said: tuple[str, ...] = ()
    touched: tuple[str, ...] = ()
    restored: bool = True
    clips: bool = False
    clip: float | None = None
    value_clip: float | None = None
    clip_scope: str = ""
    clips_decay: bool = False
    by_weights: tuple[str, ...] = ()
    precision: float = 2.0**-52
    stated: tuple[tuple[float, float], ...] = ()
    places: tuple[str, ...] = ()
    metric: str = ""
    long: Window | None = None
    kinds: tuple[int, int] = (0, 0)
    gradient_hooks: tuple[str, ...] = ()
    calls: int = 1

    def collecting(self, solver: SolverSettings) -> SolverSettings:
        """The solver, with as many passes an update as the optimizer collects itself, if it does."""
        return solver if self.calls == 1 else replace(solver, iter_size=self.calls)


class SettingChange(NamedTuple):
    """A setting of a param group, not its rate, that a scheduler changed; ``iteration`` is where that was seen."""

    iteration: int
    group: int
    name: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class Followed:
    """What a scheduler does along a run: the rate of every group, and other settings that it changes."""

    curves: tuple[RateCurve, ...] = ()
    changed: tuple[SettingChange, ...] = ()
