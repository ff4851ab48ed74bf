"""What a live optimizer really does to each parameter, measured: small stand-ins are stepped in the parameters' place.

The numbers of ``probe_sequence.py`` are laid side by side in a stand-in for each parameter (of as many axes, in double
precision), a twin of the optimizer steps them through a few iterations, and how far each moved is written down. What
that means is not judged here. The model, the optimizer, the scheduler and the
random number generators are left as they were, bit for bit.

That slices may stand for whole tensors is checked on the optimizer itself: the first window is run a second time with
the lanes in another order, another shape and another size, and every lane must move as it did before.
"""

from __future__ import annotations

import math
import random
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.optim import lr_scheduler
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from caffe2torch.binding.wrappers import named_tensors
from caffe2torch.errors import describe
from caffe2torch.optim.schedule import CaffeLRScheduler
from caffe2torch.recipe import SolverSettings
from caffe2torch.solver.lr_policy import step_at
from caffe2torch.verification.optimizer_copy import (
    Twin,
    bare_optimizer,
    bare_scheduler,
    make_twin,
    runs_foreign_code,
    user_hooks,
)
from caffe2torch.verification.optimizer_copy import step as take_step
from caffe2torch.verification.probe_sequence import Lane, Movements, Observation, Observations, Window, design

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
    run.hooks = user_hooks(optimizer)
    watched = _Watched(model, keep=runs_foreign_code(optimizer, scheduler))
    with undisturbed(subjects):
        try:
            run.through(windows, optimizer, scheduler, solver.clip_gradients)
        except Exception as error:  # anything at all may happen inside the user's step(), and it is the finding
            run.problem = describe(error)
    run.touched, run.restored = watched.put_back()
    return run.observations(model)


class _Watched:
    """The tensors of the real model, which no step of a copy may change.

    torch counts the changes of each tensor. Copies to put back are kept only where the user's code runs (``keep``).
    """

    def __init__(self, model: torch.nn.Module, *, keep: bool) -> None:
        self.tensors = dict(named_tensors(model))
        self.versions = {name: tensor._version for name, tensor in self.tensors.items()}
        self.kept = {name: tensor.detach().clone() for name, tensor in self.tensors.items()} if keep else {}

    def put_back(self) -> tuple[tuple[str, ...], bool]:
        """The names of tensors that were changed, and whether they are again as they were."""
        changed = []
        for name, tensor in self.tensors.items():
            kept = self.kept.get(name)
            by_data = kept is not None and not tensor.is_meta and not _equal(tensor, kept)
            if by_data or (tensor._version != self.versions[name] and kept is None):
                changed.append(name)
            if by_data and kept is not None:
                with torch.no_grad():
                    tensor.copy_(kept)
        return tuple(changed), bool(self.kept) or not changed


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool(((one == other) | ((one != one) & (other != other))).all())


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
        self.first_change: int | None = None
        self.followed = start
        self.hooks = 0
        self.raised = ""
        self.touched: tuple[str, ...] = ()
        self.restored = True
        self.started = False
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
        self.started = self._needs_history(carrier, windows[0])
        if scheduler is not None:
            windows = self._with_first_change(carrier, windows)
        for planned in windows:
            try:
                if scheduler is not None:
                    advance(carrier.scheduler, self.at, planned.iteration)
                    self.at = planned.iteration
                if not self.windows:
                    self._prove(carrier, planned)
                    self.clip = clip_threshold(carrier, self.subjects, planned, clip, self.started) if clip else None
                window = _fainter(planned) if self.clips else planned
                moved = live(carrier, self.subjects, window, window.lanes, started=self.started)
            except OutOfReachError as error:
                self.unreached.append((planned, str(error)))
                continue
            except Exception as error:
                if not self.windows:
                    raise
                self.unreached.append((planned, describe(error)))
                break
            self.windows.append(window)
            self.moved.append({key: tuple(map(tuple, lanes.tolist())) for key, lanes in moved.items()})

    def _needs_history(self, carrier: Twin, window: Window) -> bool:
        """Whether the optimizer steps only with the history that it was built with, as ``torch.optim.Adagrad``."""
        if not carrier.optimizer.state:
            return False
        failures = 0
        for _ in range(2):
            try:
                live(carrier, self.subjects, replace(window, steps=1), window.lanes)
            except Exception as error:
                failures += 1
                found = describe(error)
        if failures == 1:
            self.raised = found
        return failures == 2

    def _with_first_change(self, carrier: Twin, windows: Sequence[Window]) -> Sequence[Window]:
        """Find where the scheduler first changes a rate, and look at that place as well."""
        onto = {key: subject.stand_in(1) for key, subject in zip(carrier.stand_ins, self.subjects, strict=True)}
        ahead = make_twin(
            carrier.optimizer, carrier.scheduler, {id(carrier.stand_ins[key]): made for key, made in onto.items()}
        )
        rates = _rates(ahead.scheduler)
        until = min(self.at + SCOUTED, max(SCOUTED_LEAST, *(window.iteration for window in windows)))
        for iteration in range(self.at + 1, until + 1):
            try:
                ahead.scheduler.step()
            except Exception as error:
                self.raised = self.raised or describe(error)
                break
            self.followed = iteration
            if _rates(ahead.scheduler) != rates:
                self.first_change = iteration
                break
        change = self.first_change
        if change is None or any(window.iteration < change <= window.iterations[-1] for window in windows):
            return windows
        added = replace(windows[0], iteration=max(change - 2, windows[0].iteration))
        return (windows[0], *sorted([added, *windows[1:]], key=lambda window: window.iteration))

    def _prove(self, carrier: Twin, window: Window) -> None:
        """Find what does not move number by number; where fainter gradients mend that, the optimizer clips."""
        self.entangled = _entangled(carrier, self.subjects, window, self.crowd, self.started)
        if self.entangled:
            fainter = _entangled(carrier, self.subjects, _fainter(window), self.crowd, self.started)
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
            first_change=self.first_change,
            followed=self.followed,
            hooks=self.hooks,
            raised=self.raised,
            touched=self.touched,
            restored=self.restored,
            clips=self.clips,
            clip=self.clip,
            precision=precision(self.subjects),
        )


def _entangled(carrier: Twin, subjects: Sequence[Subject], window: Window, crowd: int, started: bool) -> set[int]:
    """The ``id`` of every tensor of which a number moves differently in another place, among other numbers."""
    order = [len(window.lanes) - 1 - k % len(window.lanes) for k in range(crowd)]
    lanes = [window.lanes[k] for k in order]
    alone = live(carrier, subjects, window, window.lanes, started=started)
    among = live(carrier, subjects, window, lanes, along_last=True, started=started)
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


# Stand-ins for parameters, and a twin's life on them: lanes in, movements out.


@dataclass(frozen=True)
class Subject:
    """A tensor that the optimizer holds, the groups in which it does, and whether backward gives it a gradient."""

    tensor: torch.Tensor
    groups: tuple[int, ...]
    trains: bool

    def stand_in(self, numbers: int, *, along_last: bool = False) -> torch.Tensor:
        """A small tensor of as many axes, with the same attributes, and ``numbers`` along one axis."""
        shape = [1] * max(self.tensor.dim(), 1)
        shape[-1 if along_last else 0] = numbers
        device = torch.device("cpu") if self.tensor.device.type == "meta" else self.tensor.device
        zeros = torch.zeros(shape, dtype=_dtype(self.tensor), device=device)
        made = torch.nn.Parameter(zeros, requires_grad=self.trains)
        made.__dict__.update(vars(self.tensor))  # attributes by which an optimizer may treat a parameter specially
        return made


def subjects_of(optimizer: torch.optim.Optimizer) -> list[Subject]:
    """Every tensor that an optimizer holds, once each."""
    groups: dict[int, list[int]] = {}
    tensors: dict[int, torch.Tensor] = {}
    for index, group in enumerate(optimizer.param_groups):
        for tensor in group["params"]:
            groups.setdefault(id(tensor), []).append(index)
            tensors[id(tensor)] = tensor
    return [Subject(tensors[key], tuple(found), tensors[key].requires_grad) for key, found in groups.items()]


def precision(subjects: Sequence[Subject]) -> float:
    """The spacing of numbers near 1 in the coarsest stand-in."""
    return max((torch.finfo(_dtype(subject.tensor)).eps for subject in subjects), default=2.0**-52)


def live(
    carrier: Twin,
    subjects: Sequence[Subject],
    window: Window,
    lanes: Sequence[Lane],
    *,
    along_last: bool = False,
    started: bool = False,
) -> dict[int, torch.Tensor]:
    """Step a fresh twin of ``carrier`` through a window: ``id`` of each tensor to its movements, (lanes, steps).

    ``started`` is as in ``make_twin``. Whatever the optimizer's ``step()`` raises goes through.
    """
    made = {id(subject.tensor): subject.stand_in(len(lanes), along_last=along_last) for subject in subjects}
    onto = {id(carrier.stand_ins[key]): stand_in for key, stand_in in made.items()}
    return _steps(make_twin(carrier.optimizer, carrier.scheduler, onto, started=started), made, window, lanes)


def _steps(twin: Twin, made: dict[int, torch.Tensor], window: Window, lanes: Sequence[Lane]) -> dict[int, torch.Tensor]:
    weights = torch.tensor([[torch.nan if w is None else w for w in lane.weights] for lane in lanes]).double()
    gradients = torch.tensor([lane.gradients for lane in lanes], dtype=torch.float64)
    moved = {key: torch.zeros(len(lanes), window.steps, dtype=torch.float64) for key in made}
    kept = weights.isnan()
    for step in range(window.steps):
        before = {}
        for key, stand_in in made.items():
            numbers, placed = stand_in.detach().view(-1), weights[:, step]
            if bool(kept[:, step].any()):
                placed = torch.where(kept[:, step], numbers.double().cpu(), placed)
            numbers.copy_(placed)
            if stand_in.requires_grad:
                stand_in.grad = gradients[:, step].reshape(stand_in.shape).to(stand_in, copy=True)
            before[key] = numbers.clone()
        take_step(twin.optimizer)
        for key, stand_in in made.items():  # read anew: a step may have given the parameter other data
            moved[key][:, step] = stand_in.detach().reshape(-1).double().cpu() - before[key].double().cpu()
        if window.moving and step + 1 < window.steps:
            twin.scheduler.step()
    return moved


@contextmanager
def undisturbed(subjects: Sequence[Subject]) -> Iterator[None]:
    """Leave every random number generator as it was, and keep what the probe provokes from warning the user."""
    states: list[Any] = [random.getstate()]
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        states.append(numpy.random.get_state())
    devices = {subject.tensor.device for subject in subjects if subject.tensor.device.type == "cuda"}
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    # A default device slows every call of torch down: it is set only where the user has set another one.
    default_device: Any = nullcontext() if torch.empty(0).device.type == "cpu" else torch.device("cpu")
    every: list[Any] = [_global_optimizer_pre_hooks, _global_optimizer_post_hooks]
    everywhere = [(hooks, dict(hooks)) for hooks in every]
    for hooks, _ in everywhere:
        hooks.clear()
    try:
        with default_device, torch.random.fork_rng(devices=sorted(devices, key=str)), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for hooks, kept in everywhere:
            hooks.update(kept)
        torch.set_default_dtype(dtype)
        random.setstate(states[0])
        if numpy is not None:
            numpy.random.set_state(states[1])


def _dtype(tensor: torch.Tensor) -> torch.dtype:
    """Double precision, so that a tiny decay of a weight is no rounding error; what Metal lacks is float32 there."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


# Carry a scheduler on to a later iteration, as a training loop would: one ``step()`` after the other.

NEAR = 20_000
"""Steps of a few microseconds that are taken one by one even where a scheduler can be set to an iteration at once."""

FARTHEST = 500_000
"""Steps beyond which a scheduler that cannot be set is not followed."""

SCOUTED, SCOUTED_LEAST = 2000, 50
"""Within how many steps the first change of a rate is looked for: a schedule of epochs has changed by then."""


class OutOfReachError(Exception):
    """An iteration that a scheduler cannot be carried on to; the message says why."""


def advance(scheduler: Any, at: int, to: int) -> None:
    """Step ``scheduler`` from iteration ``at`` to ``to``, or set it there. Raises ``OutOfReachError``."""
    if to - at > NEAR and _leap(scheduler, to):
        return
    if to - at > FARTHEST:
        raise OutOfReachError(f"it is {to - at} steps of the scheduler away")
    for _ in range(at, to):
        scheduler.step()


def _leap(scheduler: Any, to: int) -> bool:
    """Set a scheduler to an iteration where its class is known to need no other on the way."""
    if isinstance(scheduler, CaffeLRScheduler):
        scheduler.restore(to, step_at(scheduler.solver.policy, to))
    elif isinstance(scheduler, lr_scheduler.LambdaLR) and type(scheduler).get_lr is lr_scheduler.LambdaLR.get_lr:
        scheduler.last_epoch = to - 1
        scheduler.step()
    elif type(scheduler).__module__ == lr_scheduler.__name__ and hasattr(scheduler, "_get_closed_form_lr"):
        scheduler.step(to)
    else:
        return False
    return True


def _rates(scheduler: Any) -> list[float]:
    groups = getattr(getattr(scheduler, "optimizer", None), "param_groups", ())
    return [float(group["lr"]) if isinstance(group.get("lr"), float | int | torch.Tensor) else 0.0 for group in groups]


# Whether an optimizer clips gradients inside its step, and beyond which norm: told from what it does.

REACH = 16.0  # how far beyond the expected norm is looked
STEPS = 3
_TOLERANCE = 1e-4
_HALVINGS = 24


def clip_threshold(
    carrier: Twin, subjects: Sequence[Subject], window: Window, expected: float, started: bool
) -> float | None:
    """The norm over all gradients beyond which they are scaled down; infinite where that is far beyond ``expected``.

    ``None`` where no gradient moves anything.

    A clip makes large gradients do what smaller ones do. So the threshold is the smallest norm whose gradients, given
    in place of ``REACH`` times the expected norm, move every stand-in just as those do. A gradient of a quarter of the
    expected norm comes first, since an adaptive rule answers to sizes only by comparison.
    """
    numbers = sum(subject.trains for subject in subjects)
    if not numbers:
        return None
    unit = expected / math.sqrt(numbers)

    def moved(norm: float) -> dict[int, torch.Tensor]:
        gradients = (unit / 4, unit * norm, *(0.0,) * (STEPS - 2))
        lanes = (Lane("clip", (0.0,) * STEPS, gradients),)
        return live(carrier, subjects, replace(window, steps=STEPS, lanes=lanes), lanes, started=started)

    clipped = moved(REACH)
    if not any(bool(seen.any()) for seen in clipped.values()):
        return None

    def same(norm: float) -> bool:
        tried = moved(norm)
        return all(torch.allclose(tried[key], seen, rtol=1e-6, atol=0.0) for key, seen in clipped.items())

    if same(1 + _TOLERANCE) and not same(1 - _TOLERANCE):
        return expected
    if not same(REACH * 0.9):
        return math.inf
    low, high = 0.0, REACH
    for _ in range(_HALVINGS):
        middle = math.sqrt(max(low, REACH * 2.0**-20) * high)
        low, high = (low, middle) if same(middle) else (middle, high)
    return expected * high
