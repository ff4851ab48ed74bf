"""The command line's own help in a page: ``::: caffe2torch VERB`` becomes what ``caffe2torch VERB --help`` says."""

from __future__ import annotations

import re

from click.testing import CliRunner

from caffe2torch.cli import main

LINE = re.compile(r"^::: caffe2torch(?: (\w+))?$", re.MULTILINE)
WIDTH = 100


def on_page_markdown(markdown: str, **_: object) -> str:
    """A hook of mkdocs: the page's text with each such line replaced."""
    return LINE.sub(lambda match: f"```text\n{help_of(match[1])}```", markdown)


def help_of(verb: str | None) -> str:
    """The help of a verb, or of the whole. Raises ``ValueError`` where there is no such verb."""
    asked = ["--help"] if verb is None else [verb, "--help"]
    result = CliRunner().invoke(main, asked, prog_name="caffe2torch", terminal_width=WIDTH, max_content_width=WIDTH)
    if result.exit_code != 0:
        raise ValueError(f"caffe2torch {' '.join(asked)} exits with {result.exit_code}: {result.output}")
    return result.output
