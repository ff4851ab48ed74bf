"""The recipe: what a Caffe training set-up is, in frozen dataclasses that know neither protobuf nor torch.

Numbers that a prototxt states are float32 in Caffe. They stand here as the shortest decimal that reads back to
the same float32 (``0.1``, not ``0.10000000149011612``), so that they print, compare and serialise as a person
wrote them; whoever computes with them as Caffe does rounds them to float32 first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from caffe2torch.errors import SolverError, SourceLocation, visible

__all__ = [
    "Accumulation",
    "BlobUse",
    "Filler",
    "Layer",
    "LearnableBlob",
    "LrPolicy",
    "NetRecipe",
    "Note",
    "PolicyType",
    "Ramp",
    "Regularization",
    "Severity",
    "Shape",
    "SolverSettings",
    "SolverType",
    "Source",
    "SourceLocation",
    "Stated",
    "Statement",
    "TrainingRecipe",
    "Unsupported",
    "require_solver",
]

Shape = tuple[int | None, ...]
"""Sizes per axis; ``None`` where a size depends on an input that the file does not state. ``()`` is a scalar."""


class Severity(StrEnum):
    """How much a note matters: ``info`` explains, ``warning`` asks to be read."""

    INFO = "info"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Note:
    """Something a person should know that is no error: an assumption, an unknown field, a fork's rule."""

    where: SourceLocation | None
    severity: Severity
    message: str


class Statement(StrEnum):
    """How a multiplier came to its value."""

    EXPLICIT = "explicit"
    DEFAULTED = "defaulted"
    SHARED = "shared"  # taken from another layer that uses the same named parameter
    FORCED = "forced"  # Caffe overrides the file, as for BatchNorm's statistics


@dataclass(frozen=True, slots=True)
class Stated:
    """How each of the two multipliers of a blob was stated."""

    lr_mult: Statement
    decay_mult: Statement


@dataclass(frozen=True, slots=True)
class Filler:
    """How Caffe fills a blob before training (``filler.hpp``); absent values are Caffe's defaults.

    ``min``, ``max``, ``mean``, ``std``, ``value`` and ``sparse`` are as in caffe.proto's ``FillerParameter``;
    ``variance_norm`` is ``FAN_IN``, ``FAN_OUT`` or ``AVERAGE``.
    """

    type: str = "constant"
    value: float = 0.0
    min: float = 0.0
    max: float = 1.0
    mean: float = 0.0
    std: float = 1.0
    sparse: int = -1
    variance_norm: str = "FAN_IN"
    where: SourceLocation | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class BlobUse:
    """A further use of a shared blob: blob ``index`` of ``layer``, as that layer sees it.

    ``lr_mult`` is what this use states itself, ``None`` where it states none: Caffe backpropagates through each use
    by its own statement (1 where there is none), though one value in the end multiplies the rate of all.
    """

    layer: str
    layer_type: str
    index: int
    where: SourceLocation
    lr_mult: float | None = None


@dataclass(frozen=True, slots=True)
class LearnableBlob:
    """One learnable blob as Caffe's solver holds it (``net.cpp``, ``Net::AppendParam``).

    ``role`` is ``weight``, ``bias``, ``scale``, ``shift``, ``mean``, ``variance``, ``factor``, ``slope``, ... (the
    tables in ``net/bvlc_layers.py`` and ``net/fork_layers.py``). ``shape`` is Caffe's own; ``None`` when not even the
    number of axes is known. ``where`` is the ``param`` block that states the multipliers, or the layer where there is
    none.
    """

    layer: str
    layer_type: str
    index: int
    role: str
    shape: Shape | None
    lr_mult: float
    decay_mult: float
    stated: Stated
    where: SourceLocation
    shared_with: tuple[BlobUse, ...] = ()
    filler: Filler | None = None

    @property
    def name(self) -> str:
        """``LAYER/INDEX``, Caffe's own way to number a layer's blobs."""
        return f"{self.layer}/{self.index}"

    @property
    def has_gradient(self) -> bool:
        """Whether Caffe computes a gradient for it, which then counts when gradients are clipped.

        A blob that does not learn has one where a use of it leaves the lr_mult of 0 to another use to state.
        """
        unstated = self.stated.lr_mult is Statement.SHARED or any(use.lr_mult != 0 for use in self.shared_with)
        return self.lr_mult != 0 or unstated


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer that takes part in this phase, in the file's order and in today's spelling of its type.

    ``settings`` is the layer's own parameter message (``convolution_param``, ...) as plain Python: scalars, strings
    (enum values by name), tuples for repeated fields, nested mappings; schema defaults are filled in for scalars.
    ``top_shapes`` has one shape per top (``None``: unknown). ``blobs`` are this layer's blobs, as indices into
    ``NetRecipe.blobs`` (two layers that share a blob hold the same index). ``param_blocks`` counts the file's
    ``param`` blocks, and ``forks`` are the forks of Caffe that the net shows signs of: both decide how a layer whose
    type has several meanings is read.
    """

    name: str
    type: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    settings: Mapping[str, object]
    top_shapes: tuple[Shape | None, ...]
    blobs: tuple[int, ...]
    where: SourceLocation
    param_blocks: int = 0
    forks: tuple[str, ...] = ()


class SolverType(StrEnum):
    """The solvers of BVLC Caffe, by the name that Caffe's registry knows."""

    SGD = "SGD"
    NESTEROV = "Nesterov"
    ADAGRAD = "AdaGrad"
    RMSPROP = "RMSProp"
    ADADELTA = "AdaDelta"
    ADAM = "Adam"


class PolicyType(StrEnum):
    """The rate policies of BVLC Caffe, and its forks' ``multifixed`` and ``plateau``."""

    FIXED = "fixed"
    STEP = "step"
    EXP = "exp"
    INV = "inv"
    MULTISTEP = "multistep"
    POLY = "poly"
    SIGMOID = "sigmoid"
    MULTIFIXED = "multifixed"
    PLATEAU = "plateau"  # follows the loss: known by name so that it can be shown, and refused


class Accumulation(StrEnum):
    """What the training loop does with the gradients of ``iter_size`` passes before it calls ``step()``."""

    SUM = "sum"  # as Caffe: backward() adds them up, and the step divides
    MEAN = "mean"  # as Lightning, Accelerate and the HF Trainer: the step has nothing to divide


class Regularization(StrEnum):
    """What weight decay adds to a gradient: the weight (L2) or its sign (L1)."""

    L2 = "L2"
    L1 = "L1"


@dataclass(frozen=True, slots=True)
class LrPolicy:
    """What the global rate depends on; ``solver/lr_policy.py`` evaluates it.

    Absent values are Caffe's (0 for ``gamma``, ``power`` and ``base_lr``). The forks' rules are off when ``None``
    or empty: Intel's ``warmup_*`` and ``multifixed`` stages, NVIDIA's ``rampup_*`` and ``min_lr``.
    """

    type: PolicyType
    base_lr: float = 0.0
    gamma: float = 0.0
    power: float = 0.0
    stepsize: int = 0
    stepvalues: tuple[int, ...] = ()
    max_iter: int = 0
    stage_lrs: tuple[float, ...] = ()
    stage_iters: tuple[int, ...] = ()
    warmup_iter: int | None = None
    warmup_start_lr: float = 0.0
    rampup_interval: int | None = None
    rampup_lr: float = 0.0
    min_lr: float | None = None


@dataclass(frozen=True, slots=True)
class Ramp:
    """NVIDIA's polynomial change of momentum or weight decay: ``v + (maximum - v) * (i / max_iter) ** power``."""

    maximum: float
    power: float
    max_iter: int


@dataclass(frozen=True, slots=True)
class Unsupported:
    """A fork's rule that is not translated: ``name`` is what a user writes to accept going without it."""

    name: str
    where: SourceLocation
    reason: str


@dataclass(frozen=True, slots=True)
class SolverSettings:
    """A solver prototxt, read: every value as Caffe would use it, defaults filled in.

    ``clip_gradients`` is ``None`` when off (absent or negative); 0 zeroes every gradient, as in Caffe.
    ``momentum_ramp`` and ``weight_decay_ramp`` are NVIDIA's ``momentum_policy: "poly"`` and
    ``weight_decay_policy: "poly"``; ``momentum_from_rate`` is its ``"opt"`` with ``max_momentum``.
    ``unsupported`` lists what the file asks for and a translation must refuse unless its user accepts to go without.
    ``places`` says where each stated field of the file is.
    """

    type: SolverType
    policy: LrPolicy
    momentum: float = 0.0
    momentum2: float = 0.999
    weight_decay: float = 0.0
    regularization: Regularization = Regularization.L2
    delta: float = 1e-8
    rms_decay: float = 0.99
    clip_gradients: float | None = None
    iter_size: int = 1
    max_iter: int = 0
    force_backward: bool = False
    momentum_ramp: Ramp | None = None
    momentum_from_rate: float | None = None
    weight_decay_ramp: Ramp | None = None
    random_seed: int | None = None
    net: str | None = None
    unsupported: tuple[Unsupported, ...] = ()
    places: Mapping[str, SourceLocation] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Source:
    """The text of a file that the recipe was read from, for reports that show it."""

    file: str
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True, repr=False)
class NetRecipe:
    """A net alone: what is learned (``blobs``, in the order of ``.solverstate``), but not how.

    ``layers`` is the net of this phase, for tools that need its graph. ``phase``, ``stages``, ``level`` and ``inputs``
    are what it was read with.
    """

    net_name: str
    blobs: tuple[LearnableBlob, ...]
    solver: SolverSettings | None = field(default=None, init=False)
    notes: tuple[Note, ...] = ()
    layers: tuple[Layer, ...] = ()
    sources: tuple[Source, ...] = field(default=(), compare=False, repr=False)
    phase: str = "TRAIN"
    stages: tuple[str, ...] = ()
    level: int | None = None
    inputs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __repr__(self) -> str:
        solver = "no solver"
        if self.solver is not None:
            policy = self.solver.policy
            solver = f"{self.solver.type}, base_lr {policy.base_lr:g}, lr_policy {policy.type}"
        sizes = f"{len(self.blobs)} learnable blobs, {len(self.layers)} layers in {self.phase}"
        return visible(f"<{type(self).__name__} {self.net_name or 'without a name'}: {sizes}; {solver}>")


@dataclass(frozen=True, slots=True, repr=False)
class TrainingRecipe(NetRecipe):
    """A Caffe training set-up, whole: a net, and the solver that trains it (third, after ``blobs``)."""

    solver: SolverSettings


def require_solver(recipe: NetRecipe) -> TrainingRecipe:
    """The recipe, if it has a solver.

    Raises:
        SolverError: It is that of a net alone.
    """
    if isinstance(recipe, TrainingRecipe) and recipe.solver is not None:  # its user may have stated None
        return recipe
    raise SolverError(
        "no solver is given, and a net alone does not say how it is trained",
        hint="give the solver's prototxt beside the net's",
    )
