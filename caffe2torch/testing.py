"""For the test suites of ports: one assertion, and a failure that says which parameters and why."""

from __future__ import annotations

from typing import Any

from torch import nn

from caffe2torch.auditing import audit
from caffe2torch.lock import Lock
from caffe2torch.recipe import NetRecipe
from caffe2torch.report.text import verdict_line

__all__ = ["assert_optimizer_matches"]

SHOWN = 10


def assert_optimizer_matches(
    recipe: NetRecipe | Lock, model: nn.Module, optimizer: Any, scheduler: Any = None, **settings: Any
) -> None:
    """Fail unless ``optimizer`` trains every parameter of ``model`` as the recipe says.

    Arguments are those of ``caffe2torch.audit``, and so is what it raises on bad input; a departure raises
    ``AssertionError`` with at most ten causes, each with both values, its line of the prototxt and the fix, and the
    checks that differ.

    >>> import torch
    >>> from caffe2torch.lock import read_lock
    >>> def test_the_port_learns_as_caffe_did():
    ...     model = MyNet()
    ...     assert_optimizer_matches(read_lock("port.lock.json"), model, make_optimizer(model))
    """
    report = audit(recipe, model, optimizer, scheduler, **settings)
    if report.ok:
        return
    causes = [f"- {cause.text}" for cause in report.causes]
    more = [f"... and {len(causes) - SHOWN} more"] if len(causes) > SHOWN else []
    checks = [f"- {check.name}: {check.text}" for check in report.differing]
    raise AssertionError("\n".join([verdict_line(report), *causes[:SHOWN], *more, *checks]))
