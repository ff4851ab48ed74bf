"""Where net and model do not bind completely there is a names file to complete, and completing it binds."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner
from nets import IMAGE, conv, linear, names, recipe_of

from caffe2torch.binding.bind import bind
from caffe2torch.binding.messages import IncompleteBindingError
from caffe2torch.binding.names import read_names
from caffe2torch.cli import main

NET = (
    conv("stem", "data", 4)
    + conv("mid/a", "stem", 4)
    + conv("mid/b", "mid/a", 4)
    + conv("tail", "mid/b", 6, kernel=1)
    + linear("score", "tail", 101)
)
PORT = """
import torch
from torch import nn

class Port(nn.Module):
    def __init__(self, classes=101, middle=3):
        super().__init__()
        self.unused = nn.Conv2d(4, 4, 3, padding=1)
        self.unused.requires_grad_(False)
        self.head = nn.Linear(384, classes)
        self.end = nn.Conv2d(4, 6, 1)
        self.body = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(middle))
        self.first = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x):
        x = self.first(x)
        for layer in self.body:
            x = layer(x)
        return self.head(self.end(x).flatten(1))

def make(classes=101, middle=3):
    return Port(classes, middle)

def optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.prototxt").write_text(IMAGE + NET)
    (tmp_path / "solver.prototxt").write_text('base_lr: 0.1 lr_policy: "fixed"')
    (tmp_path / "port.py").write_text(PORT)
    return tmp_path


def run(folder: Path, verb: str, *options: str, factory: str = "make") -> tuple[int, str]:
    given = [verb, str(folder / "net.prototxt"), str(folder / "solver.prototxt")]
    given += ["--model", f"{folder / 'port.py'}:{factory}", *options]
    if verb == "audit":
        given += ["--optimizer", f"{folder / 'port.py'}:optimizer"]
    result = CliRunner().invoke(main, given)
    return result.exit_code, result.output


@pytest.mark.parametrize("verb", ["translate", "audit"])
def test_a_draft_fills_in_what_is_certain_offers_what_forward_reaches_and_binds_once_completed(
    folder: Path, verb: str
) -> None:
    draft = folder / "names.toml"
    status, output = run(folder, verb, "--write-names", str(draft))
    assert status == 2
    assert f"complete the draft in {draft}" in " ".join(output.split())
    text = draft.read_text()
    assert read_names(draft) == {"stem": "first", "tail": "end", "score": "head"}
    assert "unused" not in text
    a, b = (text[text.index(f"# mid/{name} (") :].split("\n\n")[0] for name in "ab")
    for section, line in ((a, 3), (b, 4)):
        assert f"net.prototxt:{line}:1" in section
        assert "weight 4x4x3x3, bias 4" in section
        assert re.findall(r'# "mid/." = "(.*)"  # the same sizes', section)
    for chosen in ('"mid/a" = "body.0"', '"mid/b" = "body.2"'):
        assert f"# {chosen}" in text
        text = text.replace(f"# {chosen}", chosen)
    draft.write_text(text)
    status, output = run(
        folder, verb, "--names", str(draft), "--unclaimed", "lr_mult=1,decay_mult=1", "--write-names",
        str(folder / "again.toml"),
    )  # fmt: skip
    assert status == 0, output
    assert read_names(folder / "again.toml") == read_names(draft)


def test_a_layer_of_another_shape_has_its_place_as_first_candidate(folder: Path) -> None:
    draft = folder / "names.toml"
    status, _ = run(folder, "translate", "--write-names", str(draft), factory="make(10, 2)")
    assert status == 2
    assert (
        "# score = \"head\"  # outputs 101 / 10\n# and say that its shape differs: --reshaped 'score'"
        in draft.read_text()
    )
    assert read_names(draft) == {"stem": "first", "mid/a": "body.0", "mid/b": "body.1", "tail": "end"}


def test_without_the_option_the_error_names_it_and_bind_keeps_the_draft(folder: Path) -> None:
    assert "--write-names FILE.toml writes a draft" in " ".join(run(folder, "translate")[1].split())
    namespace: dict[str, type] = {}
    exec(PORT, namespace)
    with pytest.raises(IncompleteBindingError) as caught:
        bind(recipe_of(IMAGE, NET), namespace["Port"]())
    assert 'stem = "first"' in caught.value.draft
    bound = bind(recipe_of(IMAGE, NET), namespace["Port"](middle=2))
    assert names(bound)["mid/b/0"] == "body.1.weight"


@pytest.mark.parametrize("middle", [1, 2])
def test_the_first_candidates_of_a_draft_are_no_module_twice_and_bind_with_what_it_says_to_skip(middle: int) -> None:
    namespace: dict[str, type] = {}
    exec(PORT, namespace)
    more = conv("stem", "data", 4) + conv("m1", "stem", 4) + conv("m2", "m1", 4) + conv("m3", "m2", 4)
    recipe = recipe_of(IMAGE, more, conv("tail", "m3", 6, kernel=1), linear("score", "tail", 101))
    model = namespace["Port"](middle=middle)
    with pytest.raises(IncompleteBindingError) as caught:
        bind(recipe, model)
    draft = caught.value.draft
    sections = [section.splitlines()[1:] for section in draft.split("\n\n")[1:]]
    chosen = [next((line for line in lines if "=" in line), "") for lines in sections]
    given = tomllib.loads("\n".join(line.removeprefix("# ") for line in chosen))
    assert len(set(given.values())) == len(given) == 3 + middle
    skip = re.findall(r"--skip '(m\d)', or a layer above", draft)
    assert len(skip) == 3 - middle
    assert names(bind(recipe, model, given, skip=skip))["score/0"] == "head.weight"


EARLY = """
from torch import nn

class Port(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.c, self.d = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 6, 1)
        self.e = nn.Linear(384, 101)

    def forward(self, x):
        x = self.b(self.a(x))
        raise RuntimeError("the rest needs a compiled operation")
"""


def test_a_draft_offers_what_a_forward_pass_that_ended_early_had_not_reached() -> None:
    namespace: dict[str, type] = {}
    exec(EARLY, namespace)
    with pytest.raises(IncompleteBindingError) as caught:
        bind(recipe_of(IMAGE, NET), namespace["Port"]())
    draft = caught.value.draft
    assert tomllib.loads(draft) == {"stem": "a"}
    first = {section.split()[0]: section.splitlines()[1] for section in draft.split("\n\n# ")[2:]}
    assert first["mid/a"] == '# "mid/a" = "b"  # the same sizes'
    assert first["mid/b"] == '# "mid/b" = "c"  # the same sizes; forward did not reach it'
    assert first["tail"] == '# tail = "d"  # the same sizes; forward did not reach it'
    assert first["score"] == '# score = "e"  # the same sizes; forward did not reach it'
    chosen = tomllib.loads("\n".join(line.removeprefix("# ") for line in first.values()))
    assert names(bind(recipe_of(IMAGE, NET), namespace["Port"](), {"stem": "a", **chosen}))["score/0"] == "e.weight"


NORMED = """
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

def make():
    def conv(*sizes):
        return weight_norm(nn.Conv2d(*sizes, padding=1))
    return nn.Sequential(conv(3, 4, 3), conv(4, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Flatten(), nn.Linear(256, 9))
"""


def test_a_hint_and_its_draft_are_followed_on_the_command_line_in_one_round(folder: Path) -> None:
    text = IMAGE + conv("one", "data", params="param { lr_mult: 3 decay_mult: 4 }")
    text += conv("two", "one", params="param { lr_mult: 5 decay_mult: 6 }") + conv("three", "two")
    (folder / "net.prototxt").write_text(text + linear("score", "three", 5))
    (folder / "port.py").write_text(NORMED)
    draft = folder / "names.toml"
    status, output = run(folder, "translate", "--write-names", str(draft))
    assert status == 2
    typed = [(option, value) for option, value in re.findall(r"(--reshaped|--unclaimed) '(.*?)'", output)]
    assert [value for option, value in typed if option == "--unclaimed"] == [
        "0.parametrizations.weight.original0:lr_mult=3,decay_mult=4",
        "1.parametrizations.weight.original0:lr_mult=5,decay_mult=6",
    ]
    options = [word for pair in typed for word in pair]
    status, output = run(folder, "translate", "--names", str(draft), *options)
    assert status == 0, output
