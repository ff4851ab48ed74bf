"""Fields against the schema: what it knows stays, what it does not know becomes a note and is cut out of the text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache

from caffe2torch.caffe.descriptors import Fact, facts
from caffe2torch.caffe.prototxt import Block, Field
from caffe2torch.errors import PrototxtError
from caffe2torch.recipe import Note, Severity

__all__ = ["EXPECTED", "Sifted", "expected", "sift"]

EXPECTED = {
    "float": "a number",
    "double": "a number",
    "int32": "a whole number from -2147483648 to 2147483647",
    "int64": "a whole number from -9223372036854775808 to 9223372036854775807",
    "uint32": "a whole number from 0 to 4294967295",
    "bool": "true or false",
    "string": "text in quotes",
    "bytes": "text in quotes",
    "message": "a block { ... }",
}
_LISTED_IN_FORKS = {("SolverParameter", "device_id")} | {
    ("PoolingParameter", name) for name in ("kernel_size", "pad", "stride")
}
"""Single in BVLC's schema and repeated in a fork's (yjxiong's; OpenCL's pooling), so that a list there is no mistake."""


@dataclass(frozen=True, slots=True)
class Sifted:
    """``block`` with the unknown moved to each block's ``unknown``; ``text`` without it, for protobuf's own parser."""

    block: Block
    text: str
    notes: tuple[Note, ...]


def expected(fact: Fact) -> str:
    """What a field of this type takes, in words."""
    return f"one of {', '.join(fact.values)}" if fact.values is not None else EXPECTED[fact.type]


def sift(block: Block, message: str, text: str) -> Sifted:
    """Separate what ``message`` knows from what it does not.

    Raises:
        PrototxtError: a field that may stand once is stated twice, a block stands where a value belongs or the other way
            round, a list where a single value belongs. Caffe refuses these too.
    """
    sieve = _Sieve()
    kept = sieve.keep(block, message)
    return Sifted(kept, _cut(text, sieve.cuts), tuple(sieve.notes))


class _Sieve:
    def __init__(self) -> None:
        self.notes: list[Note] = []
        self.cuts: dict[tuple[int, int], str] = {}

    def keep(self, block: Block, message: str) -> Block:
        known = facts(message)
        kept: list[Field] = []
        unknown: list[Field] = []
        stated: dict[str, Field] = {}
        changed = False
        for field in block.fields:
            fact = known.get(field.name)
            if fact is None:
                self._drop(field, unknown, _unknown_field(message, field.name))
                continue
            value = field.value
            if not fact.repeated:
                if field.listed:
                    if (message, field.name) not in _LISTED_IN_FORKS:
                        raise _refused(field, message, f"{field.name} of {message} takes one value", "a list", fact)
                    self._drop(
                        field, unknown, f"a list for {field.name!r} in {message}, which takes one value; ignored"
                    )
                    continue
                if field.name in stated:
                    first = stated[field.name].where
                    raise PrototxtError(
                        f"{field.name} of {message} is stated more than once",
                        where=field.where,
                        expected=f"one {field.name}; the first stands at {first.line}:{first.column}",
                        hint="Caffe refuses it too: delete one of them",
                    )
                stated[field.name] = field
            elif field.listed and value == "":
                changed = True  # an empty list: nothing in the message, nothing in the block
                continue
            if isinstance(value, Block):
                if fact.message is None:
                    raise _refused(field, message, f"{field.name} of {message} is no block", "a block", fact)
                inner = self.keep(value, fact.message)
                if inner is not value:
                    changed = True
                    field = replace(field, value=inner)
            elif fact.message is not None:
                raise _refused(field, message, f"{field.name} of {message} is a block", f"the value {value}", fact)
            elif fact.values is not None and not _may_be_known(value, fact.values):
                stated.pop(field.name, None)
                self._drop(field, unknown, _unknown_value(message, field.name, value, fact.values))
                continue
            kept.append(field)
        for field in unknown:
            if field.listed and field.name in known:
                values = [one.value for one in kept if one.span == field.span and isinstance(one.value, str)]
                self.cuts[field.span] = f"{field.name}:[{','.join(values)}]" if values else ""
        return Block(tuple(kept), tuple(unknown)) if unknown or changed else block

    def _drop(self, field: Field, unknown: list[Field], message: str) -> None:
        elsewhere_noted = field.listed and any(one.span == field.span for one in unknown[-1:])
        unknown.append(field)
        self.cuts[field.span] = ""
        if not elsewhere_noted or "value" in message:
            self.notes.append(Note(field.where, Severity.WARNING, message))


def _cut(text: str, cuts: dict[tuple[int, int], str]) -> str:
    """Replace spans by shorter texts, padded with blanks, so that everything else keeps its line and column."""
    if not cuts:
        return text
    parts: list[str] = []
    at = 0
    for (start, end), instead in sorted(cuts.items()):
        parts += text[at:start], instead, re.sub(r"[^\n]", " ", text[start + len(instead) : end])
        at = end
    parts.append(text[at:])
    return "".join(parts)


def _may_be_known(value: str, values: Mapping[str, int]) -> bool:
    """Whether protobuf knows this enum value; what is no name and no number is left to protobuf to refuse."""
    if value in values:
        return True
    try:
        return int(value, 0) in values.values()
    except ValueError:
        return not (value[0].isalpha() or value[0] == "_")


@cache
def _unknown_field(message: str, name: str) -> str:
    return f"unknown field {name!r} in {message}{_suggest(name, tuple(facts(message)))}; ignored"


@cache
def _suggest(name: str, candidates: tuple[str, ...]) -> str:
    close = get_close_matches(name, candidates, n=1, cutoff=0.75)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _unknown_value(message: str, name: str, value: str, values: Mapping[str, int]) -> str:
    return f"unknown value {value} of {name!r} in {message}{_suggest(value, tuple(values))}; ignored"


def _refused(field: Field, message: str, text: str, found: str, fact: Fact) -> PrototxtError:
    return PrototxtError(
        text, where=field.where, found=found, expected=expected(fact), hint=f"see {message} in caffe.proto"
    )
