"""A small net for each layer of a fork that is built, and something to feed it with."""

from __future__ import annotations

import torch
from nets import layer, linear
from torch import Tensor

from caffe2torch.models.build_net import CaffeNet

FILL = 'weight_filler { type: "gaussian" std: 1 }'
CENTERS = 'num_output: 3 center_filler { type: "gaussian" std: 1 }'
BLOCK = 'numTransition: 2 initChannel: 3 growthRate: 2 Filter_Filler { type: "gaussian" std: 0.3 }'


def inputs(**shapes: str) -> str:
    """Input blobs; a shape is its sizes as words."""
    return "".join(
        f'input: "{name}" input_shape {{ {" ".join(f"dim: {size}" for size in shape.split())} }}\n'
        for name, shape in shapes.items()
    )


ROWS = inputs(data="6 4", label="6")
IMAGES = inputs(data="2 3 4 5")
PAIRS = inputs(data="2 3 4 5", target="2 3 4 5") + layer("TanH", "t", "data")

NETS = {
    "CenterLoss": ROWS
    + linear("ip", "data", 4, FILL)
    + layer("CenterLoss", "loss", "ip label", "", f"loss_weight: 0.01 center_loss_param {{ {CENTERS} }}"),
    "ContinuationIndicator": inputs(data="3 2 4")
    + layer("ContinuationIndicator", "cont", "", "", "continuation_indicator_param { time_step: 3 batch_size: 2 }")
    + layer("LSTM", "lstm", "data cont", "", f"recurrent_param {{ num_output: 2 {FILL} }}"),
    "CtcLoss": inputs(data="4 2 3", label="2 3")
    + layer("TanH", "t", "data")
    + layer("CtcLoss", "loss", "t label", "", "ctc_loss_param { blank_label: 2 alphabet_size: 3 time_step: 4 }"),
    "DenseBlock": IMAGES
    + layer("DenseBlock", "d", "data", "", f"denseblock_param {{ {BLOCK} use_BC: true }}")
    + linear("ip", "d", 2, FILL),
    "EuclideanLossWithTV": PAIRS
    + layer("EuclideanLossWithTV", "loss", "t target", "", "euclidean_with_tv_param { lambda: 0.5 }"),
    "GeneralContrastiveLoss": ROWS
    + layer("InnerDistance", "d", "data", "", f"inner_distance_param {{ {CENTERS} }}")
    + layer(
        *("GeneralContrastiveLoss", "loss", "d label", "loss means"),
        "loss_weight: 1 loss_weight: 1 general_contrastive_loss_param { negative_margin: 3 negative_weight: 0.5 }",
    ),
    "InnerDistance": inputs(data="6 4", others="3 4") + layer("InnerDistance", "d", "data others"),
    "LiftedStructSimilaritySoftmaxLoss": ROWS
    + linear("ip", "data", 4, FILL)
    + layer("LiftedStructSimilaritySoftmaxLoss", "loss", "ip label"),
    "Lstm": inputs(data="6 4", clip="6")
    + layer(
        "Lstm", "l", "data clip", "", f"lstm_param {{ num_output: 2 batch_size: 2 clipping_threshold: 0.1 {FILL} }}"
    ),
    "MIN": IMAGES + layer("Pooling", "p", "data", "", "pooling_param { pool: MIN kernel_size: 3 stride: 2 }"),
    "MarginInnerProduct": ROWS
    + layer(
        *("MarginInnerProduct", "m", "data label", "m lambda"),
        f"margin_inner_product_param {{ num_output: 3 type: QUADRUPLE base: 10 gamma: 0.5 lambda_min: 1 {FILL} }}",
    )
    + layer("SoftmaxWithLoss", "loss", "m label"),
    "MultiStageMeanfield": IMAGES
    + layer("TanH", "unary", "data")
    + layer(
        *("MultiStageMeanfield", "m", "unary unary data", ""),
        "multi_stage_meanfield_param { num_iterations: 2 theta_alpha: 3 theta_beta: 0.7 theta_gamma: 1.5 }",
    ),
    "SVRLoss": PAIRS + layer("SVRLoss", "loss", "t target"),
    "TripletLoss": inputs(data="6 4", p="6 4", n="6 4")
    + layer("TanH", "t", "data")
    + layer("TripletLoss", "loss", "t p n", "", "triplet_loss_param { margin: 0.5 }"),
    "TripletLoss of sets": inputs(data="8 4", label="8")
    + layer("TanH", "t", "data")
    + layer("TripletLoss", "loss", "t label", "", "triplet_loss_param { losstype: 0 num_triplets: 2 }"),
    "XCovLoss": inputs(data="6 4", other="6 3") + layer("TanH", "t", "data") + layer("XCovLoss", "loss", "t other"),
}


def feed(model: CaffeNet, seed: int = 0) -> dict[str, Tensor]:
    """Random numbers for the net's inputs; class numbers below 3 for labels, 0 and 1 for indicators."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {top: s for layer in model.recipe.layers for top, s in zip(layer.tops, layer.top_shapes, strict=True)}
    below = {"label": 3, "clip": 2}
    return {
        name: torch.randint(below[name], shape, generator=generator).float()
        if name in below
        else torch.randn(shape, generator=generator)
        for name in model.input_names
        for shape in [tuple(size or 1 for size in shapes[name] or ())]
    }
