"""Does it learn as Caffe did? An optimizer that somebody else wrote, held against the recipe parameter by parameter."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from torch import nn

from caffe2torch.binding.bind import UnclaimedMultipliers, bind
from caffe2torch.binding.by_role import bind_by_role
from caffe2torch.binding.messages import IncompleteBindingError
from caffe2torch.binding.plan import plan_groups
from caffe2torch.emit import emit
from caffe2torch.errors import BindingError, Caffe2TorchError, ModelError
from caffe2torch.lock import Lock
from caffe2torch.recipe import Accumulation, NetRecipe, TrainingRecipe, require_solver
from caffe2torch.solver.requirements import refuse_unsupported
from caffe2torch.verification.check_model import check_model, read_accepted
from caffe2torch.verification.checks import AccumulationReading
from caffe2torch.verification.common_causes import explained
from caffe2torch.verification.compare_losses import loss_check
from caffe2torch.verification.fit import close
from caffe2torch.verification.follow_scheduler import follow, own_rates
from caffe2torch.verification.optimizer_copy import bare_optimizer, bare_scheduler, group_names, together
from caffe2torch.verification.probe_sequence import Followed, Observations
from caffe2torch.verification.rate_schedule import along_the_run, at_another_rate
from caffe2torch.verification.report import FaultKind, Report, ReportRow, UnclaimedRow
from caffe2torch.verification.run_probe import observe
from caffe2torch.verification.verify import judge_rows, verify

__all__ = ["audit", "right_source"]

UNSTATED = 100_000
"""Iterations over which a scheduler is followed where the solver does not state a max_iter."""


def audit(
    recipe: NetRecipe | Lock,
    model: nn.Module,
    optimizer: Any,
    scheduler: Any = None,
    *,
    names: Mapping[str, str] | None = None,
    skip: Collection[str] = (),
    unclaimed: UnclaimedMultipliers | None = None,
    reshaped: Collection[str] = (),
    finetune: Mapping[str, float] | None = None,
    without: Collection[str] = (),
    accept: Collection[str] = (),
    by_role: bool = False,
    strict: bool = False,
    accumulation: str | None = None,
    iteration: int | None = None,
    input_shapes: Any = None,
    loss: Callable[..., object] | None = None,
) -> Report:
    """Check an optimizer by what it does: copies of its parameters are stepped, and nothing of yours is touched.

    ``optimizer`` is any ``torch.optim.Optimizer``, stock, subclassed, or wrapped by Accelerate or Lightning. With a
    ``scheduler``, whose ``step()`` is called once an iteration, rates and momentum are also checked where the policy
    changes the rate; without one only the rate that the optimizer stands at is. ``iteration`` is where the run stands,
    by default what the scheduler says, or the start.

    ``recipe`` is what the prototxts say, or a lock file that was read. ``names``, ``skip``, ``unclaimed``, ``reshaped``
    and ``input_shapes`` bind as in ``bind``, ``finetune`` and ``without`` are as in ``translate``; a lock has all of
    it. ``accept`` names kinds of departure that you know of and accept (``rate_change``, ``epsilon``, ``frozen``, ...):
    rows and checks say ``accepted``, and make nothing wrong. ``model:features.3.stride``, or a pattern in its place,
    accepts a setting of a layer that differs from the net's; such differences make the report not ok only where it is
    ``strict``.

    Where the solver has an ``iter_size``, ``accumulation`` says whether your loop sums the gradients (``"sum"``, as
    Caffe) or averages them (``"mean"``); by default both are tried, and the check says which fits. What your loop has
    to do itself, such as clipping, cannot be seen: the check says what it must be.

    ``by_role`` is for a model whose layers cannot be bound at all: where all blobs of one layer type and role have the
    same two multipliers, each parameter is held against those. Such a report is never ok, and its ``bound`` is False.

    ``loss`` is your loss, ``loss(scores, labels)`` or ``loss({blob: tensor, ...})``: it is run on seeded scores and
    labels beside the net's own. Without it the check ``loss`` says what the net's is, and is not seen.

    Several optimizers of one model, each with its scheduler or ``None``, are given as two lists.

    Raises ``SolverError`` for a recipe without a solver, ``BindingError`` where blobs and parameters do not belong to
    each other, ``ModelError`` for what is no model, optimizer or scheduler, ``UnsupportedError`` for a fork's rule that
    cannot be judged.

    >>> import pathlib, tempfile, torch, caffe2torch
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> _ = (folder / "net.prototxt").write_text('''
    ...     layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 2 }
    ...             param { lr_mult: 1 } param { lr_mult: 2 decay_mult: 0 } }''')
    >>> _ = (folder / "solver.prototxt").write_text('base_lr: 0.1 lr_policy: "fixed" weight_decay: 0.0005')
    >>> model = torch.nn.Sequential()
    >>> model.add_module("ip", torch.nn.Linear(3, 2))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.0005)
    >>> recipe = caffe2torch.read_recipe(folder / "net.prototxt", folder / "solver.prototxt")
    >>> report = audit(recipe, model, optimizer)
    >>> print(report.wrong[0].reason)
    lr is 0.1, Caffe's is 0.2 (2 times too small); weight_decay is 0.0005, Caffe's is 0
    """
    accepted, settings = read_accepted(accept)
    if loss is not None and not callable(loss):
        raise ModelError(
            f"the loss is an object of type {type(loss).__name__}", expected="a callable, loss(scores, labels)"
        )
    optimizer, scheduler = _one(model, optimizer, scheduler)
    if isinstance(recipe, Lock):
        if names or skip or unclaimed or reshaped or finetune or without or by_role:
            raise Caffe2TorchError("a lock already says how blobs are bound and which factors they have")
        asked = recipe
    elif by_role:
        asked = _asked_by_role(recipe, model, without)
    else:
        try:
            asked = _asked(recipe, model, names, skip, unclaimed, reshaped, finetune, without, input_shapes)
        except IncompleteBindingError as error:
            with suppress(BindingError):
                bind_by_role(recipe, model)
                error.hint = f"{error.hint}; or judge each parameter by its role alone: by_role=True, --by-role"
            raise
    solver = asked.recipe.solver
    seen = observe(model, optimizer, solver, scheduler, iteration=iteration)
    stated = None if accumulation is None else Accumulation(accumulation)
    reading = _reading(asked, seen, stated)
    report = verify(asked.recipe, asked.binding, asked.groups, seen, accumulation=reading.accumulation, reading=reading)
    followed = Followed()
    if scheduler is not None and not seen.metric:
        followed = follow(optimizer, scheduler, solver.max_iter or UNSTATED, start=report.iteration)
        initial = [group.get("initial_lr") for group in optimizer.param_groups]
        report = at_another_rate(report, initial, by_own=bool(own_rates(scheduler)))
        report = replace(report, checks=along_the_run(report.checks, solver, followed))
    checks = (*report.checks, check_model(asked.recipe, asked.binding, strict=strict, accepted=settings))
    if (found := loss_check(asked.recipe, loss)) is not None:
        checks = (*checks, found)
    whole = replace(
        report, bound=not by_role, checks=checks, curves=followed.curves, group_names=group_names(optimizer)
    )
    return explained(whole.accepting(accepted), seen.stated, own_rates(scheduler))


def _reading(asked: Lock, seen: Observations, stated: Accumulation | None) -> AccumulationReading:
    """Whether the step divides by iter_size, or takes gradients that the loop averaged: what makes more rows right.

    A row counts first where both multipliers are right, then where one of them is. Of equals it is what the user
    states, or what a lock has.
    """
    solver = seen.collecting(asked.recipe.solver)
    if solver.iter_size <= 1 or seen.problem:
        return AccumulationReading(stated or asked.accumulation, stated=stated)
    fits, scores, numbers = {}, {}, {}
    scale = (1.0, 1.0)
    for accumulation in Accumulation:
        rows, unclaimed, judged = judge_rows(asked.recipe, asked.binding, asked.groups, seen, accumulation)
        every: tuple[ReportRow | UnclaimedRow, ...] = (*rows, *unclaimed)
        trained = [row for row in every if row.parameter in judged]
        kinds = [{fault.kind for fault in row.faults} for row in trained]
        rules = sum(FaultKind.RULE in {fault.kind for fault in one.run} for one in judged.values())
        fits[accumulation] = sum(not kind for kind in kinds)
        readable = [kind for kind in kinds if FaultKind.UNOBSERVED not in kind]
        half = sum((FaultKind.LR not in kind) + (FaultKind.WEIGHT_DECAY not in kind) for kind in readable)
        exact = sum(not one.run for one in judged.values())
        scores[accumulation] = (fits[accumulation], half, -rules, exact)
        numbers[accumulation] = next((row for row in trained if row.faults), None)
        count = len(trained)
        if accumulation is Accumulation.SUM:
            scale = _group_scale(trained, seen, solver.iter_size)
    first = stated or asked.accumulation
    best = max(sorted(Accumulation, key=lambda one: one is not first), key=lambda one: scores[one])
    other = next(one for one in Accumulation if one is not best)
    known = scores[best] != scores[other] or stated is not None
    row = numbers[other]
    seen_otherwise = f"; as the {other}, {row.parameter} would be: {row.reason}" if row is not None else ""
    return AccumulationReading(
        best, fits, count, stated, known, seen_otherwise, scale if best is Accumulation.SUM else (1.0, 1.0)
    )


def _group_scale(rows: Iterable[ReportRow | UnclaimedRow], seen: Observations, passes: int) -> tuple[float, float]:
    """What groups have to say for an ``lr`` and a ``weight_decay`` of 1, if the step may not divide summed gradients.

    Then it is seen to move by ``passes`` times the ``lr`` of its group, and to decay by that part of ``weight_decay``.
    """
    pairs = [(row.observed, seen.stated[row.groups[0]]) for row in rows]
    faster = any(lr and one.lr is not None and close(one.lr, lr * passes) for one, (lr, _) in pairs)
    weaker = any(decay and close((one.weight_decay or 0.0) * passes, decay) for one, (_, decay) in pairs)
    return 1 / passes if faster else 1.0, float(passes) if faster or weaker else 1.0


def _asked(
    recipe: NetRecipe,
    model: nn.Module,
    names: Mapping[str, str] | None,
    skip: Collection[str],
    unclaimed: UnclaimedMultipliers | None,
    reshaped: Collection[str],
    finetune: Mapping[str, float] | None,
    without: Collection[str],
    input_shapes: Any,
) -> Lock:
    trained = _trained(recipe, without)
    options: Any = {"skip": skip, "unclaimed": unclaimed, "reshaped": reshaped, "input_shapes": input_shapes}
    binding = bind(trained, model, names, **options)
    return Lock(trained, binding, plan_groups(trained, binding, finetune))


def _asked_by_role(recipe: NetRecipe, model: nn.Module, without: Collection[str]) -> Lock:
    trained = _trained(recipe, without)
    binding = bind_by_role(trained, model)
    by_role = replace(trained, blobs=tuple(bound.blob for bound in binding.blobs))
    return Lock(by_role, binding, plan_groups(by_role, binding))


def _trained(recipe: NetRecipe, without: Collection[str]) -> TrainingRecipe:
    trained = require_solver(recipe)
    refuse_unsupported(trained.solver, without)
    return trained


def right_source(
    recipe: NetRecipe | Lock,
    model: nn.Module,
    *,
    names: Mapping[str, str] | None = None,
    skip: Collection[str] = (),
    unclaimed: UnclaimedMultipliers | None = None,
    reshaped: Collection[str] = (),
    finetune: Mapping[str, float] | None = None,
    without: Collection[str] = (),
    accumulation: str | None = None,
    input_shapes: Any = None,
) -> str:
    """Python that builds the right optimizer and scheduler for ``model`` with torch alone.

    Arguments are those of ``audit``; without ``accumulation`` the loop sums, as Caffe.
    """
    asked = (
        recipe
        if isinstance(recipe, Lock)
        else _asked(recipe, model, names, skip, unclaimed, reshaped, finetune, without, input_shapes)
    )
    return emit(
        asked.recipe,
        asked.groups,
        model_name=asked.binding.model,
        unclaimed=[left.name for left in asked.binding.unclaimed if left.lr_mult is None],
        without=without,
        accumulation=Accumulation(accumulation) if accumulation else asked.accumulation,
    )


_LIGHTNING: dict[type, str] = {
    dict: 'of the dict that Lightning\'s configure_optimizers() returns give its "optimizer", and as the scheduler its '
    '"lr_scheduler" (or that one\'s "scheduler")',
    list: "of the two lists that Lightning's configure_optimizers() returns give the first as the optimizer, the "
    "second as the scheduler",
}
"""What to give in place of what is no optimizer."""


def _one(model: nn.Module, optimizer: Any, scheduler: Any) -> tuple[Any, Any]:
    """Optimizer and scheduler, or several of them as one."""
    if not isinstance(optimizer, list | tuple):
        _check(model, optimizer, scheduler)
        return optimizer, scheduler
    schedulers = [None] * len(optimizer) if scheduler is None else scheduler
    if not isinstance(schedulers, list | tuple) or len(schedulers) != len(optimizer):
        raise ModelError(
            f"{len(optimizer)} optimizers are given, and not as many schedulers",
            expected="a list of as many schedulers, None for an optimizer without one",
        )
    for one, follower in zip(optimizer, schedulers, strict=True):
        _check(model, one, follower)
    return together(optimizer, schedulers)


def _check(model: object, optimizer: Any, scheduler: Any) -> None:
    """Refuse what is no model, no optimizer, or a scheduler of another optimizer."""
    if not isinstance(model, nn.Module):
        raise ModelError(f"the model is a {type(model).__name__}, not a torch.nn.Module")
    inner = bare_optimizer(optimizer)
    groups = getattr(inner, "param_groups", None)
    if not isinstance(groups, list) or not callable(getattr(inner, "step", None)):
        raise ModelError(
            f"the optimizer is a {type(optimizer).__name__}, which has no param_groups and step()",
            expected="a torch.optim.Optimizer",
            hint=_LIGHTNING.get(type(optimizer)),
        )
    if scheduler is None:
        return
    follower = bare_scheduler(scheduler)
    if not callable(getattr(follower, "step", None)):
        raise ModelError(f"the scheduler is a {type(scheduler).__name__}, which has no step()")
    driven = bare_optimizer(getattr(follower, "optimizer", inner))
    if driven is not inner:
        raise ModelError("the scheduler drives another optimizer than the one to be audited")
