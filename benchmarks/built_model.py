"""What the built net costs beside torchvision's: forward plus backward, and building it.

    python benchmarks/built_model.py [--nets VGG-16 ResNet-50] [--batch 2] [--rounds 21] [--threads 1]

Both models of a net have the same layers and weights of the same sizes; their prototxts are written here. They take
turns, one pass each a round, so that a slow moment of the machine hits both alike; the ratio is the median over the
rounds of the ratio within a round.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision import models

from caffe2torch import build_model, read_recipe
from caffe2torch.models.build_net import CaffeNet

INPUT = 'input: "data" input_shape { dim: 2 dim: 3 dim: 224 dim: 224 }'
FILLER = 'weight_filler { type: "msra" }'


def layer(kind: str, name: str, bottoms: str, settings: str = "", top: str = "") -> str:
    """A layer of the prototxt; ``top`` where it is not the layer's name."""
    wired = "".join(f' bottom: "{bottom}"' for bottom in bottoms.split())
    return f'layer {{ name: "{name}" type: "{kind}"{wired} top: "{top or name}" {settings} }}'


def in_place(kind: str, name: str, blob: str, settings: str = "") -> str:
    return layer(kind, name, blob, settings, blob)


def pooling(name: str, bottom: str, settings: str) -> str:
    return layer("Pooling", name, bottom, f"pooling_param {{ {settings} }}")


def inner_product(name: str, bottom: str, outputs: int) -> str:
    return layer("InnerProduct", name, bottom, f"inner_product_param {{ num_output: {outputs} {FILLER} }}")


def vgg16() -> Iterator[str]:
    blob = "data"
    for stage, (width, count) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)), 1):
        for number in range(1, count + 1):
            name = f"conv{stage}_{number}"
            settings = f"convolution_param {{ num_output: {width} kernel_size: 3 pad: 1 {FILLER} }}"
            yield layer("Convolution", name, blob, settings)
            yield in_place("ReLU", f"relu{stage}_{number}", name)
            blob = name
        yield pooling(f"pool{stage}", blob, "pool: MAX kernel_size: 2 stride: 2")
        blob = f"pool{stage}"
    for name in ("fc6", "fc7"):
        yield inner_product(name, blob, 4096)
        yield in_place("ReLU", f"relu_{name}", name)
        yield in_place("Dropout", f"drop_{name}", name)
        blob = name
    yield inner_product("fc8", blob, 1000)


def convolution(name: str, bottom: str, outputs: int, kernel: int, stride: int = 1) -> Iterator[str]:
    """A convolution with its BatchNorm and Scale, as one blob of its name."""
    settings = f"num_output: {outputs} kernel_size: {kernel} stride: {stride} pad: {kernel // 2} bias_term: false"
    yield layer("Convolution", name, bottom, f"convolution_param {{ {settings} {FILLER} }}")
    yield in_place("BatchNorm", f"bn_{name}", name)
    yield in_place("Scale", f"scale_{name}", name, "scale_param { bias_term: true }")


def resnet(counts: tuple[int, ...]) -> Iterator[str]:
    yield from convolution("conv1", "data", 64, 7, 2)
    yield in_place("ReLU", "relu1", "conv1")
    yield pooling("pool1", "conv1", "pool: MAX kernel_size: 3 stride: 2")
    blob = "pool1"
    for stage, count in enumerate(counts):
        width = 64 * 2**stage
        for number in range(count):
            name, stride = f"res{stage + 2}_{number}", 2 if stage and not number else 1
            yield from convolution(f"{name}_a", blob, width, 1)
            yield in_place("ReLU", f"{name}_relu_a", f"{name}_a")
            yield from convolution(f"{name}_b", f"{name}_a", width, 3, stride)
            yield in_place("ReLU", f"{name}_relu_b", f"{name}_b")
            yield from convolution(f"{name}_c", f"{name}_b", 4 * width, 1)
            if not number:
                yield from convolution(f"{name}_side", blob, 4 * width, 1, stride)
                blob = f"{name}_side"
            yield layer("Eltwise", name, f"{blob} {name}_c")
            yield in_place("ReLU", f"{name}_relu", name)
            blob = name
    yield pooling("pool5", blob, "pool: AVE global_pooling: true")
    yield inner_product("fc", "pool5", 1000)


NETS = {
    "VGG-16": (vgg16, models.vgg16),
    "ResNet-50": (lambda: resnet((3, 4, 6, 3)), models.resnet50),
    "ResNet-152": (lambda: resnet((3, 8, 36, 3)), models.resnet152),
}


def built(name: str) -> tuple[CaffeNet, float]:
    """The built net, and the seconds that building it took."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.prototxt"
        path.write_text("\n".join([INPUT, *NETS[name][0]()]))
        recipe = read_recipe(path)
    begun = time.perf_counter()
    with torch.device("meta"):
        model = build_model(recipe)
    without_numbers = time.perf_counter() - begun
    print(f"{name}: built on the meta device in {without_numbers:.2f} s", end="", flush=True)
    begun = time.perf_counter()
    model = build_model(recipe)
    return model, time.perf_counter() - begun


def seconds(model: nn.Module, images: Tensor) -> float:
    """Of one forward and backward pass."""
    model.zero_grad()
    begun = time.perf_counter()
    model(images).sum().backward()
    return time.perf_counter() - begun


def compare(name: str, batch: int, rounds: int) -> None:
    model, took = built(name)
    print(f", filled on the CPU in {took:.2f} s")
    other = NETS[name][1](weights=None)
    count = [sum(p.numel() for p in one.parameters()) for one in (model, other)]
    assert count[0] == count[1], count
    images = torch.rand(batch, 3, 224, 224)
    pairs = []
    for number in range(rounds + 1):
        order = (model, other) if number % 2 else (other, model)
        times = {id(one): seconds(one, images) for one in order}
        pairs.append((times[id(model)], times[id(other)]))
    ours, theirs = zip(*pairs[1:], strict=True)
    ratio = statistics.median(a / b for a, b in pairs[1:])
    print(
        f"{name}: forward and backward {1e3 * statistics.median(ours):.0f} ms, "
        f"torchvision's {1e3 * statistics.median(theirs):.0f} ms, ratio {ratio:.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=["VGG-16", "ResNet-50"])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    for name in chosen.nets:
        compare(name, chosen.batch, chosen.rounds)


if __name__ == "__main__":
    main()
