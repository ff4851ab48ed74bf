"""The compiled ``proto/caffe.proto``: message classes, and facts about their fields.

The descriptors live in a pool of their own. protobuf keeps one default pool per process and refuses a second file or
message of the same name there, so that a process which imports pycaffe's ``caffe_pb2`` could not import us.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

__all__ = ["Fact", "facts", "message", "todays_type"]

_PACKAGE = "caffe"
_FIELD = descriptor_pb2.FieldDescriptorProto
_TYPES = {number: name.removeprefix("TYPE_").lower() for name, number in _FIELD.Type.items()}


@dataclass(frozen=True, slots=True)
class Fact:
    """What the schema declares of a field: its type (``float``, ..., ``enum``, ``message``), whether it repeats, which
    message or which enum (``PoolingParameter.PoolMethod``) it holds, and that enum's values by name.
    """

    type: str
    repeated: bool
    message: str | None = None
    enum: str | None = None
    values: Mapping[str, int] | None = None


@cache
def _file() -> descriptor_pb2.FileDescriptorProto:
    compiled = Path(__file__).with_name("caffe_schema.binpb").read_bytes()
    return descriptor_pb2.FileDescriptorSet.FromString(compiled).file[0]


@cache
def _pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(_file().SerializeToString())
    return pool


@cache
def message(name: str) -> type[Message]:
    """The class of one of caffe.proto's messages; ``KeyError`` for a name that is none.

    >>> message("ParamSpec")(lr_mult=2).decay_mult
    1.0
    """
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"{_PACKAGE}.{name}"))


@cache
def _declared() -> tuple[dict[str, descriptor_pb2.DescriptorProto], dict[str, dict[str, int]]]:
    """Messages by name, and enums by name (values by name); a message's own enums as ``MESSAGE.ENUM``."""
    file = _file()
    messages = {declared.name: declared for declared in file.message_type}
    enums = {enum.name: enum for enum in file.enum_type}
    for name, declared in messages.items():
        enums |= {f"{name}.{enum.name}": enum for enum in declared.enum_type}
    return messages, {name: {value.name: value.number for value in enum.value} for name, enum in enums.items()}


def _fact(field: descriptor_pb2.FieldDescriptorProto) -> Fact:
    kind, repeated = _TYPES[field.type], field.label == _FIELD.LABEL_REPEATED
    held = field.type_name.removeprefix(f".{_PACKAGE}.")
    if kind == "message":
        return Fact(kind, repeated, message=held)
    if kind == "enum":
        return Fact(kind, repeated, enum=held, values=_declared()[1][held])
    return Fact(kind, repeated)


@cache
def facts(name: str) -> dict[str, Fact]:
    """The fields of a message, by name.

    >>> facts("ParamSpec")["lr_mult"]
    Fact(type='float', repeated=False, message=None, enum=None, values=None)
    """
    return {field.name: _fact(field) for field in _declared()[0][name].field}


_WORDS = {  # how the words of a V1 type are spelt today, where it is not their first letter that is large
    "ABSVAL": "AbsVal",
    "ARGMAX": "ArgMax",
    "BN": "BN",
    "BNLL": "BNLL",
    "CONVOLUTION3D": "Convolution3D",
    "HDF5": "HDF5",
    "LRN": "LRN",
    "MVN": "MVN",
    "POOLING3D": "Pooling3D",
    "PRELU": "PReLU",
    "RELU": "ReLU",
    "ROI": "ROI",
    "SPP": "SPP",
    "TANH": "TanH",
}


def todays_type(old: str) -> str:
    """A layer type of V1, by its enum's name, as today's Caffe spells it.

    >>> todays_type("INNER_PRODUCT"), todays_type("HDF5_DATA"), todays_type("SOFTMAX_LOSS")
    ('InnerProduct', 'HDF5Data', 'SoftmaxWithLoss')
    """
    if old == "SOFTMAX_LOSS":
        return "SoftmaxWithLoss"
    return "" if old == "NONE" else "".join(_WORDS.get(word, word.capitalize()) for word in old.split("_"))
