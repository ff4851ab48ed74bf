"""What the verbs print and write: one way to the terminal, and outputs that are checked before any work is done."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from caffe2torch.errors import OutputError, visible
from caffe2torch.report import FORMATS, render

if TYPE_CHECKING:
    from caffe2torch.recipe import NetRecipe
    from caffe2torch.verification.report import Report

__all__ = [
    "Outputs",
    "echo",
    "known_suffixes",
    "on_terminal",
    "report_texts",
    "say",
    "show_report",
    "silence",
    "sized",
]

REPORTS = {one.suffix: style for style, one in sorted(FORMATS.items(), key=lambda pair: pair[1].suffix)}
"""The format of a report by the ending of its file."""

_COLOUR = re.compile(r"(\x1b\[[\d;]*m)")


def echo(text: str, *, err: bool = False, colour: bool = False) -> None:
    """Print a text that ends with a line feed: everything that this program prints passes through here.

    Args:
        text: What to print; control characters in it are shown as escapes.
        err: To stderr; what cannot be written there is dropped.
        colour: Keep the escape sequences that set colours, which the text is known to have of our own.

    Raises:
        OutputError: stdout is closed or takes no more.
    """
    stream: TextIO | None = sys.stderr if err else sys.stdout
    parts = _COLOUR.split(text) if colour else [text]
    shown = "".join(part if index % 2 else visible(part, lines=True) for index, part in enumerate(parts))
    try:
        if stream is None:
            raise OutputError("is closed", where="standard output")
        encoding = getattr(stream, "encoding", None) or "utf-8"
        stream.write(shown.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except OSError as error:
        silence(stream)
        if not err:
            raise OutputError(f"cannot be written: {error.strerror or error}", where="standard output") from None
    except OutputError:
        if not err:
            raise


def silence(stream: TextIO | None) -> None:
    """Lead a stream that takes no more to nowhere, or Python would write the rest at its end, and fail with 120."""
    with suppress(OSError, ValueError):  # a stream of a test's has no descriptor
        if stream is not None:
            descriptor, nowhere = stream.fileno(), os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)


def on_terminal() -> bool:
    """Whether somebody looks at stdout."""
    return sys.stdout is not None and sys.stdout.isatty()


def sized() -> bool:
    """Whether it is known how wide what is printed may be: from a terminal, or ``COLUMNS``."""
    return on_terminal() or os.environ.get("COLUMNS", "").isdecimal()


class Outputs:
    """The files that one command is to write, checked before anything is computed.

    Args:
        *paths: Where they go; ``None`` for one that was not asked for.
        inputs: What the command reads: files, and ``MODULE:FACTORY`` texts that may name scripts.
        force: Whether existing files may be replaced.

    Raises:
        OutputError: As ``caffe2torch.outputs.check_outputs``.
    """

    def __init__(self, *paths: str | None, inputs: Iterable[str | None], force: bool) -> None:
        from caffe2torch.outputs import check_outputs, stream_of

        self.paths = [path for path in paths if path is not None]
        self.force = force
        check_outputs(self.paths, [_script(one) for one in inputs if one is not None], force=force)
        self.prints_to_stderr = any(stream_of(path) == 1 for path in self.paths)
        """Whether an output goes to stdout, so that what is printed besides must not."""

    def check_against(self, recipe: NetRecipe) -> None:
        """Refuse outputs over files that the command line does not name: a solver names its net."""
        from caffe2torch.outputs import check_outputs

        check_outputs(self.paths, [source.file for source in recipe.sources], force=self.force)

    def write(self, contents: dict[str, str | bytes]) -> None:
        """Write all of them, or on an error none, and say which."""
        from caffe2torch.outputs import is_stream, write_files

        write_files(contents, force=self.force)
        for path in contents:
            if not is_stream(path):
                say(f"wrote {path}\n", err=True)


def _script(text: str) -> str:
    """The script that ``path/to/it.py:Net(3)`` names; any other text as it is."""
    module, colon, _ = text.partition("(")[0].rpartition(":")
    return module if colon and module.endswith(".py") else text


def report_texts(report: Report, paths: Iterable[str]) -> dict[str, str | bytes]:
    """The report for each file, in the style that its ending asks for."""
    return {path: render(report, REPORTS[Path(path).suffix.lower()], full=True) for path in paths}


def show_report(
    report: Report, style: str, *, full: bool = False, only: str | None = None, next_step: str = "", err: bool = False
) -> None:
    """Print a report, in colour where that is wanted."""
    colour = style == "text" and _coloured(err)
    options = {"full": full, "only_wrong": only == "wrong", "fit": sized()}
    shown = render(report, style, colour=colour, next_step=next_step, **options)
    say(shown, err=err, colour=colour)


def say(text: str, *, err: bool = False, colour: bool = False) -> None:
    """Print what ``--quiet`` keeps silent: everything but errors, and files that are printed."""
    if not click.get_current_context().meta.get("quiet"):
        echo(text, err=err, colour=colour)


def _coloured(err: bool) -> bool:
    wishes = click.get_current_context().meta
    if wishes.get("no_color") or wishes.get("color") == "never":
        return False
    return wishes.get("color") == "always" or (not err and on_terminal() and not os.environ.get("NO_COLOR"))


def known_suffixes(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """A callback that refuses a report of an unknown kind; a file that is named twice is written once."""
    del ctx, param
    for value in values:
        if Path(value).suffix.lower() not in REPORTS:
            raise click.BadParameter(f"{value!r} ends in none of {', '.join(REPORTS)}")
    return tuple(dict.fromkeys(values))
