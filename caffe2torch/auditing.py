"""Does it learn as Caffe did? An optimizer that somebody else wrote, held against the recipe parameter by parameter."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from caffe2torch.binding.bind import bind
from caffe2torch.binding.plan import plan_groups
from caffe2torch.errors import Caffe2TorchError, ModelError, SolverError
from caffe2torch.lock import Lock
from caffe2torch.recipe import Note, Severity, TrainingRecipe
from caffe2torch.solver.requirements import refuse_unsupported
from caffe2torch.verification.optimizer_copy import bare_optimizer, bare_scheduler
from caffe2torch.verification.report import FaultKind, Report, ReportRow, UnclaimedRow, Verdict
from caffe2torch.verification.run_probe import observe
from caffe2torch.verification.verify import verify

__all__ = ["audit"]


def audit(
    recipe: TrainingRecipe | Lock,
    model: nn.Module,
    optimizer: Any,
    scheduler: Any = None,
    *,
    names: Mapping[str, str] | None = None,
    skip: Collection[str] = (),
    unclaimed: tuple[float, float] | None = None,
    reshaped: Collection[str] = (),
    finetune: Mapping[str, float] | None = None,
    without: Collection[str] = (),
    accept: Collection[str] = (),
    iteration: int | None = None,
    input_shapes: Any = None,
) -> Report:
    """Check an optimizer by what it does: copies of its parameters are stepped, and nothing of yours is touched.

    ``optimizer`` is any ``torch.optim.Optimizer``, stock, subclassed, or wrapped by Accelerate or Lightning. With a
    ``scheduler``, whose ``step()`` is called once an iteration, rates and momentum are also checked where the policy
    changes the rate; without one only the rate that the optimizer stands at is. ``iteration`` is where the run stands,
    by default what the scheduler says, or the start.

    ``recipe`` is what the prototxts say, or a lock file that was read. ``names``, ``skip``, ``unclaimed``, ``reshaped``
    and ``input_shapes`` bind as in ``bind``, ``finetune`` and ``without`` are as in ``translate``; a lock has all of
    it. ``accept`` names kinds of departure that you know of and accept (``rate_change``, ``epsilon``, ...): they become
    notes. Where the solver clips or has an ``iter_size``, a training loop may do that part: then averaged gradients are
    assumed, and a note says so.

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
    accepted = _kinds(accept)
    _check(model, optimizer, scheduler)
    if isinstance(recipe, Lock):
        if names or skip or unclaimed or reshaped or finetune or without:
            raise Caffe2TorchError("a lock already says how blobs are bound and which factors they have")
        asked = recipe
    else:
        asked = _asked(recipe, model, names, skip, unclaimed, reshaped, finetune, without, input_shapes)
    solver = asked.recipe.solver
    assert solver is not None  # _asked refuses a net alone, a lock cannot lack it
    seen = observe(model, optimizer, solver, scheduler, iteration=iteration)
    reports = [verify(asked.recipe, asked.binding, asked.groups, seen)]
    if not reports[0].ok and (solver.iter_size > 1 or solver.clip_gradients is not None):
        reports.append(verify(asked.recipe, asked.binding, asked.groups, seen, inside=False))
    return _accepting(min(reports, key=lambda report: (len(report.wrong), not report.ok)), accepted)


def _asked(
    recipe: TrainingRecipe,
    model: nn.Module,
    names: Mapping[str, str] | None,
    skip: Collection[str],
    unclaimed: tuple[float, float] | None,
    reshaped: Collection[str],
    finetune: Mapping[str, float] | None,
    without: Collection[str],
    input_shapes: Any,
) -> Lock:
    if recipe.solver is None:
        raise SolverError(
            "no solver is given, and a net alone says nothing about an optimizer",
            hint="read the net and the solver into one recipe",
        )
    refuse_unsupported(recipe.solver, without)
    options: Any = {"skip": skip, "unclaimed": unclaimed, "reshaped": reshaped, "input_shapes": input_shapes}
    binding = bind(recipe, model, names, **options)
    return Lock(recipe, binding, plan_groups(recipe, binding, finetune))


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
        )
    if scheduler is None:
        return
    follower = bare_scheduler(scheduler)
    if not callable(getattr(follower, "step", None)):
        raise ModelError(f"the scheduler is a {type(scheduler).__name__}, which has no step()")
    driven = bare_optimizer(getattr(follower, "optimizer", inner))
    if driven is not inner:
        raise ModelError("the scheduler drives another optimizer than the one to be audited")


def _kinds(accept: Collection[str]) -> frozenset[FaultKind]:
    try:
        return frozenset(FaultKind(kind) for kind in accept)
    except ValueError:
        wrong = next(kind for kind in accept if kind not in set(FaultKind))
        raise Caffe2TorchError(
            f"there is no kind of departure called {wrong!r} to accept", expected="one of " + ", ".join(FaultKind)
        ) from None


def _accepting(report: Report, kinds: frozenset[FaultKind]) -> Report:
    """The report with faults of these kinds as notes."""
    if not kinds:
        return report
    notes: dict[str, int] = {}

    def accepting(row: ReportRow | UnclaimedRow) -> Any:
        for fault in row.faults:
            if fault.kind in kinds:
                notes[f"accepted ({fault.kind}): {fault.message}"] = 1 + notes.get(
                    f"accepted ({fault.kind}): {fault.message}", 0
                )
        left = tuple(fault for fault in row.faults if fault.kind not in kinds)
        return replace(row, faults=left, verdict=row.verdict if left or not row.faults else Verdict.OK)

    rows, unclaimed = tuple(map(accepting, report.rows)), tuple(map(accepting, report.unclaimed))
    said = tuple(
        Note(None, Severity.WARNING, f"{message} ({count} parameter{'s' if count > 1 else ''})")
        for message, count in notes.items()
    )
    causes = tuple(cause for cause in report.causes if not kinds.issuperset(cause.kinds))
    said += tuple(
        Note(None, Severity.WARNING, f"accepted: {cause.message}")
        for cause in report.causes
        if kinds.issuperset(cause.kinds) and not cause.parameters
    )
    return replace(report, rows=rows, unclaimed=unclaimed, causes=causes, notes=(*report.notes, *said))
