"""Write what the tutorial begins with: a net, a solver and trained weights, as a published Caffe net has them.

    python examples/tutorial_files.py

writes ``net.prototxt``, ``solver.prototxt`` and ``squeezenet.caffemodel`` into the working directory. The net is
SqueezeNet 1.1, which torchvision has, too, for four classes and small images. Its weights are random numbers with a
seed, since no Caffe is at hand to train them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

CLASSES = 4
FIRES = (  # the fire modules 2 to 9: channels in, of the squeeze layer, and of each of the two expand layers
    (64, 16, 64),
    (128, 16, 64),
    (128, 32, 128),
    (256, 32, 128),
    (256, 48, 192),
    (384, 48, 192),
    (384, 64, 256),
    (512, 64, 256),
)
POOLED = (3, 5)  # the fire modules that a pooling layer follows

INPUTS = """name: "SqueezeNet"
layer {
  name: "data"
  type: "Input"
  top: "data"
  top: "label"
  input_param { shape { dim: 8 dim: 3 dim: 32 dim: 32 } shape { dim: 8 } }
  transform_param { scale: 0.0078125 mean_value: 128 mean_value: 128 mean_value: 128 }
}
"""
CONVOLUTION = """layer {{
  name: "{name}"
  type: "Convolution"
  bottom: "{bottom}"
  top: "{name}"
  param {{ lr_mult: 1 decay_mult: 1 }}
  param {{ lr_mult: 2 decay_mult: 0 }}
  convolution_param {{ num_output: {outputs} kernel_size: {kernel}{more} weight_filler {{ type: "msra" }} }}
}}
layer {{ name: "relu_{name}" type: "ReLU" bottom: "{name}" top: "{name}" }}
"""
POOL = """layer {{
  name: "{name}"
  type: "Pooling"
  bottom: "{bottom}"
  top: "{name}"
  pooling_param {{ pool: MAX kernel_size: 3 stride: 2 }}
}}
"""
HEAD = """layer { name: "drop9" type: "Dropout" bottom: "fire9" top: "fire9" dropout_param { dropout_ratio: 0.5 } }
"""
LOSS = """layer {
  name: "pool10"
  type: "Pooling"
  bottom: "conv10"
  top: "pool10"
  pooling_param { pool: AVE global_pooling: true }
}
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "pool10" bottom: "label" top: "loss" include { phase: TRAIN } }
layer { name: "accuracy" type: "Accuracy" bottom: "pool10" bottom: "label" top: "accuracy" include { phase: TEST } }
"""
SOLVER = """net: "net.prototxt"
base_lr: 0.002
lr_policy: "multistep"
gamma: 0.1
stepvalue: 60
stepvalue: 85
max_iter: 100
momentum: 0.9
weight_decay: 0.0002
"""


def convolution(name: str, bottom: str, outputs: int, kernel: int, more: str = "") -> str:
    return CONVOLUTION.format(name=name, bottom=bottom, outputs=outputs, kernel=kernel, more=more)


def net() -> Iterator[str]:
    """The layers of ``net.prototxt``."""
    yield INPUTS
    yield convolution("conv1", "data", 64, 3, " stride: 2")
    yield POOL.format(name="pool1", bottom="conv1")
    below = "pool1"
    for number, (_, squeezed, expanded) in enumerate(FIRES, 2):
        fire = f"fire{number}"
        squeeze, small, large = f"{fire}_squeeze", f"{fire}_expand1x1", f"{fire}_expand3x3"
        yield convolution(squeeze, below, squeezed, 1)
        yield convolution(small, squeeze, expanded, 1)
        yield convolution(large, squeeze, expanded, 3, " pad: 1")
        yield f'layer {{ name: "{fire}" type: "Concat" bottom: "{small}" bottom: "{large}" top: "{fire}" }}\n'
        below = fire
        if number in POOLED:
            below = f"pool{number}"
            yield POOL.format(name=below, bottom=fire)
    yield HEAD
    yield convolution("conv10", "fire9", CLASSES, 1)
    yield LOSS


def weights() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Each layer that learns, and the shape of its weight."""
    yield "conv1", (64, 3, 3, 3)
    for number, (channels, squeezed, expanded) in enumerate(FIRES, 2):
        yield f"fire{number}_squeeze", (squeezed, channels, 1, 1)
        yield f"fire{number}_expand1x1", (expanded, squeezed, 1, 1)
        yield f"fire{number}_expand3x3", (expanded, squeezed, 3, 3)
    yield "conv10", (CLASSES, 512, 1, 1)


def varint(number: int) -> bytes:
    """A number as protobuf writes it."""
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)


def field(number: int, payload: bytes) -> bytes:
    """A field of protobuf that holds bytes."""
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def blob(values: np.ndarray) -> bytes:
    """A BlobProto: field 7 is its shape, field 5 its numbers."""
    shape = b"".join(varint(size) for size in values.shape)
    return field(7, field(1, shape)) + field(5, values.astype("<f4").tobytes())


def layer(name: str, blobs: Sequence[np.ndarray]) -> bytes:
    """A layer of a ``.caffemodel``: name, type, blobs."""
    return field(100, field(1, name.encode()) + field(2, b"Convolution") + b"".join(field(7, blob(b)) for b in blobs))


def caffemodel(seed: int = 0) -> bytes:
    """Weights as Caffe's ``msra`` filler draws them; the last layer's small, with a bias that keeps its ReLU open."""
    random = np.random.default_rng(seed)
    layers = []
    for name, shape in weights():
        last = name == "conv10"
        weight = random.normal(0, 0.01 if last else (2 / np.prod(shape[1:])) ** 0.5, shape)
        layers.append(layer(name, [weight, np.full(shape[0], 1.0 if last else 0.0)]))
    return field(1, b"SqueezeNet") + b"".join(layers)


def main(folder: Path = Path()) -> None:
    (folder / "net.prototxt").write_text("".join(net()), encoding="utf-8")
    (folder / "solver.prototxt").write_text(SOLVER, encoding="utf-8")
    (folder / "squeezenet.caffemodel").write_bytes(caffemodel())


if __name__ == "__main__":
    main()
