"""How much of a large gradient's norm is lost, and what it takes: torch's own norm, and the one that we clip by.

    python benchmarks/gradient_norm.py [--threads 2] [--rounds 5]

Gradients of normally distributed numbers, as large as some well-known layers'. Beside float64.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from rich.console import Console
from rich.table import Table

from caffe2torch.optim.solvers import gradient_norm

LAYERS = {
    "ResNet-50, res5c_branch2b": (512, 512, 3, 3),
    "CaffeNet, fc7": (4096, 4096),
    "CaffeNet, fc6": (4096, 9216),
    "VGG-16, fc6": (4096, 25088),
}


def torch_norm(gradients: Sequence[torch.Tensor]) -> float:
    return float(torch.nn.utils.get_total_norm(gradients))


def exact(gradient: torch.Tensor) -> float:
    return sum(float(row.double().square().sum()) for row in gradient) ** 0.5


def milliseconds(norm: Callable[[Sequence[torch.Tensor]], float], gradient: torch.Tensor, rounds: int) -> float:
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        norm([gradient])
        times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    table = Table(title=f"norm of one gradient on the CPU, torch {torch.__version__}, {arguments.threads} threads")
    table.add_column("layer")
    for heading in ("M numbers", "torch is off by", "ms", "we are off by", "ms"):
        table.add_column(heading, justify="right")
    for name, shape in LAYERS.items():
        gradient = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-3
        right = exact(gradient)
        cells = [
            cell
            for norm in (torch_norm, gradient_norm)
            for cell in (
                f"{norm([gradient]) / right - 1:.0e}",
                f"{milliseconds(norm, gradient, arguments.rounds):.1f}",
            )
        ]
        table.add_row(name, f"{gradient.numel() / 1e6:.1f}", *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
