"""``caffe2torch convert NET SOLVER``: a Caffe snapshot becomes a PyTorch checkpoint."""

from __future__ import annotations

import warnings
from typing import Any

import click

from caffe2torch.cli.options import (
    accumulation_option,
    model_options,
    one_or_two_files,
    options_of_every_verb,
    read_files,
    read_model,
)
from caffe2torch.cli.output import Outputs, say


@click.command("convert")
@one_or_two_files
@model_options
@click.option("--weights", type=click.Path(), metavar="FILE.caffemodel", help="The weights, binary or HDF5.")
@click.option("--state", type=click.Path(), metavar="FILE.solverstate", help="History and iteration, binary or HDF5.")
@click.option("-o", "--output", type=click.Path(), metavar="FILE.pt", required=True, help="The checkpoint to write.")
@click.option("--force", is_flag=True, help="Replace a file that exists.")
@accumulation_option
@options_of_every_verb
def command(
    files: tuple[str, ...],
    model: str | None,
    names: str | None,
    weights: str | None,
    state: str | None,
    finetune: tuple[tuple[str, float], ...],
    output: str,
    force: bool,
    **choices: Any,
) -> None:
    """Make a checkpoint of model, optimizer and scheduler from the weights and the training state of a Caffe run.

    A state alone brings the weights that it names; --weights wins. The checkpoint is what t.load reads, and
    torch.load(..., weights_only=True).

    \b
    caffe2torch convert train.prototxt solver.prototxt --model port:Net \\
        --state snap_iter_10000.solverstate -o checkpoint.pt
    """
    if weights is None and state is None:
        raise click.UsageError("nothing to convert: name --weights, --state, or both")
    outputs = Outputs(output, inputs=(*files, names, model, weights, state), force=force)
    recipe = read_files(files)
    outputs.check_against(recipe)

    from caffe2torch.report.text import note_text
    from caffe2torch.translation import translate

    built, named = read_model(model, names)
    t = translate(recipe, model=built, names=named, finetune=dict(finetune), **choices)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the notes are printed below
        notes = t.load_solverstate(state, weights) if state is not None else t.load_caffemodel(weights or "")
    t.save(output)
    for note in notes:
        say(f"{note_text(note)}\n", err=True)
    net = recipe.net_name or "the net"
    done = f"{output}: {len(t.binding.blobs)} blobs of {net}, at iteration {t.scheduler.last_epoch}\n"
    say(done, err=outputs.prints_to_stderr)
