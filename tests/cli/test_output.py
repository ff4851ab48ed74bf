"""What reaches terminal and disk: control characters shown, all outputs or none, one error where it cannot be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from caffe2torch.cli import main

NET = """\
name: "two" input: "data" input_shape { dim: 2 dim: 3 }
layer { name: "a" type: "InnerProduct" bottom: "data" top: "a" param { lr_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
  inner_product_param { num_output: 4 } }
layer { name: "b" type: "InnerProduct" bottom: "a" top: "b" param { lr_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
  inner_product_param { num_output: 2 } }
"""
SOLVER = 'net: "net.prototxt" base_lr: 0.001 momentum: 0.9 lr_policy: "fixed" max_iter: 2500\n'
PORT = """\
import torch

class Stop(BaseException):
    pass

class Silent(Exception):
    def __str__(self):
        raise RuntimeError

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)
    def forward(self, x):
        return self.b(self.a(x))

class Stops(Net):
    def forward(self, x):
        raise Stop("enough")

class SilentStep(torch.optim.SGD):
    def step(self, closure=None):
        raise Silent

def silent_step(model):
    return SilentStep(model.parameters(), lr=0.001)

def stop(*_):
    raise Stop("enough")

def silent(*_):
    raise Silent

def leave(*_):
    raise SystemExit(0)

def hostile(*_):
    raise ValueError("\\x1b[31m\\x07\\u202e")
"""
HOSTILE = "\x1b]0;title\x07\x9b31m\u202e"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("net.prototxt").write_text(NET)
    Path("solver.prototxt").write_text(SOLVER)
    Path("port.py").write_text(PORT)
    return tmp_path


def contents() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file() and path.suffix != ".pyc"}


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def refused(*arguments: str) -> str:
    before = contents()
    status, stdout, stderr = run(*arguments)
    assert (status, stdout) == (2, "")
    assert stderr.startswith("error: ")
    assert stderr.count("error: ") == 1
    assert contents() == before
    return stderr


def shell(command: str) -> tuple[int, str]:
    """Exit status and stderr of a command of the shell's, in which ``c2t`` is this program."""
    program = f'c2t() {{ "{sys.executable}" -m caffe2torch "$@"; }}; {command}'
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"})
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "output", [("--report", "y.json", "--lock", "y.json"), ("-o", "y.py", "--write-names", "./y.py"),
               ("-o", "net.prototxt"), ("--lock", "solver.prototxt"), ("-o", "port.py"), ("-o", "hard")],
)  # fmt: skip
def test_an_output_over_another_or_over_an_input_is_refused_even_with_force(output: tuple[str, ...]) -> None:
    Path("hard").hardlink_to("net.prototxt")
    arguments = ("translate", "net.prototxt", "solver.prototxt", "--model", "port.py:Net", *output, "--force")
    assert "would be written over" in refused(*arguments)


def test_the_net_that_a_solver_names_is_an_input_too() -> None:
    assert "over the input" in refused("translate", "solver.prototxt", "--lock", "net.prototxt", "--force")


@pytest.mark.parametrize("bad", ["missing/l.json", "folder", "n" * 300, "loop", "/dev/full"])
def test_when_one_output_of_several_cannot_be_written_none_is(bad: str) -> None:
    Path("folder").mkdir()
    Path("loop").symlink_to("loop")
    outputs = ("-o", "o.py", "--report", "r.txt", "--write-names", "n.toml", "--lock", bad)
    assert f"error: {bad}: " in refused("translate", "net.prototxt", "solver.prototxt", *outputs, "--force")


@pytest.mark.parametrize("verb", ["inspect", "translate"])
@pytest.mark.parametrize(
    "hostile", [HOSTILE, "".join(f"\\{byte:03o}" for byte in HOSTILE.encode())], ids=["raw", "octal"]
)
def test_control_characters_of_a_file_are_shown_and_not_obeyed(verb: str, hostile: str) -> None:
    for place, net, solver in (
        ("policy", NET, SOLVER.replace("fixed", hostile)),
        ("type", NET.replace('"InnerProduct"', f'"{hostile}"', 1), SOLVER),
        ("name", NET.replace('"a" type', f'"{hostile}" type'), SOLVER),
        ("net", NET.replace('"two"', f'"{hostile}"'), SOLVER),
        ("solver", NET, SOLVER + f'type: "{hostile}"'),
        ("text", NET + hostile, SOLVER),
    ):
        Path("net.prototxt").write_text(net)
        Path("solver.prototxt").write_text(solver)
        _, stdout, stderr = run(verb, "net.prototxt", "solver.prototxt")
        assert all(line.isprintable() for line in (stdout + stderr).split("\n")), place
        assert "title" in stdout + stderr or "\\164\\151" in stdout + stderr, place


def test_control_characters_of_the_command_line_are_shown(tmp_path: Path) -> None:
    Path(HOSTILE).write_text("layer {")
    for arguments in (
        ("inspect", HOSTILE), ("inspect", HOSTILE + "x"), (HOSTILE,), ("inspect", "--" + HOSTILE),
        ("inspect", "net.prototxt", "--format", HOSTILE), ("inspect", "net.prototxt", "--input", HOSTILE),
        ("translate", "net.prototxt", "solver.prototxt", "--model", f"{HOSTILE}:Net"),
        ("translate", "net.prototxt", "solver.prototxt", "--without", HOSTILE, "--skip", HOSTILE),
        ("translate", "net.prototxt", "solver.prototxt", "-o", f"{tmp_path}/{HOSTILE}/o.py"),
        ("plot", "solver.prototxt", "-o", HOSTILE),
    ):  # fmt: skip
        status, stdout, stderr = run(*arguments)
        assert status == 2, arguments
        assert all(line.isprintable() for line in (stdout + stderr).split("\n")), arguments


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("stop", "raises Stop: enough"),
        ("silent", "raises Silent: its message raises RuntimeError"),
        ("leave", "raises SystemExit: 0"),
        ("hostile", r"raises ValueError: \x1b[31m\x07\u202e"),
    ],
)
def test_whatever_a_factory_raises_is_one_error(factory: str, words: str) -> None:
    files = ("net.prototxt", "solver.prototxt")
    assert words in refused("translate", *files, "--model", f"port.py:{factory}")
    assert words in refused("audit", *files, "--model", "port.py:Net", "--optimizer", f"port.py:{factory}")


def test_what_a_forward_pass_raises_that_no_one_should_catch_is_one_error() -> None:
    assert "raises Stop: enough" in refused("translate", "net.prototxt", "solver.prototxt", "--model", "port.py:Stops")


def test_a_step_whose_error_has_no_message_is_reported_by_its_name() -> None:
    files = ("net.prototxt", "solver.prototxt")
    status, stdout, _ = run("audit", *files, "--model", "port.py:Net", "--optimizer", "port.py:silent_step")
    assert status == 1
    assert "Silent" in stdout


@pytest.mark.parametrize("text", ["[" * 100_000, "a = " + "[" * 100_000, "a = " + "9" * 10_000])
def test_a_names_file_that_python_cannot_parse_is_one_error(text: str) -> None:
    Path("names.toml").write_text(text)
    files = ("net.prototxt", "solver.prototxt")
    assert "names.toml: bad TOML" in refused("translate", *files, "--model", "port.py:Net", "--names", "names.toml")


def test_a_filler_value_of_400_digits_is_infinite_and_no_traceback() -> None:
    Path("net.prototxt").write_text(
        NET + 'layer { name: "c" type: "BatchNorm" bottom: "b" top: "c" '
        f'batch_norm_param {{ scale_filler {{ type: "constant" value: {"9" * 400} }} }} }}'
    )
    assert run("inspect", "net.prototxt", "--format", "json")[0] == 0


def test_json_has_null_where_a_number_is_none() -> None:
    Path("solver.prototxt").write_text(SOLVER.replace("0.9", "nan"))
    Path("net.prototxt").write_text(NET.replace("lr_mult: 1 ", "lr_mult: inf ", 1))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    for verb in ("inspect", "translate"):
        _, stdout, _ = run(verb, "net.prototxt", "solver.prototxt", "--format", "json")
        data = json.loads(stdout, parse_constant=refuse)
        assert data["solver"]["momentum"] is None
    Path("solver.prototxt").write_text(SOLVER)
    assert "JSON cannot hold" in refused("translate", "net.prototxt", "solver.prototxt", "--lock", "l.json")


@pytest.mark.parametrize(
    "command",
    [
        "c2t inspect net.prototxt > /dev/full",
        "c2t inspect net.prototxt >&-",
        "c2t inspect net.prototxt --format json | true; exit ${PIPESTATUS[0]}",
        "c2t --help > /dev/full",
        "c2t --help | true; exit ${PIPESTATUS[0]}",
    ],
)
def test_a_stdout_that_takes_nothing_is_one_error(command: str) -> None:
    big = "".join(NET.replace('"a"', f'"{i}"').split("\n", 1)[1].split("layer")[1].join(["layer", "\n"])
                  for i in range(400))  # fmt: skip
    Path("net.prototxt").write_text(NET + big)  # more than a pipe takes at once
    if "help" in command and "true" in command:
        command = command.replace("| true", "| { exec <&-; sleep 1; }")
    status, stderr = shell(command)
    assert status == 2, stderr
    assert stderr.startswith("error: ")
    assert len(stderr.splitlines()) == 1


@pytest.mark.parametrize("closed", ["2>&- <&-", "2>/dev/full"])
def test_a_stderr_that_takes_nothing_is_no_concern(closed: str) -> None:
    assert shell(f"c2t inspect net.prototxt solver.prototxt {closed}")[0] == 0
    assert shell(f"c2t inspect absent.prototxt {closed}")[0] == 2


def test_a_page_is_written_without_matplotlib_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, _, _ = run("translate", "net.prototxt", "solver.prototxt", "--report", "report.html")
    assert status == 0
    assert Path("report.html").read_text(encoding="utf-8").endswith("</html>\n")


def test_an_output_to_stdout_is_alone_there(capfd: pytest.CaptureFixture[str]) -> None:
    status, stdout, stderr = run("translate", "net.prototxt", "solver.prototxt", "-o", "/dev/stdout")
    assert (status, stdout) == (0, "")
    assert "no model was checked" in stderr
    compile(capfd.readouterr().out, "optimizer.py", "exec")


AUDIT = ("audit", "net.prototxt", "solver.prototxt", "--model", "port.py:Net", "--optimizer", "port.py:sgd")


@pytest.fixture
def port_with_sgd(folder: Path) -> None:
    text = "\ndef sgd(model):\n    return torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)\n"
    (folder / "port.py").write_text(PORT + text)


@pytest.mark.usefixtures("port_with_sgd")
def test_text_is_as_wide_as_columns_say_with_and_without_colours() -> None:
    widest = {}
    for columns in (None, "80", "200"):
        for colour in ("never", "always"):
            env = {"COLUMNS": columns, "NO_COLOR": None}
            shown = click.unstyle(CliRunner().invoke(main, [*AUDIT, "--color", colour], env=env, color=True).stdout)
            table = [line for line in shown.splitlines() if not line.startswith("Next")]
            widest[columns, colour] = max(map(len, table))
    assert widest["80", "never"] == widest["80", "always"] <= 80 < widest[None, "never"] <= 100
    assert widest["200", "never"] > 100


@pytest.mark.usefixtures("port_with_sgd")
def test_every_report_that_is_named_is_written_once_and_every_file_is_said() -> None:
    files = ("a.json", "b.md", "a.json")
    options = [word for file in files for word in ("--report", file)]
    result = CliRunner().invoke(main, [*AUDIT, *options, "--fix", "right.py"])
    assert json.loads(Path("a.json").read_text())["checks"]
    assert Path("b.md").read_text().startswith("#")
    assert result.stderr == "wrote a.json\nwrote b.md\nwrote right.py\n"
    quiet = CliRunner().invoke(main, [*AUDIT, *options, "--fix", "right.py", "--force", "--quiet"])
    assert quiet.stderr == ""


@pytest.mark.usefixtures("port_with_sgd")
def test_a_misspelt_file_is_answered_with_those_of_its_folder() -> None:
    result = CliRunner().invoke(main, ["inspect", "nett.prototxt"])
    assert result.stderr.startswith("error: nett.prototxt: there is no such file")
    assert "did you mean 'net.prototxt' or" in result.stderr
    assert "did you mean" not in CliRunner().invoke(main, ["inspect", "nowhere/net.prototxt"]).stderr
