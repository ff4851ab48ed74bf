"""A copy of an optimizer: the same code and settings on small probe tensors, so that the real one is left untouched.

torch's own ``copy.deepcopy(optimizer)`` will not do: ``Optimizer.__getstate__`` drops what a subclass keeps beside its
groups, every parameter would be copied whole, and a scheduler leaves a ``step`` in the instance that still steps the
original. So the copy's attributes are copied here, with every parameter replaced by its probe tensor on the way.
"""

from __future__ import annotations

import copy
import inspect
import operator
import types
from collections import ChainMap, OrderedDict, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

__all__ = [
    "OptimizerCopy",
    "bare_optimizer",
    "bare_scheduler",
    "copy_optimizer",
    "gradient_hooks",
    "group_names",
    "group_places",
    "metric_of",
    "outside_lookup",
    "runs_foreign_code",
    "step",
    "together",
    "user_hooks",
    "without_capturable",
]

STEP_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
"""Where torch keeps an optimizer's step hooks: they are bound to what the user trains, and would change it."""

GRADIENT_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
"""Where torch keeps those of a parameter, which has no public name for them either."""

# Wrappers whose inner object does the work, by the package that defines them; any other one may do work of its own.
_WRAPPERS = ("accelerate", "lightning", "lightning_fabric", "pytorch_lightning")


class OptimizerCopy:
    """An optimizer, and the scheduler that drives it if there is one, on stand-ins.

    ``probe_tensors`` maps ``id`` of each original tensor to its probe tensor. ``calls`` is how often ``step()`` is
    called for one update: more than once where it collects gradients itself.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, scheduler: Any, probe_tensors: dict[int, torch.Tensor]
    ) -> None:
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.probe_tensors = probe_tensors
        self.calls = 1


def copy_optimizer(
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    probe_tensors: Mapping[int, torch.Tensor],
    *,
    started: bool = False,
) -> OptimizerCopy:
    """Copy ``optimizer`` and ``scheduler`` onto ``probe_tensors``, with an empty history.

    Where the optimizer made its history when it was built (``torch.optim.Adagrad``), ``started`` keeps that: constants
    as they are, anything that has already moved as zeros. Whatever in the optimizer cannot be copied raises as
    ``copy.deepcopy`` does.
    """
    memo: dict[int, Any] = dict(probe_tensors)
    for inner in _inner_optimizers(optimizer):
        memo[id(inner.state)] = _history(inner, memo) if started else defaultdict(dict)
    optimizer_copy = _copy(optimizer, memo)
    follower = None if scheduler is None else _copy(scheduler, memo)
    _carry_ids([optimizer_copy, follower], {key: id(tensor) for key, tensor in probe_tensors.items()}, set())
    return OptimizerCopy(optimizer_copy, follower, dict(probe_tensors))


def step(optimizer: torch.optim.Optimizer) -> None:
    """One step of an optimizer copy, without torch's own decorators around it.

    They run hooks, profile, and switch gradients off; and the first call of one imports torch's compiler, which takes
    longer than the whole audit of a small net.
    """
    own = optimizer.__dict__.get("step")
    if own is not None:
        own()
        return
    function: Any = type(optimizer).step
    bare = function
    while hasattr(bare, "__wrapped__") and bare.__globals__.get("__name__", "").partition(".")[0] == "torch":
        bare = bare.__wrapped__
    if bare is function:
        optimizer.step()
        return
    with torch.no_grad():
        bare(optimizer)


def without_capturable(carrier: OptimizerCopy) -> bool:
    """Switch ``capturable`` off where it raises, on a CPU, and say whether it was on: a step makes the same without it.

    >>> weight = torch.zeros(1)
    >>> without_capturable(copy_optimizer(torch.optim.Adam([weight], capturable=True), None, {id(weight): weight}))
    True
    """
    on = [group for group in carrier.optimizer.param_groups if group.get("capturable")]
    on = [group for group in on if all(p.device.type == "cpu" for p in group["params"])]
    for group in on:
        group["capturable"] = False
    return bool(on)


def user_hooks(optimizer: torch.optim.Optimizer) -> int:
    """How many step hooks of the user's an optimizer has."""
    held = [getattr(one, name, {}) for one in _inner_optimizers(optimizer) for name in STEP_HOOKS]
    return sum(map(_of_user, chain.from_iterable(hooks.values() for hooks in held)))


def gradient_hooks(parameter: torch.Tensor) -> int:
    """How many hooks of the user's a parameter's gradient meets.

    >>> gradient_hooks(torch.nn.Parameter(torch.zeros(1)))
    0
    """
    held = [getattr(parameter, name, None) or {} for name in GRADIENT_HOOKS]
    return sum(map(_of_user, chain.from_iterable(hooks.values() for hooks in held)))


def _of_user(hook: object) -> bool:
    return not (getattr(hook, "__module__", None) or "").startswith(("caffe2torch.", "torch."))


def runs_foreign_code(*things: Any) -> bool:
    """Whether an optimizer or scheduler has a class of its user's, whose code may reach the model."""
    return any(
        cls.__module__.partition(".")[0] not in ("torch", "caffe2torch", "builtins", "abc", "typing")
        for thing in things
        if thing is not None
        for one in (thing, *vars(thing).values())
        if one is thing or isinstance(one, torch.optim.Optimizer | LRScheduler)
        for cls in type(one).__mro__
    )


def group_names(optimizer: Any) -> tuple[str, ...]:
    """The ``name`` of each param group, empty where it has none.

    >>> group_names(torch.optim.SGD([{"params": [torch.ones(1)], "name": "head"}, {"params": [torch.zeros(1)]}]))
    ('head', '')
    """
    names = (group.get("name") for group in bare_optimizer(optimizer).param_groups)
    return tuple(name if isinstance(name, str) else "" for name in names)


def group_places(optimizer: Any) -> tuple[str, ...]:
    """What to call each param group; of several optimizers, which one it belongs to.

    >>> one, other = (torch.optim.SGD([torch.ones(1)]) for _ in range(2))
    >>> group_places(one), group_places(together([one, other], [None, None])[0])
    (('group 0',), ('group 0 of optimizer 1', 'group 0 of optimizer 2'))
    """
    if not isinstance(optimizer, _Optimizers):
        return tuple(f"group {index}" for index in range(len(optimizer.param_groups)))
    return tuple(
        f"group {index} of optimizer {number}"
        for number, one in enumerate(vars(optimizer).values(), start=1)
        for index in range(len(one.param_groups))
    )


def metric_of(scheduler: Any) -> str:
    """What a scheduler's ``step`` has to be given, as ``ReduceLROnPlateau``'s; empty where it can do without.

    >>> metric_of(torch.optim.lr_scheduler.ReduceLROnPlateau(torch.optim.SGD([torch.ones(1)])))
    'ReduceLROnPlateau.step(metrics)'
    """
    own = [one for name, one in vars(scheduler).items() if name.startswith("scheduler_")]
    for one in own if isinstance(scheduler, _Schedulers) else [scheduler]:
        with suppress(TypeError, ValueError):  # what has no signature, or is no scheduler
            parameters = inspect.signature(one.step).parameters.values()
            needed = [
                p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
            ]
            if needed:
                return f"{type(one).__name__}.step({', '.join(needed)})"
    return ""


def bare_optimizer(optimizer: Any) -> Any:
    """The torch optimizer inside Accelerate's or Lightning's wrapper; any other object as it is."""
    while _is_wrapper(optimizer) and isinstance(getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = optimizer.optimizer
    return optimizer


def bare_scheduler(scheduler: Any) -> Any:
    """The scheduler inside Accelerate's wrapper; any other object as it is."""
    while _is_wrapper(scheduler) and getattr(scheduler, "scheduler", None) is not None:
        scheduler = scheduler.scheduler
    return scheduler


class _Optimizers:
    """Several optimizers of one model, which step one after the other."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        for number, optimizer in enumerate(optimizers):
            setattr(self, f"optimizer_{number}", optimizer)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all."""
        return [group for one in vars(self).values() for group in one.param_groups]

    @property
    def state(self) -> Mapping[Any, Any]:
        """The history of all."""
        return ChainMap(*(one.state for one in vars(self).values()))

    def step(self) -> None:
        """Step each."""
        for one in vars(self).values():
            step(one)

    def zero_grad(self) -> None:
        """Clear the gradients of each."""
        for one in vars(self).values():
            one.zero_grad()


class _Schedulers:
    """Their schedulers, as far as they have one, which step one after the other."""

    def __init__(self, optimizer: _Optimizers, schedulers: Sequence[Any]) -> None:
        self.optimizer = optimizer
        self.last_epoch = max(max(int(getattr(one, "last_epoch", 0)), 0) for one in schedulers)
        for number, scheduler in enumerate(schedulers):
            setattr(self, f"scheduler_{number}", scheduler)

    def step(self) -> None:
        """Step each."""
        for name, one in vars(self).items():
            if name.startswith("scheduler_"):
                one.step()


def together(optimizers: Sequence[Any], schedulers: Sequence[Any]) -> tuple[Any, Any]:
    """Several optimizers and their schedulers, ``None`` for one without, as one optimizer and one scheduler or none."""
    joined = _Optimizers([bare_optimizer(one) for one in optimizers])
    given = [bare_scheduler(one) for one in schedulers if one is not None]
    return joined, _Schedulers(joined, given) if given else None


def _is_wrapper(thing: object) -> bool:
    return any(cls.__module__.partition(".")[0] in _WRAPPERS for cls in type(thing).__mro__)


def _inner_optimizers(optimizer: torch.optim.Optimizer) -> Iterable[torch.optim.Optimizer]:
    """The optimizer and those that it holds as attributes, as Lookahead does."""
    if isinstance(optimizer, torch.optim.Optimizer):
        yield optimizer
    for value in vars(optimizer).values():
        if isinstance(value, torch.optim.Optimizer):
            yield from _inner_optimizers(value)


def _copy(thing: Any, memo: dict[int, Any]) -> Any:
    """A copy of an optimizer or scheduler, attribute by attribute, with ``step`` the class's own and without hooks."""
    optimizer_copy = object.__new__(type(thing))
    memo[id(thing)] = optimizer_copy
    for name, value in vars(thing).items():
        if name in STEP_HOOKS:
            optimizer_copy.__dict__[name] = OrderedDict()
        elif name == "step" and isinstance(value, types.FunctionType):
            _transplant_step(thing, optimizer_copy, value)
        elif isinstance(value, torch.optim.Optimizer | LRScheduler) and id(value) not in memo:
            optimizer_copy.__dict__[name] = _copy(value, memo)
        else:
            optimizer_copy.__dict__[name] = copy.deepcopy(value, memo)
    return optimizer_copy


def _carry_ids(thing: Any, ids: Mapping[int, int], seen: set[int]) -> Any:
    """A copied ``thing`` in which every ``id`` of a parameter, as of ``{id(p): 2.0}``, is that of its copy.

    What can be changed is changed where it is, as others may hold it as well.
    """
    if type(thing) is int:
        return ids.get(thing, thing)
    if isinstance(thing, tuple | frozenset):
        items = [_carry_ids(item, ids, seen) for item in thing]
        if all(map(operator.is_, items, thing)):
            return thing
        return type(thing)(*items) if hasattr(thing, "_fields") else type(thing)(items)
    if id(thing) in seen:
        return thing
    seen.add(id(thing))
    if isinstance(thing, dict):
        pairs = [(_carry_ids(key, ids, seen), _carry_ids(value, ids, seen)) for key, value in thing.items()]
        if not all(a is key and b is value for (a, b), (key, value) in zip(pairs, thing.items(), strict=True)):
            thing.clear()
            thing.update(pairs)
    elif isinstance(thing, list):
        thing[:] = [_carry_ids(item, ids, seen) for item in thing]
    elif isinstance(thing, set):
        if not ids.keys().isdisjoint(item for item in thing if type(item) is int):
            items = [_carry_ids(item, ids, seen) for item in thing]
            thing.clear()
            thing.update(items)
    elif _is_copied_whole(thing):
        for name, value in vars(thing).items():
            vars(thing)[name] = _carry_ids(value, ids, seen)
    return thing


def _is_copied_whole(thing: Any) -> bool:
    """Whether ``copy.deepcopy`` makes a new object with new attributes of it; a module has no ``id`` of parameters."""
    cls: Any = type(thing)
    default = cls.__reduce_ex__ is object.__reduce_ex__ and cls.__reduce__ is object.__reduce__
    atomic = isinstance(thing, type | types.FunctionType | types.ModuleType | torch.Tensor | torch.nn.Module)
    return default and not atomic and hasattr(thing, "__dict__") and not hasattr(cls, "__deepcopy__")


def outside_lookup(optimizer: torch.optim.Optimizer) -> str:
    """The variable outside the optimizer in which code of its class finds parameters, or their ``id``, if any does.

    A copy of the optimizer steps copies of the parameters, which are not found there.
    """
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    seen: set[int] = set()
    for inner in _inner_optimizers(optimizer):
        met = {"__init__", "__dict__", "__weakref__"}
        own = [value for value in vars(inner).values() if isinstance(value, types.FunctionType)]
        for cls in type(inner).__mro__:
            if cls.__module__.partition(".")[0] not in ("torch", "caffe2torch", "builtins", "typing"):
                members = {name: value for name, value in vars(cls).items() if name not in met}
                met |= members.keys() - {"step"}  # of other methods, those that the class overrides are hardly called
                found = next((name for name, value in members.items() if _holds(value, known)), "")
                if found:
                    return f"{cls.__name__}.{found}"
                own += [value for value in members.values() if isinstance(value, types.FunctionType)]
        for function in own:
            if found := _looked_up(function, known, seen):
                return found
    return ""


def _looked_up(function: types.FunctionType, known: Collection[int], seen: set[int]) -> str:
    """The variable with parameters that a function, or one that it calls, reads from around it."""
    function = inspect.unwrap(function)
    if id(function) in seen or not isinstance(function, types.FunctionType):
        return ""
    seen.add(id(function))
    if (function.__module__ or "").partition(".")[0] in ("torch", "caffe2torch"):
        return ""
    try:
        closure = inspect.getclosurevars(function)
    except ValueError:  # of a cell that is empty
        return ""
    around = {**closure.globals, **closure.nonlocals}
    for name, value in around.items():
        if _holds(value, known):
            return name
    called = (value for value in around.values() if isinstance(value, types.FunctionType))
    return next(filter(None, (_looked_up(value, known, seen) for value in called)), "")


def _holds(thing: Any, known: Collection[int], depth: int = 2) -> bool:
    """Whether a container has a parameter or the ``id`` of one, or holds one that has."""
    if not depth or not isinstance(thing, dict | list | tuple | set | frozenset):
        return False
    if any((item if type(item) is int else id(item)) in known for item in thing):
        return True
    return any(_holds(item, known, depth - 1) for item in (thing.values() if isinstance(thing, dict) else thing))


def _transplant_step(thing: Any, optimizer_copy: Any, step: types.FunctionType) -> None:
    """Give the copy the ``step`` under what was put into the instance: a scheduler's patch is bound to the original."""
    inner: Any = step
    while hasattr(inner, "_wrapped_by_lr_sched") and hasattr(inner, "__wrapped__"):
        inner = inner.__wrapped__
    if (inner.__module__ or "").partition(".")[0] in _WRAPPERS:
        return
    if inner is step:
        raise TypeError(f"{type(thing).__name__}.step was replaced by a function that is bound to this very object")
    if inner is not getattr(type(thing).step, "__func__", type(thing).step):
        optimizer_copy.__dict__["step"] = types.MethodType(inner, optimizer_copy)


def _history(optimizer: torch.optim.Optimizer, memo: Mapping[int, Any]) -> defaultdict[Any, Any]:
    """The history that an optimizer was built with, on stand-ins."""
    history: defaultdict[Any, Any] = defaultdict(dict)
    for parameter, state in optimizer.state.items():
        probe_tensor = memo.get(id(parameter))
        if probe_tensor is None:
            continue
        history[probe_tensor] = {name: _reset(value, parameter, probe_tensor) for name, value in state.items()}
    return history


def _reset(value: Any, parameter: torch.Tensor, probe_tensor: torch.Tensor) -> Any:
    """One entry of a history as it was before the first step."""
    if not isinstance(value, torch.Tensor):
        return 0 if isinstance(value, int) and not isinstance(value, bool) else copy.deepcopy(value)
    if value.shape != parameter.shape or value.dim() == 0:
        return torch.zeros_like(value)
    first = value.reshape(-1)[:1]
    constant = bool((value == first).all())
    return torch.full_like(probe_tensor.detach(), first.item() if constant else 0.0)
