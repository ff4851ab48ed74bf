"""Small nets as prototxt text, and programs that are both a Caffe net and a PyTorch model."""

from __future__ import annotations

import random
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from caffe2torch.binding.graph import INPUT, Wiring
from caffe2torch.binding.plan import Binding
from caffe2torch.net.build import read_layers
from caffe2torch.prototxt.schema import parse_net
from caffe2torch.recipe import NetRecipe, Note, Source

IMAGE = 'input: "data" input_shape { dim: 2 dim: 3 dim: 8 dim: 8 }\n'


def recipe_of(*parts: str) -> NetRecipe:
    """The recipe of a net given as text."""
    name, layers, blobs, notes = read_layers(parse_net(Source("net.prototxt", "".join(parts))))
    return NetRecipe(name, blobs, notes, layers)


def layer(kind: str, name: str, bottoms: str, tops: str = "", settings: str = "", params: str = "") -> str:
    """One layer; ``bottoms`` and ``tops`` are words, the top is the layer's name if none is given."""
    ends = "".join(f' bottom: "{bottom}"' for bottom in bottoms.split())
    ends += "".join(f' top: "{top}"' for top in (tops or name).split())
    return f'layer {{ name: "{name}" type: "{kind}"{ends} {params} {settings} }}\n'


def conv(
    name: str, bottom: str, outputs: int = 4, kernel: int = 3, more: str = "", params: str = "", top: str = ""
) -> str:
    """A convolution that keeps the size of its image."""
    settings = f"convolution_param {{ num_output: {outputs} kernel_size: {kernel} pad: {kernel // 2} {more} }}"
    return layer("Convolution", name, bottom, top, settings, params)


def linear(name: str, bottom: str, outputs: int = 5, more: str = "") -> str:
    """A fully connected layer."""
    return layer("InnerProduct", name, bottom, "", f"inner_product_param {{ num_output: {outputs} {more} }}")


def norm(name: str, bottom: str) -> str:
    """BatchNorm and Scale in place, as most nets write them."""
    return layer("BatchNorm", name, bottom, bottom) + layer(
        "Scale", f"{name}/scale", bottom, bottom, "scale_param { bias_term: true }"
    )


def names(binding: Binding) -> dict[str, str | None]:
    """Blob to tensor."""
    return {bound.blob.name: bound.name for bound in binding.blobs}


def messages(notes: Iterable[Note]) -> str:
    """What the notes say, a line each."""
    return "\n".join(note.message for note in notes)


def spelled(wiring: Wiring) -> list[str]:
    """The wiring as text: what each unit is fed with."""

    def name(node: int) -> str:
        one = wiring.nodes[node]
        if node == INPUT:
            return "in"
        if one.unit is not None:
            return wiring.units[one.unit].name
        joined = [name(source) for source in one.inputs]
        return f"{one.op.name.lower()}({', '.join(joined if one.op.ordered else sorted(joined))})"

    return [
        f"{name(n)} <- {', '.join(map(name, node.inputs))}"
        for n, node in enumerate(wiring.nodes)
        if node.unit is not None
    ]


@dataclass(frozen=True)
class Step:
    """One operation of a program: ``conv3``, ``conv1``, ``norm``, ``relu``, ``sum``, ``cat`` on earlier values."""

    op: str
    sources: tuple[int, ...]
    channels: int = 0

    @property
    def learns(self) -> bool:
        return self.op in ("conv3", "conv1", "norm")


def channels_of(program: Sequence[Step]) -> list[int]:
    """The number of channels of each value; value 0 is the image."""
    channels = [3]
    for step in program:
        own = [channels[source] for source in step.sources]
        channels.append({"cat": sum(own)}.get(step.op, step.channels or own[0]))
    return channels


def caffe_net(program: Sequence[Step]) -> str:
    """The program as a prototxt; step ``n`` is layer ``sN`` and makes blob ``vN``."""
    text = [IMAGE]
    for number, step in enumerate(program, start=1):
        name, top = f"s{number}", f"v{number}"
        bottoms = " ".join("data" if source == 0 else f"v{source}" for source in step.sources)
        match step.op:
            case "conv3" | "conv1":
                text.append(conv(name, bottoms, step.channels, int(step.op[-1]), top=top))
            case "norm":
                text.append(layer("BatchNorm", name, bottoms, top))
                text.append(layer("Scale", f"{name}s", top, top, "scale_param { bias_term: true }"))
            case "relu":
                text.append(layer("ReLU", name, bottoms, top))
            case "sum":
                text.append(layer("Eltwise", name, bottoms, top))
            case "cat":
                text.append(layer("Concat", name, bottoms, top))
    return "".join(text)


class Port(nn.Module):
    """The program as a model whose modules have random names and were registered in random order."""

    def __init__(self, program: Sequence[Step], seed: int, called: Iterable[str] | None = None) -> None:
        super().__init__()
        rng = random.Random(seed)
        channels = channels_of(program)
        self.program = tuple(program)
        learning = [number for number, step in enumerate(program, start=1) if step.learns]
        given = list(called) if called is not None else [_word(rng) + str(number) for number in learning]
        self.module_of = dict(zip(learning, given, strict=True))
        for number in rng.sample(learning, len(learning)):
            step = program[number - 1]
            inputs = channels[step.sources[0]]
            kernel = int(step.op[-1]) if step.op.startswith("conv") else 0
            module = nn.Conv2d(inputs, step.channels, kernel, padding=kernel // 2) if kernel else nn.BatchNorm2d(inputs)
            self.add_module(self.module_of[number], module)

    def forward(self, image: Tensor) -> Tensor:
        values = [image]
        for number, step in enumerate(self.program, start=1):
            sources = [values[source] for source in step.sources]
            match step.op:
                case "relu":
                    values.append(torch.relu(sources[0]))
                case "sum":
                    values.append(sources[1] + sources[0])
                case "cat":
                    values.append(torch.cat(sources, 1))
                case _:
                    values.append(self.get_submodule(self.module_of[number])(sources[0]))
        return values[-1]


def _word(rng: random.Random) -> str:
    return "".join(rng.choice(string.ascii_lowercase) for _ in range(6))


def inserted(program: Sequence[Step], at: int, op: str) -> list[Step]:
    """The program with one more step, of the same channels, between value ``at`` and all that look at it."""
    channels = channels_of(program)[at]
    later = [
        Step(step.op, tuple(source + (source >= at) for source in step.sources), step.channels) for step in program[at:]
    ]
    return [*program[:at], Step(op, (at,), 0 if op == "norm" else channels), *later]


@st.composite
def programs(draw: st.DrawFn) -> list[Step]:
    """Nets of up to a dozen operations, whose branches meet in sums and concatenations."""
    program: list[Step] = []
    for _ in range(draw(st.integers(1, 12))):
        channels = channels_of(program)
        op = draw(st.sampled_from(["conv3", "conv1", "norm", "relu", "sum", "cat"]))
        first = draw(st.integers(max(0, len(channels) - 3), len(channels) - 1))
        if op in ("sum", "cat"):
            fits = [n for n, c in enumerate(channels) if (c == channels[first] or op == "cat") and n != first]
            if not fits or channels[first] > 20:
                continue
            program.append(Step(op, (first, draw(st.sampled_from(fits)))))
        else:
            program.append(Step(op, (first,), draw(st.sampled_from([2, 3])) if op.startswith("conv") else 0))
    return program if any(step.learns for step in program) else [Step("conv3", (0,), 2)]
