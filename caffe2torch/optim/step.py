"""One iteration of Caffe around one step of a stock optimizer; what makes it a solver's own is in ``solvers.py``.

What users see in the groups is true at all times, ``group["lr"]`` the effective rate; a step sets nothing there but
``lr_reference`` and ``fused``, which follows the device. Source: BVLC's ``src/caffe/solvers/sgd_solver.cpp``.

What an emitted file carries is cut from this text (``caffe2torch/emit/carrying.py``): a branch that a solver never
takes is left out, a setting becomes a constant.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

from caffe2torch.optim.norm import gradient_norm
from caffe2torch.recipe import Regularization, SolverSettings, SolverType
from caffe2torch.solver.requirements import fused_devices, has_momentum, multiplies_gradients, rescales_gradients

__all__ = ["CaffeStep", "Group"]

Group = dict[str, Any]


class CaffeStep(torch.optim.Optimizer):
    """One iteration of Caffe around one step of the stock optimizer that this is mixed into.

    Caffe's order (``SGDSolver::ApplyUpdate``): clip the summed gradient by its norm over all parameters, divide it by
    iter_size, add the decay, update. A parameter without a gradient decays and moves by its history all the same.
    """

    def __init__(self, params: Iterable[Group], solver: SolverSettings, stated: Group) -> None:
        stock: Any = super()
        # Not fused yet: a gradient scaler would then leave unscaling to the kernel, which comes after Caffe's norm.
        stock.__init__(params)
        self.solver = solver
        # Past the stock constructor's checks: Caffe accepts what torch would not, a momentum of 1 in Adam for one.
        self.defaults.update(stated)
        for group in self.param_groups:
            group.update(stated)
        self.layouts: dict[int, list[Any]] = {}

    def __setstate__(self, state: Group) -> None:
        super().__setstate__(state)
        self.layouts = {}  # what was loaded may lie otherwise

    def __getstate__(self) -> Group:
        return {**super().__getstate__(), "solver": self.solver}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one update. A ``closure`` is called first, and what it returns is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        for i, group in enumerate(groups):
            if math.isnan(group["lr"]) or self.layout(group) != self.layouts.get(i):
                self.prepare(group)
                self.layouts[i] = self.layout(group)
        if rescales_gradients(self.solver):
            scale = self.gradient_scale()
        for group in sorted(groups, key=self.size):  # a large one first would drive the others from the caches
            told = self.told(group)
            if rescales_gradients(self.solver):
                told = self.rescaled(group, told, scale)
            if multiplies_gradients(self.solver):
                self.multiply_gradients(group, told.pop("gradient_factor", 1.0))
            if self.solver.regularization is Regularization.L1:
                self.add_signs(group, told)
            self.update({**group, **told})
        return loss

    def update(self, group: Group) -> None:
        """Make the stock class's step for one group, without the hooks around it: those of our own step have run."""
        if has_momentum(self.solver) and group["fused"]:
            self.update_by_kernel(group)
            return
        groups, self.param_groups = self.param_groups, [group]
        try:
            hooked: Any = super().step
            inspect.unwrap(hooked.__func__)(self)
        finally:
            self.param_groups = groups

    def update_by_kernel(self, group: Group) -> None:
        """Make the call that ``torch.optim.SGD.step`` is about: what it does around it is 3 % of ResNet-50's time."""
        parameters = [p for p in group["params"] if p.grad is not None]
        if parameters:
            torch._fused_sgd_(
                parameters,
                [p.grad for p in parameters],
                [self.state[p]["momentum_buffer"] for p in parameters],
                weight_decay=group["weight_decay"],
                momentum=group["momentum"],
                lr=group["lr"],
                dampening=group["dampening"],
                nesterov=group["nesterov"],
                maximize=group["maximize"],
                is_first_step=False,
                grad_scale=self.grad_scale if multiplies_gradients(self.solver) else None,
                found_inf=None,
            )

    def size(self, group: Group) -> int:
        """How many numbers a group's parameters have."""
        return sum(map(torch.numel, group["params"]))

    def layout(self, group: Group) -> list[Any]:
        """How parameters and their gradients lie in memory: while it is the same, there is nothing to prepare."""
        lies = [
            p.requires_grad if (g := p.grad) is None else (p.stride(), g.is_sparse or g.stride(), p.dtype, p.device)
            for p in group["params"]
        ]
        return [len(self.state), lies]

    def prepare(self, group: Group) -> None:
        """See that every parameter has a dense gradient, and that its tensors lie alike in memory.

        Fused kernels walk through them side by side, and would mix up elements that lie differently without a word.
        """
        dead = math.isnan(group["lr"])  # for frozen parameters, too: 0 * NaN is NaN
        if fused_devices(self.solver):
            group["fused"] = self.can_be_fused(group) or None  # None leaves it to torch how to go without
        for p in group["params"]:
            gradient, strides = p.grad, p.stride()
            if gradient is None:
                if not (p.requires_grad or dead):
                    continue
                p.grad = torch.zeros_like(p)
            elif gradient.is_sparse or gradient.stride() != strides:
                p.grad = torch.empty_like(p).copy_(gradient.to_dense())
            state = self.state[p]
            for key, value in state.items():
                if key == "step":  # fused kernels count beside the parameter, the others on the CPU
                    state[key] = value.to(p.device if group.get("fused") else "cpu")
                elif value.stride() != strides or value.dtype != p.dtype or value.device != p.device:
                    state[key] = torch.empty_like(p).copy_(value)
            if "momentum_buffer" not in state and has_momentum(self.solver):
                state["momentum_buffer"] = torch.zeros_like(p)  # as in Caffe; torch's own begins past dampening
            if "sum" not in state and self.solver.type is SolverType.ADAGRAD:  # torch 2.6 begins it but once, for all
                state |= {"sum": torch.zeros_like(p), "step": torch.zeros((), dtype=torch.float32)}

    def can_be_fused(self, group: Group) -> bool:
        """Whether all is of one kind, and one with a fused kernel, which may skip what is of another without a word."""
        devices, dtypes = {p.device for p in group["params"]}, {p.dtype for p in group["params"]}
        return len(devices) == len(dtypes) == 1 and devices.pop().type in fused_devices(self.solver)

    def told(self, group: Group) -> Group:  # noqa: ARG002  # a stock class that is exact is told nothing
        """What the stock class reads for this step in place of what ``group`` says."""
        return {}

    def gradient_scale(self) -> float:
        """Caffe's ``ClipGradients`` and ``Normalize`` as one factor for all gradients."""
        scale = 1.0
        if self.solver.clip_gradients is not None:
            gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
            norm = gradient_norm(gradients)
            if norm > self.solver.clip_gradients:
                scale = self.solver.clip_gradients / norm
        if self.solver.iter_size != 1:
            scale *= 1.0 / self.solver.iter_size if self.solver.iter_size else math.inf
        return scale

    def rescaled(self, group: Group, told: Group, scale: float) -> Group:  # noqa: ARG002  # CaffeSGD needs it
        """``told`` for gradients that are to be multiplied by ``scale``."""
        return {**told, "gradient_factor": scale * told.get("gradient_factor", 1.0)}

    def multiply_gradients(self, group: Group, factor: float) -> None:
        """Multiply on the way through the fused kernels, which can divide by a loss scale; else before."""
        self.grad_scale = None
        if factor == 1.0:
            return
        if group.get("fused") and self.solver.regularization is not Regularization.L1:
            device = group["params"][0].device
            self.grad_scale = torch.tensor(factor, dtype=torch.float32, device=device).reciprocal()
        else:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.mul_(factor)

    def rate_reference(self, group: Group) -> float:
        """The constant rate by which a history is divided to be torch's buffer: the group's first that is not 0.

        A later one that is 10^18 times as large takes its place: a history divided by the first could overflow.
        """
        reference, rate = group.setdefault("lr_reference", 0.0), group["lr"]
        if abs(reference) < 1e-18 * abs(rate) < math.inf:
            group["lr_reference"] = rate
            for p in group["params"]:
                if reference != 0 and "momentum_buffer" in self.state.get(p, {}):
                    self.state[p]["momentum_buffer"].mul_(reference / rate)
        return group["lr_reference"] or 1.0

    def add_signs(self, group: Group, told: Group) -> None:
        """Add L1's decay * sign(w) to the gradient; the stock class, which knows L2 alone, then has none to add."""
        decay = told.get("weight_decay", group["weight_decay"])
        told["weight_decay"] = 0.0
        for p in group["params"]:
            if p.grad is not None:
                p.grad.add_(p.sign(), alpha=decay)
