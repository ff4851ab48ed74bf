"""The table of layer types to the shapes of their tops, and what is said of a type that no table knows."""

from __future__ import annotations

from collections.abc import Mapping

from caffe2torch.net.data_shapes import DATA_TOPS, images
from caffe2torch.net.fork_layer_shapes import FORK_TOPS
from caffe2torch.net.layer_context import Node
from caffe2torch.net.layer_shapes import BVLC_TOPS, TopRule, losses
from caffe2torch.recipe import Shape

__all__ = ["TOPS", "top_shapes"]

TOPS: Mapping[str, TopRule] = {**BVLC_TOPS, **FORK_TOPS, **DATA_TOPS}


def top_shapes(node: Node) -> tuple[Shape | None, ...]:
    """One shape for each top of a layer; ``None`` for what cannot be known from the file.

    Raises:
        MisfitError: bottoms that the layer cannot take.

    >>> from caffe2torch.net.forks import Dialect
    >>> settings = {"num_output": 8, "kernel_size": (3,), "pad": (1,)}
    >>> top_shapes(Node("c", "Convolution", settings, ((2, 3, 32, 32),), ("data",), ("c",), 0, Dialect()))
    ((2, 8, 32, 32),)
    """
    shapes = _rule(node)(node)[: len(node.top_names)]
    return (*shapes, *(None,) * (len(node.top_names) - len(shapes)))


def _rule(node: Node) -> TopRule:
    if node.type == "LSTM" and node.dialect.of("junhyukoh") is not None:
        return TOPS["Lstm"]
    if (rule := TOPS.get(node.type)) is not None:
        return rule
    if not node.bottoms and "transform_param" in node.settings:
        return images
    return losses if "Loss" in node.type else _in_place


def _in_place(node: Node) -> tuple[Shape | None, ...]:
    """What an unknown layer writes back to a bottom keeps that bottom's shape; of any other top nothing is known."""
    known = dict(zip(node.bottom_names, node.bottoms, strict=True))
    return tuple(known.get(name) for name in node.top_names)
