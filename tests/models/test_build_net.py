"""The net that ``build_model`` makes of a recipe: what it computes when, what it holds, what it refuses."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from pathlib import Path

import pytest
import torch
from nets import IMAGE, conv, layer, linear, norm, recipe_of
from torch import Tensor, nn

import caffe2torch
from caffe2torch import build_model, read_recipe, translate
from caffe2torch.errors import Caffe2TorchError, NetError, UnsupportedError
from caffe2torch.models.build_net import CaffeNet

LABEL = 'input: "label" input_shape { dim: 2 }\n'
LOSS = layer("SoftmaxWithLoss", "loss", "ip label")
FILL = 'weight_filler { type: "xavier" }'
NET = (
    IMAGE
    + LABEL
    + conv("conv1", "data", more=FILL)
    + layer("ReLU", "relu1", "conv1", "conv1")
    + linear("ip", "conv1", more=FILL)
    + LOSS
)
DATA, LABELS = torch.rand(2, 3, 8, 8), torch.tensor([1, 4])


def of_text(folder: Path, text: str, **how: object) -> CaffeNet:
    (folder / "net.prototxt").write_text(text)
    return build_model(read_recipe(folder / "net.prototxt", **how))  # type: ignore[arg-type]


# What it computes.


def test_forward_is_what_goes_into_the_losses_and_takes_no_labels() -> None:
    model = build_model(recipe_of(NET))
    assert model(DATA).shape == (2, 5)
    torch.testing.assert_close(model.loss(DATA, LABELS), nn.functional.cross_entropy(model(DATA), LABELS))


def test_inputs_go_by_order_or_by_blob() -> None:
    model = build_model(recipe_of(NET))
    assert model.input_names == ("data", "label")
    assert torch.equal(model.loss(DATA, LABELS), model.loss(label=LABELS, data=DATA))
    assert torch.equal(model.loss(DATA, label=LABELS), model(DATA, LABELS, loss=True))


@pytest.mark.parametrize(
    ("given", "named"), [((DATA, LABELS), {}), ((), {}), ((DATA,), {"data": DATA}), ((), {"x": DATA})]
)
def test_other_inputs_than_the_net_takes_are_refused_with_the_names_of_those_it_takes(given, named) -> None:
    with pytest.raises(Caffe2TorchError, match="expected: data"):
        build_model(recipe_of(NET))(*given, **named)


def test_blobs_are_all_blobs_with_layers_in_place_applied() -> None:
    model = build_model(recipe_of(NET))
    blobs = model.blobs(DATA, LABELS)
    assert list(blobs) == ["data", "label", "conv1", "ip", "loss"]
    assert torch.equal(blobs["conv1"], model.get_submodule("conv1")(DATA).relu())
    assert torch.equal(model.total_loss(blobs), model.loss(DATA, LABELS))


def test_several_losses_are_added_with_their_weights_and_give_a_dictionary() -> None:
    aux = linear("aux", "conv1", more=FILL) + layer("SoftmaxWithLoss", "aux_loss", "aux label", "", "loss_weight: 0.3")
    model = build_model(recipe_of(NET, aux))
    found = model(DATA)
    assert list(found) == ["ip", "aux"]
    blobs = model.blobs(DATA, LABELS)
    torch.testing.assert_close(model.loss(DATA, LABELS), blobs["loss"] + 0.3 * blobs["aux_loss"])


def test_any_top_with_a_loss_weight_counts_with_its_sum() -> None:
    model = build_model(recipe_of(NET, layer("Power", "p", "ip", "", "loss_weight: 2 power_param { power: 2 }")))
    blobs = model.blobs(DATA, LABELS)
    torch.testing.assert_close(model.loss(DATA, LABELS), blobs["loss"] + 2 * blobs["p"].sum())


def test_a_reader_before_a_layer_in_place_keeps_the_old_value() -> None:
    before = layer("Power", "kept", "conv1", "", "power_param { scale: 1 }")
    model = build_model(
        recipe_of(IMAGE, conv("conv1", "data", more=FILL), before, layer("ReLU", "relu", "conv1", "conv1"))
    )
    blobs = model.blobs(DATA)
    assert blobs["kept"].min() < 0 <= blobs["conv1"].min()
    assert torch.equal(blobs["kept"].relu(), blobs["conv1"])


def test_a_net_without_a_loss_says_so() -> None:
    with pytest.raises(Caffe2TorchError, match="no loss in phase TRAIN"):
        build_model(recipe_of(IMAGE, linear("ip", "data"))).loss(DATA)


TWINS = """
layer { name: "d" type: "Input" top: "data" include { phase: TRAIN } input_param { shape { dim: 4 dim: 3 } } }
layer { name: "d" type: "Input" top: "data" include { phase: TEST } input_param { shape { dim: 1 dim: 3 } } }
layer { name: "l" type: "Input" top: "label" input_param { shape { dim: 4 } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 5
        weight_filler { type: "xavier" } } }
layer { name: "drop" type: "Dropout" bottom: "ip" top: "ip" dropout_param { dropout_ratio: 0.9 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" include { phase: TRAIN } }
layer { name: "prob" type: "Softmax" bottom: "ip" top: "prob" include { phase: TEST } }
layer { name: "extra" type: "InnerProduct" bottom: "prob" top: "extra" include { phase: TEST stage: "more" }
        inner_product_param { num_output: 2 } }
"""


def test_train_computes_phase_train_and_eval_phase_test_with_the_same_parameters(tmp_path: Path) -> None:
    model = of_text(tmp_path, TWINS)
    x = torch.rand(4, 3)
    assert list(model.blobs(x, torch.zeros(4))) == ["data", "label", "ip", "loss"]
    assert (model(x) == 0).any()
    model.eval()
    assert list(model.blobs(x, torch.zeros(4))) == ["data", "label", "ip", "prob"]
    torch.testing.assert_close(model(x), model.get_submodule("ip")(x).softmax(1))
    assert [name for name, _ in model.named_parameters()] == ["ip.weight", "ip.bias"]


def test_stages_hold_for_both_phases(tmp_path: Path) -> None:
    model = of_text(tmp_path, TWINS, stages=["more"]).eval()
    assert model(torch.rand(4, 3)).shape == (4, 2)


# What it holds.


def test_submodules_bear_the_layers_names_made_identifiers() -> None:
    names = ["conv1/7x7", "res.1", "type", "2fc", "class", "a b", "a_b", "forward"]
    layers = [linear(name, names[i - 1] if i else "data") for i, name in enumerate(names)]
    model = build_model(recipe_of(IMAGE, *layers))
    found = [name for name, _ in model.named_children()]
    assert found == ["conv1_7x7", "res_1", "type_", "layer_2fc", "class_", "a_b", "a_b_2", "forward_"]
    assert [model.layer_names[name] for name in found] == names
    assert all(name.isidentifier() for name in found)


def test_layers_that_share_a_blob_share_a_parameter() -> None:
    shared = 'param { name: "w" } param { name: "b" }'
    settings = "inner_product_param { num_output: 4 }"
    net = 'input: "a" input_shape { dim: 2 dim: 3 } input: "b" input_shape { dim: 2 dim: 3 }'
    model = build_model(recipe_of(net, *(layer("InnerProduct", f"ip_{x}", x, "", settings, shared) for x in "ab")))
    assert model.get_parameter("ip_a.weight") is model.get_parameter("ip_b.weight")
    assert len(list(model.parameters())) == 2


def test_blobs_of_lr_mult_0_are_frozen_and_the_rest_learns() -> None:
    frozen = "param { lr_mult: 0 } param { lr_mult: 0 }"
    model = build_model(recipe_of(IMAGE, conv("a", "data", params=frozen), linear("b", "a")))
    assert [parameter.requires_grad for parameter in model.parameters()] == [False, False, True, True]


def test_parameters_bind_by_construction_and_train() -> None:
    model = build_model(recipe_of(NET))
    assert model.binding is not None
    assert [bound.name for bound in model.binding.blobs] == ["conv1.weight", "conv1.bias", "ip.weight", "ip.bias"]
    assert {bound.evidence for bound in model.binding.blobs} == {"built from the net"}


def test_fillers_fill_it_repeatably() -> None:
    filler = 'weight_filler { type: "uniform" min: 2 max: 3 }'
    recipe = recipe_of(IMAGE, conv("a", "data", more=filler))
    first, second = (build_model(recipe, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    weight = first.get_parameter("a.weight")
    assert 2 <= weight.min() < weight.max() <= 3
    assert torch.equal(weight, second.get_parameter("a.weight"))
    assert first.get_parameter("a.bias").count_nonzero() == 0


def test_statistics_loaded_from_caffe_survive_the_next_training_pass() -> None:
    """Caffe's factor comes along: without it the first batch would replace what was collected."""
    model = build_model(recipe_of(IMAGE, norm("bn", "data")))
    kept = model.get_submodule("bn")
    kept.running_mean.fill_(5.0)
    kept.factor.fill_(1000.0)
    model(DATA)
    assert kept.running_mean.mean().item() == pytest.approx(5, abs=0.01)


def test_a_bn_that_its_fork_freezes_keeps_its_statistics_in_training(tmp_path: Path) -> None:
    text = """input: "data" input_shape { dim: 4 dim: 3 dim: 5 dim: 5 }
        layer { name: "bn" type: "BN" bottom: "data" top: "bn" bn_param { frozen: true }
                param { lr_mult: 1 } param { lr_mult: 1 } param { lr_mult: 0 } param { lr_mult: 0 } }"""
    model = of_text(tmp_path, text)
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(1)) + 2
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.testing.assert_close(model.train()(x), model.eval()(x))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(p.requires_grad for p in model.parameters())


def test_sizes_that_nothing_states_stand_as_one_and_inputs_gives_them() -> None:
    net = 'layer { name: "d" type: "Data" top: "data" top: "label" data_param { batch_size: 2 } }'
    recipe = recipe_of(net, conv("a", "data"))
    assert build_model(recipe).get_parameter("a.weight").shape == (4, 1, 3, 3)
    assert build_model(recipe, inputs={"data": (2, 3, 8, 8)}).get_parameter("a.weight").shape == (4, 3, 3, 3)


def test_on_the_meta_device_it_takes_no_memory() -> None:
    with torch.device("meta"):
        model = build_model(recipe_of(NET))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert model(DATA.to("meta")).shape == (2, 5)


# What it does not know.

STRANGE = (
    IMAGE + LABEL + layer("Python", "strange", "data") + layer("Odd", "odd", "strange", params="param { lr_mult: 1 }")
)


def test_all_unknown_layers_are_listed_at_once_and_what_does_not_need_them_runs() -> None:
    with pytest.warns(UserWarning, match=r"strange: Python.*odd: Odd"):
        model = build_model(recipe_of(STRANGE, linear("ip", "data"), LOSS))
    assert list(model.missing) == ["strange", "odd"]
    assert model.loss(DATA, LABELS).isfinite()
    with pytest.raises(UnsupportedError, match=r"layer 'strange' \(Python\)(?s:.)*layers="):
        model.blobs(DATA, LABELS)


def test_factories_give_the_modules_of_unknown_layers_by_type_or_by_name() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    recipe = recipe_of(IMAGE, layer("Python", "strange", "data"), layer("ReLU", "relu", "strange"))
    model = build_model(recipe, layers={"Python": lambda _: Twice(), "relu": lambda _: nn.Sigmoid()})
    torch.testing.assert_close(model(DATA), (2 * DATA).sigmoid())


def test_nets_with_unknown_layers_still_translate() -> None:
    with warnings.catch_warnings(action="ignore"):
        model = build_model(recipe_of(STRANGE))
    assert model.get_parameter("odd.blob_0").shape == ()


def test_a_mask_of_a_larger_image_than_the_file_states_is_refused_with_layer_and_sizes() -> None:
    pool = layer("Pooling", "p", "data", "p mask", "pooling_param { pool: MAX kernel_size: 2 stride: 2 }")
    up = layer("Upsample", "up", "p mask", "", "upsample_param { upsample_h: 8 upsample_w: 8 }")
    model = build_model(recipe_of(IMAGE, pool, up))
    image = torch.arange(2 * 3 * 10 * 10.0).reshape(2, 3, 10, 10)
    assert model(image[..., :8, :8]).shape == (2, 3, 8, 8)
    with pytest.raises(NetError, match=r"net.prototxt:3:\d+: layer 'up' \(Upsample\)") as raised:
        model(image)
    assert raised.value.found == (
        "a mask of 2x3x5x5, up to place 99, does not put 2x3x5x5 into images of 8x8, which have 64 places"
    )


# What torch does with it.


@pytest.fixture
def model() -> CaffeNet:
    torch.manual_seed(0)
    net = (
        IMAGE + LABEL + conv("conv1", "data", more=FILL) + norm("bn", "conv1") + layer("ReLU", "relu", "conv1", "conv1")
    )
    pool = layer("Pooling", "pool", "conv1", "", "pooling_param { pool: MAX kernel_size: 3 stride: 2 }")
    return build_model(recipe_of(net, pool, linear("ip", "pool", more=FILL), LOSS))


def test_it_copies_and_pickles_with_what_it_computes(model: CaffeNet) -> None:
    model.eval()
    wanted = model(DATA)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    others = (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False))
    for other in others:
        assert torch.equal(other(DATA), wanted)
        assert other.get_parameter("ip.weight") is not model.get_parameter("ip.weight")


def test_it_exports(model: CaffeNet) -> None:
    model.eval()
    exported = torch.export.export(model, (DATA,)).module()
    assert torch.equal(exported(DATA), model(DATA))


def test_it_exports_to_onnx(model: CaffeNet) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    program = torch.onnx.export(model.eval(), (DATA,), dynamo=True)
    assert program is not None
    onnx.checker.check_model(program.model_proto)
    assert {"Conv", "MaxPool", "Gemm"} <= {node.op_type for node in program.model_proto.graph.node}


def test_it_compiles_without_a_break(model: CaffeNet) -> None:
    twin = copy.deepcopy(model)
    compiled = torch.compile(model.loss, backend="eager", fullgraph=True)
    loss = compiled(DATA, LABELS)
    torch.testing.assert_close(loss, twin.loss(DATA, LABELS))
    torch.testing.assert_close(model.get_submodule("bn").running_mean, twin.get_submodule("bn").running_mean)


def test_an_unpooling_compiles_and_exports() -> None:
    pool = layer("Pooling", "p", "data", "p mask", "pooling_param { pool: MAX kernel_size: 2 stride: 2 }")
    model = build_model(recipe_of(IMAGE, pool, layer("Upsample", "up", "p mask", "", "upsample_param { scale: 2 }")))
    compiled = torch.compile(copy.deepcopy(model), backend="eager", fullgraph=True)
    assert torch.equal(compiled(DATA), model(DATA))
    assert torch.equal(torch.export.export(model, (DATA,)).module()(DATA), model(DATA))


def test_it_runs_under_autocast(model: CaffeNet) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert model(DATA).dtype is torch.bfloat16
        loss = model.loss(DATA, LABELS)
    loss.backward()
    torch.testing.assert_close(loss, model.loss(DATA, LABELS), rtol=0.05, atol=0.05)


def test_it_trains_in_data_parallel_processes(model: CaffeNet, tmp_path: Path) -> None:
    group = torch.distributed
    group.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        wrapped(DATA, LABELS, loss=True).backward()
    finally:
        group.destroy_process_group()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_torchscript_is_not_supported_and_says_so(model: CaffeNet) -> None:
    with warnings.catch_warnings(action="ignore"), pytest.raises(Caffe2TorchError, match="TorchScript"):
        torch.jit.script(model)


def test_a_translation_of_a_built_net_is_ok(tmp_path: Path) -> None:
    (tmp_path / "solver.prototxt").write_text('base_lr: 0.1 lr_policy: "fixed" momentum: 0.9 max_iter: 10')
    (tmp_path / "net.prototxt").write_text(NET)
    recipe = read_recipe(tmp_path / "net.prototxt", tmp_path / "solver.prototxt")
    t = translate(recipe, model=build_model(recipe))
    assert t.report.ok
    before = t.model.loss(DATA, LABELS)
    for _ in range(5):
        t.optimizer.zero_grad()
        t.model.loss(DATA, LABELS).backward()
        t.optimizer.step()
        t.scheduler.step()
    assert t.model.loss(DATA, LABELS) < before


def test_a_translation_without_a_model_builds_the_net_without_memory_and_fills_it_when_it_is_used(
    tmp_path: Path,
) -> None:
    (tmp_path / "solver.prototxt").write_text('base_lr: 0.1 lr_policy: "fixed" momentum: 0.9 max_iter: 10')
    (tmp_path / "net.prototxt").write_text(NET + norm("bn", "conv1"))
    t = translate(tmp_path / "net.prototxt", tmp_path / "solver.prototxt")
    assert t.report.ok
    planned = [parameter for group in t.optimizer.param_groups for parameter in group["params"]]
    assert all(parameter.is_meta for parameter in planned)
    assert isinstance(t.model, CaffeNet)
    assert not any(tensor.is_meta for tensor in (*planned, *t.model.buffers()))
    assert {id(parameter) for parameter in planned} <= {id(parameter) for parameter in t.model.parameters()}
    before = t.model.loss(DATA, LABELS)
    assert t.model.get_parameter("ip.weight").abs().max() > 0
    for _ in range(5):
        t.optimizer.zero_grad()
        t.model.loss(DATA, LABELS).backward()
        t.optimizer.step()
        t.scheduler.step()
    assert t.model.loss(DATA, LABELS) < before


def test_a_model_of_ones_own_stays_on_the_meta_device(tmp_path: Path) -> None:
    (tmp_path / "solver.prototxt").write_text('base_lr: 0.1 lr_policy: "fixed" max_iter: 10')
    (tmp_path / "net.prototxt").write_text(NET)
    recipe = read_recipe(tmp_path / "net.prototxt", tmp_path / "solver.prototxt")
    with torch.device("meta"):
        model = build_model(recipe)
    t = translate(recipe, model=model)
    assert all(parameter.is_meta for parameter in t.model.parameters())
    with pytest.raises(Caffe2TorchError, match="on the meta device"):
        t.initialize()


def test_a_translation_without_a_model_refuses_at_once_what_no_filler_can_fill(tmp_path: Path) -> None:
    (tmp_path / "solver.prototxt").write_text('base_lr: 0.1 lr_policy: "fixed" max_iter: 10')
    (tmp_path / "net.prototxt").write_text(IMAGE + linear("ip", "data", more='weight_filler { type: "odd" }'))
    t = translate(tmp_path / "net.prototxt", tmp_path / "solver.prototxt")
    assert any("Caffe knows no filler 'odd'" in note.message for note in t.report.notes)


def test_build_model_is_public() -> None:
    assert "build_model" in caffe2torch.__all__
