"""Real nets on the models that others ported them to: every blob where the proven table has it, or refused."""

from __future__ import annotations

import csv
import importlib
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from caffe2torch.binding.bind import bind
from caffe2torch.binding.plan import Binding
from caffe2torch.cli.loading import load_model
from caffe2torch.errors import BindingError
from caffe2torch.reading import read_recipe
from caffe2torch.recipe import Severity

pytestmark = pytest.mark.shared


def torchvision(name: str) -> Callable[[], nn.Module]:
    return lambda: load_model(f"torchvision:{name}")


def zoo(package: str, call: str, *args: Any, **kwargs: Any) -> Callable[[], nn.Module]:
    """A model of a package that the tests do without where it is absent."""

    def build() -> nn.Module:
        pytest.importorskip(package, reason=f"{package} is an extra of the tests")
        module, _, function = call.rpartition(".")
        with warnings.catch_warnings(action="ignore"):
            return getattr(importlib.import_module(module), function)(*args, **kwargs)  # type: ignore[no-any-return]

    return build


MODELS = {
    "vgg16": torchvision("vgg16"),
    "vgg16_bn": torchvision("vgg16_bn"),
    "resnet50": torchvision("resnet50"),
    "resnet101": torchvision("resnet101"),
    "squeezenet1_1": torchvision("squeezenet1_1"),
    "densenet121": torchvision("densenet121"),
    "inception_v3": torchvision("inception_v3(aux_logits=False, init_weights=False)"),
    "bn_inception_tsn": zoo("pretrainedmodels", "pretrainedmodels.bninception", num_classes=101, pretrained=None),
    "se_resnet50": zoo("pretrainedmodels", "pretrainedmodels.se_resnet50", pretrained=None),
    "segnet": zoo("pytorchcv", "pytorchcv.model_provider.get_model", "segnet_cityscapes", num_classes=11),
}
PAIRS = {  # nets without a table, on the models that they are
    "large/resnet152-deploy.prototxt": torchvision("resnet152"),
    "large/densenet201-shicai.prototxt": torchvision("densenet201"),
    "large/intel-resnet50-int8.prototxt": torchvision("resnet50"),
    "large/soeaver-inception-resnet-v2-deploy.prototxt": zoo(
        "pretrainedmodels", "pretrainedmodels.inceptionresnetv2", pretrained=None
    ),
    "pairs/squeezenet-v1.0/net.prototxt": torchvision("squeezenet1_0"),
    "pairs/nvidia-resnet50-1k-rampup/net.prototxt": torchvision("resnet50"),
}


def bound(net: Path, model: Callable[[], nn.Module], **options: Any) -> Binding:
    recipe = read_recipe(net)
    with torch.device("meta"):
        return bind(recipe, model(), **options)


def table(folder: Path) -> dict[tuple[str, int], str | None]:
    with (folder / "mapping.csv").open(newline="") as file:
        return {(row["caffe_layer"], int(row["blob_index"])): row["torch_name"] or None for row in csv.DictReader(file)}


def found(binding: Binding) -> dict[tuple[str, int], str | None]:
    return {(one.blob.layer, one.blob.index): one.name for one in binding.blobs}


@pytest.mark.parametrize("name", MODELS)
def test_every_blob_is_bound_as_the_proven_table_says(shared: Path, name: str) -> None:
    folder = shared / "mappings" / name
    binding = bound(folder / "net.prototxt", MODELS[name])
    assert found(binding) == table(folder)
    assert not binding.unclaimed
    assert not any(one.rivals for one in binding.blobs)


@pytest.mark.parametrize("net", PAIRS)
def test_nets_bind_whole_and_with_certainty_to_the_models_that_they_are(shared: Path, net: str) -> None:
    binding = bound(shared / "corpus" / net, PAIRS[net])
    assert not binding.unclaimed
    assert not any(one.rivals for one in binding.blobs)
    tensors = [one.name for one in binding.blobs if one.name]
    assert len(tensors) == len(set(tensors))


def test_mobilenet_v2_lacks_one_expansion_and_binds_once_that_is_accepted(shared: Path) -> None:
    folder = shared / "mappings" / "mobilenet_v2_tv"
    with pytest.raises(BindingError) as caught:
        bound(folder / "net.prototxt", torchvision("mobilenet_v2"))
    assert str(caught.value).endswith(
        "batch norm: 53 in the net, 52 in the model\n"
        "    linear map: 54 in the net, 53 in the model\n"
        "    layer 'conv1/bn' with 'conv1/scale' could be features.0.1, as could 'conv2_1/expand/bn'\n"
        "    layer 'conv2_1/expand' has no counterpart\n"
        "    layer 'conv2_1/expand/bn' with 'conv2_1/expand/scale' could be features.0.1, as could 'conv1/bn'\n"
        "    module features.0.1 (batch norm) belongs to no layer\n"
        '  hint: decide in a names file: "conv1/bn" = "features.0.1"  or  "conv2_1/expand/bn" = "features.0.1", and '
        "leave out the other; leave out layers that the model has no module for (skip=['conv2_1/expand'], "
        "--skip 'conv2_1/expand')"
    )
    binding = bound(folder / "net.prototxt", torchvision("mobilenet_v2"), skip=["conv2_1/expand.*"])
    assert found(binding) == table(folder)
    expected = table(folder)
    less = bound(
        folder / "net.prototxt",
        torchvision("mobilenet_v2"),
        skip=["conv2_1/expand.*", "conv1/bn", "conv1/scale"],
        unclaimed=(1.0, 1.0),
    )
    assert [one.name for one in less.unclaimed] == ["features.0.1.weight", "features.0.1.bias"]
    assert all(name in (None, expected[key]) for key, name in found(less).items())


def refusal(net: Path, model: str) -> str:
    with pytest.raises(BindingError) as caught:
        bound(net, torchvision(model))
    return str(caught.value)


def test_alexnet_is_refused_by_the_sizes_that_differ(shared: Path) -> None:
    folder = shared / "mappings" / "nomatch_alexnet"
    text = refusal(folder / "net.prototxt", "alexnet")
    with (folder / "diff.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        weight = row["torch_name"].endswith("weight")
        line = f"{row['torch_shape']} in {row['torch_name']}"
        assert (line in text) == (row["verdict"] == "shape differs"), row
        assert not weight or row["verdict"] == "equal" or f"layer '{row['caffe_layer']}' at" in text


def test_googlenet_is_refused_by_its_missing_batch_norms_and_its_kernels(shared: Path) -> None:
    text = refusal(
        shared / "mappings" / "nomatch_googlenet" / "net.prototxt", "googlenet(aux_logits=True, init_weights=False)"
    )
    assert "batch norm: 0 in the net, 59 in the model" in text
    assert "layer 'conv1/7x7_s2' at conv1.conv (structure): the module has no bias, and 49 layers more" in text
    kernel = "its weight is 32x16x5x5 in Caffe, 32x16x3x3 in inception3a.branch3.1.conv.weight"
    assert f"layer 'inception_3a/5x5' at inception3a.branch3.1.conv (structure): {kernel}" in text
    assert len(text.splitlines()) < 30


@pytest.mark.parametrize(
    ("net", "model", "difference"),
    [
        ("resnet50", "resnet101", "linear map: 54 in the net, 105 in the model"),
        ("resnet101", "resnet50", "linear map: 105 in the net, 54 in the model"),
        ("vgg16", "vgg19", "linear map: 16 in the net, 19 in the model"),
        (
            "squeezenet1_1",
            "squeezenet1_0",
            "layer 'conv1' at features.0 (structure): its weight is 64x3x3x3 in Caffe, 96x3x7x7",
        ),
    ],
)
def test_relatives_are_refused_by_what_differs(shared: Path, net: str, model: str, difference: str) -> None:
    assert difference in refusal(shared / "mappings" / net / "net.prototxt", model)


def test_the_blocks_that_a_longer_resnet_has_in_between_are_not_guessed(shared: Path) -> None:
    text = refusal(shared / "mappings" / "resnet50" / "net.prototxt", "resnet101")
    assert "layer 'res4b_branch2a' could be one of 18 modules, layer3.1.conv1 to layer3.18.conv1" in text
    with pytest.raises(BindingError, match="30 layers have no certain counterpart"):
        bound(shared / "mappings" / "resnet50" / "net.prototxt", torchvision("resnet101"), unclaimed=(1.0, 1.0))


def test_a_new_head_on_a_net_of_parallel_branches(shared: Path) -> None:
    folder = shared / "mappings" / "inception_v3"
    model = torchvision("inception_v3(aux_logits=False, init_weights=False, num_classes=7)")
    binding = bound(folder / "net.prototxt", model, skip=["classifier"], unclaimed=(10.0, 1.0))
    expected = {key: name if key[0] != "classifier" else None for key, name in table(folder).items()}
    assert found(binding) == expected
    assert [one.name for one in binding.unclaimed] == ["fc.weight", "fc.bias"]


def test_auxiliary_heads_that_only_the_model_has_are_unclaimed(shared: Path) -> None:
    folder = shared / "mappings" / "inception_v3"
    binding = bound(folder / "net.prototxt", torchvision("inception_v3(init_weights=False)"), unclaimed=(1.0, 1.0))
    assert found(binding) == table(folder)
    assert {one.name.split(".")[0] for one in binding.unclaimed} == {"AuxLogits"}


def test_resnets_first_bias_goes_without_a_tensor_and_that_is_a_warning(shared: Path) -> None:
    binding = bound(shared / "mappings" / "resnet50" / "net.prototxt", torchvision("resnet50"))
    warnings = [note for note in binding.notes if note.severity is Severity.WARNING]
    assert [note.message.split(":")[0] for note in warnings] == ["conv1/1"]
    assert warnings[0].where == binding.blobs[0].blob.where


@pytest.mark.parametrize(("net", "model"), [("densenet201-shicai", "densenet201"), ("resnet152-deploy", "resnet152")])
@pytest.mark.usefixtures("without_collector")
def test_the_largest_bind_in_under_two_seconds(shared: Path, net: str, model: str) -> None:
    recipe = read_recipe(shared / "corpus" / "large" / f"{net}.prototxt")
    with torch.device("meta"):
        built = load_model(f"torchvision:{model}")
    seconds = []
    for _ in range(2):
        start = time.process_time()
        bind(recipe, built)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 2.0
