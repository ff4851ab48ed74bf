"""Options that every verb has, standard input, and what is said to somebody who mistypes."""

from __future__ import annotations

import re
import subprocess
from importlib import import_module
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from places import REPOSITORY
from standard_input import standard_input

from caffe2torch.cli import VERBS, main

EVERYWHERE = {"--phase", "--stage", "--level", "--input", "--define", "--quiet", "--color"}
SNAPSHOT = REPOSITORY / "fixtures/snapshots/resume/snap_adam_step"


@pytest.fixture
def segnet(fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    monkeypatch.chdir(tmp_path)
    return str(fixtures / "segnet_basic/train.prototxt"), str(fixtures / "segnet_basic/solver.prototxt")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


def piped(text: str, *arguments: str) -> Result:
    with standard_input(text):
        return run(*arguments)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_the_same_options_for_reading_and_printing(verb: str) -> None:
    command = import_module(f"caffe2torch.cli.{verb}").command
    options = {name: one for one in command.params if isinstance(one, click.Option) for name in one.opts}
    assert set(options) >= EVERYWHERE
    translate = {name: one for one in import_module("caffe2torch.cli.translate").command.params for name in one.opts}
    assert all(options[name].help == translate[name].help for name in EVERYWHERE)


def test_quiet_prints_nothing_and_writes_all_the_same(segnet: tuple[str, str]) -> None:
    Path("port.py").write_text(
        "import torch\ndef sgd(model):\n    return torch.optim.SGD(model.parameters(), lr=1.0)\n"
    )
    net, solver, state = (str(SNAPSHOT / name) for name in ("net.prototxt", "solver.prototxt", "snap_iter_17"))
    port = ["--model", "caffe2torch:SegNetBasic(4, 3)", "--optimizer", "port.py:sgd"]
    for status, arguments in (
        (0, ["inspect", *segnet]),
        (0, ["translate", *segnet, "-o", "o.py"]),
        (1, ["audit", *segnet, *port, "--report", "r.md"]),
        (0, ["plot", segnet[1], "-o", "p.svg"]),
        (0, ["model", segnet[0], "-o", "m.py"]),
        (0, ["convert", net, solver, "--state", f"{state}.solverstate", "-o", "c.pt"]),
    ):
        result = run(*arguments, "--quiet")
        assert (result.exit_code, result.output) == (status, ""), arguments
    assert {path.name for path in Path().iterdir()} >= {"o.py", "r.md", "p.svg", "m.py", "c.pt"}
    assert run("model", segnet[0], "--quiet").stdout == Path("m.py").read_text()  # the file itself, printed
    assert run("inspect", "nowhere", "--quiet").stderr.startswith("error: nowhere")


@pytest.mark.parametrize(
    ("words", "coloured"),
    [([], False), (["--color", "always"], True), (["--color", "never"], False), (["--color", "auto"], False)],
)
def test_color_says_whether_a_pipe_gets_colours(segnet: tuple[str, str], words: list[str], coloured: bool) -> None:
    printed = run("translate", *segnet, *words).stdout
    assert ("\x1b[32m34 blobs, 34 parameters: all ok" in printed) is coloured
    assert "\x1b" not in run("translate", *segnet, *words, "--format", "json").stdout


def test_the_phase_decides_which_layers_take_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    layer = (
        'layer {{ name: "{0}" type: "InnerProduct" bottom: "data" top: "{0}" include {{ phase: {1} }}'
        " inner_product_param {{ num_output: 2 }} }}\n"
    )
    Path("net.prototxt").write_text(
        'input: "data" input_shape { dim: 1 dim: 3 }\n' + layer.format("a", "TRAIN") + layer.format("b", "TEST")
    )
    Path("solver.prototxt").write_text('base_lr: 0.1 lr_policy: "fixed" max_iter: 9')
    Path("port.py").write_text(
        "import torch\ndef net(name):\n    return torch.nn.ModuleDict({name: torch.nn.Linear(3, 2)})\n"
    )
    files = ("net.prototxt", "solver.prototxt")
    for phase, name, other in (("TRAIN", "a", "b"), ("TEST", "b", "a")):
        printed = run("inspect", *files, "--phase", phase).stdout
        assert f"{name}/0" in printed
        assert f"{other}/0" not in printed
        assert run("translate", *files, "--phase", phase, "--model", f"port.py:net('{name}')").exit_code == 0


def test_a_dash_is_standard_input_once(segnet: tuple[str, str]) -> None:
    net, solver = (Path(file).read_text() for file in segnet)
    assert "34 blobs" in piped(net, "inspect", "-").stdout
    assert "all ok" in piped(net, "translate", "-", segnet[1]).stdout
    assert "all ok" in piped(solver, "translate", segnet[0], "-").stdout
    assert piped(solver, "plot", segnet[1], "--versus", "-", "-o", "p.svg").exit_code == 0
    assert "/dev/stdin:1:" in piped("layer {", "inspect", "-").stderr
    twice = piped(net, "translate", "-", "-")
    assert (twice.exit_code, "standard input" in twice.stderr) == (2, True)


def test_options_for_prototxts_are_refused_where_a_lock_is_read(segnet: tuple[str, str]) -> None:
    assert run("translate", *segnet, "--lock", "l.json").exit_code == 0
    port = ["--model", "caffe2torch:SegNetBasic(4, 3)", "--optimizer", "port.py:sgd"]
    result = run("audit", "--lock", "l.json", *port, "--phase", "TEST", "--stage", "deploy")
    assert result.exit_code == 2
    assert "--phase, --stage" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["transalte"], "there is no verb 'transalte'; did you mean 'translate'?"),
        (["insepct", "net.prototxt"], "did you mean 'inspect'?"),
        (["net.prototxt"], "there are: audit, convert, inspect, model, plot, translate"),
        (["translate", "--optput", "o.py"], "--output"),
        (["translate", "--quite"], "--quiet"),
        (["audit", "--shceduler", "port:make"], "--scheduler"),
        (["--quiet", "translate"], "options come after the verb"),
    ],
)
def test_who_mistypes_learns_what_was_meant(arguments: list[str], words: str) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr


def test_full_and_only_wrong_show_every_row_and_the_wrong_ones(segnet: tuple[str, str]) -> None:
    Path("port.py").write_text(
        "import torch\ndef sgd(model):\n"
        "    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.0005)\n"
    )
    port = ["--model", "caffe2torch:SegNetBasic(4, 3)", "--optimizer", "port.py:sgd"]
    audit = ["audit", *segnet, *port]
    environment = {"LINES": "24", "COLUMNS": "80"}
    folded, full, wrong = (
        CliRunner().invoke(main, [*audit, "--color", "always", *words], env=environment).stdout
        for words in ((), ("--full",), ("--only", "wrong"))
    )
    rows = re.compile(r"^\S+ .*(ok|mismatch)\x1b", re.MULTILINE)
    assert [len(rows.findall(text)) for text in (folded, full, wrong)] == [4, 34, 9]
    assert "34 rows by role; --full" in folded
    assert len(folded.splitlines()) < len(full.splitlines())
    assert "update rule" not in wrong  # it is ok


def test_make_help_names_every_target() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    shown = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    assert {line.split()[0] for line in shown.splitlines()} == targets
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    assert set(phony[1].split()) == targets
    variables = set(re.findall(r"\$\$\{([A-Z_]+):-|^([A-Z]+) \?=", makefile, re.MULTILINE))
    assert all(name in shown for pair in variables for name in pair)
