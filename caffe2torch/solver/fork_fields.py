"""The solver fields that only forks of Caffe know, and what each does to the training.

Sources: the ``SolverParameter`` messages of 28 forks, and the ``sgd_solver.cpp`` of those that added a rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto

__all__ = ["FORK_FIELDS", "ForkField", "Meaning"]


class Meaning(Enum):
    """What a fork's field does to the training."""

    TRANSLATED = auto()  # a plain formula: solver/lr_policy.py evaluates it
    REFUSED = auto()  # changes what is learned, and is not translated
    PRECISION = auto()  # the number format that Caffe computed in; the formulas are the same
    HARMLESS = auto()  # testing, logging, snapshots, devices


@dataclass(frozen=True, slots=True)
class ForkField:
    """A row of the table: whose field it is, what it means, and the rule that must be in force for it to be read.

    ``rule`` is also the name by which a user accepts to go without one that is refused.
    """

    forks: str
    meaning: Meaning
    rule: str | None = None
    reason: str = ""


_LARC = "each blob's rate follows from the norms of its weights and of its gradient"
_PRIVATE = "by its name it changes how the net learns, and the rule behind it is not known"

_T, _R, _P, _H = Meaning.TRANSLATED, Meaning.REFUSED, Meaning.PRECISION, Meaning.HARMLESS
FORK_FIELDS: Mapping[str, ForkField] = {
    # the rate
    "stagelr": ForkField("Intel's and MobileNet-YOLO's", _T, "multifixed"),
    "stageiter": ForkField("Intel's and MobileNet-YOLO's", _T, "multifixed"),
    "warmup_iter": ForkField("Intel's", _T, "warmup_iter"),
    "warmup_start_lr": ForkField("Intel's", _T, "warmup_iter"),
    "rampup_interval": ForkField("NVIDIA's", _T, "rampup_interval"),
    "rampup_lr": ForkField("NVIDIA's", _T, "rampup_interval"),
    "min_lr": ForkField("NVIDIA's", _T, "min_lr"),
    "plateau_winsize": ForkField("Intel's and SSD's", _R, "plateau", "the rate follows the smoothed loss"),
    "stepearly": ForkField("a private fork's", _R, "stepearly", _PRIVATE),
    # momentum and decay
    "momentum_policy": ForkField("NVIDIA's", _T, "momentum_policy"),
    "max_momentum": ForkField("NVIDIA's", _T, "momentum_policy"),
    "momentum_power": ForkField("NVIDIA's", _T, "momentum_policy"),
    "weight_decay_policy": ForkField("NVIDIA's", _T, "weight_decay_policy"),
    "max_weight_decay": ForkField("NVIDIA's", _T, "weight_decay_policy"),
    "weight_decay_power": ForkField("NVIDIA's", _T, "weight_decay_policy"),
    "momentum_start": ForkField("a private fork's", _R, "momentum_start", _PRIVATE),
    "momentum_end": ForkField("a private fork's", _R, "momentum_start", _PRIVATE),
    "terminal_epoch_number": ForkField("a private fork's", _R, "momentum_start", _PRIVATE),
    # the update
    "larc": ForkField("NVIDIA's", _R, "larc", _LARC),
    "larc_policy": ForkField("NVIDIA's", _R, "larc", _LARC),
    "larc_eta": ForkField("NVIDIA's", _R, "larc", _LARC),
    "larc_turbo": ForkField("NVIDIA's", _R, "larc", _LARC),
    "local_lr_auto": ForkField("Intel's", _R, "local_lr_auto", _LARC),
    "local_gw_ratio": ForkField("Intel's", _R, "local_lr_auto", _LARC),
    "update_interval": ForkField("a private fork's", _R, "update_interval", _PRIVATE),
    "disabled_update": ForkField("Intel's", _R, "disabled_update", "the solver itself updates no weight"),
    # number formats
    "solver_data_type": ForkField("NVIDIA's", _P),
    "data_type": ForkField("the OpenCL branch's", _P),
    # testing, logging, snapshots, devices
    "ap_version": ForkField("SSD's", _H),
    "debug_display": ForkField("a private fork's", _H),
    "device": ForkField("the OpenCL branch's", _H),
    "device_id": ForkField("yjxiong's", _H),  # there a list, so that it is unknown only where it is one
    "engine": ForkField("Intel's", _H),
    "eval_type": ForkField("SSD's", _H),
    "group_id": ForkField("yjxiong's", _H),
    "log_avg_gradient_norm": ForkField("weiliu's", _H),
    "per_parameter_reduce": ForkField("NVIDIA's", _H),
    "richness": ForkField("yjxiong's", _H),
    "show_per_class_result": ForkField("SSD's", _H),
    "store_blobs_in_old_format": ForkField("NVIDIA's", _H),
    "test_and_snapshot_last_epochs": ForkField("NVIDIA's", _H),
    "test_before_snapshot": ForkField("weiliu's", _H),
    "test_offset": ForkField("Intel's", _H),
}
