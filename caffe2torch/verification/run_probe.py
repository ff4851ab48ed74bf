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
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from typing import Any

import torch

from caffe2torch.binding.wrappers import named_tensors
from caffe2torch.errors import describe
from caffe2torch.recipe import SolverSettings
from caffe2torch.verification.clip_bound import REACH, clip_scope, clip_threshold, clips_decay
from caffe2torch.verification.fit import close
from caffe2torch.verification.follow_scheduler import OutOfReachError, advance, rates_of, setting_of
from caffe2torch.verification.optimizer_copy import (
    OptimizerCopy,
    bare_optimizer,
    bare_scheduler,
    copy_optimizer,
    gradient_hooks,
    group_places,
    metric_of,
    outside_lookup,
    runs_foreign_code,
    user_hooks,
    without_capturable,
)
from caffe2torch.verification.probe_sequence import STEPS as PROBE_STEPS
from caffe2torch.verification.probe_sequence import (
    Movements,
    Observation,
    Observations,
    ProbeSequence,
    Window,
    design,
    long_window,
)
from caffe2torch.verification.probe_tensors import (
    Probed,
    collected_calls,
    precision,
    run_long,
    run_window,
    subjects_of,
    undisturbed,
)

__all__ = ["observe"]

PROOF_NUMBERS = 2**18  # numbers in all probe tensors of the second run together
PROOF_SIZE = 4096  # and in the largest of them: some kernels treat larger tensors in another way than small ones
PROOF_LEAST = 64
FAINT = 2.0**-20  # how much smaller the gradients get where the optimizer seems to clip them
LARGE = 2.0**20  # how much larger those are that a clip of any usual bound would change

SCOUTED, SCOUTED_LEAST = 2000, 50
"""Within how many steps the first change of a rate is looked for: a schedule of epochs has changed by then."""


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
            if outside := outside_lookup(optimizer):
                run.problem = f"it looks parameters up in {outside}, where no copy of them is: keep it in an attribute"
            else:
                run.through(windows, optimizer, scheduler, solver.clip_gradients)
        except Exception as error:  # anything at all may happen inside the user's step(), and it is the finding
            run.problem = describe(error)
            if "closure" in run.problem.lower():
                run.problem += (
                    "; such a step evaluates the loss itself, as LBFGS's and SAM's; Caffe's takes one gradient"
                )
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
        self.max_iter, self.passes = solver.max_iter, max(solver.iter_size, 1)
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
        self.said: list[str] = []
        self.touched: tuple[str, ...] = ()
        self.restored = True
        self.started = False
        self.not_elementwise: set[int] = set()
        self.scaled_by: dict[int, str] = {}
        self.clips = False
        self.clip: float | None = None
        self.value_clip: float | None = None
        self.clip_scope = ""
        self.clips_decay = False
        self.by_weights: set[int] = set()
        self.problem = ""
        self.calls = 1
        self.kinds = (0, 0)
        self.stated: tuple[tuple[float, float], ...] = ()
        self.long: Window | None = None
        self.moved_long: dict[int, Movements] = {}

    def through(
        self, windows: Sequence[Window], optimizer: torch.optim.Optimizer, scheduler: Any, clip: float | None
    ) -> None:
        """Run the windows one after the other. A copy that takes no step itself carries the scheduler on."""
        small = {id(one.tensor): one.probe_tensor(1) for one in self.probed}
        carrier = copy_optimizer(optimizer, scheduler, small, started=True)
        if without_capturable(carrier):
            self.said.append(
                "capturable=True works on a GPU alone, and the parameters are not on one, where step() raises: it was "
                "looked at without, which makes the same steps"
            )
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
                    self.stated = tuple(
                        (setting_of(group, "lr"), setting_of(group, "weight_decay")) for group in groups
                    )
                    alone = run_window(carrier, self.probed, planned, planned.sequences, started=self.started)
                    if self._collects(carrier, alone):
                        alone = run_window(carrier, self.probed, planned, planned.sequences, started=self.started)
                    if self.problem:
                        return
                    window, moved = self._prove(carrier, planned, alone, clip)
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

    def _collects(self, carrier: OptimizerCopy, moved: dict[int, torch.Tensor]) -> bool:
        """Whether ``step()`` collects gradients, which leaves steps of a window at which nothing has ``moved``."""
        if not moved or bool(torch.stack([steps.any(0) for steps in moved.values()]).any(0).all()):
            return False
        try:
            found = collected_calls(carrier, self.probed, self.started)
        except Exception:  # of a step beyond those that are looked at anyway
            return False
        self.calls = carrier.calls = found.calls
        if found.problem:
            self.problem = f"step() moves parameters once in {found.calls} calls, and {found.problem}"
        return found.calls > 1

    def _run_long(self, carrier: OptimizerCopy, window: Window) -> None:
        """Run many steps on a few parameters. An optimizer that breaks off there was still seen in its first ones."""
        long = long_window(window, self.max_iter)
        try:
            self.moved_long, kinds = run_long(carrier, self.probed, long, self.started)
            self.kinds = len(self.moved_long), kinds
            self.long = long
        except Exception as error:
            self.said.append(f"steps beyond the first {window.steps} were not looked at: {describe(error)}")

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
            self.said.append(f"a step raised once and not again: {found}")
        return failures == 2

    def _with_first_change(self, carrier: OptimizerCopy, windows: Sequence[Window]) -> Sequence[Window]:
        """Find where the scheduler first changes a rate, and look at that place as well."""
        onto = {key: one.probe_tensor(1) for key, one in zip(carrier.probe_tensors, self.probed, strict=True)}
        ahead = copy_optimizer(
            carrier.optimizer, carrier.scheduler, {id(carrier.probe_tensors[key]): made for key, made in onto.items()}
        )
        rates = rates_of(ahead.scheduler)
        farthest = max(window.iteration for window in windows) * self.passes  # it may be made for a step a pass
        until = min(self.at + SCOUTED, max(SCOUTED_LEAST, farthest))
        for iteration in range(self.at + 1, until + 1):
            try:
                ahead.scheduler.step()
            except Exception as error:
                self.said.append(f"the scheduler raises on its way to iteration {iteration}: {describe(error)}")
                break
            self.followed = iteration
            if (now := rates_of(ahead.scheduler)) != rates:
                self.first_change = iteration
                self.first_factor = next((b / a for a, b in zip(rates, now, strict=True) if a and a != b), None)
                break
        change = self.first_change
        if change is None or any(window.iteration < change <= window.iterations[-1] for window in windows):
            return windows
        added = replace(windows[0], iteration=max(change - 2, windows[0].iteration))
        return (windows[0], *sorted([added, *windows[1:]], key=lambda window: window.iteration))

    def _prove(
        self, carrier: OptimizerCopy, window: Window, alone: dict[int, torch.Tensor], clip: float | None
    ) -> tuple[Window, dict[int, torch.Tensor]]:
        """Find what does not move number by number; where fainter gradients mend that, the optimizer clips.

        ``alone`` is what moved in the window. Gradients far beyond ``clip`` are tried as well: an optimizer may clip
        there, or each number by its value. Gives the window as it is to be run, and what moved in it.
        """

        def moved(window: Window) -> dict[int, torch.Tensor]:
            return run_window(carrier, self.probed, window, window.sequences, started=self.started)

        faint = _fainter(window)
        beyond, by_value = self._mixed(carrier, window, alone, large=clip is None)
        self.not_elementwise, alone_faintly = beyond, None
        if beyond:
            alone_faintly = moved(faint)
            self.not_elementwise, _ = self._mixed(carrier, faint, alone_faintly)
            self.clips = self.not_elementwise != beyond
        if self.not_elementwise:
            self.scaled_by = self._scaled_by(carrier, window)
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
        if self.clip and math.isfinite(self.clip) and not self.clip_scope and not self.not_elementwise:
            self.clips_decay = clips_decay(carrier, self.probed, window, self.clip, self.started)
        return (faint, alone_faintly or moved(faint)) if self.clips else (window, alone)

    def _scaled_by(self, carrier: OptimizerCopy, window: Window) -> dict[int, str]:
        """By whose norm the first step of a tensor is scaled: twice the weights, or twice the gradients, show it."""

        def moved(weights: float, gradients: float) -> dict[int, torch.Tensor]:
            pairs = ((0.06, 0.6), (-0.08, 0.8))  # weights so small that their decay hardly matters
            sequences = tuple(ProbeSequence("scaled", (w * weights,), (g * gradients,)) for w, g in pairs)
            part = replace(window, steps=1, sequences=sequences)
            return run_window(carrier, self.probed, part, sequences, started=self.started)

        once, steeper, heavier = moved(1.0, 1.0), moved(1.0, 2.0), moved(2.0, 1.0)
        found = {}
        for key in self.not_elementwise:
            if once[key].any() and torch.allclose(steeper[key], once[key], rtol=0.02, atol=0.0):
                for name, times in (("weights", 2.0), ("gradient", 1.0)):
                    if torch.allclose(heavier[key], once[key] * times, rtol=0.02, atol=0.0):
                        found[key] = name
        return found

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
        if not alone:
            return set(), False
        order = [len(window.sequences) - 1 - k % len(window.sequences) for k in range(self.elements)]
        sequences = [window.sequences[k] for k in order]
        bounds = [_pair(size) for size in (FAINT, LARGE)] if large else []
        among = [*sequences, *chain.from_iterable(bounds)]
        mixed = run_window(carrier, self.probed, window, among, along_last=True, started=self.started)
        weights = torch.tensor([max(abs(w or 0.0) for w in sequence.weights) for sequence in sequences]).double()
        rounding = 8 * precision(self.probed) * weights.unsqueeze(1)
        expected = torch.stack(list(alone.values()))[:, torch.tensor(order)]
        moved = torch.stack([mixed[key] for key in alone])
        seen, beside = moved[:, : len(order)], moved[:, len(order) :, 1]
        same = torch.isclose(seen, expected, rtol=1e-9, atol=0.0, equal_nan=True)
        same |= (seen - expected).abs() <= rounding
        found = {key for key, right in zip(alone, same.flatten(1).all(1).tolist(), strict=True) if not right}
        pairs = beside.tolist() if large else []
        return found, any(
            close(huge, smaller) and not close(small, other) for small, other, huge, smaller in pairs if huge
        )

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
                    scaled_by=self.scaled_by.get(id(parameter), ""),
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
            said=tuple(self.said),
            kinds=self.kinds,
            touched=self.touched,
            restored=self.restored,
            clips=self.clips,
            clip=self.clip,
            value_clip=self.value_clip,
            clip_scope=self.clip_scope,
            clips_decay=self.clips_decay,
            by_weights=tuple(name for name, tensor in tensors if id(tensor) in self.by_weights),
            precision=precision(self.probed),
            stated=self.stated,
            long=self.long,
            calls=self.calls,
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
