"""What protobuf reads although it is not what the file's author meant, or not what Caffe would read: notes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from caffe2torch.prototxt.parser import Block
from caffe2torch.recipe import Note, Severity

__all__ = ["doubts"]

_ODD = re.compile(
    r"""(?P<placeholder>\$\{[^}\s]+\}|@[A-Z_]+@)
      |(?<!\\)(?:\\\\)*(?P<escape>\\[^abfnrtv\\?'"0-7xXuU\n])""",
    re.VERBOSE,
)


def doubts(block: Block, message: Any, text: str) -> tuple[Note, ...]:
    """Notes on odd strings and on required fields that are missing.

    ``block`` is what the schema knows of ``text``, ``message`` the protobuf message that it gave (the type stubs leave
    out a method that is called here).
    """
    odd = _odd_strings(block) if _ODD.search(text) is not None else ()
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
