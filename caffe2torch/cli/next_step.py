"""The command to type after a report: what was typed, with what comes next, to be copied into a shell."""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection

import click

from caffe2torch.verification.report import FaultKind, Report

__all__ = ["after_audit", "after_translate"]

_OUTPUTS = {"output", "report_files", "write_names", "fix", "force"}

_KNOWN = {FaultKind.RATE_CHANGE, FaultKind.FROZEN}
"""What somebody may know of and accept, the rest being right."""

_OF_OTHERS = {FaultKind.FROZEN, FaultKind.UNCLAIMED, FaultKind.LOSS, FaultKind.MODEL}
"""What another optimizer does not mend."""


def after_translate(report: Report, output: str | None) -> str:
    """Write the optimizer, where it is right and was not written."""
    from caffe2torch.emit import not_carried

    if not report.ok or output is not None or not_carried(report.solver):
        return ""
    return _again("-o", _unused_file(), without={"lock"})


def after_audit(report: Report, fix: str | None) -> str:
    """Accept what there is to know, write the right optimizer, or audit the one that was written."""
    from caffe2torch.emit import not_carried

    kinds = _kinds(report)
    if report.ok or not report.bound:
        return ""
    if fix is not None:
        written = ("--optimizer", f"{fix}:build_optimizer", "--scheduler", f"{fix}:build_scheduler")
        return _again(*written, without={"optimizer", "scheduler"}) if fix.endswith(".py") else ""
    if kinds <= _KNOWN:
        return _again(*(word for kind in sorted(kinds) for word in ("--accept", kind)))
    if kinds <= _OF_OTHERS or not_carried(report.solver):
        return ""
    return _again("--fix", _unused_file())


def _kinds(report: Report) -> set[FaultKind]:
    """Of all that makes a report not ok."""
    wrong = [*report.wrong, *(check for check in report.differing if check.counts)]
    whole = [cause for cause in report.causes if not cause.parameters]
    return {fault.kind for one in wrong for fault in one.faults} | {kind for cause in whole for kind in cause.kinds}


def _again(*more: str, without: Collection[str] = ()) -> str:
    """The command as it was typed, with ``more`` in place of its outputs and of options ``without``.

    Empty where it cannot be typed again as it is: it read a pipe, or ended its options by ``--``.
    """
    context = click.get_current_context()
    verb, *words = context.meta["typed"]
    if context.meta.get("stdin") or "--" in words:
        return ""
    options = {
        name: option for option in context.command.params if isinstance(option, click.Option) for name in option.opts
    }
    left = {*_OUTPUTS, *without}
    kept, rest = [verb], iter(words)
    for word in rest:
        name = word.partition("=")[0] if word.startswith("--") else word[:2]
        option = options.get(name)
        taken = [word]
        if option is not None and not option.is_flag and name == word:
            taken.append(next(rest, ""))
        if option is None or option.name not in left:
            kept += taken
    return f"{context.find_root().info_name} {shlex.join([*kept, *more])}"


def _unused_file() -> str:
    """``optimizer.py``, or where that exists another name like it."""
    names = ("optimizer.py", *(f"optimizer{number}.py" for number in range(2, 100)))
    return next((name for name in names if not os.path.lexists(name)), names[0])
