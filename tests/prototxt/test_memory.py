"""Memory in proportion to the text: above import at most 60 times its size, for files of a megabyte.

``make test`` reads a few kinds of text, chosen by a seed; ``make memory`` reads all.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from random import Random

import pytest
from places import SUPPORT

MEGABYTE, MOST = 1_000_000, 60
CONVOLUTION = """layer {{
  name: "conv{0}"
  type: "Convolution"
  bottom: "b{0}"
  top: "b{1}"
  param {{ lr_mult: 1 decay_mult: 1 }}
  param {{ lr_mult: 2 decay_mult: 0 }}
  convolution_param {{ num_output: 8 kernel_size: 3 pad: 1 weight_filler {{ type: "xavier" }} }}
}}
"""


def repeated(piece: str, *, before: str = "", after: str = "") -> Callable[[], str]:
    """A text of one megabyte: a piece, numbered from 0, again and again."""

    def text() -> str:
        parts, length = [before], 0
        for number in count():
            if length >= MEGABYTE:
                return "".join([*parts, after])
            parts.append(piece.format(number, number + 1))
            length += len(parts[-1])
        raise AssertionError

    return text


KINDS = {
    "convolutions": repeated(CONVOLUTION, before='input: "b0" input_shape { dim: 1 dim: 8 dim: 8 dim: 8 }\n'),
    "one-line layers": repeated('layer{{name:"r{}" type:"ReLU" bottom:"x" top:"x"}}\n', before='input: "x"'),
    "layers without a type": repeated('layer{{name:"a{}"}}'),
    "param blocks": repeated("param{{}}", before='layer{name:"a" type:"InnerProduct" ', after="}"),
    "include blocks": repeated("include{{}}", before='layer{name:"a" ', after="}"),
    "bottoms": repeated('bottom:"b" ', before='layer{name:"a" type:"Concat" top:"c" ', after="}"),
    "tops": repeated('top:"b{}" ', before='layer{name:"a" type:"Data" ', after="}"),
    "sizes": repeated("dim:1 ", before='input:"x" input_shape{', after="}"),
    "a list of sizes": repeated("1,", before='input:"x" input_shape{dim:[', after="1]}"),
    "comments": repeated("# c\n"),
    "unknown fields": repeated("a{}:1 "),
    "unknown blocks": repeated("x{{}}"),
    "nested unknown blocks": repeated("y{{z:1}}", before="x{" * 60, after="}" * 60),
    "unknown blocks of a layer": repeated("x{{}}", before='layer{name:"a" type:"ReLU" ', after="}"),
    "unknown fields of a layer": repeated("y{{z:1}}", before='layer{name:"a" type:"ReLU" ', after="}"),
    "layers of a type alone": repeated('layer{{type:"ReLU"}}'),
    "layers of an unknown type": repeated('layer{{type:"A"}}'),
    "layers with an unknown block": repeated('layer{{type:"ReLU" x{{}}}}'),
    "layers with blobs": repeated('layer{{type:"InnerProduct"}}'),
    "layers of V1": repeated("layers{{type:RELU}}"),
    "layers of V1 with blobs": repeated("layers{{type:INNER_PRODUCT}}"),
    "layers of V0": repeated('layers{{layer{{type:"relu"}}}}'),
    "data layers of V1": repeated("layers{{type:DATA data_param{{mirror:true}}}}"),
    "data layers": repeated('layer{{type:"Data" transform_param{{}}}}'),
    "required fields": repeated("layer{{clip_param{{}}}}"),
    "odd escapes": repeated('layer{{name:"\\q" type:"ReLU"}}'),
    "unknown fields of a solver": repeated("a{}:1 ", before='base_lr:1 lr_policy:"fixed" net:"none" '),
    "empty layers": repeated("layer{{}}"),
    "empty layers of two lines": repeated("layer{{\r\n}}\r\n"),
    "unknown values": repeated("include{{phase:A{}}}", before='layer{name:"a" type:"ReLU" ', after="}"),
}
"""Kind of text to one."""

SEED = int(os.environ.get("MEMORY_SEED", "15"))
ALL = os.environ.get("MEMORY_KINDS") == "all"
FEW = Random(SEED).sample(sorted(KINDS), 3)

CODE = """
import sys

from memory import peak_bytes

from caffe2torch.errors import Caffe2TorchError
from caffe2torch.reading import read_recipe


def read(path):
    try:
        read_recipe(path)
    except Caffe2TorchError:
        pass


read(sys.argv[1])
before = peak_bytes()
read(sys.argv[2])
print(peak_bytes() - before)
"""


def times_its_size(kind: str, text: str, folder: Path) -> float:
    """The memory that reading a text takes at most, above import and a small text, as a multiple of its size."""
    small, large = folder / "small.prototxt", folder / "large.prototxt"
    small.write_text('input: "b0"\n' + CONVOLUTION.format(0, 1) + 'fork: 1 layer { type: "A" x { } }')
    large.write_text(text, newline="")
    run = [sys.executable, "-c", CODE, str(small), str(large)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")])}
    result = subprocess.run(run, capture_output=True, text=True, check=True, timeout=120, env=environment)
    assert large.stat().st_size >= MEGABYTE
    times = int(result.stdout) / large.stat().st_size
    print(f"{kind}: {times:.1f} times its size (kinds chosen by seed {SEED})")
    return times


@pytest.mark.parametrize("kind", sorted(KINDS) if ALL else FEW)
def test_a_text_of_a_megabyte_is_read_in_sixty_times_its_size(kind: str, tmp_path: Path) -> None:
    assert times_its_size(kind, KINDS[kind](), tmp_path) <= MOST
