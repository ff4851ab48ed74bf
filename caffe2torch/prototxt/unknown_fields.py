"""Unknown fields: what the schema does not know becomes a note and is cut out of the text."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from functools import cache, lru_cache
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any

from caffe2torch.errors import PrototxtError
from caffe2torch.prototxt.descriptors import Fact, facts
from caffe2torch.prototxt.parser import BLOCK, DETACHED_SIGN, LEFT_OUT, LISTED, UNKNOWN, Block, Field, Table, unquote
from caffe2torch.recipe import Note, Severity
from caffe2torch.wording import close_name

__all__ = ["LISTED_IN_FORKS", "expected", "forks_with", "mixed_formats", "parse_warnings", "separate_unknown"]

LISTED_IN_FORKS = {("SolverParameter", "device_id")} | {
    ("PoolingParameter", name) for name in ("kernel_size", "pad", "stride")
}
"""Single for BVLC and repeated in yjxiong's forks (pooling in OpenCL's too): a list there is a fork's, no mistake."""

_MOST_NOTES = 1000

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


def separate_unknown(block: Block, message: str) -> tuple[str, tuple[Note, ...]]:
    """Separate what a message's schema knows from what it does not: that is marked, and found in ``Block.unknown``.

    Args:
        block: A whole file.
        message: The name of the message that it is.

    Returns:
        The text without what is unknown, for protobuf's own parser, and a note for each field that is.

    Raises:
        PrototxtError: a single field is stated twice or as a list, a block stands where a value belongs or the other
            way round. protobuf's parsers, C++'s and Python's, refuse these too. So is a field of the old format in
            today's ``layer``, where Caffe has none of the name.
    """
    separation = _Separation(block.table)
    separation.mark(block.row, message)
    return _known_text(block.table), separation.all_notes()


def expected(fact: Fact) -> str:
    """What a field of this type takes, in words.

    >>> expected(facts("SolverParameter")["solver_mode"])
    'one of CPU, GPU'
    """
    return _TAKES[fact.type] if fact.values is None else f"one of {', '.join(fact.values)}"


class _Separation:
    """One pass over the blocks: marks what is unknown and collects the notes."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.notes: dict[tuple[int, str], Note] = {}  # once per list, not once per element
        self.first_left_out: Field | None = None
        self.left_out = 0
        self.last = -1  # where the last unknown field begins
        self.types: dict[int, tuple[str, ...]] = {}  # stated by a block

    def mark(self, row: int, message: str) -> None:
        """Mark what ``message`` does not know of a block."""
        table, known = self.table, facts(message)
        names, values, marks = table.names, table.values, table.marks
        singles: dict[str, int] = {}
        for one in table.inside(row):
            name = names[one]
            fact = known.get(name)
            if fact is None or ((fact.values or marks[one]) and _is_unknown_use(Field(table, one), fact, message)):
                marks[one] |= UNKNOWN
                self._note(one, row, message, fact)
                continue
            if not fact.repeated:
                if marks[one] or name in singles:
                    raise _not_single(Field(table, one), fact, message, singles.get(name))
                singles[name] = one
            elif marks[one] and values[one] == table.stops[one]:
                marks[one] |= LEFT_OUT  # an empty list is nothing
                continue
            if values[one] == BLOCK:
                if fact.message is None:
                    raise _misfit(Field(table, one), fact, message, "a block")
                self.mark(one, fact.message)
            elif fact.message is not None:
                raise _misfit(Field(table, one), fact, message, f"the value {table.value(one)}")

    def _note(self, row: int, block: int, message: str, fact: Fact | None) -> None:
        field, begin = Field(self.table, row), self.table.begins[row]
        if fact is None:
            _check_format(field, message)
        if len(self.notes) < _MOST_NOTES:
            if fact is None:
                text = _unknown_field(message, field.name, self._own_type(block, field.name))
            else:
                text = _unknown_use(field, fact, message)
            self.notes.setdefault((begin, text), Note(field.where, Severity.WARNING, text))
        elif begin != self.last:
            self.first_left_out = self.first_left_out or field
            self.left_out += 1
        self.last = begin

    def _own_type(self, block: int, name: str) -> str:
        """The type that a field ``TYPE_param`` is named after, if the block is a layer of that type; else empty."""
        if not name.endswith("_param"):
            return ""
        if block not in self.types:
            stated = (field.value for field in Block(self.table, block).each() if field.name == "type")
            self.types[block] = tuple(unquote(value) or "" for value in stated if isinstance(value, str))
        own = name.removesuffix("_param").replace("_", "")
        return next((kind for kind in self.types[block] if kind.casefold() == own), "")

    def all_notes(self) -> tuple[Note, ...]:
        """The notes in their order; of a text with more than anyone reads, the first ones and a count of the rest."""
        notes = tuple(self.notes.values())
        if self.first_left_out is None:
            return notes
        rest = f"{self.left_out} more unknown fields from here on: is this a net or a solver of Caffe?"
        return (*notes, Note(self.first_left_out.where, Severity.WARNING, rest))


def _known_text(table: Table) -> str:
    """The text with blanks in place of what is unknown (all the rest keeps its line and column), and with ``- 2``,
    which C++'s parser reads and Python's does not, as ``-2``.
    """
    text = table.text
    signs = DETACHED_SIGN.search(text) is not None
    if not signs and max(table.marks) < UNKNOWN:
        return text
    known, at, row, seen = StringIO(), 0, 1, -1
    while row < len(table.names):
        begin, end = table.begins[row], table.ends[row]
        left = None if begin == seen else _left(table, row, signs=signs)
        seen = begin
        if left is None:
            row += 1
            continue
        known.write(text[at:begin] + left + _MARKS.sub(" ", text[begin + len(left) : end]))
        at = end
        while row < len(table.names) and table.begins[row] == begin:
            row = table.stops[row] if table.values[row] == BLOCK else row + 1
    known.write(text[at:])
    return known.getvalue()


_MARKS = re.compile(r"[^\n]")


def _left(table: Table, row: int, *, signs: bool) -> str | None:
    """What is left of a field, of a list's values at their first one; ``None`` where it can stay as it is."""
    if table.values[row] == BLOCK:
        return "" if table.marks[row] & UNKNOWN else None
    begin, rows = table.begins[row], [row]
    while table.marks[row] & LISTED and (row := row + 1) < len(table.names) and table.begins[row] == begin:
        rows.append(row)
    as_it_is = not any(table.marks[one] & UNKNOWN for one in rows)
    if as_it_is and not (signs and any(DETACHED_SIGN.match(table.text, table.values[one]) for one in rows)):
        return None
    values = [table.value(one) for one in rows if not table.marks[one] & UNKNOWN]
    if not values:
        return ""
    listed = table.marks[rows[0]] & LISTED
    return f"{table.names[rows[0]]}:" + (f"[{','.join(values)}]" if listed else values[0])


@lru_cache(maxsize=_MOST_NOTES)
def _unknown_field(message: str, name: str, kind: str) -> str:
    """The note on a field that is unknown; ``kind`` is the type of the layer whose own settings it holds."""
    if kind and not forks_with(message, name):
        return f"unknown field {name!r} in {message}: the settings of a fork's {kind} layer"
    return f"unknown field {name!r} in {message}{_whose(message, message, name, facts(message), 'a field')}"


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


def _is_unknown_use(field: Field, fact: Fact, message: str) -> bool:
    """Whether the schema does not know the way in which a known field is used."""
    if field.listed and not fact.repeated and (message, field.name) in LISTED_IN_FORKS:
        return True
    return fact.values is not None and not _may_be_known(field.value, fact.values)


def _unknown_use(field: Field, fact: Fact, message: str) -> str:
    if fact.enum is None or fact.values is None:
        return f"a list for {field.name!r} in {message}, which takes one value in BVLC's Caffe; {_fate(message)}"
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


def _not_single(field: Field, fact: Fact, message: str, first: int | None) -> PrototxtError:
    if field.listed or first is None:
        return _misfit(field, fact, message, "a list")
    where = Field(field.table, first).where
    return PrototxtError(
        f"{field.name!r} is stated twice in the same {message}",
        where=field.where,
        found=f"the first one at {where.line}:{where.column}",
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
    odd = _odd_strings(block) if may_be_odd else iter(())
    missing = iter(()) if message.IsInitialized() else _missing(block, message.FindInitializationErrors())
    return (*_first(odd, "odd strings"), *_first(missing, "fields that Caffe requires"))


def _first(notes: Iterator[Note], what: str) -> Iterator[Note]:
    """The first notes of many, and a count of the rest."""
    yield from islice(notes, _MOST_NOTES)
    for note in notes:
        yield Note(note.where, Severity.WARNING, f"{1 + sum(1 for _ in notes)} more {what} from here on")


def _odd_strings(block: Block) -> Iterator[Note]:
    """Notes on a template's placeholders (anywhere but in a string they are errors) and on unknown escapes.

    protobuf's Python parser keeps an unknown escape (``"C:\\data"``); that of C++, and so Caffe, refuses it.
    """
    for field in block.each():
        if isinstance(field.value, Block):
            yield from _odd_strings(field.value)
        elif (odd := _ODD.search(field.value)) is not None:
            what = (
                f"a template's {odd['placeholder']} is not filled in"
                if odd["placeholder"]
                else f"the escape {odd['escape']} is kept as it stands, but Caffe refuses it"
            )
            yield Note(field.where, Severity.WARNING, sys.intern(f"in the string of {field.name!r}, {what}"))


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
        text = sys.intern(f"{steps[-1]} does not state {name!r}, which Caffe requires")
        yield Note(where, Severity.WARNING, text)
