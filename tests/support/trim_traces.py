"""Trim recorded runs into fixtures/traces, for machines without ../shared: python tests/trim_traces.py ../shared."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
from places import REPOSITORY

CASES = (
    "sgd_step",
    "sgd_poly_past_max",
    "sgd_multistep_zero_first",
    "sgd_step_iter3_clip_l1",
    "sgd_clip_zero",
    "nesterov_poly",
    "nesterov_fixed_clip",
    "adagrad_step",
    "rmsprop_poly",
    "adadelta_step",
    "adam_fixed_bigdelta",
    "real_sgd_clip_force_backward",
)
WANTED = ("param_names", "lr_mult", "decay_mult", "lr", "current_step", "init/", "grad/", "weight/")


def main(shared: Path) -> None:
    for case in CASES:
        recorded = shared / "goldens" / "bvlc" / case
        trimmed = REPOSITORY / "fixtures" / "traces" / case
        trimmed.mkdir(parents=True, exist_ok=True)
        for name in ("net.prototxt", "solver.prototxt"):
            shutil.copyfile(recorded / name, trimmed / name)
        with np.load(recorded / "trace.npz") as arrays:
            kept = {key: arrays[key] for key in arrays.files if key.startswith(WANTED)}
        np.savez_compressed(trimmed / "trace.npz", **kept)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
