"""The examples of a Markdown page, run in their order in one folder and one namespace, as its reader would.

===================================  ==================================================================================
```` ```python ````                  is executed; what it prints stands in a ```` ```text ```` block right after it; one
                                     that imports a library of the extra ``trainers`` only where that is installed
```` ```pycon ````                   is a doctest
```` ```console ````                 ``$ COMMAND`` lines, each followed by what it prints; ``...`` stands for any text
```` ```LANGUAGE title="NAME" ````   is written to the file NAME
```` ```prototxt ````                must be one that protobuf's text format allows
```` ```sh ````                      is not run: commands that install things
===================================  ==================================================================================

Each ``python`` and ``pycon`` block runs in a namespace of its own, as a reader runs it who copied that block alone. One
that needs an earlier one begins with the comment ``# continues ...``; a page whose blocks all do says ``CONTINUING``.

``$ caffe2torch ...`` runs in this process, since each new one would load torch again; other commands get a shell.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import shlex
import subprocess
import sys
import textwrap
import warnings
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from caffe2torch.cli import main
from caffe2torch.prototxt.parser import parse

FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>[\w-]*)(?P<rest>.*)\n(?P<text>(?:.*\n)*?)(?P=indent)```$", re.MULTILINE
)
TITLE = re.compile(r'title="([^"]+)"')
INSTALLERS = {"cd", "git", "make", "mkdir", "pip", "python", "python3", ".venv/bin/pip", ".venv/bin/caffe2torch"}
TRAINER = re.compile(r"^(?:from|import) (lightning|accelerate|transformers|peft)\b", re.MULTILINE)
CONTINUES = re.compile(r"(>>> )?# continues ")
CONTINUING = "The blocks of this page continue each other"
FLAGS = doctest.ELLIPSIS
EMPTY = re.compile(r"[ \t]+$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block; ``follows`` tells whether nothing but empty lines stands between it and the block before."""

    language: str
    text: str
    line: int
    title: str | None = None
    follows: bool = False


def blocks_of(page: str) -> list[Block]:
    """The fenced blocks of a page, in their order."""
    found: list[Block] = []
    end = 0
    for match in FENCE.finditer(page):
        title = TITLE.search(match["rest"])
        line = page.count("\n", 0, match.start()) + 2
        follows = bool(found) and not page[end : match.start()].strip()
        text = textwrap.dedent(match["text"])
        found.append(Block(match["language"], text, line, title[1] if title else None, follows))
        end = match.end()
    return found


@dataclass
class PageRun:
    """One page being run. Everything that is not as the page says ends in an ``AssertionError`` that names the line."""

    name: str
    namespace: dict[str, Any] = field(default_factory=dict)
    status: int = 0

    def run(self, page: str) -> None:
        """Run every block of ``page`` in the working directory."""
        blocks = blocks_of(page)
        fences = page.count("```") - 2 * len(blocks)
        assert not fences, f"{self.name}: a fenced block is never closed, or stands inside a sentence"
        continuing = CONTINUING in " ".join(page.split())
        self.namespace = {"__name__": "__main__"}
        for number, block in enumerate(blocks):
            if block.language in ("python", "pycon") and not continuing and not CONTINUES.match(block.text):
                self.namespace = {"__name__": "__main__"}
            shown = [
                after.text for after in blocks[number + 1 : number + 2] if after.language == "text" and after.follows
            ]
            self.run_block(block, "".join(shown))

    def run_block(self, block: Block, output: str) -> None:
        """Run one block, which must print ``output`` where it is one that prints."""
        match block:
            case Block(title=str(title)):
                Path(title).parent.mkdir(parents=True, exist_ok=True)
                Path(title).write_text(block.text, encoding="utf-8")
            case Block(language="python") if any(find_spec(name) is None for name in TRAINER.findall(block.text)):
                compile(block.text, self.name, "exec")
            case Block(language="python"):
                stdout = io.StringIO()
                code = compile("\n" * (block.line - 1) + block.text, self.name, "exec")
                with contextlib.redirect_stdout(stdout), warnings.catch_warnings():
                    if TRAINER.search(block.text):
                        warnings.simplefilter("default")  # of these libraries about themselves
                    exec(code, self.namespace)
                self.compare(output, stdout.getvalue(), block.line)
            case Block(language="pycon"):
                self.doctest(block)
            case Block(language="console"):
                for line, command, expected in commands_of(block):
                    self.compare(expected, self.execute(command), line)
            case Block(language="prototxt"):
                parse("\n" * (block.line - 1) + block.text, self.name)
            case Block(language="sh"):
                words = {line.split()[0] for line in block.text.splitlines() if line.strip() and line[0] != "#"}
                assert words <= INSTALLERS, f"{self.name}:{block.line}: not run, and does more than install: {words}"
            case Block(language="text" | "toml" | "yaml" | "json" | "make"):
                pass
            case _:
                raise AssertionError(f"{self.name}:{block.line}: nobody knows how to run a block of {block.language!r}")

    def doctest(self, block: Block) -> None:
        """Run a doctest that goes on in the page's namespace."""
        test = doctest.DocTestParser().get_doctest(block.text, self.namespace, self.name, self.name, block.line - 1)
        test.globs = self.namespace  # its own would be a copy
        complaints = io.StringIO()
        result = doctest.DocTestRunner(optionflags=FLAGS).run(test, out=complaints.write, clear_globs=False)
        assert result.attempted, f"{self.name}:{block.line}: a pycon block without >>>"
        assert not result.failed, complaints.getvalue()

    def execute(self, command: str) -> str:
        """What a command prints, on stdout and stderr together."""
        if command == "echo $?":
            return f"{self.status}\n"
        if command.startswith("caffe2torch ") and not re.search(r"[|<>;&]", command):
            result = CliRunner().invoke(main, shlex.split(command)[1:], prog_name="caffe2torch")
            if result.exception is not None and not isinstance(result.exception, SystemExit):
                raise result.exception
            self.status = result.exit_code
            return result.output
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        shell = ["bash", "-o", "pipefail", "-c", command]
        done = subprocess.run(
            shell,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            env={**os.environ, "PATH": path},
        )
        self.status = done.returncode
        return done.stdout

    def compare(self, expected: str, printed: str, line: int) -> None:
        """Complain unless what was printed is what the page shows."""
        want, got = (EMPTY.sub("", text).strip("\n") + "\n" for text in (expected, printed))
        if doctest.OutputChecker().check_output(want, got, FLAGS):
            return
        raise AssertionError(f"{self.name}:{line}: the page shows\n\n{want}\nbut it prints\n\n{got}")


def commands_of(block: Block) -> list[tuple[int, str, str]]:
    """Line, command and what it prints, for each ``$`` of a console block; a backslash continues a command."""
    found: list[tuple[int, str, str]] = []
    continued = False
    for line, text in enumerate(block.text.splitlines(keepends=True), block.line):
        if continued:
            start, command, output = found.pop()
            found.append((start, command + text.strip().rstrip("\\"), output))
        elif text.startswith("$ "):
            found.append((line, text[2:].strip().rstrip("\\"), ""))
        else:
            assert found, f"line {line}: a console block begins with a $ and its command"
            start, command, output = found.pop()
            found.append((start, command, output + text))
        continued = text.rstrip().endswith("\\") and (continued or text.startswith("$ "))
    return found
