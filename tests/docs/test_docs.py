"""Every example of the docs and of the README runs, and prints what the page says."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from docs_pages import CONTINUING, Block, PageRun, blocks_of, commands_of
from places import REPOSITORY

from caffe2torch.errors import Caffe2TorchError

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]


def snapshots(folder: Path) -> None:
    """A recorded run that was stopped after 17 iterations; a net with five classes; a file that ends too early."""
    recorded = REPOSITORY / "fixtures/snapshots/resume/snap_sgd_multistep_newsteps"
    for name in ("net.prototxt", "solver.prototxt", "snap_iter_17.caffemodel", "snap_iter_17.solverstate"):
        shutil.copy(recorded / name, folder / name)
    net = (folder / "net.prototxt").read_text()
    five = net.replace("num_output: 2 ", "num_output: 5 ").replace("dim: 2 dim: 2", "dim: 2 dim: 5")
    (folder / "net5.prototxt").write_text(five)
    whole = (folder / "snap_iter_17.caffemodel").read_bytes()
    (folder / "cut.caffemodel").write_bytes(whole[: whole.index(b"ip_out", whole.index(b"sh2")) - 5])


def cookbook(folder: Path) -> None:
    """The same recorded run, in a folder of its own."""
    (folder / "run").mkdir()
    snapshots(folder / "run")


def tutorial(folder: Path) -> None:
    """A folder in a checkout, without anything in it."""
    (folder.parent / "examples").mkdir(exist_ok=True)
    shutil.copy(REPOSITORY / "examples/tutorial_files.py", folder.parent / "examples")
    for file in folder.glob("*.prototxt"):
        file.unlink()


SET_UP: dict[str, Callable[[Path], None]] = {
    "cookbook.md": cookbook,
    "snapshots.md": snapshots,
    "tutorial.md": tutorial,
}
"""What a page's reader is assumed to have, beside SegNetBasic's prototxts and the files that the page itself shows."""


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with SegNetBasic's two prototxts, there and where a clone has them."""
    segnet = REPOSITORY / "fixtures/segnet_basic"
    for folder in (tmp_path, tmp_path / "fixtures/segnet_basic"):
        folder.mkdir(parents=True, exist_ok=True)
        for file in segnet.iterdir():
            shutil.copy(file, folder / file.name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name, module in list(sys.modules.items()):  # the next page's port.py is another one
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_example_of_the_page_runs(page: Path, desk: Path) -> None:
    SET_UP.get(page.name, lambda _: None)(desk)
    PageRun(page.name).run(page.read_text(encoding="utf-8"))


UNTRUE = {
    "```python\nprint(1)\n```\n": "but it prints\n\n1",
    "```python\nprint(1)\n```\n\n```text\n2\n```\n": "the page shows\n\n2\n\nbut it prints\n\n1",
    "```python\nprint(1)\n```\nwhich is\n```text\n1\n```\n": "but it prints\n\n1",
    "```python\n1 / 0\n```\n": "division by zero",
    "```pycon\n>>> 1 + 1\n3\n```\n": "Got:\n    2",
    "```pycon\n1 + 1\n```\n": "without >>>",
    "```console\n$ caffe2torch --version\n0.0\n```\n": "page:2: the page shows\n\n0.0",
    "```console\n$ printf hello | tr h j\nhello\n```\n": "but it prints\n\njello",
    "```console\n$ caffe2torch inspect nowhere\n...\n$ echo $?\n0\n```\n": "page:4: the page shows\n\n0",
    "```console\nhello\n```\n": "begins with a \\$",
    '```prototxt\nlayer { name: "a"\n```\n': "the file ends inside 'layer {' of 2:7",
    "```sh\nrm -rf everything\n```\n": "does more than install: {'rm'}",
    "```\nwhat is this\n```\n": "a block of ''",
    "```python\n# never closed\n": "never closed",
    "```python\nx = 1\n```\n\n```python\nprint(x)\n```\n": "name 'x' is not defined",
}


@pytest.mark.parametrize(("page", "complaint"), UNTRUE.items())
@pytest.mark.usefixtures("desk")
def test_an_example_that_is_not_true_is_found(page: str, complaint: str) -> None:
    with pytest.raises((AssertionError, ZeroDivisionError, NameError, Caffe2TorchError), match=complaint):
        PageRun("page").run(page)


@pytest.mark.usefixtures("desk")
def test_what_is_true_passes() -> None:
    page = """
```python title="port.py"
answer = 41
```

```python
import port
print(port.answer + 1)
```

```text
42
```

```pycon
>>> # continues the block above
>>> port.answer
41
```

1. A list may hold blocks too.

   ```console
   $ printf 'b\\na\\n' \\
       | sort
   a
   b
   $ caffe2torch --version
   caffe2torch, version ...
   $ caffe2torch inspect nowhere.prototxt
   error: nowhere.prototxt: there is no such file
     hint: did you mean ...
   $ echo $?
   2
   ```
"""
    PageRun("page").run(page)


@pytest.mark.usefixtures("desk")
@pytest.mark.parametrize(("before", "mark"), [("", "# continues the block above\n"), (f"{CONTINUING}.\n\n", "")])
def test_a_block_has_the_names_of_another_where_it_says_so(before: str, mark: str) -> None:
    PageRun("page").run(f"{before}```python\nx = 1\n```\n\n```python\n{mark}print(x)\n```\n\n```text\n1\n```\n")


def test_blocks_and_commands_know_their_lines() -> None:
    (block,) = blocks_of("text\n\n```console\n$ a \\\n  b\nc\n$ d\n```\n")
    assert block == Block("console", "$ a \\\n  b\nc\n$ d\n", 4)
    assert commands_of(block) == [(4, "a b", "c\n"), (7, "d", "")]
