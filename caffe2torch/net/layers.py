"""The table of layer types: which learnable blobs a layer has, in what order, shaped and filled how.

``bvlc_layers.py`` and ``fork_layers.py`` hold the rules; here they meet. A type that neither knows has no rule, and
whoever asks decides what to assume.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from caffe2torch.errors import NetError, Where
from caffe2torch.net.fork_layer_types import FORK_BLOBLESS, FORK_BLOBS
from caffe2torch.net.layer_context import BlobRule, Node
from caffe2torch.net.layer_types import BLOBLESS, BVLC_BLOBS, Rule
from caffe2torch.net.learnable_blobs import Learnables
from caffe2torch.net.porting_notes import Notes
from caffe2torch.net.shape_arithmetic import MisfitError
from caffe2torch.net.upgrade import UpgradedLayer
from caffe2torch.prototxt.parser import Block
from caffe2torch.recipe import BlobUse, Filler

__all__ = ["BLOBS", "append_blobs", "blob_rules"]

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


# One layer's blobs, added to those of its net: what the table says, checked against the layer's ``param`` blocks.

_COUNTS_OUTPUTS = {"Convolution", "Deconvolution", "DepthwiseConvolution", "Embed", "InnerProduct"}
_SOUNDS_LEARNED = re.compile(
    "conv|innerproduct|norm|lstm|gru|rnn|embed|scale|bias|prelu|dense|linear|bn|fc", re.IGNORECASE
)


def append_blobs(learnables: Learnables, notes: Notes, node: Node, layer: UpgradedLayer) -> tuple[int, ...]:
    """Add a layer's blobs and say which of the net's learnable blobs they are.

    Raises:
        NetError: the layer has more ``param`` blocks than blobs, or settings that fit no blob.
    """
    specs = layer.message.param
    rules = _rules(notes, node, layer)
    if len(specs) > len(rules):
        roles = ", ".join(rule.role for rule in rules)
        dropped = len(rules) == 1 and node.settings.get("bias_term") is False
        raise NetError(
            f"too many params specified for layer {node.name!r}",
            where=layer.params[len(rules)],
            found=f"{len(specs)} param blocks",
            expected=f"at most {len(rules)}: {roles}" if rules else f"none: a {node.type} layer has no learnable blobs",
            hint="Caffe refuses this net" + ("; with bias_term: false there is no bias" if dropped else ""),
        )
    indices = []
    for i, rule in enumerate(rules):
        spec, where = (specs[i], layer.params[i]) if i < len(specs) else (None, layer.where)
        use = BlobUse(node.name, node.type, i, where)
        indices.append(learnables.append(use, rule, spec, _filler(node, rule, layer)))
    return tuple(indices)


def _rules(notes: Notes, node: Node, layer: UpgradedLayer) -> tuple[BlobRule, ...]:
    if not node.type:
        hint = 'write type: "Convolution" or whatever it is'
        raise NetError(f"the layer {node.name!r} has no type", where=layer.where, hint=hint)
    try:
        rules = blob_rules(node)
    except MisfitError as misfit:
        text = f"layer {node.name!r} ({node.type}): {misfit.message}"
        raise NetError(text, where=layer.where, hint=misfit.hint) from None
    if node.type in _COUNTS_OUTPUTS and "num_output" not in node.settings:
        text = f"layer {node.name!r} states no num_output; Caffe refuses it (DIGITS fills it in), its size is unknown"
        notes.warn(layer.where, text)
    return _assumed(notes, node, layer) if rules is None else rules


def _assumed(notes: Notes, node: Node, layer: UpgradedLayer) -> tuple[BlobRule, ...]:
    """The blobs of a type that no table knows: as many as ``param`` blocks."""
    count, said = node.param_blocks, f"a {node.type} layer's blobs are known to its own code alone; "
    none = "it has no param blocks and is taken to have none"
    if count:
        notes.warn(layer.where, said + f"its {count} param blocks are taken for {count} blobs of unknown shape")
    elif node.type != "Python" and _SOUNDS_LEARNED.search(node.type):
        notes.warn(layer.where, said + none + ", though its name suggests some")
    elif node.bottoms and node.top_names and "Loss" not in node.type:
        notes.info(layer.where, said + none)
    return (BlobRule("unknown", None, default=None),) * count


def _filler(node: Node, rule: BlobRule, layer: UpgradedLayer) -> Filler | None:
    stated = node.settings.get(rule.filler)
    if not isinstance(stated, Mapping):
        return rule.default
    numbers = {
        name: float(value)
        for name in ("value", "min", "max", "mean", "std")
        if isinstance(value := stated.get(name), int | float)
    }
    sparse = stated.get("sparse")
    return Filler(
        type=str(stated.get("type", "constant")),
        sparse=sparse if isinstance(sparse, int) else -1,
        variance_norm=str(stated.get("variance_norm", "FAN_IN")),
        where=_place(layer.block, rule.filler) or layer.where,
        **numbers,
    )


def _place(block: Block, name: str) -> Where | None:
    """Where a layer states a filler: in its own parameter message, or in a V0 layer beside its other fields."""
    fields = (*block.fields, *block.unknown)
    for one in fields:
        if one.name == name:
            return one.where
    inner = (one.value for one in fields if isinstance(one.value, Block) and one.name.endswith("_param"))
    return next((f.where for value in inner for f in (*value.fields, *value.unknown) if f.name == name), None)
