"""Unknown fields: what the schema does not know becomes a note and is cut out of the text."""

from __future__ import annotations

import csv
import operator
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from caffe2torch.errors import PrototxtError, close_name
from caffe2torch.prototxt.descriptors import Fact, facts
from caffe2torch.prototxt.parser import Block, Field, unquote
from caffe2torch.recipe import Note, Severity

__all__ = ["LISTED_IN_FORKS", "expected", "forks_with", "mixed_formats", "parse_warnings", "separate_unknown"]

LISTED_IN_FORKS = {("SolverParameter", "device_id")} | {
    ("PoolingParameter", name) for name in ("kernel_size", "pad", "stride")
}
"""Single for BVLC and repeated in yjxiong's forks (pooling in OpenCL's too): a list there is a fork's, no mistake."""

_MOST_NOTES = 1000

_DETACHED_SIGN = re.compile(r"-[\s#]")

_TAKES = {
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


@dataclass(frozen=True, slots=True)
class Separated:
    """``block`` with the unknown moved to each block's ``unknown``; ``text`` without it, for protobuf's own parser."""

    block: Block
    text: str
    notes: tuple[Note, ...]


def separate_unknown(block: Block, message: str, text: str) -> Separated:
    """Separate what a message's schema knows from what it does not.

    Args:
        block: The fields of ``text``.
        message: The name of the message that the text is.
        text: The whole text.

    Returns:
        The two parts, and a note for each field that is unknown.

    Raises:
        PrototxtError: a single field is stated twice or as a list, a block stands where a value belongs or the other
            way round. protobuf's parsers, C++'s and Python's, refuse these too. So is a field of the old format in
            today's ``layer``, where Caffe has none of the name.
    """
    separation = _Separation(text)
    kept = separation.keep(block, message)
    return Separated(kept, _cut(text, separation.cuts), separation.all_notes())


def expected(fact: Fact) -> str:
    """What a field of this type takes, in words.

    >>> expected(facts("SolverParameter")["solver_mode"])
    'one of CPU, GPU'
    """
    return _TAKES[fact.type] if fact.values is None else f"one of {', '.join(fact.values)}"


class _Separation:
    """One pass over the blocks: collects notes, and the spans to cut with what takes their place."""

    def __init__(self, text: str) -> None:
        self.notes: dict[tuple[tuple[int, int], str], Note] = {}  # once per list, not once per element
        self.first_left_out: Field | None = None
        self.left_out = 0
        self.cuts: dict[tuple[int, int], str] = {}
        self.has_detached_signs = _DETACHED_SIGN.search(text) is not None

    def keep(self, block: Block, message: str) -> Block:
        """The block without what ``message`` does not know; the very same one where it knows everything."""
        known = facts(message)
        kept: list[Field] = []
        unknown: list[Field] = []
        singles: dict[str, Field] = {}
        for field in block.fields:
            fact = known.get(field.name)
            if fact is None:
                _check_format(field, message)
                note = _unknown_field(message, field.name, _own_type(block, field.name))
            else:
                note = _unknown_use(field, fact, message)
            if fact is None or note:
                unknown.append(field)
                self._note(field, note)
                continue
            if not fact.repeated:
                _check_single(field, fact, message, singles.get(field.name))
                singles[field.name] = field
            elif field.listed and field.value == "":
                continue  # an empty list is nothing
            if isinstance(field.value, str):
                if fact.message is not None:
                    raise _misfit(field, fact, message, f"the value {field.value}")
                kept.append(field)
            else:
                if fact.message is None:
                    raise _misfit(field, fact, message, "a block")
                inner = self.keep(field.value, fact.message)
                kept.append(field if inner is field.value else field._replace(value=inner))
        if self.has_detached_signs:
            self._attach_signs(kept)
        if len(kept) == len(block.fields) and all(map(operator.is_, kept, block.fields)):
            return block
        self._cut_out(unknown, kept)
        return Block(tuple(kept), tuple(unknown))

    def _note(self, field: Field, note: str) -> None:
        key = (field.span, note)
        if len(self.notes) < _MOST_NOTES:
            self.notes.setdefault(key, Note(field.where, Severity.WARNING, note))
        elif key not in self.notes:
            self.first_left_out = self.first_left_out or field
            self.left_out += 1

    def all_notes(self) -> tuple[Note, ...]:
        """The notes in their order; of a text with more than anyone reads, the first ones and a count of the rest."""
        notes = tuple(self.notes.values())
        if self.first_left_out is None:
            return notes
        rest = f"{self.left_out} more unknown fields from here on: is this a net or a solver of Caffe?"
        return (*notes, Note(self.first_left_out.where, Severity.WARNING, rest))

    def _cut_out(self, unknown: list[Field], kept: list[Field]) -> None:
        """In place of an unknown field stands nothing; of a list, its known values."""
        left: dict[tuple[int, int], list[str]] = {field.span: [] for field in unknown if field.listed}
        for field in kept:
            if field.listed and field.span in left:
                left[field.span].append(str(field.value))
        for field in unknown:
            values = left.get(field.span)
            self.cuts[field.span] = f"{field.name}:[{','.join(values)}]" if values else ""

    def _attach_signs(self, kept: list[Field]) -> None:
        """``- 2``, which C++'s parser reads and Python's does not, as ``-2``."""
        lists: dict[tuple[int, int], list[str]] = {}
        for field in kept:
            if isinstance(field.value, str) and not field.listed and field.value.startswith("-"):
                self.cuts[field.span] = f"{field.name}:{field.value}"
            elif isinstance(field.value, str) and field.listed:
                lists.setdefault(field.span, [field.name]).append(field.value)
        for span, (name, *values) in lists.items():
            if any(value.startswith("-") for value in values):
                self.cuts[span] = f"{name}:[{','.join(values)}]"


def _cut(text: str, cuts: Mapping[tuple[int, int], str]) -> str:
    """Replace spans by what is left of them, padded with blanks: all the rest keeps its line and column."""
    parts: list[str] = []
    at = 0
    for (start, end), left in sorted(cuts.items()):
        parts += text[at:start], left, re.sub(r"[^\n]", " ", text[start + len(left) : end])
        at = end
    return "".join(parts) + text[at:]


@cache
def _unknown_field(message: str, name: str, kind: str) -> str:
    """The note on a field that is unknown; ``kind`` is the type of the layer whose own settings it holds."""
    if kind and not forks_with(message, name):
        return f"unknown field {name!r} in {message}: the settings of a fork's {kind} layer"
    return f"unknown field {name!r} in {message}{_whose(message, message, name, facts(message), 'a field')}"


def _own_type(block: Block, name: str) -> str:
    """The layer type that a field ``TYPE_param`` is named after, if the block is a layer of that type; else empty."""
    if not name.endswith("_param"):
        return ""
    kinds = (unquote(field.value) or "" for field in block.all("type") if isinstance(field.value, str))
    return next((kind for kind in kinds if kind.casefold() == name.removesuffix("_param").replace("_", "")), "")


def _check_format(field: Field, message: str) -> None:
    """Refuse the old format's multipliers in today's format, where no Caffe reads them."""
    today = {"blobs_lr": "lr_mult", "weight_decay": "decay_mult"}.get(field.name)
    if message == "LayerParameter" and today is not None:
        raise PrototxtError(
            f"{field.name!r} belongs to the old format, 'layers', and has no effect in 'layer'",
            where=field.where,
            found=f"{field.name}: {field.value}" if isinstance(field.value, str) else None,
            expected=f"param {{ {today}: ... }}, one block for each blob",
            hint="Caffe refuses this too",
        )


def _unknown_use(field: Field, fact: Fact, message: str) -> str:
    """What the schema does not know about the way in which a known field is used; empty if there is nothing."""
    if field.listed and not fact.repeated and (message, field.name) in LISTED_IN_FORKS:
        return f"a list for {field.name!r} in {message}, which takes one value in BVLC's Caffe; {_fate(message)}"
    if fact.enum is None or fact.values is None or _may_be_known(field.value, fact.values):
        return ""
    whose = _whose(message, fact.enum, str(field.value), fact.values, "a value")
    return f"unknown value {field.value} of {field.name!r} in {message}{whose}"


def _may_be_known(value: str | Block, values: Mapping[str, int]) -> bool:
    """Whether an enum has this value, by name or number; what is neither is left to protobuf to refuse."""
    if not isinstance(value, str) or value in values:
        return True
    try:
        return int(value, 0) in values.values()
    except ValueError:
        return not value[:1].isalpha() and value[:1] != "_"


def _whose(message: str, owner: str, name: str, candidates: Collection[str], what: str) -> str:
    """The forks that know a name (whoever reads the recipe may know what it does), or what becomes of it."""
    if forks := forks_with(owner, name):
        return f": {what} of the fork{'s' * (len(forks) > 1)} {', '.join(forks)}"
    if meant := close_name(name, candidates):
        return f"; did you mean {meant!r}? ignored"
    return f"; {_fate(message)}"


def _fate(message: str) -> str:
    """What becomes of the unknown: ``layer_settings`` keeps what a layer's messages hold."""
    in_settings = message.endswith("Parameter") and message not in ("NetParameter", "SolverParameter")
    return "kept as written" if in_settings else "ignored"


def _check_single(field: Field, fact: Fact, message: str, first: Field | None) -> None:
    if field.listed:
        raise _misfit(field, fact, message, "a list")
    if first is not None:
        raise PrototxtError(
            f"{field.name!r} is stated twice in the same {message}",
            where=field.where,
            found=f"the first one at {first.where.line}:{first.where.column}",
            expected=f"one {field.name!r}",
            hint="Caffe refuses this too: delete one of them",
        )


def _misfit(field: Field, fact: Fact, message: str, found: str) -> PrototxtError:
    if message == "V1LayerParameter" and field.name == "param":
        return mixed_formats(field)
    return PrototxtError(f"{field.name!r} in {message} cannot be {found}", where=field.where, expected=expected(fact))


def mixed_formats(field: Field) -> PrototxtError:
    """The error for today's fields in a layer of the old format."""
    return PrototxtError(
        "this layer mixes the two formats: 'layers' is the old one, with type: CONVOLUTION and blobs_lr",
        where=field.where,
        found=f"{field.name}: {field.value}" if isinstance(field.value, str) else f"{field.name} {{ ... }}",
        hint="write 'layer' instead of 'layers'",
    )


# What our schema does not know but a fork's does: ``fork_names.csv``, facts gathered from 28 forks' caffe.proto.

_VERSION = re.compile(r"-(?:\d[\d.]*|3d)$")


@cache
def _table() -> dict[tuple[str, str], tuple[str, ...]]:
    with Path(__file__).with_name("fork_names.csv").open(encoding="utf-8", newline="") as file:
        return {(row["owner"], row["name"]): _forks(row["forks"]) for row in csv.DictReader(file)}


def _forks(joined: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_VERSION.sub("", fork) for fork in joined.split("+")))


def forks_with(owner: str, name: str) -> tuple[str, ...]:
    """The forks whose ``owner`` (a message, or an enum as ``PoolingParameter.PoolMethod``) has this field or value.

    >>> forks_with("SolverParameter", "rampup_lr")
    ('nvidia',)
    """
    return _table().get((owner, name), ())


# What protobuf reads although it is not what the file's author meant, or not what Caffe would read: notes.

_ODD = re.compile(
    r"""(?P<placeholder>\$\{[^}\s]+\}|@[A-Z_]+@)
      |(?<!\\)(?:\\\\)*(?P<escape>\\[^abfnrtv\\?'"0-7xXuU\n])""",
    re.VERBOSE,
)


def parse_warnings(block: Block, message: Any, text: str) -> tuple[Note, ...]:
    """Notes on odd strings and on required fields that are missing.

    Args:
        block: What the schema knows of the text.
        message: The protobuf message that it gave (the type stubs leave out a method that is called here).
        text: The text without what the schema does not know.
    """
    may_be_odd = any(mark in text for mark in "$@\\") and _ODD.search(text) is not None
    odd = _odd_strings(block) if may_be_odd else ()
    missing = () if message.IsInitialized() else _missing(block, message.FindInitializationErrors())
    return (*odd, *missing)


def _odd_strings(block: Block) -> Iterator[Note]:
    """Notes on a template's placeholders (anywhere but in a string they are errors) and on unknown escapes.

    protobuf's Python parser keeps an unknown escape (``"C:\\data"``); that of C++, and so Caffe, refuses it.
    """
    for field in block.fields:
        if isinstance(field.value, Block):
            yield from _odd_strings(field.value)
        elif (odd := _ODD.search(field.value)) is not None:
            what = (
                f"a template's {odd['placeholder']} is not filled in"
                if odd["placeholder"]
                else f"the escape {odd['escape']} is kept as it stands, but Caffe refuses it"
            )
            yield Note(field.where, Severity.WARNING, f"in the string of {field.name!r}, {what}")


def _missing(block: Block, paths: list[str]) -> Iterator[Note]:
    """Notes on required fields (only ClipParameter has any), from paths as ``layer[3].clip_param.max``."""
    for path in paths:
        *steps, name = path.split(".")
        where, inner = None, block
        for step in steps:
            field_name, _, index = step.rstrip("]").partition("[")
            field = inner.all(field_name)[int(index or 0)]
            assert isinstance(field.value, Block)
            where, inner = field.where, field.value
        yield Note(where, Severity.WARNING, f"{steps[-1]} does not state {name!r}, which Caffe requires")
