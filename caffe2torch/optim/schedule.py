"""Caffe's rate policies as a torch scheduler: one ``step()`` an iteration, exact rates, resumable."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from caffe2torch.recipe import PolicyType, SolverSettings
from caffe2torch.solver.float32 import round32
from caffe2torch.solver.lr_policy import momentum_at, next_step, rate, weight_decay_at
from caffe2torch.solver.requirements import momentum_changes, ramps

__all__ = ["CaffeLRScheduler", "build_scheduler"]


class CaffeLRScheduler(LRScheduler):
    """Sets each group to what Caffe uses at the iteration to come: ``lr`` is rate * lr_mult, in float32.

    The loop is torch's own: ``optimizer.step(); scheduler.step(); optimizer.zero_grad()``, once an iteration.
    ``last_epoch`` is Caffe's iteration, the first being 0.
    """

    current_step = 0  # Caffe's counter of the stepvalues that are behind, which rises by at most one an iteration

    def __init__(self, optimizer: torch.optim.Optimizer, solver: SolverSettings, last_epoch: int = -1) -> None:
        self.solver = solver
        self.multipliers = [(group["lr_mult"], group["decay_mult"]) for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        super().__init__(optimizer, last_epoch)

    def step(self, epoch: int | None = None) -> None:
        """Move on by one iteration; torch's deprecated ``epoch`` jumps to one."""
        if self.solver.policy.type is PolicyType.MULTISTEP:
            iteration = self.last_epoch + 1 if epoch is None else epoch
            self.current_step = next_step(self.solver.policy, iteration, self.current_step)
        super().step(epoch)
        if ramps(self.solver):
            self.set_ramps()

    def rate(self) -> float:
        """The global rate of the present iteration."""
        if self.solver.policy.type is PolicyType.MULTISTEP:
            return rate(self.solver.policy, self.last_epoch, self.current_step)
        return rate(self.solver.policy, self.last_epoch)

    def get_lr(self) -> list[Any]:
        """The effective rate of each group at the present iteration."""
        now = self.rate()
        return [round32(now * round32(lr_mult)) for lr_mult, _ in self.multipliers]

    def set_ramps(self) -> None:
        """Momentum and weight decay, where they change with the iteration (NVIDIA's policies)."""
        for group, (_, decay_mult) in zip(self.optimizer.param_groups, self.multipliers, strict=True):
            if momentum_changes(self.solver):
                group["momentum"] = momentum_at(self.solver, self.last_epoch, self.rate())
            if self.solver.weight_decay_ramp is not None:
                group["weight_decay"] = round32(weight_decay_at(self.solver, self.last_epoch) * round32(decay_mult))

    def restore(self, iteration: int, current_step: int = 0) -> None:
        """Go on where a ``.solverstate`` was written: after ``iteration`` updates, with its ``current_step``."""
        self.last_epoch, self.current_step = iteration - 1, current_step
        self._initial_step()

    def state_dict(self) -> dict[str, Any]:
        """What changes from step to step. Multipliers and policy are the recipe's, and stay as they are here."""
        state = {key: self.__dict__[key] for key in ("last_epoch", "_step_count", "_last_lr")}
        if self.solver.policy.type is PolicyType.MULTISTEP:
            state["current_step"] = self.current_step
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on at the iteration of ``state_dict``; the groups get its rates at once."""
        super().load_state_dict(state_dict)
        self._last_lr = self.get_lr()
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = lr
        if ramps(self.solver):
            self.set_ramps()


def build_scheduler(
    optimizer: torch.optim.Optimizer, solver: SolverSettings, last_iteration: int = -1
) -> CaffeLRScheduler:
    """The scheduler of ``solver``. ``last_iteration`` is the last one that was done before; -1 starts from scratch."""
    return CaffeLRScheduler(optimizer, replace(solver, places={}), last_iteration)
