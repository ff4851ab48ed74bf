"""What a live optimizer really does to each parameter, measured: small stand-ins are stepped in the parameters' place.

The numbers of ``probe_sequence.py`` are laid side by side in a stand-in for each parameter (of as many axes, in double
precision), a twin of the optimizer steps them through a few iterations, and how far each moved is written down. What
that means is not judged here. The model, the optimizer, the scheduler and the
random number generators are left as they were, bit for bit.

That slices may stand for whole tensors is checked on the optimizer itself: the first window is run a second time with
the lanes in another order, another shape and another size, and every lane must move as it did before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from caffe2torch.binding.wrappers import named_tensors
from caffe2torch.recipe import SolverSettings
from caffe2torch.verification.advance import OutOfReachError, advance
from caffe2torch.verification.clipping import clip_threshold
from caffe2torch.verification.observation import Movements, Observation, Observations
from caffe2torch.verification.optimizer_copy import Twin, bare_optimizer, bare_scheduler, make_twin
from caffe2torch.verification.probe_sequence import Window, design
from caffe2torch.verification.rehearsal import Subject, live, precision, subjects_of, undisturbed

__all__ = ["observe"]

PROOF_NUMBERS = 2**18  # numbers in all stand-ins of the second run together
PROOF_SIZE = 4096  # and in the largest of them: some kernels treat larger tensors in another way than small ones
PROOF_LEAST = 64
FAINT = 2.0**-20  # how much smaller the gradients get where the optimizer seems to clip them


def observe(
    model: torch.nn.Module,
    optimizer: Any,
    solver: SolverSettings,
    scheduler: Any = None,
    *,
    iteration: int | None = None,
) -> Observations:
    """Step a twin of ``optimizer`` (and ``scheduler``) on stand-ins for the parameters of ``model``.

    ``solver`` decides what to feed it; without ``scheduler`` there is only the iteration that the optimizer stands at.
    ``iteration`` is that one, by default the scheduler's own ``last_epoch``, or 0. Nothing is raised for an optimizer
    that cannot be probed: ``Observations.problem`` says why.

    >>> from caffe2torch.recipe import LrPolicy, PolicyType, SolverType
    >>> model = torch.nn.Linear(3, 2)
    >>> solver = SolverSettings(SolverType.SGD, LrPolicy(PolicyType.FIXED, base_lr=0.1))
    >>> seen = observe(model, torch.optim.SGD(model.parameters(), lr=0.1), solver)
    >>> [(p.parameter, p.groups, p.windows[0][0][0]) for p in seen.parameters]
    [('weight', (0,), -0.1), ('bias', (0,), -0.1)]
    """
    optimizer, scheduler = bare_optimizer(optimizer), bare_scheduler(scheduler)
    start = iteration if iteration is not None else max(int(getattr(scheduler, "last_epoch", 0)), 0)
    subjects = subjects_of(optimizer)
    run = _Run(subjects, start, clipped=solver.clip_gradients is not None)
    windows = design(solver, scheduled=scheduler is not None, numbers=run.crowd * len(subjects), start=start)
    with undisturbed(subjects):
        try:
            run.through(windows, optimizer, scheduler, solver.clip_gradients)
        except Exception as error:  # anything at all may happen inside a stranger's step(), and it is the finding
            run.problem = f"{type(error).__name__}: {error}"
    return run.observations(model)


class _Run:
    """One probing: the windows that were lived through, and what came of them."""

    def __init__(self, subjects: Sequence[Subject], start: int, *, clipped: bool) -> None:
        self.subjects = subjects
        self.at = start
        # Where gradients must stay below a norm, a large crowd would make each of them too faint to tell much.
        self.crowd = PROOF_LEAST
        if not clipped:
            self.crowd = max(min(PROOF_SIZE, PROOF_NUMBERS // max(len(subjects), 1)), PROOF_LEAST)
        self.windows: list[Window] = []
        self.moved: list[dict[int, Movements]] = []
        self.unreached: list[tuple[Window, str]] = []
        self.changes: list[int] = []
        self.followed = True
        self.entangled: set[int] = set()
        self.clips = False
        self.clip: float | None = None
        self.problem = ""

    def through(
        self, windows: Sequence[Window], optimizer: torch.optim.Optimizer, scheduler: Any, clip: float | None
    ) -> None:
        """Live through the windows one after the other. A twin that takes no step itself carries the scheduler on."""
        small = {id(subject.tensor): subject.stand_in(1) for subject in self.subjects}
        carrier = make_twin(optimizer, scheduler, small, started=True)
        for planned in windows:
            if scheduler is not None:
                try:
                    self.followed &= advance(carrier.scheduler, self.at, planned.iteration, self.changes)
                except OutOfReachError as error:
                    self.unreached.append((planned, str(error)))
                    continue
                self.at = planned.iteration
            if not self.windows:
                self._prove(carrier, planned)
                self.clip = clip_threshold(carrier, self.subjects, planned, clip) if clip else None
            window = _fainter(planned) if self.clips else planned
            moved = live(carrier, self.subjects, window, window.lanes)
            self.windows.append(window)
            self.moved.append({key: tuple(map(tuple, lanes.tolist())) for key, lanes in moved.items()})

    def _prove(self, carrier: Twin, window: Window) -> None:
        """Find what does not move number by number; where fainter gradients mend that, the optimizer clips."""
        self.entangled = _entangled(carrier, self.subjects, window, self.crowd)
        if self.entangled:
            fainter = _entangled(carrier, self.subjects, _fainter(window), self.crowd)
            self.clips = fainter != self.entangled
            self.entangled = fainter

    def observations(self, model: torch.nn.Module) -> Observations:
        """What was seen, told by the names of the model's parameters."""
        held = {id(subject.tensor): subject for subject in self.subjects}
        tensors = list(named_tensors(model))
        known = {id(tensor) for _, tensor in tensors}
        return Observations(
            windows=tuple(self.windows),
            parameters=tuple(
                Observation(
                    name,
                    tuple(parameter.shape),
                    parameter.requires_grad,
                    held[id(parameter)].groups if id(parameter) in held else (),
                    tuple(moved[id(parameter)] for moved in self.moved) if id(parameter) in held else (),
                    elementwise=id(parameter) not in self.entangled,
                )
                for name, parameter in tensors
                if isinstance(parameter, torch.nn.Parameter)
            ),
            unreached=tuple(self.unreached),
            problem=self.problem,
            strangers=tuple(tuple(s.tensor.shape) for s in self.subjects if id(s.tensor) not in known),
            buffers=tuple(n for n, t in tensors if id(t) in held and not isinstance(t, torch.nn.Parameter)),
            changes=tuple(self.changes),
            followed=self.followed,
            clips=self.clips,
            clip=self.clip,
            precision=precision(self.subjects),
        )


def _entangled(carrier: Twin, subjects: Sequence[Subject], window: Window, crowd: int) -> set[int]:
    """The ``id`` of every tensor of which a number moves differently in another place, among other numbers."""
    order = [len(window.lanes) - 1 - k % len(window.lanes) for k in range(crowd)]
    lanes = [window.lanes[k] for k in order]
    alone = live(carrier, subjects, window, window.lanes)
    among = live(carrier, subjects, window, lanes, along_last=True)
    weights = torch.tensor([max(abs(w or 0.0) for w in lane.weights) for lane in lanes]).double()
    rounding = 8 * precision(subjects) * weights.unsqueeze(1)
    found = set()
    for key, moved in alone.items():
        expected, seen = moved[order], among[key]
        same = torch.isclose(seen, expected, rtol=1e-9, atol=0.0, equal_nan=True)
        if not bool((same | ((seen - expected).abs() <= rounding)).all()):
            found.add(key)
    return found


def _fainter(window: Window) -> Window:
    """The window with gradients and weights so small that a clip of any usual threshold leaves them alone."""
    lanes = (
        replace(
            lane,
            weights=tuple(None if w is None else w * FAINT for w in lane.weights),
            gradients=tuple(g * FAINT for g in lane.gradients),
        )
        for lane in window.lanes
    )
    return replace(window, lanes=tuple(lanes))
