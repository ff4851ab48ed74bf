"""A place in a file, carried by everything that was read from one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Where:
    """A place in a prototxt; ``line`` and ``column`` count from 1.

    >>> str(Where("train.prototxt", 31, 3))
    'train.prototxt:31:3'
    """

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"
