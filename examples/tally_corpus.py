"""Try caffe2torch on every prototxt of a folder and count what came out.

    python examples/tally_corpus.py FOLDER [--translate]

A folder that holds a solver.prototxt and one net beside it (net, train_val, train_test or train.prototxt) is a pair;
every other .prototxt stands for itself, as a solver when its name says so. Each ends as a recipe (with --translate: as
an optimizer for the skeleton made from its own blobs, whose report is ok or not), as one clear refusal, or as a
traceback, which is a bug of ours. Exit status: 0, or 1 if there was a traceback or a report that is not ok.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

import caffe2torch
from caffe2torch.files import read_text
from caffe2torch.prototxt.schema import parse_solver
from caffe2torch.solver.settings import read_solver

NETS = ("net.prototxt", "train_val.prototxt", "train_test.prototxt", "train.prototxt")
BAD = ("TRACEBACK", "report not ok")


@dataclass(frozen=True)
class Case:
    name: str
    net: Path | None
    solver: Path | None

    @property
    def kind(self) -> str:
        return "pair" if self.net and self.solver else "net" if self.net else "solver"


@dataclass(frozen=True)
class Outcome:
    case: Case
    verdict: str
    detail: str


def find_cases(folder: Path) -> Iterator[Case]:
    """Pairs, single nets and single solvers below a folder, sorted by name."""
    paired: set[Path] = set()
    for solver in sorted(folder.rglob("solver.prototxt")):
        nets = [solver.with_name(name) for name in NETS if solver.with_name(name).is_file()]
        if len(nets) == 1:
            paired |= {solver, nets[0]}
            yield Case(str(solver.parent.relative_to(folder)), nets[0], solver)
    for path in sorted(folder.rglob("*.prototxt")):
        if path in paired or not path.is_file():
            continue
        name = str(path.relative_to(folder))
        yield Case(name, None, path) if "solver" in path.name else Case(name, path, None)


def judge(case: Case, translate: bool) -> Outcome:
    """Read a case, and translate it where asked; nothing is raised."""
    try:
        if case.net is None and case.solver is not None:  # its net may be anywhere
            settings, notes = read_solver(parse_solver(read_text(case.solver)))
            return Outcome(case, "settings", f"{settings.type}, {settings.policy.type}, {len(notes)} notes")
        recipe = caffe2torch.read_recipe(case.net, case.solver)
        counted = f"{len(recipe.blobs)} blobs, {len(recipe.notes)} notes"
        if not translate or recipe.solver is None:
            return Outcome(case, "recipe", counted)
        report = caffe2torch.translate(recipe).report
        return Outcome(case, "translated" if report.ok else "report not ok", counted)
    except caffe2torch.Caffe2TorchError as error:
        message = str(error).splitlines()[0]
        for path in (case.net, case.solver):
            message = message.removeprefix(f"{path}:")  # the row says which file it is
        return Outcome(case, f"refused: {type(error).__name__}", message)
    except Exception as error:
        traceback.print_exc()
        return Outcome(case, "TRACEBACK", f"{type(error).__name__}: {error}")


def show(outcomes: list[Outcome], console: Console) -> None:
    table = Table(Column("case", overflow="fold"), "kind", "verdict", Column("detail", overflow="fold"), box=None)
    for outcome in outcomes:
        style = "bold red" if outcome.verdict in BAD else "yellow" if outcome.verdict.startswith("refused") else ""
        table.add_row(
            escape(outcome.case.name), outcome.case.kind, outcome.verdict, escape(outcome.detail), style=style
        )
    console.print(table)
    tally = Counter((outcome.case.kind, outcome.verdict) for outcome in outcomes)
    counts = Table("kind", "verdict", "count", title="Tally", title_justify="left", box=None)
    for (kind, verdict), count in sorted(tally.items()):
        counts.add_row(kind, verdict, str(count))
    console.print(counts)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--translate", action="store_true", help="bind each pair to a skeleton and check the optimizer")
    options = parser.parse_args(arguments)
    outcomes = [judge(case, options.translate) for case in find_cases(options.folder)]
    show(outcomes, Console(width=None if sys.stdout.isatty() else 140))
    return int(any(outcome.verdict in BAD for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
