"""Solvers for the tests, read from text or from a file."""

from __future__ import annotations

from pathlib import Path

from caffe2torch.prototxt.parser import read_text
from caffe2torch.prototxt.schema import parse_solver
from caffe2torch.recipe import (
    Note,
    Severity,
    SolverSettings,
    Source,
)
from caffe2torch.solver.settings import read_solver

PLAIN = 'net: "n" base_lr: 0.1 lr_policy: "fixed" max_iter: 9 '


def read(text: str) -> tuple[SolverSettings, tuple[Note, ...]]:
    return read_solver(parse_solver(Source("solver.prototxt", text)))


def read_file(path: Path) -> tuple[SolverSettings, tuple[Note, ...]]:
    return read_solver(parse_solver(read_text(path)))


def warnings(text: str) -> list[str]:
    return [note.message for note in read(text)[1] if note.severity is Severity.WARNING]
