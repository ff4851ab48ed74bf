"""What to feed a model for one traced forward pass: what its user says, what the net states, else typical sizes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from caffe2torch.binding.net_graph import net_inputs
from caffe2torch.errors import ModelError
from caffe2torch.recipe import TrainingRecipe

__all__ = ["Feed", "InputShapes", "candidate_inputs"]

Feed = tuple[list[Tensor], dict[str, Tensor]]
InputShapes = Mapping[str, Sequence[int]] | Sequence[Sequence[int]]

_SIDES = (224, 299, 227, 256, 32, 321, 64, 28, 96, 112, 300, 512, 331, 231, 128, 48, 448)


def candidate_inputs(
    model: nn.Module, recipe: TrainingRecipe, input_shapes: InputShapes | None = None
) -> Iterator[Feed]:
    """Positional and named arguments for ``model`` on the meta device, the likeliest first.

    ``input_shapes`` (by the names that ``forward`` or the net gives, or in order) leave no choice. Raises
    ``ModelError`` for a name in it that neither knows.
    """
    required, accepted = _arguments(model)
    stated = net_inputs(recipe)
    if input_shapes is not None:
        yield _said(input_shapes, accepted, [name for name, _ in stated])
        return
    count = max(1, len(required))
    layers = [m for m in model.modules() if isinstance(m, _ConvNd | nn.Linear | nn.Embedding | nn.RNNBase)]
    dtype = torch.int64 if layers and isinstance(layers[0], nn.Embedding) else torch.float32
    seen = set()
    if len(stated) >= count:
        known = [shape for _, shape in stated[:count]]
        for channels in (None, *_channels(layers)):
            shapes = [_filled(shape, channels) for shape in known]
            if None not in shapes and str(shapes) not in seen:
                seen.add(str(shapes))
                yield [torch.empty(shape or (), dtype=dtype, device="meta") for shape in shapes], {}
    for shape, dtype in _typical(layers):
        yield [torch.empty(shape, dtype=dtype, device="meta") for _ in range(count)], {}


def _said(input_shapes: InputShapes, accepted: list[str], inputs: list[str]) -> Feed:
    if not isinstance(input_shapes, Mapping):
        return [torch.empty(tuple(shape), device="meta") for shape in input_shapes], {}
    for name in input_shapes:
        if name not in accepted and name not in inputs:
            takes, has = ", ".join(accepted) or "nothing", ", ".join(inputs) or "no inputs"
            raise ModelError(f"no input is called {name!r}", hint=f"forward takes {takes}; the net has {has}")
    if all(name in accepted for name in input_shapes):
        return [], {name: torch.empty(tuple(shape), device="meta") for name, shape in input_shapes.items()}
    ordered = sorted(input_shapes, key=lambda name: inputs.index(name) if name in inputs else len(inputs))
    return [torch.empty(tuple(input_shapes[name]), device="meta") for name in ordered], {}


def _arguments(model: nn.Module) -> tuple[list[str], list[str]]:
    """The names of ``forward``'s arguments: those without a default, and all."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return [], []
    named = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    return [one.name for one in named if one.default is one.empty], [one.name for one in named]


def _channels(layers: Sequence[nn.Module]) -> list[int]:
    """Input channels that the model may want: its first convolution's, then a color or grey image's."""
    first = [layer.in_channels for layer in layers if isinstance(layer, _ConvNd)][:1]
    return list(dict.fromkeys((*first, 3, 1)))


def _filled(shape: tuple[int | None, ...] | None, channels: int | None) -> tuple[int, ...] | None:
    """An image's shape with open sizes filled and a batch of two, which batch norm needs; others as they are."""
    if shape is None or not shape:
        return None
    if len(shape) == 4:
        side = next((size for size in shape[2:] if size is not None), _SIDES[0])
        image = channels or shape[1]
        return None if image is None else (2, image, shape[2] or side, shape[3] or side)
    return None if None in shape[1:] else (shape[0] or 2, *(size for size in shape[1:] if size is not None))


def _typical(layers: Sequence[nn.Module]) -> Iterator[tuple[tuple[int, ...], torch.dtype]]:
    convolutions = [layer for layer in layers if isinstance(layer, _ConvNd)]
    if convolutions and (axes := len(convolutions[0].kernel_size)) != 2:
        for channels in _channels(layers):
            yield (2, channels, *((16, 112, 112) if axes == 3 else (256,))), torch.float32
    for side in _SIDES if convolutions else ():
        for channels in _channels(layers):
            yield (2, channels, side, side), torch.float32
    for layer in layers[:1]:
        if isinstance(layer, nn.Linear):
            yield (2, layer.in_features), torch.float32
            yield (8, 2, layer.in_features), torch.float32
        elif isinstance(layer, nn.RNNBase):
            yield (8, 2, layer.input_size), torch.float32
        elif isinstance(layer, nn.Embedding):
            yield (8, 2), torch.int64
