"""What the check ``model`` says of published ports: only what is true, at a fraction of the binding's cost."""

from __future__ import annotations

import time
import warnings
from pathlib import Path

import pytest
import torch
from caffe2torch.models.loading import load_model
from torch import nn

from caffe2torch.binding.bind import bind
from caffe2torch.reading import read_recipe
from caffe2torch.verification.check_model import check_model
from caffe2torch.verification.report import Check

pytestmark = pytest.mark.shared

BY_BATCH = "the batch's statistics, kept ones"
"""Deploy files say ``use_global_stats``, and a model in ``train()`` does otherwise."""

TRUE = {  # net -> the port, and each difference with the number of layers that have it
    "vgg16": ("torchvision:vgg16", {}),
    "squeezenet1_1": ("torchvision:squeezenet1_1", {}),
    # The first nets of the kind stride in the 1x1 convolution; their pooling has no padding, and rounds up.
    "resnet50": (
        "torchvision:resnet50",
        {
            "no bias, one": 1,
            BY_BATCH: 53,
            "stride 1, 2": 3,
            "stride 2, 1": 3,
            "padding 1, 0": 1,
            "sizes rounded down, sizes rounded up": 1,
        },
    ),
    # The last block of this net has a maximum where torchvision's has an average.
    "inception_v3": (
        "torchvision:inception_v3(aux_logits=False, init_weights=False)",
        {BY_BATCH: 94, "average pooling, max pooling": 1, "dropout ratio 0.5, 0.2": 1},
    ),
    "segnet": ("pytorchcv", {"eps 1e-05, 1e-09": 25}),
}


def port(name: str) -> nn.Module:
    with torch.device("meta"), warnings.catch_warnings(action="ignore"):
        if name != "pytorchcv":
            return load_model(name)
        package = pytest.importorskip("pytorchcv.model_provider", reason="pytorchcv is an extra of the tests")
        model: nn.Module = package.get_model("segnet_cityscapes", num_classes=11)
        return model


@pytest.mark.parametrize("net", TRUE)
def test_of_a_published_port_it_says_only_what_is_true(shared: Path, net: str) -> None:
    name, expected = TRUE[net]
    recipe = read_recipe(shared / "mappings" / net / "net.prototxt")
    check = check_model(recipe, bind(recipe, port(name)))
    found: dict[str, int] = {}
    for one in check.differences:
        found[f"{one.yours}, {one.caffes}"] = found.get(f"{one.yours}, {one.caffes}", 0) + 1
    assert found == expected


@pytest.mark.usefixtures("without_collector")
def test_the_comparison_costs_less_than_half_of_the_binding(shared: Path) -> None:
    recipe = read_recipe(shared / "corpus/large/resnet152-deploy.prototxt")
    model = port("torchvision:resnet152")
    seconds: list[tuple[float, float]] = []
    for _ in range(3):
        start = time.process_time()
        binding = bind(recipe, model)
        between = time.process_time()
        check: Check = check_model(recipe, binding)
        seconds.append((between - start, time.process_time() - between))
    assert "464 layers compared" in check.effect
    assert min(comparing for _, comparing in seconds) < 0.5 * min(binding for binding, _ in seconds)
