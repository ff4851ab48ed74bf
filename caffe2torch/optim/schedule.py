"""Caffe's rate policies as a torch scheduler: one ``step()`` an iteration, resumable."""

from __future__ import annotations

import sys
import warnings
from dataclasses import replace
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from caffe2torch.recipe import PolicyType, SolverSettings
from caffe2torch.solver.lr_policy import momentum_at, next_step, rate, step_at, weight_decay_at
from caffe2torch.solver.requirements import momentum_changes

__all__ = ["CaffeLRScheduler", "build_scheduler"]


class CaffeLRScheduler(LRScheduler):
    """Sets ``lr`` of each group to rate * lr_mult of the iteration to come.

    The loop is torch's own: ``optimizer.step(); scheduler.step(); optimizer.zero_grad()``, once per iteration.
    ``last_epoch`` is Caffe's iteration, the first being 0.
    """

    current_step = 0  # Caffe's counter of the stepvalues that are behind, which rises by at most one an iteration
    _counted = -1  # the iteration that current_step belongs to
    _steps = 0  # of this scheduler since the optimizer's last one
    _doubled = 0  # updates in a row after which this scheduler stepped more than once

    def __init__(self, optimizer: torch.optim.Optimizer, solver: SolverSettings, last_epoch: int = -1) -> None:
        self.solver = solver
        self.multipliers = [(group["lr_mult"], group["decay_mult"]) for group in optimizer.param_groups]
        optimizer.register_step_post_hook(self._optimizer_stepped)
        super().__init__(optimizer, last_epoch)

    def __repr__(self) -> str:
        rates = ", ".join(f"{float(lr):g}" for lr in self.get_last_lr())
        return f"<CaffeLRScheduler, {self.solver.policy.type}: at iteration {self.last_epoch} lr {rates}>"

    def step(self, epoch: int | None = None) -> None:
        """Go on by one iteration; torch's deprecated ``epoch`` goes to that one."""
        self._steps += 1
        self._doubled += self._steps == 2
        if self._doubled == 3 and self._steps == 2:
            warnings.warn(
                "the scheduler steps more than once per optimizer.step(): under Accelerate with several processes "
                "use Accelerator(step_scheduler_with_optimizer=False), or do not pass the scheduler to prepare()",
                stacklevel=2,
            )
        super().step(epoch)
        self.set_ramps()

    def rate(self) -> float:
        """The global rate of the present iteration."""
        policy, now = self.solver.policy, self.last_epoch
        if now == self._counted + 1:
            self.current_step = next_step(policy, now, self.current_step)
        elif now != self._counted:  # set to another iteration
            self.current_step = step_at(policy, now)
        self._counted = now
        return rate(policy, now, self.current_step)

    def get_lr(self) -> list[Any]:
        """The effective rate of each group at the present iteration."""
        now = self.rate()
        return [now * lr_mult for lr_mult, _ in self.multipliers]

    def set_ramps(self) -> None:
        """Set momentum and weight decay, where they change with the iteration (NVIDIA's policies)."""
        for group, (_, decay_mult) in zip(self.optimizer.param_groups, self.multipliers, strict=False):
            if momentum_changes(self.solver):  # torch keeps no history at 0
                group["momentum"] = momentum_at(self.solver, self.last_epoch, self.rate()) or sys.float_info.min
            if self.solver.weight_decay_ramp is not None:
                group["weight_decay"] = weight_decay_at(self.solver, self.last_epoch) * decay_mult

    def restore(self, iteration: int, current_step: int = 0) -> None:
        """Go on where a ``.solverstate`` was written: after ``iteration`` updates, with its ``current_step``."""
        self.last_epoch, self._counted, self.current_step = iteration - 1, iteration - 1, current_step
        self._steps = 0
        self._initial_step()

    def state_dict(self) -> dict[str, Any]:
        """What changes from step to step. Multipliers and policy are the recipe's, and stay as they are here."""
        counter = ["current_step"] * (self.solver.policy.type is PolicyType.MULTISTEP)
        return {key: getattr(self, key) for key in ("last_epoch", "_step_count", "_last_lr", *counter)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on at the iteration of ``state_dict``; the groups get its rates at once."""
        super().load_state_dict(state_dict)
        self._counted, self._steps = self.last_epoch, 1
        self._last_lr = self.get_lr()
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=False):
            group["lr"] = lr
        self.set_ramps()

    def _optimizer_stepped(self, *_: Any) -> None:
        """Count how often this scheduler steps per update."""
        if self._steps == 1:
            self._doubled = 0
        self._steps = 0


def build_scheduler(
    optimizer: torch.optim.Optimizer, solver: SolverSettings, last_iteration: int = -1
) -> CaffeLRScheduler:
    """The scheduler of ``solver``. ``last_iteration`` is the last one that was done before; -1 starts from scratch."""
    return CaffeLRScheduler(optimizer, replace(solver, places={}), last_iteration)
