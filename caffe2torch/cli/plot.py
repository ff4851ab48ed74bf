"""``caffe2torch plot NET SOLVER``: the rate of each group over the run, and what stock torch would make of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from caffe2torch.binding.plan import Binding, BoundBlob, Evidence, Kind, plan_groups
from caffe2torch.cli.options import InputPath, assignment, one_or_two_files, options_of_every_verb, read_files
from caffe2torch.cli.output import Outputs, say
from caffe2torch.errors import SolverError, visible
from caffe2torch.files import bar
from caffe2torch.recipe import NetRecipe, SolverSettings, TrainingRecipe, require_solver

if TYPE_CHECKING:
    from caffe2torch.report.rate_plot import Run

SUFFIXES = (".svg", ".png")


@click.command("plot")
@one_or_two_files
@click.option("--versus", type=InputPath(), metavar="SOLVER", help="Another solver, drawn beside.")
@click.option("--divergence", is_flag=True, help="Draw how far stock torch would leave Caffe's path (simulated).")
@click.option("--iterations", type=click.IntRange(min=1), help="How many to draw; else the solver's max_iter.")
@click.option("--finetune", multiple=True, type=assignment, metavar="LAYER=FACTOR", help="A further factor on lr_mult.")
@click.option("--without", multiple=True, metavar="RULE", help="Go without a fork's rule that is not translated.")
@click.option("-o", "--output", type=click.Path(), required=True, metavar="FILE", help="The picture: .svg or .png.")
@click.option("--force", is_flag=True, help="Replace a file that exists.")
@options_of_every_verb
def command(
    files: tuple[str, ...],
    versus: str | None,
    divergence: bool,
    iterations: int | None,
    finetune: tuple[tuple[str, float], ...],
    without: tuple[str, ...],
    output: str,
    force: bool,
) -> None:
    """Draw the learning rate of each group of NET over the run that SOLVER asks for.

    --divergence adds what a careful port with torch.optim alone would do: how far from Caffe's path its weights are
    after each iteration, in percent of how far Caffe's have come, on seeded random gradients.

    \b
    caffe2torch plot train.prototxt solver.prototxt -o lr.svg
    caffe2torch plot train.prototxt solver.prototxt --versus other.prototxt -o lr.png
    caffe2torch plot train.prototxt solver.prototxt --divergence -o divergence.svg
    """
    suffix = Path(output).suffix.lower()
    if suffix not in SUFFIXES:
        raise click.BadParameter(f"{output!r} ends in none of {', '.join(SUFFIXES)}", param_hint="--output")
    outputs = Outputs(output, inputs=(*files, versus), force=force)
    recipe = require_solver(read_files(files))
    outputs.check_against(recipe)

    from caffe2torch.report.plots import draw, png, require_matplotlib, svg
    from caffe2torch.report.rate_plot import LONGEST_WALK, divergence_panel, rates_panels, say_divergence, say_rates

    require_matplotlib()  # before the work, not after it

    def named(run: Run, text: str) -> str:
        return f"{visible(run.label.removeprefix(', '))}: {text}" if run.label else text

    runs = _runs(recipe, versus, iterations, without)
    multipliers = _multipliers(recipe, dict(finetune))
    panels = rates_panels(runs, [lr_mult for lr_mult, _ in multipliers])
    says = [named(run, say_rates(run)) for run in runs]
    if divergence:
        with bar("simulating", sum(min(run.iterations, LONGEST_WALK) for run in runs), unit="iterations") as advance:
            panel, found = divergence_panel(runs, multipliers, advance)
        panels.append(panel)
        says += [named(run, say_divergence(run, one)) for run, one in zip(runs, found, strict=True)]
    title = f"Learning rate of {recipe.net_name or 'the net'} over the run"
    figure = draw(panels, width=7.0)
    outputs.write({output: png(figure) if suffix == ".png" else svg(figure, title, " ".join(says))})
    for line in says:
        say(f"{line}\n", err=outputs.prints_to_stderr)


def _runs(recipe: TrainingRecipe, versus: str | None, iterations: int | None, without: tuple[str, ...]) -> list[Run]:
    """The run of the recipe's solver, and that of the one to compare it with."""
    from caffe2torch.files import read_text
    from caffe2torch.prototxt.schema import parse_solver
    from caffe2torch.report.rate_plot import Run
    from caffe2torch.solver.requirements import refuse_unsupported
    from caffe2torch.solver.settings import read_solver

    refuse_unsupported(recipe.solver, without)
    first = recipe.sources[-1].file
    if versus is None:
        return [Run(recipe.solver, iterations or _max_iter(recipe.solver, first))]
    other, _ = read_solver(parse_solver(read_text(versus, expected="a solver as text")))
    refuse_unsupported(other)
    ours, theirs = _told_apart(first, versus)
    return [
        Run(recipe.solver, iterations or _max_iter(recipe.solver, first), f", {ours}"),
        Run(other, iterations or _max_iter(other, versus), f", {theirs}", pale=True),
    ]


def _told_apart(one: str, other: str) -> tuple[str, str]:
    """The last parts of two paths, as many as it takes."""
    parts = Path(one).parts, Path(other).parts
    count = next((n for n in range(1, max(map(len, parts))) if parts[0][-n:] != parts[1][-n:]), 1)
    return "/".join(parts[0][-count:]), "/".join(parts[1][-count:])


def _max_iter(solver: SolverSettings, file: str) -> int:
    if not solver.max_iter:
        where = solver.places.get("max_iter", file)
        raise SolverError("the solver states no max_iter", where=where, hint="say how many to draw: --iterations N")
    return solver.max_iter


def _multipliers(recipe: NetRecipe, finetune: dict[str, float]) -> list[tuple[float, float]]:
    """The ``(lr_mult, decay_mult)`` of each group that a translation would make."""
    bound = tuple(BoundBlob(blob, Kind.PARAMETER, blob.name, Evidence.EQUAL_NAMES) for blob in recipe.blobs)
    groups = plan_groups(recipe, Binding("", bound), finetune)
    return list(dict.fromkeys((group.lr_mult, group.decay_mult) for group in groups))
