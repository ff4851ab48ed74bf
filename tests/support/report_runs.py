"""Reports on real optimizers of a small net, which need torch; ``report_samples`` does without."""

from __future__ import annotations

from dataclasses import replace

import torch
from report_samples import HOSTILE
from small_net import SGD, SmallNet, groups_of, recipe_of, report_of

from caffe2torch.binding.plan import Binding, plan_groups
from caffe2torch.recipe import Note, Severity
from caffe2torch.verification.report import Report
from caffe2torch.verification.run_probe import observe
from caffe2torch.verification.verify import verify


def right() -> Report:
    model = SmallNet()
    return report_of(model, torch.optim.SGD(groups_of(model), momentum=0.9))


def notebook() -> Report:
    """The rule that treats every name with ``bias`` in it as a convolution's bias, and a classifier in no group."""
    model = SmallNet()
    rest = [p for n, p in model.named_parameters() if "bias" not in n and "classifier" not in n]
    biases = [p for n, p in model.named_parameters() if "bias" in n and "classifier" not in n]
    groups = [{"params": rest, "weight_decay": 0.0005}, {"params": biases, "lr": 0.2}]
    return report_of(model, torch.optim.SGD(groups, lr=0.1, momentum=0.9))


def hostile() -> Report:
    """A net whose layer, parameter, file and notes have hostile names."""
    model = SmallNet()
    recipe, binding = recipe_of(model)
    blob = replace(recipe.blobs[0], layer=HOSTILE, where=replace(recipe.blobs[0].where, file=HOSTILE))
    recipe = replace(recipe, net_name=HOSTILE, notes=(Note(blob.where, Severity.WARNING, f"[red]{HOSTILE}|`x`"),))
    binding = Binding("SmallNet", (replace(binding.blobs[0], blob=blob), *binding.blobs[1:]))
    optimizer = torch.optim.SGD(groups_of(model)[1:], momentum=0.9)
    return verify(recipe, binding, plan_groups(recipe, binding), observe(model, optimizer, SGD))
