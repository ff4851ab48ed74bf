"""Fields and the compiled caffe.proto to messages: protobuf's own parser reads what Caffe's schema knows.

Real files hold fields of every fork. Each that our schema (BVLC's and the SegNet fork's) does not know becomes a
located note and is blanked out of the text; protobuf reads the rest. A text that protobuf accepts as it stands gives
exactly protobuf's message.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from google.protobuf import text_format
from google.protobuf.message import Message

from caffe2torch.errors import NetError, PrototxtError, SourceLocation
from caffe2torch.prototxt import parser as prototxt
from caffe2torch.prototxt.descriptors import facts, message, todays_type
from caffe2torch.prototxt.diagnosis import shown
from caffe2torch.prototxt.parser import Block, Field
from caffe2torch.prototxt.unknown_fields import expected, mixed_formats, parse_warnings, separate_unknown
from caffe2torch.recipe import Note, Source

__all__ = ["Parsed", "inline_net", "is_solver", "message", "parse_net", "parse_solver"]

_NET, _SOLVER = "NetParameter", "SolverParameter"
_KINDS = {_NET: "net", _SOLVER: "solver"}


@dataclass(frozen=True, slots=True)
class Parsed:
    """A prototxt, read. ``block`` is aligned with ``message``: its i-th field ``layer`` is ``message.layer[i]``, that
    one's ``param`` fields are ``.param``, and so on. What the schema does not know is in each block's ``unknown`` and
    in ``notes``.
    """

    message: Message
    block: Block
    notes: tuple[Note, ...]
    source: Source


def parse_net(source: Source, *, to_build: bool = False) -> Parsed:
    """Read a net (``NetParameter``).

    Args:
        source: The text of a net, or of a solver that holds its training net itself.
        to_build: Whether its layers will be built, so that an empty one can be refused at once.

    Returns:
        The net's message, its fields with their places, and notes on what the schema does not know.

    Raises:
        PrototxtError: the text is not in protobuf's text format, gives a field a value that it cannot take or a single
            field two, or is a solver.
        NetError: an empty layer in a net to build.

    >>> parsed = parse_net(Source("net.prototxt", 'layer { name: "ip" tpye: "InnerProduct" }'))
    >>> parsed.message.layer[0].name, str(parsed.notes[0].where)
    ('ip', 'net.prototxt:1:20')
    >>> parsed.notes[0].message
    "unknown field 'tpye' in LayerParameter; did you mean 'type'? ignored"
    """
    block = prototxt.parse(source.text, source.file)
    if not _is_rather(_SOLVER, _NET, block):
        if to_build:
            _refuse_empty_layers(block)
        return _read(source, block, _NET)
    swapped = _swapped(_SOLVER, _NET, block)  # shows fields that reading takes out, too
    net = inline_net(_read(source, block, _SOLVER))
    if net is None:
        raise swapped
    return net


def _refuse_empty_layers(block: Block) -> None:
    """Before protobuf makes a message of each, which takes eighty times their text."""
    table = block.table
    empty = next((row for row in table.named(0, "layer") if table.stops[row] == row + 1 and table.is_block(row)), None)
    if empty is not None:
        raise without_type("", prototxt.Field(table, empty).where)


def without_type(name: str, where: SourceLocation) -> NetError:
    """The error of a layer that takes part and has no type, which Caffe looks up (``layer_factory.hpp``)."""
    return NetError(f"the layer {name!r} has no type", where=where, hint='write type: "Convolution" or whatever it is')


def parse_solver(source: Source) -> Parsed:
    """Read a solver (``SolverParameter``).

    Args:
        source: The text of a solver.

    Returns:
        As for ``parse_net``.

    Raises:
        PrototxtError: as for ``parse_net``, or the text is a net.

    >>> parse_solver(Source("solver.prototxt", "base_lr: 0.5")).message.base_lr
    0.5
    """
    block = prototxt.parse(source.text, source.file)
    if _is_rather(_NET, _SOLVER, block):
        raise _swapped(_NET, _SOLVER, block)
    return _read(source, block, _SOLVER)


def is_solver(source: Source) -> bool:
    """Whether a text is rather a solver than a net, by the names of its fields; raises ``PrototxtError`` as they do.

    >>> is_solver(Source("a.prototxt", "base_lr: 0.5")), is_solver(Source("b.prototxt", 'name: "net" layer { }'))
    (True, False)
    """
    return _is_rather(_SOLVER, _NET, prototxt.parse(source.text, source.file))


def inline_net(solver: Parsed) -> Parsed | None:
    """The training net that a solver holds itself (``net_param`` or ``train_net_param``), with the notes inside it."""
    for name in ("net_param", "train_net_param"):
        for field in solver.block.all(name):
            if isinstance(field.value, Block):
                end = field.table.places.at(field.span[1])
                notes = tuple(note for note in solver.notes if note.where and field.where <= note.where < end)
                return Parsed(getattr(solver.message, name), field.value, notes, solver.source)
    return None


def _is_rather(other: str, wanted: str, block: Block) -> bool:
    """Whether more of the names are known to the other kind of file alone than to the kind that is wanted."""
    names = {field.name for field in block.each()}
    known = names & facts(wanted).keys()
    return len(names & facts(other).keys() - known) > len(known)


def _swapped(got: str, wanted: str, block: Block) -> PrototxtError:
    first = list(islice(block.each(), 4))
    return PrototxtError(
        f"this is a {_KINDS[got]}, not a {_KINDS[wanted]}",
        where=first[0].where,
        found=f"fields of {got}: {', '.join(dict.fromkeys(field.name for field in first))}",
        expected=f"fields of {wanted}",
        hint="the net is named first, the solver second: are the two swapped?",
    )


def _read(source: Source, block: Block, root: str) -> Parsed:
    text, notes = separate_unknown(block, root)
    result = message(root)()
    try:
        _merge(text, result)
    except text_format.ParseError as error:
        raise _refusal(error, block, root, source) from None
    return Parsed(result, block, (*notes, *parse_warnings(block, result, text)), source)


_LARGE = 1 << 18  # characters
_BLANKS = re.compile(r"[^\S\n]{64,}+")


def _merge(text: str, into: Message) -> None:
    if len(text) > _LARGE:
        text = _BLANKS.sub(" ", text)  # of which protobuf's tokenizer keeps 150 bytes each, to be able to step back
    if "\\" not in text:
        text_format.Parse(text, into)
        return
    with warnings.catch_warnings():  # protobuf unescapes by Python's own codec, which deprecates unknown escapes
        warnings.simplefilter("ignore", DeprecationWarning)
        text_format.Parse(text, into)


def _refusal(error: text_format.ParseError, block: Block, root: str, source: Source) -> PrototxtError:
    """What protobuf refuses, at the first value that it refuses on its own as well."""
    for message_name, field in _scalars(block, root):
        try:
            _merge(f"{field.name}: {field.value}", message(message_name)())
        except text_format.ParseError:
            return _unfit(field, message_name)
    line, column = error.GetLine() or 1, error.GetColumn() or 1
    return PrototxtError(
        str(error).removeprefix(f"{line}:{column} : "), where=SourceLocation(source.file, line, column)
    )


def _unfit(field: Field, message_name: str) -> PrototxtError:
    fact, value = facts(message_name)[field.name], str(field.value)
    if (message_name, field.name) == ("V1LayerParameter", "type") and value[0] in "\"'":
        return mixed_formats(field)
    takes, hint = expected(fact), None
    if value[0] in "\"'":
        if fact.type in ("string", "bytes"):
            takes = "a string whose escapes are valid"
        elif fact.type == "enum":
            hint = "an enum's value stands without quotes"
    elif fact.type == "string":
        old_types = facts("V1LayerParameter")["type"].values or {}
        name = todays_type(value) if field.name == "type" and value in old_types else value
        hint = f'{field.name}: "{name}"'
    return PrototxtError(
        f"{field.name!r} in {message_name} cannot be {shown(value)}", where=field.where, expected=takes, hint=hint
    )


def _scalars(block: Block, name: str) -> Iterator[tuple[str, Field]]:
    known = facts(name)
    for field in block.each():
        inner = known[field.name].message
        if inner is None or isinstance(field.value, str):
            yield name, field
        else:
            yield from _scalars(field.value, inner)
