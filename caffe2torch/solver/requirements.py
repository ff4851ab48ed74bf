"""What a solver asks for, as questions with one answer: what is refused, what its update needs. No torch."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from caffe2torch.errors import UnsupportedError
from caffe2torch.recipe import Accumulation, SolverSettings, SolverType

__all__ = [
    "for_accumulation",
    "fused_devices",
    "has_momentum",
    "momentum_changes",
    "multiplies_gradients",
    "ramps",
    "refuse_unsupported",
    "rescales_gradients",
]


def refuse_unsupported(solver: SolverSettings, without: Collection[str] = ()) -> None:
    """Raise ``UnsupportedError`` for what ``solver`` asks for and is not translated, but for the names in ``without``.

    A name in ``without`` that the solver does not ask for is refused as well: it is mistyped, or stale. So is a
    momentum2 of 1 or more, with which Caffe's Adam moves no weight or makes all of them NaN.
    """
    names = sorted(wanted.name for wanted in solver.unsupported)
    for name in without:
        if name not in names:
            hint = f"it asks for {', '.join(names)}" if names else "everything that it asks for is translated"
            raise UnsupportedError(f"the solver does not ask for {name!r}, which is to be left out", hint=hint)
    for wanted in solver.unsupported:
        if wanted.name not in without:
            raise UnsupportedError(
                f"{wanted.name} is not translated: {wanted.reason}",
                where=wanted.where,
                hint=f"to train without it, say so: --without {wanted.name}, or without=[{wanted.name!r}]",
            )
    if solver.type is SolverType.ADAM and not solver.momentum2 < 1:
        raise UnsupportedError(
            "Caffe's Adam moves no weight with this momentum2, or makes all of them NaN",
            where=solver.places.get("momentum2"),
            found=f"momentum2: {solver.momentum2:g}",
            expected="a value below 1",
        )


def momentum_changes(solver: SolverSettings) -> bool:
    """Whether momentum depends on the iteration (NVIDIA's ``momentum_policy``)."""
    return solver.momentum_ramp is not None or solver.momentum_from_rate is not None


def fused_devices(solver: SolverSettings) -> tuple[str, ...]:
    """Types of device on which torch, from 2.6 on, has a fused kernel for the update; elsewhere its loops do the same.

    AdaGrad's came later on CUDA, where torch 2.6 refuses it.
    """
    match solver.type:
        case SolverType.SGD | SolverType.NESTEROV | SolverType.ADAM:
            return ("cpu", "cuda")
        case SolverType.ADAGRAD:
            return ("cpu",)
    return ()


def has_momentum(solver: SolverSettings) -> bool:
    """Whether the update keeps a history of updates, as SGD and Nesterov do."""
    keeps = solver.type in (SolverType.SGD, SolverType.NESTEROV)
    return keeps and (solver.momentum != 0 or momentum_changes(solver))


def ramps(solver: SolverSettings) -> bool:
    """Whether momentum or weight decay depends on the iteration."""
    return momentum_changes(solver) or solver.weight_decay_ramp is not None


def rescales_gradients(solver: SolverSettings) -> bool:
    """Whether gradients are clipped or normalized."""
    return solver.clip_gradients is not None or solver.iter_size != 1


def multiplies_gradients(solver: SolverSettings) -> bool:
    """Whether the update takes gradients times a factor, because of clipping, normalizing, or Nesterov's rates."""
    return rescales_gradients(solver) or solver.type is SolverType.NESTEROV


def for_accumulation(solver: SolverSettings, accumulation: Accumulation) -> SolverSettings:
    """What the step itself has to do, by what the training loop does with the gradients of ``iter_size`` passes.

    Caffe sums them, clips the sum and divides it by iter_size. Of a mean, the step has nothing left to divide, and the
    same clip is at ``clip_gradients / iter_size``.

    >>> from caffe2torch.recipe import LrPolicy, PolicyType
    >>> solver = SolverSettings(SolverType.SGD, LrPolicy(PolicyType.FIXED, 0.1), clip_gradients=40.0, iter_size=10)
    >>> mean = for_accumulation(solver, Accumulation.MEAN)
    >>> (mean.clip_gradients, mean.iter_size)
    (4.0, 1)
    """
    if accumulation is Accumulation.SUM or solver.iter_size <= 1:
        return solver
    clip = None if solver.clip_gradients is None else solver.clip_gradients / solver.iter_size
    return replace(solver, clip_gradients=clip, iter_size=1)
