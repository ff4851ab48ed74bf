"""The command line: verbs that read arguments, call the library, write, and exit.

Exit status: 0 all is well; 1 the report is not ok; 2 bad input, with one clear message on stderr. Results go to
stdout, everything else to stderr.
"""

from __future__ import annotations

from importlib import import_module

import click

import caffe2torch
from caffe2torch.errors import Caffe2TorchError

__all__ = ["main"]

VERBS = {
    "audit": "check an optimizer that someone else wrote",
    "convert": "carry a Caffe snapshot over to a PyTorch checkpoint",
    "inspect": "show what a net and its solver learn, without torch",
    "model": "write a net as a torch module",
    "plot": "draw the learning rate over the run, and what stock torch would make of it",
    "translate": "give a checked optimizer for a net and its solver",
}


class Verbs(click.Group):
    """A group whose verbs are imported when they are asked for: ``inspect`` must not pay for torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return sorted(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in VERBS:
            return None
        command = import_module(f"caffe2torch.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Verbs"):  # from the table, so that --help imports none of them
            formatter.write_dl(sorted(VERBS.items()))

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except Caffe2TorchError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(2)
        except KeyboardInterrupt:
            ctx.exit(130)  # click would exit with 1, which here means "the report is not ok"


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(caffe2torch.__version__, "-V", "--version")
def main() -> None:
    """Carry how a Caffe network learned over to PyTorch, checked."""
