"""Six small nets of several families with a port of each, whose settings can be changed one at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - as all of torch's own documents write it
from nets import layer
from torch import Tensor, nn

Changes = Mapping[str, Any]


@dataclass(frozen=True)
class Port:
    """A net, and what makes a port of it; ``usual`` are the settings that are the net's own."""

    net: str
    make: Callable[[Changes], nn.Module]
    usual: Changes

    def build(self, **changed: Any) -> nn.Module:
        """The port with some settings changed."""
        assert changed.keys() <= self.usual.keys()
        with torch.device("meta"):
            return self.make({**self.usual, **changed})


def image(channels: int, height: int, width: int | None = None) -> str:
    return f'input: "data" input_shape {{ dim: 2 dim: {channels} dim: {height} dim: {width or height} }}\n'


def conv(name: str, bottom: str, settings: str, kind: str = "Convolution") -> str:
    return layer(kind, name, bottom, "", f"convolution_param {{ {settings} }}")


def relu(blob: str, more: str = "") -> str:
    return layer("ReLU", f"relu_{blob}", blob, blob, more)


def bn(blob: str, more: str = "") -> str:
    scale = layer("Scale", f"scale_{blob}", blob, blob, "scale_param { bias_term: true }")
    return layer("BatchNorm", f"bn_{blob}", blob, blob, f"batch_norm_param {{ {more} }}") + scale


def pool(name: str, bottom: str, settings: str) -> str:
    return layer("Pooling", name, bottom, "", f"pooling_param {{ {settings} }}")


def linear(name: str, bottom: str, outputs: int) -> str:
    return layer("InnerProduct", name, bottom, "", f"inner_product_param {{ num_output: {outputs} }}")


def dropout(blob: str, ratio: float) -> str:
    return layer("Dropout", f"drop_{blob}", blob, blob, f"dropout_param {{ dropout_ratio: {ratio} }}")


# As AlexNet: a chain of modules.

ALEXNET = (
    image(3, 32)
    + conv("conv1", "data", "num_output: 8 kernel_size: 5 stride: 2 pad: 2")
    + relu("conv1")
    + layer("LRN", "norm1", "conv1", "", "lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 }")
    + pool("pool1", "norm1", "pool: MAX kernel_size: 3 stride: 2")
    + conv("conv2", "pool1", "num_output: 12 kernel_size: 3 pad: 1 group: 2")
    + relu("conv2")
    + pool("pool2", "conv2", "pool: MAX kernel_size: 3 stride: 2")
    + linear("fc6", "pool2", 16)
    + relu("fc6")
    + dropout("fc6", 0.5)
    + linear("fc7", "fc6", 5)
)


def alexnet(s: Changes) -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(3, 8, s["conv1_kernel"], stride=s["conv1_stride"], padding=s["conv1_padding"]),
        s["relu1"](),
        nn.LocalResponseNorm(s["lrn_size"], alpha=s["lrn_alpha"], beta=s["lrn_beta"], k=s["lrn_k"]),
        s["pool1"](s["pool1_kernel"], stride=s["pool1_stride"], padding=s["pool1_padding"], ceil_mode=s["pool1_ceil"]),
        nn.Conv2d(8, 12, 3, padding=s["conv2_padding"], dilation=s["conv2_dilation"], groups=s["conv2_groups"]),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, ceil_mode=s["pool2_ceil"]),
        nn.Flatten(),
        nn.Linear(192, 16),
        nn.ReLU(),
        nn.Dropout(s["dropout"]) if s["dropout"] is not None else nn.Identity(),
        nn.Linear(16, 5),
    )
    return model if s["lrn"] else nn.Sequential(*(m for m in model if not isinstance(m, nn.LocalResponseNorm)))


# As ResNet: a block with two branches, batch norms with statistics.

RESNET = (
    image(3, 32)
    + conv("conv1", "data", "num_output: 8 kernel_size: 3 stride: 1 pad: 1 bias_term: false")
    + bn("conv1", "eps: 0.001")
    + relu("conv1")
    + pool("pool1", "conv1", "pool: MAX kernel_size: 3 stride: 2")
    + conv("down", "pool1", "num_output: 16 kernel_size: 1 stride: 2 bias_term: false")
    + bn("down")
    + conv("a", "pool1", "num_output: 16 kernel_size: 3 stride: 2 pad: 1 bias_term: false")
    + bn("a")
    + relu("a")
    + conv("b", "a", "num_output: 16 kernel_size: 3 pad: 1 bias_term: false")
    + bn("b")
    + layer("Eltwise", "sum", "down b")
    + relu("sum")
    + pool("pool5", "sum", "pool: AVE kernel_size: 8")
    + linear("fc", "pool5", 5)
)


class ResNet(nn.Module):
    def __init__(self, s: Changes) -> None:
        super().__init__()
        self.s = s
        self.conv1 = nn.Conv2d(3, 8, 3, stride=s["conv1_stride"], padding=s["conv1_padding"], bias=s["conv1_bias"])
        self.bn1 = nn.BatchNorm2d(8, eps=s["bn1_eps"], track_running_stats=s["bn1_track"])
        self.pool = s["pool"](s["pool_kernel"], s["pool_stride"], s["pool_padding"], ceil_mode=s["pool_ceil"])
        self.down = nn.Sequential(nn.Conv2d(8, 16, 1, s["down_stride"], bias=False), nn.BatchNorm2d(16))
        self.a = nn.Conv2d(8, 16, 3, s["a_stride"], padding=s["a_padding"], bias=False)
        self.abn = nn.BatchNorm2d(16, momentum=s["momentum"])
        self.b = nn.Conv2d(16, 16, 3, padding=s["b_padding"], dilation=s["b_dilation"], bias=False)
        self.bbn = nn.BatchNorm2d(16, eps=s["bbn_eps"])
        if s["bbn_eval"]:
            self.bbn.eval()
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1) if s["global"] else nn.AdaptiveMaxPool2d(1)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.bn1(self.conv1(x))))
        y = self.s["activation"](self.abn(self.a(x)))
        y = self.bbn(self.b(y))
        x = self.down(x) + y
        x = self.relu(x) if self.s["last_relu"] else x
        return self.fc(self.avgpool(x).flatten(1))


# As FCN and DeepLab: dilation, an upsampling that is learned, a crop.

FCN_NET = (
    image(3, 33)
    + conv("conv1", "data", "num_output: 8 kernel_size: 3 pad: 1")
    + layer("ELU", "elu1", "conv1", "conv1", "elu_param { alpha: 0.5 }")
    + pool("pool1", "conv1", "pool: AVE kernel_size: 3 stride: 2 pad: 1")
    + conv("conv2", "pool1", "num_output: 8 kernel_size: 3 pad: 2 dilation: 2")
    + relu("conv2", "relu_param { negative_slope: 0.1 }")
    + conv("score", "conv2", "num_output: 5 kernel_size: 1")
    + conv("up", "score", "num_output: 5 kernel_size: 4 stride: 2 pad: 1", "Deconvolution")
    + layer("Crop", "crop", "up data", "", "crop_param { axis: 2 offset: 0 }")
    + layer("Softmax", "prob", "crop")
)


class FCN(nn.Module):
    def __init__(self, s: Changes) -> None:
        super().__init__()
        self.s = s
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=s["padding"], dilation=s["dilation"])
        self.score = nn.Conv2d(8, 5, 1)
        self.up = nn.ConvTranspose2d(5, 5, 4, s["up_stride"], s["up_padding"], output_padding=s["up_output_padding"])

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        x = self.s["activation"](self.conv1(x), self.s["alpha"])
        x = F.avg_pool2d(
            x, self.s["pool_kernel"], self.s["pool_stride"], self.s["pool_padding"], True, self.s["pool_counts_padding"]
        )
        x = F.leaky_relu(self.conv2(x), self.s["slope"])
        x = self.up(self.score(x))
        if self.s["crop"]:
            x = x[:, :, :height, :width]
        return F.softmax(x, self.s["axis"])


# As GoogLeNet: branches that are concatenated, functional pooling.

INCEPTION = (
    image(3, 16)
    + conv("conv1", "data", "num_output: 8 kernel_size: 3 stride: 2 pad: 1")
    + relu("conv1")
    + conv("b1", "conv1", "num_output: 4 kernel_size: 1")
    + relu("b1")
    + conv("b2", "conv1", "num_output: 6 kernel_size: 3 pad: 1")
    + relu("b2")
    + pool("bpool", "conv1", "pool: MAX kernel_size: 3 stride: 1 pad: 1")
    + conv("b3", "bpool", "num_output: 5 kernel_size: 1")
    + relu("b3")
    + layer("Concat", "cat", "b1 b2 b3")
    + pool("pool5", "cat", "pool: AVE global_pooling: true")
    + dropout("pool5", 0.4)
    + linear("fc", "pool5", 7)
)


class Inception(nn.Module):
    def __init__(self, s: Changes) -> None:
        super().__init__()
        self.s = s
        self.conv1 = nn.Conv2d(3, 8, 3, stride=s["stride"], padding=1)
        self.b1, self.b2, self.b3 = (
            nn.Conv2d(8, 4, 1),
            nn.Conv2d(8, 6, 3, padding=s["b2_padding"], padding_mode="zeros", dilation=s["b2_dilation"]),
            nn.Conv2d(8, 5, 1),
        )
        self.drop = nn.Dropout(s["dropout"])
        self.fc = nn.Linear(15, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        y = self.s["pool"](x, self.s["pool_kernel"], stride=1, padding=self.s["pool_padding"])
        x = torch.cat([F.relu(self.b1(x)), self.s["activation"](self.b2(x)), F.relu(self.b3(y))], 1)
        x = x.mean((2, 3)) if self.s["average"] else x.amax((2, 3))
        return self.fc(self.drop(x))


# As MobileNet: depthwise convolutions, ReLU6, statistics that are kept.

MOBILENET = (
    image(3, 16)
    + conv("conv1", "data", "num_output: 8 kernel_size: 3 stride: 2 pad: 1 bias_term: false")
    + bn("conv1", "use_global_stats: true")
    + layer("ReLU6", "relu6", "conv1", "conv1")
    + conv("dw", "conv1", "num_output: 8 kernel_size: 3 pad: 1 group: 8 bias_term: false")
    + bn("dw", "eps: 0.00002")
    + layer("TanH", "tanh", "dw", "dw")
    + conv("pw", "dw", "num_output: 12 kernel_size: 1")
    + pool("pool", "pw", "pool: AVE kernel_size: 4 stride: 4")
    + conv("score", "pool", "num_output: 5 kernel_size: 1")
    + layer("Softmax", "prob", "score")
)


class MobileNet(nn.Module):
    def __init__(self, s: Changes) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=s["stride"], padding=1, bias=False),
            nn.BatchNorm2d(8),
            s["relu6"](),
            nn.Conv2d(8, 8, 3, padding=s["dw_padding"], dilation=s["dw_dilation"], groups=8, bias=False),
            nn.BatchNorm2d(8, eps=s["eps"]),
            s["tanh"](),
            nn.Conv2d(8, 12, 1, stride=s["pw_stride"]),
            nn.AvgPool2d(s["pool_kernel"], s["pool_stride"], divisor_override=s["divisor"]),
            nn.Conv2d(12, 5, 1),
            nn.Softmax(s["axis"]),
        )
        if s["settled"]:
            self.features[1].eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)


# Parameters that functions use, no modules; and SegNet's BN, which has no statistics.

SEGNET = (
    image(3, 17, 23)
    + layer("LRN", "norm", "data", "", "lrn_param { local_size: 3 alpha: 0.001 beta: 0.5 k: 2 }")
    + conv("conv1", "norm", "num_output: 8 kernel_size: 7 pad: 3")
    + layer("BN", "conv1_bn", "conv1", "conv1")
    + relu("conv1")
    + pool("pool1", "conv1", "pool: MAX kernel_size: 2 stride: 2")
    + conv("conv2", "pool1", "num_output: 8 kernel_size: 3 pad: 1 stride: 1")
    + layer("BN", "conv2_bn", "conv2", "conv2")
    + layer("Sigmoid", "sigmoid", "conv2", "conv2")
    + dropout("conv2", 0.5)
    + conv("score", "conv2", "num_output: 4 kernel_size: 1")
)


class SegNet(nn.Module):
    def __init__(self, s: Changes) -> None:
        super().__init__()
        self.s = s
        for name, shape in (("conv1", (8, 3, 7, 7)), ("conv2", (8, 8, 3, 3)), ("score", (4, 8, 1, 1))):
            self.register_parameter(f"{name}_weight", nn.Parameter(torch.zeros(shape)))
            self.register_parameter(f"{name}_bias", nn.Parameter(torch.zeros(shape[0])))
        self.bn1, self.bn2 = nn.Module(), nn.Module()
        for holder in (self.bn1, self.bn2):
            holder.weight, holder.bias = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))

    def bn(self, x: Tensor, name: str) -> Tensor:
        holder = getattr(self, name)
        return F.batch_norm(x, None, None, holder.weight, holder.bias, training=True, eps=self.s[f"{name}_eps"])

    def forward(self, x: Tensor) -> Tensor:
        s = self.s
        x = F.local_response_norm(x, s["lrn_size"], s["lrn_alpha"], s["lrn_beta"], s["lrn_k"])
        x = F.conv2d(x, self.conv1_weight, self.conv1_bias, padding=s["conv1_padding"], dilation=s["conv1_dilation"])
        x = s["relu"](self.bn(x, "bn1"))
        x = F.max_pool2d(x, s["pool_kernel"], s["pool_stride"], s["pool_padding"], ceil_mode=s["pool_ceil"])
        x = F.conv2d(x, self.conv2_weight, self.conv2_bias, stride=s["conv2_stride"], padding=1)
        x = s["sigmoid"](self.bn(x, "bn2"))
        x = F.dropout(x, s["dropout"], training=self.training)
        return F.conv2d(x, self.score_weight, self.score_bias)


PORTS = {
    "alexnet": Port(
        ALEXNET,
        alexnet,
        {
            **{"conv1_kernel": 5, "conv1_stride": 2, "conv1_padding": 2, "relu1": nn.ReLU},
            **{"lrn": True, "lrn_size": 5, "lrn_alpha": 1e-4, "lrn_beta": 0.75, "lrn_k": 1.0},
            **{"pool1": nn.MaxPool2d, "pool1_kernel": 3, "pool1_stride": 2, "pool1_padding": 0, "pool1_ceil": True},
            **{"conv2_padding": 1, "conv2_dilation": 1, "conv2_groups": 2, "pool2_ceil": True, "dropout": 0.5},
        },
    ),
    "resnet": Port(
        RESNET,
        ResNet,
        {
            **{"conv1_stride": 1, "conv1_padding": 1, "conv1_bias": False, "bn1_eps": 1e-3, "bn1_track": True},
            **{"pool": nn.MaxPool2d, "pool_kernel": 3, "pool_stride": 2, "pool_padding": 0, "pool_ceil": True},
            **{"down_stride": 2, "a_stride": 2, "a_padding": 1, "momentum": 0.1, "b_padding": 1, "b_dilation": 1},
            **{"bbn_eps": 1e-5, "bbn_eval": False, "activation": F.relu, "last_relu": True, "global": True},
        },
    ),
    "fcn": Port(
        FCN_NET,
        FCN,
        {
            **{"activation": F.elu, "alpha": 0.5, "pool_kernel": 3, "pool_stride": 2, "pool_padding": 1},
            **{"pool_counts_padding": True, "padding": 2, "dilation": 2, "slope": 0.1},
            **{"up_stride": 2, "up_padding": 1, "up_output_padding": 0, "crop": True, "axis": 1},
        },
    ),
    "inception": Port(
        INCEPTION,
        Inception,
        {
            **{"stride": 2, "b2_padding": 1, "b2_dilation": 1, "dropout": 0.4, "activation": F.relu},
            **{"pool": F.max_pool2d, "pool_kernel": 3, "pool_padding": 1, "average": True},
        },
    ),
    "mobilenet": Port(
        MOBILENET,
        MobileNet,
        {
            **{"stride": 2, "relu6": nn.ReLU6, "dw_padding": 1, "dw_dilation": 1, "eps": 2e-5, "tanh": nn.Tanh},
            **{"pw_stride": 1, "pool_kernel": 4, "pool_stride": 4, "divisor": None, "axis": 1, "settled": True},
        },
    ),
    "segnet": Port(
        SEGNET,
        SegNet,
        {
            **{"lrn_size": 3, "lrn_alpha": 1e-3, "lrn_beta": 0.5, "lrn_k": 2.0, "conv1_padding": 3},
            **{"conv1_dilation": 1, "bn1_eps": 1e-9, "bn2_eps": 1e-9, "relu": F.relu, "pool_kernel": 2},
            **{"pool_stride": 2, "pool_padding": 0, "pool_ceil": True, "conv2_stride": 1},
            **{"sigmoid": torch.sigmoid, "dropout": 0.5},
        },
    ),
}
