"""What an audit of VGG-16 costs: time and memory beside the model's own, for a stock optimizer and a translated one.

    python benchmarks/audit_vgg16.py

A net of VGG-16's sizes (138.4 million parameters) is made without torchvision, audited with a scheduler over the
iterations where the rate changes, and again in the middle of a run, when the optimizer has a history as large as the
model. Memory is the peak of the process, taken before and after.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

import caffe2torch
from caffe2torch.auditing import audit

WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
TWICE = "param { lr_mult: 1 decay_mult: 1 } param { lr_mult: 2 decay_mult: 0 }"
SOLVER = """base_lr: 0.01 lr_policy: "step" gamma: 0.1 stepsize: 100000 max_iter: 370000
momentum: 0.9 weight_decay: 0.0005"""


def net() -> str:
    """A chain of VGG-16's layers; pooling is left out, since it has no blobs and its place does not matter."""
    text, bottom, channels = 'name: "vgg16" input: "data" input_shape { dim: 1 dim: 3 dim: 7 dim: 7 }\n', "data", 3
    for number, width in enumerate(WIDTHS):
        text += (
            f'layer {{ name: "conv{number}" type: "Convolution" bottom: "{bottom}" top: "conv{number}" {TWICE}\n'
            f"  convolution_param {{ num_output: {width} kernel_size: 3 pad: 1 }} }}\n"
        )
        bottom, channels = f"conv{number}", width
    del channels
    for number, width in enumerate((4096, 4096, 1000)):
        text += (
            f'layer {{ name: "fc{number}" type: "InnerProduct" bottom: "{bottom}" top: "fc{number}" {TWICE}\n'
            f"  inner_product_param {{ num_output: {width} }} }}\n"
        )
        bottom = f"fc{number}"
    return text


class Vgg16(nn.Sequential):
    """The same in torch, under Caffe's names."""

    def __init__(self) -> None:
        super().__init__()
        channels = 3
        for number, width in enumerate(WIDTHS):
            self.add_module(f"conv{number}", nn.Conv2d(channels, width, 3, padding=1))
            channels = width
        self.add_module("flatten", nn.Flatten())
        features = channels * 7 * 7
        for number, width in enumerate((4096, 4096, 1000)):
            self.add_module(f"fc{number}", nn.Linear(features, width))
            features = width


def peak() -> float:
    """The largest memory that this process ever had, in MB; `ru_maxrss` starts at that of the parent process."""
    status = Path("/proc/self/status")
    if not status.exists():  # macOS counts bytes and inherits nothing
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024


def measure() -> dict[str, float]:
    """Seconds and megabytes."""
    folder = Path(tempfile.mkdtemp())
    (folder / "net.prototxt").write_text(net())
    (folder / "solver.prototxt").write_text(SOLVER)
    recipe = caffe2torch.read_recipe(folder / "net.prototxt", folder / "solver.prototxt")
    model = Vgg16()
    count = sum(parameter.numel() for parameter in model.parameters())
    weights = [p for name, p in model.named_parameters() if not name.endswith("bias")]
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    groups = [{"params": weights, "weight_decay": 0.0005}, {"params": biases, "lr": 0.02}]
    optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 100_000, 0.1)
    figures = {"million parameters": count / 1e6, "model's MB": count * 4 / 2**20, "peak MB before": peak()}
    start = time.perf_counter()
    report = audit(recipe, model, optimizer, scheduler)
    figures |= {"seconds": time.perf_counter() - start, "peak MB after": peak()}
    assert [check.name for check in report.differing] == ["momentum at rate changes"]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    figures["peak MB after a step"] = peak()
    start = time.perf_counter()
    audit(recipe, model, optimizer, scheduler)
    figures |= {"seconds in the middle of a run": time.perf_counter() - start, "peak MB at the end": peak()}
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    measured = measure()
    if parser.parse_args().json:
        print(json.dumps(measured))
    else:
        for name, figure in measured.items():
            print(f"{name:32}{figure:10.2f}")
