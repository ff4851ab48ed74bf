"""Damaged nets and solvers give a recipe that prints, or one error of ours."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

import pytest
from fuzz import Feed, damaged
from places import REPOSITORY

from caffe2torch.net.bvlc_layers import BVLC_LAYERS
from caffe2torch.net.fork_layers import FORK_LAYERS
from caffe2torch.reading import read_recipe
from caffe2torch.report.inspect import render_recipe
from caffe2torch.solver.fork_rules import FORK_FIELDS

SOLVER = b'base_lr: 0.01 lr_policy: "step" gamma: 0.1 stepsize: 10 momentum: 0.9 weight_decay: 5e-4 max_iter: 100\n'
EVERY_KIND = b"""
layer { name: "data" type: "Data" top: "data" top: "label" data_param { batch_size: 2 }
        transform_param { crop_size: 32 mean_value: [104, 117, 123] } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" param { name: "w" lr_mult: 1 } param { lr_mult: 2 }
        convolution_param { num_output: 8 kernel_size: 3 pad: 1 group: 1 weight_filler { type: "xavier" } } }
layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" param { lr_mult: 0 } batch_norm_param { eps: 1e-5 } }
layer { name: "scale" type: "Scale" bottom: "conv" top: "conv" scale_param { bias_term: true } }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "norm" type: "Normalize" bottom: "pool" top: "norm" norm_param { channel_shared: false } }
layer { name: "cat" type: "Concat" bottom: "pool" bottom: "norm" top: "cat" concat_param { axis: 1 } }
layer { name: "sum" type: "Eltwise" bottom: "cat" bottom: "cat" top: "sum" propagate_down: true propagate_down: false }
layer { name: "flat" type: "Reshape" bottom: "sum" top: "flat" reshape_param { shape { dim: 0 dim: -1 dim: 4 } } }
layer { name: "fc" type: "InnerProduct" bottom: "flat" top: "fc" inner_product_param { num_output: 11 axis: 1 } }
layer { name: "aux" type: "InnerProduct" bottom: "fc" top: "aux" include { phase: TRAIN stage: "x" not_stage: "y" }
        param { name: "w" } inner_product_param { num_output: 3 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" loss_weight: 0.3 }
"""
VALUES = (b"0", b"-1", b"- 2", b"2147483648", b"1e400", b"nan", b"inf", b"true", b'"x"', b"'\\", b"${X}", b"9" * 400)
MARKS = (b"{", b"}", b"[", b"]", b"<", b">", b":", b",", b"#", b'"', b"\r", b"\0", b"\xff")
NAMES = tuple(name.encode() for name in (*BVLC_LAYERS, *FORK_LAYERS, *FORK_FIELDS, "layer", "layers", "param", "dim"))
TOKEN = re.compile(rb'"[^"\n]*"|[\w.+-]+|[^\w\s]')
BLOCK = re.compile(rb"layers? *\{.*?\n(?=layers? *\{|\Z)", re.DOTALL)


def sources() -> list[bytes]:
    """Texts to damage: a net of every kind of layer, the project's own files, V1 and V0 nets."""
    fixtures = REPOSITORY / "fixtures"
    files = [fixtures / "segnet_basic" / "train.prototxt", *sorted((fixtures / "caffe_said").glob("v?.prototxt"))]
    return [EVERY_KIND, *(file.read_bytes() for file in files)]


def mutated(data: bytes, chance: Random) -> bytes:
    """One text damaged by bytes, by tokens or by whole layers."""
    kind = chance.randrange(3)
    if kind == 0:
        return damaged(data, chance, tokens=(*VALUES, *MARKS))
    if kind == 1:
        for _ in range(chance.choice((1, 2, 8))):
            tokens = list(TOKEN.finditer(data))
            if tokens:
                one = chance.choice(tokens)
                new = chance.choice(((*VALUES, *MARKS, *NAMES), VALUES, (b'"%s"' % chance.choice(NAMES),)))
                data = data[: one.start()] + chance.choice(new) + data[one.end() :]
        return data
    blocks = BLOCK.findall(data) or [data]
    for _ in range(chance.choice((1, 2, 4))):
        at, other = chance.randrange(len(blocks)), chance.choice(blocks)
        match chance.randrange(4):
            case 0:
                blocks.insert(at, other)
            case 1:
                blocks[at] = other.replace(b"layer ", b"layers ", 1)
            case 2:
                blocks[at] = damaged(blocks[at], chance, tokens=VALUES)
            case 3:
                blocks[at:at] = [other] * chance.choice((2, 30))
    return b"".join(blocks)


@pytest.mark.parametrize("what", ["net", "solver"])
def test_a_damaged_prototxt_is_read_or_refused(what: str, feed: Feed, tmp_path: Path) -> None:
    texts = sources()
    fields = "".join(f"{name}: 1\n" for name in FORK_FIELDS if name != "device_id").encode()
    net, solver = tmp_path / "net.prototxt", tmp_path / "solver.prototxt"
    net.write_bytes(EVERY_KIND)
    solver.write_bytes(SOLVER)
    target = net if what == "net" else solver

    def make(chance: Random) -> bytes:
        if what == "net":
            return mutated(chance.choice(texts), chance)
        parts = chance.sample(fields.splitlines(True), chance.choice((0, 1, 4)))
        return mutated(SOLVER.replace(b" ", b"\n") + b"".join(parts), chance)

    def read(data: bytes) -> None:
        target.write_bytes(data)
        recipe = read_recipe(net, solver)
        for style in ("text", "json", "md"):
            assert render_recipe(recipe, style)

    feed(make, read)
