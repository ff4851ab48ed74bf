"""From a recipe's groups and solver to a torch optimizer that trains as Caffe's solver would."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from caffe2torch.binding.plan import GroupPlan, frozen_with_gradient
from caffe2torch.binding.wrappers import named_tensors
from caffe2torch.errors import BindingError
from caffe2torch.optim import solvers
from caffe2torch.recipe import SolverSettings
from caffe2torch.solver.float32 import round32
from caffe2torch.solver.lr_policy import rate, step_at, weight_decay_at
from caffe2torch.solver.requirements import refuse_unsupported

__all__ = ["build_optimizer"]


def build_optimizer(
    model: torch.nn.Module, groups: Sequence[GroupPlan], solver: SolverSettings, without: Collection[str] = ()
) -> torch.optim.Optimizer:
    """The optimizer for ``model``: a stock torch class in a thin layer that gives it Caffe's arithmetic.

    ``model`` may be wrapped (DataParallel, ``torch.compile``, ...); groups have the names of the bare one.

    Parameters whose lr_mult is 0 get ``requires_grad_(False)`` and stay in a group with lr 0; all others learn.
    Parameters that no group names are left alone. ``without`` names rules that the user accepts to go without.

    Raises ``BindingError`` when a group names a parameter that the model does not have, or two name the same, and
    ``UnsupportedError`` for rules of the solver that are not translated.
    """
    refuse_unsupported(solver, without)
    named: list[dict[str, Any]] = [
        {
            "name": group.name,
            "lr_mult": group.lr_mult,
            "decay_mult": group.decay_mult,
            "params": [member.parameter for member in group.members],
        }
        for group in groups
    ]
    claimed = {name for group in named for name in group["params"]}
    parameters = {name: one for name, one in named_tensors(model) if isinstance(one, torch.nn.Parameter)}
    held = {id(one) for one in parameters.values()}  # a model may report parameters that it does not register
    parameters |= {name: one for name, one in model.named_parameters() if id(one) not in held}
    try:
        built = param_groups(
            parameters,
            named,
            lr=rate(solver.policy, 0, step_at(solver.policy, 0)),
            weight_decay=weight_decay_at(solver, 0),
            left_out=parameters.keys() - claimed,
            backpropagated=frozen_with_gradient(groups, solver),
        )
    except ValueError as error:
        raise BindingError(f"the groups do not fit the model: {error}") from None
    kept = replace(solver, places={})  # which a pickled optimizer need not carry along
    optimizer: torch.optim.Optimizer = getattr(solvers, f"Caffe{solver.type}")(built, kept)
    return optimizer


# A model's parameters as torch param groups, each with the effective lr and weight_decay that Caffe would give it.


def param_groups(
    parameters: Mapping[str, torch.nn.Parameter],
    groups: Iterable[Mapping[str, Any]],
    *,
    lr: float,
    weight_decay: float,
    left_out: Collection[str] = (),
    backpropagated: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Torch groups of ``parameters`` from groups with ``name``, ``lr_mult``, ``decay_mult`` and names as ``params``.
    Every parameter must be named once, in a group or in ``left_out``: one without intention is a mistake. Where
    lr_mult is 0 Caffe computes no gradient, and torch will not either, but for parameters in ``backpropagated``.

    Raises ``ValueError`` for a parameter that is missing, unclaimed or claimed twice.
    """
    claimed = Counter([*left_out, *(name for group in groups for name in group["params"])])
    problems = [f"the model has no parameter {name!r}" for name in claimed if name not in parameters]
    problems += [f"no group claims parameter {name!r}" for name in parameters if name not in claimed]
    problems += [f"parameter {name!r} is claimed {count} times" for name, count in claimed.items() if count > 1]
    if problems:
        more = f"; and {len(problems) - 8} more of that kind" if len(problems) > 8 else ""
        raise ValueError("; ".join(problems[:8]) + more)
    built = []
    for group in groups:
        lr_mult, decay_mult = group["lr_mult"], group["decay_mult"]
        for name in group["params"]:
            parameters[name].requires_grad_(lr_mult != 0 or name in backpropagated)
        built.append(
            {
                "name": group["name"],
                "params": [(name, parameters[name]) for name in group["params"]],
                "lr": round32(round32(lr) * round32(lr_mult)),
                "weight_decay": round32(round32(weight_decay) * round32(decay_mult)),
                "lr_mult": lr_mult,
                "decay_mult": decay_mult,
            }
        )
    return built
