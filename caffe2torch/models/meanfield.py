"""CRF-RNN (Zheng et al., 2015): mean field steps whose messages are Gaussian filters over a permutohedral lattice."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - as all of torch's own documents write it
from torch import Tensor, nn

__all__ = ["MultiStageMeanfield", "lattice_filter", "permutohedral_lattice"]

Lattice = tuple[Tensor, Tensor, Tensor, Tensor, list[tuple[Tensor, Tensor]]]
"""Each point's vertices (P, d + 1) and their weights; the same pairs ordered by vertex, and where each vertex begins
among them; for each axis both neighbours of each vertex, from 1 on, 0 for none."""


class MultiStageMeanfield(nn.Module):
    """CRF-RNN's ``multi_stage_meanfield.cpp``, ``meanfield_iteration.cpp``: unary terms, a first state, RGB images."""

    def __init__(
        self, classes: int, num_iterations: int, theta_alpha: float, theta_beta: float, theta_gamma: float
    ) -> None:
        super().__init__()
        self.num_iterations = num_iterations
        self.theta_alpha, self.theta_beta, self.theta_gamma = theta_alpha, theta_beta, theta_gamma
        self.spatial_weight = nn.Parameter(torch.zeros(1, 1, classes, classes))
        self.bilateral_weight = nn.Parameter(torch.zeros(1, 1, classes, classes))
        self.compatibility = nn.Parameter(-torch.eye(classes).reshape(1, 1, classes, classes))

    def forward(self, unary: Tensor, state: Tensor, image: Tensor) -> Tensor:
        """``(N, C, H, W)``, the same, and ``(N, 3, H, W)`` to scores ``(N, C, H, W)``, before a softmax."""
        height, width = unary.shape[2:]
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        places = torch.stack([x, y], -1).reshape(-1, 2).to(image.device, torch.float32)
        colours = image.detach().float().flatten(2).movedim(1, 2) / self.theta_beta
        spatial = _normalized(permutohedral_lattice(places / self.theta_gamma), unary)
        bilateral = [
            _normalized(permutohedral_lattice(torch.cat([places / self.theta_alpha, colour], 1)), unary)
            for colour in colours
        ]
        for _ in range(self.num_iterations):
            p = state.softmax(1).flatten(2)
            near = torch.stack([lattice_filter(one, spatial[0]) * spatial[1] for one in p])
            alike = torch.stack(
                [lattice_filter(one, lattice) * norm for one, (lattice, norm) in zip(p, bilateral, strict=True)]
            )
            messages = self.spatial_weight[0, 0] @ near + self.bilateral_weight[0, 0] @ alike
            state = unary - (self.compatibility[0, 0] @ messages).reshape(unary.shape)
        return state


def _normalized(lattice: Lattice, like: Tensor) -> tuple[Lattice, Tensor]:
    """A lattice in the type of ``like``, and what its filter's values are multiplied with."""
    lattice = lattice[0], lattice[1].to(like.dtype), *lattice[2:]
    return lattice, 1 / (lattice_filter(like.new_ones(1, len(lattice[0])), lattice) + 1e-20)


def permutohedral_lattice(features: Tensor) -> Lattice:
    """``modified_permutohedral.cpp``, ``init``: the simplex in which each of the points ``(P, d)`` lies."""
    d = features.shape[1]
    axes = torch.arange(d + 1, device=features.device)
    scaled = features * ((axes[:d] + 2) * (axes[:d] + 1)).to(features.dtype).rsqrt() * ((2 / 3) ** 0.5 * (d + 1))
    sums = F.pad(scaled.flip(1).cumsum(1).flip(1), (0, 1))
    elevated = sums - axes * F.pad(scaled, (1, 0))
    # the nearest point of color 0, by rounding, and the order of what is left
    rounded = (elevated / (d + 1)).round()
    nearest, rest = rounded * (d + 1), elevated - rounded * (d + 1)
    rank = rest.argsort(dim=1, descending=True, stable=True).argsort(1) + rounded.sum(1, keepdim=True).long()
    turn = (d + 1) * ((rank < 0).long() - (rank > d).long())
    rank, nearest = rank + turn, nearest.long() + turn
    part = (elevated - nearest) / (d + 1)
    weights = (
        features.new_zeros(len(features), d + 2).scatter_add(1, d - rank, part).scatter_add(1, d + 1 - rank, -part)
    )
    weights = torch.cat([weights[:, :1] + 1 + weights[:, -1:], weights[:, 1:-1]], 1)
    canonical = axes.unsqueeze(1) - (d + 1) * (axes > d - axes.unsqueeze(1)).long()
    keys = nearest[:, None, :d] + canonical[:, rank[:, :d]].movedim(0, 1)
    # each key as one number, with room for neighbours
    low, high = keys.amin((0, 1)) - d - 1, keys.amax((0, 1)) + d + 1
    strides = F.pad((high - low + 1).cumprod(0)[:-1], (1, 0), value=1)
    codes, vertices = torch.unique(((keys - low) * strides).sum(2), return_inverse=True)
    shifts = (d + 1) * F.pad(strides, (0, 1)) - strides.sum()
    neighbours = [(_places(codes, codes + shift), _places(codes, codes - shift)) for shift in shifts]
    order = vertices.flatten().argsort(stable=True)
    starts = torch.searchsorted(vertices.flatten()[order], torch.arange(codes.shape[0], device=codes.device))
    return vertices, weights, order, starts, neighbours


def _places(codes: Tensor, wanted: Tensor) -> Tensor:
    """Where each of the wanted stands among sorted codes, from 1 on; 0 for what is not among them."""
    places = torch.searchsorted(codes, wanted).clamp_max(codes.shape[0] - 1)
    return torch.where(codes[places] == wanted, places + 1, 0)


def lattice_filter(values: Tensor, lattice: Lattice) -> Tensor:
    """``modified_permutohedral.cpp``, ``compute``: values ``(C, P)`` to the vertices, blurred by axis, and back."""
    vertices, weights, order, starts, neighbours = lattice
    points, by_vertex = order // vertices.shape[1], weights.flatten()[order]
    cells = F.embedding_bag(points, values.T.contiguous(), starts, mode="sum", per_sample_weights=by_vertex)
    for before, after in neighbours:
        padded = F.pad(cells, (0, 0, 1, 0))
        cells = cells + 0.5 * (F.embedding(before, padded) + F.embedding(after, padded))
    sliced = F.embedding_bag(vertices, cells, mode="sum", per_sample_weights=weights)
    return sliced.T / (1 + 2.0 ** -(vertices.shape[1] - 1))
