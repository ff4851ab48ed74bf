"""The divisors of Caffe's losses. It stands alone, so that an emitted file has it without what reads settings."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Normalization"]


class Normalization(StrEnum):
    """What the summed loss is divided by (``LossParameter.NormalizationMode``), at least 1 in every case."""

    FULL = "FULL"  # the number of labels, ignored ones included
    VALID = "VALID"  # the number of labels that are not ignored
    BATCH_SIZE = "BATCH_SIZE"  # the product of the axes before the class axis: the number of images for axis 1
    NONE = "NONE"  # 1
