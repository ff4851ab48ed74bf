"""Every error raised on bad input: where it is, what was found, what was expected, what to do."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["describe", "visible"]


def visible(text: str, *, lines: bool = False) -> str:
    """Text whose every character prints: control characters, right-to-left marks and the like become escapes.

    Names come out of files that anyone may have written. Everything that reaches a terminal passes through here, so
    that it shows them and does not obey them.

    Args:
        text: Any text.
        lines: Whether the line feeds in it are meant, as those of a message of several lines are.

    >>> print(visible("conv\\x1b[31m1\\u202e"))
    conv\\x1b[31m1\\u202e
    """
    if text.isprintable():
        return text
    if lines:
        return "\n".join(map(visible, text.split("\n")))
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def describe(error: BaseException) -> str:
    """What a user's code raised, in words, even where its message raises in turn.

    >>> describe(ValueError("no weights here"))
    'ValueError: no weights here'
    """
    name = type(error).__name__
    try:
        message = str(error)
    except BaseException as another:  # a __str__ of the user's own may raise anything
        message = f"its message raises {type(another).__name__}"
    return f"{name}: {message}" if message else name


class Caffe2TorchError(Exception):
    """Base of every error that caffe2torch raises on bad input.

    ``message`` says what is wrong in one sentence; ``where`` is its place, ``found`` and ``expected`` the two
    sides of it, ``hint`` what to do about it. Any of them but the message may be absent.

    >>> from caffe2torch.errors import SourceLocation
    >>> place = SourceLocation("solver.prototxt", 3, 1)
    >>> print(Caffe2TorchError("unknown policy 'cosine'", where=place, hint="use 'step'"))
    solver.prototxt:3:1: unknown policy 'cosine'
      hint: use 'step'
    """

    def __init__(
        self,
        message: str,
        *,
        where: SourceLocation | str | None = None,
        found: str | None = None,
        expected: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.found = found
        self.expected = expected
        self.hint = hint

    def __str__(self) -> str:
        place = "" if self.where is None else f"{visible(str(self.where))}: "
        lines = [place + self.message]
        for label, text in (("found", self.found), ("expected", self.expected), ("hint", self.hint)):
            if text is not None:
                lines.append(f"  {label}: {text}")
        return visible("\n".join(lines), lines=True)


class InputError(Caffe2TorchError):
    """A file that cannot be read: missing, a directory, empty, not text. ``where`` is its path."""


class PrototxtError(Caffe2TorchError):
    """Text that protobuf's text format does not allow."""


class NetError(Caffe2TorchError):
    """A net that Caffe refuses to build, or whose learnable blobs cannot be known."""


class SolverError(Caffe2TorchError):
    """A solver that Caffe refuses."""


class UnsupportedError(Caffe2TorchError):
    """Something that Caffe or a fork of it does and that we refuse by name rather than approximate."""


class BindingError(Caffe2TorchError):
    """Blobs and parameters that do not belong to each other, or not certainly."""


class ModelError(Caffe2TorchError):
    """A model or optimizer factory that cannot be found, raises, or returns something else."""


class SnapshotError(Caffe2TorchError):
    """A .caffemodel, .solverstate or checkpoint that is damaged or belongs to another net."""


class OutputError(Caffe2TorchError):
    """A file that cannot be written, or exists already."""


class MissingExtraError(Caffe2TorchError):
    """An optional dependency that this call needs; the hint names the extra to install."""


# A place in a file, which everything that was read from one has.


@dataclass(frozen=True, slots=True, order=True)
class SourceLocation:
    """A place in a prototxt; ``line`` and ``column`` count from 1.

    >>> str(SourceLocation("train.prototxt", 31, 3))
    'train.prototxt:31:3'
    """

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"
