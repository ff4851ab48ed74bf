"""A model's parameters as torch param groups, each with the effective lr and weight_decay that Caffe would give it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch

from caffe2torch.solver.float32 import round32

__all__ = ["param_groups"]


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
