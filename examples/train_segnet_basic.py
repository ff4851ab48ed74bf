"""Train SegNetBasic as its Caffe prototxts say: from scratch, then fine-tune with a classifier ten times as fast.

    python examples/train_segnet_basic.py

The pictures are made up, so it needs no data: four bands, three classes, and a border without a class.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

import caffe2torch
from caffe2torch.models import CaffeSoftmaxLoss

FIXTURE = Path(__file__).resolve().parent.parent / "fixtures" / "segnet_basic"
NET, SOLVER = FIXTURE / "train.prototxt", FIXTURE / "solver.prototxt"

# Of the loss layer in train.prototxt: what a pixel of soil, weed and crop counts, and the label that does not.
LOSS = CaffeSoftmaxLoss(class_weights=[0.2595, 4.5640, 0.9051], ignore_label=3)
BANDS = torch.tensor([[120.0, 95.0, 70.0, 90.0], [60.0, 110.0, 50.0, 160.0], [40.0, 90.0, 45.0, 210.0]])


def pictures(count: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """``(N, 4, H, W)`` images and ``(N, H, W)`` labels: smooth patches of three classes, each of its own colour."""
    patches = torch.randn(count, 3, height // 8 + 1, width // 8 + 1)
    labels = torch.nn.functional.interpolate(patches, (height, width), mode="bilinear").argmax(1)
    images = BANDS[labels].permute(0, 3, 1, 2) + 15 * torch.randn(count, 4, height, width)
    labels[:, [0, -1]] = 3
    return images, labels


def train(t: caffe2torch.Translation, steps: int, size: tuple[int, int]) -> list[float]:
    """Torch's own loop; decay, multipliers and Caffe's momentum happen inside ``optimizer.step()``."""
    losses = []
    for _ in range(steps):
        images, labels = pictures(4, *size)
        loss = LOSS(t.model(images), labels)
        loss.backward()
        t.optimizer.step()
        t.scheduler.step()
        t.optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def show(title: str, t: caffe2torch.Translation, losses: list[float]) -> None:
    print(title)
    for group in t.optimizer.param_groups:
        print(
            f"  {group['name']:<34} lr {group['lr']:<6.3g} decay {group['weight_decay']:<7.3g} {len(group['params'])}"
        )
    print(f"  loss {' '.join(f'{loss:.2f}' for loss in losses)}\n")


def main(steps: int = 8, size: tuple[int, int] = (48, 64)) -> tuple[list[float], list[float]]:
    torch.manual_seed(0)
    model = caffe2torch.SegNetBasic(in_channels=4, num_classes=3)

    # A layer named here has groups of its own even at factor 1, so that both set-ups have the same groups.
    scratch = caffe2torch.translate(NET, SOLVER, model, finetune={"conv_classifier": 1})
    first = train(scratch, steps, size)
    show("from scratch", scratch, first)

    torch.nn.init.kaiming_normal_(model.conv_classifier.weight)  # new classes: the classifier starts anew
    tuned = caffe2torch.translate(NET, SOLVER, model, finetune={"conv_classifier": 10})
    second = train(tuned, steps, size)
    show("fine-tuning", tuned, second)
    return first, second


if __name__ == "__main__":
    main()
