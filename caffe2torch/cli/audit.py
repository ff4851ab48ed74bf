"""``caffe2torch audit NET SOLVER``: check an optimizer that someone else wrote."""

from __future__ import annotations

from typing import Any

import click

from caffe2torch.cli.options import model_options, net_state, one_or_two_files, read_files, read_model, report_options
from caffe2torch.cli.output import Outputs, report_file_text, show_report


@click.command("audit")
@one_or_two_files
@model_options
@click.option("--optimizer", required=True, metavar="MODULE:FACTORY", help="Called with the model.")
@click.option("--scheduler", metavar="MODULE:FACTORY", help="Called with the optimizer; stepped once an iteration.")
@click.option(
    "--lock", type=click.Path(), metavar="FILE.json", help="What translate --lock wrote, instead of prototxts."
)
@click.option(
    "--accept", multiple=True, metavar="KIND", help="A kind of departure that you know of: it becomes a note."
)
@report_options
@net_state
def command(
    files: tuple[str, ...],
    model: str | None,
    names: str | None,
    finetune: tuple[tuple[str, float], ...],
    optimizer: str,
    scheduler: str | None,
    lock: str | None,
    report_file: str | None,
    style: str,
    force: bool,
    stages: tuple[str, ...],
    level: int | None,
    inputs: tuple[tuple[str, tuple[int, ...]], ...],
    **choices: Any,
) -> None:
    """Check by what it does whether an optimizer trains a model as Caffe would have trained NET by SOLVER.

    Copies of its parameters are stepped; model and optimizer are left as they are. Exit status 1 where it departs.

    \b
    caffe2torch audit train.prototxt solver.prototxt --model port:Net --optimizer train.py:make_optimizer
    caffe2torch audit --lock port.lock.json --model port:Net --optimizer train.py:make_optimizer
    """
    if model is None:
        raise click.UsageError("an audit needs --model MODULE:FACTORY, the model that the optimizer is for")
    if (lock is None) == (not files):
        raise click.UsageError("name either the prototxts or a --lock file")
    outputs = Outputs(report_file, inputs=(*files, lock, names, model, optimizer, scheduler), force=force)

    from caffe2torch.lock import read_lock

    asked: Any = read_files(files, stages=stages, level=level, inputs=inputs) if lock is None else read_lock(lock)
    if lock is None:
        outputs.check_against(asked)

    from caffe2torch.auditing import audit
    from caffe2torch.models.loading import call_factory

    built, named = read_model(model, names)
    assert built is not None
    theirs = call_factory(optimizer, built)
    report = audit(
        asked,
        built,
        theirs,
        None if scheduler is None else call_factory(scheduler, theirs),
        names=named,
        finetune=dict(finetune),
        **choices,
    )
    if report_file is not None:
        outputs.write({report_file: report_file_text(report, report_file)})
    show_report(report, style)
    click.get_current_context().exit(0 if report.ok else 1)
