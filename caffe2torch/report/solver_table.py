"""A solver's settings by Caffe's own field names, for the reports."""

from __future__ import annotations

from caffe2torch.recipe import SolverSettings
from caffe2torch.solver.lr_policy import POLICIES, fork_fields
from caffe2torch.solver.update_rules import SOLVERS

__all__ = ["solver_dict", "solver_line"]


def solver_dict(solver: SolverSettings) -> dict[str, object]:
    """Every setting by its name in a solver prototxt; those of forks only where they are set."""
    policy = solver.policy
    fields: dict[str, object] = {
        "type": str(solver.type),
        "lr_policy": str(policy.type),
        "base_lr": policy.base_lr,
        "gamma": policy.gamma,
        "power": policy.power,
        "stepsize": policy.stepsize,
        "stepvalue": list(policy.stepvalues),
        "max_iter": solver.max_iter,
        "momentum": solver.momentum,
        "momentum2": solver.momentum2,
        "rms_decay": solver.rms_decay,
        "delta": solver.delta,
        "weight_decay": solver.weight_decay,
        "regularization_type": str(solver.regularization),
        "iter_size": solver.iter_size,
        "clip_gradients": solver.clip_gradients,
    }
    forks: dict[str, object] = {
        "stagelr": list(policy.stage_lrs) or None,
        "stageiter": list(policy.stage_iters) or None,
        **{name: getattr(policy, name) for name in fork_fields(policy)},
        "max_momentum": solver.momentum_ramp.maximum if solver.momentum_ramp else solver.momentum_from_rate,
        "momentum_power": solver.momentum_ramp.power if solver.momentum_ramp else None,
        "max_weight_decay": solver.weight_decay_ramp.maximum if solver.weight_decay_ramp else None,
        "weight_decay_power": solver.weight_decay_ramp.power if solver.weight_decay_ramp else None,
    }
    return fields | {name: value for name, value in forks.items() if value is not None}


def solver_line(solver: SolverSettings) -> str:
    """What matters of a solver, on one line.

    >>> from caffe2torch.recipe import LrPolicy, PolicyType, SolverType
    >>> policy = LrPolicy(PolicyType.STEP, base_lr=0.1, gamma=0.5, stepsize=100)
    >>> solver_line(SolverSettings(SolverType.SGD, policy, momentum=0.9, weight_decay=0.0005))
    'SGD, base_lr 0.1, lr_policy step (gamma 0.5, stepsize 100), momentum 0.9, weight_decay 0.0005'
    """
    fields = solver_dict(solver)

    def named(*names: str) -> list[str]:
        return [f"{name} {_short(fields[name])}" for name in names if fields.get(name) is not None]

    policy = solver.policy
    shape = named(*(n for n in POLICIES[policy.type].fields if n != "max_iter"), *fork_fields(policy))
    parts = [
        str(solver.type),
        *named("base_lr"),
        f"lr_policy {policy.type}" + (f" ({', '.join(shape)})" if shape else ""),
    ]
    parts += named(*dict.fromkeys(("momentum", *SOLVERS[solver.type].settings, "weight_decay")))
    parts += [f"{name} {_short(fields[name])}" for name, usual in _QUIET.items() if fields[name] != usual]
    return ", ".join(parts)


_QUIET = {"regularization_type": "L2", "iter_size": 1, "clip_gradients": None}


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if isinstance(value, list):
        return "[" + ", ".join(map(_short, value)) + "]"
    return str(value)
