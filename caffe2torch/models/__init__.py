"""Built-in models and losses, faithful to their Caffe originals."""

from __future__ import annotations

from caffe2torch.models.loss_modules import CaffeSoftmaxLoss
from caffe2torch.models.segnet_basic import SegNetBasic

__all__ = ["CaffeSoftmaxLoss", "SegNetBasic"]
