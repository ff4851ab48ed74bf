"""What a net asks of a training beside its optimizer, so that whoever ports it carries that over too.

Loss weights, class weights and ignored labels, normalization constants, data transforms, dropout: none of it is in a
learning rate. One note for each kind, at the first layer that has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from caffe2torch.errors import SourceLocation
from caffe2torch.net.layer_rules import nested
from caffe2torch.net.layer_types import LAYER_TYPES
from caffe2torch.net.loss_settings import is_loss
from caffe2torch.recipe import Layer, LearnableBlob, Note, Severity, SolverSettings
from caffe2torch.solver.float32 import format32
from caffe2torch.wording import listed

__all__ = [
    "Notes",
    "beyond_the_optimizer",
    "data_transforms",
    "of_an_update",
    "segnet_peculiarities",
    "without_gradient",
]

_SHOWN = 3
Detail = Callable[[Layer], str]


def beyond_the_optimizer(layers: Sequence[Layer], notes: Notes) -> None:
    """Add a note for each kind of thing that the optimizer does not cover."""
    for detail, sentence in _KINDS:
        found = [(layer, text) for layer in layers if (text := detail(layer))]
        if found:
            values = list(dict.fromkeys(text for _, text in found))
            count = f"{len(found)} layers" if len(found) > 1 else repr(found[0][0].name)
            notes.info(found[0][0].where, f"{sentence.format('; '.join(listed(values, _SHOWN)))} ({count})")


def _loss_weight(layer: Layer) -> str:
    weights = layer.settings.get("loss_weight", ())
    if not isinstance(weights, tuple) or all(weight == 1 for weight in weights):
        return ""
    return f"{layer.name or layer.type!r} x{' and x'.join(map(_number, weights))}"


def _loss_param(layer: Layer) -> str:
    if "loss_param" not in layer.settings:
        return ""
    return _stated(nested(layer.settings, "loss_param"), {"normalization": "VALID", "class_weighting": ()})


def _stated(settings: Mapping[str, object], neutral: Mapping[str, object]) -> str:
    """The settings that differ from what stating nothing would mean, in words."""
    parts = []
    for name, value in settings.items():
        if isinstance(value, Mapping) or value is False or value == neutral.get(name, ()):
            continue
        if isinstance(value, tuple) and len(value) > _SHOWN:
            parts.append(f"{name} of {len(value)} numbers")
        elif isinstance(value, tuple):
            parts.append(f"{name} {', '.join(map(_number, value))}")
        else:
            parts.append(name if value is True else f"{name} {_number(value)}")
    return ", ".join(parts)


def _number(value: object) -> str:
    return format32(value) if isinstance(value, float) else str(value)


def _batch_norm(layer: Layer) -> str:
    if layer.type != "BatchNorm":
        return ""
    settings = layer.settings
    constants = [f"{name} {_number(settings.get(name))}" for name in ("eps", "moving_average_fraction")]
    return ", ".join([*constants, *(["use_global_stats"] if settings.get("use_global_stats") is True else [])])


def _bn(layer: Layer) -> str:
    if layer.type != "BN":
        return ""
    if len(layer.blobs) == 2:
        return "eps 1e-09, the batch's own statistics, none kept"
    return (
        _stated({name: layer.settings[name] for name in ("eps", "momentum", "frozen") if name in layer.settings}, {})
        or "eps 1e-05"
    )


def _dropout(layer: Layer) -> str:
    return f"ratio {_number(layer.settings.get('dropout_ratio', 0.5))}" if layer.type == "Dropout" else ""


def _blocked(layer: Layer) -> str:
    wanted = layer.settings.get("propagate_down", ())
    if not isinstance(wanted, tuple) or all(wanted):
        return ""
    return f"{layer.name!r} to " + ", ".join(repr(b) for b, go in zip(layer.bottoms, wanted, strict=False) if not go)


_KINDS: Sequence[tuple[Detail, str]] = (
    (_loss_weight, "loss weights are not the optimizer's: the port's loss takes {}"),
    (_loss_param, "the loss itself has settings to carry over: {}"),
    (_batch_norm, "BatchNorm's constants belong to the model: {}; torch's momentum is 1 - moving_average_fraction"),
    (_bn, "BN's constants belong to the model: {}"),
    (_dropout, "dropout belongs to the model: {}"),
    (_blocked, "no gradient passes from {}: detach it in the port"),
)


def data_transforms(phases: Mapping[str, Iterable[Mapping[str, object]]]) -> str:
    """What the data layers do to an image (``data_transformer.cpp``), with torchvision's transforms that do the same.

    Args:
        phases: The settings of the layers that take part in each phase.

    Returns:
        One line; empty where no layer has a ``transform_param`` that changes something.

    >>> line = data_transforms({"TRAIN": [{"transform_param": {"scale": 0.5, "mirror": True}}]})
    >>> line.split(": ", 1)[1]
    'TRAIN scale 0.5, mirror (torchvision: Normalize([0], [2]), RandomHorizontalFlip())'
    """
    found: dict[str, list[str]] = {}
    for phase, layers in phases.items():
        for settings in layers:
            if text := _transform(nested(settings, "transform_param"), phase):
                found.setdefault(text, []).append(phase)
    if not found:
        return ""
    lines = [f"{' and '.join(dict.fromkeys(where))} {text}" for text, where in found.items()]
    return (
        "the data layer gives (x - mean) * scale of BGR images, 0 to 255, where torchvision's own weights expect RGB "
        f"in other units: {'; '.join(listed(lines, 2 * _SHOWN))}"
    )


_TRANSFORMS: Mapping[str, object] = {
    "scale": 1.0,
    "mirror": False,
    "crop_size": 0,
    "mean_file": "",
    "mean_value": (),
    "force_color": False,
    "force_gray": False,
}
"""The fields of BVLC's ``transform_param``, with what changes nothing; any other one is a fork's."""


def _transform(settings: Mapping[str, object], phase: str) -> str:
    stated = _stated(settings, _TRANSFORMS)
    if not stated:
        return ""
    means, scale, crop = (settings.get(name) for name in ("mean_value", "scale", "crop_size"))
    calls = []
    if settings.get("mean_file"):
        calls.append("subtract the image in mean_file")
    if means or scale not in (None, 1.0):
        mean = ", ".join(listed(means, 9, _number)) if isinstance(means, tuple) and means else "0"
        calls.append(f"Normalize([{mean}], [{_inverse(scale)}])")
    if crop:
        calls.append(f"RandomCrop({crop})" if phase == "TRAIN" else f"CenterCrop({crop}) with its offset rounded down")
    if settings.get("mirror"):
        calls.append("RandomHorizontalFlip()" + (", at random here, too" if phase == "TEST" else ""))
    parts = [f"torchvision: {', '.join(calls)}"] if calls else []
    if own := [name for name, value in settings.items() if name not in _TRANSFORMS and value not in (False, ())]:
        parts.append(f"a fork's own: {', '.join(own)}")
    return f"{stated} ({'; '.join(parts)})" if parts else stated


def _inverse(scale: object) -> str:
    if not isinstance(scale, float) or not scale:
        return "1"
    return _number(1 / scale) if (1 / scale).is_integer() else f"1 / {_number(scale)}"


def segnet_peculiarities(
    layers: Sequence[Layer], blobs: Sequence[LearnableBlob], solver: SolverSettings | None
) -> Iterator[Note]:
    """Where SegNet's Caffe trains otherwise than BVLC's, on a net that was written for it."""
    norms = [layer for layer in layers if layer.type == "BN" and len(layer.blobs) == 2]
    if norms and solver is not None and solver.iter_size > 1:
        yield Note(
            solver.places.get("iter_size"),
            Severity.WARNING,
            f"with iter_size {solver.iter_size}, BN in SegNet's Caffe keeps the gradient of the last micro-batch alone "
            "(a bug of that fork); here it is the sum of all of them, as everywhere else",
        )
    signs = norms or [layer for layer in layers if layer.type == "DenseImageData"]
    if signs and (shared := [blob for blob in blobs if blob.shared_with]):
        yield Note(
            shared[0].where,
            Severity.WARNING,
            f"SegNet's Caffe, for which {signs[0].name!r} was written, gives each use of a shared param its own "
            "gradient, history and multipliers, and sums the updates; here they are one, as in BVLC's",
        )


def of_an_update(layers: Sequence[Layer], solver: SolverSettings) -> Iterator[Note]:
    """How many samples one update sees."""
    for layer in layers:
        size = None if layer.bottoms else _batch_size(layer)
        if size is not None and solver.iter_size > 0:
            times = f" x iter_size {solver.iter_size}" if solver.iter_size > 1 else ""
            yield Note(
                solver.places.get("iter_size", layer.where),
                Severity.INFO,
                f"one update sees {size * solver.iter_size} samples (batch_size {size}{times}); 'caffe train' on "
                "several GPUs, as many times more",
            )
            return


def _batch_size(layer: Layer) -> int | None:
    messages = (layer.settings, *(value for value in layer.settings.values() if isinstance(value, Mapping)))
    sizes = (message.get("batch_size") for message in messages)
    return next((size for size in sizes if isinstance(size, int) and size > 0), None)


def without_gradient(layers: Sequence[Layer], blobs: Sequence[LearnableBlob], solver: SolverSettings) -> Iterator[Note]:
    """Blobs that learn by their multipliers and get no gradient: Caffe's update decays them all the same."""
    if not any(map(_is_loss, layers)):  # a net for deployment, or one whose loss is not known
        return
    reached: set[str] = set()  # blobs that a gradient comes back to (``net.cpp``, ``Net::Init``)
    trained: set[int] = set()
    for layer in reversed(layers):
        if _is_loss(layer) or not reached.isdisjoint(layer.tops):
            trained.update(layer.blobs)
            passes = layer.settings.get("propagate_down")
            open_to = passes if isinstance(passes, tuple) else ()
            reached.difference_update(layer.tops)
            reached.update(name for i, name in enumerate(layer.bottoms) if i >= len(open_to) or open_to[i] is not False)
    left = [
        blob
        for number, blob in enumerate(blobs)
        if number not in trained and blob.lr_mult and solver.weight_decay and blob.decay_mult
    ]
    if left:
        yield Note(
            left[0].where,
            Severity.WARNING,
            "no gradient reaches "
            + ", ".join(listed(left, _SHOWN, lambda blob: repr(blob.name)))
            + f" ({len(left)} blobs): Caffe decays them all the same, torch skips a parameter whose grad is None",
        )


def _is_loss(layer: Layer) -> bool:
    """Whether a layer adds to the loss: by its loss_weight, else by its type. An unknown type may."""
    weights = layer.settings.get("loss_weight")
    if isinstance(weights, tuple) and weights:
        return any(weights)
    return is_loss(layer) or (layer.type not in LAYER_TYPES and layer.type != "Python")


# Notes of one file: what holds for many layers in the same words becomes one note, at the first of them.


class Notes:
    """Collects notes; equal ones become one with a count."""

    def __init__(self) -> None:
        self._alike: dict[tuple[Severity, str], _Alike] = {}

    def info(self, where: SourceLocation | None, message: str) -> None:
        """Something to know."""
        self.add(Note(where, Severity.INFO, message))

    def warn(self, where: SourceLocation | None, message: str) -> None:
        """Something to read and decide about."""
        self.add(Note(where, Severity.WARNING, message))

    def add(self, note: Note) -> None:
        """A note that someone else made."""
        alike = self._alike.get((note.severity, note.message))
        if alike is None:
            self._alike[note.severity, note.message] = _Alike(note.where)
        elif note.where is not None:
            alike.count += 1
            if len(alike.lines) < _SHOWN:
                alike.lines.append(note.where.line)

    def finish(self) -> tuple[Note, ...]:
        """One note for each message, in the order in which they came first.

        >>> notes = Notes()
        >>> for line in (3, 9): notes.info(SourceLocation("n", line, 1), "so it is")
        >>> [(str(note.where), note.message) for note in notes.finish()]
        [('n:3:1', 'so it is (and 1 more like it, line 9)')]
        """
        return tuple(
            Note(alike.where, severity, message + alike.more()) for (severity, message), alike in self._alike.items()
        )


@dataclass(slots=True)
class _Alike:
    """The place of a note, how many more say the same, and the lines of the first of those."""

    where: SourceLocation | None
    count: int = 0
    lines: list[int] = field(default_factory=list)

    def more(self) -> str:
        if not self.count:
            return ""
        lines = ", ".join([*map(str, self.lines), *["..."] * (self.count > _SHOWN)])
        return f" (and {self.count} more like it, line{'s' * (self.count > 1)} {lines})"
