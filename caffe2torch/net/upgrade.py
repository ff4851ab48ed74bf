"""Nets of every age as today's layers, each with its place in the file (``util/upgrade_proto.cpp``).

Three dialects of layer: today's ``layer { type: "Convolution" param { lr_mult: 1 } }``, V1's ``layers { type:
CONVOLUTION blobs_lr: 1 }`` and V0's ``layers { layer { type: "conv" blobs_lr: 1 } }``. Net-level ``input`` fields
become an Input layer, and a BatchNorm with three ``param`` blocks gets (0,0) for each, as real Caffe does.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from caffe2torch.errors import NetError, SourceLocation
from caffe2torch.net.layer_types import misspelt_type, own_field
from caffe2torch.prototxt.descriptors import facts, todays_type
from caffe2torch.prototxt.descriptors import message as message_class
from caffe2torch.prototxt.parser import Block, Field, parse
from caffe2torch.prototxt.schema import Parsed
from caffe2torch.recipe import Note, Severity

__all__ = ["Upgraded", "UpgradedLayer", "UpgradedLayers", "upgrade"]

_NO_TEXT = parse("", "")
_TRANSFORMED = ("Data", "ImageData", "WindowData")


@dataclass(slots=True)
class UpgradedLayer:
    """A layer of any age, as today's ``LayerParameter``.

    Attributes:
        message: The layer's message.
        type: Its type, as today's Caffe spells it.
        block: The layer in the file, in the format that it was written in.
        field: The field of the file that holds the block; it is called ``layer`` or ``layers``.
    """

    message: Any
    type: str
    block: Block
    field: Field
    _where: SourceLocation | None = None

    @property
    def where(self) -> SourceLocation:
        """The place of the layer in the file; one object for all that refers to it."""
        if self._where is None:
            self._where = self.field.where
        return self._where

    @property
    def params(self) -> tuple[SourceLocation, ...]:
        """The place of each ``param`` of the message: its block; in an old layer its ``blobs_lr``, else its
        ``weight_decay``, else its name.
        """
        if self.field.name == "layer":
            return tuple(one.where for one in self.block.all("param"))
        columns = [self.block.all(name) for name in ("blobs_lr", "weight_decay", "param", "blob_share_mode")]
        return tuple(
            next((one[i].where for one in columns if i < len(one)), self.where) for i in range(len(self.message.param))
        )


class UpgradedLayers(Sequence[UpgradedLayer]):
    """A net's layers, kept in columns of numbers; an ``UpgradedLayer`` is made of them when it is asked for.

    An object for each layer would take more memory than the text of a short layer.

    Args:
        parsed: The net, whose messages of today's layers are taken as they are. Others are kept serialized, which
            takes a tenth of protobuf's object.
    """

    def __init__(self, parsed: Parsed) -> None:
        message: Any = parsed.message
        self._todays = message.layer
        self._table = parsed.block.table
        self._others: list[bytes] = []
        self._numbers, self._fields, self._blocks = array("i"), array("i"), array("i")

    def add(self, message: int | Message, field: Field, block: Block = _NO_TEXT) -> None:
        """Add a layer: the number of a message of today's format, or a message that was made of an older one."""
        self._numbers.append(message if isinstance(message, int) else self._kept(message))
        self._fields.append(field.row)
        self._blocks.append(block.row)

    def change(self, index: int, message: Message) -> None:
        """Put a message in the place of a layer's own."""
        self._numbers[index] = self._kept(message)

    def _kept(self, message: Message) -> int:
        self._others.append(message.SerializePartialToString())
        return -len(self._others)

    def messages(self) -> Iterator[Any]:
        """Today's message of each layer."""
        return map(self._message, self._numbers)

    def _message(self, number: int) -> Any:
        return self._todays[number] if number >= 0 else _LAYER.FromString(self._others[-number - 1])

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[UpgradedLayer]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: Any) -> Any:
        """The layer of this number."""
        row, message = self._blocks[index], self._message(self._numbers[index])
        block = Block(self._table, row) if row else _NO_TEXT
        return UpgradedLayer(message, sys.intern(message.type), block, Field(self._table, self._fields[index]))


_LAYER: Any = message_class("LayerParameter")


@dataclass(frozen=True, slots=True)
class Upgraded:
    """A net in today's terms: ``net`` is its ``NetParameter`` without layers."""

    net: Any
    layers: UpgradedLayers
    notes: tuple[Note, ...]


def upgrade(parsed: Parsed) -> Upgraded:
    """Bring a net into today's terms.

    Args:
        parsed: A net in any of Caffe's formats.

    Returns:
        Its layers as today's messages, each with its place, and notes.

    Raises:
        NetError: an old net that Caffe cannot upgrade: a type it never had, ``input`` fields without their sizes.

    >>> from caffe2torch.prototxt.schema import parse_net
    >>> from caffe2torch.recipe import Source
    >>> net = upgrade(parse_net(Source("n", 'layers { name: "ip" type: INNER_PRODUCT blobs_lr: 1 blobs_lr: 2 }')))
    >>> [(layer.type, [spec.lr_mult for spec in layer.message.param]) for layer in net.layers]
    [('InnerProduct', [1.0, 2.0])]
    """
    notes: list[Note] = []
    message: Any = parsed.message
    layers = UpgradedLayers(parsed)
    _add_input_layer(layers, parsed)
    if not (old := parsed.block.all("layers")):
        for index, (one, field) in enumerate(zip(message.layer, parsed.block.all("layer"), strict=True)):
            layers.add(_frozen(one) if _freezes_statistics(one) else index, field, _block(field))
    else:
        if ignored := parsed.block.all("layer"):
            notes.append(Note(ignored[0].where, Severity.WARNING, _MIXED.format(len(ignored))))
        if is_v0(message):
            for one, field, block in upgrade_v0(parsed, notes):
                layers.add(one, field, block)
        else:
            for one, field in zip(message.layers, old, strict=True):
                new = _from_v1(one, field, notes)
                layers.add(_frozen(new) if _freezes_statistics(new) else new, field, _block(field))
            _upgrade_transforms(layers)
    return Upgraded(_net(parsed.message), layers, tuple(notes))


def _net(old: Any) -> Any:
    """The net's own fields; of a V0 net Caffe keeps the name and force_backward alone."""
    new: Any = message_class("NetParameter")()
    for name in ("name", "force_backward", "debug_info", "state"):
        if old.HasField(name) and (name in ("name", "force_backward") or not is_v0(old)):
            if name == "state":
                new.state.CopyFrom(old.state)
            else:
                setattr(new, name, getattr(old, name))
    return new


_MIXED = (
    "this file has 'layers' (old) beside 'layer' (today's); Caffe reads the old ones and ignores the {} in today's form"
)


def _block(field: Field) -> Block:
    block = field.value
    assert isinstance(block, Block)
    return block


def _from_v1(old: Any, field: Field, notes: list[Note]) -> Any:
    """``UpgradeV1LayerParameter``: today's messages, multipliers and names gathered into ``param`` blocks."""
    new: Any = _LAYER()
    for descriptor, value in old.ListFields():
        name = descriptor.name
        if name.endswith("_param"):
            getattr(new, name).CopyFrom(value)
        elif name in ("bottom", "top", "include", "exclude", "loss_weight"):
            getattr(new, name).extend(value)
    if old.HasField("name"):
        new.name = old.name
    new.type = _v1_type(old, field, notes)
    counts = (len(old.param), len(old.blob_share_mode), len(old.blobs_lr), len(old.weight_decay))
    for i in range(max(counts)):
        spec = new.param.add()
        if i < counts[0]:
            spec.name = old.param[i]
        if i < counts[1]:
            spec.share_mode = old.blob_share_mode[i]
        if i < counts[2]:
            spec.lr_mult = old.blobs_lr[i]
        if i < counts[3]:
            spec.decay_mult = old.weight_decay[i]
    return new


def _v1_type(old: Any, layer: Field, notes: list[Note]) -> str:
    for field in _block(layer).each_unknown():
        if field.name == "type" and isinstance(field.value, str):
            spelled = todays_type(field.value.strip("\"'"))
            spelled = misspelt_type(spelled) or spelled
            text = f"layer type {field.value} is none of BVLC Caffe's; read as a fork's '{spelled}'"
            notes.append(Note(field.where, Severity.INFO, text))
            return spelled
    if not old.HasField("type"):
        raise NetError("a layer without a type", where=layer.where, hint="write type: CONVOLUTION or whatever it is")
    enum = old.DESCRIPTOR.fields_by_name["type"].enum_type
    return todays_type(enum.values_by_number[old.type].name)


def _upgrade_transforms(layers: UpgradedLayers) -> None:
    """``UpgradeNetDataTransformation``: crop, mirror, mean and scale moved from data_param into transform_param."""
    moved = ("scale", "mean_file", "crop_size", "mirror")
    indices = [index for index, layer in enumerate(layers.messages()) if layer.type in _TRANSFORMED]
    if not any(_own(layers[index].message).HasField(name) for index in indices for name in moved):
        return
    for index in indices:
        layer = layers[index].message
        own = _own(layer)
        own.SetInParent()
        layer.transform_param.SetInParent()
        for name in moved:
            if own.HasField(name):
                setattr(layer.transform_param, name, getattr(own, name))
                own.ClearField(name)
        layers.change(index, layer)


def _own(message: Any) -> Any:
    """The parameter message of a layer's own type."""
    return getattr(message, own_field(message.type) or "")


def _add_input_layer(layers: UpgradedLayers, parsed: Parsed) -> None:
    """``UpgradeNetInput``: ``input`` fields and their sizes as a layer at the front; without sizes Caffe drops them."""
    block = parsed.block
    net: Any = parsed.message
    if not net.input or not (net.input_shape or net.input_dim):
        return
    name, each = ("input_shape", 1) if net.input_shape else ("input_dim", 4)
    got, needed = len(getattr(net, name)), each * len(net.input)
    if got < needed:
        raise NetError(
            f"{len(net.input)} inputs need {needed} {name}",
            where=block.all(name)[0].where,
            found=str(got),
            hint="give one input_shape for each input, or four input_dim",
        )
    layer = _LAYER(name="input", type="Input", top=net.input)
    for i in range(len(net.input)):
        sizes = net.input_shape[i].dim if net.input_shape else net.input_dim[4 * i : 4 * i + 4]
        layer.input_param.shape.add().dim.extend(sizes)
    layers.add(layer, block.all("input")[0])


def _freezes_statistics(layer: Any) -> bool:
    """``UpgradeNetBatchNorm``: three ``param`` blocks were once how one wrote that the statistics do not learn."""
    return layer.type == "BatchNorm" and len(layer.param) == 3


def _frozen(layer: Any) -> Any:
    frozen: Any = _LAYER()
    frozen.CopyFrom(layer)
    for spec in frozen.param:
        spec.lr_mult = spec.decay_mult = 0.0
    return frozen


# The oldest nets, ``layers { layer { type: "conv" ... } }``, as today's layers (``util/upgrade_proto.cpp``).

_TYPES: Mapping[str, str] = {
    "accuracy": "Accuracy",
    "bnll": "BNLL",
    "concat": "Concat",
    "conv": "Convolution",
    "data": "Data",
    "dropout": "Dropout",
    "euclidean_loss": "EuclideanLoss",
    "flatten": "Flatten",
    "hdf5_data": "HDF5Data",
    "hdf5_output": "HDF5Output",
    "im2col": "Im2col",
    "images": "ImageData",
    "infogain_loss": "InfogainLoss",
    "innerproduct": "InnerProduct",
    "lrn": "LRN",
    "multinomial_logistic_loss": "MultinomialLogisticLoss",
    "pool": "Pooling",
    "relu": "ReLU",
    "sigmoid": "Sigmoid",
    "softmax": "Softmax",
    "softmax_loss": "SoftmaxWithLoss",
    "split": "Split",
    "tanh": "TanH",
    "window_data": "WindowData",
}
"""V0 type to today's."""

_ANY = ("scale", "meanfile", "cropsize", "mirror")  # go to transform_param, whatever the layer
_FIELDS: Mapping[str, tuple[str, str]] = {
    "num_output": ("num_output", "conv innerproduct"),
    "biasterm": ("bias_term", "conv innerproduct"),
    "weight_filler": ("weight_filler", "conv innerproduct"),
    "bias_filler": ("bias_filler", "conv innerproduct"),
    "pad": ("pad", "conv pool"),
    "kernelsize": ("kernel_size", "conv pool"),
    "group": ("group", "conv"),
    "stride": ("stride", "conv pool"),
    "pool": ("pool", "pool"),
    "dropout_ratio": ("dropout_ratio", "dropout"),
    "local_size": ("local_size", "lrn"),
    "alpha": ("alpha", "lrn"),
    "beta": ("beta", "lrn"),
    "k": ("k", "lrn"),
    "source": ("source", "data hdf5_data images window_data infogain_loss"),
    "batchsize": ("batch_size", "data hdf5_data images window_data"),
    "rand_skip": ("rand_skip", "data images"),
    "shuffle_images": ("shuffle", "images"),
    "new_height": ("new_height", "images"),
    "new_width": ("new_width", "images"),
    "concat_dim": ("concat_dim", "concat"),
    "det_fg_threshold": ("fg_threshold", "window_data"),
    "det_bg_threshold": ("bg_threshold", "window_data"),
    "det_fg_fraction": ("fg_fraction", "window_data"),
    "det_context_pad": ("context_pad", "window_data"),
    "det_crop_mode": ("crop_mode", "window_data"),
    "scale": ("scale", ""),
    "meanfile": ("mean_file", ""),
    "cropsize": ("crop_size", ""),
    "mirror": ("mirror", ""),
}
"""V0 field to today's name, and the V0 types that may state it."""


def is_v0(net: Any) -> bool:
    """Whether any layer holds a V0 layer (``NetNeedsV0ToV1Upgrade``)."""
    return any(layer.HasField("layer") for layer in net.layers)


def upgrade_v0(parsed: Parsed, notes: list[Note]) -> Iterator[tuple[Message, Field, Block]]:
    """Today's message of each layer, with what holds it and its text; ``padding`` goes into the next layer.

    Raises:
        NetError: a type that Caffe's upgrade does not know, or a padding layer that does not pad one conv or pool.
    """
    net: Any = parsed.message
    maker: dict[str, Any] = dict.fromkeys(net.input)  # blob to the layer that made it last
    for connection, field in zip(net.layers, parsed.block.all("layers"), strict=True):
        assert isinstance(field.value, Block)
        inner = next((one.value for one in field.value.all("layer") if isinstance(one.value, Block)), _NO_TEXT)
        old = connection.layer
        bottoms, pad = list(connection.bottom), None
        for i, name in enumerate(bottoms):
            source = maker.get(name)
            if source is not None and source.layer.type == "padding":
                _check_padding(connection, source, field.where)
                bottoms[i], pad = source.bottom[0], source.layer.pad
        maker.update(dict.fromkeys(connection.top, connection))
        if old.type == "padding":
            continue
        new = _layer(old, inner, field.where, notes)
        new.bottom.extend(bottoms)
        new.top.extend(connection.top)
        if pad is not None:
            _set(_own(new), "pad", pad)
        yield new, field, inner


def _check_padding(connection: Any, source: Any, where: SourceLocation) -> None:
    blobs = (len(connection.bottom), len(source.bottom), len(source.top))
    if connection.layer.type not in ("conv", "pool") or blobs != (1, 1, 1):
        raise NetError(
            f"a padding layer feeds the layer {connection.layer.name!r}, which Caffe refuses",
            where=where,
            expected="a conv or pool layer with one bottom, after a padding layer with one bottom and one top",
        )


def _layer(old: Any, block: Block, where: SourceLocation, notes: list[Note]) -> Any:
    kind = old.type
    if kind not in _TYPES:
        raise NetError(
            f"a V0 layer of type {kind!r}" if kind else "a V0 layer without a type",
            where=where,
            expected="one of " + ", ".join(sorted(_TYPES)),
        )
    new = _LAYER(type=_TYPES[kind])
    if old.HasField("name"):
        new.name = old.name
    for descriptor, value in old.ListFields():
        name = descriptor.name
        if name in _FIELDS:
            today, types = _FIELDS[name]
            if name in _ANY:
                setattr(new.transform_param, today, value)
            elif kind in types.split():
                _set(_own(new), today, value)
            else:
                place = next((field.where for field in block.all(name)), where)
                notes.append(Note(place, Severity.WARNING, f"{name} means nothing to a {kind!r} layer; Caffe drops it"))
        elif name == "hdf5_output_param" and kind == "hdf5_output":
            new.hdf5_output_param.CopyFrom(value)
    for i in range(max(len(old.blobs_lr), len(old.weight_decay))):
        spec = new.param.add()
        if i < len(old.blobs_lr):
            spec.lr_mult = old.blobs_lr[i]
        if i < len(old.weight_decay):
            spec.decay_mult = old.weight_decay[i]
    return new


def _set(message: Any, name: str, value: object) -> None:
    """Set a field, repeated or not, message or scalar."""
    fact = facts(message.DESCRIPTOR.name)[name]
    if fact.repeated:
        del getattr(message, name)[:]
        getattr(message, name).append(value)
    elif isinstance(value, Message):
        getattr(message, name).CopyFrom(value)
    else:
        setattr(message, name, value)
