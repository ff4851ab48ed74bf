"""The HF Trainer: it averages, it clips unless it is kept from it, it resumes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sharded_runs import BATCH, ITERATIONS, SCALED, SOLVERS, net, translated
from torch import nn
from trainer_runs import apart, batches, trained_by_a_plain_loop

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install '.[trainers]'")
pytest.importorskip("accelerate", reason="the HF Trainer needs Accelerate: pip install '.[trainers]'")
pytestmark = pytest.mark.filterwarnings("default")  # of the libraries about themselves

CONSTANT = 'type: "SGD" momentum: 0.9 base_lr: 0.05 lr_policy: "fixed" weight_decay: 0.01 max_iter: 20 '


class WithLoss(nn.Module):
    """As the HF Trainer wants it: the forward pass returns the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        out = self.net(inputs)
        return {"loss": nn.functional.cross_entropy(out, labels), "logits": out}


def trained(folder: Path, solver: str, resume_from: str | None = None, **settings: object) -> WithLoss:
    model = WithLoss()
    t = translated(folder, model.net, solver, accumulation="mean")
    arguments = transformers.TrainingArguments(
        output_dir=str(folder / "out"),
        use_cpu=True,
        max_steps=ITERATIONS,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=2,
        train_sampling_strategy="sequential",
        report_to=[],
        disable_tqdm=True,
        **{"max_grad_norm": 0, "save_strategy": "no", **settings},
    )
    samples = [{"inputs": x, "labels": y} for x, y in batches().dataset]
    trainer = transformers.Trainer(model, arguments, train_dataset=samples, optimizers=(t.optimizer, t.scheduler))
    trainer.train(resume_from_checkpoint=resume_from)
    assert t.scheduler.last_epoch == ITERATIONS
    return model


@pytest.mark.parametrize("solver", [CONSTANT + "iter_size: 2", SOLVERS["SGD"] + SCALED, SOLVERS["Adam"] + SCALED])
def test_the_trainer_learns_as_a_plain_loop(tmp_path: Path, solver: str) -> None:
    straight = trained_by_a_plain_loop(tmp_path, solver)
    assert apart(trained(tmp_path, solver).net, straight) < 1e-6


def test_its_own_clipping_makes_it_another_training(tmp_path: Path) -> None:
    """``max_grad_norm`` is 1 by default; the net's gradients have a norm of about 3."""
    solver = SOLVERS["SGD"] + "iter_size: 2"
    straight = trained_by_a_plain_loop(tmp_path, solver)
    assert apart(trained(tmp_path, solver, max_grad_norm=1.0).net, straight) > 0.1


def test_the_trainer_resumes_from_its_own_checkpoint(tmp_path: Path) -> None:
    solver = SOLVERS["SGD"] + SCALED
    trained(tmp_path, solver, save_strategy="steps", save_steps=3)
    resumed = trained(tmp_path, solver, resume_from=str(tmp_path / "out" / "checkpoint-3"))
    assert apart(resumed.net, trained_by_a_plain_loop(tmp_path, solver)) < 1e-6
