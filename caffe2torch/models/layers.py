"""Layers with blobs or a state whose arithmetic no stock module of torch has; each names its source file in Caffe.

Every class needs torch alone, so that an emitted ``model.py`` can hold its text. A forward pass takes the layer's
bottoms and gives its tops: one tensor, or a tuple where the layer has several.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - as all of torch's own documents write it
from torch import Tensor, nn


class InnerProduct(nn.Linear):
    """``inner_product_layer.cpp``: a linear map of all axes from ``axis`` on, taken as one."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, axis: int = 1) -> None:
        super().__init__(in_features, out_features, bias)
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        """``(N, ...)`` to ``(N, out_features)`` with the default axis."""
        return super().forward(x.flatten(self.axis))


class BatchNorm(nn.Module):
    """``batch_norm_layer.cpp``: no scale, no shift (NVIDIA's may have both); statistics that training passes add to.

    Caffe keeps sums and their ``factor``; ``running_mean`` and ``running_var`` here are the sums over the factor. The
    batch is normalized with its biased variance, the unbiased one is kept. ``use_global_stats`` ``None`` means: the
    kept statistics in ``eval()``, the batch's in ``train()``.
    """

    running_mean: Tensor
    running_var: Tensor
    factor: Tensor

    def __init__(
        self,
        channels: int,
        eps: float = 1e-5,
        fraction: float = 0.999,
        use_global_stats: bool | None = None,
        affine: bool = False,
    ) -> None:
        super().__init__()
        self.eps, self.fraction, self.use_global_stats = eps, fraction, use_global_stats
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.zeros(channels))
        self.register_buffer("factor", torch.zeros(1))

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """``(N, C, ...)`` to the same shape; ``scale`` and ``shift`` are those of a Scale layer that comes next."""
        scale, shift = self.weight if scale is None else scale, self.bias if shift is None else shift
        if not self.training if self.use_global_stats is None else self.use_global_stats:
            return F.batch_norm(x, self.running_mean, self.running_var, scale, shift, False, 0.0, self.eps)
        mean, var = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
        y = torch.batch_norm(x, scale, shift, mean, var, True, 1.0, self.eps, torch.backends.cudnn.enabled)
        if x.numel() == x.shape[1]:  # one value a channel: its unbiased variance is 0 over 0 in torch, 0 in Caffe
            var = torch.zeros_like(var)
        with torch.no_grad():
            self.factor.mul_(self.fraction).add_(1)
            self.running_mean.lerp_(mean, 1 / self.factor)
            self.running_var.lerp_(var, 1 / self.factor)
        return y


def spread(blob: Tensor | None, x: Tensor, axis: int) -> Tensor:
    """A blob that covers the axes of ``x`` from ``axis`` on, with axes of size 1 after it; a scalar as it is."""
    assert blob is not None
    return blob.reshape(blob.shape + (1,) * (x.dim() - axis % x.dim() - blob.dim())) if blob.dim() else blob


class FrozenBatchNorm(nn.BatchNorm2d):
    """``bn_layer.cpp`` of yjxiong's fork with ``frozen: true``: the kept statistics, in training too."""

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to the same shape."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


class Scale(nn.Module):
    """``scale_layer.cpp``: times a blob that covers the axes from ``axis`` on, plus one if it has a ``bias``.

    Without a ``shape`` the factor is the second bottom.
    """

    def __init__(self, shape: Sequence[int] | None, bias_shape: Sequence[int] | None = None, axis: int = 1) -> None:
        super().__init__()
        self.axis = axis
        self.weight = None if shape is None else nn.Parameter(torch.ones(tuple(shape)))
        self.bias = None if bias_shape is None else nn.Parameter(torch.zeros(tuple(bias_shape)))

    def forward(self, x: Tensor, factor: Tensor | None = None) -> Tensor:
        """Any shape to the same shape."""
        y = x * spread(self.weight if factor is None else factor, x, self.axis)
        return y if self.bias is None else y + spread(self.bias, x, self.axis)


class Bias(nn.Module):
    """``bias_layer.cpp``: plus a blob, or the second bottom, that covers the axes from ``axis`` on."""

    def __init__(self, shape: Sequence[int] | None, axis: int = 1) -> None:
        super().__init__()
        self.axis = axis
        self.bias = None if shape is None else nn.Parameter(torch.zeros(tuple(shape)))

    def forward(self, x: Tensor, term: Tensor | None = None) -> Tensor:
        """Any shape to the same shape."""
        return x + spread(self.bias if term is None else term, x, self.axis)


class Embed(nn.Module):
    """``embed_layer.cpp``: rows of a table, plus a bias; the indices may be numbers of any type."""

    def __init__(self, input_dim: int, num_output: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(input_dim, num_output))
        self.bias = nn.Parameter(torch.zeros(num_output)) if bias else None

    def forward(self, indices: Tensor) -> Tensor:
        """``(...)`` to ``(..., num_output)``."""
        rows = F.embedding(indices.long(), self.weight)
        return rows if self.bias is None else rows + self.bias


class Parameter(nn.Module):
    """``parameter_layer.hpp``: a top that is itself learned."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(tuple(shape)))

    def forward(self) -> Tensor:
        """The blob."""
        return self.weight


class Recurrent(nn.Module):
    """``recurrent_layer.cpp``: ``(T, N, ...)`` and the indicators ``cont`` ``(T, N)`` to ``(T, N, hidden)``.

    Where ``cont`` is 0 a sequence begins: what was before counts as 0. A batch begins with the state that the last one
    ended with, unless ``expose_hidden`` takes it from further bottoms and gives it as further tops.
    """

    gates, states = 1, 1

    def __init__(self, inputs: int, hidden: int, static: int | None = None, expose_hidden: bool = False) -> None:
        super().__init__()
        self.hidden, self.expose_hidden = hidden, expose_hidden
        wide = self.gates * hidden
        self.input_weight = nn.Parameter(torch.zeros(wide, inputs))
        self.bias = nn.Parameter(torch.zeros(wide))
        self.static_weight = None if static is None else nn.Parameter(torch.zeros(wide, static))
        self.hidden_weight = nn.Parameter(torch.zeros(wide, hidden))
        self.state: list[Tensor] = []

    def forward(self, x: Tensor, cont: Tensor, *more: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The hidden states, and with ``expose_hidden`` the last state, each ``(1, N, hidden)``."""
        terms = F.linear(x.flatten(2), self.input_weight, self.bias)
        if self.static_weight is not None:
            terms = terms + F.linear(more[0].flatten(1), self.static_weight)
        size = (x.shape[1], self.hidden)
        state = [terms.new_zeros(size)] * self.states
        if self.expose_hidden:
            state = [one.reshape(size) for one in more[-self.states :]]
        elif self.state and self.state[0].shape == size:
            state = [one.to(terms) for one in self.state]
        outputs = []
        for term, goes_on in zip(terms, cont.detach().to(terms.dtype).unsqueeze(2), strict=True):
            state = self.step(term + F.linear(state[0] * goes_on, self.hidden_weight), goes_on, state)
            outputs.append(state[0])
        y = self.output(torch.stack(outputs))
        if self.expose_hidden:
            return y, *(one.unsqueeze(0) for one in state)
        if not torch.compiler.is_compiling():
            self.state = [one.detach() for one in state]
        return y

    def step(self, gates: Tensor, goes_on: Tensor, state: list[Tensor]) -> list[Tensor]:
        """The state one time step later; the hidden state comes first."""
        raise NotImplementedError

    def output(self, hidden: Tensor) -> Tensor:
        """The top that the hidden states give."""
        return hidden


class LSTM(Recurrent):
    """``lstm_layer.cpp``, ``lstm_unit_layer.cpp``: gates in the order input, forget, output, candidate; one bias."""

    gates, states = 4, 2

    def step(self, gates: Tensor, goes_on: Tensor, state: list[Tensor]) -> list[Tensor]:
        """Hidden and cell state."""
        i, f, o, g = gates.chunk(4, dim=1)
        c = goes_on * f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        return [o.sigmoid() * c.tanh(), c]


class RNN(Recurrent):
    """``rnn_layer.cpp``: tanh on the hidden state and on the output."""

    def __init__(self, inputs: int, hidden: int, static: int | None = None, expose_hidden: bool = False) -> None:
        super().__init__(inputs, hidden, static, expose_hidden)
        self.output_weight = nn.Parameter(torch.zeros(hidden, hidden))
        self.output_bias = nn.Parameter(torch.zeros(hidden))

    def step(self, gates: Tensor, goes_on: Tensor, state: list[Tensor]) -> list[Tensor]:
        """The hidden state."""
        del goes_on, state
        return [gates.tanh()]

    def output(self, hidden: Tensor) -> Tensor:
        """A linear map and tanh."""
        return F.linear(hidden, self.output_weight, self.output_bias).tanh()


class Normalize(nn.Module):
    """SSD's ``normalize_layer.cpp`` (unit length, times a learned scale), or NormFace's (``shape`` ``None``)."""

    def __init__(self, shape: Sequence[int] | None = None, across_spatial: bool = False, eps: float = 1e-10) -> None:
        super().__init__()
        self.across_spatial, self.eps = across_spatial, eps
        self.weight = None if shape is None else nn.Parameter(torch.ones(tuple(shape)))

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, ...)`` to the same shape."""
        axes = tuple(range(1, x.dim())) if self.across_spatial else (1,)
        y = x / ((x * x).sum(axes, keepdim=True) + self.eps).sqrt()
        return y if self.weight is None else y * spread(self.weight, x, 1)


class StochasticPool(nn.Module):
    """``pooling_layer.cu``, ``STOCHASTIC``: sizes round up, there is no padding, and values are at least 0.

    In ``train()`` a value is drawn in proportion to itself, in ``eval()`` it is the mean weighed so.
    """

    def __init__(self, kernel_size: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__()
        self.kernel_size, self.stride = tuple(kernel_size), tuple(stride)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N, C, H', W')``."""
        if not self.training:
            square = F.avg_pool2d(x * x, self.kernel_size, self.stride, ceil_mode=True)
            return square / F.avg_pool2d(x, self.kernel_size, self.stride, ceil_mode=True).clamp_min(1e-30)
        sides = list(zip(x.shape[2:], self.kernel_size, self.stride, strict=True))
        sizes = [-(-(size - kernel) // stride) + 1 for size, kernel, stride in sides]
        more = [max(0, (n - 1) * stride + k - size) for n, (size, k, stride) in zip(sizes, sides, strict=True)]
        planes = F.pad(x, (0, more[1], 0, more[0])).flatten(0, 1).unsqueeze(1)
        windows = F.unfold(planes, self.kernel_size, stride=self.stride)
        sums = windows.detach().cumsum(1)
        below = sums < torch.rand_like(sums[:, -1:]) * sums[:, -1:]
        chosen = below.sum(1, keepdim=True).clamp_max(windows.shape[1] - 1)
        return windows.gather(1, chosen).reshape(*x.shape[:2], *sizes)
