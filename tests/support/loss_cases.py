"""The recorded losses: a prototxt each, with the inputs, the loss and the gradients that Caffe computed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from caffe2torch import read_recipe
from caffe2torch.models.net_loss import LossTerm, loss_terms
from caffe2torch.net.loss_settings import is_loss
from caffe2torch.recipe import Layer, TrainingRecipe

TOLERANCE = 1e-6  # of the largest element


@dataclass(frozen=True)
class LossCase:
    recipe: TrainingRecipe
    arrays: dict[str, np.ndarray]

    @classmethod
    def read(cls, folder: Path) -> LossCase:
        with np.load(folder / "io.npz") as file:
            return cls(read_recipe(folder / "net.prototxt"), dict(file))

    @property
    def terms(self) -> tuple[LossTerm, ...]:
        return loss_terms(self.recipe)

    @property
    def matrix(self) -> Tensor | None:
        """What the ``source`` of an InfogainLoss held."""
        return torch.from_numpy(self.arrays["H_source"]) if "H_source" in self.arrays else None

    def blobs(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Every blob that the loss needs, by running the layers before it; and every tensor whose gradient is known.

        The second are by the name of the gradient's array. A blob that is changed in place has none: its array is
        the gradient of what stood there first.
        """
        values, known = {}, {}
        for name, array in self.arrays.items():
            if name.startswith("bottom_"):
                value = values[name.removeprefix("bottom_")] = torch.from_numpy(array.copy())
                if (diff := f"diff_{name.removeprefix('bottom_')}") in self.arrays:
                    known[diff] = value.requires_grad_()
            elif name.startswith("param_"):
                known[f"pdiff_{name.removeprefix('param_')}"] = torch.from_numpy(array.copy()).requires_grad_()
        for layer in self.recipe.layers:
            if is_loss(layer) or not layer.bottoms:
                continue
            values[layer.tops[0]] = value = self._forward(layer, values[layer.bottoms[0]], known)
            if layer.bottoms == layer.tops:
                known.pop(f"diff_{layer.tops[0]}")
            elif value.requires_grad:
                value.retain_grad()
                known[f"diff_{layer.tops[0]}"] = value
        return values, known

    @staticmethod
    def _forward(layer: Layer, x: Tensor, known: dict[str, Tensor]) -> Tensor:
        match layer.type:
            case "Scale":  # by 1, so that Caffe computes a gradient for its top; its own diffs hold products on the way
                known.pop(f"pdiff_{layer.name}_0")
                known.pop(f"diff_{layer.bottoms[0]}")
                return x * 1
            case "ReLU":
                return x.relu()
            case "InnerProduct":
                return functional.linear(x, *(known[f"pdiff_{layer.name}_{i}"] for i in (0, 1)))
            case "Reduction":
                operation, axis = layer.settings["operation"], layer.settings["axis"]
                value = {"ASUM": x.abs(), "SUMSQ": x.square()}.get(operation, x).flatten(axis)
                return layer.settings["coeff"] * (value.mean(axis) if operation == "MEAN" else value.sum(axis))
        raise NotImplementedError(layer.type)

    def errors(self, loss: Tensor, known: dict[str, Tensor]) -> dict[str, float]:
        """How far the loss and each gradient are from Caffe's, relative to the largest element."""
        loss.backward()
        shared = {"pdiff_ip_0": "pdiff_ip_p_0", "pdiff_ip_1": "pdiff_ip_p_1"}  # two layers of net_siamese, one blob
        gradients = {name: x.grad for name, x in known.items()}
        for first, second in shared.items():
            if second in gradients:
                gradients[first] = gradients[second] = gradients[first] + gradients[second]
        found = {"loss": (loss, self.arrays["loss"])}
        found |= {name: (gradient, self.arrays[name]) for name, gradient in gradients.items()}
        return {name: _error(ours.detach().numpy(), caffes) for name, (ours, caffes) in found.items()}


def _error(ours: np.ndarray, caffes: np.ndarray) -> float:
    assert ours.shape == caffes.shape
    largest = float(np.abs(caffes).max(initial=0))
    return float(np.abs(ours - caffes).max(initial=0)) / (largest or 1)
