"""The compiled ``proto/caffe.proto``: message classes, and the facts about their fields that sifting a text needs.

The descriptors live in a pool of their own. protobuf keeps one default pool per process and refuses a second file or
message of the same name there, so that a process which imports pycaffe's ``caffe_pb2`` could not import us.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

__all__ = ["Fact", "facts", "message"]

_PACKAGE = "caffe"
_FIELD = descriptor_pb2.FieldDescriptorProto
_TYPES = {number: name.removeprefix("TYPE_").lower() for name, number in _FIELD.Type.items()}


@dataclass(frozen=True, slots=True)
class Fact:
    """What the schema says of a field: its type as caffe.proto spells it (``float``, ``enum``, ``message``), whether it
    repeats, the message it holds, an enum's values by name.
    """

    type: str
    repeated: bool
    message: str | None
    values: Mapping[str, int] | None


@cache
def _file() -> descriptor_pb2.FileDescriptorProto:
    compiled = files("caffe2torch.caffe").joinpath("caffe_schema.binpb").read_bytes()
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
    """Messages by name, and enums (values by name) by full name."""
    file = _file()
    messages = {declared.name: declared for declared in file.message_type}
    enums = {f".{_PACKAGE}.{enum.name}": enum for enum in file.enum_type}
    for name, declared in messages.items():
        enums |= {f".{_PACKAGE}.{name}.{enum.name}": enum for enum in declared.enum_type}
    return messages, {name: {value.name: value.number for value in enum.value} for name, enum in enums.items()}


@cache
def facts(name: str) -> dict[str, Fact]:
    """The fields of a message, by name.

    >>> facts("ParamSpec")["lr_mult"]
    Fact(type='float', repeated=False, message=None, values=None)
    """
    messages, enums = _declared()
    return {
        field.name: Fact(
            type=_TYPES[field.type],
            repeated=field.label == _FIELD.LABEL_REPEATED,
            message=field.type_name.rpartition(".")[2] if field.type == _FIELD.TYPE_MESSAGE else None,
            values=enums[field.type_name] if field.type == _FIELD.TYPE_ENUM else None,
        )
        for field in messages[name].field
    }
