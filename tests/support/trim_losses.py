"""Trim recorded losses into fixtures/losses: python tests/support/trim_losses.py ../shared."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
from places import REPOSITORY

CASES = (
    "contrastive_4d",
    "contrastive_default",
    "contrastive_legacy_margin2",
    "contrastive_weight",
    "euclidean_1d",
    "euclidean_both_weight_4d",
    "hinge_L1_weight",
    "hinge_L2",
    "infogain_axis2_4d",
    "infogain_axism1_norm_BATCH_SIZE",
    "infogain_ignore",
    "infogain_prob_top",
    "infogain_source_file",
    "infogain_underflow",
    "multinomial_4d",
    "multinomial_zero_prob",
    "net_reduction_asum",
    "net_reduction_mean",
    "net_siamese",
    "net_two_kinds_shared_blob",
    "sigmoid_allignored_norm_VALID",
    "sigmoid_ignore255_2d_norm_VALID",
    "sigmoid_ignore_norm_NONE",
    "sigmoid_large_soft",
    "sigmoid_normalize_false_ignore",
    "sigmoid_normalize_true_and_norm_FULL",
    "sigmoid_soft_ignore0",
    "sigmoid_target_1d",
    "softmax_allignored_default",
    "softmax_axis2_4d_BATCH_SIZE",
    "softmax_axism1_ignore_norm_FULL",
    "softmax_ignore255_norm_VALID",
    "softmax_normalize_false",
    "softmax_normalize_false_and_norm_VALID",
    "softmax_one_image_ignored",
    "softmax_spatial_label3d",
    "softmax_weight0",
    "softmax_weight_negative",
)
WANTED = ("loss", "bottom_", "diff_", "param_", "pdiff_", "H_source")  # what the layers compute is left out


def main(shared: Path) -> None:
    for case in CASES:
        recorded = shared / "goldens" / "losses" / case
        trimmed = REPOSITORY / "fixtures" / "losses" / case
        trimmed.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(recorded / "net.prototxt", trimmed / "net.prototxt")
        with np.load(recorded / "io.npz") as arrays:
            kept = {key: arrays[key] for key in arrays.files if key.startswith(WANTED)}
        np.savez_compressed(trimmed / "io.npz", **kept)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
