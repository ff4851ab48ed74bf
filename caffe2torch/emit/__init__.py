"""A recipe and its groups as a Python file that needs torch alone, as an experienced torch user would write it.

The file's own lines stand in one template; the classes and functions that do what torch does not are copied as they
are (``definitions.py``). Names that come from a prototxt or a model are data: in code they are string literals, in
comments they cannot end the line.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import cache
from pathlib import PurePath
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from caffe2torch.binding.plan import Filling, GroupMember, GroupPlan, frozen_with_gradient
from caffe2torch.emit.definitions import definitions, import_lines
from caffe2torch.errors import SolverError, UnsupportedError
from caffe2torch.recipe import Accumulation, PolicyType, SolverSettings, SolverType, Statement, TrainingRecipe
from caffe2torch.solver.float32 import round32
from caffe2torch.solver.lr_policy import POLICIES, SETTINGS, arguments
from caffe2torch.solver.requirements import (
    SOLVERS,
    class_name,
    for_accumulation,
    optimizer_bases,
    ramps,
    refuse_unsupported,
    stock_arguments,
)

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
) -> str:
    """Python source with ``build_optimizer(model, **options)`` and ``build_scheduler(optimizer)``.

    Args:
        recipe: Net and solver.
        groups: Which parameters have which multipliers.
        model_name: The model, for the file's first lines.
        unclaimed: Parameters of the model that are meant to have no group; any other one without a group makes
            ``build_optimizer`` fail.
        without: Rules of the solver that the user accepts to go without.
        fillings: How parameters are filled before training; with them the file has ``initialize(model)``, too.
        accumulation: Whether the loop sums the gradients of ``iter_size`` passes, or averages them.

    Raises:
        SolverError: The recipe has no solver.
        UnsupportedError: A rule is not translated, or an emitted file cannot carry it.
    """
    solver = recipe.solver
    if solver is None:
        raise SolverError("a net alone says nothing about an optimizer", hint="give the solver's prototxt, too")
    refuse_unsupported(solver, without)
    _refuse_not_carried(solver)
    averaged = accumulation is Accumulation.MEAN
    step = for_accumulation(solver, accumulation)
    bases = optimizer_bases(step)
    composed = len(bases) > 1
    lr_lines = list(_lr_lines(solver))
    wanted = [*bases, POLICIES[solver.policy.type].factor.__name__, "warm_up", "ramp_up"]
    code = "\n".join(lr_lines)
    carried = definitions([name for name in wanted if name in bases or f"{name}(" in code])
    if fillings:
        carried += [text for text in definitions(["fill", "to_torch"]) if text not in carried]
    listed = [
        ("LEFT_OUT", "Parameters of the model that Caffe's net has no blob for: no group has them.", unclaimed),
        (
            "BACKPROPAGATED",
            "Parameters that do not learn, whose gradients Caffe computes and clips by.",
            frozen_with_gradient(groups, solver),
        ),
    ]
    keys = _keys(groups)
    return _template().render(
        net=recipe.net_name or "a net",
        model=model_name,
        summary=_summary(solver),
        sources=[PurePath(source.file).name for source in recipe.sources],
        solver=solver,
        solver_file=_file_of(where.file for where in solver.places.values()) or "The solver",
        net_file=_file_of(member.blob.where.file for group in groups for member in group.members if member.blob),
        iter_size=solver.iter_size,
        averaged=averaged,
        stock=not composed and "." in bases[0],
        imports=import_lines("\n".join([*carried, *lr_lines])),
        constants=list(_constants(solver, step)),
        groups=[
            {"key": key, "members": [{"name": m.parameter, "comment": _origin(m)} for m in group.members]}
            for key, group in zip(keys, groups, strict=True)
        ],
        unpacked="(lr_mult, decay_mult, _)" if any(len(key) > 2 for key in keys) else "(lr_mult, decay_mult)",
        listed=listed,
        fillings=fillings,
        definitions=carried,
        composed=composed,
        optimizer=class_name(bases) if composed else bases[0],
        bases=bases,
        stock_class=f"torch.optim.{SOLVERS[solver.type].stock}",
        settings=_settings(solver),
        freezes=any(group.lr_mult == 0 for group in groups),
        referenced=any(base in ("CaffeSGD", "ScaledSGD", "CaffeNesterov") for base in bases),
        clips=step.clip_gradients is not None,
        scales=step.clip_gradients is not None or step.iter_size != 1,
        lr_lines=lr_lines,
    )


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
    environment.filters |= {"plain": _plain, "inline": _inline, "literal": _literal}
    return environment.get_template("optimizer.py.j2")


def _refuse_not_carried(solver: SolverSettings) -> None:
    """Refuse what plain torch code has no place for; the library's own optimizer does it."""
    policy = solver.policy
    reasons = {
        "momentum_policy or weight_decay_policy changes a setting with the iteration": ramps(solver),
        "iter_size is 0, by which Caffe divides": solver.iter_size == 0,
        "poly without max_iter is no number": policy.type is PolicyType.POLY and not policy.max_iter,
        "a momentum of 1 makes every weight of Adam NaN": solver.type is SolverType.ADAM and solver.momentum >= 1,
        "base_lr is 0, and a warm-up or a floor is relative to it": policy.base_lr == 0 and bool(_forks_of(solver)),
    }
    for reason, holds in reasons.items():
        if holds:
            raise UnsupportedError(
                f"this solver cannot be written as a file of its own: {reason}",
                hint="caffe2torch.translate gives an optimizer and a scheduler that do it",
            )


def _forks_of(solver: SolverSettings) -> list[str]:
    """The fields that forks put around the policy, as far as this solver has them."""
    policy = solver.policy
    names = []
    if policy.warmup_iter is not None:
        names += ["warmup_iter", "warmup_start_lr"]
    if policy.rampup_interval is not None:
        names += ["rampup_interval", "rampup_lr"]
    return names + (["min_lr"] if policy.min_lr is not None else [])


def _lr_lines(solver: SolverSettings) -> Iterator[str]:
    """The body of ``lr_factor``."""
    policy = solver.policy
    if policy.warmup_iter is not None:
        yield "if iteration < WARMUP_ITER:"
        yield "    return warm_up(iteration, BASE_LR, WARMUP_ITER, WARMUP_START_LR) / BASE_LR"
    elif policy.rampup_interval is not None:
        yield "if iteration < RAMPUP_INTERVAL:"
        yield "    return ramp_up(iteration, BASE_LR, RAMPUP_INTERVAL, RAMPUP_LR) / BASE_LR"
    settings = ", ".join(["iteration", *(name.upper() for name in arguments(policy) if name != "first")])
    factor = f"{POLICIES[policy.type].factor.__name__}({settings})"
    match policy.type:
        case PolicyType.FIXED:
            factor = "1.0"
        case PolicyType.MULTIFIXED if policy.base_lr:
            factor += " / BASE_LR"
        case PolicyType.MULTISTEP if "first" in arguments(policy):
            factor = f"{factor[:-1]}, first={'WARMUP_ITER' if policy.warmup_iter is not None else 'RAMPUP_INTERVAL'})"
        case PolicyType.POLY if policy.min_lr is not None:
            yield "floor = MIN_LR / BASE_LR"
            factor = f"(1 - floor) * {factor} + floor"
    yield f"return {factor}" if policy.min_lr is None else f"return max({factor}, MIN_LR / BASE_LR)"


def _settings(solver: SolverSettings) -> str:
    """The arguments of the stock constructor."""
    words = []
    for name, taken in stock_arguments(solver).items():
        constants = ", ".join(setting.upper() for setting in taken)
        words.append(f"{name}={constants}" if len(taken) == 1 else f"{name}=({constants})")
    return ", ".join(words + ["nesterov=True"] * (solver.type is SolverType.NESTEROV and bool(words)))


def _constants(solver: SolverSettings, step: SolverSettings) -> Iterator[dict[str, Any]]:
    """The settings that the file reads, as named constants with the line of the solver that states each."""
    policy = solver.policy
    stages_alone = policy.type is PolicyType.MULTIFIXED and not policy.base_lr
    values: dict[str, Any] = {"base_lr": 1.0 if stages_alone else policy.base_lr}
    values |= {name: value for name, value in arguments(policy).items() if name != "first"}
    values |= {name: getattr(policy, name) for name in _forks_of(solver)}
    values |= {name: getattr(solver, name) for taken in stock_arguments(solver).values() for name in taken}
    values["weight_decay"] = solver.weight_decay
    if step.clip_gradients is not None:
        values["clip_gradients"] = step.clip_gradients
    if step.iter_size > 1:
        values["iter_size"] = step.iter_size
    fields = {setting: field for field, setting in SETTINGS.items() if field in POLICIES[policy.type].fields}
    for name, value in values.items():
        place = solver.places.get(fields.get(name, name))
        comment = "by default" if place is None else f"line {place.line}"
        if name == "base_lr" and stages_alone:
            comment = "stagelr states the rates themselves"
        elif name == "gamma" and policy.type is PolicyType.EXP:
            comment += f": {policy.gamma:g} as float32"
        elif name == "clip_gradients" and value != solver.clip_gradients:
            comment += f": {solver.clip_gradients:g} for the sum of {solver.iter_size} passes"
        elif name in SOLVERS[solver.type].rounded:
            comment += f": {value:g} as float32"
            value = round32(value)  # noqa: PLW2901  # the constant is what Caffe computes with
        yield {"name": name.upper(), "value": value, "comment": comment}


def _keys(groups: Sequence[GroupPlan]) -> list[tuple[Any, ...]]:
    """The multipliers of each group, with its name where others have the same (fine-tuned layers)."""
    pairs = [(group.lr_mult, group.decay_mult) for group in groups]
    if max(Counter(pairs).values(), default=1) == 1:
        return [*pairs]
    return [(*pair, group.name) for pair, group in zip(pairs, groups, strict=True)]


def _summary(solver: SolverSettings) -> str:
    parts = [str(solver.type), f"lr_policy {solver.policy.type}"]
    parts += [f"clip_gradients {solver.clip_gradients:g}"] if solver.clip_gradients is not None else []
    return ", ".join(parts + ([f"iter_size {solver.iter_size}"] if solver.iter_size != 1 else []))


def _file_of(files: Any) -> str:
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
    if defaulted:
        words.append("by default" if len(defaulted) == 2 else f"{defaulted[0]} by default")
    return ", ".join(words)


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
        case float():
            return repr(value)
        case tuple():
            return f"({', '.join(map(_literal, value))}{',' if len(value) == 1 else ''})"
        case dict():
            return "{" + ", ".join(f"{_literal(key)}: {_literal(item)}" for key, item in value.items()) + "}"
    return repr(value)
