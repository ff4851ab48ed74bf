"""Which fork of Caffe a net was written for, from what stands in the file.

Forks gave one type name different meanings: ``BN`` has two blobs in SegNet's Caffe and four in three others. The file
itself is the evidence: fields and types that only one fork knows. A note names the evidence by which a layer is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from caffe2torch.errors import SourceLocation
from caffe2torch.prototxt.parser import Block

__all__ = ["CLUES", "SIGNS_BY_TYPE", "Clue", "Dialect", "read_dialect", "unknown_names"]

CLUES: Mapping[str, tuple[str, ...]] = {
    "NVIDIA": (
        "batch_norm_param.scale_bias",
        "net.default_forward_type",
        "net.default_backward_type",
        "net.global_grad_scale",
        "net.global_grad_scale_adaptive",
        "net.eltwise_mem_sharing",
        "net.default_cudnn_math_override",
        "layer.forward_type",
        "layer.backward_type",
        "data_param.cache",
    ),
    "Tongcheng": ("type DenseBlock", "data_param.random_order"),
    "Intel": (
        "batch_norm_param.use_weight_bias",
        "batch_norm_param.filler",
        "batch_norm_param.engine=MKLDNN",
        "batch_norm_param.engine=MKL2017",
        "net.engine",
        "net.multinode",
        "net.compile_net_state",
        "net.bn_stats_batch_size",
        "layer.engine",
        "layer.quantization_param",
    ),
    "SSD": ("layer.norm_param", "type PriorBox", "type MultiBoxLoss", "type AnnotatedData"),
    "PSPNet": ("type Interp", "type BNData", "batch_norm_param.update_global_stats"),
    "junhyukoh": ("layer.lstm_param",),
    "NormFace": ("layer.normalize_param", "type InnerDistance"),
    "yjxiong": tuple(
        f"bn_param.{name}" for name in ("slope_filler", "bias_filler", "frozen", "momentum", "eps", "engine")
    ),
    "happynear": tuple(f"bn_param.{name}" for name in ("var_eps", "decay", "moving_average", "across_spatial")),
}
"""Fork to what no other Caffe has: a layer type, or a field (by its message's field in the layer, and its name)."""

_SIGNS = frozenset(sign for signs in CLUES.values() for sign in signs)
SIGNS_BY_TYPE = frozenset(sign.removeprefix("type ") for sign in _SIGNS if sign.startswith("type "))
"""The layer types among them."""


@dataclass(frozen=True, slots=True)
class Clue:
    """What only this fork has, and where it stands first."""

    what: str
    where: SourceLocation

    def __str__(self) -> str:
        return f"'{self.what}' at line {self.where.line}"


@dataclass(frozen=True, slots=True)
class Dialect:
    """The forks that a net shows signs of."""

    clues: Mapping[str, Clue] = field(default_factory=dict)

    def of(self, fork: str) -> Clue | None:
        """The clue for a fork, if there is one.

        >>> Dialect().of("SSD") is None
        True
        """
        return self.clues.get(fork)

    @classmethod
    def of_forks(cls, forks: Iterable[str], where: SourceLocation) -> Dialect:
        """The dialect of a net whose forks are known by name alone."""
        return cls({fork: Clue("read before", where) for fork in forks})


def read_dialect(types: Iterable[tuple[str, SourceLocation]], unknown: Mapping[str, SourceLocation]) -> Dialect:
    """The forks that a net shows signs of, from its layer types and the fields that the schema does not know.

    >>> from caffe2torch.errors import SourceLocation
    >>> str(read_dialect([("PriorBox", SourceLocation("net.prototxt", 7, 1))], {}).of("SSD"))
    "'type PriorBox' at line 7"
    """
    marks = dict(unknown)
    for kind, where in types:
        if (mark := f"type {kind}") in _SIGNS:
            marks.setdefault(mark, where)
    clues = {
        fork: Clue(min(found, key=marks.__getitem__), marks[min(found, key=marks.__getitem__)])
        for fork, signs in CLUES.items()
        if (found := [sign for sign in signs if sign in marks])
    }
    return Dialect(clues)


def unknown_names(block: Block, path: str, names: dict[str, SourceLocation]) -> None:
    """Collect the signs among the fields that the schema did not know: ``path.name``, and ``path.name=value``."""
    for one in block.each_unknown():
        name = f"{path}.{one.name}"
        value = one.value.strip("\"'") if isinstance(one.value, str) else ""
        for sign in _SIGNS.intersection((name, f"{name}={value}")):
            names.setdefault(sign, one.where)
    for one in block.each():
        if isinstance(one.value, Block):
            unknown_names(one.value, "layer" if one.name in ("layer", "layers") else one.name, names)
