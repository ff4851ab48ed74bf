"""What the docs list must be what the code has."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from places import REPOSITORY

import caffe2torch
from caffe2torch.cli import VERBS
from caffe2torch.emit.loss import loss_source
from caffe2torch.models.losses import LOSSES
from caffe2torch.recipe import PolicyType, SolverType, Statement
from caffe2torch.solver.fork_rules import FORK_FIELDS, Meaning
from caffe2torch.verification.report import Verdict


def page(name: str) -> str:
    return (REPOSITORY / "docs" / name).read_text(encoding="utf-8")


def table(text: str, *titles: str) -> list[list[str]]:
    """The rows of the table with these titles."""
    head = "| " + " | ".join(titles) + " |\n"
    assert head in text, f"no table {head}"
    lines = text[text.index(head) :].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_the_rules_that_are_refused_are_listed_with_their_reasons() -> None:
    rules = {field.rule: field.reason for field in FORK_FIELDS.values() if field.meaning is Meaning.REFUSED}
    fields = {rule: [name for name, field in FORK_FIELDS.items() if field.rule == rule] for rule in rules}
    listed = {rule: (names.split(", "), why) for rule, names, why in table(page("refused.md"), "name", "fields", "why")}
    assert listed == {rule: (fields[rule], reason) for rule, reason in rules.items()}


def test_every_policy_is_listed() -> None:
    text = page("policies.md")
    listed = {name.strip("`") for name, _ in table(text, "`lr_policy`", "rate at iteration i")}
    assert listed | {"multifixed", "plateau"} == set(PolicyType)
    assert "multifixed" in text
    assert "plateau" in text


def test_every_solver_and_word_of_a_report_is_listed() -> None:
    assert all(f"`{kind}`" in page("cookbook.md") for kind in SolverType)
    assert [row[0] for row in table(page("report.md"), "verdict", "meaning")] == list(Verdict)
    words = [re.split(r"[ (`)]+", row[0]) for row in table(page("multipliers.md"), "word", "meaning")]
    assert all(statement in word for statement, word in zip(Statement, words, strict=True))


def test_every_verb_has_its_help_on_the_page() -> None:
    assert set(re.findall(r"^::: caffe2torch (\w+)$", page("cli.md"), re.MULTILINE)) == set(VERBS)


def test_every_public_name_is_in_the_reference() -> None:
    pages = "".join(file.read_text(encoding="utf-8") for file in (REPOSITORY / "docs").glob("api*.md"))
    documented = set(re.findall(r"^::: caffe2torch\.(\w+)", pages, re.MULTILINE))
    assert set(caffe2torch.__all__) - {"__version__"} <= documented


@pytest.mark.parametrize("name", sorted(file.name for file in (REPOSITORY / "docs").glob("*.md")))
def test_a_page_begins_with_what_its_reader_will_be_able_to_do(name: str) -> None:
    if name not in ("index.md", "changelog.md"):
        title, opening = page(name).split("\n\n")[:2]
        assert title.startswith("# ")
        assert opening.startswith("After this page you can ")


def test_every_message_of_the_troubleshooting_is_one_that_the_code_has() -> None:
    code = "".join(file.read_text(encoding="utf-8") for file in (REPOSITORY / "caffe2torch").rglob("*.py"))
    code = re.sub(r'"\s+f?"', "", code) + (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    rows = [row for title in ("message", "what stands there", "what happens") for row in tables(title)]
    messages = [message for row in rows for message in re.findall("`(.*?)`", row[0])]
    assert len(messages) > 30
    for message in messages:
        for part in message.split("..."):
            assert part.strip(" ,:") in code, message


def tables(title: str) -> list[list[str]]:
    """The rows of all tables of the troubleshooting page whose first column has this title."""
    _, *found = page("troubleshooting.md").split(f"| {title} | what to do |\n")
    return [row for text in found for row in table(f"| {title} | what to do |\n{text}", title, "what to do")]


def test_every_loss_is_listed_with_the_torch_call_that_is_the_same(tmp_path: Path) -> None:
    rows = table(page("losses.md"), "layer", "takes", "divides by", "torch")
    listed = {re.findall("`(.*?)`", row[0])[0]: row for row in rows[:-1]}  # the last row is no loss layer
    assert set(listed) == set(LOSSES)
    for kind, (_, takes, _, call) in listed.items():
        bottoms = "".join(f' bottom: "{name}"' for name in ("x", "y", "z")[: 3 if "similar" in takes else 2])
        if kind == "InfogainLoss":
            bottoms += ' bottom: "z"'
        (tmp_path / "net.prototxt").write_text(f'layer {{ name: "loss" type: "{kind}" {bottoms} }}')
        source = loss_source(caffe2torch.read_recipe(tmp_path / "net.prototxt"))
        assert source is not None
        if call.startswith("none"):
            assert "return torch" not in source
        else:
            assert f"return {call.strip('`')}\n" in source


def test_the_glossary_is_sorted() -> None:
    for section in page("glossary.md").split("## ")[1:]:
        words = [row[0].lower() for row in table(section, "word", "meaning")]
        assert words == sorted(words)


def test_examples_and_literal_blocks_of_docstrings_get_fences() -> None:
    pytest.importorskip("griffe", reason="the site's tools are not installed: pip install '.[docs]'")
    fenced = runpy.run_path(str(REPOSITORY / "docs" / "docstring_examples.py"))["fenced"]
    text = "One.\n\n>>> x = [\n...     1\n... ]\n>>> x\n[1]\n\n>>> y\n\nAs in::\n\n    a\n\n      b\n\nTwo."
    assert fenced(text) == (
        "One.\n\n```pycon\n>>> x = [\n...     1\n... ]\n>>> x\n[1]\n\n>>> y\n```\n\n"
        "As in:\n\n```\na\n\n  b\n```\n\nTwo."
    )
    assert fenced("No examples.") == "No examples."


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_asks_for_nothing_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the site's tools are not installed: pip install '.[docs]'")
    pytest.importorskip("mkdocstrings_handlers.python", reason="mkdocstrings[python] is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 12
    for file in pages:
        text = file.read_text(encoding="utf-8")
        assert not re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\"(?:https?:)?//[^\"]*", text), file.name
        assert ">>> " not in re.sub(r"<pre>.*?</pre>", "", text, flags=re.DOTALL), f"an example outside a block: {file}"


def test_every_place_on_the_map_for_maintainers_exists() -> None:
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.partition("## Where a new thing goes")[2].partition("## Rules")[0]
    places = [place for place in re.findall(r"`([\w./]+)`", table) if "/" in place or place.endswith(".py")]
    assert len(places) > 20
    folders = ("", "caffe2torch", "tests/verification")
    assert [place for place in places if not any((REPOSITORY / one / place).exists() for one in folders)] == []


def test_a_docstring_names_no_file_that_is_not_there() -> None:
    written = {"optimizer.py", "compute_bn_statistics.py"}  # an emitted file, and one of SegNet's
    package = REPOSITORY / "caffe2torch"
    files = {path.relative_to(package).as_posix() for path in package.rglob("*.py")}
    for path in package.rglob("*.py"):
        for name in re.findall(r"``([\w/]+\.py)``", path.read_text(encoding="utf-8")):
            assert name in written or any(f"/{one}".endswith(f"/{name}") for one in files), f"{path}: {name}"
