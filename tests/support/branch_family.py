"""Nets whose branches meet in concatenations and sums, and ports that join them in another order.

Nothing here uses ``caffe2torch.binding``: which branch could be which is read off what each branch is made of.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from nets import conv, layer
from torch import Tensor, nn

CHANNELS = 4  # of every convolution but the last
PAIRS = ((1, 1), (2, 0))
ACTIVATIONS = {"": nn.Identity, "ReLU": nn.ReLU, "Sigmoid": nn.Sigmoid, "TanH": nn.Tanh}
EDITS = ("none", "norms", "classes", "norms and classes")


@dataclass(frozen=True)
class Link:
    """A convolution of a branch, with the pooling before it and the activation after it."""

    kernel: int
    dilation: int
    pooled: str
    activation: str


@dataclass(frozen=True)
class Branch:
    """A chain of links that reads an input, from one of its channels on."""

    reads: tuple[int, int]
    links: tuple[Link, ...]


@dataclass(frozen=True)
class Stage:
    """Branches that are joined by ``cat`` or ``sum``; ``order`` is the port's."""

    join: str
    branches: tuple[Branch, ...]
    order: tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """A net of stages in a row, and a port of it."""

    seed: int
    inputs: int
    named: bool  # whether the port's inputs have the net's names
    sliced: bool  # whether the first branches read slices of the one input
    stages: tuple[Stage, ...]
    edit: str
    names_kept: bool
    multipliers: dict[str, tuple[int, int]]


def make_case(seed: int) -> Case:
    """The case of a seed."""
    rng = random.Random(seed)
    inputs, sliced = rng.choice(((1, False), (1, False), (1, True), (2, False), (3, False)))
    count = rng.choice((1, 1, 2))
    stages = tuple(_stage(rng, inputs, sliced if number == 0 else False, number) for number in range(count))
    layers = [name for number, stage in enumerate(stages) for name, *_ in convolutions(number, stage)]
    return Case(
        seed, inputs, rng.random() < 0.6, sliced, stages, rng.choice(EDITS), rng.random() < 0.3,
        {name: rng.choice(PAIRS) for name in (*layers, *(f"m{n}" for n in range(count)))},
    )  # fmt: skip


def _stage(rng: random.Random, inputs: int, sliced: bool, number: int) -> Stage:
    def link() -> Link:
        pooled, activation = rng.choice(("", "", "MAX", "AVE")), rng.choice(list(ACTIVATIONS))
        return Link(rng.choice((1, 3, 3)), rng.choice((1, 1, 2)), pooled, activation)

    lengths = [rng.choice((1, 1, 2)) for _ in range(rng.choice((1, 2, 3)))]
    kinds = [tuple(link() for _ in range(length)) for length in lengths]  # few, so that some branches are alike
    width = rng.choice((2, 3, 4))
    branches = []
    for place in range(width):
        reads = (place % inputs if number == 0 else 0, 3 * (place % 2) if sliced else 0)
        branches.append(Branch(reads, rng.choice(kinds)))
    order = list(range(width))
    if rng.random() < 0.5:
        rng.shuffle(order)
    return Stage(rng.choice(("cat", "cat", "sum")), tuple(branches), tuple(order))


def convolutions(number: int, stage: Stage) -> Iterator[tuple[str, int, int, Link]]:
    """Name, branch, place in it, and settings of every convolution of a stage."""
    for which, branch in enumerate(stage.branches):
        for place, link in enumerate(branch.links):
            yield f"s{number}b{which}c{place}", which, place, link


def input_names(case: Case) -> list[str]:
    """The names of the net's inputs."""
    return ["rgb", "flow", "depth"][: case.inputs]


def prototxt(case: Case) -> str:
    """The net as Caffe reads it."""
    channels = 6 if case.sliced else 3
    text = [f'input: "{name}" input_shape {{ dim: 2 dim: {channels} dim: 12 dim: 12 }}\n' for name in input_names(case)]
    tops = {(which, 0): name for which, name in enumerate(input_names(case))}
    if case.sliced:
        text.append(
            'layer { name: "sl" type: "Slice" bottom: "rgb" top: "r0" top: "r3" slice_param { slice_point: 3 } }\n'
        )
        tops |= {(0, 0): "r0", (0, 3): "r3"}
    for number, stage in enumerate(case.stages):
        ends = []
        for which, branch in enumerate(stage.branches):
            value = tops[branch.reads]
            for place, link in enumerate(branch.links):
                name = f"s{number}b{which}c{place}"
                if link.pooled:
                    settings = f"pooling_param {{ pool: {link.pooled} kernel_size: 3 stride: 1 pad: 1 }}"
                    text.append(layer("Pooling", f"{name}p", value, f"{name}p", settings))
                    value = f"{name}p"
                text.append(_convolution(name, value, link, case.multipliers[name]))
                value = name
                if link.activation:
                    text.append(layer(link.activation, f"{name}a", value, f"{name}a"))
                    value = f"{name}a"
            ends.append(value)
        text.append(layer({"cat": "Concat", "sum": "Eltwise"}[stage.join], f"j{number}", " ".join(ends), f"j{number}"))
        text.append(conv(f"m{number}", f"j{number}", CHANNELS, 1, params=_params(case.multipliers[f"m{number}"])))
        tops = {(0, 0): f"m{number}"}
    return "".join(text)


def _convolution(name: str, bottom: str, link: Link, multipliers: tuple[int, int]) -> str:
    pad = link.dilation * (link.kernel // 2)
    settings = f"num_output: {CHANNELS} kernel_size: {link.kernel} pad: {pad} dilation: {link.dilation}"
    return layer("Convolution", name, bottom, name, f"convolution_param {{ {settings} }}", _params(multipliers))


def _params(multipliers: tuple[int, int]) -> str:
    return " ".join(["param {{ lr_mult: {} decay_mult: {} }}".format(*multipliers)] * 2)


class Port(nn.Module):
    """The port of a case; its modules are registered in random order."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        rng = random.Random(case.seed)
        self.case = case
        self.module_of: dict[str, str] = {}
        made: dict[str, nn.Module] = {}
        channels = 3
        for number, stage in enumerate(case.stages):
            for name, _, place, link in convolutions(number, stage):
                pad = link.dilation * (link.kernel // 2)
                made[name] = nn.Conv2d(
                    channels if place == 0 else CHANNELS, CHANNELS, link.kernel, padding=pad, dilation=link.dilation
                )
            width = CHANNELS * (len(stage.branches) if stage.join == "cat" else 1)
            last = number == len(case.stages) - 1
            made[f"m{number}"] = nn.Conv2d(width, 7 if last and "classes" in case.edit else CHANNELS, 1)
            channels = CHANNELS
        for name in rng.sample(list(made), len(made)):
            self.module_of[name] = name if case.names_kept else f"{rng.choice('xyz')}{rng.randrange(10**6)}m"
            self.add_module(self.module_of[name], made[name])
            if "norms" in case.edit and not name.startswith("m"):
                self.add_module(f"{self.module_of[name]}_norm", nn.BatchNorm2d(CHANNELS))

    def run(self, *inputs: Tensor) -> Tensor:
        """The forward pass of all inputs in the net's order."""
        values = {(which, 0): one for which, one in enumerate(inputs)}
        if self.case.sliced:
            values = {(0, 0): inputs[0][:, :3], (0, 3): inputs[0][:, 3:]}
        result = inputs[0]
        for number, stage in enumerate(self.case.stages):
            ends = []
            for which in stage.order:
                value = values[stage.branches[which].reads]
                for place, link in enumerate(stage.branches[which].links):
                    value = self.link(f"s{number}b{which}c{place}", link, value)
                ends.append(value)
            joined = torch.cat(ends, 1) if stage.join == "cat" else sum(ends[1:], start=ends[0])
            result = self.get_submodule(self.module_of[f"m{number}"])(joined)
            values = {(0, 0): result}
        return result

    def link(self, name: str, link: Link, value: Tensor) -> Tensor:
        """One convolution with what stands around it."""
        if link.pooled == "MAX":
            value = nn.functional.max_pool2d(value, 3, 1, 1)
        elif link.pooled:
            value = nn.functional.avg_pool2d(value, 3, 1, 1)
        value = self.get_submodule(self.module_of[name])(value)
        if "norms" in self.case.edit:
            value = self.get_submodule(f"{self.module_of[name]}_norm")(value)
        result: Tensor = ACTIVATIONS[link.activation]()(value)
        return result


class OneInput(Port):
    """A port of one input."""

    def forward(self, image: Tensor) -> Tensor:
        return self.run(image)


class TwoInputs(Port):
    """A port whose inputs have the net's names, in another order."""

    def forward(self, flow: Tensor, rgb: Tensor) -> Tensor:
        return self.run(rgb, flow)


class TwoUnnamed(Port):
    """A port whose inputs have other names."""

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        return self.run(x1, x2)


class ThreeInputs(Port):
    """As ``TwoInputs``."""

    def forward(self, flow: Tensor, depth: Tensor, rgb: Tensor) -> Tensor:
        return self.run(rgb, flow, depth)


class ThreeUnnamed(Port):
    """As ``TwoUnnamed``."""

    def forward(self, x1: Tensor, x2: Tensor, x3: Tensor) -> Tensor:
        return self.run(x1, x2, x3)


def port_of(case: Case) -> Port:
    """The port of a case."""
    classes = {1: OneInput, 2: TwoInputs if case.named else TwoUnnamed, 3: ThreeInputs if case.named else ThreeUnnamed}
    return classes[case.inputs](case)


# Which branch of the port each branch of the net could be.

Way = tuple[tuple[int, ...], ...]
"""For each stage, for each branch of the net the branch of the port."""


def ways(case: Case) -> list[Way]:
    """All ways to lay branches onto equal branches; what is seen of an input depends on whether its name is."""
    by_stage = []
    for number, stage in enumerate(case.stages):
        looks = [_look(case, number, branch) for branch in stage.branches]
        every = itertools.permutations(range(len(looks)))
        by_stage.append([way for way in every if [looks[other] for other in way] == looks])
    return list(itertools.product(*by_stage))


def _look(case: Case, number: int, branch: Branch) -> object:
    sees_input = number == 0 and (case.inputs == 1 or case.named)
    return branch.links, branch.reads if sees_input else None


def in_order(case: Case, way: Way) -> bool:
    """Whether a way keeps the place of every branch in its concatenation."""
    return all(
        stage.join == "sum" or all(stage.order[one] == other for one, other in enumerate(laid))
        for stage, laid in zip(case.stages, way, strict=True)
    )


def certain(case: Case) -> tuple[dict[str, str], dict[str, str]]:
    """Layers to modules: what is certain, and what may be said though it need not be.

    Of the ways those count that keep the order, if there are such. Where inputs have other names and are read in
    another order, or modules have the layers' names and stand in another order, nothing need be certain.
    """
    every = ways(case)
    kept = [way for way in every if in_order(case, way)] or every
    own = tuple(tuple(range(len(stage.branches))) for stage in case.stages)
    port = port_of(case)

    def agreed(among: list[Way]) -> dict[str, str]:
        found = {f"m{number}": port.module_of[f"m{number}"] for number in range(len(case.stages))}
        for number, stage in enumerate(case.stages):
            for name, which, place, _ in convolutions(number, stage):
                modules = {port.module_of[f"s{number}b{way[number][which]}c{place}"] for way in among}
                if len(modules) == 1:
                    found[name] = modules.pop()
        return found

    if case.names_kept:
        return (agreed([own]) if own in kept else agreed(every)), agreed([own])
    unnamed = case.inputs > 1 and not case.named
    return agreed(every if unnamed else kept), agreed(kept)
