"""The port that this project starts from: SegNetBasic as an encoder ``down`` and a decoder ``up`` of equal blocks."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from nets import conv, layer, names, recipe_of
from torch import Tensor, nn
from torch.nn import functional

from caffe2torch.binding.bind import bind
from caffe2torch.errors import BindingError
from caffe2torch.recipe import TrainingRecipe

WIDTH = 8


def segnet(channels: int = 4, classes: int = 3) -> TrainingRecipe:
    """SegNetBasic's layers: eight 7x7 convolutions of which seven have one shape, BN after each."""
    text = [f'input: "data" input_shape {{ dim: 2 dim: {channels} dim: 48 dim: 64 }}\n']
    value = "data"
    for n in range(1, 5):
        text += [conv(f"conv{n}", value, WIDTH, 7), layer("BN", f"conv{n}_bn", f"conv{n}", f"conv{n}")]
        pooling = "pooling_param { kernel_size: 2 stride: 2 }"
        text += [layer("ReLU", f"relu{n}", f"conv{n}", f"conv{n}")]
        text += [layer("Pooling", f"pool{n}", f"conv{n}", f"pool{n} mask{n}", pooling)]
        value = f"pool{n}"
    for n in (4, 3, 2, 1):
        text += [layer("Upsample", f"upsample{n}", f"{value} mask{n}", "", "upsample_param { scale: 2 }")]
        text += [conv(f"conv_decode{n}", f"upsample{n}", WIDTH, 7)]
        text += [layer("BN", f"conv_decode{n}_bn", f"conv_decode{n}", f"conv_decode{n}")]
        value = f"conv_decode{n}"
    return recipe_of(*text, conv("conv_classifier", value, classes, 1))


class Block(nn.Module):
    def __init__(self, inputs: int, norm: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, WIDTH, 7, padding=3)
        self.bn = nn.BatchNorm2d(WIDTH) if norm else nn.Identity()


class Down(Block):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x, mask = functional.max_pool2d(functional.relu(self.bn(self.conv(x)), inplace=True), 2, return_indices=True)
        return x, mask


class Up(Block):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.bn(self.conv(functional.max_unpool2d(x, mask, 2)))  # type: ignore[no-any-return]


class CropSegmentation(nn.Module):
    """Encoder and decoder as lists; ``last_norm`` is whether the decoder's last block has its batch norm."""

    def __init__(self, channels: int = 4, classes: int = 3, last_norm: bool = True) -> None:
        super().__init__()
        self.down = nn.ModuleList([Down(channels), Down(WIDTH), Down(WIDTH), Down(WIDTH)])
        self.up = nn.ModuleList([Up(WIDTH), Up(WIDTH), Up(WIDTH), Up(WIDTH, last_norm)])
        self.conv_classifier = nn.Conv2d(WIDTH, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        masks: list[Tensor] = []
        for block in self.down:
            x, mask = block(x)
            masks.append(mask)
        for block in self.up:
            x = block(x, masks.pop())
        return self.conv_classifier(x)  # type: ignore[no-any-return]


def home(layer_name: str) -> str:
    """The module that a layer of the net is in this port."""
    base = layer_name.removesuffix("_bn")
    part = "bn" if layer_name.endswith("_bn") else "conv"
    if layer_name == "conv_classifier":
        return layer_name
    number = int(base[-1])
    return f"up.{4 - number}.{part}" if "decode" in base else f"down.{number - 1}.{part}"


EXPECTED = {blob.name: f"{home(blob.layer)}.{'weight' if blob.index == 0 else 'bias'}" for blob in segnet().blobs}


def test_it_binds_without_help_equal_convolutions_included() -> None:
    binding = bind(segnet(), CropSegmentation())
    assert names(binding) == EXPECTED
    assert names(binding)["conv_decode4/0"] == "up.0.conv.weight"
    assert {bound.how for bound in binding.blobs} == {"structure", "equal names"}
    assert not binding.unclaimed


@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_registration_and_the_names_of_modules_do_not_matter(seed: int) -> None:
    rng = random.Random(seed)
    model = CropSegmentation()
    for module in model.modules():
        children = list(module._modules.items())
        rng.shuffle(children)
        if not isinstance(module, nn.ModuleList):  # its order is the order in which it is run
            module._modules.clear()
            module._modules.update(children)
    assert names(bind(segnet(), model)) == EXPECTED

    class Renamed(CropSegmentation):
        def __init__(self) -> None:
            super().__init__()
            self.alpha, self.omega, self.last = self.up, self.down, self.conv_classifier
            del self.up, self.down, self.conv_classifier

        def forward(self, x: Tensor) -> Tensor:
            masks = []
            for block in self.omega:
                x, mask = block(x)
                masks.append(mask)
            for block in self.alpha:
                x = block(x, masks.pop())
            return self.last(x)  # type: ignore[no-any-return]

    renamed = {blob: name.replace("up.", "alpha.").replace("down.", "omega.") for blob, name in EXPECTED.items()}
    found = names(bind(segnet(), Renamed()))
    assert found == {blob: name.replace("conv_classifier", "last") for blob, name in renamed.items()}


def test_without_the_last_batch_norm_that_layer_must_be_skipped() -> None:
    model = CropSegmentation(last_norm=False)
    with pytest.raises(BindingError) as caught:
        bind(segnet(), model)
    assert "batch norm: 8 in the net, 7 in the model\n    layer 'conv_decode1_bn' has no counterpart" in str(
        caught.value
    )
    found = names(bind(segnet(), model, skip=["conv_decode1_bn"]))
    assert found == {blob: None if blob.startswith("conv_decode1_bn") else name for blob, name in EXPECTED.items()}


def test_a_fourth_channel_is_a_layer_that_does_not_fit() -> None:
    with pytest.raises(BindingError, match=r"its weight is 8x3x7x7 in Caffe, 8x4x7x7 in down\.0\.conv\.weight"):
        bind(segnet(channels=3), CropSegmentation())
    binding = bind(segnet(channels=3), CropSegmentation(), skip=["conv1/0"], unclaimed=(1.0, 1.0))
    assert [one.name for one in binding.unclaimed] == ["down.0.conv.weight"]


def test_another_number_of_classes_is_a_new_head() -> None:
    binding = bind(segnet(classes=11), CropSegmentation(), skip=["conv_classifier"], unclaimed=(10.0, 1.0))
    assert [one.name for one in binding.unclaimed] == ["conv_classifier.weight", "conv_classifier.bias"]
    assert names(binding) | {"conv_classifier/0": "", "conv_classifier/1": ""} == EXPECTED | {
        "conv_classifier/0": "",
        "conv_classifier/1": "",
    }


class WithHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
        self.net = CropSegmentation()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.net(x)
        return scores, self.extra(scores)


def test_an_unrelated_head_is_listed_until_it_has_multipliers() -> None:
    with pytest.raises(BindingError, match=r"module extra\.2 .linear map. belongs to no layer"):
        bind(segnet(), WithHead())
    binding = bind(segnet(), WithHead(), unclaimed=(1.0, 0.0))
    assert names(binding) == {blob: f"net.{name}" for blob, name in EXPECTED.items()}
    assert [(one.name, one.lr_mult, one.decay_mult) for one in binding.unclaimed] == [
        ("extra.2.weight", 1.0, 0.0),
        ("extra.2.bias", 1.0, 0.0),
    ]


class AsFabric(nn.Module):
    """Keeps a model as ``_FabricModule`` of Lightning does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._forward_module = self._original_module = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._forward_module(x)


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "Fabric": AsFabric,
    "DataParallel": nn.DataParallel,
    "compiled": torch.compile,
    "half": lambda model: model.half(),
    "frozen": lambda model: model.requires_grad_(False),
    "eval": lambda model: model.eval(),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapped_models_bind_like_the_bare_one(wrapper: str) -> None:
    assert names(bind(segnet(), WRAPPERS[wrapper](CropSegmentation()))) == EXPECTED


def test_a_model_inside_fabrics_own_wrapper_binds_like_the_bare_one() -> None:
    lightning = pytest.importorskip("lightning")
    fabric = lightning.Fabric(accelerator="cpu", devices=1)
    for model in (CropSegmentation(), torch.compile(CropSegmentation())):
        assert names(bind(segnet(), fabric.setup_module(model))) == EXPECTED


def test_parts_that_are_wrapped_are_named_as_if_they_were_not() -> None:
    model = CropSegmentation()
    model.down[1] = torch.compile(model.down[1])
    model.up = nn.DataParallel(model.up)  # type: ignore[assignment]
    assert names(bind(segnet(), model)) == EXPECTED


def test_distributed_and_sharded_models_bind_like_the_bare_one() -> None:
    import torch.distributed as dist

    if not dist.is_available() or dist.is_initialized():
        pytest.skip("no process group to be had")
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert names(bind(segnet(), nn.parallel.DistributedDataParallel(CropSegmentation()))) == EXPECTED
        mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
        model = CropSegmentation()
        for block in (*model.down, *model.up, model):
            fully_shard(block, mesh=mesh)
        assert names(bind(segnet(), model)) == EXPECTED
    finally:
        dist.destroy_process_group()
