"""Bad input: one clear message with its place on stderr, exit 2, nothing on stdout and nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from caffe2torch.cli import main

NET = """\
name: "tiny"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  param { lr_mult: 1 decay_mult: 1 }
  param { lr_mult: 2 decay_mult: 0 }
  convolution_param { num_output: 4 kernel_size: 3 } }
"""
SOLVER = """\
net: "net.prototxt"
base_lr: 0.1
lr_policy: "step"
gamma: 0.1
stepsize: 10
momentum: 0.9
"""
SHARED = """\
layer { name: "a" type: "InnerProduct" bottom: "data" top: "a" param { name: "w" lr_mult: 1 }
  inner_product_param { num_output: 4 bias_term: false } }
layer { name: "b" type: "InnerProduct" bottom: "data" top: "b" param { name: "w" lr_mult: 3 }
  inner_product_param { num_output: 4 bias_term: false } }
"""

# what is wrong: (net's text or bytes, solver's text or bytes, the place it is told at, words that the message holds)
BROKEN: dict[str, tuple[str | bytes, str | bytes, str, str]] = {
    "empty net": ("", SOLVER, "net.prototxt", "empty"),
    "empty solver": (NET, "  \n", "solver.prototxt", "empty"),
    "binary net": (bytes(range(256)) * 4, SOLVER, "net.prototxt", "text"),
    "truncated net": (NET[: NET.index("num_output")], SOLVER, "net.prototxt:6:", "{"),
    "unbalanced braces": (NET.replace("kernel_size: 3 } }", "kernel_size: 3 } } }"), SOLVER, "net.prototxt:6:", "}"),
    "deep nesting": ("layer { " * 100 + "} " * 100, SOLVER, "net.prototxt:1:", "deep"),
    "merge conflict": (
        NET.replace("  param { lr_mult: 2", "<<<<<<< HEAD\n  param { lr_mult: 2"), SOLVER, "net.prototxt:5:1", "merge"
    ),
    "placeholder": (NET.replace("num_output: 4", "num_output: ${LABELS}"), SOLVER, "net.prototxt:6:", "${LABELS}"),
    "too many params": (NET.replace("  param", "  param { lr_mult: 1 }\n  param", 1), SOLVER, "net.prototxt:", "param"),
    "shared conflict": (NET + SHARED, SOLVER, "net.prototxt:9:", "lr_mult"),
    "unknown policy": (NET, SOLVER.replace('"step"', '"cosine"'), "solver.prototxt:3:", "cosine"),
    "no policy": (NET, SOLVER.replace('lr_policy: "step"\n', ""), "solver.prototxt", "lr_policy"),
    "no stepsize": (NET, SOLVER.replace("stepsize: 10\n", ""), "solver.prototxt", "stepsize"),
}  # fmt: skip


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a good net and solver."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.prototxt").write_text(NET)
    (tmp_path / "solver.prototxt").write_text(SOLVER)
    return tmp_path


def files() -> dict[Path, bytes]:
    """All files of the working directory, but for what Python itself keeps of a script that it imported."""
    return {path: path.read_bytes() for path in Path().rglob("*") if path.is_file() and path.suffix != ".pyc"}


def refuse(*arguments: str) -> str:
    """Run a command that must be refused; return its message."""
    before = files()
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert before == files()
    return result.stderr


@pytest.mark.parametrize("verb", ["inspect", "translate"])
@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused_with_its_place(pair: Path, verb: str, case: str) -> None:
    net, solver, place, words = BROKEN[case]
    for name, content in (("net.prototxt", net), ("solver.prototxt", solver)):
        (pair / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    output = ["-o", "optimizer.py"] if verb == "translate" else []
    message = refuse(verb, "net.prototxt", "solver.prototxt", *output)
    assert message.startswith(f"error: {place}")
    assert words in message


@pytest.mark.parametrize(("net", "words"), [("absent.prototxt", "no such file"), (".", "directory")])
def test_a_file_that_cannot_be_read_is_named(pair: Path, net: str, words: str) -> None:
    del pair
    message = refuse("translate", net, "solver.prototxt")
    assert message.startswith(f"error: {net}")
    assert words in message


def test_net_and_solver_in_the_wrong_order_are_recognised(pair: Path) -> None:
    del pair
    assert "swap" in refuse("translate", "solver.prototxt", "net.prototxt")


def test_a_solver_alone_must_name_its_net(pair: Path) -> None:
    (pair / "solver.prototxt").write_text(SOLVER.replace('net: "net.prototxt"\n', ""))
    assert "net" in refuse("translate", "solver.prototxt")


def test_a_net_alone_cannot_be_translated(pair: Path) -> None:
    del pair
    assert "solver" in refuse("translate", "net.prototxt")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import torch\ndef make():\n    raise RuntimeError('no weights here')\n", "no weights here"),
        ("def make():\n    return 3\n", "int"),
        ("other = 1\n", "make"),
        ("import torch\ndef make():\n    m = torch.nn.Module()\n    m.conv = torch.nn.Conv2d(3, 4, 5)\n    return m\n",
         "conv"),
    ],
    ids=["raises", "no module", "absent", "wrong shape"],
)  # fmt: skip
def test_a_model_that_cannot_be_had_or_does_not_fit_is_refused(pair: Path, source: str, words: str) -> None:
    (pair / "port.py").write_text(source)
    message = refuse("translate", "net.prototxt", "solver.prototxt", "--model", "port.py:make", "-o", "optimizer.py")
    assert words in message


def test_a_shape_that_does_not_fit_is_shown_with_both_shapes_and_the_layer(pair: Path) -> None:
    (pair / "port.py").write_text(
        "import torch\ndef make():\n    return torch.nn.Sequential(__import__('collections').OrderedDict("
        "conv=torch.nn.Conv2d(3, 4, 5)))\n"
    )
    message = refuse("translate", "net.prototxt", "solver.prototxt", "--model", "port.py:make")
    assert "conv" in message
    assert "5" in message
    assert "3" in message


def test_an_output_that_exists_is_kept(pair: Path) -> None:
    (pair / "optimizer.py").write_text("mine")
    message = refuse("translate", "net.prototxt", "solver.prototxt", "-o", "optimizer.py")
    assert message.startswith("error: optimizer.py: exists already")
    assert (pair / "optimizer.py").read_text() == "mine"
