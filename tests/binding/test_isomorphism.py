"""Matching by structure: names and order never matter, what is not certain is never said to be."""

from __future__ import annotations

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nets import Port, Step, caffe_net, conv, programs, recipe_of
from torch import nn

from caffe2torch.binding.bind import bind
from caffe2torch.binding.colours import Graph, Palette, refine
from caffe2torch.binding.graph import INPUT, Node, Op, Unit, UnitKind, Wiring, WiringBuilder, without_units
from caffe2torch.binding.isomorphism import match_whole
from caffe2torch.binding.plan import Binding
from caffe2torch.binding.surroundings import match_parts


def expected(binding: Binding, port: Port) -> dict[str, bool]:
    """For each blob with a tensor, whether it is in the module that the program applies at its layer's place."""
    right = {}
    for bound in binding.blobs:
        if bound.name is not None:
            number = int(bound.blob.layer.strip("s"))
            right[bound.blob.name] = bound.name.startswith(f"{port.module_of[number]}.")
    return right


@given(programs(), st.integers(0, 1000), st.integers(0, 1000))
def test_what_is_bound_with_certainty_is_right_whatever_the_names_and_the_order(
    program: list[Step], seed: int, other: int
) -> None:
    recipe = recipe_of(caffe_net(program))
    certain = []
    for one in (seed, other):
        port = Port(program, one)
        binding = bind(recipe, port)
        right = expected(binding, port)
        certain.append({bound.blob.name for bound in binding.blobs if bound.name and not bound.rivals})
        assert all(right[name] for name in certain[-1])
        for bound in binding.blobs:
            if bound.name is not None and not right[bound.blob.name]:
                number = int(bound.blob.layer.strip("s"))
                assert any(rival.startswith(f"{port.module_of[number]}.") for rival in bound.rivals)
    assert certain[0] == certain[1]


@given(programs(), st.integers(0, 1000))
def test_names_that_mislead_do_not(program: list[Step], seed: int) -> None:
    learning = [f"s{number}" for number, step in enumerate(program, start=1) if step.learns]
    port = Port(program, seed, called=[*learning[1:], learning[0]])  # each module has another layer's name
    binding = bind(recipe_of(caffe_net(program)), port)
    tied = {bound.blob.layer for bound in binding.blobs if "names" in bound.how or bound.rivals}
    right = expected(binding, port)
    assert all(right[bound.blob.name] for bound in binding.blobs if bound.name and bound.blob.layer not in tied)


@given(
    st.lists(st.sampled_from(["conv3", "conv1", "norm"]), min_size=1, max_size=5), st.integers(2, 3), st.integers(0, 99)
)
def test_equal_branches_that_are_added_are_never_distinguished(branch: list[str], width: int, seed: int) -> None:
    program = [Step("conv3", (0,), 3)]
    ends = []
    for _ in range(width):
        last = 1
        for op in branch:
            program.append(Step(op, (last,), 0 if op == "norm" else 3))
            last = len(program)
        ends.append(last)
    total = ends[0]
    for end in ends[1:]:
        program.append(Step("sum", (total, end)))
        total = len(program)
    binding = bind(recipe_of(caffe_net(program)), Port(program, seed))
    in_branches = [bound for bound in binding.blobs if bound.name and bound.blob.layer.strip("s") != "1"]
    assert all(len(bound.rivals) == width - 1 for bound in in_branches)
    assert all("interchangeable" in bound.how for bound in in_branches)
    asked = [note.message for note in binding.notes if "could be modules" in note.message]
    assert len(asked) == 1
    assert (f"so could {len(branch) - 1} more" in asked[0]) == (len(branch) > 1)


@given(st.lists(st.sampled_from(["conv3", "conv1"]), min_size=1, max_size=4), st.integers(0, 99))
def test_equal_branches_that_are_concatenated_are_told_apart_by_their_order(branch: list[str], seed: int) -> None:
    program, ends = [Step("conv3", (0,), 3)], []
    for _ in range(2):
        last = 1
        for op in branch:
            program.append(Step(op, (last,), 3))
            last = len(program)
        ends.append(last)
    program += [Step("cat", tuple(ends)), Step("conv3", (len(program) + 1,), 2)]
    port = Port(program, seed)
    binding = bind(recipe_of(caffe_net(program)), port)
    assert all(expected(binding, port).values())
    assert not any(bound.rivals for bound in binding.blobs)


def chain(length: int, mark: int | None = None) -> Wiring:
    """Equal units in a row; the one at ``mark`` has another size."""
    builder, value = WiringBuilder(), INPUT
    for number in range(length):
        shape = (8, 8, 5, 5) if number == mark else (8, 8, 3, 3)
        value = builder.use(builder.unit(Unit(f"u{number}", (f"u{number}",), UnitKind.MAP, shape, ())), [value])
    return builder.build()


def test_a_chain_of_equal_units_is_matched_in_its_order() -> None:
    matching = match_whole(chain(50), chain(50), {})
    assert matching is not None
    assert matching.pairs == {number: number for number in range(50)}
    assert not matching.ties


def test_what_the_two_ends_of_unequal_chains_disagree_on_is_conflicting() -> None:
    net, model = chain(3), chain(5)
    assert match_whole(net, model, {}) is None
    parts = match_parts(net, model, {})
    assert not parts.pairs
    assert parts.conflicting == {0: {0, 2}, 1: {1, 3}, 2: {2, 4}}


def test_a_difference_in_the_middle_leaves_both_ends_matched() -> None:
    parts = match_parts(chain(9, mark=4), chain(9), {})
    assert parts.pairs == {number: number for number in range(9) if number != 4}


def test_a_pair_that_is_known_settles_what_is_torn() -> None:
    parts = match_parts(chain(3), chain(5), {0: 0, 2: 4})
    assert parts.pairs == {0: 0, 2: 4}
    assert match_parts(chain(3), chain(3), {1: 1}).pairs == {0: 0, 1: 1, 2: 2}


def test_refinement_tells_mirror_images_apart_only_by_order() -> None:
    def fork(op: Op) -> Wiring:
        builder = WiringBuilder()
        units = [builder.unit(Unit(name, (name,), UnitKind.MAP, (2, 2, 3, 3), ())) for name in "abc"]
        ends = [builder.use(unit, [INPUT]) for unit in units[:2]]
        builder.use(units[2], [builder.join(op, ends)])
        return builder.build()

    for op, colours in ((Op.SUM, 4), (Op.CONCAT, 5)):
        graph = Graph(fork(op))
        (found,) = refine([graph], [[node.op for node in graph.wiring.nodes]], Palette())
        assert len(set(found)) == colours


@pytest.mark.usefixtures("without_collector")
def test_binding_a_chain_takes_time_in_proportion_to_its_length() -> None:
    def seconds(length: int) -> float:
        text = [conv(f"u{n}", f"v{n}", 8, top=f"v{n + 1}") for n in range(length)]
        recipe = recipe_of('input: "v0" input_shape { dim: 1 dim: 8 dim: 4 dim: 4 }\n', *text)
        with torch.device("meta"):
            model = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(length)))
        start = time.process_time()
        binding = bind(recipe, model)
        spent = time.process_time() - start
        assert all(bound.name and bound.name.split(".")[0] == bound.blob.layer[1:] for bound in binding.blobs)
        return spent

    seconds(20)
    short, long = (min(seconds(length) for _ in range(2)) for length in (150, 1200))
    assert long < 22 * short, f"{short:.3f} s for 150 layers, {long:.3f} s for 1,200"  # a square would be 64


@pytest.mark.usefixtures("without_collector")
def test_matching_a_chain_takes_time_in_proportion_to_its_length() -> None:
    def seconds(length: int) -> float:
        start = time.process_time()
        matching = match_whole(chain(length), chain(length), {})
        assert matching is not None
        assert len(matching.pairs) == length
        return time.process_time() - start

    short, long = (min(seconds(length) for _ in range(3)) for length in (500, 4000))
    assert long < 22 * short, f"{short:.3f} s for 500 units, {long:.3f} s for 4,000"  # a square would be 64


def test_a_unit_without_inputs_that_is_left_out_becomes_an_input() -> None:
    lone, after = (Unit(name, (name,), UnitKind.MAP, (2, 2), ()) for name in ("lone", "after"))
    nodes = (Node(Op.INPUT), Node(Op.UNIT, (), 0), Node(Op.UNIT, (1,), 1))
    left = without_units(Wiring((lone, after), nodes), {0})
    assert left.units == (after,)
    assert left.nodes[-1] == Node(Op.UNIT, (INPUT,), 0)
