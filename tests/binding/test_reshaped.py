"""Layers of another shape keep their multipliers and their place; what Caffe does not train may be missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from nets import IMAGE, conv, layer, linear, messages, names, norm, recipe_of
from torch import nn

from caffe2torch.binding.bind import bind
from caffe2torch.binding.plan import Evidence, Kind, Storage, plan_groups
from caffe2torch.errors import BindingError
from caffe2torch.snapshot.contents import Blobs
from caffe2torch.snapshot.files import LayerWeights, Weights
from caffe2torch.snapshot.fillers import initialize
from caffe2torch.snapshot.weights import load_weights

HEAD = "param { lr_mult: 10 decay_mult: 1 } param { lr_mult: 20 decay_mult: 0 }"
CLASSES = conv("one", "data", 4) + layer(
    "InnerProduct", "score", "one", "", 'inner_product_param { num_output: 101 weight_filler { type: "xavier" } }', HEAD
)


def port(classes: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, classes))


def test_a_model_with_other_classes_is_told_so_at_the_layer_with_the_option_to_use() -> None:
    with pytest.raises(BindingError) as caught:
        bind(recipe_of(IMAGE, CLASSES), port(10))
    message = str(caught.value)
    assert message.startswith("net.prototxt:3:")
    assert "layer 'score' has 101 outputs in Caffe, 10 in the model" in message
    assert "--reshaped 'score'" in message
    assert "skip" not in message


def test_a_reshaped_head_keeps_its_own_multipliers_and_its_place() -> None:
    recipe = recipe_of(IMAGE, CLASSES)
    binding = bind(recipe, port(10), reshaped=["sco.*"])
    assert names(binding) == {"one/0": "0.weight", "one/1": "0.bias", "score/0": "3.weight", "score/1": "3.bias"}
    assert [bound.storage for bound in binding.blobs] == [Storage.USUAL] * 2 + [Storage.OTHER] * 2
    groups = {(group.lr_mult, group.decay_mult): group.members for group in plan_groups(recipe, binding)}
    assert [member.parameter for member in groups[10.0, 1.0]] == ["3.weight"]
    assert [member.parameter for member in groups[20.0, 0.0]] == ["3.bias"]
    assert "score/0: 101x256 in Caffe, 10x256 in the model" in messages(binding.notes)


def test_loading_weights_leaves_a_reshaped_layer_fresh_and_initializing_fills_it_by_its_own_sizes() -> None:
    recipe, model = recipe_of(IMAGE, CLASSES), port(10)
    binding = bind(recipe, model, reshaped=["score"])
    shapes = {"one": [(4, 3, 3, 3), (4,)], "score": [(101, 256), (101,)]}
    layers = tuple(
        LayerWeights(name, Blobs.of(np.ones(shape, "f4") for shape in blobs)) for name, blobs in shapes.items()
    )
    head = model[3].weight.clone()
    notes = load_weights(model, recipe, binding, Weights("old.caffemodel", "net", layers))
    assert bool((model[0].weight == 1).all())
    assert torch.equal(model[3].weight, head)
    assert "'score' has another shape or order in the model and keeps its values" in messages(notes)
    initialize(model, recipe, binding, torch.Generator().manual_seed(1))
    bound = (3 / 256) ** 0.5  # xavier: the fan in is the model's own
    assert 0.9 * bound < float(model[3].weight.detach().abs().max()) <= bound


def test_an_unknown_reshaped_layer_is_refused_and_a_missing_one_is_not_invented() -> None:
    recipe = recipe_of(IMAGE, CLASSES)
    with pytest.raises(BindingError, match="reshaped: no layer that learns is called 'scor'"):
        bind(recipe, port(10), reshaped=["scor"])
    with pytest.raises(BindingError, match="layer 'score' has no counterpart"):
        bind(recipe, port(10)[:1], reshaped=["score"])


FIVE = conv("c1", "data", 4) + "".join(conv(f"c{n}", f"c{n - 1}", 4) for n in (2, 3, 4)) + conv("c5", "c4", 5)


def five() -> nn.Sequential:
    """The first with another kernel, the last with other outputs, batch norms in between."""
    between = [nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)) for _ in range(3)]
    return nn.Sequential(nn.Conv2d(3, 4, 5, padding=2), *between, nn.BatchNorm2d(4), nn.Conv2d(4, 9, 3, padding=1))


MIDDLE = {"c2/0": "1.2.weight", "c3/0": "2.2.weight", "c4/0": "3.2.weight"}


def test_following_the_hint_never_unbinds_what_was_bound() -> None:
    with pytest.raises(BindingError) as caught:
        bind(recipe_of(IMAGE, FIVE), five())
    hint = caught.value.hint or ""
    assert "reshaped=['c1', 'c5']" in hint
    assert "--unclaimed" in hint
    advised = bind(recipe_of(IMAGE, FIVE), five(), reshaped=["c1", "c5"], unclaimed=(1.0, 0.0))
    assert names(advised).items() >= {**MIDDLE, "c1/0": "0.weight", "c5/0": "5.weight"}.items()
    skipped = bind(recipe_of(IMAGE, FIVE), five(), skip=["c1", "c5"], unclaimed=(1.0, 0.0))
    assert names(skipped).items() >= {**MIDDLE, "c1/0": None, "c5/0": None}.items()


UP = layer(
    "Deconvolution",
    "up",
    "score",
    "",
    "convolution_param { num_output: 3 kernel_size: 4 stride: 2 group: 3 bias_term: false }",
    "param { lr_mult: %s }",
)


class TestWhatCaffeDoesNotTrain:
    def test_a_bilinear_deconvolution_may_be_an_interpolation_and_one_that_learns_may_not(self) -> None:
        text = conv("one", "data", 4) + conv("score", "one", 3)
        model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1), nn.Upsample(scale_factor=2))
        binding = bind(recipe_of(IMAGE, text, UP % 0), model)
        assert (binding.blobs[-1].kind, binding.blobs[-1].evidence) == (Kind.NONE, Evidence.NOT_NEEDED)
        assert "up/0: Caffe does not train it, and the model does without the layer" in messages(binding.notes)
        assert "layers bound: 2 by structure;" in messages(binding.notes)
        with pytest.raises(BindingError, match="layer 'up' has no counterpart"):
            bind(recipe_of(IMAGE, text, UP % 1), model)

    def test_a_frozen_layer_that_a_module_could_be_must_be_bound(self) -> None:
        frozen = conv("one", "data", 3, params="param { lr_mult: 0 } param { lr_mult: 0 }")
        text = frozen + conv("two", "one", 3) + conv("three", "two", 3)
        with pytest.raises(BindingError, match="no certain counterpart"):
            bind(recipe_of(IMAGE, text), nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)))

    def test_a_frozen_zero_bias_or_scale_may_be_missing_and_no_other(self) -> None:
        params = "param { lr_mult: 1 } param { lr_mult: %s decay_mult: 0 }"
        model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(256, 5))
        binding = bind(recipe_of(IMAGE, conv("one", "data", 4, params=params % 0), linear("ip", "one")), model)
        assert names(binding) == {"one/0": "0.weight", "one/1": None, "ip/0": "2.weight", "ip/1": "2.bias"}
        assert "one/1: Caffe does not train it, and the model has none" in messages(binding.notes)
        with pytest.raises(BindingError, match="the module has no bias"):
            bind(recipe_of(IMAGE, conv("one", "data", 4, params=params % 1), linear("ip", "one")), model)

        fixed = norm("n", "one").replace('type: "Scale"', 'type: "Scale" param { lr_mult: 0 } param { lr_mult: 0 }')
        plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False))
        binding = bind(recipe_of(IMAGE, conv("one", "data", 4), fixed), plain)
        assert [bound.kind for bound in binding.blobs[-2:]] == [Kind.NONE] * 2


def test_every_command_takes_reshaped(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from caffe2torch.cli import main

    net, solver = tmp_path / "net.prototxt", tmp_path / "solver.prototxt"
    net.write_text(IMAGE + CLASSES)
    solver.write_text('base_lr: 0.1 lr_policy: "fixed"')
    (tmp_path / "port.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def make(): return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(256, 10))\n"
        "def right(model): return torch.optim.SGD([dict(params=[p], lr=0.1 * m) for p, m in"
        " zip(model.parameters(), (1, 1, 10, 20))])\n"
    )
    given = [str(net), str(solver), "--model", f"{tmp_path / 'port.py'}:make", "--reshaped", "score"]
    translated = CliRunner().invoke(main, ["translate", *given])
    assert translated.exit_code == 0, translated.output
    assert "4 blobs, 4 parameters: all ok" in translated.output
    audited = CliRunner().invoke(main, ["audit", *given, "--optimizer", f"{tmp_path / 'port.py'}:right"])
    assert audited.exit_code == 0, audited.output


class Product(nn.Module):
    """A fully connected layer as ``x @ W + b``, or as ``F.linear``, with parameters of its own."""

    def __init__(self, inputs: int, outputs: int, *, transposed: bool = True) -> None:
        super().__init__()
        self.transposed = transposed
        self.kernel = nn.Parameter(torch.zeros(*((inputs, outputs) if transposed else (outputs, inputs))))
        self.shift = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.transposed:
            return nn.functional.linear(x, self.kernel, self.shift)
        return x @ self.kernel + self.shift


class TestStoredInAnotherOrder:
    DATA = 'input: "data" input_shape { dim: 2 dim: 5 }\n'

    def loaded(self, outputs: int, model: nn.Module, given: dict[str, str] | None, more: str = "") -> torch.Tensor:
        """The parameter after loading 0, 1, 2, ... as the layer's weight."""
        recipe = recipe_of(self.DATA, linear("ip", "data", outputs, more))
        binding = bind(recipe, model, given)
        shape = recipe.blobs[0].shape or ()
        blobs = (np.arange(5.0 * outputs, dtype="f4").reshape([size or 0 for size in shape]), np.zeros(outputs, "f4"))
        load_weights(model, recipe, binding, Weights("x.caffemodel", "net", (LayerWeights("ip", Blobs.of(blobs)),)))
        return next(model.parameters()).detach()

    @pytest.mark.parametrize("given", [None, {"ip/0": "kernel", "ip/1": "shift"}], ids=["by place", "by names"])
    @pytest.mark.parametrize("outputs", [7, 5])
    def test_a_product_with_inputs_x_outputs_is_bound_and_weights_are_loaded_transposed(
        self, outputs: int, given: dict[str, str] | None
    ) -> None:
        caffe = torch.arange(5.0 * outputs).reshape(outputs, 5)
        assert torch.equal(self.loaded(outputs, Product(5, outputs), given), caffe.T)
        assert torch.equal(self.loaded(outputs, Product(5, outputs, transposed=False), given), caffe)

    def test_transpose_true_in_the_net_and_inputs_x_outputs_in_the_model_are_one_order(self) -> None:
        caffe = torch.arange(35.0).reshape(5, 7)
        assert torch.equal(self.loaded(7, Product(5, 7), None, "transpose: true"), caffe)
        assert torch.equal(self.loaded(7, nn.Linear(5, 7), None, "transpose: true"), caffe.T)

    def test_a_linear_layer_of_exchanged_sizes_is_still_refused(self) -> None:
        with pytest.raises(BindingError, match="its weight is 7x5 in Caffe, 5x7 in weight"):
            bind(recipe_of(self.DATA, linear("ip", "data", 7)), nn.Linear(7, 5))

    def test_a_square_weight_that_nothing_was_seen_of_binds_and_loading_it_asks(self) -> None:
        class Hidden(Product):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                raise RuntimeError(f"not for {tuple(x.shape)}")

        recipe, model = recipe_of(self.DATA, linear("ip", "data", 5)), Hidden(5, 5)
        binding = bind(recipe, model, {"ip/0": "kernel", "ip/1": "shift"})
        weights = Weights(
            "x.caffemodel", "net", (LayerWeights("ip", Blobs.of((np.ones((5, 5), "f4"), np.ones(5, "f4")))),)
        )
        with pytest.raises(BindingError, match="ip/0 may stand in another order in the model"):
            load_weights(model, recipe, binding, weights)
        notes = load_weights(model, recipe, binding, weights, new_layers=["ip"])
        assert "'ip' has another shape or order in the model" in messages(notes)

    def test_a_transposed_convolution_may_stand_for_a_convolution_and_the_other_way_round(self) -> None:
        text = conv("a", "data", 4) + conv("b", "a", 6) + conv("c", "b", 5)
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.ConvTranspose2d(4, 6, 3, padding=1), nn.Conv2d(6, 5, 3, padding=1)
        )
        binding = bind(recipe_of(IMAGE, text), model)
        assert names(binding).items() >= {"a/0": "0.weight", "b/0": "1.weight", "b/1": "1.bias"}.items()
        assert binding.blobs[2].storage is Storage.UNDECIDED
        assert "b/0: its numbers stand in another order, or may" in messages(binding.notes)
        wrong = nn.Sequential(*model[:1], nn.ConvTranspose2d(4, 7, 3, padding=1), nn.Conv2d(7, 5, 3, padding=1))
        with pytest.raises(BindingError, match=r"6x4x3x3 in Caffe, 4x7x3x3 in 1\.weight"):
            bind(recipe_of(IMAGE, text), wrong)


class TestUnclaimed:
    NET = conv("one", "data", 4)

    def model(self) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 2)
        )

    def test_a_mapping_gives_each_pattern_its_pair_and_exact_names_win(self) -> None:
        given = {r".*\.bias": (2.0, 0.0), r"[14]\.weight": (1, 1), "4.bias": (20.0, 0.0)}
        left = bind(recipe_of(IMAGE, self.NET), self.model(), unclaimed=given).unclaimed
        assert {one.name: (one.lr_mult, one.decay_mult) for one in left} == {
            "1.weight": (1.0, 1.0), "1.bias": (2.0, 0.0), "4.weight": (1.0, 1.0), "4.bias": (20.0, 0.0)
        }  # fmt: skip
        with pytest.raises(BindingError, match="module 4"):
            bind(recipe_of(IMAGE, self.NET), self.model(), unclaimed={r"1\..*": (1.0, 1.0)})
        with pytest.raises(BindingError, match="unclaimed: no parameter is called 'head'"):
            bind(recipe_of(IMAGE, self.NET), self.model(), unclaimed={"head": (1.0, 1.0)})

    def test_a_name_or_pattern_that_means_no_parameter_left_is_an_error_as_elsewhere(self) -> None:
        recipe, model = recipe_of(IMAGE, self.NET), self.model()[:1]
        with pytest.raises(BindingError, match=r"no parameter is called '0\.wieght'") as caught:
            bind(recipe, model, unclaimed={"0.wieght": (1.0, 1.0)})
        assert (caught.value.hint or "").startswith("did you mean '0.weight'?")
        with pytest.raises(BindingError, match=r"a blob stands for 0\.weight, which '0\.w\.\*' means"):
            bind(recipe, model, unclaimed={"0.w.*": (1.0, 1.0)})
        assert not bind(recipe, model, unclaimed=(1.0, 1.0)).unclaimed
        larger = self.model()
        larger[4].requires_grad_(False)
        left = bind(recipe, larger, unclaimed={r"[14]\..*": (1.0, 0.0), r"4\.bias": (2.0, 0.0)}).unclaimed
        assert [one.lr_mult for one in left] == [1.0, 1.0, None, None]

    @pytest.mark.parametrize("given", [1.0, (1.0,), ("a", "b"), (1.0, float("nan")), {"4.bias": 2.0}, (True, False)])
    def test_what_is_no_pair_of_numbers_is_one_clear_error(self, given: object) -> None:
        with pytest.raises(BindingError, match="unclaimed gives"):
            bind(recipe_of(IMAGE, self.NET), self.model(), unclaimed=given)  # type: ignore[arg-type]


def test_a_head_of_another_shape_is_what_its_sisters_cannot_be() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.z, self.y, self.x = (nn.Conv2d(3, outputs, 3, padding=1) for outputs in (9, 4, 4))

        def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
            return [self.x(image), self.y(image), self.z(image)]

    binding = bind(recipe_of(IMAGE, *(conv(name, "data") for name in "abc")), Heads(), reshaped=["c"])
    assert names(binding)["c/0"] == "z.weight"
    assert [bool(bound.rivals) for bound in binding.blobs if bound.blob.role == "weight"] == [True, True, False]


def test_a_value_joined_with_itself_is_that_value_whatever_stands_before_it_in_the_model() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.more, self.last = nn.Conv2d(7, 7, 1), nn.Conv2d(14, 2, 1)
            self.first = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            x = self.more(torch.cat([image, self.first(image)], 1))
            return self.last(torch.cat([x, x.relu()], 1))  # type: ignore[no-any-return]

    text = conv("a", "data") + layer("Concat", "j", "data a") + layer("Concat", "k", "j j") + conv("b", "k", 2, 1)
    binding = bind(recipe_of(IMAGE, text), Joined(), unclaimed=(1.0, 1.0))
    assert names(binding).items() >= {"a/0": "first.weight", "b/0": "last.weight"}.items()


def test_another_order_of_the_other_layers_is_said_with_reshaped_as_without() -> None:
    class Exchanged(nn.Module):
        def __init__(self, classes: int) -> None:
            super().__init__()
            self.d1, self.d2, self.d3 = (nn.Conv2d(inputs, 4, 3, padding=1) for inputs in (3, 4, 4))
            self.head = nn.Linear(256, classes)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.head(self.d2(self.d3(self.d1(image))).flatten(1))  # type: ignore[no-any-return]

    recipe = recipe_of(IMAGE, conv("d1", "data"), conv("d2", "d1"), conv("d3", "d2"), linear("head", "d3"))
    for classes, reshaped in ((5, []), (7, ["head"])):
        binding = bind(recipe, Exchanged(classes), reshaped=reshaped)
        assert names(binding)["d2/0"] == "d3.weight"
        assert "layer 'd2' stands where module d3 stands" in messages(binding.notes)
        assert "layer 'd3' stands where module d2 stands" in messages(binding.notes)
