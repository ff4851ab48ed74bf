"""From a recipe's groups and solver to a torch optimizer that trains as Caffe's solver would."""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from caffe2torch.binding.plan import GroupPlan, frozen_with_gradient
from caffe2torch.binding.wrappers import named_tensors
from caffe2torch.errors import BindingError, ModelError, UnsupportedError
from caffe2torch.optim.solvers import solver_class
from caffe2torch.recipe import Accumulation, SolverSettings
from caffe2torch.solver import requirements
from caffe2torch.solver.lr_policy import rate, weight_decay_at
from caffe2torch.solver.update_rules import SOLVERS

__all__ = ["align_state", "build_optimizer", "param_groups"]


def build_optimizer(
    model: nn.Module,
    groups: Sequence[GroupPlan],
    solver: SolverSettings,
    without: Collection[str] = (),
    *,
    accumulation: Accumulation = Accumulation.SUM,
    fused: bool | None = None,
) -> torch.optim.Optimizer:
    """The optimizer for ``model``: torch's own class where that is exact, else a small subclass (``solvers.py``).

    Parameters whose lr_mult is 0 get ``requires_grad_(False)`` and stay in a group with lr 0. Others keep what their
    user set, but for those that an earlier call froze. Parameters that no group names are left alone.

    Args:
        model: The model; it may be wrapped (DataParallel, ``torch.compile``, ...), groups name the bare one's tensors.
        groups: Which parameters have which multipliers.
        solver: The solver's settings.
        without: Rules of forks that the user accepts to go without.
        accumulation: Whether the loop sums the gradients of ``iter_size`` passes, as Caffe, or averages them.
        fused: torch's option. ``None`` takes the fused kernel in each step where device, dtype and strides allow it.

    Raises:
        BindingError: A group names a parameter that the model does not have, or two name the same.
        UnsupportedError: A rule of the solver is not translated, or torch has no fused kernel for it.
    """
    requirements.refuse_unsupported(solver, without)
    solver = requirements.for_accumulation(solver, accumulation)
    parameters = dict(model.named_parameters())  # a model may report some that it does not register
    parameters |= {name: one for name, one in named_tensors(model) if isinstance(one, nn.Parameter)}
    built = param_groups(parameters, groups, solver)
    _freeze(parameters, groups, frozen_with_gradient(groups, solver))
    bases = requirements.optimizer_bases(solver)
    devices = SOLVERS[solver.type].fused
    if fused and not devices:
        raise UnsupportedError(f"torch has no fused kernel for {solver.type}", hint="leave fused out")
    options: dict[str, Any] = {"fused": True} if fused and len(bases) == 1 else {}
    with torch.device("cpu"):  # counters are made here, whatever the default device is
        optimizer = solver_class(bases)(built, **options)
    # The rest goes past the constructor: with fused, a GradScaler would not unscale before the norm is taken, and Caffe
    # accepts a momentum of 1 in Adam.
    options = requirements.stock_options(solver) | ({} if fused is None else {"fused": fused})
    for group in (*optimizer.param_groups, optimizer.defaults):
        group.update(options)
    optimizer.register_step_pre_hook(_before_step(model, parameters, devices if fused is None else None))
    if fused is None:
        optimizer.register_step_post_hook(_forget_fused)
    optimizer.register_load_state_dict_post_hook(align_state)
    return optimizer


def param_groups(
    parameters: Mapping[str, nn.Parameter], groups: Sequence[GroupPlan], solver: SolverSettings
) -> list[dict[str, Any]]:
    """Torch's param groups, with the lr and weight_decay of iteration 0 and whatever else the update reads there.

    Raises:
        BindingError: A group names a parameter that the model does not have, or two name the same.
    """
    names = Counter(member.parameter for group in groups for member in group.members)
    problems = [f"the model has no parameter {name!r}" for name in names if name not in parameters]
    problems += [f"parameter {name!r} is in {count} groups" for name, count in names.items() if count > 1]
    if problems:
        raise BindingError(f"the groups do not fit the model: {'; '.join(problems[:8])}")
    lr, decay, base = rate(solver.policy, 0), weight_decay_at(solver, 0), solver.policy.base_lr or 1.0
    clips = solver.clip_gradients is not None
    scaling = {"clip_gradients": solver.clip_gradients, "num_parameters": names.total()} if clips else {}
    if clips or solver.iter_size != 1:
        scaling["iter_size"] = solver.iter_size or math.ulp(0.0)  # Caffe divides by 0
    return [
        {
            "name": group.name,
            "params": [(member.parameter, parameters[member.parameter]) for member in group.members],
            "lr": lr * group.lr_mult,
            "initial_lr": base * group.lr_mult,
            "reference_lr": base * group.lr_mult or 1.0,
            "weight_decay": decay * group.decay_mult,
            "lr_mult": group.lr_mult,
            "decay_mult": group.decay_mult,
            **scaling,
        }
        for group in groups
    ]


_frozen_here: dict[int, weakref.ref[nn.Parameter]] = {}
"""By ``id``, the parameters that ``build_optimizer`` froze; only these are released by a later call."""


def _freeze(parameters: Mapping[str, nn.Parameter], groups: Iterable[GroupPlan], kept: Collection[str]) -> None:
    """Where lr_mult is 0 Caffe computes no gradient, and torch will not either."""
    lr_mults = {member.parameter: group.lr_mult for group in groups for member in group.members}
    for name, lr_mult in lr_mults.items():
        parameter = parameters[name]
        if lr_mult == 0 and name not in kept:
            if parameter.requires_grad:
                _frozen_here[id(parameter)] = weakref.ref(parameter)
            parameter.requires_grad_(False)
        elif (known := _frozen_here.pop(id(parameter), None)) is not None and known() is parameter:
            parameter.requires_grad_(True)


Hook = Callable[[torch.optim.Optimizer, Any, Any], Any]


def _before_step(model: nn.Module, parameters: Mapping[str, nn.Parameter], fused_on: Collection[str] | None) -> Hook:
    """What the library looks after before each step; fused kernels are chosen on the devices ``fused_on``."""
    watched = weakref.ref(model)
    checked = False
    seen: dict[int, Any] = {}  # by group, what was found before the last step
    choice: dict[int, bool] = {}

    def before_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        nonlocal checked
        if not checked:
            held = {id(p) for group in optimizer.param_groups for p in group["params"]}
            ours = {name: p for name, p in parameters.items() if id(p) in held}
            _check_parameters(watched(), ours)
            checked = bool(ours)  # a copy of the optimizer has none of them
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            return look(optimizer)

        def closure_then_look() -> Any:  # as Lightning steps: only the closure makes the gradients
            loss = closure()
            look(optimizer)
            return loss

        return args[:1], kwargs | {"closure": closure_then_look}

    def look(optimizer: torch.optim.Optimizer) -> None:
        for i, group in enumerate(optimizer.param_groups):
            if _layout(group) != seen.get(i):
                _complete_gradients(group)
                align_state(optimizer)
                choice[i] = _can_be_fused([p for p in group["params"] if p.grad is not None], fused_on or ())
                seen[i] = _layout(group)
            if fused_on is not None:
                group["fused"] = choice[i]

    return before_step


def _layout(group: Mapping[str, Any]) -> list[Any]:
    """How parameters and gradients lie: while it is the same, there is nothing to prepare."""
    found = [  # with the type of p: the check of a translation steps plain tensors in place of DTensors
        (type(p), p.requires_grad, p.dtype, p.stride(), (g := p.grad) is None or g.is_sparse or g.stride())
        for p in group["params"]
    ]
    return [group["lr"] != group["lr"], *found]  # NaN


def _forget_fused(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Leave the choice open between steps: a copy of the optimizer has no hook to look before it steps."""
    for group in optimizer.param_groups:
        group["fused"] = None


def _check_parameters(model: nn.Module | None, expected: Mapping[str, nn.Parameter]) -> None:
    """Raise ``ModelError`` where the optimizer holds parameters that the model no longer has."""
    now = {} if model is None else dict(named_tensors(model))
    for name, parameter in expected.items():
        if parameter.is_meta or now.get(name, parameter) is not parameter:
            raise ModelError(
                f"parameter {name!r} was {'on the meta device' if parameter.is_meta else 'another tensor'} when the "
                "optimizer was built, so it would not train",
                hint="give the model its storage and its wrappers first, then translate",
            )


def align_state(optimizer: torch.optim.Optimizer) -> None:
    """Bring each state tensor to the strides, dtype and device of its parameter.

    Fused kernels mix up elements where strides differ, and a model may have been moved by ``model.double()``.
    """
    for p, state in optimizer.state.items():
        kind = (p.stride(), p.dtype, p.device)
        for key, value in state.items():
            if torch.is_tensor(value) and value.ndim and (value.stride(), value.dtype, value.device) != kind:
                if value.shape != p.shape:
                    raise ValueError(f"the {key} of shape {tuple(value.shape)} is not one of {tuple(p.shape)}")
                state[key] = torch.empty_like(p).copy_(value)


def _complete_gradients(group: Mapping[str, Any]) -> None:
    """Give every parameter that learns a dense gradient, so that it decays and moves by its history."""
    frozen = group.get("lr_mult") == 0
    nan = frozen and math.isnan(group["lr"])  # Caffe moves these, too, past the end of poly: 0 * NaN is NaN
    for p in group["params"]:
        if p.grad is None:
            if p.requires_grad or nan:
                p.grad = torch.zeros_like(p)
        elif not p.requires_grad and not frozen:
            p.grad = None
        elif p.grad.is_sparse:
            p.grad = torch.empty_like(p).copy_(p.grad.to_dense())


def _can_be_fused(moved: Sequence[torch.Tensor], devices: Collection[str]) -> bool:
    """Whether torch has a fused kernel for these tensors that does not mix up their elements or skip some."""
    kinds = {(t.device.type, t.dtype) for p in moved for t in (p, p.grad) if t is not None}
    alike = all(p.grad is not None and p.grad.stride() == p.stride() for p in moved)
    dense = all(p.is_contiguous() or p.is_contiguous(memory_format=torch.channels_last) for p in moved)
    sharded = any(hasattr(p, "device_mesh") for p in moved)  # DTensors
    return len(kinds) == 1 and kinds.pop()[0] in devices and alike and dense and not sharded
