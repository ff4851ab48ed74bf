"""Layers of forks against their sources' formulas, written out in loops of numpy, and their gradients."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch
from fork_nets import CENTERS, FILL, IMAGES, NETS, ROWS, feed, inputs
from nets import layer, messages, recipe_of
from torch import Tensor, nn

from caffe2torch import build_model
from caffe2torch.models import fork_losses as losses
from caffe2torch.models.fork_layers import (
    DenseBlock,
    InnerDistance,
    Lstm,
    MarginInnerProduct,
    SegAccuracy,
    label_sequence_accuracy,
)
from caffe2torch.models.functions import accuracy, min_pool
from caffe2torch.models.layers import LSTM
from caffe2torch.models.meanfield import MultiStageMeanfield, lattice_filter, permutohedral_lattice

Array = npt.NDArray[np.float64]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Random numbers that want a gradient."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def gradient(value: Tensor, *of: Tensor) -> list[Array]:
    return [one.numpy() for one in torch.autograd.grad(value, of)]


def close(found: Tensor | Array, wanted: Array | float | Sequence[object]) -> None:
    found = found.detach().numpy() if isinstance(found, Tensor) else found
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)


def filled(module: nn.Module) -> nn.Module:
    """The module in float64, its parameters random."""
    generator = torch.Generator().manual_seed(1)
    module = module.double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, generator=generator)
    return module


SMOOTH: dict[str, Callable[[], tuple[Callable[..., Tensor], tuple[Tensor, ...]]]] = {
    "xcov": lambda: (losses.xcov_loss, (numbers(5, 3), numbers(5, 2, seed=1))),
    "svr": lambda: (lambda a: losses.svr_loss(a, torch.ones(4, 3)), (numbers(4, 3),)),
    "triplet": lambda: (losses.triplet_loss, tuple(numbers(4, 3, seed=i) for i in range(3))),
    "triplet sets": lambda: (lambda x: losses.triplet_sets_loss(x, x, 2.0, 2), (numbers(8, 3),)),
    "lifted struct": lambda: (
        lambda x: losses.lifted_struct_loss(x, torch.tensor([0, 1, 0, 2, 1, 0]), 1.0),
        (numbers(6, 3),),
    ),
    "ctc": lambda: (lambda x: losses.ctc_loss(x, torch.tensor([[0, 1], [1, 2]]), 4, 2), (numbers(4, 2, 3),)),
    "inner distance L2": lambda: (InnerDistance(), (numbers(4, 3), numbers(2, 3, seed=1))),
    "inner distance L1": lambda: (InnerDistance(distance_type="L1"), (numbers(4, 3), numbers(2, 3, seed=1))),
    "lstm": lambda: (filled(Lstm(3, 2, 2)), (numbers(6, 3),)),
    "dense block": lambda: (filled(DenseBlock(2, 3, 2, True)).eval(), (numbers(1, 3, 3, 3),)),
    "meanfield": lambda: (
        lambda u: filled(MultiStageMeanfield(2, 2, 2.0, 0.5, 1.5))(u, u, numbers(1, 3, 3, 4).detach()),
        (numbers(1, 2, 3, 4, seed=2),),
    ),
}
"""Layers whose gradient in Caffe is the derivative."""


@pytest.mark.parametrize("name", SMOOTH)
def test_a_gradient_is_the_derivative(name: str) -> None:
    function, arguments = SMOOTH[name]()
    assert torch.autograd.gradcheck(function, arguments)


def test_svr_sums_absolute_differences_over_the_batch() -> None:
    a, b = numbers(4, 3), numbers(4, 3, seed=1)
    close(losses.svr_loss(a, b), np.abs((a - b).detach().numpy()).sum() / 4)
    assert torch.autograd.grad(losses.svr_loss(a, b), b, allow_unused=True) == (None,)


def test_xcov_is_half_the_squared_cross_covariances() -> None:
    a, b = numbers(5, 3), numbers(5, 2, seed=1)
    covariances = np.cov(a.detach().numpy(), b.detach().numpy(), rowvar=False, bias=True)[:3, 3:]
    close(losses.xcov_loss(a, b), (covariances**2).sum() / 2)


def test_triplet_losses_count_what_negatives_lack_to_the_margin() -> None:
    x = numbers(8, 3).detach()
    anchor, positive, first, second = (x[i::4].numpy() for i in range(4))

    def lacks(negative: Array, margin: float) -> Array:
        near, far = ((anchor - positive) ** 2).sum(1), ((anchor - negative) ** 2).sum(1)
        return np.maximum(near - far + margin, 0)

    close(losses.triplet_loss(x[0::4], x[1::4], x[2::4], 0.7), lacks(first, 0.7).mean())
    whole = ((anchor - positive) ** 2).sum() + lacks(first, 2).sum() + lacks(second, 2).sum()
    close(losses.triplet_sets_loss(x, x, 2.0, 2), whole / (2 * 2))


def test_total_variation_falls_where_neighbours_are_equal() -> None:
    a = torch.tensor([[[[1.0, 1.0], [3.0, 0.0]]]], dtype=torch.float64, requires_grad=True)
    loss = losses.euclidean_loss_with_tv(a, torch.zeros(1, 1, 2, 2), 0.5)
    close(loss, (1 + 1 + 9) / 2 + 0.5 * ((2 + 1) + (0 + 3)))
    # a row's step is upper less lower: -2 and 1; a column's right less left: 0, which counts as falling, and -3
    steps = np.array([[[[-1 + 1, 1 - 1], [1 + 1, -1 - 1]]]])
    close(gradient(loss, a)[0], a.detach().numpy() + 0.5 * steps)


def test_lifted_struct_takes_the_soft_maximum_over_both_ends_of_a_pair() -> None:
    x, labels = numbers(6, 3), [0, 1, 0, 2, 1, 0]
    points = x.detach().numpy()
    distance = np.sqrt(((points[:, None] - points) ** 2).sum(2))
    costs = []
    for i, j in itertools.combinations(range(6), 2):
        if labels[i] == labels[j]:
            terms = [math.exp(1.5 - distance[end, k]) for end in (i, j) for k in range(6) if labels[k] != labels[end]]
            costs.append(max(math.log(sum(terms)) + distance[i, j], 0) ** 2)
    close(losses.lifted_struct_loss(x, torch.tensor(labels), 1.5), sum(costs) / (2 * len(costs)))


def test_ctc_sums_over_all_paths_that_read_the_labels() -> None:
    scores, labels, blank = numbers(4, 2, 3), [[0, 2, 1], [1, 2, 2]], 2
    p = scores.softmax(2).detach().numpy()
    costs = []
    for n, wanted in enumerate([label for label in row if label != blank] for row in labels):
        paths = itertools.product(range(3), repeat=4)
        reads = [path for path in paths if [k for k, _ in itertools.groupby(path) if k != blank] == wanted]
        costs.append(-math.log(sum(math.prod(p[t, n, k] for t, k in enumerate(path)) for path in reads)))
    close(losses.ctc_loss(scores, torch.tensor(labels), 4, blank), sum(costs) / 2)


def test_ctc_of_labels_that_do_not_fit_the_times_costs_nothing() -> None:
    scores = numbers(2, 1, 3)
    loss = losses.ctc_loss(scores, torch.tensor([[0, 0]]), 2, 2)  # a repetition needs a blank between
    close(loss, 0.0)
    close(gradient(loss, scores)[0], np.zeros((2, 1, 3)))


def test_general_contrastive_gives_no_gradient_beyond_the_threshold() -> None:
    d = torch.tensor([[0.5, 0.2, 9.0], [1.0, 5.0, 0.4]], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1])
    loss, means = losses.general_contrastive_loss(d, labels, 0.1, 1.5, 2.0, 0.5, 3.0)
    near = [1.5 - 0.2, 1.5 - 1.0, 1.5 - 0.4]
    close(loss, (2 * ((0.5 - 0.1) + 3.0) + 0.5 * sum(near)) / 2)
    close(means, [(0.4 + 3.0) / 2, sum(near) / 2 / 2])
    close(gradient(loss, d)[0], np.array([[2, -0.5, 0], [-0.5, 0, -0.5]]) / 2)
    assert not means.requires_grad


def test_a_second_top_of_a_fork_loss_counts_in_the_loss_and_not_in_the_gradient() -> None:
    model = build_model(recipe_of(NETS["GeneralContrastiveLoss"]), generator=torch.Generator().manual_seed(0))
    blobs = model.blobs(**feed(model))
    torch.testing.assert_close(model.loss(**feed(model)), blobs["loss"] + blobs["means"].sum())
    found = torch.autograd.grad(model.loss(**feed(model)), list(model.parameters()))
    assert torch.equal(found[0], torch.autograd.grad(blobs["loss"], list(model.parameters()))[0])


@pytest.mark.parametrize("weight", [0.01, 1])
def test_a_center_moves_by_its_class_whatever_the_loss_weighs(weight: float) -> None:
    net = ROWS + layer(
        "CenterLoss", "loss", "data label", "", f"loss_weight: {weight} center_loss_param {{ {CENTERS} }}"
    )
    model = build_model(recipe_of(net), generator=torch.Generator().manual_seed(0)).double()
    x, labels = numbers(6, 4), torch.tensor([0, 2, 0, 0, 2, 2])  # none of class 1
    centers, points = model.loss_.centers, x.detach().numpy()
    loss = model.loss(x, labels)
    away = points - centers.detach().numpy()[labels]
    close(loss, weight * (away**2).sum() / (2 * 6))
    moved, pulled = gradient(loss, centers, x)
    close(moved, [-away[labels == one].sum(0) / (int((labels == one).sum()) + 1) for one in range(3)])
    close(pulled, weight * away / 6)


def test_inner_distance_is_to_a_blob_or_to_the_second_bottom() -> None:
    x, centers = numbers(4, 3), numbers(2, 3, seed=1)
    difference = (x.unsqueeze(1) - centers).detach().numpy()
    close(InnerDistance()(x, centers), (difference**2).sum(2))
    close(InnerDistance(distance_type="L1")(x, centers), np.abs(difference).sum(2))
    net = ROWS + layer("InnerDistance", "d", "data", "", f"inner_distance_param {{ {CENTERS} }}")
    model = build_model(recipe_of(net), generator=torch.Generator().manual_seed(0)).double()
    assert model.binding is not None
    assert torch.equal(model(numbers(6, 4)), InnerDistance()(numbers(6, 4), model.d.centers))


def margin_by_hand(kind: int, w: Array, x: Array, labels: Sequence[int], weigh: float, top: Array) -> list[Array]:
    """Scores and gradients of ``margin_inner_product_layer.cpp``."""
    w = w / np.linalg.norm(w, axis=1, keepdims=True)
    scores, into_x = x @ w.T, top @ w
    for i, label in enumerate(labels):
        length = np.linalg.norm(x[i])
        c = scores[i, label] / length
        s0 = np.sign(c)
        if kind == 2:
            psi, of_w, of_x = 2 * s0 * c**2 - 1, 4 * s0 * c, 2 * s0 * c**2 + 1
        elif kind == 3:
            s1 = np.sign(abs(c) - 0.5)
            s2 = s0 * (1 + s1) - 2
            psi, of_w, of_x = s1 * (4 * c**3 - 3 * c) + s2, s1 * (12 * c**2 - 3), 8 * s1 * c**3 - s2
        else:
            s3 = s0 * np.sign(2 * c**2 - 1)
            s4 = 2 * s0 + s3 - 3
            psi = s3 * (8 * c**4 - 8 * c**2 + 1) + s4
            of_w, of_x = s3 * (32 * c**3 - 16 * c), s3 * (24 * c**4 - 8 * c**2 - 1) - s4
        of_x = -of_x / length
        size = math.hypot(of_w, of_x)
        own = (of_w * w[label] + of_x * x[i]) / size
        into_x[i] += top[i, label] * (own - w[label]) / (1 + weigh)
        scores[i, label] = (length * psi + weigh * scores[i, label]) / (1 + weigh)
    return [scores, into_x, top.T @ x, w]


@pytest.mark.parametrize("kind", [2, 3, 4])
def test_an_angular_margin_has_the_scores_and_gradients_of_its_fork(kind: int) -> None:
    module = filled(MarginInnerProduct(3, 4, kind, base=5.0, gamma=1.0, power=2.0, lambda_min=0.3))
    x, top, labels = numbers(40, 3), numbers(40, 4, seed=3), [i % 4 for i in range(40)]
    before = module.weight.detach().numpy().copy()
    for weigh in (5 / 4, 5 / 9, 5 / 16, 0.3):  # (1 + gamma * iteration) ** -2 times the base, and its least
        scores, weighs = module(x, torch.tensor(labels))
        close(weighs, [weigh])
        of_x, of_w = gradient((scores * top).sum(), x, module.weight)
        for found, wanted in zip(
            (scores, of_x, of_w, module.weight),
            margin_by_hand(kind, before, x.detach().numpy(), labels, weigh, top.detach().numpy()),
            strict=True,
        ):
            close(found, wanted)
    module.eval()
    assert float(module(x, torch.tensor(labels))[1]) == 0.3
    assert module.iteration == 4


def test_an_angular_margin_of_one_is_a_product_with_rows_of_length_one() -> None:
    module = filled(MarginInnerProduct(3, 4))
    x = numbers(5, 3)
    close(module(x, torch.zeros(5))[0], x.detach().numpy() @ module.weight.detach().numpy().T)
    close(module.weight.norm(dim=1), np.ones(4))


def lstm_by_hand(module: Lstm, clip: Array, x: Array, top: Array) -> tuple[Array, Array]:
    """Hidden states and the gradient of ``lstm_layer.cu`` at the inputs."""
    sizes = module.batch_size, module.hidden
    w, u, b = (one.detach().numpy() for one in (module.input_weight, module.hidden_weight, module.bias))
    steps, kept = len(clip), []
    h, c = np.zeros(sizes), np.zeros(sizes)
    for t in range(steps):
        on = clip[t][:, None]
        i, f, o, g = np.split(x[t] @ w.T + b + on * (h @ u.T), 4, axis=1)
        i, f, o, g = 1 / (1 + np.exp(-i)), 1 / (1 + np.exp(-f)), 1 / (1 + np.exp(-o)), np.tanh(g)
        before, c = c, on * f * c + i * g
        h = o * np.tanh(c)
        kept.append((i, f, o, g, before, c, h))
    dh, dc, into = np.zeros(sizes), np.zeros(sizes), np.zeros_like(x)
    for t in reversed(range(steps)):
        i, f, o, g, before, c, _ = kept[t]
        on, dh = clip[t][:, None], dh + top[t]
        dc = dc + dh * o * (1 - np.tanh(c) ** 2)
        gates = [
            dc * g * i * (1 - i),
            on * dc * before * f * (1 - f),
            dh * np.tanh(c) * o * (1 - o),
            dc * i * (1 - g**2),
        ]
        gate = np.clip(np.concatenate(gates, 1), -module.clipping_threshold, module.clipping_threshold)
        into[t], dh, dc = gate @ w, on * (gate @ u), on * dc * f
    return np.stack([one[-1] for one in kept]), into


def test_junhyukohs_lstm_keeps_the_gradients_of_its_gates_within_a_bound() -> None:
    module = filled(Lstm(3, 2, batch_size=2, clipping_threshold=0.05))
    x, top = numbers(8, 3), numbers(8, 2, seed=4)
    clip = torch.tensor([0, 0, 1, 1, 1, 0, 1, 1.0])
    hidden = module(x, clip)
    by_time = (one.detach().numpy().reshape(4, 2, -1) for one in (x, top))
    states, into = lstm_by_hand(module, clip.numpy().reshape(4, 2), *by_time)
    close(hidden, states.reshape(8, 2))
    close(gradient((hidden * top).sum(), x)[0], into.reshape(8, 3))


def test_junhyukohs_lstm_begins_anew_without_indicators_and_goes_on_with_them() -> None:
    module, bvlc = filled(Lstm(3, 2, batch_size=2)), filled(LSTM(3, 2))
    bvlc.load_state_dict(module.state_dict())
    x = numbers(6, 3)
    cont = torch.tensor([[0.0, 0], [1, 1], [1, 1]])
    for indicators, clip in ((cont, None), (cont, None), (torch.ones(3, 2), torch.ones(6, 1))):
        wanted = bvlc(x.reshape(3, 2, 3), indicators)
        close(module(x, clip), wanted.detach().numpy().reshape(6, 2))


def test_an_lstm_takes_its_second_bottom_for_the_indicators_and_looks_at_no_third() -> None:
    net = inputs(data="6 4", other="6", clip="6")
    recipe = recipe_of(net, layer("Lstm", "l", "data other clip", "", f"lstm_param {{ num_output: 2 {FILL} }}"))
    model = build_model(recipe, generator=torch.Generator().manual_seed(0)).double()
    x, clip = numbers(6, 4), torch.tensor([0.0, 1, 1, 0, 1, 1])
    assert torch.equal(model(x, clip, torch.zeros(6)), model(x, clip, torch.ones(6)))
    assert not torch.equal(model(x, clip, clip), model(x, torch.ones(6), clip))
    assert "its second bottom, 'other', is taken for the indicators" in messages(recipe.notes)


def test_a_dense_block_convolves_with_turned_filters_and_keeps_its_input() -> None:
    module = filled(DenseBlock(1, 1, 1)).eval()
    module.scale_1.data.fill_(1), module.shift_2.data.zero_()
    x = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    x[0, 0, 2, 2] = 1
    y = module(x)
    assert torch.equal(y[:, :1], x)
    close(y[0, 1, 1:4, 1:4], module.weight_0.detach().numpy()[0, 0] / math.sqrt(1 + 1e-5))


def test_a_dense_blocks_blobs_are_held_in_caffes_order_and_learn_as_the_fork_says() -> None:
    model = build_model(recipe_of(NETS["DenseBlock"]), generator=torch.Generator().manual_seed(0))
    assert model.binding is not None
    held = [bound.name for bound in model.binding.blobs if bound.blob.layer == "d"]
    roles = ("weight", "scale", "shift", "mean", "variance")
    assert held == [
        f"d.{role}_{10 * part + 2 * i + j}" for part in (0, 1) for i, role in enumerate(roles) for j in (0, 1)
    ] + ["d.factor"]
    data = feed(model)["data"]
    model(data)
    torch.testing.assert_close(model.d.mean_6.flatten(), 0.1 * data.mean((0, 2, 3)))
    torch.testing.assert_close(model.d.variance_8.flatten(), 0.9 + 0.1 * data.var((0, 2, 3)))
    assert model.d.weight_10.shape == (8, 3, 1, 1)
    assert not model.d.variance_8.requires_grad


def test_tongchengs_batch_norm_takes_its_fraction_of_the_batch() -> None:
    net = layer("BatchNorm", "b", "d", "b", "batch_norm_param { engine: CUDNN moving_average_fraction: 0.25 }")
    model = build_model(recipe_of(NETS["DenseBlock"].split('layer { name: "ip"')[0], net))
    y = model.blobs(**feed(model))["d"]
    torch.testing.assert_close(model.b.running_mean, 0.25 * y.detach().mean((0, 2, 3)))


def lattice_by_hand(features: Array, values: Array) -> Array:
    """``modified_permutohedral.cpp``, point by point and vertex by vertex."""
    count, d = features.shape
    scale = [math.sqrt(2 / 3) * (d + 1) / math.sqrt((i + 1) * (i + 2)) for i in range(d)]
    points: list[list[tuple[tuple[int, ...], float]]] = []
    for feature in features.tolist():
        elevated, total = [0.0] * (d + 1), 0.0
        for j in range(d, 0, -1):
            part = feature[j - 1] * scale[j - 1]
            elevated[j], total = total - j * part, total + part
        elevated[0] = total
        nearest = [round(e / (d + 1)) * (d + 1) for e in elevated]
        rest = [e - n for e, n in zip(elevated, nearest, strict=True)]
        rank = [sum(r > rest[i] or (r == rest[i] and j < i) for j, r in enumerate(rest)) for i in range(d + 1)]
        for i in range(d + 1):
            rank[i] += sum(nearest) // (d + 1)
        for i in range(d + 1):
            turn = (d + 1) * ((rank[i] < 0) - (rank[i] > d))
            rank[i], nearest[i] = rank[i] + turn, nearest[i] + turn
        weights = [0.0] * (d + 2)
        for i in range(d + 1):
            part = (elevated[i] - nearest[i]) / (d + 1)
            weights[d - rank[i]] += part
            weights[d - rank[i] + 1] -= part
        weights[0] += 1 + weights[d + 1]
        points.append(
            [(tuple(nearest[i] + r - (d + 1) * (rank[i] > d - r) for i in range(d)), weights[r]) for r in range(d + 1)]
        )
    cells: dict[tuple[int, ...], Array] = {}
    for point, value in zip(points, values.T, strict=True):
        for key, weight in point:
            cells[key] = cells.get(key, np.zeros(len(values))) + weight * value
    for axis in range(d + 1):
        steps = [d if k == axis else -1 for k in range(d)]
        zero = np.zeros(len(values))
        cells = {
            key: value
            + 0.5 * sum(cells.get(tuple(k + way * s for k, s in zip(key, steps, strict=True)), zero) for way in (1, -1))
            for key, value in cells.items()
        }
    found = [sum(weight * cells[key] for key, weight in point) for point in points]
    assert len(found) == count
    return np.array(found).T / (1 + 2.0**-d)


@pytest.mark.parametrize("axes", [2, 5])
def test_a_permutohedral_filter_is_that_of_crf_rnn(axes: int) -> None:
    features, values = 2 * numbers(60, axes).detach(), numbers(3, 60, seed=1).detach()
    found = lattice_filter(values, permutohedral_lattice(features))
    close(found, lattice_by_hand(features.numpy(), values.numpy()))


def test_mean_field_steps_pass_normalized_messages() -> None:
    module = filled(MultiStageMeanfield(2, 3, theta_alpha=4.0, theta_beta=0.5, theta_gamma=2.0))
    unary, start, image = numbers(2, 2, 3, 4), numbers(2, 2, 3, 4, seed=1), numbers(2, 3, 3, 4, seed=2)
    places = np.array([(x, y) for y in range(3) for x in range(4)], dtype=np.float32)
    w, v, c = (one.detach().numpy()[0, 0] for one in module.parameters())
    wanted = []
    for n in range(2):
        colours = image[n].detach().float().flatten(1).T.numpy() / 0.5
        both = [places / 2, np.concatenate([places / 4, colours], 1)]
        ones = [lattice_by_hand(one, np.ones((1, 12))) for one in both]
        own, state = unary[n].detach().numpy().reshape(2, 12), start[n].detach().numpy().reshape(2, 12)
        for _ in range(3):
            p = np.exp(state) / np.exp(state).sum(0)
            near, alike = (lattice_by_hand(one, p) / (norm + 1e-20) for one, norm in zip(both, ones, strict=True))
            state = own - c @ (w @ near + v @ alike)
        wanted.append(state.reshape(2, 3, 4))
    found = module(unary, start, image).detach().numpy()
    np.testing.assert_allclose(found, np.stack(wanted), rtol=1e-5, atol=1e-5)  # places are float32, as in Caffe


def test_an_exported_mean_field_step_makes_the_lattice_of_any_image() -> None:
    module = filled(MultiStageMeanfield(2, 2, theta_alpha=4.0, theta_beta=0.5, theta_gamma=2.0))
    unary, start = numbers(1, 2, 5, 6).detach(), numbers(1, 2, 5, 6, seed=1).detach()
    colours = 9 * numbers(1, 3, 5, 6, seed=2).detach()
    images = (torch.zeros_like(colours), colours)  # of few vertices, and of many
    exported = torch.export.export(module, (unary, start, images[0])).module()
    for image in images:
        close(exported(unary, start, image), module(unary, start, image).detach().numpy())


def test_the_least_numbers_of_windows() -> None:
    x = numbers(1, 1, 4, 5).detach()
    rows, columns = (slice(0, 3), slice(2, 4)), (slice(0, 3), slice(2, 5))
    y = min_pool(x, (3, 3), (2, 2))
    close(y, [[[[float(x[0, 0, r, c].min()) for c in columns] for r in rows]]])
    padded = layer("Pooling", "p", "data", "", "pooling_param { pool: MIN kernel_size: 3 pad: 1 }")
    with pytest.warns(UserWarning, match="MIN pooling"):
        build_model(recipe_of(IMAGES, padded))


def test_segmentation_accuracy_counts_pixels_by_class() -> None:
    scores = torch.tensor([[2.0, 1, 0, 0], [1, 1, 3, 0], [0, 0, 0, 0]]).reshape(1, 3, 2, 2)
    labels = torch.tensor([0, 0, 1, 255]).reshape(1, 1, 2, 2)  # found: 0, 1 (a tie: the later), 1, 2
    module = SegAccuracy((255,))
    torch.testing.assert_close(
        module(scores, labels).flatten(), torch.tensor([2 / 3, (1 / 2 + 1) / 2, (1 / 2 + 1 / 2 + 1) / 3])
    )
    kept = SegAccuracy(reset=False)
    kept(scores, labels)
    assert float(kept(scores, 2 - labels)[0, 0, 0, 0]) == pytest.approx((2 + 1) / 6)


def test_a_sequence_is_read_without_repetitions_and_blanks() -> None:
    reads = torch.tensor([[0, 0, 2, 0, 1], [1, 2, 2, 2, 0], [0, 1, 1, 0, 0]])
    labels = torch.tensor([[0, 2, 0, 1], [1, 0, 1, 2], [0, 1, 0, 2]])
    scores = torch.nn.functional.one_hot(reads, 3).float()
    assert float(label_sequence_accuracy(scores, labels, 2)) == pytest.approx(2 / 3)


def test_the_least_score_is_the_best_where_the_fork_says_so() -> None:
    scores, labels = torch.tensor([[1.0, 2, 3], [3, 1, 2]]), torch.tensor([0, 2])
    assert float(accuracy(scores, labels, min_is_better=True)) == 0.5
    assert float(accuracy(scores, labels)) == 0


def test_indicators_are_made_and_no_input() -> None:
    model = build_model(recipe_of(NETS["ContinuationIndicator"]))
    assert model.input_names == ("data",)
    assert model.blobs(**feed(model))["cont"].tolist() == [[0, 0], [1, 1], [1, 1]]


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (
            ROWS + layer("InnerDistance", "l", "data", "", f"inner_distance_param {{ {CENTERS} normalize: true }}"),
            "normalize",
        ),
        (
            ROWS
            + layer(
                "GeneralContrastiveLoss",
                "l",
                "data label",
                "l m",
                "general_contrastive_loss_param { add_intra_mae: true }",
            ),
            "add_intra_mae is not built",
        ),
        (ROWS + layer("TripletLoss", "l", "data label", "", "triplet_loss_param { losstype: 1 }"), "no public source"),
        (
            ROWS
            + layer(
                "MarginInnerProduct", "l", "data label", "", f"margin_inner_product_param {{ num_output: 3 {FILL} }}"
            ),
            "two tops",
        ),
    ],
)
def test_what_a_fork_can_and_this_cannot_is_refused_by_name(net: str, reason: str) -> None:
    with pytest.warns(UserWarning, match=reason):
        assert reason in build_model(recipe_of(net)).missing["l"]


def test_a_triplet_loss_says_whose_it_is_taken_for() -> None:
    assert "cherrm" in messages(recipe_of(NETS["TripletLoss"]).notes)


@pytest.mark.parametrize("kind", [kind for kind in NETS if "Loss" in kind or kind == "MarginInnerProduct"])
def test_a_net_with_a_forks_loss_trains(kind: str) -> None:
    """Every parameter gets a gradient, and no other number than by its way to the loss."""
    model = build_model(recipe_of(NETS[kind]), generator=torch.Generator().manual_seed(0))
    loss = model.loss(**feed(model))
    assert loss.isfinite()
    if loss.requires_grad:
        loss.backward()
        assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())
