"""What our schema does not know but a fork's does: ``fork_names.csv``, facts gathered from 28 forks' caffe.proto."""

from __future__ import annotations

import csv
import re
from functools import cache
from pathlib import Path

__all__ = ["forks_with"]

_VERSION = re.compile(r"-(?:\d[\d.]*|3d)$")


@cache
def _table() -> dict[tuple[str, str], tuple[str, ...]]:
    with Path(__file__).with_name("fork_names.csv").open(encoding="utf-8", newline="") as file:
        return {(row["owner"], row["name"]): _forks(row["forks"]) for row in csv.DictReader(file)}


def _forks(joined: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_VERSION.sub("", fork) for fork in joined.split("+")))


def forks_with(owner: str, name: str) -> tuple[str, ...]:
    """The forks whose ``owner`` (a message, or an enum as ``PoolingParameter.PoolMethod``) has this field or value.

    >>> forks_with("SolverParameter", "rampup_lr")
    ('nvidia',)
    """
    return _table().get((owner, name), ())
