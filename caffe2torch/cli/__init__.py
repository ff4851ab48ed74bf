"""The command line: verbs that read arguments, call the library, write, and exit.

Exit status: 0 all is well; 1 the report is not ok; 2 bad input, with one clear message on stderr. Results go to
stdout, everything else to stderr.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

import caffe2torch
from caffe2torch.cli.output import echo, silence
from caffe2torch.errors import Caffe2TorchError, describe
from caffe2torch.wording import did_you_mean

__all__ = ["main"]

VERBS = {
    "audit": "check an optimizer that someone else wrote",
    "convert": "make a PyTorch checkpoint of a Caffe snapshot",
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

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["typed"] = tuple(args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            raise click.UsageError(f"no option {error.option_name} here: options come after the verb", ctx) from None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in VERBS and not ctx.resilient_parsing:
            hint = did_you_mean(args[0], VERBS) or f"there are: {', '.join(VERBS)}"
            raise click.UsageError(f"there is no verb {args[0]!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

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

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (Exception, KeyboardInterrupt):
            raise
        except BaseException as error:  # no verb raises SystemExit or the like: the user's own code does
            raise Caffe2TorchError(f"code of yours raises {describe(error)}") from error

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a verb and exit with its status; whatever goes wrong outside of this program is one message."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        _keep_closed()
        stdout = sys.stdout
        try:
            status = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        except click.Abort:  # ^C; click would exit with 1, which here means "the report is not ok"
            sys.exit(130)
        except click.ClickException as error:
            usage = io.StringIO()
            error.show(usage)
            echo(usage.getvalue(), err=True)
            sys.exit(2)
        except (Caffe2TorchError, OSError) as error:
            if isinstance(error, OSError):
                silence(stdout)  # click prints its help past us
            echo(f"error: {error}\n", err=True)
            sys.exit(2)
        except SystemExit:
            if sys.stdout is not stdout:  # click gives up when the reader of its help has gone
                echo("error: standard output: cannot be written: Broken pipe\n", err=True)
                sys.exit(2)
            raise  # shell completion
        sys.exit(status if isinstance(status, int) else 0)


def _keep_closed() -> None:
    """Occupy a standard stream that is closed, so that no file we open takes its number; writing to it still fails."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)  # the lowest free number, which is this one


@click.group(
    "caffe2torch", cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(caffe2torch.__version__, "-V", "--version")
def main() -> None:
    """Train in PyTorch as a Caffe network was trained, checked."""
