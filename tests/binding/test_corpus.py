"""Every net of the corpus on its own skeleton, under names that say nothing and in another order."""

from __future__ import annotations

import random
import string
from pathlib import Path

import pytest
from places import REPOSITORY
from torch import nn

from caffe2torch.binding.bind import bind
from caffe2torch.binding.plan import Kind
from caffe2torch.binding.skeleton import SkeletonLayer, skeleton
from caffe2torch.errors import Caffe2TorchError
from caffe2torch.reading import read_recipe
from caffe2torch.recipe import TrainingRecipe

SHARED = REPOSITORY.parent / "shared" / "corpus"
NETS = sorted((SHARED / "pairs").glob("*/net.prototxt")) + sorted((SHARED / "large").glob("*.prototxt"))
UNREADABLE = {"deeplabv2-resnet101-train-template.prototxt"}  # a template with placeholders, no net

pytestmark = pytest.mark.shared


def name_of(net: Path) -> str:
    return net.parent.name if net.name == "net.prototxt" else net.name


def read(net: Path) -> TrainingRecipe:
    try:
        return read_recipe(net)
    except Caffe2TorchError:
        assert name_of(net) in UNREADABLE
        pytest.skip("no net that can be read")


def renamed(model: nn.Module, seed: int) -> nn.Module:
    """The same layers in another container, order and under other names."""
    rng = random.Random(seed)
    layers = list(model.children())
    rng.shuffle(layers)
    result = nn.Module()
    for layer in layers:
        result.add_module("".join(rng.choice(string.ascii_lowercase) for _ in range(9)), layer)
    return result


@pytest.mark.parametrize("net", NETS, ids=name_of)
def test_a_net_binds_to_its_skeleton_and_to_the_same_tensors_under_other_names(net: Path) -> None:
    recipe = read(net)
    model = skeleton(recipe)
    binding = bind(recipe, model)
    assert [one.blob for one in binding.blobs] == list(recipe.blobs)
    assert not binding.unclaimed
    assert {one.kind is Kind.NONE for one in binding.blobs} <= {one.blob.role == "factor" for one in binding.blobs}
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    own = [None if one.name is None else tensors[one.name] for one in binding.blobs]
    for layer in model.children():
        assert isinstance(layer, SkeletonLayer)
        for attribute, number in layer.blobs.items():
            assert own[number] is getattr(layer, attribute)

    again = renamed(model, seed=len(recipe.blobs))
    binding = bind(recipe, again)
    tensors = {**dict(again.named_parameters()), **dict(again.named_buffers())}
    for tensor, one in zip(own, binding.blobs, strict=True):
        if one.name is not None and tensors[one.name] is not tensor:
            assert any(tensors[rival] is tensor for rival in one.rivals), one.blob.name
    if any(one.rivals for one in binding.blobs):
        assert any("could be modules" in note.message for note in binding.notes)


def test_the_corpus_is_all_there(shared: Path) -> None:
    assert (shared / "corpus").is_dir()
    assert len(NETS) == 103 + 13
