"""``caffe2torch plot``: a picture, a sentence, and one clear message for what cannot be drawn."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner, Result

from caffe2torch.cli import main

NET = """
input: "data" input_shape { dim: 1 dim: 3 dim: 8 dim: 8 }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param { num_output: 2 kernel_size: 3 }
        param { lr_mult: 1 } param { lr_mult: 2 decay_mult: 0 } }
layer { name: "ip" type: "InnerProduct" bottom: "conv" top: "ip" inner_product_param { num_output: 2 } }
"""
SOLVER = 'base_lr: 0.1 lr_policy: "step" gamma: 0.1 stepsize: 40 momentum: 0.9 weight_decay: 0.0005 max_iter: 100'


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    net, solver = tmp_path / "net.prototxt", tmp_path / "solver.prototxt"
    net.write_text(NET)
    solver.write_text(SOLVER)
    return net, solver


def plot(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(main, ["plot", *map(str, arguments)], catch_exceptions=False)
    assert "Traceback" not in result.stderr
    return result


def labels(picture: Path) -> list[str]:
    return [element.text or "" for element in ET.parse(picture).iter("{http://www.w3.org/2000/svg}text")]


def test_it_draws_the_rate_of_each_group(files: tuple[Path, Path], tmp_path: Path) -> None:
    result = plot(*files, "-o", tmp_path / "lr.svg")
    assert result.exit_code == 0
    assert result.stdout == (
        "The global rate goes from 0.1 to 0.001 over the 100 iterations and turns 2 times, at iteration 40, 80.\n"
    )
    assert labels(tmp_path / "lr.svg").count("lr ×2") == 2  # on a linear and on a logarithmic scale


def test_fine_tuning_is_drawn_too(files: tuple[Path, Path], tmp_path: Path) -> None:
    assert plot(*files, "--finetune", "ip=10", "-o", tmp_path / "lr.svg").exit_code == 0
    assert {"lr ×1", "lr ×2", "lr ×10"} <= set(labels(tmp_path / "lr.svg"))


def test_png_is_png(files: tuple[Path, Path], tmp_path: Path) -> None:
    assert plot(*files, "-o", tmp_path / "lr.png").exit_code == 0
    assert (tmp_path / "lr.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_divergence_is_simulated_and_told(files: tuple[Path, Path], tmp_path: Path) -> None:
    result = plot(*files, "--divergence", "-o", tmp_path / "d.svg")
    assert re.search(r"Over 100 iterations stock torch leaves Caffe's path by up to [\d.]+ %", result.stdout)
    assert "lr ×2, decay ×0" in labels(tmp_path / "d.svg")


def test_two_solvers_are_told_apart(files: tuple[Path, Path], tmp_path: Path) -> None:
    other = tmp_path / "other.prototxt"
    other.write_text('base_lr: 0.2 lr_policy: "fixed" max_iter: 50')
    result = plot(*files, "--versus", other, "--divergence", "-o", tmp_path / "lr.svg")
    lines = result.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == ["solver.prototxt", "other.prototxt"] * 2
    assert "0.2 throughout the 50 iterations" in lines[1]
    assert {"lr ×1, solver.prototxt", "lr ×1, other.prototxt"} <= set(labels(tmp_path / "lr.svg"))


def test_two_solvers_of_one_name_are_told_apart_by_their_folders(files: tuple[Path, Path], tmp_path: Path) -> None:
    other = tmp_path / "other" / "solver.prototxt"
    other.parent.mkdir()
    other.write_text('base_lr: 0.2 lr_policy: "fixed" max_iter: 50')
    result = plot(*files, "--versus", other, "-o", tmp_path / "lr.svg")
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == [
        f"{tmp_path.name}/solver.prototxt",
        "other/solver.prototxt",
    ]


def test_the_picture_is_the_same_every_time(files: tuple[Path, Path], tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        plot(*files, "--divergence", "-o", tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_a_run_of_a_billion_iterations_is_drawn_at_once(files: tuple[Path, Path], tmp_path: Path) -> None:
    net, solver = files
    solver.write_text(SOLVER.replace("max_iter: 100", "max_iter: 1000000000"))
    assert plot(net, solver, "-o", tmp_path / "lr.svg").exit_code == 0


def test_without_max_iter_the_number_of_iterations_is_asked_for(files: tuple[Path, Path], tmp_path: Path) -> None:
    net, solver = files
    solver.write_text(SOLVER.replace("max_iter: 100", ""))
    result = plot(net, solver, "-o", tmp_path / "lr.svg")
    assert result.exit_code == 2
    assert result.stderr == (
        f"error: {solver}: the solver states no max_iter\n  hint: say how many to draw: --iterations N\n"
    )
    assert not (tmp_path / "lr.svg").exists()
    assert plot(net, solver, "--iterations", "30", "-o", tmp_path / "lr.svg").exit_code == 0


def test_a_net_alone_has_no_rate(files: tuple[Path, Path], tmp_path: Path) -> None:
    result = plot(files[0], "-o", tmp_path / "lr.svg")
    assert result.exit_code == 2
    assert "no solver is given, and a net alone does not say how it is trained" in result.stderr


def test_a_rule_that_is_not_translated_is_not_drawn_either(files: tuple[Path, Path], tmp_path: Path) -> None:
    net, solver = files
    solver.write_text('base_lr: 0.1 lr_policy: "plateau" gamma: 0.1 plateau_winsize: 10 max_iter: 100')
    result = plot(net, solver, "-o", tmp_path / "lr.svg")
    assert result.exit_code == 2
    assert "plateau is not translated" in result.stderr


def test_a_picture_is_never_written_over_unasked(files: tuple[Path, Path], tmp_path: Path) -> None:
    picture = tmp_path / "lr.svg"
    picture.write_text("mine")
    assert plot(*files, "-o", picture).exit_code == 2
    assert picture.read_text() == "mine"
    assert plot(*files, "-o", picture, "--force").exit_code == 0
    assert picture.read_text() != "mine"


def test_other_kinds_of_pictures_are_named_as_unknown(files: tuple[Path, Path], tmp_path: Path) -> None:
    result = plot(*files, "-o", tmp_path / "lr.jpg")
    assert result.exit_code == 2
    assert "ends in none of .svg, .png" in result.stderr
