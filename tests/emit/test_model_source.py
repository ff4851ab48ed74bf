"""``model.py``: the built net as a file that needs torch alone."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, get_type_hints

import pytest
import torch
from fork_nets import NETS, feed
from net_goldens import file_errors
from nets import IMAGE, conv, layer, linear, norm, recipe_of
from places import REPOSITORY
from torch import nn

from caffe2torch import build_model, read_recipe
from caffe2torch.emit.model import model_source
from caffe2torch.errors import UnsupportedError
from caffe2torch.models.build_net import CaffeNet

LABEL = 'input: "label" input_shape { dim: 2 }\n'
FILL = 'weight_filler { type: "xavier" }'
RUNS = REPOSITORY / "fixtures" / "runs"


def written(model: CaffeNet, **how: Any) -> nn.Module:
    """The class of the file, with the weights of the model."""
    module = ModuleType("model")
    sys.modules["model"] = module
    try:
        exec(compile(model_source(model, **how), "model.py", "exec"), module.__dict__)
    finally:
        del sys.modules["model"]
    classes = [one for one in vars(module).values() if isinstance(one, type) and one.__module__ == "model"]
    net = classes[-1]().to(next(model.parameters(), torch.zeros(())).dtype)
    net.load_state_dict({name: t for name, t in model.state_dict().items() if name in net.state_dict()})
    return net.train(model.training)


def same(found: Any, wanted: Any) -> None:
    """Equal but for rounding: the net applies a BatchNorm and its Scale in one pass, the file in two."""
    if isinstance(wanted, dict):
        assert list(found) == list(wanted)
        found, wanted = list(found.values()), list(wanted.values())
    for one, other in zip(*((found, wanted) if isinstance(wanted, list) else ([found], [wanted])), strict=True):
        close = (1e-9 if other.dtype == torch.float64 else 1e-5) * float(other.detach().abs().max())
        torch.testing.assert_close(one, other, rtol=0, atol=close)


@pytest.mark.parametrize("case", ["siamese_inv", "sigmoid_nesterov_sum", "euclid_bn_adam_clip"])
def test_the_file_computes_what_the_net_does_and_learns_the_same_gradients(case: str) -> None:
    torch.manual_seed(0)
    recipe = read_recipe(RUNS / case / "net.prototxt")
    model = build_model(recipe)
    net = written(model, loss=True)
    shapes = {top: shape for one in recipe.layers for top, shape in zip(one.tops, one.top_shapes, strict=True)}
    inputs = [torch.rand([size or 1 for size in shapes[name] or ()]).round() for name in model.input_names]
    images = [one for name, one in zip(model.input_names, inputs, strict=True) if name in ("data", "data_p")]
    same(net(*images), model(*images))
    loss = net.loss(*inputs)
    same(loss, model.loss(*inputs))
    loss.backward()
    model.loss(*inputs).backward()
    mine, theirs = dict(net.named_parameters()), dict(model.named_parameters())
    assert mine.keys() == theirs.keys()
    for name, parameter in theirs.items():
        torch.testing.assert_close(mine[name].grad, parameter.grad, rtol=1e-5, atol=1e-7)


def test_the_file_needs_torch_alone(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(
        model_source(build_model(read_recipe(RUNS / "siamese_inv" / "net.prototxt")), loss=True)
    )
    program = "import sys, model; assert 'caffe2torch' not in sys.modules; print(model.SiameseInv())"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "(feat_p): Linear(in_features=8, out_features=2, bias=True)" in done.stdout


def test_modules_bear_the_layers_names_and_the_line_that_states_them(tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(IMAGE + conv("conv1/7x7", "data") + linear("ip", "conv1/7x7"))
    text = model_source(build_model(read_recipe(tmp_path / "net.prototxt")))
    assert "self.conv1_7x7 = nn.Conv2d(3, 4, 3, padding=1)  # net.prototxt:2, conv1/7x7" in text
    assert "conv1_7x7 = self.conv1_7x7(data)\n        ip = self.ip(conv1_7x7)\n        return ip\n" in text


def test_only_helpers_that_are_used_are_copied() -> None:
    pool = "spp_param { pyramid_height: 2 pool: MAX }"
    text = model_source(build_model(recipe_of(IMAGE, layer("SPP", "spp", "data", "", pool), linear("ip", "spp"))))
    assert "def spp(" in text
    assert "def wide_pool(" in text
    assert "def eltwise(" not in text
    assert "class BatchNorm" not in text


def test_a_blob_called_like_a_helper_or_a_keyword_gets_another_name() -> None:
    net = [
        conv("a", "data", more=FILL),
        layer("Concat", "cat", "a data", "concat"),
        layer("ReLU", "r", "concat", "class"),
    ]
    model = build_model(
        recipe_of(IMAGE, *net, layer("Slice", "s", "class", "self torch", "slice_param { slice_point: 2 }"))
    )
    x = torch.rand(2, 3, 8, 8)
    same(written(model)(x), model(x))


def test_a_value_that_is_still_needed_is_not_written_over() -> None:
    """Both readers of ``x`` want what it was before the layer in place."""
    fork = layer("Split", "s", "data", "x y") + conv("a", "x", 3, more=FILL) + layer("TanH", "t", "x", "x")
    model = build_model(recipe_of(IMAGE, fork, layer("Concat", "c", "a x y")))
    before = layer("Power", "p", "data", "x") + layer("Eltwise", "e", "x data", "early")
    late = layer("ReLU", "r", "early", "x") + linear("ip", "x", more=FILL)
    x = torch.randn(2, 3, 8, 8)
    for net in (model, build_model(recipe_of(IMAGE, before, late))):
        same(written(net)(x), net(x))


def test_phases_that_differ_are_both_written(tmp_path: Path) -> None:
    text = IMAGE + LABEL + linear("ip", "data", more=FILL)
    text += layer("SoftmaxWithLoss", "loss", "ip label", "", "include { phase: TRAIN }")
    text += layer("Softmax", "prob", "ip", "", "include { phase: TEST }")
    (tmp_path / "net.prototxt").write_text(text)
    model = build_model(read_recipe(tmp_path / "net.prototxt"))
    x = torch.rand(2, 3, 8, 8)
    for training in (True, False):
        same(written(model.train(training))(x), model(x))
    assert "if not self.training:" in model_source(model)


def test_a_frozen_parameter_stays_frozen() -> None:
    model = build_model(recipe_of(IMAGE, conv("a", "data", params="param { lr_mult: 0 }", more=FILL), norm("n", "a")))
    net = written(model)
    assert {n: p.requires_grad for n, p in net.named_parameters()} == {
        n: p.requires_grad for n, p in model.named_parameters()
    }


def test_unknown_layers_are_all_named() -> None:
    with pytest.warns(UserWarning, match="cannot be computed"):
        model = build_model(recipe_of(IMAGE, layer("Python", "a", "data"), layer("Odd", "b", "a"), linear("ip", "b")))
    with pytest.raises(UnsupportedError, match=r"a \(Python\), b \(Odd\)"):
        model_source(model)


SMALL_NETS = (
    "bvlc-cifar10-full.TEST",
    "bvlc-lenet-inv.TRAIN",
    "bvlc-siamese-mnist.TRAIN",
    "dqn-hfo-critic-nonet.TRAIN",
    "mtcnn-12net@euclidean.TRAIN",
)
LARGE_NETS = (
    "cvgj-alexnet-bn.TRAIN",
    "cvgj-resnet50-preact.TEST",
    "fcn8s-voc.TRAIN",
    "hed.TRAIN",
    "lrcn-activity-lstm-flow.TEST",
    "mobilenet-ssd.TRAIN",
    "pr-gan-mnist-d.TRAIN",
    "pr-googlenet-bn.TRAIN",
    "segnet-basic-bayesian.TRAIN",
    "squeezenet-v1.0.TRAIN",
)


@pytest.mark.shared
@pytest.mark.parametrize("name", [*SMALL_NETS, *(pytest.param(name, marks=pytest.mark.large) for name in LARGE_NETS)])
def test_the_file_of_a_public_net_computes_and_learns_what_caffe_recorded(shared: Path, name: str) -> None:
    errors = file_errors(shared / "goldens" / "nets" / name, written)
    assert any(key.startswith("blob") for key in errors)
    assert any(key.startswith("gradient") for key in errors)
    assert {key: error for key, error in errors.items() if not error <= 1e-6} == {}


@pytest.mark.parametrize("kind", NETS)
def test_a_file_carries_the_layers_of_forks(kind: str) -> None:
    """With all that they use: functions, their base classes, gradients of their own."""
    torch.manual_seed(0)
    model = build_model(recipe_of(NETS[kind]), generator=torch.Generator().manual_seed(0))
    assert not model.missing
    loss = bool(model._phase().trace.losses)
    inputs = feed(model)
    net, twin = written(model, loss=loss), copy.deepcopy(model)
    needed = [name for name, _ in model._phase().forward.inputs]
    found, wanted = net(*(inputs[name] for name in needed)), twin(*(inputs[name] for name in needed))
    same(found, wanted)
    if loss:
        found, wanted = net.loss(*inputs.values()), twin.loss(*inputs.values())
        same(found, wanted)
    if wanted.requires_grad:
        found.sum().backward()
        wanted.sum().backward()
        for (name, mine), theirs in zip(net.named_parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-5, atol=1e-6, msg=name)


def test_a_file_with_a_loss_has_every_type_that_it_names() -> None:
    """What only reads a prototxt's settings takes a ``Layer``, and no file needs it."""
    loss = layer("SoftmaxWithLoss", "loss", "ip label", "loss")
    model = build_model(recipe_of(IMAGE, LABEL, linear("ip", "data", 3), loss))
    module: dict[str, Any] = {"__name__": "model"}
    exec(compile(model_source(model, loss=True), "model.py", "exec"), module)
    functions = [one for one in module.values() if isinstance(one, FunctionType)]
    assert functions
    for function in functions:
        get_type_hints(function)  # raises NameError
