"""A recipe's net as a torch module that computes what Caffe computes, layer by layer and blob by blob."""

from __future__ import annotations

import keyword
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from caffe2torch.binding.plan import Binding, BoundBlob, Evidence, Kind
from caffe2torch.errors import Caffe2TorchError, NetError, UnsupportedError
from caffe2torch.models import functions
from caffe2torch.models.builders import Spec, blob_shapes, spec_of
from caffe2torch.models.losses import LOSSES
from caffe2torch.models.program import Program, Trace, overwriting, program, trace
from caffe2torch.net.build import with_inputs
from caffe2torch.net.data_tops import is_input
from caffe2torch.net.loss_settings import is_loss, loss_weights
from caffe2torch.net.shape_arithmetic import MisfitError
from caffe2torch.reading import read_phase
from caffe2torch.recipe import Layer, LearnableBlob, NetRecipe, Shape
from caffe2torch.snapshot.fillers import initialize
from caffe2torch.wording import shape_text

__all__ = ["CaffeNet", "LayerFactory", "build_model", "identifier"]

LayerFactory = Callable[[Layer], nn.Module]
"""Makes the module of a layer; it is called with the layer's bottoms and gives its tops."""

_ATTRIBUTES = {
    "scale": "weight",
    "slope": "weight",
    "shift": "bias",
    "mean": "running_mean",
    "variance": "running_var",
}
"""Roles of blobs that a module holds under another name."""


class CaffeNet(nn.Module):
    """A Caffe net as ``build_model`` makes it: one submodule for each layer, under the layer's own name.

    ``train()`` computes the net of phase TRAIN, ``eval()`` that of phase TEST. ``layer_names`` maps a submodule to its
    layer where torch or Python need another name; ``missing`` lists the layers that are not known, with the reason.
    """

    def __init__(self, recipe: NetRecipe, phases: Mapping[str, _Phase], names: Mapping[str, str]) -> None:
        super().__init__()
        self.recipe = recipe
        self.layer_names = dict(names)
        self.missing: dict[str, str] = {}
        self._phases = dict(phases)
        self._bound: dict[int, str] = {}
        self._specs: dict[str, Spec] = {}

    def forward(self, *inputs: Tensor, **named: Any) -> Tensor | dict[str, Tensor]:
        """What the net computes before its losses: a tensor, or a dictionary by blob where there are several.

        Args:
            inputs: The input blobs that this needs (images, but no labels), in the net's order.
            named: Input blobs by name. ``loss=True`` gives the whole loss of all inputs instead, as ``loss()`` does,
                for wrappers that know ``forward`` alone (DDP, FSDP).
        """
        if named.pop("loss", False) is True:
            return self.loss(*inputs, **named)
        phase = self._phase()
        found = self._run(phase.forward, "the net", inputs, named)
        if len(found) == 1:
            return found[0]
        return {phase.trace.names[value]: one for value, one in zip(phase.forward.results, found, strict=True)}

    def loss(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        """The net's whole loss: every loss times its weight (``net.cpp``, ``ForwardFromTo``). A scalar.

        Args:
            inputs: The input blobs, labels included, in the net's order.
            named: Input blobs by name.
        """
        phase = self._phase()
        if not phase.trace.losses:
            raise Caffe2TorchError(f"the net has no loss in phase {phase.name}")
        found = self._run(phase.loss, "its loss", inputs, named)
        return _total(found, [weight for _, weight in phase.trace.losses])

    def blobs(self, *inputs: Tensor, **named: Tensor) -> dict[str, Tensor]:
        """Every blob by name after one forward pass, layers in place applied, as pycaffe's ``net.blobs``."""
        phase = self._phase()
        found = self._run(phase.blobs, "the net", inputs, named)
        return dict(zip(phase.trace.final, found, strict=True))

    def total_loss(self, blobs: Mapping[str, Tensor]) -> Tensor:
        """The whole loss of what ``blobs`` gave."""
        phase = self._phase()
        names = phase.trace.names
        return _total([blobs[names[value]] for value, _ in phase.trace.losses], [w for _, w in phase.trace.losses])

    @property
    def input_names(self) -> tuple[str, ...]:
        """The input blobs of this phase, in the net's order."""
        return tuple(name for name, _ in self._phase().trace.inputs)

    @property
    def binding(self) -> Binding | None:
        """Which parameter each blob is, known by construction; ``None`` where a layer's own module hides it."""
        held = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        bound = []
        for number, blob in enumerate(self.recipe.blobs):
            name = self._bound.get(number)
            if name is None or name not in held:
                return None
            kind = Kind.PARAMETER if isinstance(held[name], nn.Parameter) else Kind.BUFFER
            bound.append(BoundBlob(blob, kind, name, Evidence.BUILT))
        names = {one.name for one in bound}
        known = all(name in names for name, parameter in self.named_parameters() if parameter.requires_grad)
        return Binding(type(self).__name__, tuple(bound)) if known else None

    def __prepare_scriptable__(self) -> CaffeNet:
        raise UnsupportedError(
            "a built net is no TorchScript", hint="use torch.export, or the file of caffe2torch model"
        )

    def _phase(self) -> _Phase:
        wanted = "TRAIN" if self.training else "TEST"
        return self._phases.get(wanted) or next(iter(self._phases.values()))

    def _run(self, steps: Program, what: str, inputs: Sequence[Tensor], named: Mapping[str, Tensor]) -> list[Tensor]:
        values = _feeds(steps, what, inputs, named)
        for step in steps.steps:
            bottoms = [values[number] for number in step.inputs]
            for position in step.detached:
                bottoms[position] = bottoms[position].detach()
            if step.scale is not None:
                scale = getattr(self, step.scale)
                bottoms += [scale.weight, scale.bias]
            try:
                tops = getattr(self, step.module)(*bottoms)
            except ValueError as error:
                raise NetError(
                    f"layer {step.layer.name!r} ({step.layer.type}) cannot take what it is given",
                    where=step.layer.where,
                    found=str(error),
                ) from error
            values.update(zip(step.outputs, (tops,) if isinstance(tops, Tensor) else tops, strict=True))
            for number in step.frees:
                del values[number]
        return [values[number] for number in steps.results]


def _feeds(steps: Program, what: str, inputs: Sequence[Tensor], named: Mapping[str, Tensor]) -> dict[int, Tensor]:
    names = [name for name, _ in steps.inputs]
    given = dict(zip(names, inputs, strict=False))
    if len(inputs) > len(names) or set(given) & set(named) or {*given, *named} != set(names):
        raise Caffe2TorchError(
            f"{what} was given other inputs than it takes",
            found=", ".join([*(f"one of shape {tuple(one.shape)}" for one in inputs), *named]) or "none",
            expected=", ".join(names) or "none",
        )
    given.update(named)
    return {number: given[name] for name, number in steps.inputs}


def _total(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    terms = [one.sum() if weight == 1 else one.sum() * weight for one, weight in zip(values, weights, strict=True)]
    return reduce(torch.add, terms)


@dataclass(frozen=True, slots=True)
class _Phase:
    """A phase of the net, and the three programs that a model runs."""

    name: str
    trace: Trace
    forward: Program
    loss: Program
    blobs: Program


class MissingLayer(nn.Module):
    """A layer that is not known: it holds its blobs, and its forward pass says what is missing."""

    def __init__(self, layer: str, layer_type: str, reason: str, shapes: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.layer, self.layer_type, self.reason = layer, layer_type, reason
        for number, shape in enumerate(shapes):
            self.register_parameter(f"blob_{number}", nn.Parameter(torch.zeros(tuple(shape))))

    def forward(self, *_: Tensor) -> Tensor:
        """Always an error."""
        raise UnsupportedError(
            f"layer {self.layer!r} ({self.layer_type}) cannot be computed: {self.reason}",
            hint=f"build_model(recipe, layers={{{self.layer_type!r}: factory}}), "
            "where factory(layer) gives a module that takes the layer's bottoms and gives its tops",
        )


def build_model(
    recipe: NetRecipe,
    *,
    inputs: Mapping[str, Sequence[int]] | None = None,
    layers: Mapping[str, LayerFactory] | None = None,
    generator: torch.Generator | None = None,
) -> CaffeNet:
    """The net of a recipe as a module, filled as its fillers say; blobs whose lr_mult is 0 are frozen.

    Phase TEST is read from the same files where their layers differ by phase. Blobs that share a name share a
    parameter. Sizes that neither the file states nor ``inputs`` gives stand as 1 (``unstated_size`` names them). Under
    ``torch.device("meta")`` the model takes no memory and is not filled.

    Args:
        recipe: What ``read_recipe`` gives.
        inputs: Shapes of input blobs that the file does not state.
        layers: Factories of modules for layers that are not known, or that shall be others: by type, or by the
            layer's name. ``factory(layer)`` gives a module that takes the layer's bottoms and gives its tops.
        generator: On the CPU; makes the fillers repeatable.

    Returns:
        The model. Layers that are not known are listed in one warning and in ``missing``; whatever does not need them
        runs.

    Raises:
        NetError: ``inputs`` that the net contradicts, a filler that Caffe refuses.
        UnsupportedError: a filler that BVLC's Caffe does not know.

    >>> import pathlib, tempfile, torch, caffe2torch
    >>> net = pathlib.Path(tempfile.mkdtemp()) / "net.prototxt"
    >>> _ = net.write_text('''input: "data" input_shape { dim: 2 dim: 3 }  input: "label" input_shape { dim: 2 }
    ...     layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 5 } }
    ...     layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }''')
    >>> model = caffe2torch.build_model(caffe2torch.read_recipe(net))
    >>> data, label = torch.ones(2, 3), torch.tensor([0, 4])
    >>> model(data).shape, round(model.loss(data, label).item(), 4), list(model.blobs(data, label))
    (torch.Size([2, 5]), 1.6094, ['data', 'label', 'ip', 'loss'])
    """
    if inputs:
        recipe = with_inputs(recipe, inputs)
    builder = _Builder(recipe, layers or {})
    model = builder.model()
    if model.missing:
        text = "; ".join(f"{layer}: {reason}" for layer, reason in model.missing.items())
        warnings.warn(f"layers that cannot be computed, though their blobs are held: {text}", stacklevel=2)
    binding = model.binding
    on_meta = any(tensor.device.type == "meta" for tensor in model.parameters())
    if binding is not None and not on_meta:
        initialize(model, recipe, binding, generator)
    return model


def unstated_size(recipe: NetRecipe) -> NetError | None:
    """The error for who wants the net itself, where a size of its parameters follows from what no file states."""
    blob = next((blob for blob in recipe.blobs if blob.shape is None or None in blob.shape), None)
    if blob is None or not recipe.layers:
        return None
    names = _unstated_inputs(recipe, blob.layer) or ["data"]
    return NetError(
        f"{blob.name!r}, {shape_text(blob.shape)}, follows from the size of {' and '.join(map(repr, names))}, which no "
        "file states",
        where=blob.where,
        hint=f"say it: {' '.join(f'--input {name}=N,C,H,W' for name in names)}, or read_recipe(..., inputs={{"
        f"{', '.join(f'{name!r}: (N, C, H, W)' for name in names)}}})",
    )


def _unstated_inputs(recipe: NetRecipe, wanted: str) -> list[str]:
    """The blobs from outside, of a size that is not stated, from which the blobs of a layer follow."""
    shapes = {top: shape for layer in recipe.layers for top, shape in zip(layer.tops, layer.top_shapes, strict=True)}
    origins: dict[str, dict[str, None]] = {}
    for layer in recipe.layers:
        bottoms = layer.bottoms[:1] if layer.blobs else layer.bottoms  # labels and indicators come second
        found = {name: None for bottom in bottoms for name in origins.setdefault(bottom, {bottom: None})}
        if layer.name == wanted:
            return [name for name in found if (shape := shapes.get(name)) is None or None in shape]
        origins |= {top: found if layer.bottoms else {top: None} for top in layer.tops}
    return []


class _Builder:
    """Makes the modules of both phases; layers of one name and one make are one module in both."""

    def __init__(self, recipe: NetRecipe, factories: Mapping[str, LayerFactory]) -> None:
        self.recipe = recipe
        self.factories = factories
        self.modules: dict[str, nn.Module] = {}
        self.makes: dict[str, object] = {}  # what a module was made from
        self.names: dict[str, str] = {}  # module -> layer
        self.missing: dict[str, str] = {}
        self.tensors: dict[int, Tensor] = {}  # number of a blob -> its parameter or buffer
        self.bound: dict[int, str] = {}
        self.own: dict[tuple[str, int], Tensor] = {}  # the same by layer and index
        self.seen: dict[str, Shape | None] = {}  # shapes of the first phase's blobs, which the other may not state

    def model(self) -> CaffeNet:
        other = "TEST" if self.recipe.phase == "TRAIN" else "TRAIN"
        phases = {self.recipe.phase: self._add(self.recipe, self.recipe.phase)}
        other_net = read_phase(self.recipe, other)
        phases[other] = (
            phases[self.recipe.phase] if other_net is None else self._add(_sized(other_net, self.recipe), other)
        )
        for name in overwriting(phases["TRAIN"].trace) & overwriting(phases["TEST"].trace):
            if self.makes[name] == Spec(nn.ReLU):
                self.makes[name] = Spec(nn.ReLU, (), {"inplace": True})
                self.modules[name] = nn.ReLU(inplace=True)
        model = CaffeNet(self.recipe, phases, self.names)
        for name, module in self.modules.items():
            model.add_module(name, module)
        model.missing.update(self.missing)
        model._bound.update(self.bound)
        model._specs.update((name, make) for name, make in self.makes.items() if isinstance(make, Spec))
        return model

    def _add(self, recipe: NetRecipe, phase: str) -> _Phase:
        shapes: dict[str, Shape | None] = {}
        steps: list[tuple[Layer, str | None, tuple[float, ...]]] = []
        taken: set[str] = set()
        for layer in recipe.layers:
            if is_input(layer) and not self._factory(layer):
                steps.append((layer, None, ()))
            else:
                bottoms = tuple(shapes.get(name) or self.seen.get(name) for name in layer.bottoms)
                steps.append((layer, self._module(recipe, phase, layer, bottoms, taken), loss_weights(layer)))
            shapes.update(zip(layer.tops, layer.top_shapes, strict=True))
        self.seen = self.seen or shapes
        found = trace(steps)
        return _Phase(
            phase,
            found,
            program(found, found.predictions),
            program(found, [value for value, _ in found.losses]),
            program(found, found.final.values(), keep=True),
        )

    def _factory(self, layer: Layer) -> LayerFactory | None:
        return self.factories.get(layer.name) or self.factories.get(layer.type)

    def _module(
        self, recipe: NetRecipe, phase: str, layer: Layer, bottoms: tuple[Shape | None, ...], taken: set[str]
    ) -> str:
        """The name of the module of a layer, which is made unless the other phase has the same."""
        make = self._make(recipe, layer, bottoms)
        name = identifier(layer.name, taken)
        if name in self.makes and (self.makes[name] != make or self.names[name] != layer.name):
            name = identifier(f"{layer.name}_{phase.lower()}", {*taken, *self.modules})
        taken.add(name)
        if name in self.modules:
            return name
        module = self._build(layer, make, recipe)
        self.modules[name], self.makes[name], self.names[name] = module, make, layer.name
        self._share(recipe, layer, name, module, numbered=recipe is self.recipe)
        return name

    def _make(self, recipe: NetRecipe, layer: Layer, bottoms: tuple[Shape | None, ...]) -> object:
        """What a module is made from: a ``Spec``, a factory with its layer, or the reason why it is none."""
        if (factory := self._factory(layer)) is not None:
            return factory, layer.type, {**layer.settings, "loss_weight": None}
        if layer.type in LOSSES:
            return LOSSES[layer.type].spec(layer)
        if not layer.tops and not is_loss(layer):  # it writes or shows something: nothing that the net computes with
            return Spec(functions.silence)
        try:
            return spec_of(recipe, layer, bottoms)
        except MisfitError as misfit:
            return misfit.message

    def _build(self, layer: Layer, make: object, recipe: NetRecipe) -> nn.Module:
        if isinstance(make, Spec):
            with torch.device("meta"):  # parameters get their numbers later
                module = make.build()
            return make.build() if next(module.buffers(), None) is not None else module
        if isinstance(make, tuple):
            made: nn.Module = make[0](layer)
            return made
        self.missing[layer.name] = f"{layer.type}, {make}"
        return MissingLayer(layer.name, layer.type, str(make), list(blob_shapes(recipe, layer).values()))

    def _share(self, recipe: NetRecipe, layer: Layer, name: str, module: nn.Module, *, numbered: bool) -> None:
        """Give the module the tensors of its layer's blobs: those that exist already, or new ones.

        ``numbered``: the blobs are those of the recipe; else of the other phase, which has them by layer and index.
        """
        for index, (number, attribute) in enumerate(_attributes(recipe, layer, module)):
            blob = recipe.blobs[number]
            key = (blob.layer, blob.index)
            held = getattr(module, attribute)
            tensor = self.tensors.get(number) if numbered else self.own.get(key)
            if tensor is None:
                tensor = _material(held)
                if isinstance(tensor, nn.Parameter):
                    tensor.requires_grad_(blob.has_gradient)
                self.own[key] = tensor
                if numbered:
                    self.tensors[number] = tensor
                    self.bound[number] = f"{name}.{attribute}"
            elif tensor.shape != held.shape:
                raise UnsupportedError(
                    f"layer {layer.name!r} shares blob {index} in another shape than {blob.name} has",
                    where=layer.where,
                    found=str(tuple(held.shape)),
                    expected=str(tuple(tensor.shape)),
                )
            if isinstance(tensor, nn.Parameter):
                module.register_parameter(attribute, tensor)
            else:
                module.register_buffer(attribute, tensor)


def _sized(other_net: NetRecipe, recipe: NetRecipe) -> NetRecipe:
    """The recipe of another phase, with the sizes that the blobs of ``recipe`` were made with where those fit."""
    known = {(blob.layer, blob.index): blob.shape for blob in recipe.blobs}

    def sized(blob: LearnableBlob) -> LearnableBlob:
        own, made = blob.shape, known.get((blob.layer, blob.index))
        if own is None or made is None or len(own) != len(made):
            return replace(blob, shape=own or made)
        fits = all(a is None or b is None or a == b for a, b in zip(own, made, strict=True))
        return replace(blob, shape=tuple(size or 1 for size in made)) if fits else blob

    return replace(other_net, blobs=tuple(sized(blob) for blob in other_net.blobs))


def _material(tensor: Tensor) -> Tensor:
    """A parameter with storage for one that may have none; a buffer as it is."""
    if isinstance(tensor, nn.Parameter) and tensor.device.type == "meta":
        return nn.Parameter(torch.zeros(tensor.shape, dtype=tensor.dtype))
    return tensor


def _attributes(recipe: NetRecipe, layer: Layer, module: nn.Module) -> list[tuple[int, str]]:
    """Each blob of a layer, by number, and the attribute that holds it."""
    if isinstance(module, MissingLayer):
        return [(number, f"blob_{index}") for index, number in enumerate(layer.blobs)]
    found = []
    for number, role in zip(layer.blobs, blob_shapes(recipe, layer), strict=True):
        attribute = _ATTRIBUTES.get(role, role)
        if isinstance(getattr(module, attribute, None), Tensor):
            found.append((number, attribute))
    return found


def identifier(layer: str, taken: Iterable[str]) -> str:
    """A layer's name as Python allows an attribute, and as ``nn.Module`` has none yet."""
    name = re.sub(r"\W", "_", layer, flags=re.ASCII) or "layer"
    if name[0].isdigit() or name.startswith("__"):
        name = f"layer_{name}"
    if keyword.iskeyword(name) or name in _TAKEN:
        name += "_"
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    return free


_TAKEN = frozenset((*dir(nn.Module()), *dir(CaffeNet), "recipe", "layer_names", "missing"))
