"""A binding by role alone, for a model whose layers cannot be bound.

Where every blob of one layer type and role has the same two multipliers, they are known without knowing the layer.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from caffe2torch.binding.plan import Binding, BoundBlob, Evidence, Kind
from caffe2torch.binding.wrappers import bare
from caffe2torch.errors import BindingError
from caffe2torch.recipe import LearnableBlob, NetRecipe

__all__ = ["bind_by_role"]

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_COUNTERPARTS: tuple[tuple[type | tuple[type, ...], str, dict[str, str]], ...] = (
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d), "Convolution", {"weight": "weight", "bias": "bias"}),
    (
        (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
        "Deconvolution",
        {"weight": "weight", "bias": "bias"},
    ),
    (nn.Linear, "InnerProduct", {"weight": "weight", "bias": "bias"}),
    (nn.Embedding, "Embed", {"weight": "weight"}),
    (nn.PReLU, "PReLU", {"weight": "slope"}),
    (_NORMS, "Scale", {"weight": "scale", "bias": "shift"}),
    (_NORMS, "BN", {"weight": "scale", "bias": "shift"}),
)
"""torch's modules, the layer type that is the same, and which of its blobs each parameter is."""


def bind_by_role(recipe: NetRecipe, model: nn.Module) -> Binding:
    """Bind every parameter to what all blobs of its layer type and role have in common.

    Args:
        recipe: The net, whose layers are not looked at.
        model: The model; every parameter has to be one of a module of torch.

    Returns:
        A binding of one blob for each parameter, called after its role.

    Raises:
        BindingError: A parameter is of no role that the net has, or the blobs of its role have several pairs.

    Example:
        >>> import pathlib, tempfile
        >>> from caffe2torch.reading import read_recipe
        >>> net = pathlib.Path(tempfile.mkdtemp()) / "net.prototxt"
        >>> layer = 'layer { name: "ip" type: "InnerProduct" top: "ip" inner_product_param { num_output: 2 } }'
        >>> _ = net.write_text(layer)
        >>> binding = bind_by_role(read_recipe(net), nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5)))
        >>> [(bound.blob.name, bound.name) for bound in binding.blobs][:2]
        [('InnerProduct/0', '0.weight'), ('InnerProduct/1', '0.bias')]
    """
    model = bare(model)
    of_role: dict[tuple[str, str], list[LearnableBlob]] = {}
    for blob in recipe.blobs:
        of_role.setdefault((blob.layer_type, blob.role), []).append(blob)
    modules = dict(model.named_modules())
    bound, problems = [], []
    for name, parameter in model.named_parameters():
        owner, _, own_name = name.rpartition(".")
        blobs = _blobs_like(modules[owner], own_name, of_role)
        pairs = dict.fromkeys((blob.lr_mult, blob.decay_mult) for blob in blobs)
        kind = type(modules[owner]).__name__
        if not pairs:
            problems.append(f"the net has no blob of the role of {name}, the {own_name} of a {kind}")
        elif len(pairs) > 1:
            stated = " and ".join(f"{pair} at line {_first(blobs, pair).where.line}" for pair in pairs)
            problems.append(f"blobs of the role of {name} have several pairs of multipliers: {stated}")
        else:
            blob = replace(blobs[0], layer=blobs[0].layer_type, shape=tuple(parameter.shape), shared_with=())
            bound.append(BoundBlob(blob, Kind.PARAMETER, name, Evidence.ROLE))
    if problems:
        name, (first, *others) = type(model).__name__, problems
        raise BindingError(f"{name} cannot be judged by role: {first}", found="\n    ".join(others[:5]) or None)
    return Binding(type(model).__name__, tuple(bound))


def _blobs_like(
    module: nn.Module, name: str, of_role: dict[tuple[str, str], list[LearnableBlob]]
) -> list[LearnableBlob]:
    """The blobs of the layer types that a module may stand for, in the role of its parameter ``name``."""
    return [
        blob
        for kinds, layer_type, roles in _COUNTERPARTS
        if isinstance(module, kinds) and name in roles
        for blob in of_role.get((layer_type, roles[name]), [])
    ]


def _first(blobs: list[LearnableBlob], pair: tuple[float, float]) -> LearnableBlob:
    return next(blob for blob in blobs if (blob.lr_mult, blob.decay_mult) == pair)
