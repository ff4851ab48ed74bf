"""JSON and Markdown have the same rows as the text, and a recipe by itself is shown in all three."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from report_runs import hostile, notebook, right
from report_samples import HOSTILE
from small_net import SmallNet, groups_of, recipe_of, report_of

from caffe2torch.reading import read_recipe
from caffe2torch.recipe import (
    BlobUse,
    LrPolicy,
    Note,
    PolicyType,
    Ramp,
    Severity,
    SolverSettings,
    SolverType,
    SourceLocation,
)
from caffe2torch.report import render
from caffe2torch.report.inspect import render_recipe
from caffe2torch.report.solver_table import solver_dict, solver_line


def test_json_is_the_dictionary_and_plain_ascii() -> None:
    for report in (right(), notebook(), hostile()):
        text = render(report, "json")
        assert text.isascii()
        assert json.loads(text) == report.to_dict()


def test_json_has_no_nan() -> None:
    model = SmallNet()
    solver = SolverSettings(SolverType.SGD, LrPolicy(PolicyType.POLY, base_lr=0.1, power=0.5))
    report = report_of(model, torch.optim.SGD(groups_of(model)), solver)
    json.loads(render(report, "json"), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def cells(line: str) -> list[str]:
    return re.split(r"(?<!\\)\|", line)[1:-1]


def test_markdown_has_a_row_for_every_blob_and_escapes_names() -> None:
    for report in (right(), notebook(), hostile()):
        lines = render(report, "md").splitlines()
        table = [line for line in lines if line.startswith("| ") and len(cells(line)) != 3]  # the others are checks
        assert {len(cells(line)) for line in table} == {12}
        assert len(table) == 2 + len(report.rows)
        assert f"**{'6 of 10' if report.net == 'small' and not report.ok else ''}" in lines[2]
    text = render(hostile(), "md")
    assert "<script>" not in text
    assert "\\<script\\>" in text
    assert all(c.isprintable() or c == "\n" for c in text)


def test_a_recipe_is_shown_whole_in_each_style() -> None:
    recipe, _ = recipe_of(SmallNet())
    use = BlobUse("other", "Convolution", 0, SourceLocation("train.prototxt", 90, 3))
    blobs = (replace(recipe.blobs[0], shared_with=(use,), shape=(4, None, 3, 3)), *recipe.blobs[1:])
    recipe = replace(recipe, blobs=blobs, notes=(Note(None, Severity.WARNING, "look here"),))
    data = json.loads(render_recipe(recipe, "json"))
    assert list(data) == ["net", "solver", "blobs", "notes"]
    assert data["blobs"][0] == {
        "layer": "conv1", "layer_type": "Convolution", "blob": 0, "role": "weight", "shape": [4, None, 3, 3],
        "lr_mult": 1.0, "decay_mult": 1.0, "stated": {"lr_mult": "explicit", "decay_mult": "explicit"},
        "where": "train.prototxt:14:3",
        "shared_with": [{"layer": "other", "layer_type": "Convolution", "blob": 0, "where": "train.prototxt:90:3"}],
    }  # fmt: skip
    assert data["notes"] == [{"where": None, "severity": "warning", "message": "look here"}]
    text, markdown = render_recipe(recipe), render_recipe(recipe, "md")
    for blob in recipe.blobs:
        assert len(re.findall(rf"^{re.escape(blob.name)} ", text, re.MULTILINE)) == 1 + bool(blob.shared_with)
        assert markdown.count(f"| {blob.name.replace('_', chr(92) + '_')} |") == 1
    assert "4x?x3x3" in text
    assert "conv1/0 is shared with other/0" in text
    assert "warning: look here" in text
    assert text.splitlines()[-1] == "10 blobs (lr_mult, decay_mult): 7 at (1, 1), 3 at (2, 0)"
    with pytest.raises(ValueError, match="unknown style 'xml'"):
        render_recipe(recipe, "xml")


def test_a_net_without_solver_or_name_is_shown() -> None:
    recipe, _ = recipe_of(SmallNet())
    bare = replace(recipe, net_name="", solver=None)
    assert json.loads(render_recipe(bare, "json"))["solver"] is None
    assert render_recipe(bare).startswith("a net without a name\n\n")


def test_hostile_names_of_a_recipe_are_shown_as_text() -> None:
    recipe, _ = recipe_of(SmallNet())
    blob = replace(recipe.blobs[0], layer=HOSTILE, layer_type=HOSTILE)
    recipe = replace(recipe, net_name=HOSTILE, blobs=(blob,))
    for style in ("text", "md", "json"):
        text = render_recipe(recipe, style)
        assert all(c.isprintable() or c == "\n" for c in text)
    assert "<script>" not in render_recipe(recipe, "md")


def test_a_solver_is_told_by_caffes_names() -> None:
    policy = LrPolicy(
        PolicyType.MULTISTEP, 1e-4, gamma=0.5, stepvalues=(10, 20), warmup_iter=5, warmup_start_lr=0.0, min_lr=1e-6
    )
    solver = SolverSettings(
        SolverType.ADAM, policy, momentum=0.9, weight_decay=0.0005, iter_size=4, clip_gradients=35.0,
        weight_decay_ramp=Ramp(0.01, 1.0, 100),
    )  # fmt: skip
    assert solver_line(solver) == (
        "Adam, base_lr 0.0001, lr_policy multistep (gamma 0.5, stepvalue [10, 20], warmup_iter 5, warmup_start_lr 0, "
        "min_lr 1e-06), momentum 0.9, momentum2 0.999, delta 1e-08, weight_decay 0.0005, iter_size 4, clip_gradients 35"
    )
    said = solver_dict(solver)
    assert said["stepvalue"] == [10, 20]
    assert said["max_weight_decay"] == 0.01
    assert "rampup_lr" not in said


@pytest.mark.shared
def test_a_large_net_is_inspected_in_little_time(shared: Path) -> None:
    """Rendering 932 blobs costs little more than reading them, and loads no heavy package."""
    net = shared / "corpus/large/resnet152-deploy.prototxt"
    code = (
        "import sys, time; from caffe2torch.reading import read_recipe;"
        "from caffe2torch.report.inspect import render_recipe;"
        f"read_recipe({str(net)!r}); start = time.process_time(); r = read_recipe({str(net)!r});"
        "between = time.process_time(); text = render_recipe(r);"
        "print((time.process_time() - between) / (between - start), len(text.splitlines()));"
        "print({'torch', 'numpy', 'rich'} & set(sys.modules))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert float(said[0]) < 3
    assert int(said[1]) > 932
    assert said[2:] == ["set()"]
    assert len(read_recipe(net).blobs) == 932
