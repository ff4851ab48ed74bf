"""``caffe2torch inspect NET [SOLVER]``: what a net and its solver learn, without torch."""

from __future__ import annotations

import gc
from shutil import get_terminal_size

import click

from caffe2torch.cli.options import one_or_two_files, options_of_every_verb, read_files
from caffe2torch.cli.output import say, sized

PIPED = 160
"""Columns where nobody's terminal sets a bound: long names stay on one line, for those who search in it."""


@click.command("inspect")
@one_or_two_files
@click.option("--format", "style", type=click.Choice(["text", "json", "md"]), default="text", show_default=True)
@options_of_every_verb
def command(
    files: tuple[str, ...],
    style: str,
) -> None:
    """Show every learnable blob of NET, in Caffe's order, with its multipliers and where they are stated.

    SOLVER adds how they are trained; a solver alone is enough when it names or holds its net.

    \b
    caffe2torch inspect train.prototxt
    caffe2torch inspect train.prototxt solver.prototxt --format json
    """
    from caffe2torch.report.inspect import render_recipe

    gc.disable()  # a short life that makes no garbage worth collecting, and a third of the time for large nets
    recipe = read_files(files)
    width = max(get_terminal_size().columns, 40) if sized() else PIPED
    say(render_recipe(recipe, style, width=width))
