"""What an interpreter shows of an object fits on a screen, and says what it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from report_samples import HOSTILE, deep_prototxts

import caffe2torch
from caffe2torch.binding.plan import Binding, GroupMember, GroupPlan
from caffe2torch.optim.schedule import CaffeLRScheduler


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> caffe2torch.Translation:
    """A net of 400 layers."""
    return caffe2torch.translate(*deep_prototxts(tmp_path_factory.mktemp("deep"), 400))


def test_the_repr_of_recipe_groups_scheduler_and_translation_fits_on_a_screen(deep: caffe2torch.Translation) -> None:
    for thing in (deep, deep.recipe, deep.groups, deep.binding, deep.scheduler, deep.report, deep.recipe.solver):
        assert len(repr(thing)) <= 10 * 80, type(thing)
        assert repr(thing).isprintable()


def test_a_repr_says_what_one_would_ask_first(deep: caffe2torch.Translation) -> None:
    assert repr(deep.recipe) == (
        "<TrainingRecipe deep: 700 learnable blobs, 401 layers in TRAIN; SGD, base_lr 0.1, lr_policy multistep>"
    )
    assert repr(deep.groups[0]).startswith("<GroupPlan 'lr x1, decay x1', 300 parameters: res0_branch0_conv.weight, ")
    assert repr(deep.scheduler) == "<CaffeLRScheduler, multistep: at iteration 0 lr 0.1, 0, 0.2>"
    assert repr(deep.binding) == "<Binding to CaffeNet: 700 of 700 blobs, 0 parameters without a blob>"
    assert "for CaffeNet" in repr(deep)


def test_the_schedulers_repr_follows_the_iteration(deep: caffe2torch.Translation) -> None:
    copy = CaffeLRScheduler(torch.optim.SGD([{"params": [torch.ones(1)], "lr_mult": 2, "decay_mult": 1}]), deep.solver)
    copy.restore(30_000)
    assert repr(copy) == "<CaffeLRScheduler, multistep: at iteration 30000 lr 0.02>"


def test_hostile_names_are_shown_as_text_in_a_repr(tmp_path: Path) -> None:
    net = tmp_path / "net.prototxt"
    net.write_text('name: "a\\033[31m"')
    assert repr(caffe2torch.read_recipe(net)).startswith("<NetRecipe a\\x1b[31m: 0 learnable blobs")
    assert repr(Binding(HOSTILE, ())).isprintable()
    assert repr(GroupPlan(HOSTILE, 1, 1, (GroupMember(HOSTILE, None),))).isprintable()
