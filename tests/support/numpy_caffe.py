"""Caffe's solvers once more, in NumPy and in no hurry: as the formulas stand in its source, one float32 step at a time.

Nothing here comes from caffe2torch but the settings. It is held against the recorded runs, and the library and the
emitted files against it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from caffe2torch.recipe import LrPolicy, Ramp, SolverSettings

F = np.float32
Blob = np.ndarray


@dataclass
class Caffe:
    """A solver in the middle of training: ``weights`` and histories by name, iteration, multistep counter."""

    solver: SolverSettings
    lr_mult: Mapping[str, float]
    decay_mult: Mapping[str, float]
    weights: dict[str, Blob]
    iteration: int = 0
    current_step: int = 0
    first: dict[str, Blob] = field(default_factory=dict)
    second: dict[str, Blob] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.first = {name: np.zeros_like(w) for name, w in self.weights.items()}
        self.second = {name: np.zeros_like(w) for name, w in self.weights.items()}

    def step(self, summed: Mapping[str, Blob]) -> np.float32:
        """``SGDSolver::ApplyUpdate`` with the summed gradient of each blob; returns the global rate."""
        solver, i = self.solver, self.iteration
        rate = self.rate()
        momentum = self.momentum(rate)
        decay = ramped(solver.weight_decay, solver.weight_decay_ramp, i)
        clip = clip_factor(summed.values(), solver.clip_gradients)
        for name, w in self.weights.items():
            g = summed[name].astype(F) * clip
            if solver.iter_size != 1:
                g = g * (F(1) / F(solver.iter_size))
            local_decay = decay * F(self.decay_mult[name])
            if local_decay:
                g = g + local_decay * (w if solver.regularization == "L2" else np.sign(w))
            local_rate = rate * F(self.lr_mult[name])
            self.weights[name] = w - self.update(name, g, local_rate, momentum)
        self.iteration += 1
        return rate

    def update(self, name: str, g: Blob, rate: np.float32, momentum: np.float32) -> Blob:
        """``ComputeUpdateValue`` of the six solvers."""
        one, delta = F(1), F(self.solver.delta)
        h, h2 = self.first[name], self.second[name]
        match self.solver.type:
            case "SGD":
                self.first[name] = momentum * h + rate * g
                return self.first[name]
            case "Nesterov":
                self.first[name] = momentum * h + rate * g
                return (one + momentum) * self.first[name] - momentum * h
            case "AdaGrad":
                self.first[name] = h + g * g
                return rate * (g / (np.sqrt(self.first[name]) + delta))
            case "RMSProp":
                kept = F(self.solver.rms_decay)
                self.first[name] = kept * h + (one - kept) * (g * g)
                return rate * (g / (np.sqrt(self.first[name]) + delta))
            case "AdaDelta":
                self.first[name] = momentum * h + (one - momentum) * (g * g)
                u = g * np.sqrt((h2 + delta) / (self.first[name] + delta))
                self.second[name] = momentum * h2 + (one - momentum) * (u * u)
                return rate * u
            case "Adam":
                b1, b2, t = momentum, F(self.solver.momentum2), self.iteration + 1
                self.first[name] = b1 * h + (one - b1) * g
                self.second[name] = b2 * h2 + (one - b2) * (g * g)
                correction = F(np.sqrt(1 - float(b2) ** t) / (1 - float(b1) ** t))
                return rate * correction * (self.first[name] / (np.sqrt(self.second[name]) + delta))
        raise AssertionError(self.solver.type)

    def momentum(self, rate: np.float32) -> np.float32:
        """NVIDIA's ``GetMomentum``; BVLC's is a constant."""
        if self.solver.momentum_from_rate is not None:
            return min(F((1 - 0.5 * np.sqrt(float(rate))) ** 2), F(self.solver.momentum_from_rate))
        return ramped(self.solver.momentum, self.solver.momentum_ramp, self.iteration)

    def rate(self) -> np.float32:
        """``GetLearningRate``, which raises the multistep counter by at most one; with the forks' rules."""
        policy, i = self.solver.policy, self.iteration
        base = F(policy.base_lr)
        if policy.warmup_iter is not None and i < policy.warmup_iter:
            left = policy.warmup_iter - i
            rate = (F(i) * base + F(left) * F(policy.warmup_start_lr)) / F(policy.warmup_iter)
        elif policy.rampup_interval is not None and i < policy.rampup_interval:
            a = F(i) / F(policy.rampup_interval)
            rate = F(policy.rampup_lr) + (base - F(policy.rampup_lr)) * a * a
        else:
            values = policy.stepvalues
            if policy.type == "multistep" and self.current_step < len(values) and i >= values[self.current_step]:
                self.current_step += 1
            rate = plain_rate(policy, i, self.current_step)
        return rate if policy.min_lr is None or not rate < F(policy.min_lr) else F(policy.min_lr)


def plain_rate(policy: LrPolicy, i: int, current_step: int) -> np.float32:
    """The table of policies, as BVLC has it and with NVIDIA's floor and Intel's stages."""
    base, gamma, power = F(policy.base_lr), F(policy.gamma), F(policy.power)
    with np.errstate(all="ignore"):
        match policy.type:
            case "fixed":
                return base
            case "step":
                return F(float(base) * float(gamma) ** (i // policy.stepsize))
            case "exp":
                return F(float(base) * float(gamma) ** i)
            case "multistep":
                return F(float(base) * float(gamma) ** current_step)
            case "inv":
                return base * F(np.power(F(1) + gamma * F(i), -power))
            case "poly":
                floor = F(policy.min_lr or 0)
                return (base - floor) * np.power(F(1) - F(i) / F(policy.max_iter), power) + floor
            case "sigmoid":
                return base * (F(1) / (F(1) + np.exp(-gamma * F(i - policy.stepsize))))
            case "multifixed":
                later = [lr for lr, last in zip(policy.stage_lrs, policy.stage_iters, strict=True) if i <= last]
                return F([*later, policy.stage_lrs[-1]][0])
    raise AssertionError(policy.type)


def ramped(value: float, ramp: Ramp | None, i: int) -> np.float32:
    if ramp is None:
        return F(value)
    return F(value) + (F(ramp.maximum) - F(value)) * np.power(F(i) / F(ramp.max_iter), F(ramp.power))


def clip_factor(gradients: Sequence[Blob], clip: float | None) -> np.float32:
    """``ClipGradients``: a factor for all gradients, 1 unless the norm of all together is larger than ``clip``."""
    if clip is None:
        return F(1)
    norm = F(np.sqrt(F(sum(float(np.sum(g.astype(np.float64) ** 2)) for g in gradients))))
    return F(clip) / norm if norm > F(clip) else F(1)
