"""What real Caffe made of layers and nets, and the built net's answer to the same weights and inputs."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from caffe2torch import build_model, read_recipe
from caffe2torch.models.build_net import CaffeNet
from caffe2torch.recipe import TrainingRecipe

Array = NDArray[Any]
Net = TypeVar("Net", bound=nn.Module)


def tensors(model: CaffeNet, held_by: nn.Module | None = None) -> list[Tensor]:
    """The tensor of every blob of the model's recipe, in its order: the model's, or those of its file's class."""
    owner = model if held_by is None else held_by
    named = {**dict(owner.named_parameters()), **dict(owner.named_buffers())}
    assert model.binding is not None
    return [named[str(bound.name)] for bound in model.binding.blobs]


def transposed(recipe: TrainingRecipe, number: int) -> bool:
    """Whether a blob is the weight of an InnerProduct that keeps inputs x outputs."""
    blob = recipe.blobs[number]
    layer = next(layer for layer in recipe.layers if layer.name == blob.layer)
    return blob.role == "weight" and bool(layer.settings.get("transpose"))


def load(model: CaffeNet, values: list[Array]) -> None:
    """Give the model the values of all blobs; Caffe's sums of statistics become statistics."""
    recipe = model.recipe
    factors = {blob.layer: values[i] for i, blob in enumerate(recipe.blobs) if blob.role == "factor"}
    with torch.no_grad():
        for number, (blob, tensor) in enumerate(zip(recipe.blobs, tensors(model), strict=True)):
            value = values[number].T if transposed(recipe, number) else values[number]
            if blob.role in ("mean", "variance"):
                factor = float(factors[blob.layer].item())
                value = value / factor if factor else 0 * value
            tensor.copy_(torch.from_numpy(np.ascontiguousarray(value)).reshape(tensor.shape))


def blob_values(model: CaffeNet) -> Iterator[Array]:
    """Every blob as Caffe holds it."""
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for number, (blob, tensor) in enumerate(zip(model.recipe.blobs, tensors(model), strict=True)):
        value = tensor.detach().numpy()
        if blob.role in ("mean", "variance"):
            name = next(name for name, other in held.items() if other is tensor)
            value = value * held[f"{name.rpartition('.')[0]}.factor"].item()
        yield value.T if transposed(model.recipe, number) else value


def apart(found: Array | Tensor, recorded: Array, largest: float | None = None) -> float:
    """The largest difference over the largest recorded value; infinite for another shape."""
    found = found.detach().numpy() if isinstance(found, Tensor) else found
    if found.shape != recorded.shape:
        return np.inf
    scale = np.abs(recorded).max(initial=0) if largest is None else largest
    return float(np.abs(found - recorded).max(initial=0) / max(scale, 1e-30))


# goldens/layers_bvlc: one layer, its outputs and gradients.


def layer_errors(case: Path) -> dict[str, float]:
    """How far every output, gradient and statistic of a recorded layer is off, in float64."""
    recorded = {name: array.astype("f8") for name, array in np.load(case / "io.npz").items()}
    phase = "TRAIN" if "train" in case.name else "TEST"
    model = build_model(read_recipe(case / "net.prototxt", phase=phase)).double().train(phase == "TRAIN")
    load(model, [recorded[f"param_{i}"] for i in range(len(model.recipe.blobs))])
    inputs = {
        name[7:]: torch.from_numpy(array).requires_grad_()
        for name, array in recorded.items()
        if name.startswith("bottom_") and not name.endswith("_second")
    }
    blobs = model.blobs(**inputs)
    if "dropout" in case.name:  # the mask is drawn anew: what is kept, and that the gradient is that of the mask
        return _dropout_errors(blobs["y"], inputs["x"], recorded)
    tops = {name: array for name, array in recorded.items() if name.startswith("top_") and not name.endswith("_second")}
    errors = {name: apart(blobs[name[4:]], array) for name, array in tops.items()}
    seeds = {name[8:]: array for name, array in recorded.items() if name.startswith("topdiff_")}
    wanted = [
        (blobs[name] * torch.from_numpy(array)).sum() for name, array in seeds.items() if blobs[name].requires_grad
    ]
    if wanted:
        torch.stack(wanted).sum().backward()
        for name, array in recorded.items():
            if name.startswith("diff_"):
                errors[name] = apart(_gradient(inputs[name[5:]]), array)
        for number, tensor in enumerate(tensors(model)):
            if isinstance(tensor, nn.Parameter):
                gradient = _gradient(tensor)
                gradient = gradient.T if transposed(model.recipe, number) else gradient
                wanted_gradient = recorded[f"pdiff_{number}"]
                errors[f"pdiff_{number}"] = apart(gradient.reshape(wanted_gradient.shape), wanted_gradient)
    return {**errors, **_statistics(model, recorded)}


def _gradient(tensor: Tensor) -> Array:
    return np.zeros(tuple(tensor.shape)) if tensor.grad is None else tensor.grad.numpy()


def _statistics(model: CaffeNet, recorded: Mapping[str, Array]) -> dict[str, float]:
    """BatchNorm's sums after the first pass, and after a second one."""
    if "moving_after_1_mean" not in recorded:
        return {}
    errors = {}
    for count, suffix in ((1, ""), (2, "_second")):
        if suffix:
            top = model.blobs(x=torch.from_numpy(recorded["bottom_x_second"]))["y"]
            errors["top_y_second"] = apart(top, recorded["top_y_second"])
        for name, value in zip(("mean", "var", "factor"), blob_values(model), strict=True):
            errors[f"{name} after {count}"] = apart(value, recorded[f"moving_after_{count}_{name}"])
    return errors


def _dropout_errors(top: Tensor, bottom: Tensor, recorded: Mapping[str, Array]) -> dict[str, float]:
    (top * torch.from_numpy(recorded["topdiff_y"])).sum().backward()
    kept = top.detach().numpy() != 0
    there = recorded["top_y"] != 0
    factor = np.median(recorded["top_y"][there] / recorded["bottom_x"][there])
    assert abs(kept.mean() - there.mean()) < 0.1
    return {
        "top_y": apart(top, np.where(kept, recorded["bottom_x"] * factor, 0)),
        "diff_x": apart(_gradient(bottom), np.where(kept, recorded["topdiff_y"] * factor, 0)),
    }


# goldens/nets: whole nets with weights and inputs that anyone can make again (its README has these functions).


def weights(number: int, kind: str, shape: list[int], gain: float) -> Array:
    """Blob ``number`` of a recorded net, float32."""
    count = int(np.prod(shape))
    values = np.random.Generator(np.random.PCG64(1000 + number)).standard_normal(count, dtype=np.float32)
    match kind:
        case "weight":
            values *= np.float32(gain / np.sqrt(count / shape[0]))
        case "vector" | "bn_mean":
            values *= np.float32(0.1)
        case "scale":
            values = np.float32(1) + np.float32(0.1) * values
        case "prelu":
            values = np.float32(0.25) + np.float32(0.1) * values
        case "bn_var":
            values = np.float32(0.5) + np.abs(values)
        case "bn_factor":
            values = np.ones(count, np.float32)
    return values.reshape(shape)


def input_values(spec: Mapping[str, Any]) -> Array:
    """An input of a recorded net, float32; ``spec`` is its entry in ``meta.json``."""
    count = int(np.prod(spec["shape"]))
    generator = np.random.Generator(np.random.PCG64(spec["seed"]))
    if spec["fill"] == "normal":
        values = generator.standard_normal(count, dtype=np.float32) * np.float32(spec["scale"])
    elif spec["fill"] == "uniform":
        values = generator.random(count, dtype=np.float32)
    else:
        values = generator.integers(spec["low"], spec["high"], count).astype(np.float32)
        if spec.get("ignore") is not None:
            values[3::7] = spec["ignore"]
    return values.reshape(spec["shape"])


def picked(array: Array) -> Array:
    """The 32 elements of a blob that are recorded."""
    return array.reshape(-1)[np.linspace(0, array.size - 1, 32).astype(np.int64)]


def built(folder: Path, dtype: torch.dtype = torch.float64) -> tuple[CaffeNet, dict[str, Any]]:
    """The net of a record with its weights, in its phase; and its ``meta.json``."""
    meta = json.loads((folder / "meta.json").read_text())
    recipe = read_recipe(folder / "run.prototxt", phase=meta["phase"], stages=meta["stages"] or ())
    model = build_model(recipe).to(dtype).train(meta["phase"] == "TRAIN")
    assert not model.missing
    load(model, [weights(i, e["kind"], e["shape"], meta["gain"]) for i, e in enumerate(meta["learnables"])])
    for module in model.modules():
        if isinstance(module, nn.Dropout) and "dropout ratio 0" in meta["variant"]:
            module.p = 0.0
    for tensor in tensors(model):
        if isinstance(tensor, nn.Parameter) and meta["force_backward"]:
            tensor.requires_grad_()
    return round_slopes(model), meta


def round_slopes(net: Net) -> Net:
    """The net with slopes as float32: so they reach Caffe's arithmetic, its float64 too."""
    for module in net.modules():
        if isinstance(module, nn.LeakyReLU):
            module.negative_slope = float(np.float32(module.negative_slope))
    return net


def net_errors(folder: Path, dtype: torch.dtype = torch.float64) -> dict[str, float]:
    """How far every blob, the loss, every gradient and every statistic of a recorded net is off Caffe's in float64."""
    model, meta = built(folder, dtype)
    recorded, inputs = np.load(folder / "rec.npz"), _inputs(meta, dtype)
    blobs = model.blobs(**inputs)
    assert {blob for blob, *_ in meta["tops"] if "_split_" not in blob} <= blobs.keys()
    errors = _blob_errors(blobs, recorded, meta)
    if meta["has_loss"]:
        loss = model.total_loss(blobs)
        errors["loss"] = apart(loss.reshape(1), recorded["loss_64"])
        loss.backward()
    else:
        _seeded(blobs, meta).backward()
    errors.update(_gradient_errors(model, tensors(model), inputs, recorded, meta))
    after = dict(zip(recorded["bn_i"], recorded["bn_after_64"], strict=True)) if "bn_i" in recorded else {}
    for number, values in enumerate(blob_values(model)):
        if number in after:
            errors[f"statistic {model.recipe.blobs[number].name}"] = apart(picked(values), after[number])
    return errors


def file_errors(folder: Path, write: Callable[..., nn.Module]) -> dict[str, float]:
    """The same of the net's file: what it computes before the losses, the loss, every gradient.

    ``write`` gives the class of the file with the weights of a model.
    """
    model, meta = built(folder)
    recorded, inputs = np.load(folder / "rec.npz"), _inputs(meta, torch.float64)
    net, phase = round_slopes(write(model, loss=meta["has_loss"])), model._phase()
    if meta["force_backward"]:  # whose gradient Caffe never computes, labels, come without one
        for tensor, largest in zip(inputs.values(), recorded["in_absmax_64"], strict=True):
            tensor.requires_grad_(bool(largest > 0))
    found = (copy.deepcopy(net) if meta["has_loss"] else net)(*(inputs[name] for name, _ in phase.forward.inputs))
    blobs = found if isinstance(found, dict) else {phase.trace.names[phase.forward.results[0]]: found}
    errors = _blob_errors(blobs, recorded, meta)
    if meta["has_loss"]:
        loss = net.loss(*(inputs[name] for name, _ in phase.loss.inputs))
        errors["loss"] = apart(loss.reshape(1), recorded["loss_64"])
        loss.backward()
    else:
        _seeded(blobs, meta).backward()
    return {**errors, **_gradient_errors(model, tensors(model, net), inputs, recorded, meta)}


def _inputs(meta: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    return {
        spec["name"]: torch.from_numpy(input_values(spec)).to(dtype).requires_grad_(meta["force_backward"])
        for spec in meta["inputs"]
    }


def _blob_errors(
    blobs: Mapping[str, Tensor], recorded: Mapping[str, Array], meta: Mapping[str, Any]
) -> dict[str, float]:
    errors = {}
    for row, (blob, shape, *_) in enumerate(meta["tops"]):
        if blob in blobs:  # Caffe's own copies of a blob with several readers are not
            same = list(blobs[blob].shape) == shape
            values = picked(blobs[blob].detach().numpy())
            largest = float(recorded["top_absmax_64"][row])
            errors[f"blob {blob}"] = apart(values, recorded["top_vals_64"][row], largest) if same else np.inf
    return errors


def float32_noise(folder: Path) -> dict[str, float]:
    """How far Caffe's own float32 is off its float64, by the keys of ``net_errors``."""
    meta, recorded = json.loads((folder / "meta.json").read_text()), np.load(folder / "rec.npz")
    learnables = [f"gradient {one['layer']}/{one['blob']}" for one in meta["learnables"]]
    return {
        "loss": float(meta["noise"]["loss"]) if isinstance(meta["noise"], dict) and "loss" in meta["noise"] else 0.0,
        **dict(zip((f"blob {one[0]}" for one in meta["tops"]), map(float, recorded["top_noise"]), strict=True)),
        **dict(zip(learnables, map(float, recorded["grad_noise"]), strict=True)),
        **dict(zip((f"input {one['name']}" for one in meta["inputs"]), map(float, recorded["in_noise"]), strict=True)),
    }


def _seeded(blobs: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Tensor:
    """What to begin from in a net without a loss: its outputs were given random gradients."""
    terms = []
    for number, entry in enumerate(meta["seeded_outputs"]):
        blob = blobs[entry if isinstance(entry, str) else entry[0]]
        generator = np.random.Generator(np.random.PCG64(3 + 10 * number))
        seed = generator.standard_normal(blob.numel(), dtype=np.float32).reshape(tuple(blob.shape))
        terms.append((blob * torch.from_numpy(seed).to(blob.dtype)).sum())
    return torch.stack(terms).sum()


def _gradient_errors(
    model: CaffeNet,
    held: Sequence[Tensor],
    inputs: Mapping[str, Tensor],
    recorded: Mapping[str, Array],
    meta: Mapping[str, Any],
) -> dict[str, float]:
    errors = {}
    largest = float(recorded["grad_absmax_64"].max(initial=0))
    for number, tensor in enumerate(held):
        if isinstance(tensor, nn.Parameter):
            gradient = _gradient(tensor)
            gradient = gradient.T if transposed(model.recipe, number) else gradient
            own = float(recorded["grad_absmax_64"][number])
            own = own if own > 1e-9 * largest else 1e-6 * largest  # a gradient that is 0 in exact arithmetic
            errors[f"gradient {model.recipe.blobs[number].name}"] = apart(
                picked(gradient), recorded["grad_vals_64"][number], own
            )
    if meta["force_backward"]:
        for row, spec in enumerate(meta["inputs"]):
            own = float(recorded["in_absmax_64"][row])
            errors[f"input {spec['name']}"] = apart(
                picked(_gradient(inputs[spec["name"]])), recorded["in_vals_64"][row], own
            )
    return errors


# goldens/runs: 20 iterations of training.


def run_errors(case: Path) -> dict[str, float]:
    """How far the built net strays from a recorded run: blobs over their movement, the loss over itself."""
    from caffe2torch import translate

    trace = np.load(case / "trace.npz")
    recipe = read_recipe(case / "net.prototxt", case / "solver.prototxt")
    model = build_model(recipe)
    training = translate(recipe, model=model)
    weights_of = [trace[f"w_{blob.layer}_{blob.index}"] for blob in recipe.blobs]
    load(model, [values[0] for values in weights_of])
    inputs = [name[5:] for name in trace if name.startswith("data_")]
    passes = recipe.solver.iter_size if recipe.solver is not None else 1
    errors: dict[str, float] = {}
    for iteration, recorded_loss in enumerate(trace["loss"]):
        total = 0.0
        training.optimizer.zero_grad()
        for j in range(passes):
            batch = {name: torch.from_numpy(trace[f"data_{name}"][iteration, j]) for name in inputs}
            loss = model.loss(**batch)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item() / passes
        training.optimizer.step()
        training.scheduler.step()
        errors["loss"] = max(errors.get("loss", 0), abs(total / recorded_loss - 1))
        for blob, recorded, value in zip(recipe.blobs, weights_of, blob_values(model), strict=True):
            move = float(np.abs(recorded[-1] - recorded[0]).max())
            off = apart(value.reshape(recorded[0].shape), recorded[iteration + 1], move or 1.0)
            errors[blob.name] = max(errors.get(blob.name, 0), off)
    return errors
