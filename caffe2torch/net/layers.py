"""The table of layer types: which learnable blobs a layer has, in what order, shaped and filled how.

``bvlc_layers.py`` and ``fork_layers.py`` hold the rules; here they meet. A type that neither knows has no rule, and
whoever asks decides what to assume.
"""

from __future__ import annotations

from collections.abc import Mapping

from caffe2torch.net.fork_layer_types import FORK_BLOBLESS, FORK_BLOBS
from caffe2torch.net.layer_context import BlobRule, Node
from caffe2torch.net.layer_types import BLOBLESS, BVLC_BLOBS, Rule

__all__ = ["BLOBS", "blob_rules"]

BLOBS: Mapping[str, Rule] = {**BVLC_BLOBS, **FORK_BLOBS}


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
    if (rule := BLOBS.get(_read_as(node))) is not None:
        return rule(node)
    if node.type in BLOBLESS or (node.type in FORK_BLOBLESS and not node.param_blocks):
        return ()
    return None


def _read_as(node: Node) -> str:
    """The type whose rule holds: an LSTM with ``lstm_param`` is junhyukoh's ``Lstm`` under BVLC's name."""
    if node.type == "LSTM" and (clue := node.dialect.of("junhyukoh")) is not None:
        node.remarks.append(f"read as junhyukoh's Lstm, whose bias comes last, because of {clue}")
        return "Lstm"
    return node.type
