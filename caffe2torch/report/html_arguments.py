"""Which solver field is which torch argument: a solver's fields beside what each one is in torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from caffe2torch.recipe import Regularization, SolverSettings, SourceLocation
from caffe2torch.report.rate_plot import effective
from caffe2torch.report.solver_table import solver_dict
from caffe2torch.solver.float32 import format32, number
from caffe2torch.solver.lr_policy import POLICIES, SURROUNDINGS, fork_fields, rate, weight_decay_at
from caffe2torch.solver.requirements import momentum_changes, ramps
from caffe2torch.solver.update_rules import SOLVERS

__all__ = ["Argument", "arguments", "unread"]


@dataclass(frozen=True, slots=True)
class Argument:
    """A field, its value in the file (or Caffe's default, where ``where`` is ``None``), and what it is in torch."""

    field: str
    value: str
    where: SourceLocation | None
    argument: str
    becomes: str
    how: str


_NUMBERS = tuple(dict.fromkeys(setting for row in SOLVERS.values() for setting in row.settings))
_POLICY_FIELDS = tuple(dict.fromkeys(field for policy in POLICIES.values() for field in policy.fields))
_OTHER_ROWS = ("max_iter", "plateau_winsize")  # how long your loop is; a rule that is not translated
_RAMPS = {
    "momentum_policy": "momentum",
    "max_momentum": "momentum",
    "momentum_power": "momentum",
    "weight_decay_policy": "weight_decay",
    "max_weight_decay": "weight_decay",
    "weight_decay_power": "weight_decay",
}


def arguments(
    solver: SolverSettings, iteration: int, lr_mults: Sequence[float], decay_mults: Sequence[float]
) -> tuple[Argument, ...]:
    """Every field that shapes the training, with the values of the groups at ``iteration``.

    ``lr_mults`` and ``decay_mults`` are the multipliers that the net's blobs have, fine-tuning factors applied. Fields
    that are neither stated nor read by this solver do not stand there.
    """
    return tuple(_rows(solver, iteration, lr_mults, decay_mults))


def unread(solver: SolverSettings, rows: Sequence[Argument]) -> dict[str, SourceLocation]:
    """The fields that the file states and that are no argument: how often to print, where to keep snapshots, ..."""
    used = {row.field for row in rows}
    left = {name: where for name, where in solver.places.items() if name not in used}
    return dict(sorted(left.items(), key=lambda pair: pair[1]))


def _rows(
    solver: SolverSettings, iteration: int, lr_mults: Sequence[float], decay_mults: Sequence[float]
) -> Iterator[Argument]:
    fields, places = solver_dict(solver), solver.places

    def row(field: str, argument: str, becomes: str, how: str, value: str | None = None) -> Argument:
        shown = _text(fields.get(field)) if value is None else value
        return Argument(field, shown, places.get(field), argument, becomes, how)

    kind = "solver_type" if "solver_type" in places and "type" not in places else "type"
    known = SOLVERS[solver.type]
    options = ", ".join(f"{name}={value}" for name, value in known.fixed.items())
    made = f"torch.optim.{known.stock}" + (f"({options})" if options else "")
    exact = f"{known.departure}: each step makes up for it" if known.departure else "torch's update is Caffe's"
    yield row(kind, "the optimizer", made, exact, str(solver.type))
    now = rate(solver.policy, iteration)
    rates = ", ".join(f"{number(effective(now, m))} (×{m:g})" for m in lr_mults) or number(now)
    yield row("base_lr", "lr of each group", rates, "rate × lr_mult; true at all times, set anew each iteration")
    policy = POLICIES[solver.policy.type]
    yield row("lr_policy", "the scheduler", policy.formula, "one scheduler.step() an iteration")
    for field in _POLICY_FIELDS:
        if field in policy.fields and field not in _OTHER_ROWS:
            yield row(field, "the scheduler", "-", "in that formula")
        elif field in places and field not in _OTHER_ROWS:
            yield row(field, "none", "-", f"the policy {solver.policy.type} does not read it")
    for field in fork_fields(solver.policy):
        yield row(field, "the scheduler", "-", SURROUNDINGS[field][1])
    yield from (row(*found) for found in _numbers(solver, fields))
    decay = weight_decay_at(solver, iteration)
    decays = ", ".join(f"{number(effective(decay, m))} (×{m:g})" for m in decay_mults) or number(decay)
    yield row("weight_decay", "weight_decay of each group", decays, "weight_decay × decay_mult; torch applies lr to it")
    l1 = solver.regularization is Regularization.L1
    how = "decay × sign(w) joins the gradient in step(), which torch alone cannot" if l1 else "torch's own is L2"
    if l1 or "regularization_type" in places:
        yield row("regularization_type", "step()" if l1 else "weight_decay of each group", "-", how)
    for field, argument in _RAMPS.items():
        if field in places and ramps(solver):
            yield row(field, argument, "-", "set anew each iteration", _text(fields.get(field)))
    if solver.clip_gradients is not None:
        how = "the norm over all parameters of the summed gradient, before it is divided by iter_size"
        yield row("clip_gradients", "step()", "-", how)
    if solver.iter_size != 1 or "iter_size" in places:
        how = "call backward() so many times for one step(), which divides the summed gradient"
        yield row("iter_size", "step()", f"gradient / {solver.iter_size}", how)
    if solver.max_iter:
        end = f" and the end of the {solver.policy.type} policy" if "max_iter" in policy.fields else ""
        yield row("max_iter", "your loop", f"range({solver.max_iter})", f"how many iterations it makes{end}")
    for left in solver.unsupported:
        yield Argument(left.name, "", left.where, "none", "-", f"not translated: {left.reason}")


def _numbers(solver: SolverSettings, fields: Mapping[str, object]) -> Iterator[tuple[str, str, str, str]]:
    """The numbers of the update's formula; those that this solver does not read only where the file states them."""
    row = SOLVERS[solver.type]
    arguments = {
        setting: name if len(taken) == 1 else f"{name}[{place}]"
        for name, taken in row.arguments.items()
        for place, setting in enumerate(taken)
    }
    for field in _NUMBERS:
        if field in arguments:
            how = row.delta if field == "delta" else "the same number, "
            how += "" if field == "delta" else "as float32" if field in row.rounded else "in every group"
            value = "changes, see there" if field == "momentum" and momentum_changes(solver) else _text(fields[field])
            yield field, arguments[field], value, how
        elif field in solver.places:
            yield field, "none", "-", f"{solver.type} does not read it"


def _text(value: object) -> str:
    """A value as a prototxt would have it."""
    match value:
        case None:
            return "-"
        case float():
            return format32(value)
        case list() | tuple():
            return ", ".join(map(_text, value))
    return str(value)
