"""A pattern means the names that it was made for, and no other."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from caffe2torch.binding.patterns import pattern

NAMES = st.sets(st.text("ab/1.+", min_size=1, max_size=6), min_size=1, max_size=14)


@given(NAMES, st.data())
def test_a_pattern_matches_exactly_the_names_that_it_is_for(every: set[str], data: st.DataObject) -> None:
    chosen = data.draw(st.sets(st.sampled_from(sorted(every)), min_size=1))
    found = pattern(sorted(chosen), sorted(every))
    assert {name for name in every if re.fullmatch(found, name)} == chosen


def test_a_pattern_is_short_where_names_begin_and_end_alike() -> None:
    layers = [f"inception_{block}/{branch}" for block in ("3a", "3b", "4a") for branch in ("1x1", "3x3", "5x5")]
    every = [*layers, *(f"{name}/{index}" for name in layers for index in (0, 1)), "conv1", "conv1/0", "fc", "fc/0"]
    assert pattern([name for name in layers if name.endswith("5x5")], every) == "inception_.*/5x5"
    biases = [name for name in every if name.endswith("/1")]
    assert pattern(biases, every) == "inception_.*/1"
    heads = ["loss1/conv", "loss1/fc", "loss2/conv", "loss2/fc"]
    assert pattern(heads, [*heads, *layers, "loss3/classifier"]) == "loss1/.*|loss2/.*"
