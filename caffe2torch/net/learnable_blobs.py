"""The learnable blobs of a net in Caffe's order, and which layers share them (``net.cpp``, ``Net::AppendParam``)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from math import prod
from typing import Any

from caffe2torch.errors import NetError, SourceLocation
from caffe2torch.net.layer_rules import BlobRule, Node
from caffe2torch.net.layer_types import layer_type, misspelt_type
from caffe2torch.net.loss_settings import is_loss
from caffe2torch.net.porting_notes import Notes
from caffe2torch.net.shape_arithmetic import MAX_COUNT, MisfitError, agree, product
from caffe2torch.net.upgrade import UpgradedLayer
from caffe2torch.prototxt.parser import Block
from caffe2torch.recipe import BlobUse, Filler, LearnableBlob, Shape, Stated, Statement
from caffe2torch.solver.float32 import format32, shortest
from caffe2torch.wording import shape_text

__all__ = ["Learnables", "append_blobs"]

_DEFAULT = 1.0
_READABLE = 10**20  # a longer number is not shown in a message
_PERMISSIVE = 1  # ParamSpec.DimCheckMode
_shortest = lru_cache(maxsize=4096)(shortest)
_stated = cache(Stated)  # a few pairs, of many thousand blobs
_SOUNDS_LEARNED = re.compile(
    "conv|innerproduct|norm|lstm|gru|rnn|embed|scale|bias|prelu|dense|linear|bn|fc", re.IGNORECASE
)


@dataclass(slots=True)
class _Multiplier:
    """A multiplier and how it was stated; ``has`` as in Caffe (``has_lr_mult``): the file or the layer sets it."""

    value: float
    stated: Statement

    @property
    def has(self) -> bool:
        return self.stated is not Statement.DEFAULTED


class Learnables:
    """Collects the blobs of one layer after the other."""

    def __init__(self) -> None:
        self._blobs: list[LearnableBlob] = []
        self._owners: dict[str, int] = {}

    def append(self, use: BlobUse, rule: BlobRule, spec: Any | None, filler: Filler | None) -> int:
        """Add a layer's blob, or find the one that its name shares.

        Args:
            use: The layer's use of the blob.
            rule: What the layer's type makes of it.
            spec: Its ``param`` block, if it has one.
            filler: What fills it.

        Returns:
            The index among the learnable blobs.

        Raises:
            NetError: a ``param`` block that the layer refuses, or a shared blob of another shape or other multipliers.
        """
        lr_mult, decay_mult = _multipliers(use, rule, spec)
        name = "" if spec is None else spec.name
        owner = self._owners.get(name) if name else None
        if owner is None:
            if name:
                self._owners[name] = len(self._blobs)
            stated = _stated(lr_mult.stated, decay_mult.stated)
            self._blobs.append(
                LearnableBlob(
                    use.layer,
                    use.layer_type,
                    use.index,
                    rule.role,
                    rule.shape,
                    lr_mult.value,
                    decay_mult.value,
                    stated,
                    use.where,
                    filler=filler,
                )
            )
            return len(self._blobs) - 1
        blob = self._blobs[owner]
        assert spec is not None
        shape = _share_shape(blob, use, rule, spec)
        lr_mult = _shared(blob, use, name, "lr_mult", lr_mult)
        decay_mult = _shared(blob, use, name, "decay_mult", decay_mult)
        own = _shortest(spec.lr_mult) if spec.HasField("lr_mult") else None
        self._blobs[owner] = replace(
            blob,
            shape=shape,
            lr_mult=lr_mult.value,
            decay_mult=decay_mult.value,
            stated=_stated(lr_mult.stated, decay_mult.stated),
            shared_with=(*blob.shared_with, replace(use, lr_mult=own)),
        )
        return owner

    def finish(self) -> tuple[LearnableBlob, ...]:
        """The blobs in Caffe's order, which is also that of ``.solverstate``."""
        return tuple(self._blobs)


def _multipliers(use: BlobUse, rule: BlobRule, spec: Any | None) -> tuple[_Multiplier, _Multiplier]:
    """What the file states, or 1, or what the layer forces."""
    written = [
        _Multiplier(_shortest(getattr(spec, name)), Statement.EXPLICIT)
        if spec is not None and spec.HasField(name)
        else _Multiplier(_DEFAULT, Statement.DEFAULTED)
        for name in ("lr_mult", "decay_mult")
    ]
    if rule.forced is None:
        return written[0], written[1]
    if rule.forced.refuses and spec is not None:
        if written[0].value != rule.forced.lr_mult:
            raise NetError(
                f"the {rule.role} of {use.layer!r} is a statistic of {use.layer_type}, which does not learn",
                where=use.where,
                found=f"lr_mult {format32(written[0].value)}" + ("" if written[0].has else ", Caffe's default"),
                expected="lr_mult: 0",
                hint="write lr_mult: 0, or all three param blocks, or none",
            )
        return written[0], written[1]
    forced = (rule.forced.lr_mult, rule.forced.decay_mult)
    lr_mult, decay_mult = (
        one if value is None else _Multiplier(value, Statement.FORCED)
        for one, value in zip(written, forced, strict=True)
    )
    return lr_mult, decay_mult


def _share_shape(blob: LearnableBlob, use: BlobUse, rule: BlobRule, spec: Any) -> Shape | None:
    """The shape of a shared blob; a size that one use leaves open comes from another."""
    try:
        if spec.share_mode != _PERMISSIVE:
            return agree(blob.shape, rule.shape)
        counts = {product(shape) for shape in (blob.shape, rule.shape) if shape is not None} - {None}
        if len(counts) < 2:
            return blob.shape
    except MisfitError:
        pass
    raise NetError(
        f"cannot share param {spec.name!r} owned by layer {blob.layer!r} with layer {use.layer!r}: shape mismatch",
        where=use.where,
        found=f"{shape_text(rule.shape)}, as {use.layer!r} needs it",
        expected=f"{shape_text(blob.shape)}, as {blob.layer!r} owns it ({blob.where})",
    )


def _shared(blob: LearnableBlob, use: BlobUse, name: str, what: str, sharer: _Multiplier) -> _Multiplier:
    """The owner's multiplier, or the sharer's where only that one states it. Two that differ are fatal in Caffe."""
    owner = _Multiplier(getattr(blob, what), getattr(blob.stated, what))
    if not sharer.has:
        return owner
    if not owner.has:
        return _Multiplier(sharer.value, Statement.SHARED)
    if owner.value != sharer.value:
        raise NetError(
            f"shared param {name!r} has mismatched {what}",
            where=use.where,
            found=f"{format32(sharer.value)} for {use.layer!r}",
            expected=f"{format32(owner.value)}, as for {blob.layer!r} ({blob.where})",
            hint=f"Caffe refuses it since rc3: state {what} in one of the two, or the same in both",
        )
    return owner


# One layer's blobs, added to those of its net: the table's, checked against the layer's ``param`` blocks.


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
    if not rules:
        return ()
    indices, places = [], layer.params
    for i, rule in enumerate(rules):
        spec, where = (specs[i], places[i]) if i < len(specs) else (None, layer.where)
        use = BlobUse(node.name, node.type, i, where)
        indices.append(learnables.append(use, rule, spec, _filler(node, rule, layer)))
    return tuple(indices)


def _rules(notes: Notes, node: Node, layer: UpgradedLayer) -> tuple[BlobRule, ...]:
    row = layer_type(node)
    if row.blobs is None and (meant := misspelt_type(node.type)) is not None:
        raise NetError(
            f"unknown layer type {node.type!r}",
            where=next((one.where for one in layer.block.all("type")), layer.where),
            hint=f'write type: "{meant}"; Caffe refuses any other spelling',
        )
    try:
        rules = None if row.blobs is None else row.blobs(node)
    except MisfitError as misfit:
        text = f"layer {node.name!r} ({node.type}): {misfit.message}"
        raise NetError(text, where=layer.where, hint=misfit.hint) from None
    if row.counts_outputs and "num_output" not in node.settings:
        text = f"layer {node.name!r} states no num_output; Caffe refuses it (DIGITS fills it in), its size is unknown"
        notes.warn(layer.where, text)
    if rules is None:
        return _assumed(notes, node, layer)
    for index, rule in enumerate(rules):
        if rule.shape is not None and len(rule.shape) > 1:
            _check_size(node, index, rule, layer)
    return rules


def _check_size(node: Node, index: int, rule: BlobRule, layer: UpgradedLayer) -> None:
    """Refuse, before anything is allocated, a blob that Caffe cannot hold either."""
    sizes = [1 if size is None else size for size in rule.shape or ()]
    if prod(sizes) > MAX_COUNT:
        found = shape_text(rule.shape) if max(sizes) < _READABLE else "sizes beyond any tensor's"
        raise NetError(
            f"layer {node.name!r} ({node.type}): blob {index}, its {rule.role}, is too large",
            where=layer.where,
            found=found,
            expected=f"at most {MAX_COUNT} numbers, as in Caffe",
        )


def _assumed(notes: Notes, node: Node, layer: UpgradedLayer) -> tuple[BlobRule, ...]:
    """The blobs of a type that no table knows: as many as ``param`` blocks."""
    count, known = node.param_blocks, f"a {node.type} layer's blobs are known to its own code alone; "
    none = "it has no param blocks and is taken to have none"
    if count:
        notes.warn(layer.where, known + f"its {count} param blocks are taken for {count} blobs of unknown shape")
    elif node.type != "Python" and _SOUNDS_LEARNED.search(node.type):
        notes.warn(layer.where, known + none + ", though its name suggests some")
    elif node.bottoms and node.top_names and not is_loss(node):
        notes.info(layer.where, known + none)
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


def _place(block: Block, name: str) -> SourceLocation | None:
    """Where a layer states a filler: in its own parameter message, or in a V0 layer beside its other fields."""
    fields = (*block.fields, *block.unknown)
    for one in fields:
        if one.name == name:
            return one.where
    inner = (one.value for one in fields if isinstance(one.value, Block) and one.name.endswith("_param"))
    return next((f.where for value in inner for f in (*value.fields, *value.unknown) if f.name == name), None)
