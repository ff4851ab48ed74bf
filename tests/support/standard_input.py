"""Standard input of this process, so that a command that reads it needs no process of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def standard_input(text: str) -> Iterator[None]:
    """Let descriptor 0 be a pipe with ``text``, which must fit into it."""
    reading, writing = os.pipe()
    kept = os.dup(0)
    os.write(writing, text.encode())
    os.close(writing)
    os.dup2(reading, 0)
    os.close(reading)
    try:
        yield
    finally:
        os.dup2(kept, 0)
        os.close(kept)
