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
    "unknown values": repeated("include{{phase:A{}}}", before='layer{name:"a" type:"ReLU" ', after="}"),
}
"""Kind of text to one. Not among them: nothing but layers of fewer than 30 characters, which may take more. protobuf's
own message takes 540 bytes for each layer, 79 times the size of ``layer{}``.
"""

SEED = int(os.environ.get("MEMORY_SEED", "15"))
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


@pytest.mark.parametrize("kind", sorted(KINDS) if os.environ.get("MEMORY_KINDS") == "all" else FEW)
def test_a_text_of_a_megabyte_is_read_in_sixty_times_its_size(kind: str, tmp_path: Path) -> None:
    small, large = tmp_path / "small.prototxt", tmp_path / "large.prototxt"
    small.write_text('input: "b0"\n' + CONVOLUTION.format(0, 1) + 'fork: 1 layer { type: "A" x { } }')
    large.write_text(KINDS[kind]())
    run = [sys.executable, "-c", CODE, str(small), str(large)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")])}
    result = subprocess.run(run, capture_output=True, text=True, check=True, timeout=120, env=environment)
    times = int(result.stdout) / large.stat().st_size
    print(f"{kind}: {times:.1f} times its size (kinds chosen by seed {SEED})")
    assert large.stat().st_size >= MEGABYTE
    assert times <= MOST, f"{kind}: {times:.1f} times its size"
