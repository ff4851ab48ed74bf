"""The oldest nets, ``layers { layer { type: "conv" ... } }``, as today's layers (``util/upgrade_proto.cpp``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf.message import Message

from caffe2torch.errors import NetError
from caffe2torch.prototxt.descriptors import facts
from caffe2torch.prototxt.descriptors import message as message_class
from caffe2torch.prototxt.parser import Block
from caffe2torch.prototxt.schema import Parsed
from caffe2torch.recipe import Note, Severity
from caffe2torch.where import Where

__all__ = ["is_v0", "upgrade_v0"]

_TYPES: Mapping[str, tuple[str, str]] = {
    "accuracy": ("Accuracy", ""),
    "bnll": ("BNLL", ""),
    "concat": ("Concat", "concat_param"),
    "conv": ("Convolution", "convolution_param"),
    "data": ("Data", "data_param"),
    "dropout": ("Dropout", "dropout_param"),
    "euclidean_loss": ("EuclideanLoss", ""),
    "flatten": ("Flatten", ""),
    "hdf5_data": ("HDF5Data", "hdf5_data_param"),
    "hdf5_output": ("HDF5Output", "hdf5_output_param"),
    "im2col": ("Im2col", ""),
    "images": ("ImageData", "image_data_param"),
    "infogain_loss": ("InfogainLoss", "infogain_loss_param"),
    "innerproduct": ("InnerProduct", "inner_product_param"),
    "lrn": ("LRN", "lrn_param"),
    "multinomial_logistic_loss": ("MultinomialLogisticLoss", ""),
    "pool": ("Pooling", "pooling_param"),
    "relu": ("ReLU", ""),
    "sigmoid": ("Sigmoid", ""),
    "softmax": ("Softmax", ""),
    "softmax_loss": ("SoftmaxWithLoss", ""),
    "split": ("Split", ""),
    "tanh": ("TanH", ""),
    "window_data": ("WindowData", "window_data_param"),
}
"""V0 type to today's and the message that its settings go to."""

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


def upgrade_v0(parsed: Parsed, notes: list[Note]) -> Iterator[tuple[Any, Block, Where]]:
    """Today's message of each layer, with its text and place; ``padding`` layers go into the layer after them.

    Raises:
        NetError: a type that Caffe's upgrade does not know, or a padding layer that does not pad one conv or pool.
    """
    net: Any = parsed.message
    connections = list(zip(net.layers, parsed.block.all("layers"), strict=True))
    maker: dict[str, Any] = dict.fromkeys(net.input)  # blob to the layer that made it last
    for connection, field in connections:
        assert isinstance(field.value, Block)
        inner = next((one.value for one in field.value.all("layer") if isinstance(one.value, Block)), Block(()))
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
            _set(getattr(new, _TYPES[old.type][1]), "pad", pad)
        yield new, inner, field.where


def _check_padding(connection: Any, source: Any, where: Where) -> None:
    blobs = (len(connection.bottom), len(source.bottom), len(source.top))
    if connection.layer.type not in ("conv", "pool") or blobs != (1, 1, 1):
        raise NetError(
            f"a padding layer feeds the layer {connection.layer.name!r}, which Caffe refuses",
            where=where,
            expected="a conv or pool layer with one bottom, after a padding layer with one bottom and one top",
        )


def _layer(old: Any, block: Block, where: Where, notes: list[Note]) -> Any:
    kind = old.type
    if kind not in _TYPES:
        raise NetError(
            f"a V0 layer of type {kind!r}" if kind else "a V0 layer without a type",
            where=where,
            expected="one of " + ", ".join(sorted(_TYPES)),
        )
    new: Any = message_class("LayerParameter")(type=_TYPES[kind][0])
    if old.HasField("name"):
        new.name = old.name
    own = _TYPES[kind][1]
    for descriptor, value in old.ListFields():
        name = descriptor.name
        if name in _FIELDS:
            today, types = _FIELDS[name]
            if name in _ANY:
                setattr(new.transform_param, today, value)
            elif kind in types.split():
                _set(getattr(new, own), today, value)
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
