"""Fields and the compiled caffe.proto to messages: what Caffe's schema knows is read by protobuf's own parser.

Real files hold fields of every fork. Each that our schema (BVLC's and the SegNet fork's) does not know becomes a
located note; it is blanked out of the text, and protobuf reads the rest. A text that protobuf accepts as it stands gives
exactly protobuf's message.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from google.protobuf import text_format
from google.protobuf.message import Message

from caffe2torch.caffe import prototxt
from caffe2torch.caffe.descriptors import facts, message
from caffe2torch.caffe.prototxt import Block, Field
from caffe2torch.caffe.sieve import expected, sift
from caffe2torch.errors import PrototxtError
from caffe2torch.recipe import Note, Severity, Source
from caffe2torch.where import Where

__all__ = ["Parsed", "inline_net", "message", "parse_net", "parse_solver"]

_NET, _SOLVER = "NetParameter", "SolverParameter"
_WORDS = {_NET: "net", _SOLVER: "solver"}


@dataclass(frozen=True, slots=True)
class Parsed:
    """A prototxt, read. ``block`` holds what the schema knows and is aligned with ``message``: its i-th field ``layer`` is
    ``message.layer[i]``, that one's ``param`` fields are ``.param``, and so on. What the schema does not know stands
    in each block's ``unknown`` and in ``notes``.
    """

    message: Message
    block: Block
    notes: tuple[Note, ...]
    source: Source


def parse_net(source: Source) -> Parsed:
    """Read a net (``NetParameter``). A solver that holds its net inline gives that net.

    Raises:
        PrototxtError: the text is not in protobuf's text format, states a value that a field cannot take or a single
            field twice, or is a solver without a net.

    >>> parsed = parse_net(Source("net.prototxt", 'layer { name: "ip" tpye: "InnerProduct" }'))
    >>> parsed.message.layer[0].name, str(parsed.notes[0].where)
    ('ip', 'net.prototxt:1:20')
    >>> parsed.notes[0].message
    "unknown field 'tpye' in LayerParameter (did you mean 'type'?); ignored"
    """
    block = prototxt.parse(source.text, source.file)
    if not _looks_like(block, _SOLVER, rather_than=_NET):
        return _read(source, block, _NET)
    solver = _read(source, block, _SOLVER)
    net = inline_net(solver)
    if net is None:
        raise _swapped(source, block, _NET, _SOLVER)
    return net


def parse_solver(source: Source) -> Parsed:
    """Read a solver (``SolverParameter``).

    Raises:
        PrototxtError: as for ``parse_net``; or the text is a net.

    >>> parse_solver(Source("solver.prototxt", "base_lr: 0.5")).message.base_lr
    0.5
    """
    block = prototxt.parse(source.text, source.file)
    if _looks_like(block, _NET, rather_than=_SOLVER):
        raise _swapped(source, block, _SOLVER, _NET)
    return _read(source, block, _SOLVER)


def inline_net(solver: Parsed) -> Parsed | None:
    """The training net that a solver holds itself (``net_param`` or ``train_net_param``), if it does."""
    for name in ("net_param", "train_net_param"):
        for field in solver.block.all(name):
            assert isinstance(field.value, Block)
            return Parsed(getattr(solver.message, name), field.value, solver.notes, solver.source)
    return None


def _looks_like(block: Block, other: str, *, rather_than: str) -> bool:
    """Whether more top-level names belong to the other kind of file alone than belong to this kind."""
    names = {field.name for field in block.fields}
    here, there = names & facts(rather_than).keys(), names & facts(other).keys()
    return len(there - here) > len(here)


def _swapped(source: Source, block: Block, wanted: str, got: str) -> PrototxtError:
    return PrototxtError(
        f"a {_WORDS[got]} where a {_WORDS[wanted]} belongs",
        where=block.fields[0].where if block.fields else source.file,
        found=f"the field '{block.fields[0].name}'",
        expected=f"the fields of a {wanted}",
        hint="the net comes first, the solver second",
    )


def _read(source: Source, block: Block, root: str) -> Parsed:
    sifted = sift(block, root, source.text)
    result = message(root)()
    try:
        _parse_text(sifted.text, result)
    except text_format.ParseError as error:
        raise _refusal(sifted.block, root, error, source) from None
    return Parsed(result, sifted.block, sifted.notes, source)


def _parse_text(text: str, into: Message) -> None:
    if "\\" not in text:
        text_format.Parse(text, into)
        return
    with warnings.catch_warnings():  # protobuf unescapes by Python's own codec, which deprecates unknown escapes
        warnings.simplefilter("ignore", DeprecationWarning)
        text_format.Parse(text, into)


def _refusal(block: Block, root: str, error: text_format.ParseError, source: Source) -> PrototxtError:
    """protobuf's refusal at the value that it is about: the first that it refuses on its own as well."""
    culprit = _culprit(block, root)
    if culprit is None:
        return PrototxtError(str(error), where=Where(source.file, error.GetLine() or 1, error.GetColumn() or 1))
    name, field = culprit
    fact = facts(name)[field.name]
    hint = None
    if fact.type == "string" and field.value[:1] not in "\"'":
        hint = f'{field.name}: "{field.value}"'
    elif fact.type == "enum" and field.value[:1] in "\"'":
        hint = "without quotes"
    return PrototxtError(
        f"{field.name} of {name} cannot be {field.value}", where=field.where, expected=expected(fact), hint=hint
    )


def _culprit(block: Block, name: str) -> tuple[str, Field] | None:
    known = facts(name)
    for field in block.fields:
        if isinstance(field.value, Block):
            inner = known[field.name].message
            assert inner is not None
            if (found := _culprit(field.value, inner)) is not None:
                return found
            continue
        try:
            _parse_text(f"{field.name}: {field.value}", message(name)())
        except text_format.ParseError:
            return name, field
    return None
