"""Public nets build, run forward and backward, and their blobs have the shapes that reading said.

On the meta device, where full sizes cost nothing.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from places import REPOSITORY

from caffe2torch import build_model, read_recipe, translate
from caffe2torch.models.build_net import CaffeNet
from caffe2torch.net.data_tops import is_input
from caffe2torch.recipe import Shape

SHARED = REPOSITORY.parent / "shared"
CORPUS = SHARED / "corpus"
SOLVER = CORPUS / "pairs" / "bvlc-lenet-inv" / "solver.prototxt"
NETS = {path.parent.name: path for path in sorted(CORPUS.glob("pairs/*/net.prototxt"))}
NETS |= {path.stem: path for path in sorted(CORPUS.glob("large/*.prototxt")) if not path.stem.endswith("-template")}
QUICK = [name for name in NETS if name.startswith(("bvlc-cifar10", "bvlc-lenet", "bvlc-auto", "dqn", "fcn32s", "vdsr"))]

IMAGE, PIXELS = (2, 3, 224, 224), (2, 1, 224, 224)
INPUTS: dict[str, dict[str, tuple[int, ...]]] = {
    **{f"bvlc-autoencoder-{solver}": {"data": (2, 1, 28, 28)} for solver in ("adadelta", "adagrad", "nesterov", "sgd")},
    **{name: {"label": PIXELS} for name in ("fcn-alexnet-voc", "fcn8s-atonce-voc", "vdsr")},
    **{name: {"pair_data": (2, 2, 28, 28)} for name in ("bvlc-rc-siamese-v1", "bvlc-siamese-mnist")},
    **{name: {"data": (2, 3, 360, 480), "label": (2, 1, 360, 480)} for name in ("segnet", "segnet-basic-bayesian")},
    "colorization-fuse": {"label": (2, 2, 224, 224)},
    "deeplab-context-vgg128": {"label": (2, 1, 65, 65)},
    "digits-lenet-stages": {"scaled": (2, 1, 28, 28), "label": (2,)},
    "pr-crfasrnn-train": {"data": (1, 3, 24, 32), "label": (1, 1, 24, 32)},
    "pr-crnn-warpctc": {"data": (64, 3, 32, 128), "label": (64, 5)},
    "pr-iqa-momentum-ramp": {"data": (2, 1, 32, 32)},
    "pr-triplet-3d": {"data": (5, 3, 64, 64), "sim": (5,)},
    "pr-xcov-autoencoder": {"data": (2, 1, 28, 28)},
    "fcn32s-nyud-color-hha": {"color": IMAGE, "hha": IMAGE, "label": PIXELS},
    "inception-v3-dhruv-train": {"data": (2, 3, 299, 299)},
    "lrcn-activity-lstm-flow": {"data": (384, 3, 227, 227), "label": (384,), "clip_markers": (384,)},
    "posenet": {"label": (2, 7, 1, 1)},
    "yjxiong-c3d": {"data": (7, 48, 112, 112), "label": (7,)},
}
"""Sizes that a net does not state, where the usual ones do not fit it."""
STAGES = {"digits-lenet-stages": ("train",), "lrcn-coco-caffenet": ("2-layer", "factored")}
"""Stages of nets that are whole in a stage alone, where no record states them."""

ON_CPU = {"pr-crfasrnn-train", "pr-crnn-warpctc"}
"""Nets with layers that must see numbers."""

UNKNOWN = {
    *("Python", "PriorBox", "MultiBoxLoss", "ROIPooling", "PSROIPooling", "BoxAnnotatorOHEM"),  # Python and detection
    *("SmoothL1LossOHEM", "SoftmaxWithLossOHEM", "RegionLoss", "Yolov3", "YoloSeg", "DetectNetTransformation"),
    *("L1Loss", "MulticlassCrossEntropyLoss", "WeightedSoftmaxWithLoss"),  # in nets that have those
}
"""Types of which a net of the corpus has a layer that is not built."""


def sizes(name: str) -> tuple[tuple[str, ...], dict[str, tuple[int, ...]]]:
    """Stages and input shapes with which the net was run in Caffe, or those of the table."""
    stages, shapes = STAGES.get(name, ()), {}
    for record in sorted((SHARED / "goldens" / "nets").glob(f"{name}*.TRAIN/meta.json"))[:1]:
        meta = json.loads(record.read_text())
        stages, shapes = tuple(meta["stages"] or ()), {one["name"]: tuple(one["shape"]) for one in meta["inputs"]}
    return stages, {**shapes, **INPUTS.get(name, {})}


def usual(shape: Shape | None, first: bool) -> tuple[int, ...]:
    """A small batch of the stated shape, of images of the usual size where nothing is stated."""
    shape = ((None,) * 4 if first else (None,)) if shape is None else shape
    whole = IMAGE if len(shape) == 4 else (2,) * len(shape)
    found = [size or other for size, other in zip(shape, whole, strict=True)]
    return tuple([min(found[0], 2), *found[1:]] if found else found)


def built(name: str) -> tuple[CaffeNet, dict[str, tuple[int, ...]]]:
    stages, given = sizes(name)
    recipe = read_recipe(NETS[name], stages=stages)
    used = {blob for layer in recipe.layers for blob in layer.bottoms}
    used -= {top for layer in recipe.layers if not is_input(layer) for top in layer.tops}
    shapes = {blob: shape for blob, shape in given.items() if blob in used}
    for layer in recipe.layers:
        if is_input(layer):
            for i, (top, shape) in enumerate(zip(layer.tops, layer.top_shapes, strict=True)):
                shapes[top] = given.get(top) or usual(shape, i == 0)
    recipe = read_recipe(NETS[name], stages=stages, inputs=shapes)
    with torch.device("cpu" if name in ON_CPU else "meta"), warnings.catch_warnings(action="ignore"):
        return build_model(recipe), shapes


def fits(shape: tuple[int, ...], said: Shape) -> bool:
    """Whether a shape is what reading said, as far as it said something."""
    return len(shape) == len(said) and all(b in (None, a) for a, b in zip(shape, said, strict=True))


def check(name: str) -> None:
    model, shapes = built(name)
    if model.missing:
        assert {reason.split(",")[0] for reason in model.missing.values()} <= UNKNOWN
        translates(name)
    else:
        runs(model, shapes)


def translates(name: str) -> None:
    """A net that cannot be computed as a whole gets its optimizer all the same, unless its solver is refused."""
    solver = NETS[name].with_name("solver.prototxt")
    recipe = read_recipe(NETS[name], solver if solver.exists() else SOLVER, stages=sizes(name)[0])
    unsupported = () if recipe.solver is None else [one.name for one in recipe.solver.unsupported]
    t = translate(recipe, without=unsupported)
    assert t.report.ok
    assert [bound.blob for bound in t.binding.blobs] == list(recipe.blobs)


def runs(model: CaffeNet, shapes: dict[str, tuple[int, ...]]) -> None:
    """It runs forward and backward, and its blobs have the shapes that reading said."""
    device = next(model.parameters()).device
    inputs = {blob: torch.zeros(shapes.get(blob, IMAGE), device=device) for blob in model.input_names}
    blobs = model.blobs(**inputs)
    said = {
        top: shape
        for layer in model.recipe.layers
        for top, shape in zip(layer.tops, layer.top_shapes, strict=True)
        if shape is not None
    }
    shapes = {top: tuple(blobs[top].shape) for top in said}
    assert {top: shape for top, shape in shapes.items() if not fits(shape, said[top])} == {}
    forward = model(**{blob: inputs[blob] for blob, _ in model._phase().forward.inputs})
    found = list(forward.values()) if isinstance(forward, dict) else [forward]
    has_loss = bool(model._phase().trace.losses)
    (model.total_loss(blobs) if has_loss else torch.stack([one.sum() for one in found]).sum()).backward()
    assert any(parameter.grad is not None for parameter in model.parameters())


def without_numbers() -> list[str]:
    """Records that hold no measurement: nets to build and run."""
    folders = (path.parent for path in (SHARED / "goldens" / "nets").glob("*/run.prototxt"))
    return sorted(folder.name for folder in folders if not (folder / "rec.npz").exists())


@pytest.mark.shared
@pytest.mark.large
@pytest.mark.parametrize("name", without_numbers())
def test_a_record_without_numbers_builds_and_runs(shared: Path, name: str) -> None:
    net, phase = name.rsplit(".", 1)
    recipe = read_recipe(shared / "goldens" / "nets" / name / "run.prototxt", phase=phase, stages=STAGES.get(net, ()))
    with torch.device("meta"), warnings.catch_warnings(action="ignore"):
        model = build_model(recipe).train(phase == "TRAIN")
    shapes = {top: s for layer in recipe.layers for top, s in zip(layer.tops, layer.top_shapes, strict=True)}
    runs(model, {blob: tuple(size or 1 for size in shapes[blob] or ()) for blob in model.input_names})


@pytest.mark.shared
@pytest.mark.parametrize("name", QUICK)
def test_a_small_net_builds_and_runs(shared: Path, name: str) -> None:
    assert shared
    check(name)


@pytest.mark.shared
@pytest.mark.large
@pytest.mark.parametrize("name", [name for name in NETS if name not in QUICK])
def test_a_net_builds_and_runs(shared: Path, name: str) -> None:
    assert shared
    check(name)
