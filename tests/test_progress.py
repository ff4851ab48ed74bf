"""A progress bar is for a person at a terminal who waits; nobody else sees one."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import snapshot_files as files
import torch

from caffe2torch import files as progress
from caffe2torch.binding.bind import bind
from caffe2torch.reading import read_recipe
from caffe2torch.snapshot.files import read_caffemodel
from caffe2torch.snapshot.weights import load_weights


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, total: int) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with progress.bar("reading big.caffemodel", total) as advance:
        for _ in range(4):
            advance(total // 4)
    return stream.getvalue()


def test_big_work_on_a_terminal_shows_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "reading big.caffemodel" in shown(monkeypatch, Terminal(), 1 << 30)


def test_nothing_is_shown_for_small_work_or_where_no_terminal_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, Terminal(), 1 << 20) == ""
    assert shown(monkeypatch, io.StringIO(), 1 << 30) == ""


def test_loading_advances_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = tmp_path / "net.prototxt"
    net.write_text(
        'layer { name: "d" type: "Input" top: "d" input_param { shape { dim: 1 dim: 50 } } }\n'
        'layer { name: "ip" type: "InnerProduct" bottom: "d" top: "ip" inner_product_param { num_output: 9 } }'
    )
    recipe, model = read_recipe(net), torch.nn.ModuleDict({"ip": torch.nn.Linear(50, 9)})
    weights = read_caffemodel(files.caffemodel(tmp_path / "m", {"ip": [np.ones((9, 50), "f4"), np.ones(9, "f4")]}))
    screen = Terminal()
    monkeypatch.setattr(progress, "_WORTH_SHOWING", 1)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    load_weights(model, recipe, bind(recipe, model), weights)
    assert "loading m" in screen.getvalue()
    assert "1.8/1.8 kB" in screen.getvalue()
