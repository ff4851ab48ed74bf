"""LoRA: the base stays frozen, its rows say so, and the adapters learn at the multipliers that their user states."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from sharded_runs import ITERATIONS, SOLVERS, net, train, translated, weights

peft = pytest.importorskip("peft", reason="peft is not installed: pip install '.[trainers]'")
pytestmark = pytest.mark.filterwarnings("default")  # of the libraries about themselves

NAMES = {"a": "base_model.model.a.base_layer", "b": "base_model.model.b"}


def test_a_frozen_base_stays_frozen_and_the_adapters_learn(tmp_path: Path) -> None:
    model = peft.get_peft_model(net(), peft.LoraConfig(r=2, target_modules=["a"]))
    by_hand = copy.deepcopy(model)
    before = weights(model)
    t = translated(tmp_path, model, SOLVERS["SGD"], names=NAMES, unclaimed=(1.0, 0.0))
    assert [[str(fault.kind) for fault in row.faults] for row in t.report.rows[:4]] == [["frozen"]] * 4
    train(t, model, range(ITERATIONS))
    moved = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if "lora_" in name}
    assert not any(p.requires_grad for name, p in model.named_parameters() if "lora_" not in name)

    straight = [p for p in by_hand.parameters() if p.requires_grad]
    histories = [torch.zeros_like(p) for p in straight]
    for iteration in range(ITERATIONS):
        for k in range(2):
            generator = torch.Generator().manual_seed(10 * iteration + k)
            x, y = torch.randn(8, 30, generator=generator), torch.randint(3, (8,), generator=generator)
            torch.nn.functional.cross_entropy(by_hand(x), y).backward()
        with torch.no_grad():
            for p, history in zip(straight, histories, strict=True):
                history.mul_(0.9).add_(p.grad, alpha=0.05 * 0.5 ** (iteration // 2))  # Caffe's rule, without decay
                p.sub_(history)
                p.grad = None
    after = weights(by_hand)
    largest = max(float((after[name] - before[name]).abs().max()) for name in moved)
    assert max(float((weights(model)[name] - after[name]).abs().max()) for name in moved) < 1e-6 * largest
