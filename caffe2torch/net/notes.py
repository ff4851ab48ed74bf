"""Notes of one file: what is said of many layers in the same words is said once, at the first of them."""

from __future__ import annotations

from caffe2torch.recipe import Note, Severity
from caffe2torch.where import Where

__all__ = ["Notes"]


class Notes:
    """Collects notes; equal ones become one with a count."""

    def __init__(self) -> None:
        self._places: dict[tuple[Severity, str], list[Where | None]] = {}

    def info(self, where: Where | None, message: str) -> None:
        """Something to know."""
        self.add(Note(where, Severity.INFO, message))

    def warn(self, where: Where | None, message: str) -> None:
        """Something to read and decide about."""
        self.add(Note(where, Severity.WARNING, message))

    def add(self, note: Note) -> None:
        """A note that someone else made."""
        self._places.setdefault((note.severity, note.message), []).append(note.where)

    def finish(self) -> tuple[Note, ...]:
        """One note for each thing said, in the order in which they were first said.

        >>> notes = Notes()
        >>> for line in (3, 9): notes.info(Where("n", line, 1), "so it is")
        >>> [(str(note.where), note.message) for note in notes.finish()]
        [('n:3:1', 'so it is (and 1 more like it, line 9)')]
        """
        return tuple(
            Note(places[0], severity, message + _more([where.line for where in places[1:] if where is not None]))
            for (severity, message), places in self._places.items()
        )


def _more(lines: list[int]) -> str:
    if not lines:
        return ""
    shown = ", ".join(map(str, lines[:3])) + (", ..." if len(lines) > 3 else "")
    return f" (and {len(lines)} more like it, line{'s' * (len(lines) > 1)} {shown})"
