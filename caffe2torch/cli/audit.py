"""``caffe2torch audit NET SOLVER``: check an optimizer that someone else wrote."""

from __future__ import annotations

from typing import Any

import click

from caffe2torch.cli.next_step import after_audit
from caffe2torch.cli.options import (
    InputPath,
    accept_options,
    draft_to,
    model_options,
    one_or_two_files,
    options_of_every_verb,
    read_files,
    read_model,
    refuse_reading_options,
    report_options,
)
from caffe2torch.cli.output import Outputs, report_texts, show_report


@click.command("audit")
@one_or_two_files
@model_options
@click.option(
    "--optimizer",
    required=True,
    metavar="MODULE:FACTORY",
    help="Called with the model; gives one or a list of several.",
)
@click.option(
    "--scheduler",
    metavar="MODULE:FACTORY",
    help="Called with what --optimizer gave; stepped once an iteration. A list for several, None where there is none.",
)
@click.option(
    "--lock", type=InputPath(), metavar="FILE.json", help="What translate --lock wrote, instead of prototxts."
)
@accept_options
@click.option(
    "--accumulation",
    type=click.Choice(["sum", "mean"]),
    help="Your loop sums the gradients of iter_size passes, or averages them; by default both are tried.",
)
@click.option(
    "--fix", type=click.Path(), metavar="FILE.py", help="Write a right optimizer and scheduler as Python, beside yours."
)
@click.option(
    "--loss",
    metavar="MODULE:FACTORY",
    help="Your loss: called without arguments, it gives loss(scores, labels), which is compared with the net's.",
)
@click.option("--by-role", is_flag=True, help="Judge parameters by their role alone, where layers cannot be bound.")
@click.option("--write-names", type=click.Path(), metavar="FILE.toml", help="Write the binding, or a draft of it.")
@report_options
@options_of_every_verb
def command(
    files: tuple[str, ...],
    model: str | None,
    names: str | None,
    finetune: tuple[tuple[str, float], ...],
    optimizer: str,
    scheduler: str | None,
    loss: str | None,
    lock: str | None,
    write_names: str | None,
    fix: str | None,
    report_files: tuple[str, ...],
    style: str,
    full: bool,
    only: str | None,
    force: bool,
    **choices: Any,
) -> None:
    """Check by what it does whether an optimizer trains a model as Caffe would have trained NET by SOLVER.

    Copies of its parameters are stepped; model and optimizer are left as they are. Exit status 1 where it departs.

    \b
    caffe2torch audit train.prototxt solver.prototxt --model port:Net --optimizer train.py:make_optimizer
    caffe2torch audit --lock port.lock.json --model port:Net --optimizer train.py:make_optimizer
    """
    import tomli_w

    if model is None:
        raise click.UsageError("an audit needs --model MODULE:FACTORY, the model that the optimizer is for")
    if (lock is None) == (not files):
        raise click.UsageError("name either the prototxts or a --lock file")
    if lock is not None:
        refuse_reading_options()
    outputs = Outputs(
        *report_files, write_names, fix, inputs=(*files, lock, names, model, optimizer, scheduler, loss), force=force
    )

    from caffe2torch.lock import read_lock

    asked: Any = read_files(files) if lock is None else read_lock(lock)
    if lock is None:
        outputs.check_against(asked)

    from caffe2torch.auditing import audit
    from caffe2torch.binding.names import names_of
    from caffe2torch.binding.plan import Binding, BoundBlob, Evidence
    from caffe2torch.cli.loading import call_factory

    built, named = read_model(model, names)
    assert built is not None
    theirs = call_factory(optimizer, built)
    with draft_to(write_names, force=force):
        report = audit(
            asked,
            built,
            theirs,
            None if scheduler is None else call_factory(scheduler, theirs),
            names=named,
            finetune=dict(finetune),
            loss=None if loss is None else _loss(loss),
            **choices,
        )
    written = report_texts(report, report_files)
    if write_names is not None:
        rows = tuple(BoundBlob(row.blob, row.kind, row.parameter, Evidence.NAMED) for row in report.rows)
        written[write_names] = tomli_w.dumps(names_of(Binding(report.model, rows)))
    if fix is not None:
        from caffe2torch.auditing import right_source

        written[fix] = right_source(
            asked,
            built,
            names=named,
            finetune=dict(finetune),
            accumulation=report.accumulation,
            **{key: choices[key] for key in ("skip", "unclaimed", "reshaped", "without")},
        )
    outputs.write(written)
    show_report(report, style, full=full, only=only, next_step=after_audit(report, fix))
    click.get_current_context().exit(0 if report.ok else 1)


def _loss(text: str) -> Any:
    from caffe2torch.cli.loading import call_factory
    from caffe2torch.errors import ModelError

    given = call_factory(text)
    if given is None:
        raise ModelError(f"{text} returns nothing", expected="a loss: something to call with scores and labels")
    return given
