"""SegNetBasic trained by a translated optimizer against the same net trained by Caffe."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as all of torch's own documents write it
from segnet_replay import LOSS, Recording, distances, from_fixtures, from_shared, furthest, parameter_name, train

import caffe2torch
from caffe2torch.models import segnet_basic

CASES = [
    "fixtures basic_32x24_step",
    "fixtures basic_36x24_step",
    *(
        pytest.param(f"shared {case}", marks=pytest.mark.shared)
        for case in ("basic_32x24_step", "basic_36x24_step", "basic_32x24_poly")
    ),
]


@pytest.fixture(scope="module", params=CASES)
def recording(request, tmp_path_factory) -> Recording:
    place, case = request.param.split()
    if place == "shared":
        return from_shared(request.getfixturevalue("shared"), case)
    return from_fixtures(request.getfixturevalue("fixtures"), case, tmp_path_factory.mktemp(case))


def activations(model, images, monkeypatch):
    """Caffe's blobs by name; one computed in place holds what the last of its layers wrote."""
    seen, encode = {}, segnet_basic._encode

    def encode_and_note(x, conv, bn):
        pooled, mask, size = encode(x, conv, bn)
        number = 1 + sum(name.endswith("_mask") for name in seen)
        seen.update({f"pool{number}": pooled, f"pool{number}_mask": mask})
        return pooled, mask, size

    monkeypatch.setattr(segnet_basic, "_encode", encode_and_note)
    for name, module in model.named_children():
        if name.startswith("conv_decode") and not name.endswith("_bn"):
            upsample = name.replace("conv_decode", "upsample")
            module.register_forward_pre_hook(lambda _, given, name=upsample: seen.update({name: given[0]}))
        elif name.endswith("_bn"):
            rectified = F.relu if "decode" not in name else torch.clone
            module.register_forward_hook(
                lambda _, __, out, name=name[:-3], after=rectified: seen.update({name: after(out)})
            )
        else:
            module.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    model(images)
    return seen


def test_activations_are_caffes(recording, monkeypatch):
    seen = activations(recording.model(), recording.batch(0)[0], monkeypatch)
    compared = dict(recording.of("act"))
    assert len(compared) >= 7
    for blob, caffes in compared.items():
        if blob.endswith("_mask"):
            assert torch.equal(seen[blob].float(), caffes), blob
        else:
            assert furthest(seen[blob], caffes) < 2e-6, blob


def test_loss_of_recorded_scores_is_caffes(recording):
    scores = recording["act/conv_classifier"].requires_grad_()
    loss = LOSS(scores, recording.batch(0)[1])
    loss.backward()
    assert loss.item() == pytest.approx(recording["loss"][0].item(), rel=1e-6)
    assert furthest(scores.grad, recording["diff/conv_classifier"]) < 5e-7


def test_gradients_are_caffes(recording):
    model = recording.model()
    images, labels = recording.batch(0)
    LOSS(model(images), labels).backward()
    compared = dict(recording.of("grad@1"))
    for blob, caffes in compared.items():
        gradient = model.get_parameter(parameter_name(blob)).grad
        if caffes.abs().max() > 1e-5:
            assert furthest(gradient, caffes) < 5e-6, blob
        else:  # a convolution's bias before a BN: rounding around 0
            assert gradient.abs().max() < 1e-5, blob


def test_twenty_iterations_end_at_caffes_weights(recording):
    def trained(dtype):
        model = recording.model().to(dtype)
        t = caffe2torch.translate(recording.net, recording.solver, model)
        assert t.report.ok
        rates = []
        losses = []
        for iteration in range(20):
            rates.append(t.scheduler.rate())
            losses += train(model, t.optimizer, t.scheduler, recording, [iteration])
        assert rates == pytest.approx(recording["lr"].tolist(), rel=1e-6)
        return losses, distances(model, recording, 20)

    losses, found = trained(torch.float32)
    assert losses == pytest.approx(recording["loss"].tolist(), rel=3e-6)
    # Caffe's own rounding carries one blob of the 36 x 24 run 2.2e-6 away from where exact arithmetic ends (0.8e-6 in
    # the others). Where that exceeds 2e-6, no other float32 program can promise to be nearer.
    _, exact = trained(torch.float64)
    allowed = max(2e-6, 1.5 * max(exact.values()))
    assert allowed < 4e-6
    assert {blob: distance for blob, distance in found.items() if distance > allowed} == {}


def test_splitting_parameters_by_their_names_ends_elsewhere(fixtures, tmp_path):
    # What a port by hand does: every "bias" learns twice as fast and never decays, BN's shifts as well.
    recording = from_fixtures(fixtures, "basic_32x24_step", tmp_path)
    model = recording.model()
    weights = [parameter for name, parameter in model.named_parameters() if "bias" not in name]
    biases = [parameter for name, parameter in model.named_parameters() if "bias" in name]
    groups = [{"params": weights, "weight_decay": 0.0005}, {"params": biases, "lr": 0.2}]
    train(model, torch.optim.SGD(groups, lr=0.1, momentum=0.9), None, recording, range(20))
    assert max(distances(model, recording, 20).values()) > 0.1


@pytest.mark.shared
@pytest.mark.parametrize("case", ["basic_32x24_step", "basic_36x24_step", "basic_32x24_poly"])
def test_the_net_built_from_the_prototxt_follows_the_trace_as_segnet_basic_does(shared, case):
    recording = from_shared(shared, case)
    recipe = caffe2torch.read_recipe(recording.net, recording.solver)
    model = caffe2torch.build_model(recipe)
    with torch.no_grad():
        for blob, weight in recording.of("init"):
            parameter = model.get_parameter(parameter_name(blob))
            parameter.copy_(weight.reshape(parameter.shape))
    t = caffe2torch.translate(recipe, model=model)
    assert t.report.ok
    blobs = model.blobs(*recording.batch(0))
    assert {name: off for name, act in recording.of("act") if (off := furthest(blobs[name], act)) > 4e-6} == {}
    losses = []
    for iteration in range(20):
        loss = model.loss(*recording.batch(iteration))
        loss.backward()
        t.optimizer.step()
        t.scheduler.step()
        t.optimizer.zero_grad()
        losses.append(loss.item())
    assert max(distances(model, recording, 20).values()) < 3e-6
    assert losses == pytest.approx(recording["loss"].tolist(), rel=2e-6)
