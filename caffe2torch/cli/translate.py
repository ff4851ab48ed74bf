"""``caffe2torch translate NET SOLVER``: a checked optimizer, and the Python file that builds it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from caffe2torch.cli.options import assignment, model_options, net_state, one_or_two_files, read_files

REPORTS = {".html": "html", ".json": "json", ".md": "md", ".txt": "text"}


@click.command("translate")
@one_or_two_files
@model_options
@click.option("--finetune", multiple=True, type=assignment, metavar="LAYER=FACTOR", help="A further factor on lr_mult.")
@click.option("--without", multiple=True, metavar="RULE", help="Go without a fork's rule that is not translated.")
@click.option("-o", "--output", type=click.Path(), metavar="FILE.py", help="Write the optimizer as Python.")
@click.option("--initialize", is_flag=True, help="With -o: fill the model by the prototxt's fillers, too.")
@click.option(
    "--report", "report_file", type=click.Path(), metavar="FILE", help="Write the report: .html, .json, .md, .txt."
)
@click.option("--write-names", type=click.Path(), metavar="FILE.toml", help="Write the binding, to review and to keep.")
@click.option("--format", "style", type=click.Choice(["text", "json", "md"]), default="text", show_default=True)
@click.option("--force", is_flag=True, help="Replace files that exist.")
@net_state
def command(
    files: tuple[str, ...],
    model: str | None,
    names: str | None,
    finetune: tuple[tuple[str, float], ...],
    output: str | None,
    initialize: bool,
    report_file: str | None,
    write_names: str | None,
    style: str,
    force: bool,
    stages: tuple[str, ...],
    level: int | None,
    inputs: tuple[tuple[str, tuple[int, ...]], ...],
    **choices: Any,
) -> None:
    """Give the optimizer with which Caffe would have trained NET by SOLVER, and check it parameter by parameter.

    \b
    caffe2torch translate segnet.prototxt solver.prototxt
    caffe2torch translate train.prototxt solver.prototxt --model port:Net -o optimizer.py
    caffe2torch translate train.prototxt solver.prototxt --finetune conv_classifier=10
    """
    import tomli_w

    from caffe2torch.output import check_writable, write_files

    report_style = None if report_file is None else _style_of(report_file)
    for path in (output, report_file, write_names):
        if path is not None:
            check_writable(path, force=force)
    recipe = read_files(files, stages=stages, level=level, inputs=inputs)

    from caffe2torch.pytorch.loading import load_model
    from caffe2torch.pytorch.names_file import names_of, read_names
    from caffe2torch.report import render
    from caffe2torch.translation import translate

    t = translate(
        recipe,
        model=None if model is None else load_model(model),
        names=None if names is None else read_names(names),
        finetune=dict(finetune),
        **choices,
    )
    written: dict[str, str] = {}
    if report_file is not None and report_style is not None:
        written[report_file] = render(t.report, report_style)
    if write_names is not None:
        written[write_names] = tomli_w.dumps(names_of(t.binding))
    if output is not None and t.report.ok:
        written[output] = t.source(initialize=initialize)
    write_files(written, force=force)
    click.echo(render(t.report, style, colour=sys.stdout.isatty()), nl=False)
    if output is not None and not t.report.ok:
        click.echo(f"{output} was not written: the report is not ok", err=True)
    sys.exit(0 if t.report.ok else 1)


def _style_of(report_file: str) -> str:
    suffix = Path(report_file).suffix.lower()
    if suffix not in REPORTS:
        raise click.BadParameter(f"{report_file!r} ends in none of {', '.join(REPORTS)}", param_hint="--report")
    return REPORTS[suffix]
