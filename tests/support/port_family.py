"""Nets and edited ports of them, and by brute force which layers have one counterpart only.

Nothing here uses ``caffe2torch.binding``: what is certain is read off the program that net and port were made from, by
trying every way to lay the one onto the other.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from nets import Step, channels_of, conv, inserted, layer
from torch import Tensor, nn

EDITS = ("none", "drop", "add", "reshape", "add and reshape", "drop and reshape")
PAIRS = ((1, 1), (2, 0))


@dataclass(frozen=True)
class Case:
    """A net, a port of it, and what its user states.

    ``place`` is the step of the port that each learning step of the net became; a step that was dropped has none.
    """

    edit: str
    images: bool
    net: tuple[Step, ...]
    port: tuple[Step, ...]
    place: dict[int, int]
    reshaped: frozenset[int]
    multipliers: tuple[tuple[int, int], ...]
    names_kept: bool
    seed: int

    @property
    def dropped(self) -> list[int]:
        """Learning steps of the net that the port does without."""
        return [number for number in learning(self.net) if number not in self.place]

    def layer(self, step: int) -> str:
        """The name of a step's layer in the net."""
        return f"s{step}"


def learning(program: Sequence[Step]) -> list[int]:
    """The numbers of the steps that learn; the first step is 1."""
    return [number for number, step in enumerate(program, start=1) if step.learns]


def make_case(seed: int) -> Case:
    """The case of a seed."""
    rng = random.Random(seed)
    images, edit = rng.random() < 0.6, rng.choice(EDITS)
    base = _program(rng)
    net, port = list(base), list(base)
    place = {number: number for number in learning(base)}
    if "drop" in edit:
        at = rng.randrange(len(net) + 1)
        net = inserted(net, at, rng.choice(("conv3", "conv1", "norm")))
        place = {number + (number > at): other for number, other in place.items()}
    if "add" in edit:
        for _ in range(rng.randint(1, 2)):
            at = rng.randrange(len(port) + 1)
            port = inserted(port, at, rng.choice(("conv3", "conv1", "norm")))
            place = {number: other + (other > at) for number, other in place.items()}
    reshaped: set[int] = set()
    if "reshape" in edit:
        read = {source for step in port for source in step.sources}
        heads = [n for n, other in place.items() if port[other - 1].op.startswith("conv") and other not in read]
        if heads:
            reshaped = {rng.choice(heads)}
            other = place[min(reshaped)]
            port[other - 1] = replace(port[other - 1], channels=7)
    return Case(
        edit, images, tuple(net), tuple(port), place, frozenset(reshaped),
        tuple(rng.choice(PAIRS) for _ in net), rng.random() < 0.3, seed,
    )  # fmt: skip


def _program(rng: random.Random) -> list[Step]:
    """Up to a dozen steps that learn, in chains whose branches meet in sums and concatenations, none of them twice."""
    program: list[Step] = []
    wanted = rng.randint(1, 12)
    while len(learning(program)) < wanted:
        channels = channels_of(program)
        first = rng.randint(max(0, len(channels) - 3), len(channels) - 1)
        op = rng.choice(("conv3", "conv1", "norm", "relu", "sum", "cat"))
        if op in ("sum", "cat"):
            fits = [n for n, c in enumerate(channels) if (c == channels[first] or op == "cat") and n != first]
            if fits and channels[first] <= 20:
                step = Step(op, (first, rng.choice(fits)))
                *before, made = _values([*program, step], {*learning(program)}, {n: n for n in learning(program)})
                program += [] if made in before else [step]
        else:
            program.append(Step(op, (first,), rng.choice((2, 3)) if op.startswith("conv") else 0))
    return program


def prototxt(case: Case) -> str:
    """The net as Caffe reads it; in nets of vectors every other fully connected layer is stored transposed."""
    axes = "dim: 2 dim: 3" + (" dim: 8 dim: 8" if case.images else "")
    text = [f'input: "v0" input_shape {{ {axes} }}\n']
    for number, step in enumerate(case.net, start=1):
        name, top = case.layer(number), f"v{number}"
        bottoms = " ".join(f"v{source}" for source in step.sources)
        params = " ".join(["param {{ lr_mult: {} decay_mult: {} }}".format(*case.multipliers[number - 1])] * 2)
        if step.op.startswith("conv") and case.images:
            text.append(conv(name, bottoms, step.channels, int(step.op[-1]), params=params, top=top))
        elif step.op.startswith("conv"):
            turned = "transpose: true" if (number + case.seed) % 2 else ""
            settings = f"inner_product_param {{ num_output: {step.channels} {turned} }}"
            text.append(layer("InnerProduct", name, bottoms, top, settings, params))
        elif step.op == "norm":
            text.append(layer("BatchNorm", f"{name}n", bottoms, top))
            text.append(layer("Scale", name, top, top, "scale_param { bias_term: true }", params))
        else:
            text.append(layer({"relu": "ReLU", "sum": "Eltwise", "cat": "Concat"}[step.op], name, bottoms, top))
    return "".join(text)


class Turned(nn.Module):
    """A fully connected layer that stores inputs x outputs."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, values: Tensor) -> Tensor:
        return values @ self.weight + self.bias


class Port(nn.Module):
    """The port of a case; its modules are registered in random order, and called as in the net or at random."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        rng = random.Random(case.seed)
        self.program = case.port
        channels = channels_of(case.port)
        origin = {other: number for number, other in case.place.items()}
        self.module_of: dict[int, str] = {}
        steps = learning(case.port)
        for number in rng.sample(steps, len(steps)):
            step, inputs = case.port[number - 1], channels[case.port[number - 1].sources[0]]
            module: nn.Module
            if step.op == "norm":
                module = nn.BatchNorm2d(inputs) if case.images else nn.BatchNorm1d(inputs)
            elif case.images:
                kernel = int(step.op[-1])
                module = nn.Conv2d(inputs, step.channels, kernel, padding=kernel // 2)
            else:
                module = (Turned if rng.random() < 0.3 else nn.Linear)(inputs, step.channels)
            kept = case.names_kept and number in origin
            name = case.layer(origin[number]) if kept else f"{rng.choice('xyz')}{rng.randrange(10**6)}m"
            self.module_of[number] = name
            self.add_module(name, module)

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


# All ways to lay the net onto the port.


def certain(case: Case) -> dict[int, int]:
    """The steps of the net that every way lays onto the same step of the port, with that step."""
    found: list[dict[int, int]] = []
    for tails in (True, False):
        found = list(_all_ways(case, tails=tails))
        if found:
            break
    first = found[0] if found else {}
    return {one: other for one, other in first.items() if all(way[one] == other for way in found)}


def _all_ways(case: Case, *, tails: bool) -> Iterator[dict[int, int]]:
    mine = set(case.place)
    extra = len(learning(case.port)) - len(mine)
    for left_out in itertools.combinations(learning(case.port), extra):
        yield from isomorphisms(case, mine, set(learning(case.port)) - set(left_out), tails=tails)


def isomorphisms(case: Case, mine: set[int], theirs: set[int], *, tails: bool) -> Iterator[dict[int, int]]:
    """Every way to lay these steps of the net onto those of the port so that each has the same inputs."""
    values = _values(case.port, theirs, {number: number for number in theirs})
    looks = {other: (_look(case, case.port, other), values[case.port[other - 1].sources[0]]) for other in theirs}
    steps = sorted(mine)

    def extend(way: dict[int, int]) -> Iterator[dict[int, int]]:
        if len(way) == len(steps):
            if not tails or _ends(case.net, _values(case.net, mine, way)) == _ends(case.port, values):
                yield dict(way)
            return
        one = steps[len(way)]
        source = _values(case.net[: one - 1], mine, way)[case.net[one - 1].sources[0]]
        for other, (look, fed) in looks.items():
            same = (
                look[0] == _look(case, case.net, one)[0] if one in case.reshaped else look == _look(case, case.net, one)
            )
            if same and fed == source and other not in way.values():
                yield from extend({**way, one: other})

    yield from extend({})


def _look(case: Case, program: Sequence[Step], number: int) -> tuple[Any, ...]:
    step, channels = program[number - 1], channels_of(program)
    kind = "norm" if step.op == "norm" else "map"
    return kind, step.op if case.images else kind, channels[step.sources[0]], channels[number]


def _values(program: Sequence[Step], kept: set[int], way: dict[int, int]) -> list[Any]:
    """What each value is, in terms of the steps of the port: what is joined counts once, what is left out never."""
    values: list[Any] = [("in",)]
    for number, step in enumerate(program, start=1):
        sources = [values[source] for source in step.sources]
        if number in kept:
            values.append(("unit", way.get(number)))
        elif step.op == "sum":
            parts = {part for one in sources for part in (one[1] if one[0] == "sum" else (one,))}
            values.append(("sum", tuple(sorted(parts, key=repr))) if len(parts) > 1 else sources[0])
        elif step.op == "cat":
            flat = dict.fromkeys(part for one in sources for part in (one[1] if one[0] == "cat" else (one,)))
            values.append(("cat", tuple(flat)) if len(flat) > 1 else sources[0])
        else:
            values.append(sources[0])
    return values


def _ends(program: Sequence[Step], values: Sequence[Any]) -> set[Any]:
    """The sums and concatenations that were made; ``(a + b) + c`` is one where nothing else reads ``a + b``."""
    readers: list[set[int]] = [set() for _ in values]
    for number in range(len(program), 0, -1):
        for source in program[number - 1].sources:
            readers[source] |= readers[number] if values[number] == values[source] else {number}
    return {
        value
        for value, read in zip(values, readers, strict=True)
        if value[0] == "cat" or (value[0] == "sum" and not (len(read) == 1 and program[min(read) - 1].op == "sum"))
    }
