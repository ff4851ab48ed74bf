"""Optimizers that do more in ``step()`` than a rule: what the report says of them is true."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from emitted import load
from mistakes import INPUT, Chain, Port, convolution, named, vgg, vgg_net
from torch import Tensor, nn

from caffe2torch.auditing import audit
from caffe2torch.errors import ModelError
from caffe2torch.translation import translate
from caffe2torch.verification.report import Check, Report

SOLVER = "base_lr: 0.01 momentum: 0.9 weight_decay: 0.0005 max_iter: 1000 "
FIXED = SOLVER + 'lr_policy: "fixed" '


def groups(model: nn.Module, times: float = 1.0) -> list[dict[str, Any]]:
    """Weights and biases as Caffe has them, at ``times`` its rates."""
    biases = {"params": named(model, lambda name: name.endswith("bias")), "lr": 0.02 * times, "weight_decay": 0.0}
    weights = named(model, lambda name: name.endswith("weight"))
    return [{"params": weights, "lr": 0.01 * times, "weight_decay": 0.0005}, biases]


def audited(
    make: Callable[[nn.Module], torch.optim.Optimizer],
    solver: str = FIXED,
    scheduler: Callable[[Any], Any] | None = None,
    **options: Any,
) -> Report:
    model = vgg()
    optimizer = make(model)
    with tempfile.TemporaryDirectory() as folder:
        recipe = Port(vgg_net(), vgg, groups, solver).recipe(Path(folder))
    return audit(recipe, model, optimizer, None if scheduler is None else scheduler(optimizer), **options)


def check(report: Report, name: str) -> Check:
    (found,) = [one for one in report.checks if one.name == name]
    return found


# Gradients that are collected inside step().


class InState(torch.optim.SGD):
    """Adds gradients up beside its history, and steps with their sum or mean at every ``every``-th call."""

    def __init__(self, params: Any, every: int, *, mean: bool = True, calls: int = 0) -> None:
        super().__init__(params, momentum=0.9)
        self.every, self.mean, self.calls = every, mean, calls
        self.kept: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for p in (p for group in self.param_groups for p in group["params"]):
            self.kept[p] = self.kept.get(p, 0) + p.grad / (self.every if self.mean else 1)
        self.calls += 1
        if self.calls % self.every == 0:
            for p, gradient in self.kept.items():
                p.grad = gradient
            self.kept = {}
            super().step(closure)


class InGrad(torch.optim.SGD):
    """Lets ``backward()`` add them up: its ``zero_grad()`` does nothing in between."""

    def __init__(self, params: Any, every: int, *, mean: bool = True, calls: int = 0) -> None:
        super().__init__(params, momentum=0.9)
        self.every, self.mean, self.calls = every, mean, calls

    def zero_grad(self, set_to_none: bool = True) -> None:
        if self.calls % self.every == 0:
            super().zero_grad(set_to_none)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        self.calls += 1
        if self.calls % self.every == 0:
            for p in (p for group in self.param_groups for p in group["params"]):
                p.grad /= self.every if self.mean else 1
            super().step(closure)


class Skipping(InGrad):
    """Drops the gradients of all other calls."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        torch.optim.SGD.zero_grad(self, set_to_none)


@pytest.mark.parametrize("kind", [InState, InGrad])
@pytest.mark.parametrize("every", [2, 7])
def test_gradients_that_are_collected_inside_the_step_are_right_where_their_mean_is_caffes(
    kind: Any, every: int
) -> None:
    report = audited(lambda model: kind(groups(model), every), FIXED + f"iter_size: {every}")
    assert report.ok, str(report)
    seen = check(report, "accumulation").seen
    assert f"step() moves parameters once in {every} calls, and divides by iter_size" in seen
    assert "call it after each pass" in seen


@pytest.mark.parametrize("kind", [InState, InGrad])
def test_a_step_that_sums_what_it_collects_is_right_where_the_losses_are_divided_and_that_is_said(kind: Any) -> None:
    def make(model: nn.Module) -> torch.optim.Optimizer:
        return kind(groups(model), 4, mean=False)  # type: ignore[no-any-return]  # a class of this file

    report = audited(make, FIXED + "iter_size: 4")
    assert not report.wrong
    assert [one.name for one in report.differing] == ["accumulation"]
    assert "does not divide by iter_size: your loop has to divide each loss by 4" in check(report, "accumulation").text
    assert audited(make, FIXED + "iter_size: 4", accumulation="mean").ok


def test_groups_at_a_part_of_the_rate_divide_for_a_step_that_sums() -> None:
    def make(model: nn.Module) -> torch.optim.Optimizer:
        scaled = groups(model, 1 / 4)
        scaled[0]["weight_decay"] *= 4
        return InState(scaled, 4, mean=False)

    report = audited(make, FIXED + "iter_size: 4")
    assert report.ok, str(report)
    assert "the groups' lr is Caffe's / iter_size" in check(report, "accumulation").seen


@pytest.mark.parametrize(("passes", "fix"), [(1, "let each call of step() move them"), (2, "collect 2 passes")])
def test_collecting_another_number_of_passes_is_named_and_the_rows_are_those_of_an_update(
    passes: int, fix: str
) -> None:
    report = audited(lambda model: InState(groups(model), 12), FIXED + f"iter_size: {passes}")
    assert not report.wrong, str(report)
    assert [one.name for one in report.differing] == ["accumulation"]
    said = check(report, "accumulation").text
    assert f"step() moves parameters once in 12 calls, Caffe's iter_size is {passes}" in said
    assert f"{fix}, or state iter_size: 12 in the solver" in said
    assert audited(lambda model: InState(groups(model, 3.0), 12), FIXED).wrong  # rows are judged all the same


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (
            lambda model: Skipping(groups(model), 4),
            "the gradients of these calls, each after a zero_grad(), do not count",
        ),
        (lambda model: InGrad(groups(model), 4, calls=1), "it stands between two of those: audit it where it has just"),
    ],
)
def test_calls_that_cannot_be_taken_as_one_step_are_named_and_nothing_is_read(make: Any, why: str) -> None:
    report = audited(make, FIXED + "iter_size: 4")
    (cause,) = report.causes
    assert f"step() moves parameters once in 4 calls, and {why}" in cause.message
    assert check(report, "update rule").result == "not seen"


def test_the_scheduler_is_taken_to_step_once_an_update_and_that_is_said() -> None:
    solver = SOLVER.replace("0.9", "0.0") + 'lr_policy: "step" stepsize: 300 gamma: 0.1 iter_size: 4'

    def make(model: nn.Module) -> torch.optim.Optimizer:
        optimizer = InGrad(groups(model), 4)
        for group in optimizer.param_groups:
            group["momentum"] = 0.0
        return optimizer

    report = audited(make, solver, lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 300))
    assert report.ok, str(report)
    assert "the scheduler was stepped, and has to be, after each 4 of them" in " ".join(str(report).split())


def test_an_update_rule_that_moves_nothing_is_not_seen() -> None:
    class Still(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            pass

    report = audited(lambda model: Still(groups(model), momentum=0.9))
    assert len(report.wrong) == len(report.rows)
    assert check(report, "update rule").result == "not seen"


# Settings of torch's own optimizers and schedulers.

ADAM = 'type: "Adam" base_lr: 0.01 momentum: 0.9 weight_decay: 0.0005 max_iter: 1000 lr_policy: "fixed" '


@pytest.mark.skipif(torch.cuda.is_available(), reason="it is about machines without a GPU")
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.Adadelta])
def test_capturable_on_a_cpu_is_read_as_without_it_and_said(kind: Any) -> None:
    reports = [audited(lambda model, on=on: kind(groups(model), capturable=on), ADAM) for on in (True, False)]
    said = [str(report) for report in reports]
    assert "warning: capturable=True works on a GPU alone" in said[0]
    assert reports[0].checks == reports[1].checks
    assert [row.observed for row in reports[0].rows] == [row.observed for row in reports[1].rows]
    assert "could not be observed" not in said[0]


STEP = SOLVER + 'lr_policy: "step" stepsize: 300 gamma: 0.1'
CYCLES: dict[str, Callable[[Any], Any]] = {
    "OneCycleLR": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.01, 1000, cycle_momentum=False),
    "CyclicLR": lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.004, 0.1, 50, cycle_momentum=False),
}


@pytest.mark.parametrize("name", CYCLES)
def test_no_group_is_asked_to_mend_the_rate_that_a_scheduler_makes_by_itself(name: str) -> None:
    report = audited(lambda model: torch.optim.SGD(groups(model), momentum=0.9), STEP, CYCLES[name])
    assert "StepLR(optimizer, 300, gamma=0.1)" in check(report, "rate schedule").fix
    assert report.causes
    for cause in report.causes:
        assert cause.fix == f"{name} makes the rate of each group, whatever the group says: see rate schedule"
        assert not cause.code


def test_rows_that_a_cycle_puts_at_one_multiple_of_caffes_rates_are_right() -> None:
    def cycle(optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, [0.1, 0.2], 1000, cycle_momentum=False)

    report = audited(lambda model: torch.optim.SGD(groups(model), momentum=0.9), STEP, cycle)
    assert not report.wrong
    assert "at iteration 0 the scheduler makes every lr 0.4 times Caffe's" in check(report, "rate schedule").text


@pytest.mark.parametrize(
    ("kinds", "said"), [(2, ""), (10, "; beyond 5 steps 8 of 10 kinds of param groups were looked at")]
)
def test_how_many_kinds_of_groups_took_many_steps_is_said_where_some_did_not(kinds: int, said: str) -> None:
    def make(model: nn.Module) -> torch.optim.Optimizer:
        split = [
            {**group, "params": [p], "place": number % kinds}
            for number, (group, p) in enumerate((group, p) for group in groups(model) for p in group["params"])
        ]
        return torch.optim.SGD(split if kinds > 2 else groups(model), momentum=0.9)

    net = "".join(convolution(f"conv{k}", f"conv{k - 1}" if k else "data", 3) for k in range(5))
    model = Chain(**{f"conv{k}": nn.Conv2d(3, 3, 1) for k in range(5)})
    with tempfile.TemporaryDirectory() as folder:
        recipe = Port(INPUT + net, vgg, groups, FIXED).recipe(Path(folder))
    rule = check(audit(recipe, model, make(model)), "update rule")
    assert rule.result == "ok"
    assert rule.seen == "SGD, momentum 0.9, L2 decay" + said


def test_every_step_that_was_not_looked_at_is_said_beside_what_else_happened() -> None:
    first = [True]

    class Breaking(torch.optim.SGD):
        """Raises once, and ends after some steps."""

        def step(self, closure: Any = None) -> Any:
            count = self.__dict__["count"] = self.__dict__.get("count", 0) + 1
            if first.pop() if first else count > 50:
                raise RuntimeError("enough")
            return super().step(closure)

    def make(model: nn.Module) -> torch.optim.Optimizer:
        optimizer = Breaking(groups(model), momentum=0.9)
        optimizer.state[optimizer.param_groups[0]["params"][0]]["kept"] = 1
        return optimizer

    text = " ".join(str(audited(make)).split())
    assert "a step raised once and not again: RuntimeError: enough" in text
    assert "steps beyond the first 5 were not looked at: RuntimeError: enough" in text


# Steps that look at more than one number, or at more than one gradient.


class ByNorm(torch.optim.SGD):
    """LARS: weights, but no biases, step by their own norm over that of the gradient."""

    def scale(self, weights: Tensor, step: Tensor) -> Tensor:
        return 0.001 * weights.norm() / (step.norm() + 1e-8)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for p in (p for group in self.param_groups for p in group["params"] if p.dim() > 1):
            step = p.grad + 0.0005 * p
            p.grad = step * self.scale(p, step) if p.norm() else step
        super().step(closure)


class ByGradient(ByNorm):
    def scale(self, _: Tensor, step: Tensor) -> Tensor:
        return 1 / (step.norm() + 1e-8)


class Centred(ByNorm):
    """Gradient centralization."""

    def scale(self, _: Tensor, step: Tensor) -> Tensor:
        return 1 - step.mean() / step.where(step != 0, 1.0)


class Lamb(torch.optim.Adam):
    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        every = [p for group in self.param_groups for p in group["params"]]
        before = [p.clone() for p in every]
        super().step(closure)
        for p, old in zip(every, before, strict=True):
            step = (p - old) / 0.01
            p.copy_(old + 0.01 * step * (old.norm() / step.norm() if old.norm() and step.norm() else 1.0))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda m: ByNorm(groups(m), momentum=0.9),
            "each parameter's step is scaled by the norm of its weights, as LARS",
        ),
        (lambda m: Lamb(groups(m)), "each parameter's step is scaled by the norm of its weights, as LARS and LAMB do"),
        (lambda m: ByGradient(groups(m), momentum=0.9), "a step is as long whatever the norm of the gradient"),
        (lambda m: Centred(groups(m), momentum=0.9), "what happens to one number depends on the others"),
    ],
)
def test_a_step_that_a_norm_scales_is_named_by_that_norm(make: Any, said: str) -> None:
    report = audited(make)
    assert said in check(report, "update rule").text
    weights = {row.name for row in report.rows if row.name.endswith("weight")}
    assert weights <= {row.name for row in report.wrong}


def test_parameters_that_no_norm_scales_are_right_beside_those_of_lars() -> None:
    report = audited(lambda model: ByNorm(groups(model), momentum=0.9))
    assert {row.name for row in report.wrong} == {"conv1.weight", "conv2.weight", "score.weight"}
    assert check(report, "update rule").parameters == ("conv1.weight", "conv2.weight", "score.weight")


class Sam(torch.optim.SGD):
    """The first of two calls goes up the gradient, the second comes back and steps."""

    up = True

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        every = [p for group in self.param_groups for p in group["params"]]
        norm = torch.stack([p.grad.norm() for p in every]).norm()
        for p in every:
            if self.up:
                self.state[p]["way"] = p.grad * (0.05 / (norm + 1e-12))
            p.add_(self.state[p]["way"], alpha=1 if self.up else -1)
        self.up = not self.up
        if self.up:
            super().step(closure)


class ClosureSam(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        if closure is None:
            raise RuntimeError("SAM needs a closure")
        return super().step(closure)


def test_the_two_passes_of_sam_are_named() -> None:
    report = audited(lambda model: Sam(groups(model), momentum=0.9))
    assert (
        "every second call of step() takes back what the one before did, as in SAM's"
        in check(report, "update rule").text
    )
    assert len(report.wrong) == len(report.rows)


@pytest.mark.parametrize(
    "make", [lambda model: ClosureSam(groups(model), momentum=0.9), lambda model: torch.optim.LBFGS(model.parameters())]
)
def test_a_step_that_needs_a_closure_is_not_judged_and_the_reason_is_said(make: Any) -> None:
    report = audited(make)
    assert not report.ok
    assert check(report, "update rule").result == "not seen"
    assert "such a step evaluates the loss itself, as LBFGS's and SAM's; Caffe's takes one gradient" in " ".join(
        str(report).split()
    )


def test_that_a_step_is_as_long_whatever_its_gradient_is_no_difference_from_an_adaptive_solver() -> None:
    class Shared(torch.optim.Adam):
        """One second moment for all numbers of a parameter."""

        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                for p in group["params"]:
                    p.grad /= p.grad.norm() + 1e-8
            super().step(closure)

    said = check(audited(lambda model: Shared(groups(model)), ADAM), "update rule").text
    assert "what happens to one number depends on the others" in said


def test_a_step_that_ends_while_its_calls_are_counted_is_judged_by_its_first_ones() -> None:
    class Ending(torch.optim.SGD):
        """Moves nothing at its second step, and ends after some."""

        calls = 0

        def step(self, closure: Any = None) -> Any:
            self.calls += 1
            if self.calls > 50:
                raise RuntimeError("enough")
            return None if self.calls == 2 else super().step(closure)

    report = audited(lambda model: Ending(groups(model), momentum=0.9))
    assert "could not be observed" not in str(report)
    assert "does not step as Caffe's SGD does" in check(report, "update rule").text


# Clipping inside step().

CLIPPED = FIXED + "clip_gradients: 5 "


class ClippedSGD(torch.optim.SGD):
    """Clips at ``bound``: its gradients, or with ``decay_first`` what they are with the weight decay."""

    def __init__(self, params: Any, bound: float = 5.0, *, decay_first: bool = False) -> None:
        super().__init__(params, momentum=0.9)
        self.bound, self.decay_first = bound, decay_first

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        decays = [group["weight_decay"] for group in self.param_groups]
        if self.decay_first:
            for group in self.param_groups:
                for p in (p for p in group["params"] if p.grad is not None):
                    p.grad.add_(p, alpha=group["weight_decay"])
                group["weight_decay"] = 0.0
        torch.nn.utils.clip_grad_norm_([p for group in self.param_groups for p in group["params"]], self.bound)
        super().step(closure)
        for group, decay in zip(self.param_groups, decays, strict=True):
            group["weight_decay"] = decay


@pytest.mark.parametrize(
    ("solver", "bound", "decay_first", "said"),
    [
        (CLIPPED, 5.0, False, ""),
        (CLIPPED, 5.0, True, "gradients at a norm of 5, and the weight decay with them; Caffe adds the decay after"),
        (CLIPPED, 2.0, True, "gradients at a norm of 2, and the weight decay with them; Caffe's clip_gradients is 5"),
        (CLIPPED.replace("0.0005", "0"), 5.0, True, ""),  # no decay that could be scaled
        (CLIPPED, 1e9, True, "the step does not clip: your loop has to"),  # the clip never acts
    ],
)
def test_a_clip_that_scales_the_decay_differs_and_is_said(
    solver: str, bound: float, decay_first: bool, said: str
) -> None:
    def make(model: nn.Module) -> torch.optim.Optimizer:
        given = groups(model)
        if "weight_decay: 0 " in solver:
            given[0]["weight_decay"] = 0.0
        return ClippedSGD(given, bound, decay_first=decay_first)

    report = audited(make, solver)
    clipping = check(report, "clipping")
    assert not report.wrong
    assert report.ok == (clipping.result != "differs") == ("decay" not in said)
    assert said in clipping.text
    assert clipping.result != "ok" or clipping.seen == "inside the step, at a norm of 5"


@pytest.mark.parametrize("kind", ["SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam"])
def test_late_steps_of_an_optimizer_that_clips_are_looked_at(kind: str, tmp_path: Path) -> None:
    momentum = " momentum: 0.9" if kind in ("SGD", "Nesterov", "AdaDelta", "Adam") else ""
    text = f'type: "{kind}" base_lr: 0.01 weight_decay: 0.0005 lr_policy: "fixed" max_iter: 1000 clip_gradients: 5'
    text += momentum
    recipe, model = Port(vgg_net(), vgg, groups, text).recipe(tmp_path), vgg()
    ours = translate(recipe, model=model)
    emitted = load(ours.source(), f"clipped_{kind}").build_optimizer(model)
    for report in (ours.report, audit(recipe, model, emitted)):
        assert report.ok, str(report)
        assert not [note.message for note in report.notes if "not looked at" in note.message]


def test_what_an_optimizer_that_needs_all_parameters_does_late_is_seen(tmp_path: Path) -> None:
    recipe, model = Port(vgg_net(), vgg, groups, CLIPPED).recipe(tmp_path), vgg()
    ours = load(translate(recipe, model=model).source(), "clipped").build_optimizer(model)

    class Forgetting(type(ours)):  # type: ignore[misc]  # the class of an optimizer is known when it is made
        """Loses its history at step 100."""

        calls = 0

        def step(self, closure: Any = None) -> Any:
            self.calls += 1
            if self.calls == 100:
                self.state.clear()
            return super().step(closure)

    ours.__class__ = Forgetting
    report = audit(recipe, model, ours)
    assert "from step 100 on it moves otherwise than before" in check(report, "update rule").text


# Multipliers that an optimizer finds by the parameter.


class Table(NamedTuple):
    """Parameters of twice the rate, however they are kept."""

    twice: Any


class LookedUp(torch.optim.SGD):
    """Finds rate and decay of each parameter in what ``keep`` made of them, and takes ``id`` for the keys."""

    def __init__(self, model: nn.Module, keep: Callable[[list[Any]], Any], *, by_id: bool = True) -> None:
        super().__init__(model.parameters(), lr=0.01, momentum=0.9)
        self.key: Callable[[Tensor], Any] = id if by_id else lambda p: p
        self.kept = keep([self.key(p) for p in named(model, lambda name: name.endswith("bias"))])

    def twice(self, p: Tensor) -> bool:
        kept = self.kept.twice if isinstance(self.kept, Table) else self.kept
        return any(self.key(p) is one or (isinstance(one, int) and one == self.key(p)) for one in kept)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        assert closure is None
        for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            twice = self.twice(p)
            history = self.state[p].setdefault("history", torch.zeros_like(p))
            history.mul_(0.9).add_(p.grad if twice else p.grad + 0.0005 * p, alpha=0.02 if twice else 0.01)
            p.sub_(history)


KEPT: dict[str, Callable[[list[Any]], Any]] = {
    "keys of a dict": lambda keys: dict.fromkeys(keys, 2.0),
    "a set": set,
    "a frozenset": frozenset,
    "a list": list,
    "a tuple": tuple,
    "a set in a named tuple": lambda keys: Table(set(keys)),
}


@pytest.mark.parametrize("by_id", [True, False])
@pytest.mark.parametrize("keep", KEPT.values(), ids=KEPT)
def test_multipliers_kept_by_parameter_or_by_its_id_are_found_for_the_copies(keep: Any, by_id: bool) -> None:
    assert audited(lambda model: LookedUp(model, keep, by_id=by_id)).ok
    none = audited(lambda model: LookedUp(model, lambda keys: keep(keys[:1]), by_id=by_id))
    assert [row.name for row in none.wrong] == ["conv2.bias", "score.bias"]


TWICE: set[int] = set()


def is_twice(p: Tensor) -> bool:
    return id(p) in TWICE


class LookedUpOutside(LookedUp):
    """Finds them in a variable of the module."""

    def twice(self, p: Tensor) -> bool:
        return is_twice(p)


class LookedUpInTheClass(LookedUp):
    """Finds them in an attribute of the class."""

    known: ClassVar[dict[Tensor, float]] = {}

    def twice(self, p: Tensor) -> bool:
        return p in self.known


def looked_up_around(model: nn.Module) -> torch.optim.Optimizer:
    biases = {id(p): 2.0 for p in named(model, lambda name: name.endswith("bias"))}

    class Around(LookedUp):
        def twice(self, p: Tensor) -> bool:
            return id(p) in biases

    return Around(model, list)


def looked_up_outside(model: nn.Module) -> torch.optim.Optimizer:
    TWICE.clear()
    TWICE.update(id(p) for p in named(model, lambda name: name.endswith("bias")))
    return LookedUpOutside(model, list)


def looked_up_in_the_class(model: nn.Module) -> torch.optim.Optimizer:
    LookedUpInTheClass.known.update(dict.fromkeys(named(model, lambda name: name.endswith("bias")), 2.0))
    return LookedUpInTheClass(model, list)


@pytest.mark.parametrize(
    ("make", "place"),
    [
        (looked_up_around, "biases"),
        (looked_up_outside, "TWICE"),
        (looked_up_in_the_class, "LookedUpInTheClass.known"),
    ],
)
def test_of_multipliers_kept_where_no_copy_is_found_nothing_is_claimed(make: Any, place: str) -> None:
    report = audited(make)
    (cause,) = report.causes
    assert f"could not be observed: it looks parameters up in {place}, where no copy of them is" in cause.message
    assert all(row.observed.lr is None for row in report.rows)


def test_a_rule_by_the_number_of_axes_is_seen() -> None:
    class Decaying(torch.optim.SGD):
        """Decays what has several axes, as many ports do, at ``decay``."""

        def __init__(self, params: Any, decay: float) -> None:
            super().__init__(params, momentum=0.9)
            self.decay = decay

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            for p in (p for group in self.param_groups for p in group["params"]):
                if p.ndim > 1:
                    p.grad.add_(p, alpha=self.decay)
            super().step(closure)

    def made(decay: float) -> Report:
        return audited(lambda model: Decaying([{**group, "weight_decay": 0.0} for group in groups(model)], decay))

    assert made(0.0005).ok
    assert {row.role for row in (row.blob for row in made(0.001).wrong)} == {"weight"}


# What is said of a run.


def schedule_of(solver: str, scheduler: Callable[[Any], Any], **options: Any) -> str:
    return check(
        audited(lambda model: torch.optim.SGD(groups(model), momentum=0.9), solver, scheduler, **options),
        "rate schedule",
    ).text


@pytest.mark.parametrize(
    ("policy", "scheduler"),
    [
        ('lr_policy: "step" gamma: 0.1 stepsize: 100', lambda o: torch.optim.lr_scheduler.StepLR(o, 400)),
        ('lr_policy: "poly" power: 0.9', lambda o: torch.optim.lr_scheduler.PolynomialLR(o, 4000, power=0.9)),
    ],
)
def test_a_scheduler_made_for_a_step_a_pass_is_named(policy: str, scheduler: Callable[[Any], Any]) -> None:
    said = schedule_of(SOLVER + policy + " iter_size: 4", scheduler, accumulation="mean")
    assert "the scheduler counts passes, of which Caffe's iterations have iter_size 4" in said


def test_a_scheduler_that_never_changes_counts_no_passes() -> None:
    policy = 'lr_policy: "step" gamma: 0.1 stepsize: 100 iter_size: 4'
    said = schedule_of(SOLVER + policy, lambda o: torch.optim.lr_scheduler.ConstantLR(o, 1.0), accumulation="mean")
    assert "the scheduler leaves the rate as it is" in said


def test_the_rate_of_a_single_group_is_said_beside_caffes_and_a_factor_near_one_is_not_said() -> None:
    policy = 'lr_policy: "step" gamma: 0.1 stepsize: 100'

    def one_group(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.0005)

    report = audited(one_group, SOLVER + policy, lambda o: torch.optim.lr_scheduler.StepLR(o, 100, 0.2))
    assert "at iteration 100 lr is 0.002, Caffe's is 0.001" in check(report, "rate schedule").text
    slowly = schedule_of(SOLVER + policy, lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10**7))
    assert "1 times what it was" not in slowly


def test_what_lightning_returns_is_refused_with_what_to_give() -> None:
    def as_dict(model: nn.Module) -> Any:
        return {"optimizer": torch.optim.SGD(groups(model), momentum=0.9)}

    with pytest.raises(ModelError, match="the optimizer is a dict") as refused:
        audited(as_dict)
    assert 'configure_optimizers() returns give its "optimizer"' in str(refused.value)
    with pytest.raises(ModelError, match="the optimizer is a list") as refused:
        audited(lambda model: ([torch.optim.SGD(groups(model), momentum=0.9)], []))  # type: ignore[arg-type,return-value]  # what is refused
    assert "give the first as the optimizer, the second as the scheduler" in str(refused.value)


def test_what_is_wrong_with_several_is_said_of_several() -> None:
    def without_biases(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups(model)[:1], momentum=0.9)

    def frozen(model: nn.Module) -> torch.optim.Optimizer:
        made = torch.optim.SGD(groups(model), momentum=0.9)
        for weight in made.param_groups[0]["params"][:2]:
            weight.requires_grad_(False)
        return made

    assert audited(without_biases).causes[0].message.endswith("biases: no param group holds them")
    said = "they are frozen, their requires_grad is False; Caffe trains them at lr 0.01"
    assert said in audited(frozen).causes[0].message


def test_a_stated_multiplier_is_the_users_and_not_caffes() -> None:
    model = vgg()
    model.register_parameter("extra", nn.Parameter(torch.zeros(2)))
    optimizer = torch.optim.SGD([*groups(model), {"params": [model.extra], "lr": 0.02}], momentum=0.9)
    with tempfile.TemporaryDirectory() as folder:
        recipe = Port(vgg_net(), vgg, groups, FIXED).recipe(Path(folder))
    report = audit(recipe, model, optimizer, unclaimed={"extra": (1.0, 0.0)})
    assert report.wrong[0].reason == "lr is 0.02, you stated 0.01 (2 times as much)"
    held = audit(recipe, model, optimizer, unclaimed={"extra": (0.0, 0.0)})
    assert held.wrong[0].reason == "it is trained at lr 0.02; you stated lr_mult 0"


def test_how_many_parameters_there_are_does_not_count_buffers(tmp_path: Path) -> None:
    net = INPUT + convolution("conv1", "data", 3) + 'layer { name: "bn" type: "BatchNorm" bottom: "conv1" top: "bn" }'
    model = Chain(conv1=nn.Conv2d(3, 3, 1), bn=nn.BatchNorm2d(3, affine=False))
    recipe = Port(net, vgg, groups, FIXED).recipe(tmp_path)
    assert "5 blobs, 2 parameters" in str(audit(recipe, model, torch.optim.SGD(groups(model), momentum=0.9)))
    assert "all 2 parameters: lr 10 times as much" in [
        cause.message for cause in audit(recipe, model, torch.optim.SGD(groups(model, 10), momentum=0.9)).causes
    ]
