"""The graph of a model: its tensors, what learns as a whole, and how that is wired, collected once."""

from __future__ import annotations

import contextlib
import io
import random
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from caffe2torch.binding.forward_pass import Feed, InputShapes, StayOnDevice, candidate_inputs, meta_copy, real_copy
from caffe2torch.binding.fx_wiring import fx_wiring
from caffe2torch.binding.graph import TensorReference, Unit, UnitKind, Wiring, without_units
from caffe2torch.binding.skeleton import SkeletonLayer, skeleton_wiring
from caffe2torch.binding.tracing import REST, trace
from caffe2torch.binding.wrappers import bare, named_modules, named_tensors
from caffe2torch.errors import ModelError
from caffe2torch.recipe import NetRecipe

__all__ = ["ModelGraph", "model_graph"]

_PATIENCE = 30.0  # seconds to go on trying input sizes that do not fit
_REAL_TRIES = 3  # a real run computes: not every size is worth it


@dataclass(frozen=True, slots=True)
class ModelGraph:
    """What binding reads of a model, collected once and without its wrappers.

    Attributes:
        name: The model's class.
        parameters: Every parameter by name: its shape, and whether it requires a gradient.
        units: The modules that hold tensors; those whose tensors are all tied are one.
        wiring: How units feed each other; ``None`` where no way to see it worked.
        traced: Which way worked, or why none did.
        ended: What ended the forward pass early; the wiring is as far as it went then.
    """

    name: str
    parameters: Mapping[str, tuple[tuple[int, ...], bool]]
    units: tuple[Unit, ...]
    wiring: Wiring | None
    traced: str
    ended: str = ""

    @property
    def tensors(self) -> dict[str, TensorReference]:
        """The tensors of all units, by name; as they are used, where that was seen."""
        used = self.wiring.units if self.wiring is not None else ()
        return {str(tensor.key): tensor for unit in (*self.units, *used) for tensor in unit.tensors}

    @property
    def modules(self) -> tuple[str, ...]:
        """What a layer can be bound to: modules, and for a module of several layers the first parameter of each."""
        used = self.wiring.units if self.wiring is not None else ()
        seen = {part for unit in used if unit.tensors for part in unit.parts}
        keys = {tensor.key for unit in used for tensor in unit.tensors}
        whole = [unit for unit in self.units if keys.isdisjoint(tensor.key for tensor in unit.tensors)]
        tied = [unit for unit in self.units if not seen.isdisjoint(unit.parts)]
        return tuple(dict.fromkeys((*(part for unit in (*whole, *tied) for part in unit.parts), *sorted(seen))))


def model_graph(model: nn.Module, recipe: NetRecipe, input_shapes: InputShapes | None = None) -> ModelGraph:
    """Collect what binding reads of ``model``, without changing it.

    Args:
        model: A model, in wrappers or not.
        recipe: Its net, whose input sizes are tried first.
        input_shapes: What the forward pass takes, where neither the net nor common sizes fit.

    Raises:
        ModelError: For a model without parameters, or with some that have no shape yet.
    """
    model = bare(model)
    tensors = dict(named_tensors(model))
    units = tuple(_units(model, tensors))
    wiring, traced, ended = _wiring(model, units, recipe, input_shapes)
    parameters = {
        name: (tuple(tensor.shape), tensor.requires_grad)
        for name, tensor in tensors.items()
        if isinstance(tensor, nn.Parameter)
    }
    return ModelGraph(type(model).__name__, parameters, units, wiring, traced, ended)


# Modules as units: which tensors they hold, and in which role.

_KINDS: tuple[tuple[type | tuple[type, ...], UnitKind], ...] = (
    (_ConvTransposeNd, UnitKind.TRANSPOSED),
    ((_ConvNd, nn.Linear), UnitKind.MAP),
    (_BatchNorm, UnitKind.NORM),
    ((_InstanceNorm, nn.GroupNorm, nn.LayerNorm), UnitKind.SCALE),
    (nn.PReLU, UnitKind.SLOPE),
    ((nn.Embedding, nn.EmbeddingBag), UnitKind.TABLE),
    ((nn.RNNBase, nn.RNNCellBase), UnitKind.RECURRENT),
)

_TORCHS = tuple(one for types, _ in _KINDS for one in (types if isinstance(types, tuple) else (types,)))

_STATISTICS = {"running_mean": "mean", "running_var": "variance"}

_ROLES: dict[UnitKind, dict[str, str]] = {
    UnitKind.NORM: {"weight": "scale", "bias": "shift", "gamma": "scale", "beta": "shift", **_STATISTICS},
    UnitKind.SCALE: {"weight": "scale", "bias": "shift", "gamma": "scale", "beta": "shift", "gain": "scale"},
    UnitKind.SLOPE: {"weight": "slope"},
    UnitKind.RECURRENT: {
        **dict.fromkeys(("weight_ih", "weight_ih_l0"), "input_weight"),
        **dict.fromkeys(("weight_hh", "weight_hh_l0"), "hidden_weight"),
        **dict.fromkeys(("bias_ih", "bias_ih_l0"), "bias"),
        **dict.fromkeys(("bias_hh", "bias_hh_l0"), "second bias"),
    },
}


def _units(model: nn.Module, tensors: Mapping[str, Tensor]) -> list[Unit]:
    """One unit for each module that holds parameters or running statistics itself, in the order of registration."""
    for name, tensor in tensors.items():
        if is_lazy(tensor):
            raise ModelError(
                f"{name} has no shape yet",
                hint="the model has lazy modules: run one forward pass before binding it",
            )
        if name.rpartition(".")[2] == "_flat_param":
            raise ModelError(
                "FSDP has flattened the model's parameters into one",
                hint="wrap it with use_orig_params=True, or bind it before it is wrapped",
            )
    if not any(isinstance(tensor, nn.Parameter) for tensor in tensors.values()):
        raise ModelError(f"{type(model).__name__} has no parameters: there is nothing to bind and nothing to train")
    names = {id(tensor): name for name, tensor in tensors.items()}
    units: dict[tuple[object, ...], Unit] = {}
    for path, module in named_modules(model):
        unit = _unit(path, module, names)
        if unit is not None:
            keys = tuple(tensor.key for tensor in unit.tensors)
            tied = units.get(keys)
            units[keys] = unit if tied is None else replace(tied, parts=tied.parts + unit.parts, remark="")
    return list(units.values())


def _unit(path: str, module: nn.Module, names: dict[int, str]) -> Unit | None:
    tensors = dict(_own_tensors(module))
    if not tensors:
        return None
    kind = _kind(module, tensors)
    roles = module.roles if isinstance(module, SkeletonLayer) else _ROLES.get(kind, {})
    transposed = False if isinstance(module, (*_TORCHS, SkeletonLayer)) else None
    own = tuple(
        TensorReference(
            roles.get(name, name), tuple(tensor.shape), names[id(tensor)], isinstance(tensor, nn.Parameter), transposed
        )
        for name, tensor in tensors.items()
    )
    shape = own[0].shape
    if kind in (UnitKind.NORM, UnitKind.SCALE, UnitKind.SLOPE):
        shape = (prod(tensors[next(iter(tensors))].shape),)
    groups = getattr(module, "groups", 1)
    remark = " (computed from other parameters: remove the parametrization first)" if _computed(module) else ""
    return Unit(path, (path,), kind, shape, own, groups if isinstance(groups, int) else 1, remark)


def _computed(module: nn.Module) -> bool:
    """Whether torch computes the weight, as ``weight_norm`` and ``spectral_norm`` make it do."""
    names = ("weight_g", "weight_orig")
    return hasattr(module, "parametrizations") or any(name in module._parameters for name in names)


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters, and the buffers that hold what Caffe keeps in blobs: statistics, and a frozen norm's scale."""
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield name, parameter
    statistics = "running_mean" in module._buffers or "running_var" in module._buffers
    for name, buffer in module._buffers.items():
        if buffer is not None and (name in _STATISTICS or (statistics and name in ("weight", "bias"))):
            yield name, buffer


def _kind(module: nn.Module, tensors: dict[str, torch.Tensor]) -> UnitKind:
    if isinstance(module, SkeletonLayer):
        return module.kind
    for types, kind in _KINDS:
        if isinstance(module, types):
            return kind
    if "running_mean" in tensors:
        return UnitKind.NORM
    if any(inner._parameters for inner in islice(module.modules(), 1, None)):
        return UnitKind.OTHER  # no layer, but a part of the model with parameters of its own
    sizes = {tensor.numel() for tensor in tensors.values()}
    vectors = all(max(tensor.shape, default=1) == tensor.numel() for tensor in tensors.values())
    if len(tensors) <= 2 and len(sizes) == 1 and vectors:
        return UnitKind.SCALE
    weight = tensors.get("weight")
    return (
        UnitKind.MAP
        if weight is not None and weight.dim() >= 2 and set(tensors) <= {"weight", "bias"}
        else UnitKind.OTHER
    )


# The wiring: traced on the meta device, else symbolically, else by really running the model.


def _wiring(
    model: nn.Module, units: Sequence[Unit], recipe: NetRecipe, input_shapes: InputShapes | None
) -> tuple[Wiring | None, str, str]:
    """How the units feed each other, how that was seen or why it was not, and what ended the pass early.

    One forward pass of a copy on the meta device, which takes no memory and no arithmetic, with the net's own input
    sizes or typical ones. If none goes through: one that really computes, of a copy that shares the weights' memory.
    At last ``torch.fx``, which needs no sizes and shows the wiring alone; else the pass that came furthest.
    """
    carried = skeleton_wiring(model)
    if carried is not None:
        return carried, "the skeleton itself, whose layers carry their net's", ""
    device = next(model.parameters()).device
    settled = {path for path, module in named_modules(model) if model.training and not module.training}
    reasons: list[str] = []
    early: list[tuple[Wiring, str, Exception]] = []  # the last are of a real pass, whose error explains most
    with _undisturbed():
        feeds = candidate_inputs(model, recipe, input_shapes)
        real_feeds = _real(device, candidate_inputs(model, recipe, input_shapes))
        ways: list[tuple[str, Callable[[], tuple[Wiring, str]]]] = [
            ("one forward pass on the meta device", lambda: _run(meta_copy(model), units, feeds, early, settled)),
            ("one real forward pass", lambda: _run(real_copy(model), units, real_feeds, early, settled, _REAL_TRIES)),
            ("torch.fx", lambda: (fx_wiring(_in_mode(meta_copy(model), True), units), "")),
        ]
        for way, attempt in ways if device.type != "meta" else ways[::2]:
            try:
                wiring, given = attempt()
            except ModelError:
                raise
            except Exception as error:  # whatever a user's forward pass raises
                reasons.append(f"{way} ({_brief(error)})")
            else:
                instead = f" instead of {'; '.join(reasons)}" if reasons else ""
                if wiring.computation is None and early:  # torch.fx shows none
                    wiring = replace(wiring, computation=_furthest(early)[0].computation)
                return wiring, f"{way}{given}{instead}", ""
    if not early or len(_furthest(early[::-1])[0].units) < 2:
        return None, "; ".join(reasons), ""
    wiring, given, raised = _furthest(early[::-1])
    reached = {tensor.key for unit in wiring.units for tensor in unit.tensors}
    if all(any(tensor.key in reached for tensor in unit.tensors) for unit in units):
        rest = [number for number, unit in enumerate(wiring.units) if unit.name == REST]
        whole = replace(without_units(wiring, rest), computation=wiring.computation)
        return whole, f"a forward pass{given} that ended after every layer ({_brief(raised)})", ""
    return wiring, f"a forward pass{given} that ended early", _brief(raised)


def _furthest(early: Sequence[tuple[Wiring, str, Exception]]) -> tuple[Wiring, str, Exception]:
    return max(early, key=lambda one: len(one[0].units))


def _run(
    runnable: nn.Module,
    units: Sequence[Unit],
    feeds: Iterator[Feed],
    early: list[tuple[Wiring, str, Exception]],
    settled: Collection[str],
    tries: int = 1000,
) -> tuple[Wiring, str]:
    """The wiring from the first input that goes through; raises what the first one raised if none does.

    How far each of the others went is added to ``early``. Modules at the paths ``settled`` are not put into training:
    their user has put them into ``eval()``.
    """
    start = time.monotonic()
    first: Exception | None = None
    device = next(runnable.parameters()).device
    for arguments, named in islice(feeds, tries):
        shapes = f" with {', '.join(str(tuple(tensor.shape)) for tensor in (*arguments, *named.values()))}"
        for training in (True, False):  # some models want targets to train, a few cannot run without training
            _in_mode(runnable, training)
            for path, module in named_modules(runnable) if settled else ():
                module.training = module.training and path not in settled
            wiring, error = trace(runnable, units, arguments, named)
            if error is not None and any(
                word in str(error).lower() for word in ("cuda", "nvidia", "gpu", "meta", "device")
            ):
                with StayOnDevice(device):
                    wiring, error = trace(runnable, units, arguments, named)
            if error is None:
                return wiring, shapes
            if wiring.computation is not None:
                wiring.computation.ended = _brief(error)
            first = first or error
            early.append((wiring, shapes, error))
        if time.monotonic() - start > _PATIENCE:
            break
    raise first or ValueError("no input could be made for it")


def _in_mode(model: nn.Module, training: bool) -> nn.Module:
    model.train(training)  # what it returns is left alone: old code overrides it without a return value
    return model


def _real(device: torch.device, feeds: Iterator[Feed]) -> Iterator[Feed]:
    """The same inputs with numbers in them, on the model's device."""
    for arguments, named in feeds:
        yield (
            [torch.zeros_like(tensor, device=device) for tensor in arguments],
            {name: torch.zeros_like(tensor, device=device) for name, tensor in named.items()},
        )


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Neither random numbers, nor warnings, nor what a forward pass prints get out."""
    state = random.getstate()
    try:
        with (
            torch.random.fork_rng(),
            warnings.catch_warnings(action="ignore"),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            yield
    finally:
        random.setstate(state)


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}{'...' if len(text) > 160 else ''}"
