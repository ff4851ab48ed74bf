"""Models by what a command line can say, and what is said when there is none."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from torch import nn

from caffe2torch.cli.loading import call_factory, load_factory, load_model, parse_spec
from caffe2torch.errors import ModelError

SCRIPT = """
import sibling
import torch
from torch import nn

print("importing")
READY = nn.Linear(2, 3)
NUMBER = 3

class Net(nn.Linear):
    def __init__(self, inputs=2, *, outputs=3, names=()):
        print("building")
        super().__init__(inputs, outputs * sibling.TWICE)
        self.names = names

class Holder:
    @staticmethod
    def build():
        import second_sibling
        return second_sibling.make()

def broken():
    raise RuntimeError("no dataset on this machine")

def leaves():
    raise SystemExit(2)

def nothing():
    pass
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script with its siblings, in a folder with a space in its name; imports are forgotten afterwards."""
    folder = tmp_path / "a port"
    folder.mkdir()
    (folder / "port.py").write_text(SCRIPT)
    (folder / "sibling.py").write_text("TWICE = 2")
    (folder / "second_sibling.py").write_text("from torch import nn\ndef make(): return nn.Conv2d(1, 1, 1)")
    (folder / "exits.py").write_text("raise SystemExit('usage: ...')")
    (folder / "breaks.py").write_text("1 / 0")
    (folder / "misses.py").write_text("import a_package_that_nobody_has")
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    return folder / "port.py"


def test_a_factory_of_an_installed_module() -> None:
    model = load_model("torch.nn:Linear(4, out_features=2, bias=False)")
    assert isinstance(model, nn.Linear)
    assert (model.in_features, model.out_features, model.bias) == (4, 2, None)


def test_a_script_is_imported_with_its_siblings_and_prints_to_stderr(
    script: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = list(sys.path)
    model = load_model(f"{script}:Net(5, outputs=1, names=['crop: wheat', (1, None)])")
    assert isinstance(model, nn.Linear)
    assert (model.in_features, model.out_features) == (5, 2)
    assert model.names == ["crop: wheat", (1, None)]
    assert isinstance(load_model(f"{script}:Holder.build"), nn.Conv2d)
    assert sys.path == before
    output = capsys.readouterr()
    assert output.out == ""
    assert "importing" in output.err
    assert "building" in output.err


def test_a_module_of_the_working_directory(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(script.parent)
    assert isinstance(load_model("port:Net"), nn.Linear)
    assert isinstance(load_model("port.py:Net()"), nn.Linear)


def test_a_model_that_is_built_already_is_taken_as_it_is(script: Path) -> None:
    assert isinstance(load_model(f"{script}:READY"), nn.Linear)
    with pytest.raises(ModelError, match=r"READY\(\) raises TypeError"):
        load_model(f"{script}:READY()")


def test_a_factory_can_be_had_without_calling_it(script: Path) -> None:
    factory = load_factory(f"{script}:Net(7)")
    assert factory(outputs=2).in_features == 7  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match=r"'NUMBER' in .* is no class or function, but an object of type int"):
        load_factory(f"{script}:NUMBER")


def test_torchvisions_models_by_name_and_without_weights() -> None:
    pytest.importorskip("torchvision")
    model = load_model("torchvision:squeezenet1_1(num_classes=3)")
    assert model.num_classes == 3  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match="torchvision has no model 'squeezenet2'") as caught:
        load_model("torchvision:squeezenet2")
    assert caught.value.hint is not None
    assert "squeezenet1_0" in caught.value.hint


@pytest.mark.parametrize(
    "text", ["port", "port.py", ":Net", "port:", "port:Net)", "port:3", "a b:c d", "port:Net.", "port:(1)", ""]
)
def test_text_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ModelError, match="does not say where a model is") as caught:
        parse_spec(text)
    assert caught.value.expected is not None
    assert (caught.value.hint == "name the factory: port.py:Net") == (text == "port.py")


@pytest.mark.parametrize(
    "call",
    [
        "Net(x)",
        "Net(open('f'))",
        "Net(1).half()",
        "Net(1",
        "Net(**{'a': 1})",
        "Net(*[1])",
        "Net(lambda: 0)",
        "Net(a=1, a=2)",
    ],
)
def test_arguments_are_literals_and_nothing_else(call: str) -> None:
    with pytest.raises(ModelError, match="is not one call with literal arguments"):
        parse_spec(f"port:{call}")


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("broken", "broken raises RuntimeError: no dataset on this machine"),
        ("leaves", "leaves raises SystemExit: 2"),
        ("nothing", "nothing returns nothing"),
        ("NUMBER", "'NUMBER' in {script} is no class or function, but an object of type int"),
        ("Nett", "{script} has no 'Nett'"),
        ("Net(1, 2)", "raises TypeError"),
        ("Holder", "Holder returns an object of type Holder"),
    ],
)
def test_a_factory_that_gives_no_model_is_refused(script: Path, factory: str, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(f"{script}:{factory}")
    assert message.format(script=script) in str(caught.value)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("exits.py", "raises, while it is imported, SystemExit: usage: ..."),
        ("breaks.py", "raises, while it is imported, ZeroDivisionError"),
        ("misses.py", "cannot be imported: there is no module 'a_package_that_nobody_has'"),
        ("absent.py", "there is no script"),
    ],
)
def test_a_script_that_cannot_be_imported_is_refused(script: Path, where: str, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(f"{script.parent / where}:Net")
    assert message in str(caught.value)


def test_a_module_that_is_not_there_is_refused_with_a_way_out() -> None:
    with pytest.raises(ModelError, match="there is no module 'no_such_port'") as caught:
        load_model("no_such_port.nets:Net")
    assert caught.value.hint is not None
    assert "path/to/it.py:Net" in caught.value.hint


def test_an_error_inside_a_factory_names_the_line_of_the_users_file(tmp_path: Path) -> None:
    script = tmp_path / "broken.py"
    script.write_text(
        "import torch\n\ndef make():\n    return torch.nn.Conv2d(3, 5, 3, groups=2)\n\n"
        "def late(model):\n    raise KeyError('x')\n"
    )
    with pytest.raises(ModelError) as caught:
        load_model(f"{script}:make")
    assert str(caught.value).startswith(f"{script}:4: ")
    with pytest.raises(ModelError) as caught:
        call_factory(f"{script}:late", None)
    assert str(caught.value).startswith(f"{script}:7: ")
