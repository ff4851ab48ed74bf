"""A recipe and its groups as a Python file that needs torch alone, as an experienced torch user would write it.

The file's own lines stand in one template; the classes and functions that do what torch does not are copied as they
are (``definitions.py``). Names that come from a prototxt or a model are data: in code they are string literals, in
comments they cannot end the line.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cache
from pathlib import PurePath
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from caffe2torch.binding.plan import Filling, GroupMember, GroupPlan, frozen_with_gradient
from caffe2torch.emit.definitions import definitions, import_lines
from caffe2torch.errors import NetError, UnsupportedError
from caffe2torch.recipe import (
    Accumulation,
    NetRecipe,
    PolicyType,
    SolverSettings,
    SolverType,
    Statement,
    TrainingRecipe,
)
from caffe2torch.solver import requirements
from caffe2torch.solver.float32 import round32
from caffe2torch.solver.lr_policy import POLICIES, SETTINGS, arguments, factor_source, fork_fields
from caffe2torch.solver.requirements import stock_arguments
from caffe2torch.solver.update_rules import SOLVERS

__all__ = ["emit"]


def emit(
    recipe: TrainingRecipe,
    groups: Sequence[GroupPlan],
    *,
    model_name: str,
    unclaimed: Sequence[str] = (),
    without: Collection[str] = (),
    fillings: Sequence[Filling] = (),
    accumulation: Accumulation = Accumulation.SUM,
    loss: bool = True,
) -> str:
    """Python source with ``build_optimizer(model, **options)`` and ``build_scheduler(optimizer)``.

    Where the net has a loss that is translated, ``build_loss()`` is in it, too.

    Args:
        recipe: Net and solver.
        groups: Which parameters have which multipliers.
        model_name: The model, for the file's first lines.
        unclaimed: Parameters of the model that are meant to have no group; any other one without a group makes
            ``build_optimizer`` fail.
        without: Rules of the solver that the user accepts to go without.
        fillings: How parameters are filled before training; with them the file has ``initialize(model)``, too.
        accumulation: Whether the loop sums the gradients of ``iter_size`` passes, or averages them.
        loss: Whether ``build_loss()`` is wanted.

    Raises:
        UnsupportedError: A rule is not translated, or an emitted file cannot carry it.
    """
    solver = recipe.solver
    requirements.refuse_unsupported(solver, without)
    if reason := not_carried(solver):
        raise UnsupportedError(
            f"this solver cannot be written as a file of its own: {reason}",
            hint="caffe2torch.translate gives an optimizer and a scheduler that do it",
        )
    step = requirements.for_accumulation(solver, accumulation)
    bases = requirements.optimizer_bases(step)
    lr_lines = list(factor_source(solver.policy))
    built_loss = _loss(recipe) if loss else None
    carried = definitions(
        [*bases, *re.findall(r"\w+(?=\()", "".join(lr_lines)), *["fill", "to_torch"][: 2 * len(fillings)]]
    )
    return _template().render(
        recipe=recipe,
        solver=solver,
        step=step,
        groups=groups,
        model=model_name,
        sources=[PurePath(source.file).name for source in recipe.sources],
        solver_file=_file_of(where.file for where in solver.places.values()),
        net_file=_file_of(member.blob.where.file for group in groups for member in group.members if member.blob),
        constants=list(_constants(solver, step)),
        named=len({(group.lr_mult, group.decay_mult) for group in groups}) < len(groups),
        freezes=any(group.lr_mult == 0 for group in groups),
        unclaimed=unclaimed,
        backpropagated=frozen_with_gradient(groups, solver),
        fillings=fillings,
        imports=import_lines("\n".join([*carried, built_loss or ""])),
        loss=built_loss,
        definitions=carried,
        bases=bases,
        optimizer=bases[0] if len(bases) == 1 else requirements.class_name(bases),
        stock=f"torch.optim.{SOLVERS[solver.type].stock}",
        settings=_settings(solver),
        lr_lines=lr_lines,
    )


def _loss(recipe: NetRecipe) -> str | None:
    if not recipe.layers:
        return None
    from caffe2torch.emit.loss import loss_source  # which needs torch

    try:
        return loss_source(recipe)
    except NetError:  # Caffe refuses the loss, which is no reason to do without the optimizer
        return None


@cache
def _template() -> Template:
    environment = Environment(  # what it renders is Python, and each name goes through a filter of ours
        loader=PackageLoader("caffe2torch.emit", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # HTML's escapes have no place in Python
    )
    environment.filters |= {"plain": _plain, "inline": _inline, "literal": _literal, "origin": _origin}
    return environment.get_template("optimizer.py.j2")


def not_carried(solver: SolverSettings) -> str:
    """Why plain torch code has no place for what the solver asks for, which the library's own optimizer does; or empty.

    >>> from caffe2torch.recipe import LrPolicy, PolicyType, SolverType
    >>> not_carried(SolverSettings(SolverType.SGD, LrPolicy(PolicyType.FIXED, 0.1), iter_size=0))
    'iter_size is below 1'
    """
    policy = solver.policy
    reasons = {
        "momentum or weight decay changes with the iteration": requirements.ramps(solver),
        "iter_size is below 1": solver.iter_size < 1,
        "poly with a negative power is infinite at max_iter": policy.type is PolicyType.POLY and policy.power < 0,
        "poly without max_iter is no number": policy.type is PolicyType.POLY and not policy.max_iter,
        "a momentum of 1 makes every weight NaN": solver.type is SolverType.ADAM and solver.momentum >= 1,
        "a warm-up or a floor is relative to a positive base_lr": policy.base_lr <= 0 and bool(fork_fields(policy)),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _settings(solver: SolverSettings) -> str:
    """The arguments of the stock constructor."""
    words = []
    for name, taken in stock_arguments(solver).items():
        constants = ", ".join(setting.upper() for setting in taken)
        words.append(f"{name}={constants}" if len(taken) == 1 else f"{name}=({constants})")
    return ", ".join(words + [f"{name}={value}" for name, value in SOLVERS[solver.type].fixed.items() if words])


def _constants(solver: SolverSettings, step: SolverSettings) -> Iterator[dict[str, Any]]:
    """The settings that the file reads, as named constants with the line of the solver that states each."""
    policy = solver.policy
    stages_alone = policy.type is PolicyType.MULTIFIXED and not policy.base_lr
    values: dict[str, Any] = {"base_lr": 1.0 if stages_alone else policy.base_lr}
    values |= {name: value for name, value in arguments(policy).items() if name != "first"}
    values |= {name: getattr(policy, name) for name in fork_fields(policy)}
    values |= {name: getattr(solver, name) for taken in stock_arguments(solver).values() for name in taken}
    values |= {"weight_decay": solver.weight_decay, "clip_gradients": step.clip_gradients, "iter_size": step.iter_size}
    fields = {setting: field for field, setting in SETTINGS.items() if field in POLICIES[policy.type].fields}
    for name, value in values.items():
        if value is None or (name == "iter_size" and value == 1):
            continue
        place = solver.places.get(fields.get(name, name))
        comment = "by default" if place is None else f"line {place.line}"
        if name == "base_lr" and stages_alone:
            comment = "stagelr states the rates themselves"
        elif name == "clip_gradients" and value != solver.clip_gradients:
            comment += f": {solver.clip_gradients:g} for the sum of {solver.iter_size} passes"
        elif name in SOLVERS[solver.type].rounded or (name == "gamma" and policy.type is PolicyType.EXP):
            comment += f": {policy.gamma if name == 'gamma' else value:g} as float32"
            value = round32(value)  # noqa: PLW2901  # the constant is what Caffe computes with
        yield {"name": name.upper(), "value": value, "comment": comment}


def _file_of(files: Iterable[str]) -> str:
    """The name of the file that all places are in, if it is one."""
    names = {PurePath(file).name for file in files}
    return names.pop() if len(names) == 1 else ""


def _origin(member: GroupMember) -> str:
    """Where a parameter's multipliers come from."""
    blob = member.blob
    if blob is None:
        return "given by hand"
    words = [str(blob.where.line), *(f"also {use.layer}/{use.index}" for use in blob.shared_with)]
    stated = {"lr_mult": blob.stated.lr_mult, "decay_mult": blob.stated.decay_mult}
    defaulted = [name for name, how in stated.items() if how is Statement.DEFAULTED]
    return ", ".join(words + [f"{' and '.join(defaulted[: 2 - len(defaulted)])} by default".strip()][: len(defaulted)])


def _plain(text: object) -> str:
    """Text for a docstring: what might end it or escape from it is a question mark."""
    return re.sub(r"[^\w ./:,()\[\]+=-]", "?", str(text), flags=re.ASCII)


def _inline(text: object) -> str:
    """Text for a comment: one line of ASCII."""
    return ascii(str(text))[1:-1]


def _literal(value: object) -> str:
    """A value as Python source."""
    match value:
        case str():
            text = ascii(value)
            return text if '"' in text else f'"{text[1:-1]}"'
        case float() if not math.isfinite(value):
            return f'float("{value}")'
        case tuple():
            return f"({', '.join(map(_literal, value))}{',' if len(value) == 1 else ''})"
        case dict():
            return "{" + ", ".join(f"{_literal(key)}: {_literal(item)}" for key, item in value.items()) + "}"
    return repr(value)
