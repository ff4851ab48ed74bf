"""The skeleton: a net's tensors under the layers' names, whatever those are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caffe2torch.binding.bind import bind
from caffe2torch.binding.names import module_name, module_names
from caffe2torch.binding.plan import Kind
from caffe2torch.binding.skeleton import SkeletonLayer, skeleton
from caffe2torch.recipe import Layer, LearnableBlob, NetRecipe, Shape, SourceLocation, Stated, Statement

PLACE = SourceLocation("net.prototxt", 1, 1)
STATED = Stated(Statement.DEFAULTED, Statement.DEFAULTED)


def recipe_of(*layers: tuple[str, str, dict[str, Shape | None]]) -> NetRecipe:
    """A chain of layers, each with its blobs' roles and shapes."""
    blobs: list[LearnableBlob] = []
    chain: list[Layer] = []
    for name, kind, roles in layers:
        numbers = range(len(blobs), len(blobs) + len(roles))
        for index, (role, shape) in enumerate(roles.items()):
            blobs.append(LearnableBlob(name, kind, index, role, shape, 1.0, 1.0, STATED, PLACE))
        chain.append(Layer(name, kind, ("data",), ("data",), {}, (None,), tuple(numbers), PLACE))
    return NetRecipe("net", tuple(blobs), layers=tuple(chain))


def test_tensors_carry_torchs_names_and_caffes_shapes() -> None:
    recipe = recipe_of(
        ("conv", "Convolution", {"weight": (8, 3, 5, 5), "bias": (8,)}),
        ("conv/bn", "BatchNorm", {"mean": (8,), "variance": (8,), "factor": (1,)}),
        ("conv/scale", "Scale", {"scale": (8,), "shift": (8,)}),
        ("act", "PReLU", {"slope": ()}),
        ("seg_bn", "BN", {"scale": (1, 8, 1, 1), "shift": (1, 8, 1, 1)}),
        ("up", "Deconvolution", {"weight": (8, 4, 2, 2)}),
        ("lstm", "LSTM", {"input_weight": (40, None), "bias": (40,), "hidden_weight": (40, 10)}),
        ("new", "SomethingElse", {"blob": None}),
    )
    model = skeleton(recipe)
    assert {name: tuple(tensor.shape) for name, tensor in model.named_parameters()} == {
        "conv.weight": (8, 3, 5, 5),
        "conv.bias": (8,),
        "conv/scale.weight": (8,),
        "conv/scale.bias": (8,),
        "act.weight": (),
        "seg_bn.weight": (1, 8, 1, 1),
        "seg_bn.bias": (1, 8, 1, 1),
        "up.weight": (8, 4, 2, 2),
        "lstm.input_weight": (40, 1),
        "lstm.bias": (40,),
        "lstm.hidden_weight": (40, 10),
        "new.blob": (),
    }
    assert [name for name, _ in model.named_buffers()] == ["conv/bn.running_mean", "conv/bn.running_var"]
    binding = bind(recipe, model)
    assert [bound.blob for bound in binding.blobs] == list(recipe.blobs)
    assert [bound.name for bound in binding.blobs if bound.kind is Kind.NONE] == [None]
    assert not binding.unclaimed


@given(
    st.lists(st.text(alphabet=st.sampled_from(["a", ".", "%", "_", "2", "5", "E", "/", '"', "\n", "é"]), max_size=6))
)
def test_module_names_are_allowed_and_distinct(layers: list[str]) -> None:
    names = module_names(layers)
    assert len(set(names)) == len(names)
    blobs = [(name, "InnerProduct", {"weight": (1, 1)}) for name in layers]
    if len(set(layers)) == len(layers):
        binding = bind(recipe_of(*blobs), skeleton(recipe_of(*blobs))) if blobs else None
        assert binding is None or len({bound.name for bound in binding.blobs}) == len(layers)


@pytest.mark.parametrize(
    "name", ["type", "forward", "training", "T_destination", "", ".", "weight", "module", "_orig_mod"]
)
def test_names_that_torch_or_a_wrapper_claims_are_no_trouble(name: str) -> None:
    recipe = recipe_of((name, "InnerProduct", {"weight": (2, 3)}))
    assert [bound.name for bound in bind(recipe, skeleton(recipe)).blobs] == [f"{module_name(name)}.weight"]


def test_a_shared_blob_is_one_tensor_in_every_layer_that_uses_it() -> None:
    one = recipe_of(("conv", "Convolution", {"weight": (4, 1, 3, 3)}))
    twin = Layer("conv_p", "Convolution", ("pair",), ("pair",), {}, (None,), (0,), PLACE)
    recipe = NetRecipe("siamese", one.blobs, layers=(*one.layers, twin))
    model = skeleton(recipe)
    assert model.get_submodule("conv").weight is model.get_submodule("conv_p").weight
    assert [name for name, _ in model.named_parameters()] == ["conv.weight"]
    assert [bound.name for bound in bind(recipe, model).blobs] == ["conv.weight"]


def test_a_skeleton_says_what_it_is() -> None:
    recipe = recipe_of(("ip", "InnerProduct", {"weight": (2, 3)}))
    model = skeleton(recipe)
    layer = model.get_submodule("ip")
    assert isinstance(layer, SkeletonLayer)
    assert repr(layer) == "SkeletonLayer(InnerProduct, weight=(2, 3))"
    with pytest.raises(NotImplementedError, match="computes nothing"):
        model()
