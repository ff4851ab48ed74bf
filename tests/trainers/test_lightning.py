"""Lightning: it averages, steps with a closure, clips if it is asked to, resumes, and freezes before ``translate``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sharded_runs import ITERATIONS, SCALED, SOLVERS, net, train, translated, weights
from torch import nn
from trainer_runs import apart, batches, trained_by_a_plain_loop

lightning = pytest.importorskip("lightning", reason="Lightning is not installed: pip install '.[trainers]'")
callbacks = pytest.importorskip("lightning.pytorch.callbacks")
pytestmark = pytest.mark.filterwarnings("default")  # of the library about itself

CONSTANT = 'type: "SGD" momentum: 0.9 base_lr: 0.05 lr_policy: "fixed" weight_decay: 0.01 max_iter: 20 '


class Module(lightning.LightningModule):
    def __init__(self, folder: Path, solver: str) -> None:
        super().__init__()
        self.net, self.folder, self.solver = net(), folder, solver

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        inputs, labels = batch
        return nn.functional.cross_entropy(self.net(inputs), labels)

    def configure_optimizers(self) -> dict[str, object]:
        self.t = translated(self.folder, self.net, self.solver, accumulation="mean")
        return {"optimizer": self.t.optimizer, "lr_scheduler": {"scheduler": self.t.scheduler, "interval": "step"}}


def trainer(folder: Path, **options: object) -> lightning.Trainer:
    settings = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    settings |= {"accelerator": "cpu", "logger": False, "default_root_dir": folder, "accumulate_grad_batches": 2}
    return lightning.Trainer(**{**settings, "max_steps": ITERATIONS, **options})


@pytest.mark.parametrize("solver", [CONSTANT + "iter_size: 2", SOLVERS["SGD"] + SCALED, SOLVERS["Adam"] + SCALED])
def test_accumulate_grad_batches_is_iter_size(tmp_path: Path, solver: str) -> None:
    module = Module(tmp_path, solver)
    trainer(tmp_path).fit(module, batches())
    assert module.t.scheduler.last_epoch == ITERATIONS
    assert apart(module.net, trained_by_a_plain_loop(tmp_path, solver)) < 1e-6


def test_a_parameter_without_gradient_decays_under_a_closure_too(tmp_path: Path) -> None:
    class HalfUsed(Module):
        def training_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            return self.net.a(batch[0]).square().mean()

    module = HalfUsed(tmp_path, CONSTANT)
    trainer(tmp_path, accumulate_grad_batches=1, max_steps=2).fit(module, batches())
    assert type(module.t.optimizer) is torch.optim.SGD
    decayed = net().b.weight * (1 - 0.05 * 0.01)
    decayed = decayed - (0.9 * 0.05 * 0.01 * net().b.weight + 0.05 * 0.01 * decayed)
    torch.testing.assert_close(module.net.b.weight, decayed, rtol=1e-6, atol=0)


def test_the_monitor_sees_the_rate_of_each_group_by_its_name(tmp_path: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger

    module, monitor = Module(tmp_path, SOLVERS["SGD"]), callbacks.LearningRateMonitor("step")
    options = {"logger": CSVLogger(tmp_path), "log_every_n_steps": 1, "accumulate_grad_batches": 1}
    trainer(tmp_path, callbacks=[monitor], **options).fit(module, batches())
    for group in module.t.optimizer.param_groups:
        (logged,) = (rates for name, rates in monitor.lrs.items() if name.endswith(f"/{group['name']}"))
        assert logged == pytest.approx([0.05 * 0.5 ** (i // 2) * group["lr_mult"] for i in range(ITERATIONS)])


def test_a_run_resumes_from_a_checkpoint_of_lightnings(tmp_path: Path) -> None:
    solver = SOLVERS["SGD"] + SCALED
    first, again = (trainer(tmp_path, max_epochs=epochs, max_steps=-1) for epochs in (1, 2))
    first.fit(Module(tmp_path, solver), batches(iterations=range(3)))
    first.save_checkpoint(tmp_path / "run.ckpt")
    module = Module(tmp_path, solver)
    again.fit(module, batches(iterations=range(3)), ckpt_path=tmp_path / "run.ckpt")
    assert module.t.scheduler.last_epoch == 6

    straight = net()
    t = translated(tmp_path, straight, solver)
    for _ in range(2):
        train(t, straight, range(3))
    assert apart(module.net, straight) < 1e-6


def test_gradient_clip_val_makes_it_another_training(tmp_path: Path) -> None:
    """The step clips already. Lightning's own clipping comes before it, at a norm that the solver does not state."""
    solver = SOLVERS["SGD"] + SCALED
    module = Module(tmp_path, solver)
    trainer(tmp_path, gradient_clip_val=0.1).fit(module, batches())
    assert apart(module.net, trained_by_a_plain_loop(tmp_path, solver)) > 0.1


def test_what_base_finetuning_freezes_stays_frozen_until_it_is_released(tmp_path: Path) -> None:
    class ReleaseAfterOneEpoch(callbacks.BaseFinetuning):
        def freeze_before_training(self, pl_module: lightning.LightningModule) -> None:
            self.freeze(pl_module.net.a)

        def finetune_function(
            self,
            pl_module: lightning.LightningModule,
            epoch: int,
            optimizer: torch.optim.Optimizer,  # noqa: ARG002  # Lightning passes it
        ) -> None:
            if epoch == 1:
                seen.update(weights(pl_module.net))
                self.make_trainable(pl_module.net.a)

    seen: dict[str, torch.Tensor] = {}
    module = Module(tmp_path, SOLVERS["SGD"] + SCALED)
    options = {"reload_dataloaders_every_n_epochs": 1, "max_epochs": 2, "max_steps": -1}
    trainer(tmp_path, callbacks=[ReleaseAfterOneEpoch()], **options).fit(module, batches(iterations=range(3)))
    assert [[str(f.kind) for f in row.faults] for row in module.t.report.rows] == [["frozen"], ["frozen"], [], []]
    assert torch.equal(seen["a.weight"], net().a.weight)
    assert not torch.equal(seen["b.weight"], net().b.weight)

    straight = net()
    straight.a.requires_grad_(False)
    t = translated(tmp_path, straight, SOLVERS["SGD"] + SCALED)
    train(t, straight, range(3))
    straight.a.requires_grad_(True)
    train(t, straight, range(3))
    assert apart(module.net, straight) < 1e-6
