"""How long a big .caffemodel takes to load, and how much memory, against reading the file and copying it once.

    python benchmarks/load_caffemodel.py [--megabytes 500] [--rounds 5] [--folder DIR]

The net is a few fully connected layers of VGG-16's proportions: most of the file is one blob. Each measurement is a
process of its own, so that peaks are its own; the file is in the system's cache for all of them. *Peak* is what the
process came to hold beyond what it held before there was a model, over the size of the file: the tensors themselves
are 1, mapped pages of the file, which the system can drop at any time, up to another 1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

SHARES = {"fc6": 0.74, "fc7": 0.13, "fc8": 0.03, "conv5": 0.1}  # of the numbers, roughly as in VGG-16
WIDTH = 4096
WAYS = {"once": "read the file, copy once", "binary": "load .caffemodel", "hdf5": "load .caffemodel.h5"}


def shapes(megabytes: float) -> dict[str, tuple[tuple[int, ...], ...]]:
    count = megabytes * 2**20 / 4
    return {
        name: ((max(1, int(count * share / WIDTH)), WIDTH), (max(1, int(count * share / WIDTH)),))
        for name, share in SHARES.items()
    }


def prototxt(megabytes: float) -> str:
    layers = [f'layer {{ name: "d" type: "Input" top: "d" input_param {{ shape {{ dim: 1 dim: {WIDTH} }} }} }}']
    layers += [
        f'layer {{ name: "{name}" type: "InnerProduct" bottom: "d" top: "{name}" '
        f"inner_product_param {{ num_output: {rows} }} }}"
        for name, ((rows, _), _) in shapes(megabytes).items()
    ]
    return "\n".join(layers)


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def write(path: Path, megabytes: float) -> None:
    """A .caffemodel of random numbers, written layer by layer."""
    chance = np.random.default_rng(0)
    with path.open("wb") as file:
        for name, blobs in shapes(megabytes).items():
            parts = [b"\x0a" + varint(len(name)) + name.encode()]
            for shape in blobs:
                dims = b"".join(map(varint, shape))
                numbers = chance.standard_normal(shape, dtype="f4").tobytes()
                head = (
                    b"\x3a"
                    + varint(len(dims) + 2)
                    + b"\x0a"
                    + varint(len(dims))
                    + dims
                    + b"\x2a"
                    + varint(len(numbers))
                )
                parts += [b"\x3a" + varint(len(head) + len(numbers)) + head, numbers]
            file.write(b"\xa2\x06" + varint(sum(map(len, parts))))
            file.writelines(parts)


def write_hdf5(source: Path, path: Path) -> None:
    import h5py

    from caffe2torch.snapshot.files import read_caffemodel

    with h5py.File(path, "w") as file:
        for layer in read_caffemodel(source).layers:
            for index, blob in enumerate(layer.blobs):
                file[f"data/{layer.name}/{index}"] = blob


def measure(way: str, path: Path, net: Path) -> dict[str, float]:
    """One load, in this process."""
    import torch

    from caffe2torch.binding.bind import bind
    from caffe2torch.binding.skeleton import skeleton
    from caffe2torch.reading import read_recipe
    from caffe2torch.snapshot.files import read_caffemodel
    from caffe2torch.snapshot.weights import load_weights

    torch.set_num_threads(1)
    recipe = read_recipe(net)
    if way == "hdf5":
        import h5py  # noqa: F401  # so that its own size does not count
    before = resident("VmRSS")
    model = skeleton(recipe)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1)
    binding = bind(recipe, model)
    start = time.perf_counter()
    if way == "once":
        data, offset = path.read_bytes(), 0
        for parameter in model.parameters():
            size = parameter.numel()
            np.copyto(parameter.detach().numpy(), np.frombuffer(data, "<f4", size, offset).reshape(parameter.shape))
            offset += 4 * size
    else:
        load_weights(model, recipe, binding, read_caffemodel(path))
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak": (resident("VmHWM") - before) / path.stat().st_size}


def resident(field: str) -> int:
    """Bytes of memory, now (VmRSS) or at most (VmHWM), as Linux counts them."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def compare(megabytes: float, rounds: int, folder: Path, ways: Sequence[str]) -> dict[str, dict[str, float]]:
    """Medians over rounds, of processes that take turns."""
    model, twin, net = folder / "big.caffemodel", folder / "big.caffemodel.h5", folder / "net.prototxt"
    net.write_text(prototxt(megabytes))
    write(model, megabytes)
    if "hdf5" in ways:
        write_hdf5(model, twin)
    results: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, found in results.items():
            command = [sys.executable, __file__, "--measure", way, str(twin if way == "hdf5" else model), str(net)]
            found.append(json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout))
    return {
        way: {key: statistics.median(one[key] for one in found) for key in ("seconds", "peak")}
        for way, found in results.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write the files (default: a temporary folder)")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        way, path, net = arguments.measure
        print(json.dumps(measure(way, Path(path), Path(net))))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        results = compare(arguments.megabytes, arguments.rounds, Path(folder), list(WAYS))
    print(f"{arguments.megabytes:g} MB, median of {arguments.rounds}\n")
    print(f"{'':26}{'seconds':>9}{'ratio':>7}{'peak / size':>13}")
    for way, found in results.items():
        ratio = found["seconds"] / results["once"]["seconds"]
        print(f"{WAYS[way]:26}{found['seconds']:9.3f}{ratio:7.2f}{found['peak']:13.2f}")


if __name__ == "__main__":
    main()
