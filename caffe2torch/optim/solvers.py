"""Caffe's six solvers on torch's own optimizers: the stock class makes each update, told what makes it Caffe's.

Where torch's formula is Caffe's, it is told nothing. Where it is not, ``told`` says what the stock class reads for
one step in place of the param group.

In the formulas h is Caffe's history, l the effective rate (rate * lr_mult), g the gradient after clipping,
normalizing and decay (``step.py``), w the weights. Sources: BVLC's ``src/caffe/solvers/*.cpp``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable

import torch

from caffe2torch.optim.step import CaffeStep, Group
from caffe2torch.recipe import SolverSettings
from caffe2torch.solver.float32 import round32
from caffe2torch.solver.requirements import has_momentum, momentum_changes

__all__ = ["CaffeAdaDelta", "CaffeAdaGrad", "CaffeAdam", "CaffeNesterov", "CaffeRMSProp", "CaffeSGD"]


class CaffeSGD(CaffeStep, torch.optim.SGD):
    """h = momentum*h + l*g; w -= h, where torch has h = momentum*h + g; w -= l*h.

    Without the rate in it, torch's history is wrong from the first change of rate on. So its buffer is made to be
    h/reference, with a constant rate as reference: a step with lr = reference and 1-dampening = l/reference is then
    Caffe's update, with nothing more to read or to write. While the rate is the reference, it is the stock update.
    """

    def __init__(self, params: Iterable[Group], solver: SolverSettings) -> None:
        super().__init__(params, solver, {"momentum": solver.momentum})

    def told(self, group: Group) -> Group:
        """The lr and dampening that make the stock update Caffe's."""
        if not has_momentum(self.solver):
            return {}
        reference = self.rate_reference(group)
        told = {"lr": reference, "dampening": 1.0 - group["lr"] / reference}
        if momentum_changes(self.solver):  # a float32 0, but not torch's 0, with which it would not keep the history
            told["momentum"] = group["momentum"] or sys.float_info.min
        return told

    def rescaled(self, group: Group, told: Group, scale: float) -> Group:
        """scale*g + decay*w is scale*(g + decay/scale*w): nothing to write, and .grad stays as it is."""
        if scale < 2.0**-24:  # but for one that 1-dampening would round away
            return super().rescaled(group, told, scale)
        told["weight_decay"] = group["weight_decay"] / scale
        if not has_momentum(self.solver):
            return {**told, "lr": group["lr"] * scale}
        return {**told, "dampening": 1.0 - (1.0 - told["dampening"]) * scale}


class CaffeNesterov(CaffeStep, torch.optim.SGD):
    """h' = momentum*h + l*g; w -= (1+momentum)*h' - momentum*h, which is l*g + momentum*h'.

    The buffer is h/reference as in Caffe's SGD, but torch uses g once more beside the buffer, past dampening. So lr is
    the reference, and g and its decay are multiplied by l/reference on their way.
    """

    def __init__(self, params: Iterable[Group], solver: SolverSettings) -> None:
        super().__init__(params, solver, {"momentum": solver.momentum, "nesterov": True})

    def told(self, group: Group) -> Group:
        """The lr, decay and factor for gradients that make the stock update Caffe's."""
        if not has_momentum(self.solver):
            return {}
        reference = self.rate_reference(group)
        ratio = group["lr"] / reference
        told = {"lr": reference, "weight_decay": group["weight_decay"] * ratio, "gradient_factor": ratio}
        if momentum_changes(self.solver):  # a float32 0, but not torch's 0, with which it would not keep the history
            told["momentum"] = group["momentum"] or sys.float_info.min
        return told


class CaffeAdaGrad(CaffeStep, torch.optim.Adagrad):
    """h += g^2; w -= l*g / (sqrt(h) + delta): the stock update."""

    def __init__(self, params: Iterable[Group], solver: SolverSettings) -> None:
        super().__init__(params, solver, {"eps": solver.delta})


class CaffeRMSProp(CaffeStep, torch.optim.RMSprop):
    """h = rms_decay*h + (1-rms_decay)*g^2; w -= l*g / (sqrt(h) + delta): the stock update, which is not fused."""

    def __init__(self, params: Iterable[Group], solver: SolverSettings) -> None:
        super().__init__(params, solver, {"alpha": round32(solver.rms_decay), "eps": solver.delta})


class CaffeAdaDelta(CaffeStep, torch.optim.Adadelta):
    """h1 = rho*h1 + (1-rho)*g^2; u = g*sqrt((h2+delta)/(h1+delta)); h2 = rho*h2 + (1-rho)*u^2; w -= l*u.

    The stock update, which is not fused. Rho is what the solver calls momentum.
    """

    def __init__(self, params: Iterable[Group], solver: SolverSettings) -> None:
        super().__init__(params, solver, {"rho": round32(solver.momentum), "eps": solver.delta})


class CaffeAdam(CaffeStep, torch.optim.Adam):
    """m = b1*m + (1-b1)*g; v = b2*v + (1-b2)*g^2; w -= l * sqrt(1-b2^t)/(1-b1^t) * m / (sqrt(v) + delta).

    Torch adds eps after the correction of v, Caffe delta before it: so step t is told eps = delta/sqrt(1-b2^t). The
    betas, momentum and momentum2 in the solver, are rounded to float32 first, since 1-b2 shows the difference.
    """

    def __init__(self, params: Iterable[Group], solver: SolverSettings) -> None:
        betas = (round32(solver.momentum), round32(solver.momentum2))
        super().__init__(params, solver, {"betas": betas, "eps": solver.delta})

    def told(self, group: Group) -> Group:
        """The eps of this step."""
        t = 1 + next((int(self.state[p]["step"]) for p in group["params"] if "step" in self.state[p]), 0)
        return {"eps": group["eps"] / math.sqrt(1.0 - group["betas"][1] ** t)}
