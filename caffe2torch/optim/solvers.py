"""Caffe's solvers on torch's own optimizer classes. Emitted files hold what they need of this text verbatim.

Where torch's formula is Caffe's, the stock class itself is used (``solver/requirements.py``, ``optimizer_bases``).
Elsewhere a class below changes settings of the param groups for the time of one stock step; between steps the groups
say what is true. In the formulas h is Caffe's history, l a group's lr, g the gradient after clipping, division by
iter_size and weight decay, w the weights.

Sources: BVLC's ``src/caffe/solvers/*.cpp``; ``sgd_solver.cpp`` has the order of an iteration: clip the summed gradient,
divide it, add the decay, update.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch

from caffe2torch.recipe import SolverType
from caffe2torch.solver.requirements import Scaling, bases, class_name
from caffe2torch.solver.update_rules import SOLVERS

__all__ = ["gradient_norm", "solver_class"]


class CaffeOptimizer(torch.optim.Optimizer):
    """Runs torch's own step with settings of the groups that make it Caffe's update, and then restores them."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one update; the groups are as before when it returns or raises."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        saved = [dict(group) for group in self.param_groups]
        try:
            self.prepare()
            inspect.unwrap(super().step)(self)  # the undecorated step: its decorator would run step hooks a second time
        finally:
            for group, entries in zip(self.param_groups, saved, strict=True):
                group.update(entries)
        return loss

    def prepare(self) -> None:
        """Caffe updates every parameter: without a gradient it decays, and moves by its history."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None and p.requires_grad:
                    p.grad = torch.zeros_like(p)
                elif not p.requires_grad and group.get("lr_mult") != 0:  # frozen by its user: it stays where it is
                    p.grad = None


class CaffeSGD(CaffeOptimizer, torch.optim.SGD):
    """h = momentum * h + l * g; w -= h, where torch has h = momentum * h + g; w -= l * h.

    h is the history, l the lr, g the gradient with decay. torch's momentum_buffer holds h / reference_lr, and
    reference_lr never changes, so a change of lr does not rescale the history. A step with lr = reference_lr and
    dampening = 1 - l / reference_lr is then Caffe's update.
    """

    def prepare(self) -> None:
        """Set lr and dampening of each group for this step."""
        super().prepare()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and self.state[p].get("momentum_buffer") is None:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)  # torch's first buffer ignores dampening
            reference = group.setdefault("reference_lr", float(group["lr"]) or 1.0)
            group["lr"], group["dampening"] = reference, 1 - float(group["lr"]) / reference


class ScaledSGD(CaffeSGD):
    """Multiplies gradients by a scale through dampening and weight decay, so that ``grad`` is not written once more.

    scale * g + decay * w is scale * (g + decay / scale * w).
    """

    gradient_scale: Callable[[], float]

    def prepare(self) -> None:
        """Put the scale into dampening and weight decay."""
        super().prepare()
        scale = self.gradient_scale()
        ratios = [abs(1 - group["dampening"]) for group in self.param_groups if group["dampening"] != 1]
        if scale * min(ratios, default=1) < 2**-24:  # 1 - dampening would lose digits of it
            for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
                p.grad.mul_(scale)
            return
        for group in self.param_groups:
            group["dampening"] = 1 - (1 - group["dampening"]) * scale
            group["weight_decay"] /= scale


class CaffeNesterov(CaffeOptimizer, torch.optim.SGD):
    """h' = momentum * h + l * g; w -= (1 + momentum) * h' - momentum * h, which is l * g + momentum * h'.

    The buffer is h / reference_lr as in CaffeSGD. torch uses g a second time, past dampening, so g itself and its
    weight decay are multiplied by l / reference_lr.
    """

    def prepare(self) -> None:
        """Set lr and weight decay of each group for this step, and scale its gradients."""
        super().prepare()
        for group in self.param_groups:
            reference = group.setdefault("reference_lr", float(group["lr"]) or 1.0)
            ratio = float(group["lr"]) / reference
            for p in (p for p in group["params"] if ratio != 1 and p.grad is not None):
                p.grad.mul_(ratio)
            group["lr"], group["weight_decay"] = reference, group["weight_decay"] * ratio


class CaffeAdam(CaffeOptimizer, torch.optim.Adam):
    """w -= l * sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + delta): delta is added to the uncorrected root.

    torch adds eps to the corrected root, so step t takes eps = delta / sqrt(1 - beta2^t). The difference matters only
    where delta is large.
    """

    def prepare(self) -> None:
        """Set the eps of each group for this step."""
        super().prepare()
        for group in self.param_groups:
            steps = [float(self.state[p]["step"]) for p in group["params"] if p in self.state]
            group["eps"] /= math.sqrt(1 - group["betas"][1] ** (1 + max(steps, default=0)))


class L1Decay(CaffeOptimizer):
    """Weight decay that pulls by the sign of a weight, not by its value."""

    def prepare(self) -> None:
        """Add decay * sign(w) to the gradients; the stock class then has nothing to add."""
        super().prepare()
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                p.grad.add_(p.sign(), alpha=group["weight_decay"])
            group["weight_decay"] = 0.0


class ScaledGradients(CaffeOptimizer):
    """Multiplies the gradients before the update reads them."""

    gradient_scale: Callable[[], float]

    def prepare(self) -> None:
        """Multiply every gradient by the scale of this step."""
        super().prepare()
        scale = self.gradient_scale()
        for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            p.grad.mul_(scale)


class Accumulation(CaffeOptimizer):
    """Divides gradients that the loop summed over iter_size passes."""

    def gradient_scale(self) -> float:
        """The factor of all gradients in this step."""
        return 1 / float(self.param_groups[0]["iter_size"])


class Clipping(Accumulation):
    """Clips the summed gradient by its norm over all parameters, before it is divided."""

    def gradient_scale(self) -> float:
        """The factor of all gradients in this step."""
        groups = self.param_groups
        if sum(len(group["params"]) for group in groups) < groups[0]["num_parameters"]:
            raise RuntimeError(
                "clip_gradients needs the norm of all gradients, and this optimizer holds only a part of the "
                "parameters (as within ZeroRedundancyOptimizer): shard the model with fully_shard instead"
            )
        if getattr(self, "grad_scale", None) is not None:  # torch's scaler, where the constructor took fused=True
            raise RuntimeError("fused=True with a GradScaler: the norm is that of scaled gradients; use fused=None")
        norm = gradient_norm([p.grad for group in groups for p in group["params"] if p.grad is not None])
        clip = groups[0]["clip_gradients"]
        return super().gradient_scale() * (clip / norm if norm > clip else 1)


def gradient_norm(gradients: Sequence[torch.Tensor]) -> float:
    """The L2 norm of all gradients together, by parts first: one float32 sum of 10^8 squares is 1 % too small.

    >>> gradient_norm([torch.full((3, 4), 1.0), torch.full((13,), -1.0)])
    5.0
    """
    parts: list[torch.Tensor] = []
    for gradient in gradients:
        g = gradient.to(torch.promote_types(gradient.dtype, torch.float32))  # half precision would overflow
        if g.numel() <= 2**16:
            parts.append(g)
        elif g.ndim > 1 and g.numel() <= 2**16 * len(g):
            parts.append(torch.linalg.vector_norm(g, dim=tuple(range(1, g.ndim))))
        else:
            parts += torch.split(g.flatten(), 2**16)
    norm = torch.nn.utils.get_total_norm(parts)
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)  # a DTensor, where the model is sharded


def solver_class(names: Sequence[str]) -> type[torch.optim.Optimizer]:
    """The class of an optimizer by its bases (``solver/requirements.py``, ``optimizer_bases``).

    >>> solver_class(["torch.optim.SGD"]) is torch.optim.SGD
    True
    >>> solver_class(["CaffeAdam", "ScaledGradients", "Clipping"]).__name__
    'ClippedCaffeAdam'
    """
    return _KNOWN[names[0] if len(names) == 1 else class_name(names)]  # type: ignore[no-any-return]  # made below


# Every combination has a name in this module, so that its optimizers can be pickled.
_KNOWN = globals() | {f"torch.optim.{row.stock}": getattr(torch.optim, row.stock) for row in SOLVERS.values()}
for _names in {bases(*each) for each in product(SolverType, (True, False), (True, False), Scaling, (True, False))}:
    if len(_names) > 1:
        _made = type(class_name(_names), tuple(_KNOWN[name] for name in _names), {"__module__": __name__})
        _KNOWN[class_name(_names)] = globals()[class_name(_names)] = _made
