"""A recipe and its groups as a Python file that needs torch alone, trains bit for bit as the library's objects do.

The arithmetic in it is the library's own source (``carrying``), cut down to what the solver needs. Names that come
from a prototxt or a model are data: in code they are string literals, in comments they cannot end the line.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from pathlib import PurePath
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from caffe2torch.binding.plan import Filling, GroupMember, GroupPlan, frozen_with_gradient
from caffe2torch.emit.definitions import carry
from caffe2torch.errors import SolverError, Where
from caffe2torch.recipe import LrPolicy, Ramp, SolverSettings, Statement, TrainingRecipe
from caffe2torch.solver.float32 import round32, shortest
from caffe2torch.solver.lr_policy import rate, step_at, weight_decay_at
from caffe2torch.solver.requirements import refuse_unsupported

__all__ = ["emit"]

FIELDS = {
    "STEPVALUES": "stepvalue",
    "STAGE_LRS": "stagelr",
    "STAGE_ITERS": "stageiter",
    "MOMENTUM_RAMP": "momentum_policy",
    "MOMENTUM_FROM_RATE": "momentum_policy",
    "WEIGHT_DECAY_RAMP": "weight_decay_policy",
}
"""Constants that are not called as the field of the solver that states them is."""


def emit(
    recipe: TrainingRecipe,
    groups: Sequence[GroupPlan],
    *,
    model_name: str,
    unclaimed: Sequence[str] = (),
    without: Collection[str] = (),
    fillings: Sequence[Filling] = (),
) -> str:
    """Python source with ``build_optimizer(model)`` and ``build_scheduler(optimizer)``, formatted and clean.

    ``model_name`` is for its first line. ``unclaimed`` names parameters of the model that are meant to have no group;
    any other one without a group makes ``build_optimizer`` fail. ``without`` names rules of the solver that the user
    accepts to go without. With ``fillings`` the file has ``initialize(model)``, too, which fills the parameters so.
    Raises ``UnsupportedError`` for other rules, ``SolverError`` if the recipe has no solver.
    """
    solver = recipe.solver
    if solver is None:
        raise SolverError("a net alone says nothing about an optimizer", hint="give the solver's prototxt, too")
    refuse_unsupported(solver, without)
    optimizer = f"Caffe{solver.type}"
    roots = ["param_groups", optimizer, "CaffeLRScheduler", *(("fill", "to_torch") if fillings else ())]
    carried = carry(solver, roots)
    lr, decay = rate(solver.policy, 0, step_at(solver.policy, 0)), weight_decay_at(solver, 0)
    constants = dict(carried.constants)
    if lr == round32(solver.policy.base_lr):
        constants["BASE_LR"] = solver.policy.base_lr
    if solver.weight_decay_ramp is None:
        constants["WEIGHT_DECAY"] = solver.weight_decay
    frozen = frozen_with_gradient(groups, solver)
    return _template().render(
        net=recipe.net_name,
        model=model_name,
        solver_type=solver.type,
        policy=solver.policy.type,
        sources=[source.file for source in recipe.sources],
        max_iter=solver.max_iter,
        iter_size=solver.iter_size,
        clips=solver.clip_gradients is not None,
        left_out=solver.unsupported,
        imports=_import_lines({**carried.imports, "Any": "typing", "torch": ""}),
        ramp=carried.definitions.pop("Ramp", None),
        constants=_constants(constants, solver),
        groups=groups,
        listed=[
            ("LEFT_OUT", "Parameters of the model that Caffe's net has no blob for: no group has them.", unclaimed),
            ("BACKPROPAGATED", "Parameters that do not learn, whose gradients Caffe computes and clips by.", frozen),
        ],
        fillings=fillings,
        optimizer=optimizer,
        lr="BASE_LR" if "BASE_LR" in constants else _literal(lr),
        weight_decay="WEIGHT_DECAY" if "WEIGHT_DECAY" in constants else _literal(decay),
        definitions=list(carried.definitions.values()),
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
    environment.filters |= {"plain": _plain, "inline": _inline, "literal": _literal, "origin": _origin}
    return environment.get_template("optimizer.py.j2")


def _import_lines(imports: Mapping[str, str]) -> list[str]:
    by_module = defaultdict(list)
    for name, module in imports.items():
        by_module[module].append(name)
    plain = [f"import {name}" for name in sorted(by_module.pop("", [])) if name != "torch"]
    named = {module: f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(by_module.items())}
    torches = [line for module, line in named.items() if module.startswith("torch")]
    return [*plain, *(line for line in named.values() if line not in torches), "", "import torch", *torches]


def _constants(values: Mapping[str, Any], solver: SolverSettings) -> Iterable[Mapping[str, Any]]:
    settings = [field for kind in (LrPolicy, SolverSettings) for field in fields(kind)]
    order = [field.name.upper() for field in settings]
    for name, value in sorted(values.items(), key=lambda item: order.index(item[0])):
        place = solver.places.get(FIELDS.get(name, name.lower()))
        if place is None and value == settings[order.index(name)].default:
            yield {"name": name, "value": value, "place": "not stated, so Caffe's default"}
        else:
            yield {"name": name, "value": value, "place": "" if place is None else _brief(place)}


def _brief(where: Where) -> str:
    """A place without its folder, which the file's first lines have once for all."""
    return f"{PurePath(where.file).name}:{where.line}:{where.column}"


def _origin(member: GroupMember) -> str:
    """Where a parameter's multipliers come from."""
    blob = member.blob
    if blob is None:
        return "given by hand"
    words = [f"{_brief(blob.where)}: {blob.name}, {blob.role}"]
    words += [f"also {use.layer}/{use.index}" for use in blob.shared_with]
    stated = {"lr_mult": blob.stated.lr_mult, "decay_mult": blob.stated.decay_mult}
    defaulted = [name for name, how in stated.items() if how is Statement.DEFAULTED]
    if defaulted:
        words.append(f"{' and '.join(defaulted)} by default")
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
            return repr(shortest(value))
        case tuple():
            return f"({', '.join(map(_literal, value))}{',' if len(value) == 1 else ''})"
        case dict():
            return "{" + ", ".join(f"{_literal(key)}: {_literal(item)}" for key, item in value.items()) + "}"
        case Ramp():
            return f"Ramp({_literal(value.maximum)}, {_literal(value.power)}, {value.max_iter})"
    return repr(value)
