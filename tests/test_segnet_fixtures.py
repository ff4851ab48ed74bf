"""The SegNetBasic prototxts hold the 34 learnable blobs that real Caffe holds."""

from __future__ import annotations

import csv

import pytest

from caffe2torch.reading import read_recipe
from caffe2torch.recipe import Statement


def rows(path):
    """Layer, type, blob, shape and multipliers of each row of a recorded table."""
    with path.open() as file:
        for row in csv.DictReader(file):
            shape = tuple(int(size) for size in row["shape"].split("x"))
            yield row["layer"], row["type"], int(row["blob"]), shape, float(row["lr_mult"]), float(row["decay_mult"])


def learnable(recipe):
    return [(b.layer, b.layer_type, b.index, b.shape, b.lr_mult, b.decay_mult) for b in recipe.blobs]


def recipe_of(fixtures, name):
    return read_recipe(fixtures / name / "train.prototxt", fixtures / name / "solver.prototxt")


def test_the_crop_net_holds_its_34_blobs(fixtures):
    expected = list(rows(fixtures / "segnet_basic" / "params.csv"))
    assert len(expected) == 34
    assert learnable(recipe_of(fixtures, "segnet_basic")) == expected


@pytest.mark.shared
def test_the_camvid_net_holds_what_caffe_recorded(fixtures, shared):
    recorded = list(rows(shared / "goldens" / "segnet" / "full" / "params.csv"))
    assert learnable(recipe_of(fixtures, "segnet_basic_camvid")) == recorded


@pytest.mark.shared
def test_the_expected_rows_differ_from_the_recorded_ones_in_channels_and_classes_only(fixtures, shared):
    recorded = list(rows(shared / "goldens" / "segnet" / "full" / "params.csv"))
    ours = list(rows(fixtures / "segnet_basic" / "params.csv"))
    changed = [(a[3], b[3]) for a, b in zip(recorded, ours, strict=True) if a != b]
    assert changed == [((64, 3, 7, 7), (64, 4, 7, 7)), ((11, 64, 1, 1), (3, 64, 1, 1)), ((11,), (3,))]


def test_bn_states_no_multipliers_and_so_learns_and_decays_at_one(fixtures):
    blobs = [blob for blob in recipe_of(fixtures, "segnet_basic").blobs if blob.layer_type == "BN"]
    assert len(blobs) == 16
    for blob in blobs:
        assert (blob.lr_mult, blob.decay_mult) == (1, 1)
        assert {blob.stated.lr_mult, blob.stated.decay_mult} == {Statement.DEFAULTED}


@pytest.mark.parametrize("name", ["segnet_basic", "segnet_basic_camvid"])
def test_nothing_in_the_fixtures_needs_a_warning(fixtures, name):
    recipe = recipe_of(fixtures, name)
    assert [note for note in recipe.notes if note.severity != "info"] == []
    assert recipe.solver.unsupported == ()
