"""What an optimizer really does to each parameter, measured: probe tensors are stepped in the parameters' place.

The numbers of ``probe_sequence.py`` are laid side by side in a probe tensor for each parameter (of as many axes, in
double precision), a copy of the optimizer steps them through a few iterations, and how far each moved is written down.
What that means is not judged here. The model, the optimizer, the scheduler and the
random number generators are left as they were, bit for bit.

That slices may stand for whole tensors is checked on the optimizer itself: the first window is run a second time with
the sequences in another order, another shape and another size, and every sequence must move as it did before.
"""

from __future__ import annotations

import math
import random
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch.optim import lr_scheduler
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from caffe2torch.binding.wrappers import named_tensors
from caffe2torch.errors import describe
from caffe2torch.optim.schedule import CaffeLRScheduler
from caffe2torch.recipe import SolverSettings
from caffe2torch.solver.lr_policy import step_at
from caffe2torch.verification.fit import close
from caffe2torch.verification.optimizer_copy import (
    OptimizerCopy,
    bare_optimizer,
    bare_scheduler,
    copy_optimizer,
    gradient_hooks,
    group_places,
    metric_of,
    runs_foreign_code,
    user_hooks,
)
from caffe2torch.verification.optimizer_copy import step as take_step
from caffe2torch.verification.probe_sequence import STEPS as PROBE_STEPS
from caffe2torch.verification.probe_sequence import (
    Followed,
    Movements,
    Observation,
    Observations,
    ProbeSequence,
    SettingChange,
    Window,
    design,
    long_window,
)
from caffe2torch.verification.report import RateCurve

__all__ = ["follow", "observe"]

PROOF_NUMBERS = 2**18  # numbers in all probe tensors of the second run together
PROOF_SIZE = 4096  # and in the largest of them: some kernels treat larger tensors in another way than small ones
PROOF_LEAST = 64
FAINT = 2.0**-20  # how much smaller the gradients get where the optimizer seems to clip them
LARGE = 2.0**20  # how much larger those are that a clip of any usual bound would change


def observe(
    model: torch.nn.Module,
    optimizer: Any,
    solver: SolverSettings,
    scheduler: Any = None,
    *,
    iteration: int | None = None,
) -> Observations:
    """Step a copy of ``optimizer`` (and ``scheduler``) on probe tensors in place of the parameters of ``model``.

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
    metric = "" if scheduler is None else metric_of(scheduler)
    scheduler = None if metric else scheduler
    probed = subjects_of(optimizer)
    run = _Run(probed, start, solver)
    windows = design(solver, scheduled=scheduler is not None, numbers=run.elements * len(probed), start=start)
    run.hooks = user_hooks(optimizer)
    run.gradient_hooks = tuple(name for name, p in model.named_parameters() if gradient_hooks(p))
    watched = _Watched(model, keep=runs_foreign_code(optimizer, scheduler))
    with undisturbed(probed):
        try:
            run.through(windows, optimizer, scheduler, solver.clip_gradients)
        except Exception as error:  # anything at all may happen inside the user's step(), and it is the finding
            run.problem = describe(error)
    run.touched, run.restored = watched.put_back()
    return replace(run.observations(model), places=group_places(optimizer), metric=metric)


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
    """One probing: the windows that were run, and what came of them."""

    def __init__(self, probed: Sequence[Probed], start: int, solver: SolverSettings) -> None:
        self.probed = probed
        self.max_iter = solver.max_iter
        self.at = start
        # Where gradients must stay below a norm, many elements would make each of them too faint to tell much.
        self.elements = PROOF_LEAST
        if solver.clip_gradients is None:
            self.elements = max(min(PROOF_SIZE, PROOF_NUMBERS // max(len(probed), 1)), PROOF_LEAST)
        self.windows: list[Window] = []
        self.moved: list[dict[int, Movements]] = []
        self.unreached: list[tuple[Window, str]] = []
        self.first_change: int | None = None
        self.first_factor: float | None = None
        self.followed = start
        self.hooks = 0
        self.gradient_hooks: tuple[str, ...] = ()
        self.raised = ""
        self.touched: tuple[str, ...] = ()
        self.restored = True
        self.started = False
        self.not_elementwise: set[int] = set()
        self.clips = False
        self.clip: float | None = None
        self.value_clip: float | None = None
        self.clip_scope = ""
        self.by_weights: set[int] = set()
        self.problem = ""
        self.stated: tuple[tuple[float, float], ...] = ()
        self.long: Window | None = None
        self.moved_long: dict[int, Movements] = {}

    def through(
        self, windows: Sequence[Window], optimizer: torch.optim.Optimizer, scheduler: Any, clip: float | None
    ) -> None:
        """Run the windows one after the other. A copy that takes no step itself carries the scheduler on."""
        small = {id(one.tensor): one.probe_tensor(1) for one in self.probed}
        carrier = copy_optimizer(optimizer, scheduler, small, started=True)
        self.started = self._needs_history(carrier, windows[0])
        if scheduler is not None:
            windows = self._with_first_change(carrier, windows)
        for planned in windows:
            try:
                if scheduler is not None:
                    advance(carrier.scheduler, self.at, planned.iteration)
                    self.at = planned.iteration
                if not self.windows:
                    groups = carrier.optimizer.param_groups
                    self.stated = tuple((_setting(group, "lr"), _setting(group, "weight_decay")) for group in groups)
                    window, moved = self._prove(carrier, planned, clip)
                    self._run_long(carrier, window)
                else:
                    window = _fainter(planned) if self.clips else planned
                    moved = run_window(carrier, self.probed, window, window.sequences, started=self.started)
            except OutOfReachError as error:
                self.unreached.append((planned, str(error)))
                continue
            except Exception as error:
                if not self.windows:
                    raise
                self.unreached.append((planned, describe(error)))
                break
            self.windows.append(window)
            self.moved.append({key: tuple(map(tuple, sequences.tolist())) for key, sequences in moved.items()})

    def _run_long(self, carrier: OptimizerCopy, window: Window) -> None:
        """Run many steps on a few parameters. An optimizer that breaks off there was still seen in its first ones."""
        long = long_window(window, self.max_iter)
        try:
            self.moved_long = run_long(carrier, self.probed, long, self.started)
            self.long = long
        except Exception as error:
            self.raised = self.raised or f"steps beyond the first {window.steps} were not looked at: {describe(error)}"

    def _needs_history(self, carrier: OptimizerCopy, window: Window) -> bool:
        """Whether the optimizer steps only with the history that it was built with, as ``torch.optim.Adagrad``."""
        if not carrier.optimizer.state:
            return False
        failures = 0
        for _ in range(2):
            try:
                run_window(carrier, self.probed, replace(window, steps=1), window.sequences)
            except Exception as error:
                failures += 1
                found = describe(error)
        if failures == 1:
            self.raised = f"a step raised once and not again: {found}"
        return failures == 2

    def _with_first_change(self, carrier: OptimizerCopy, windows: Sequence[Window]) -> Sequence[Window]:
        """Find where the scheduler first changes a rate, and look at that place as well."""
        onto = {key: one.probe_tensor(1) for key, one in zip(carrier.probe_tensors, self.probed, strict=True)}
        ahead = copy_optimizer(
            carrier.optimizer, carrier.scheduler, {id(carrier.probe_tensors[key]): made for key, made in onto.items()}
        )
        rates = _rates(ahead.scheduler)
        until = min(self.at + SCOUTED, max(SCOUTED_LEAST, *(window.iteration for window in windows)))
        for iteration in range(self.at + 1, until + 1):
            try:
                ahead.scheduler.step()
            except Exception as error:
                self.raised = (
                    self.raised or f"the scheduler raises on its way to iteration {iteration}: {describe(error)}"
                )
                break
            self.followed = iteration
            if (now := _rates(ahead.scheduler)) != rates:
                self.first_change = iteration
                self.first_factor = next((b / a for a, b in zip(rates, now, strict=True) if a and a != b), None)
                break
        change = self.first_change
        if change is None or any(window.iteration < change <= window.iterations[-1] for window in windows):
            return windows
        added = replace(windows[0], iteration=max(change - 2, windows[0].iteration))
        return (windows[0], *sorted([added, *windows[1:]], key=lambda window: window.iteration))

    def _prove(
        self, carrier: OptimizerCopy, window: Window, clip: float | None
    ) -> tuple[Window, dict[int, torch.Tensor]]:
        """Find what does not move number by number; where fainter gradients mend that, the optimizer clips.

        Gradients far beyond ``clip`` are tried as well: an optimizer may clip there, or each number by its value. Gives
        the window as it is to be run, and what moved in it.
        """

        def moved(window: Window) -> dict[int, torch.Tensor]:
            return run_window(carrier, self.probed, window, window.sequences, started=self.started)

        faint, alone = _fainter(window), moved(window)
        beyond, by_value = self._mixed(carrier, window, alone, large=clip is None)
        self.not_elementwise, alone_faintly = beyond, None
        if beyond:
            alone_faintly = moved(faint)
            self.not_elementwise, _ = self._mixed(carrier, faint, alone_faintly)
            self.clips = self.not_elementwise != beyond
        if self.clips:
            self.by_weights = self._mixed_by_weights(carrier, window)
            beyond = beyond if not self.by_weights else self.not_elementwise
        if clip:
            self.clip = clip_threshold(carrier, self.probed, window, clip, self.started)
            if self.clip is not None and not close(self.clip, clip, 1e-3):
                beyond, by_value = self._mixed(carrier, window, alone, large=True)
        if by_value or (beyond != self.not_elementwise and not (clip and self.clips)):
            numbers = math.sqrt(sum(one.trains for one in self.probed))
            bound = clip_threshold(carrier, self.probed, window, LARGE / REACH * numbers, self.started)
            self.clip = math.inf if by_value else bound
            clip = None
            self.value_clip = bound / numbers if by_value and bound else None
            least = max(abs(g) for sequence in window.sequences for g in sequence.gradients)
            self.clips = self.clips or (self.value_clip or math.inf) < least
        if self.clip and math.isfinite(self.clip) and not (clip and close(self.clip, clip, 1e-3)):
            with suppress(Exception):  # as one that does not expect a parameter without a gradient
                self.clip_scope = "unknown"
                self.clip, self.clip_scope = clip_scope(carrier, self.probed, window, self.clip, self.started)
        return (faint, alone_faintly or moved(faint)) if self.clips else (window, alone)

    def _mixed_by_weights(self, carrier: OptimizerCopy, window: Window) -> set[int]:
        """The ``id`` of every tensor whose numbers depend on their neighbours' weights, but not on their gradients."""

        def mixed(part: Window) -> set[int]:
            alone = run_window(carrier, self.probed, part, part.sequences, started=self.started)
            return self._mixed(carrier, part, alone)[0]

        by_weights = mixed(_fainter(window, weights=1.0))
        return set() if by_weights and mixed(_fainter(window, gradients=1.0)) else by_weights

    def _mixed(
        self, carrier: OptimizerCopy, window: Window, alone: dict[int, torch.Tensor], *, large: bool = False
    ) -> tuple[set[int], bool]:
        """The ``id`` of every tensor of which a number moves otherwise than ``alone`` among other numbers.

        With ``large``, very large gradients are among the others; then also whether they move as smaller ones do.
        """
        order = [len(window.sequences) - 1 - k % len(window.sequences) for k in range(self.elements)]
        sequences = [window.sequences[k] for k in order]
        bounds = [_pair(size) for size in (FAINT, LARGE)] if large else []
        among = [*sequences, *chain.from_iterable(bounds)]
        mixed = run_window(carrier, self.probed, window, among, along_last=True, started=self.started)
        weights = torch.tensor([max(abs(w or 0.0) for w in sequence.weights) for sequence in sequences]).double()
        rounding = 8 * precision(self.probed) * weights.unsqueeze(1)
        found, alike = set(), []
        for key, moved in alone.items():
            expected, seen = moved[order], mixed[key][: len(order)]
            same = torch.isclose(seen, expected, rtol=1e-9, atol=0.0, equal_nan=True)
            if not bool((same | ((seen - expected).abs() <= rounding)).all()):
                found.add(key)
            small, other, huge, smaller = mixed[key][len(order) :, 1].tolist() if large else (0.0,) * 4
            alike += [close(huge, smaller) and not close(small, other)] if huge else []
        return found, any(alike)

    def observations(self, model: torch.nn.Module) -> Observations:
        """What was seen, by the names of the model's parameters."""
        held = {id(one.tensor): one for one in self.probed}
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
                    elementwise=id(parameter) not in self.not_elementwise,
                    long=self.moved_long.get(id(parameter), ()),
                )
                for name, parameter in tensors
                if isinstance(parameter, torch.nn.Parameter)
            ),
            unreached=tuple(self.unreached),
            problem=self.problem,
            foreign=tuple(tuple(s.tensor.shape) for s in self.probed if id(s.tensor) not in known),
            buffers=tuple(n for n, t in tensors if id(t) in held and not isinstance(t, torch.nn.Parameter)),
            first_change=self.first_change,
            first_factor=self.first_factor,
            followed=self.followed,
            hooks=self.hooks,
            gradient_hooks=self.gradient_hooks,
            raised=self.raised,
            touched=self.touched,
            restored=self.restored,
            clips=self.clips,
            clip=self.clip,
            value_clip=self.value_clip,
            clip_scope=self.clip_scope,
            by_weights=tuple(name for name, tensor in tensors if id(tensor) in self.by_weights),
            precision=precision(self.probed),
            stated=self.stated,
            long=self.long,
        )


def _pair(size: float) -> Iterator[ProbeSequence]:
    """Two gradients of about one size, after one that is the same: no rule here takes them for equal."""
    for gradient in (size, 0.9 * size):
        yield ProbeSequence("bound", (0.0,) * PROBE_STEPS, (size / 64, gradient, *(0.0,) * (PROBE_STEPS - 2)))


def _fainter(window: Window, *, weights: float = FAINT, gradients: float = FAINT) -> Window:
    """The window with gradients and weights so small that a clip of any usual threshold leaves them alone."""
    sequences = (
        replace(
            sequence,
            weights=tuple(None if w is None else w * weights for w in sequence.weights),
            gradients=tuple(g * gradients for g in sequence.gradients),
        )
        for sequence in window.sequences
    )
    return replace(window, sequences=tuple(sequences))


# Probe tensors, and the steps of a copy on them: sequences in, movements out.


@dataclass(frozen=True)
class Probed:
    """A tensor that the optimizer holds, the groups in which it does, and whether backward gives it a gradient."""

    tensor: torch.Tensor
    groups: tuple[int, ...]
    trains: bool

    def probe_tensor(self, numbers: int, *, along_last: bool = False) -> torch.Tensor:
        """A small tensor of as many axes, with the same attributes, and ``numbers`` along one axis."""
        shape = [1] * max(self.tensor.dim(), 1)
        shape[-1 if along_last else 0] = numbers
        device = torch.device("cpu") if self.tensor.device.type == "meta" else self.tensor.device
        zeros = torch.zeros(shape, dtype=_dtype(self.tensor), device=device)
        made = torch.nn.Parameter(zeros, requires_grad=self.trains)
        made.__dict__.update(vars(self.tensor))  # attributes by which an optimizer may treat a parameter specially
        return made


def subjects_of(optimizer: torch.optim.Optimizer) -> list[Probed]:
    """Every tensor that an optimizer holds, once each."""
    groups: dict[int, list[int]] = {}
    tensors: dict[int, torch.Tensor] = {}
    for index, group in enumerate(optimizer.param_groups):
        for tensor in group["params"]:
            groups.setdefault(id(tensor), []).append(index)
            tensors[id(tensor)] = tensor
    return [Probed(tensors[key], tuple(found), tensors[key].requires_grad) for key, found in groups.items()]


def precision(probed: Sequence[Probed]) -> float:
    """The spacing of numbers near 1 in the coarsest probe tensor."""
    return max((torch.finfo(_dtype(one.tensor)).eps for one in probed), default=2.0**-52)


def run_window(
    carrier: OptimizerCopy,
    probed: Sequence[Probed],
    window: Window,
    sequences: Sequence[ProbeSequence],
    *,
    along_last: bool = False,
    started: bool = False,
) -> dict[int, torch.Tensor]:
    """Step a fresh copy of ``carrier`` through a window: ``id`` of each tensor to its movements, (sequences, steps).

    ``started`` is as in ``copy_optimizer``. Whatever the optimizer's ``step()`` raises goes through.
    """
    made = {id(one.tensor): one.probe_tensor(len(sequences), along_last=along_last) for one in probed}
    onto = {id(carrier.probe_tensors[key]): probe_tensor for key, probe_tensor in made.items()}
    return _steps(copy_optimizer(carrier.optimizer, carrier.scheduler, onto, started=started), made, window, sequences)


def _steps(
    optimizer_copy: OptimizerCopy, made: dict[int, torch.Tensor], window: Window, sequences: Sequence[ProbeSequence]
) -> dict[int, torch.Tensor]:
    weights = torch.tensor(
        [[torch.nan if w is None else w for w in sequence.weights] for sequence in sequences]
    ).double()
    gradients = torch.tensor([sequence.gradients for sequence in sequences], dtype=torch.float64)
    moved = {key: torch.zeros(len(sequences), window.steps, dtype=torch.float64) for key in made}
    kept = weights.isnan()
    for step in range(window.steps):
        before = {}
        keeps_some = bool(kept[:, step].any())
        for key, probe_tensor in made.items():
            numbers, placed = probe_tensor.detach().view(-1), weights[:, step]
            if keeps_some:
                placed = torch.where(kept[:, step], numbers.double().cpu(), placed)
            numbers.copy_(placed)
            if probe_tensor.requires_grad:
                probe_tensor.grad = gradients[:, step].reshape(probe_tensor.shape).to(probe_tensor, copy=True)
            before[key] = numbers.clone()
        take_step(optimizer_copy.optimizer)
        for key, probe_tensor in made.items():  # read anew: a step may have given the parameter other data
            moved[key][:, step] = probe_tensor.detach().reshape(-1).double().cpu() - before[key].double().cpu()
        if window.moving and step + 1 < window.steps:
            optimizer_copy.scheduler.step()
    return moved


FEW = 4
"""How many parameters take part in the long window: one for each of the param groups' settings, as far as that goes."""


def run_long(carrier: OptimizerCopy, probed: Sequence[Probed], window: Window, started: bool) -> dict[int, Movements]:
    """The movements of a few tensors through a window in which the sequences hold their weights; others take no part.

    This is ``run_window`` for hundreds of steps, at a cost that no audit shows.
    """
    groups = carrier.optimizer.param_groups
    settings = [repr({name: value for name, value in group.items() if name != "params"}) for group in groups]
    kinds = {settings[one.groups[0]]: one for one in reversed(probed) if one.trains and len(one.groups) == 1}
    few = list(reversed(kinds.values()))[:FEW]
    made = {id(one.tensor): one.probe_tensor(len(window.sequences)) for one in few}
    onto = {id(held): held for held in carrier.probe_tensors.values()}
    onto |= {id(carrier.probe_tensors[key]): tensor for key, tensor in made.items()}
    optimizer = copy_optimizer(carrier.optimizer, carrier.scheduler, onto, started=started).optimizer
    taking_part = {id(tensor) for tensor in made.values()}
    for group in optimizer.param_groups:
        group["params"] = [tensor for tensor in group["params"] if id(tensor) in taking_part]
    gradients = torch.tensor([sequence.gradients for sequence in window.sequences], dtype=torch.float64).T.contiguous()
    weights = torch.tensor([sequence.weights[0] for sequence in window.sequences], dtype=torch.float64)
    probes = []
    for tensor in made.values():
        each = gradients.to(tensor, copy=True).reshape(-1, *tensor.shape).unbind()
        probes.append((tensor, weights.to(tensor).reshape(tensor.shape), each))
    moved: list[list[torch.Tensor]] = [[] for _ in probes]
    for step in range(window.steps):
        for tensor, weight, each in probes:
            tensor.detach().copy_(weight)
            tensor.grad = each[step]
        take_step(optimizer)
        for (tensor, weight, _), steps in zip(probes, moved, strict=True):
            steps.append(tensor.detach() - weight)
    return {
        key: tuple(map(tuple, torch.stack(steps).reshape(window.steps, -1).double().cpu().T.tolist()))
        for key, steps in zip(made, moved, strict=True)
    }


@contextmanager
def undisturbed(probed: Sequence[Probed]) -> Iterator[None]:
    """Leave every random number generator as it was, and keep what the probe provokes from warning the user."""
    states: list[Any] = [random.getstate()]
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        states.append(numpy.random.get_state())
    devices = {one.tensor.device for one in probed if one.tensor.device.type == "cuda"}
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
    return [_setting(group, "lr") for group in groups]


def _setting(group: dict[str, Any], name: str) -> float:
    value = group.get(name)
    return float(value) if isinstance(value, float | int | torch.Tensor) else 0.0


LOOKS = 240
"""Iterations at which a scheduler is looked at over a run."""


def follow(optimizer: Any, scheduler: Any, iterations: int, *, start: int = 0) -> Followed:
    """The rate that a copy of ``scheduler`` gives each group from ``start`` on, and what else it changes.

    A scheduler that cannot be set to an iteration is stepped, ``FARTHEST`` times at most. Whatever it raises ends its
    curve, which may thus be shorter than the run. Groups of one curve are one.

    >>> weight = torch.nn.Parameter(torch.zeros(1))
    >>> optimizer = torch.optim.SGD([weight], lr=1.0)
    >>> follow(optimizer, lr_scheduler.StepLR(optimizer, 2), 4).curves
    (RateCurve(groups=(0,), points=((0, 1.0), (1, 1.0), (2, 0.1), (3, 0.1))),)
    """
    optimizer, scheduler = bare_optimizer(optimizer), bare_scheduler(scheduler)
    probed = subjects_of(optimizer)
    seen: dict[int, list[float]] = {}
    settings: dict[int, list[dict[str, Any]]] = {}
    with undisturbed(probed), suppress(Exception):  # the checks say what it is
        copied = copy_optimizer(
            optimizer, scheduler, {id(one.tensor): one.probe_tensor(1) for one in probed}, started=True
        )
        seen[start], settings[start] = _rates(copied.scheduler), _settings(copied.scheduler)
        at = start
        for wanted in sorted({start + (iterations - 1 - start) * k // LOOKS for k in range(1, LOOKS + 1)}):
            if wanted <= at:
                continue
            if not _leap(copied.scheduler, wanted):
                if wanted - start > FARTHEST:
                    break
                for _ in range(at, wanted):
                    copied.scheduler.step()
            at = wanted
            seen[at], settings[at] = _rates(copied.scheduler), _settings(copied.scheduler)
    groups: dict[tuple[float, ...], list[int]] = {}
    for index, curve in enumerate(zip(*seen.values(), strict=True)):
        groups.setdefault(curve, []).append(index)
    curves = (RateCurve(tuple(found), tuple(zip(seen, curve, strict=True))) for curve, found in groups.items())
    return Followed(tuple(curves), tuple(_changed(settings)))


def _settings(scheduler: Any) -> list[dict[str, Any]]:
    """What each group states besides its rate, as far as it is numbers."""
    groups = getattr(getattr(scheduler, "optimizer", None), "param_groups", ())
    return [
        {name: value for name, value in group.items() if isinstance(value, float | tuple) and name not in _RATES}
        for group in groups
    ]


_RATES = frozenset({"lr", "initial_lr"})


def _changed(settings: Mapping[int, list[dict[str, Any]]]) -> Iterator[SettingChange]:
    """The first change of every setting that is not what it was at the first look."""
    found: set[str] = set()
    first = next(iter(settings.values()), [])
    for iteration, groups in settings.items():
        for group, (before, now) in enumerate(zip(first, groups, strict=True)):
            for name in before.keys() & now.keys() - found:
                if now[name] != before[name] and now[name] == now[name]:
                    found.add(name)
                    yield SettingChange(iteration, group, name, before[name], now[name])


# Whether an optimizer clips gradients inside its step, and beyond which norm: read from what it does.

REACH = 16.0  # how far beyond the expected norm is looked
STEPS = 3
_TOLERANCE = 1e-4
_HALVINGS = 25


def clip_threshold(
    carrier: OptimizerCopy, probed: Sequence[Probed], window: Window, expected: float, started: bool
) -> float | None:
    """The norm over all gradients beyond which they are scaled down; infinite where that is far beyond ``expected``.

    ``None`` where no gradient moves anything.

    A clip makes large gradients do what smaller ones do. So the threshold is the smallest norm whose gradients, given
    in place of ``REACH`` times the expected norm, move every probe tensor just as those do. A gradient of a quarter of
    the expected norm comes first, since an adaptive rule answers to sizes only by comparison.
    """
    numbers = sum(one.trains for one in probed)
    if not numbers:
        return None
    unit = expected / math.sqrt(numbers)

    def moved(norm: float) -> dict[int, torch.Tensor]:
        gradients = (unit / 4, unit * norm, *(0.0,) * (STEPS - 2))
        sequences = (ProbeSequence("clip", (0.0,) * STEPS, gradients),)
        return run_window(
            carrier, probed, replace(window, steps=STEPS, sequences=sequences), sequences, started=started
        )

    clipped = moved(REACH)
    if not any(bool(seen.any()) for seen in clipped.values()):
        return None

    def same(norm: float) -> bool:
        tried = moved(norm)
        added = min(1e-6 / (norm * expected), 1e-2)  # torch's clip_grad_norm_ divides by the norm + 1e-6
        return all(torch.allclose(tried[key], seen, rtol=1e-6 + added, atol=0.0) for key, seen in clipped.items())

    if same(1 + _TOLERANCE) and not same(1 - _TOLERANCE):
        return expected
    if not same(REACH * 0.9):
        return math.inf
    low, high = 0.0, REACH
    for _ in range(_HALVINGS):
        middle = math.sqrt(max(low, REACH * 2.0**-40) * high)
        low, high = (low, middle) if same(middle) else (middle, high)
    return expected * high


def clip_scope(
    carrier: OptimizerCopy, probed: Sequence[Probed], window: Window, found: float, started: bool
) -> tuple[float, str]:
    """The bound of a clip that was ``found`` with gradients everywhere, and what it bounds the norm of, if not of all.

    It is found again with a gradient for one parameter alone, and for those of one param group.
    """
    trained = [one for one in probed if one.trains]

    def beyond(some: Sequence[Probed]) -> float:
        chosen = {id(one.tensor) for one in some}
        given = [replace(one, trains=id(one.tensor) in chosen) for one in probed]
        return clip_threshold(carrier, given, window, found, started) or math.nan

    bound = beyond(trained[:1])
    if close(bound, found, 1e-3):
        return found, ""
    group = max(([one for one in trained if one.groups == other.groups] for other in trained), key=len)
    for scope, due in (("each parameter", bound * math.sqrt(len(group))), ("each param group", bound)):
        if math.isfinite(bound) and close(beyond(group), due, 1e-3):
            return bound, scope
    return found, "unknown"
