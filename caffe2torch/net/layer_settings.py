"""A layer's settings as plain Python: what the schema reads, its defaults, and what only a fork's schema would know."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from itertools import chain

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from caffe2torch.net.layer_types import is_own, own_field
from caffe2torch.prototxt.descriptors import facts
from caffe2torch.prototxt.descriptors import message as message_class
from caffe2torch.prototxt.parser import Block, Field, unquote
from caffe2torch.solver.float32 import shortest

__all__ = ["layer_settings", "plain", "plain_fields"]

_COMMON = {"transform_param", "loss_param"}  # messages that layers of many types may have besides their own
_LONGEST = 24  # characters of a whole number that may be one of 64 bits
_INT = re.compile(r"[+-]?(?:0[xX][0-9a-fA-F]+|[0-9]+)")


def layer_settings(layer: Message, kind: str, block: Block | None) -> Mapping[str, object]:
    """The settings of a layer.

    Args:
        layer: The layer's message.
        kind: Its type.
        block: The layer in the text, for the fields that the schema did not know; ``None`` if there are none.

    Returns:
        Its own parameter message flattened, any other one under its name, and ``loss_weight`` and ``propagate_down``
        where the layer states them. Scalars that the layer does not state have the schema's default where the schema
        declares one, and are absent where not; repeated fields are tuples, enum values names, floats the shortest
        decimals of their float32. Layers of one type that state nothing share one mapping.
    """
    result: dict[str, object] = {}
    own = own_field(kind)
    stated: dict[str, dict[str, object]] = {}
    for descriptor, value in layer.ListFields():
        if descriptor.name in ("loss_weight", "propagate_down"):
            result[descriptor.name] = tuple(_scalar(one, None) for one in value)
        elif descriptor.name.endswith("_param"):
            stated[descriptor.name] = plain(value, None if block is None else _inner(block, descriptor.name))
            if descriptor.name == "loss_param" and not value.HasField("normalization"):
                del stated[descriptor.name]["normalization"]  # what it is then depends on the layer, and on `normalize`
    if block is not None:
        for name, value in plain_fields(block.each_unknown()).items():
            if name.endswith("_param") and isinstance(value, dict):
                stated.setdefault(name, value)
            else:
                result[name] = value
    special = [name for name in stated if name not in _COMMON]
    if own not in stated:
        alike = [name for name in special if is_own(kind, name)]
        unnamed = special if own is None and len(special) == 1 else []
        own = next(iter(alike or unnamed), own)
    for name, values in stated.items():
        if name == own:
            result.update(values)
        else:
            result[name] = values
    if own in stated:
        return result
    return {**result, **_defaults_of(own)} if result else _defaults_of(own)


def plain(message: Message, block: Block | None = None) -> dict[str, object]:
    """A message as plain Python, with what ``block``, its text, holds beyond the schema."""
    result = dict(_defaults(message.DESCRIPTOR))
    known = facts(message.DESCRIPTOR.name)
    for descriptor, value in message.ListFields():
        name = descriptor.name
        fact = known[name]
        if fact.message is not None:
            blocks = [] if block is None else [f.value for f in block.all(name) if isinstance(f.value, Block)]
            if fact.repeated:
                result[name] = tuple(plain(one, blocks[i] if i < len(blocks) else None) for i, one in enumerate(value))
            else:
                result[name] = plain(value, blocks[0] if blocks else None)
        elif fact.repeated:
            result[name] = tuple(_scalar(one, fact.values) for one in value)
        else:
            result[name] = _scalar(value, fact.values)
    if block is not None and block.unknown:
        stated = {descriptor.name for descriptor, _ in message.ListFields()}
        result.update((name, value) for name, value in plain_fields(block.unknown).items() if name not in stated)
    return result


def plain_fields(fields: Iterable[Field]) -> dict[str, object]:
    """Fields without a schema as plain Python: a name that stands more than once, or as a list, gives a tuple."""
    groups: dict[str, list[object]] = {}
    lists = set()
    for one in fields:
        groups.setdefault(one.name, []).append(_token(one.value))
        if one.listed:
            lists.add(one.name)
    return {name: group[0] if len(group) == 1 and name not in lists else tuple(group) for name, group in groups.items()}


def _token(value: str | Block) -> object:
    if isinstance(value, Block):
        return plain_fields(chain(value.each(), value.each_unknown()))
    if (string := unquote(value)) is not None:
        return string
    if value in ("true", "True", "t", "false", "False", "f"):
        return value[0] in "tT"
    if len(value) <= _LONGEST and _INT.fullmatch(value):  # a longer one is no size, and slow to read as an int
        return int(value, 16 if "x" in value.lower() else 10)
    try:
        return float(value.rstrip("fF"))
    except ValueError:
        return value


def _scalar(value: object, enum: Mapping[str, int] | None) -> object:
    if enum is not None:
        return next((name for name, number in enum.items() if number == value), value)
    return _shortest(value) if isinstance(value, float) else value


_shortest = lru_cache(maxsize=4096)(shortest)


@cache
def _defaults_of(own: str | None) -> Mapping[str, object]:
    """What a layer without its own parameter message has in it; nothing where its type has none."""
    if own is None:
        return {}
    return _defaults(message_class("LayerParameter").DESCRIPTOR.fields_by_name[own].message_type)


@cache
def _defaults(descriptor: Descriptor) -> dict[str, object]:
    """What a message holds when it states nothing: declared defaults, and empty tuples for repeated fields."""
    known = facts(descriptor.name)
    return {
        field.name: () if known[field.name].repeated else _scalar(field.default_value, known[field.name].values)
        for field in descriptor.fields
        if known[field.name].repeated or field.has_default_value
    }


def _inner(block: Block, name: str) -> Block | None:
    return next((f.value for f in block.all(name) if isinstance(f.value, Block)), None)
