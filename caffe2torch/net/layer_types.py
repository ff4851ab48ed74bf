"""Layer types: the row of each, and what is assumed of a type that no table knows."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from caffe2torch.net.bvlc_layers import BVLC_LAYERS
from caffe2torch.net.data_tops import images
from caffe2torch.net.fork_layers import FORK_LAYERS
from caffe2torch.net.layer_rules import BlobRule, LayerType, Node, TopRule, losses
from caffe2torch.net.loss_settings import is_loss
from caffe2torch.prototxt.descriptors import facts, message, todays_type
from caffe2torch.recipe import Shape

__all__ = ["LAYER_TYPES", "blob_rules", "is_own", "layer_type", "misspelt_type", "own_field", "top_shapes"]

LAYER_TYPES: Mapping[str, LayerType] = {**BVLC_LAYERS, **FORK_LAYERS}
_UNKNOWN = LayerType()


def layer_type(node: Node) -> LayerType:
    """The row that holds for a layer: an LSTM with ``lstm_param`` is junhyukoh's ``Lstm`` under BVLC's name."""
    if node.type == "LSTM" and node.dialect.of("junhyukoh") is not None:
        return LAYER_TYPES["Lstm"]
    return LAYER_TYPES.get(node.type, _UNKNOWN)


def blob_rules(node: Node) -> tuple[BlobRule, ...] | None:
    """The blobs of a layer in Caffe's order; ``None`` where no table knows them.

    ``Python`` is such a type, since its ``setup`` decides, and so is a fork's layer that should have none but has
    ``param`` blocks.

    Raises:
        MisfitError: settings and bottoms that Caffe refuses.

    >>> from caffe2torch.net.forks import Dialect
    >>> node = Node("ip", "InnerProduct", {"num_output": 5}, ((2, 6, 4),), ("data",), ("ip",), 0, Dialect())
    >>> [(rule.role, rule.shape) for rule in blob_rules(node)]
    [('weight', (5, 24)), ('bias', (5,))]
    """
    rule = layer_type(node).blobs
    return None if rule is None else rule(node)


def top_shapes(node: Node) -> tuple[Shape | None, ...]:
    """One shape for each top of a layer; ``None`` for what cannot be known from the file.

    Raises:
        MisfitError: bottoms that the layer cannot take.

    >>> from caffe2torch.net.forks import Dialect
    >>> settings = {"num_output": 8, "kernel_size": (3,), "pad": (1,)}
    >>> top_shapes(Node("c", "Convolution", settings, ((2, 3, 32, 32),), ("data",), ("c",), 0, Dialect()))
    ((2, 8, 32, 32),)
    """
    rule = layer_type(node).tops or _assumed_tops(node)
    shapes = rule(node)[: len(node.top_names)]
    return (*shapes, *(None,) * (len(node.top_names) - len(shapes)))


def _assumed_tops(node: Node) -> TopRule:
    if not node.bottoms and "transform_param" in node.settings:
        return images
    return losses if is_loss(node) else _in_place


def _in_place(node: Node) -> tuple[Shape | None, ...]:
    """What an unknown layer writes back to a bottom keeps that bottom's shape; of any other top nothing is known."""
    known = dict(zip(node.bottom_names, node.bottoms, strict=True))
    return tuple(known.get(name) for name in node.top_names)


@lru_cache
def misspelt_type(kind: str) -> str | None:
    """The type that a misspelt one means: BVLC's but for case and underscores, or a V1 enum's name; else ``None``.

    >>> misspelt_type("INNER_PRODUCT"), misspelt_type("Batchnorm"), misspelt_type("ReLU"), misspelt_type("ReLU7")
    ('InnerProduct', 'BatchNorm', None, None)
    """
    if kind in LAYER_TYPES:
        return None
    if kind in (facts("V1LayerParameter")["type"].values or ()):
        return todays_type(kind) or None
    return next((known for known in BVLC_LAYERS if known.casefold() == kind.replace("_", "").casefold()), None)


@lru_cache(maxsize=1024)
def own_field(kind: str) -> str | None:
    """The field of ``LayerParameter`` that holds the settings of this type; ``None`` where the schema has none.

    >>> own_field("InnerProduct"), own_field("Deconvolution"), own_field("Python"), own_field("DenseBlock")
    ('inner_product_param', 'convolution_param', 'python_param', None)
    """
    names = message("LayerParameter").DESCRIPTOR.fields_by_name
    return next((name for name in names if is_own(kind, name)), None)


def is_own(kind: str, field: str) -> bool:
    """Whether a field is the parameter message of this type, by its name, be it in the schema or not.

    >>> is_own("Normalize", "norm_param"), is_own("Normalize", "normalize_param"), is_own("Normalize", "relu_param")
    (True, True, False)
    """
    wanted = (LAYER_TYPES.get(kind, _UNKNOWN).settings, kind.lower())
    return field.endswith("_param") and field.removesuffix("_param").replace("_", "") in wanted
