"""Which blob becomes which tensor, which model is refused, and what is said about it."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable

import pytest
import torch
from nets import IMAGE, conv, layer, linear, names, norm, recipe_of
from torch import Tensor, nn
from torch.nn import functional

from caffe2torch.errors import BindingError, ModelError
from caffe2torch.plan import Kind, plan_groups
from caffe2torch.pytorch.binding import bind
from caffe2torch.pytorch.skeleton import skeleton
from caffe2torch.recipe import Severity


def messages(binding_notes: object) -> str:
    return "\n".join(note.message for note in binding_notes)  # type: ignore[attr-defined]


# --- kinds of layers and their layouts --------------------------------------------------------------------------


def test_every_kind_of_layer_finds_its_tensors() -> None:
    recipe = recipe_of(
        IMAGE,
        conv("c", "data", 4, 3, "group: 1"),
        norm("n", "c"),
        layer("PReLU", "p", "c", "c"),
        layer("Deconvolution", "up", "c", "", "convolution_param { num_output: 6 kernel_size: 2 stride: 2 group: 2 }"),
        layer("BN", "segnet_bn", "up"),
        layer("Scale", "only", "segnet_bn"),
        linear("fc", "only", 7),
    )

    class Only(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gamma = nn.Parameter(torch.ones(6, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.gamma

    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.PReLU(4),
        nn.ConvTranspose2d(4, 6, 2, 2, groups=2),
        nn.BatchNorm2d(6),
        Only(),
        nn.Flatten(),
        nn.Linear(6 * 16 * 16, 7),
    )
    binding = bind(recipe, model)
    assert names(binding) == {
        "c/0": "0.weight",
        "c/1": "0.bias",
        "n/0": "1.running_mean",
        "n/1": "1.running_var",
        "n/2": None,
        "n/scale/0": "1.weight",
        "n/scale/1": "1.bias",
        "p/0": "2.weight",
        "up/0": "3.weight",
        "up/1": "3.bias",
        "segnet_bn/0": "4.weight",
        "segnet_bn/1": "4.bias",
        "only/0": "5.gamma",
        "fc/0": "7.weight",
        "fc/1": "7.bias",
    }
    kinds = [bound.kind for bound in binding.blobs if bound.blob.layer == "n"]
    assert kinds == [Kind.BUFFER, Kind.BUFFER, Kind.NONE]
    assert [bound.blob for bound in binding.blobs] == list(recipe.blobs)
    assert "no blob holds the running statistics of 4" in messages(binding.notes)


def test_a_fully_connected_layer_may_be_a_full_size_convolution_and_the_other_way_round() -> None:
    recipe = recipe_of(IMAGE, conv("c", "data", 4), linear("fc", "c", 5), linear("out", "fc", 2))
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 8), nn.Conv2d(5, 2, 1))
    binding = bind(recipe, model)
    assert names(binding)["fc/0"] == "1.weight"
    assert "fc/0, out/0: reshaped" in messages(binding.notes)
    full = recipe_of(IMAGE, layer("Convolution", "c", "data", "", "convolution_param { num_output: 5 kernel_size: 8 }"))
    assert names(bind(full, nn.Sequential(nn.Flatten(), nn.Linear(192, 5)))) == {"c/0": "1.weight", "c/1": "1.bias"}


def test_a_transposed_inner_product_is_known_to_be_transposed() -> None:
    recipe = recipe_of('input: "data" input_shape { dim: 2 dim: 6 }', linear("fc", "data", 4, "transpose: true"))
    assert recipe.blobs[0].shape == (6, 4)
    assert bind(recipe, nn.Sequential(nn.Linear(6, 4))).blobs[0].how == "structure; transposed"


def test_an_lstm_has_one_bias_and_torch_two() -> None:
    recipe = recipe_of(
        'input: "x" input_shape { dim: 7 dim: 2 dim: 8 } input: "cont" input_shape { dim: 7 dim: 2 }\n',
        layer("LSTM", "l", "x cont", "", "recurrent_param { num_output: 6 }"),
    )

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.r = nn.LSTM(8, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.r(x)[0]  # type: ignore[no-any-return]

    with pytest.raises(BindingError, match=r"r\.bias_hh_l0: Caffe's recurrent layers have one bias"):
        bind(recipe, Model())
    binding = bind(recipe, Model(), unclaimed=(0.0, 0.0))
    assert names(binding) == {"l/0": "r.weight_ih_l0", "l/1": "r.bias_ih_l0", "l/2": "r.weight_hh_l0"}


def test_frozen_batch_norms_in_buffers_hold_what_caffe_freezes_and_nothing_that_it_trains() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in ("weight", "bias", "running_mean", "running_var"):
                self.register_buffer(name, torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.get_buffer("weight")[:, None, None]

    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), Frozen())
    text = conv("c", "data") + norm("n", "c")
    with pytest.raises(
        BindingError, match=r"Caffe trains its scale \(lr_mult 1\), the model keeps 1.weight in a buffer"
    ):
        bind(recipe_of(IMAGE, text), model)
    frozen = text.replace('type: "Scale"', 'type: "Scale" param { lr_mult: 0 } param { lr_mult: 0 }')
    assert {bound.kind for bound in bind(recipe_of(IMAGE, frozen), model).blobs[2:]} == {Kind.BUFFER, Kind.NONE}


def test_a_bias_that_a_batch_norm_subtracts_may_be_missing_and_no_other() -> None:
    recipe = recipe_of(IMAGE, conv("c", "data"), norm("n", "c"))
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
    binding = bind(recipe, model)
    assert binding.blobs[1].kind is Kind.NONE
    assert "c/1: the batch norm after it subtracts it again" in messages(binding.notes)
    with pytest.raises(BindingError, match="the module has no bias"):
        bind(recipe_of(IMAGE, conv("c", "data")), nn.Sequential(nn.Conv2d(3, 4, 3, bias=False)))


# --- what does not fit ------------------------------------------------------------------------------------------


def three_layers(**more: str) -> tuple[str, Callable[..., nn.Module]]:
    text = conv("one", "data", 4) + conv("two", "one", 6, **more) + linear("three", "two", 5)

    def model(inputs: int = 3, middle: int = 6, outputs: int = 5, groups: int = 1, bias: bool = True) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(inputs, 4, 3, padding=1),
            nn.Conv2d(4, middle, 3, padding=1, groups=groups, bias=bias),
            nn.Flatten(),
            nn.Linear(middle * 64, outputs),
        )

    return IMAGE + text, model


def test_a_shape_that_does_not_fit_names_layer_module_and_both_shapes() -> None:
    text, model = three_layers()
    with pytest.raises(BindingError) as caught:
        bind(recipe_of(text), model(outputs=9))
    assert str(caught.value) == (
        "net.prototxt:4:1: the net does not bind to Sequential: 2 blobs do not fit the tensors in their place, "
        "2 parameters belong to no layer\n"
        "  found: layer 'three' at 3 (structure): its weight is 5x384 in Caffe, 9x384 in 3.weight; "
        "its bias is 5 in Caffe, 9 in 3.bias\n"
        "  hint: give the model the net's sizes, or leave those layers out (skip, --skip LAYER); say how parameters "
        "without a layer learn (unclaimed, --unclaimed lr_mult=1,decay_mult=1)"
    )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"inputs": 4}, "its weight is 4x3x3x3 in Caffe, 4x4x3x3 in 0.weight"),
        ({"middle": 8}, "its weight is 6x4x3x3 in Caffe, 8x4x3x3 in 1.weight"),
        ({"groups": 2}, "its weight is 6x4x3x3 in Caffe, 6x2x3x3 in 1.weight"),
        ({"bias": False}, "layer 'two' at 1 (structure): the module has no bias"),
    ],
)
def test_near_misses_say_what_differs(options: dict[str, int], reason: str) -> None:
    text, model = three_layers()
    with pytest.raises(BindingError) as caught:
        bind(recipe_of(text), model(**options))
    assert reason in str(caught.value)


def test_groups_are_part_of_what_a_convolution_is() -> None:
    grouped = IMAGE + conv("a", "data", 4) + conv("b", "a", 4, 3, "group: 2") + conv("c", "b", 4, 3, "group: 4")
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, groups=4))
    assert names(bind(recipe_of(grouped), model))["c/0"] == "2.weight"
    same_shapes = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(2, 4, 3, groups=2))
    with pytest.raises(BindingError, match=r"layer 'c' at 2 .structure.: it has 4 groups in Caffe, 2 in the model"):
        bind(recipe_of(grouped), same_shapes)


def test_a_layer_more_is_named_with_what_comes_closest() -> None:
    text, model = three_layers()
    with pytest.raises(BindingError) as caught:
        bind(recipe_of(text, linear("four", "three", 3)), model())
    assert "linear map: 4 in the net, 3 in the model\n    layer 'four' has no counterpart" in str(caught.value)
    assert str(caught.value).startswith("net.prototxt:5:1: the net does not bind to Sequential: 1 layer has no certain")


def test_a_module_more_needs_an_intention() -> None:
    text, model = three_layers()
    larger = nn.Sequential(model(), nn.Linear(5, 2))
    with pytest.raises(BindingError, match="2 parameters belong to no layer") as caught:
        bind(recipe_of(text), larger)
    assert "module 1 (linear map) belongs to no layer" in str(caught.value)
    binding = bind(recipe_of(text), larger, unclaimed=(10.0, 0.0))
    assert [(one.name, one.shape, one.lr_mult, one.decay_mult) for one in binding.unclaimed] == [
        ("1.weight", (2, 5), 10.0, 0.0),
        ("1.bias", (2,), 10.0, 0.0),
    ]
    for parameter in larger[1].parameters():
        parameter.requires_grad_(False)
    frozen = bind(recipe_of(text), larger)
    assert [(one.name, one.lr_mult) for one in frozen.unclaimed] == [("1.weight", None), ("1.bias", None)]
    assert "no blob stands for 1.weight, 1.bias, which require no gradient" in messages(frozen.notes)


def test_a_new_head_is_two_decisions() -> None:
    text, model = three_layers()
    binding = bind(recipe_of(text), model(outputs=2), skip=["three"], unclaimed=(1.0, 1.0))
    assert names(binding) == {"one/0": "0.weight", "one/1": "0.bias", "two/0": "1.weight", "two/1": "1.bias"} | {
        "three/0": None,
        "three/1": None,
    }
    assert binding.blobs[-1].how == "skipped by the user"
    assert [one.name for one in binding.unclaimed] == ["3.weight", "3.bias"]


def test_a_backbone_alone_needs_its_head_skipped() -> None:
    text, model = three_layers()
    backbone = model()[:2]  # type: ignore[index]
    with pytest.raises(BindingError, match="layer 'three' has no counterpart"):
        bind(recipe_of(text), backbone)
    assert names(bind(recipe_of(text), backbone, skip=["th.*"]))["two/0"] == "1.weight"


def test_one_blob_can_be_skipped() -> None:
    recipe = recipe_of(IMAGE, conv("c", "data"))
    binding = bind(recipe, nn.Sequential(nn.Conv2d(3, 4, 3, bias=False)), skip=["c/1"])
    assert names(binding) == {"c/0": "0.weight", "c/1": None}
    with pytest.raises(BindingError, match="skip: no layer that learns is called 'd'"):
        bind(recipe, nn.Sequential(nn.Conv2d(3, 4, 3)), skip=["d"])


def test_a_net_without_batch_norms_binds_around_those_of_the_model() -> None:
    recipe = recipe_of(IMAGE, conv("a", "data"), conv("b", "a"), conv("c", "b"))
    model = nn.Sequential()
    for _ in range(3):
        model.append(nn.Conv2d(4 if len(model) else 3, 4, 3, padding=1)).append(nn.BatchNorm2d(4))
    with pytest.raises(BindingError, match="batch norm: 0 in the net, 3 in the model"):
        bind(recipe, model)
    assert names(bind(recipe, model, unclaimed=(1.0, 0.0)))["c/0"] == "4.weight"


def test_another_order_of_concatenation_is_no_equal_wiring() -> None:
    class Model(nn.Module):
        def __init__(self, turned: bool) -> None:
            super().__init__()
            self.turned = turned
            self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 5, 3), nn.Conv2d(9, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            ends = [self.a(x), self.b(x)]
            return self.c(torch.cat(ends[::-1] if self.turned else ends, 1))  # type: ignore[no-any-return]

    text = conv("l", "data", 4) + conv("r", "data", 5) + layer("Concat", "j", "l r") + conv("out", "j", 2, 1)
    assert not [note for note in bind(recipe_of(IMAGE, text), Model(False)).notes if note.severity is Severity.WARNING]
    binding = bind(recipe_of(IMAGE, text), Model(True))
    assert names(binding)["r/0"] == "b.weight"
    assert "but for the order in which branches are concatenated" in messages(binding.notes)


# --- what cannot be told apart ----------------------------------------------------------------------------------


class Twins(nn.Module):
    """Two equal branches that are added."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.y = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return self.y(image) + self.x(image)  # type: ignore[no-any-return]


def twins(left: str = "", right: str = "") -> str:
    return IMAGE + conv("l", "data", params=left) + conv("r", "data", params=right) + layer("Eltwise", "s", "l r")


def test_interchangeable_layers_of_equal_multipliers_bind_and_say_so() -> None:
    binding = bind(recipe_of(twins()), Twins())
    assert {bound.how for bound in binding.blobs} == {"structure (interchangeable)"}
    weights = {bound.name: bound.rivals for bound in binding.blobs if bound.blob.role == "weight"}
    assert weights == {"x.weight": ("y.weight",), "y.weight": ("x.weight",)}
    warning = next(note for note in binding.notes if note.severity is Severity.WARNING)
    assert "loading weights needs a decision in a names file: l = " in warning.message


def test_interchangeable_layers_of_different_multipliers_stop_and_show_the_line_that_decides() -> None:
    recipe = recipe_of(twins(right="param { lr_mult: 3 }"))
    with pytest.raises(BindingError) as caught:
        bind(recipe, Twins())
    assert "layers 'l' and 'r' could be modules y and x in any order" in str(caught.value)
    assert "'l': weight (1, 1), bias (1, 1); 'r': weight (3, 1), bias (1, 1)" in str(caught.value)
    assert 'decide in a names file: l = "y"  or  l = "x"' in str(caught.value)
    decided = bind(recipe, Twins(), {"l": "x"})
    assert names(decided) == {"l/0": "x.weight", "l/1": "x.bias", "r/0": "y.weight", "r/1": "y.bias"}
    assert not any(bound.rivals for bound in decided.blobs)


def test_fine_tuning_one_of_two_interchangeable_layers_is_a_decision_too() -> None:
    recipe = recipe_of(twins())
    with pytest.raises(BindingError, match="could be another layer as well"):
        plan_groups(recipe, bind(recipe, Twins()), {"l": 10.0})
    assert len(plan_groups(recipe, bind(recipe, Twins()), {"[lr]": 10.0})) == 1
    assert len(plan_groups(recipe, bind(recipe, Twins(), {"l": "x"}), {"l": 10.0})) == 2


def test_names_decide_between_what_the_structure_cannot_tell_apart() -> None:
    model = Twins()
    model.l, model.r = model.x, model.y
    del model.x, model.y
    model.forward = lambda image: model.l(image) + model.r(image)  # type: ignore[method-assign,operator]
    binding = bind(recipe_of(twins(right="param { lr_mult: 3 }")), model)
    assert names(binding)["r/0"] == "r.weight"
    assert {bound.how for bound in binding.blobs} == {"equal names"}


# --- sharing ----------------------------------------------------------------------------------------------------

SHARED = 'param { name: "w" } param { name: "b" }'
PAIR = IMAGE + 'input: "data_p" input_shape { dim: 2 dim: 3 dim: 8 dim: 8 }\n'


class Pair(nn.Module):
    """The same two layers on two images: shared, tied, or neither."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        if how == "called twice":
            self.b = self.a
        if how == "tied":
            self.b.weight, self.b.bias = self.a.weight, self.a.bias

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        return self.a(first), self.b(second)


@pytest.mark.parametrize("how", ["called twice", "tied"])
def test_shared_blobs_bind_to_shared_parameters(how: str) -> None:
    recipe = recipe_of(PAIR, conv("c", "data", params=SHARED), conv("c_p", "data_p", params=SHARED))
    assert names(bind(recipe, Pair(how))) == {"c/0": "a.weight", "c/1": "a.bias"}


@pytest.mark.parametrize("how", ["called twice", "tied"])
def test_a_model_that_shares_more_than_the_net_is_refused(how: str) -> None:
    recipe = recipe_of(PAIR, conv("c", "data"), conv("c_p", "data_p"))
    with pytest.raises(BindingError) as caught:
        bind(recipe, Pair(how))
    assert "the wirings are equal but for what is shared" in str(caught.value)


def test_a_net_that_shares_more_than_the_model_is_refused() -> None:
    recipe = recipe_of(PAIR, conv("c", "data", params=SHARED), conv("c_p", "data_p", params=SHARED))
    with pytest.raises(BindingError) as caught:
        bind(recipe, Pair("neither"))
    assert "the wirings are equal but for what is shared" in str(caught.value)


def test_blobs_that_share_only_weights_need_tied_weights() -> None:
    only = 'param { name: "w" }'
    recipe = recipe_of(PAIR, conv("c", "data", params=only), conv("d", "data_p", 4, params=only), conv("e", "d", 5))

    class Model(Pair):
        def __init__(self, tied: bool) -> None:
            super().__init__("neither")
            self.c = nn.Conv2d(4, 5, 3)
            if tied:
                self.b.weight = self.a.weight

        def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
            return self.a(first), self.c(self.b(second))

    assert names(bind(recipe, Model(True)))["d/1"] == "b.bias"
    with pytest.raises(BindingError, match="Caffe shares one weight between layers c, d"):
        bind(recipe, Model(False))


# --- the model is a guest ---------------------------------------------------------------------------------------


def test_binding_changes_nothing_in_the_model_or_around_it() -> None:
    text, model_of = three_layers()
    model = nn.Sequential(model_of()[0], nn.BatchNorm2d(4), nn.Dropout(), *model_of()[1:])  # type: ignore[index,misc]
    recipe = recipe_of(text.replace('type: "Convolution" bottom: "one"', 'type: "Convolution" bottom: "n"'))
    recipe = recipe_of(IMAGE, conv("one", "data", 4), norm("n", "one"), conv("two", "one", 6), linear("three", "two"))
    calls: list[object] = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    before = copy.deepcopy(model.state_dict())
    attributes = {name: list(vars(module)) for name, module in model.named_modules()}
    torch.manual_seed(3)
    random.seed(3)
    expected = (torch.rand(1).item(), random.random())
    torch.manual_seed(3)
    random.seed(3)
    assert bind(recipe, model.eval())
    assert (torch.rand(1).item(), random.random()) == expected
    assert not calls
    assert not model.training
    assert not any(parameter.grad is not None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: list(vars(module)) for name, module in model.named_modules()} == attributes


def test_a_model_on_the_meta_device_binds_as_well() -> None:
    text, model = three_layers()
    with torch.device("meta"):
        assert names(bind(recipe_of(text), model()))["three/0"] == "3.weight"


class Stubborn(nn.Module):
    """A model that decides by a value, so that neither the meta device nor symbolic tracing get through it."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.p = nn.Linear(4 * 64, 5), nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.p(image)
        if x.abs().sum().item() < 0:
            raise AssertionError
        return self.q(functional.relu(x).flatten(1))  # type: ignore[no-any-return]


def test_a_model_that_decides_by_values_is_really_run() -> None:
    binding = bind(recipe_of(IMAGE, conv("one", "data"), linear("two", "one")), Stubborn())
    assert names(binding)["two/0"] == "q.weight"
    assert (
        "one real forward pass with (2, 3, 8, 8) instead of one forward pass on the meta device"
        in binding.notes[0].message
    )


class Sized(Stubborn):
    """A model whose linear layer fits one size of image, which nothing states."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(4 * 21 * 35, 5)

    def forward(self, image: Tensor) -> Tensor:
        return self.q(self.p(image).flatten(1))  # type: ignore[no-any-return]


def test_a_size_that_nothing_states_is_traced_around_or_asked_for() -> None:
    recipe = recipe_of(conv("one", "data"), linear("two", "one"))
    assert "the model's wiring is from torch.fx instead of" in bind(recipe, Sized()).notes[0].message
    for shapes in ([(1, 3, 21, 35)], {"image": (1, 3, 21, 35)}, {"data": (1, 3, 21, 35)}):
        binding = bind(recipe, Sized(), input_shapes=shapes)  # type: ignore[arg-type]
        assert "one forward pass on the meta device with (1, 3, 21, 35)" in binding.notes[0].message
    with pytest.raises(ModelError, match="no input is called 'dta'"):
        bind(recipe, Sized(), input_shapes={"dta": (1, 3, 21, 35)})


class Unseen(Stubborn):
    """A model that can be run in no way that we know."""

    def forward(self, _: Tensor) -> Tensor:
        raise RuntimeError("only on the ship")


def test_a_model_that_cannot_be_traced_is_bound_by_names_alone_and_it_is_said() -> None:
    recipe = recipe_of(IMAGE, conv("p", "data"), linear("q", "p"))
    binding = bind(recipe, Unseen())
    assert {bound.how for bound in binding.blobs} == {"equal names"}
    assert any("only on the ship" in note.message for note in binding.notes if note.severity is Severity.WARNING)
    with pytest.raises(BindingError, match="names alone decide, since the model's wiring could not be seen"):
        bind(recipe_of(IMAGE, conv("one", "data"), linear("two", "one")), Unseen())
    assert (
        names(bind(recipe_of(IMAGE, conv("one", "data"), linear("Q", "one")), Unseen(), {"one": "p"}))["Q/0"]
        == "q.weight"
    )


def test_models_with_nothing_to_bind_are_refused() -> None:
    recipe = recipe_of(IMAGE, conv("c", "data"))
    with pytest.raises(ModelError, match="ReLU has no parameters"):
        bind(recipe, nn.ReLU())
    with warnings.catch_warnings(action="ignore"):
        lazy = nn.Sequential(nn.LazyConv2d(4, 3))
    with pytest.raises(ModelError, match=r"0\.weight has no shape yet"):
        bind(recipe, lazy)
    flat = nn.Module()
    flat.register_parameter("_flat_param", nn.Parameter(torch.zeros(9)))
    with pytest.raises(ModelError, match="FSDP has flattened"):
        bind(recipe, flat)


def test_a_parametrized_weight_is_named_as_such() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)))
    with pytest.raises(BindingError, match=r"the module has no weight .computed from other parameters"):
        bind(recipe_of(IMAGE, conv("c", "data")), model)


def test_a_skeleton_binds_under_any_names_in_any_module() -> None:
    recipe = recipe_of(IMAGE, conv("a", "data"), norm("n", "a"), conv("b", "a"), linear("c", "b"))
    parts = list(skeleton(recipe).children())
    random.Random(1).shuffle(parts)
    model = nn.ModuleDict({f"part{number}": part for number, part in enumerate(parts)})
    binding = bind(recipe, model)
    home = {part.layer: f"part{number}" for number, part in enumerate(parts)}  # type: ignore[attr-defined]
    assert {bound.name.rpartition(".")[0] == home[bound.blob.layer] for bound in binding.blobs if bound.name} == {True}
    assert all(bound.how.startswith("structure") for bound in binding.blobs)
