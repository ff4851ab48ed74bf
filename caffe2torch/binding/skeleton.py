"""A model made from a net alone: one submodule for each layer that learns, and nothing but its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from caffe2torch.binding.graph import TensorReference, Unit, UnitKind, Wiring, without_units
from caffe2torch.binding.layout import blob_transposed
from caffe2torch.binding.names import module_names
from caffe2torch.binding.net_graph import caffe_wiring, layers_with_blobs, unit_kind
from caffe2torch.binding.wrappers import named_modules, named_tensors
from caffe2torch.net.build import with_inputs
from caffe2torch.recipe import LearnableBlob, NetRecipe

__all__ = ["SkeletonLayer", "skeleton", "skeleton_wiring"]

_ATTRIBUTES = {
    "weight": "weight",
    "scale": "weight",
    "slope": "weight",
    "bias": "bias",
    "shift": "bias",
    "mean": "running_mean",
    "variance": "running_var",
}
_BUFFERS = ("mean", "variance")


class SkeletonLayer(nn.Module):
    """The tensors of one Caffe layer, and how its net is wired: it is never called.

    ``roles`` and ``blobs`` map an attribute to the role and the index of the blob that it stands for, in ``net``.
    """

    def __init__(self, layer: str, layer_type: str, kind: UnitKind, net: Wiring) -> None:
        super().__init__()
        self.layer = layer
        self.layer_type = layer_type
        self.kind = kind
        self.net = net
        self.roles: dict[str, str] = {}
        self.blobs: dict[str, int] = {}

    def extra_repr(self) -> str:
        """The layer's type and the shapes of its tensors."""
        tensors = (*self.named_parameters(recurse=False), *self.named_buffers(recurse=False))
        return ", ".join([self.layer_type, *(f"{name}={tuple(tensor.shape)}" for name, tensor in tensors)])


class Skeleton(nn.Module):
    """What ``skeleton`` makes. It learns nothing and computes nothing: it has no forward pass."""

    def forward(self, *_: object) -> torch.Tensor:
        """Always an error: a skeleton holds tensors and computes nothing."""
        raise NotImplementedError("a skeleton holds a net's parameters and buffers, it computes nothing")


def skeleton(recipe: NetRecipe, input_shapes: Mapping[str, Sequence[int]] | None = None) -> nn.Module:
    """A module with the parameters and buffers of a net, one submodule for each layer that learns.

    Submodules carry the layers' names (``naming.module_name`` for what torch does not allow) and hold ``weight`` and
    ``bias`` (also for a scale, a shift and a slope), ``running_mean`` and ``running_var``; blobs of other roles go by
    their role. A blob that several layers share is one tensor, registered in each. Sizes that neither the net states
    nor follow from ``input_shapes`` (input blob to shape) stand as 1, and so does a blob of unknown shape. All values
    are 0: ``initialize`` or a snapshot fills them.

    Its layers carry the net's wiring, so that a skeleton can be bound by structure, too, whatever its modules are
    called and in whatever module they are put. Raises ``NetError`` for ``input_shapes`` that the net contradicts.

    >>> from caffe2torch.recipe import LearnableBlob, Stated, Statement, NetRecipe, SourceLocation
    >>> stated, place = Stated(Statement.EXPLICIT, Statement.EXPLICIT), SourceLocation("net", 1, 1)
    >>> blob = LearnableBlob("ip/1", "InnerProduct", 0, "weight", (10, None), 1.0, 1.0, stated, place)
    >>> skeleton(NetRecipe("net", (blob,), None)).state_dict()["ip/1.weight"].shape
    torch.Size([10, 1])
    """
    if input_shapes:
        recipe = with_inputs(recipe, input_shapes)
    model = Skeleton()
    net = caffe_wiring(recipe)
    tensors: dict[int, torch.Tensor] = {}
    layers = layers_with_blobs(recipe)
    for (layer, layer_type, blobs), name in zip(layers, module_names(layer for layer, _, _ in layers), strict=True):
        kind = unit_kind(layer_type, [recipe.blobs[number].role for number in blobs])
        module = SkeletonLayer(layer, layer_type, kind, net)
        for number in blobs:
            blob = recipe.blobs[number]
            _register(module, blob, number, tensors, transposed=blob_transposed(recipe, blob))
        model.add_module(name, module)
    return model


def _register(
    module: SkeletonLayer, blob: LearnableBlob, number: int, tensors: dict[int, torch.Tensor], *, transposed: bool
) -> None:
    """Give a layer the tensor of a blob, under a name that is still free; BatchNorm's factor has no tensor in torch.

    A blob of inputs x outputs (InnerProduct with ``transpose: true``) is outputs x inputs here, as in any other port.
    """
    if blob.role == "factor":
        return
    attribute = _ATTRIBUTES.get(blob.role) or re.sub(r"\W", "_", blob.role) or "blob"
    taken = sum(name == attribute or name.startswith(f"{attribute}_") for name in module.roles)
    if taken or (hasattr(module, attribute) and attribute not in module.roles):
        attribute = f"{attribute}_{taken + 1}"
    module.roles[attribute] = blob.role
    module.blobs[attribute] = number
    if number not in tensors:
        sizes = [size or 1 for size in blob.shape or ()]
        zeros = torch.zeros(sizes[::-1] if transposed else sizes)
        tensors[number] = zeros if blob.role in _BUFFERS else nn.Parameter(zeros)
    tensor = tensors[number]
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(attribute, tensor)
    else:
        module.register_buffer(attribute, tensor)


# The wiring of a skeleton, which computes nothing that could be traced: its layers carry their net's.


def skeleton_wiring(model: nn.Module) -> Wiring | None:
    """The wiring of the skeleton's layers in ``model``, in terms of its names; ``None`` if it has none.

    It does not matter what the modules are called, in which order they were registered, and in which module they
    are: units stand in the order of the model's modules. Those whose layers were taken out are transparent.
    """
    layers = [(path, module) for path, module in named_modules(model) if isinstance(module, SkeletonLayer)]
    if not layers or any(module.net is not layers[0][1].net for _, module in layers):
        return None
    names = {id(tensor): name for name, tensor in named_tensors(model)}
    tensors: dict[int, TensorReference] = {}
    paths: dict[int, list[str]] = {}
    for path, module in layers:
        for attribute, number in module.blobs.items():
            tensor = getattr(module, attribute)
            trained = isinstance(tensor, nn.Parameter)
            tensors[number] = TensorReference(module.roles[attribute], tuple(tensor.shape), names[id(tensor)], trained)
            paths.setdefault(number, []).append(path)
    net = layers[0][1].net
    rank = {key: place for place, key in enumerate(tensors)}
    first = [min((rank.get(int(one.key), len(rank)) for one in unit.tensors), default=0) for unit in net.units]
    order = sorted(range(len(net.units)), key=first.__getitem__)
    place = {number: index for index, number in enumerate(order)}
    nodes = tuple(node if node.unit is None else replace(node, unit=place[node.unit]) for node in net.nodes)
    units = [_unit(net.units[number], tensors, paths) for number in order]
    gone = {index for index, unit in enumerate(units) if not unit.tensors}
    return without_units(Wiring(tuple(units), nodes), gone)


def _unit(unit: Unit, tensors: Mapping[int, TensorReference], paths: Mapping[int, list[str]]) -> Unit:
    """A unit of the net with the model's names and shapes; it holds nothing if the model has none of its tensors."""
    own = [int(one.key) for one in unit.tensors if one.key in tensors]
    if not own:
        return replace(unit, tensors=())
    parts = tuple(dict.fromkeys(path for key in own for path in paths[key]))
    held = tuple(tensors[key] for key in own)
    shape = held[0].shape if unit.shape is None else tuple(size or 1 for size in unit.shape)
    return replace(unit, name=parts[0], parts=parts, tensors=held, shape=shape)
