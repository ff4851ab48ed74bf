"""``caffe2torch translate NET SOLVER``: a checked optimizer, and the Python file that builds it."""

from __future__ import annotations

from typing import Any

import click

from caffe2torch.cli.next_step import after_translate
from caffe2torch.cli.options import (
    accept_options,
    accumulation_option,
    draft_to,
    model_options,
    one_or_two_files,
    options_of_every_verb,
    read_files,
    read_model,
    report_options,
)
from caffe2torch.cli.output import Outputs, echo, report_texts, show_report


@click.command("translate")
@one_or_two_files
@model_options
@click.option("-o", "--output", type=click.Path(), metavar="FILE.py", help="Write the optimizer as Python.")
@click.option("--initialize", is_flag=True, help="With -o: fill the model by the prototxt's fillers, too.")
@click.option("--write-names", type=click.Path(), metavar="FILE.toml", help="Write the binding, to review and to keep.")
@click.option(
    "--lock", type=click.Path(), metavar="FILE.json", help="Write what audit --lock needs, without prototxts."
)
@accumulation_option
@accept_options
@report_options
@options_of_every_verb
def command(
    files: tuple[str, ...],
    model: str | None,
    names: str | None,
    finetune: tuple[tuple[str, float], ...],
    output: str | None,
    initialize: bool,
    write_names: str | None,
    lock: str | None,
    report_files: tuple[str, ...],
    style: str,
    full: bool,
    only: str | None,
    force: bool,
    **choices: Any,
) -> None:
    """Give the optimizer with which Caffe would have trained NET by SOLVER, and check it parameter by parameter.

    \b
    caffe2torch translate segnet.prototxt solver.prototxt
    caffe2torch translate train.prototxt solver.prototxt --model port:Net -o optimizer.py
    caffe2torch translate train.prototxt solver.prototxt --finetune conv_classifier=10
    """
    import tomli_w

    outputs = Outputs(output, write_names, lock, *report_files, inputs=(*files, names, model), force=force)
    recipe = read_files(files)
    outputs.check_against(recipe)

    from caffe2torch.binding.names import names_of
    from caffe2torch.lock import lock_of, render_lock
    from caffe2torch.translation import translate

    built, named = read_model(model, names)
    with draft_to(write_names, force=force):
        t = translate(recipe, model=built, names=named, finetune=dict(finetune), **choices)
    written = report_texts(t.report, report_files)
    if write_names is not None:
        written[write_names] = tomli_w.dumps(names_of(t.binding))
    if t.report.ok and output is not None:
        written[output] = t.source(initialize=initialize)
    if t.report.ok and lock is not None:
        written[lock] = render_lock(lock_of(t.recipe, t.binding, t.groups, t.accumulation))
    outputs.write(written)
    next_step = after_translate(t.report, output)
    show_report(t.report, style, full=full, only=only, next_step=next_step, err=outputs.prints_to_stderr)
    for path in (output, lock):
        if path is not None and path not in written:
            echo(f"{path} was not written: the report is not ok\n", err=True)
    click.get_current_context().exit(0 if t.report.ok else 1)
