"""Templates: prototxts with placeholders, ``${NAME}`` or ``@NAME@``, that a script fills in before Caffe reads them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from caffe2torch.errors import InputError, PrototxtError
from caffe2torch.recipe import Source

__all__ = ["TemplateError", "check_defines", "fill_in", "placeholders"]

_PLACEHOLDER = re.compile(r"\$\{(\w+)\}|@(\w+)@")


class TemplateError(PrototxtError):
    """A placeholder where a value should stand."""


def fill_in(source: Source, defines: Mapping[str, object]) -> Source:
    """A text with the placeholders that ``defines`` names replaced by their values.

    >>> fill_in(Source("net.prototxt", "num_output: ${NUM_LABELS} # ${X}"), {"NUM_LABELS": 21}).text
    'num_output: 21 # ${X}'
    """

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        return str(defines[name]) if name in defines else match[0]

    return Source(source.file, _PLACEHOLDER.sub(value, source.text)) if defines else source


def placeholders(sources: Iterable[Source]) -> list[str]:
    """The names of all placeholders, each once.

    >>> placeholders([Source("net.prototxt", "num_output: ${NUM_LABELS}"), Source("solver.prototxt", "max_iter: @N@")])
    ['NUM_LABELS', 'N']
    """
    found = (match for source in sources for match in _PLACEHOLDER.finditer(source.text))
    return list(dict.fromkeys(match[1] or match[2] for match in found))


def check_defines(defines: Mapping[str, object], sources: Iterable[Source]) -> None:
    """Refuse a value for a placeholder that no file has. Raises ``InputError``."""
    names = placeholders(sources)
    for name in defines:
        if name not in names:
            raise InputError(
                f"no file has the placeholder ${{{name}}}",
                found=f"placeholders {', '.join(names)}" if names else "no placeholder",
                hint="is its name misspelt?",
            )
