"""The emitted file: needs torch alone, holds what its solver needs and no more, and takes names for data."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from emitted import code_lines, load
from hypothesis import given
from hypothesis import strategies as st

from caffe2torch.binding.plan import GroupMember, GroupPlan
from caffe2torch.emit import emit
from caffe2torch.errors import UnsupportedError
from caffe2torch.optim.build import build_optimizer
from caffe2torch.optim.schedule import build_scheduler
from caffe2torch.recipe import (
    BlobUse,
    LearnableBlob,
    LrPolicy,
    PolicyType,
    Ramp,
    Regularization,
    SolverSettings,
    SolverType,
    Source,
    SourceLocation,
    Stated,
    Statement,
    TrainingRecipe,
    Unsupported,
)

SOLVER = SolverSettings(
    SolverType.SGD,
    LrPolicy(PolicyType.STEP, base_lr=0.1, gamma=0.1, stepsize=3),
    momentum=0.9,
    weight_decay=0.0005,
    places={"base_lr": SourceLocation("solver.prototxt", 2, 1)},
)
EXPLICIT = Stated(Statement.EXPLICIT, Statement.EXPLICIT)
NASTY = [
    'quote"s',
    "quote's",
    '"""',
    "back\\slash\\",
    "new\nline",
    "carriage\rreturn",
    '"); import os; os.abort(); ("',
    "# noqa\n__import__('os').abort()",
    "{{ 7 * 7 }}{% raw %}",
    "Grüße/世界/\N{GRINNING FACE}",
    "bell\a\0\x0c\x85\u2028",
    "inception_3a/1x1",
    "%s %d {0}",
    "",
]


def blob(layer: str, index: int = 0, line: int = 3, stated: Stated = EXPLICIT) -> LearnableBlob:
    where = SourceLocation("nets/train.prototxt", line, 3)
    return LearnableBlob(layer, "Convolution", index, "weight", (2,), 1.0, 1.0, stated, where)


def parts(names: list[str], solver: SolverSettings = SOLVER) -> tuple[TrainingRecipe, tuple[GroupPlan, ...]]:
    """A recipe whose layers and parameters are called ``names``, the last of them with a group of its own."""
    blobs = tuple(blob(name, line=i) for i, name in enumerate(names))
    members = tuple(GroupMember(name, one) for name, one in zip(names, blobs, strict=True))
    groups = (
        GroupPlan("lr x1, decay x1", 1.0, 1.0, members[:-1]),
        GroupPlan(f"{names[-1]}: lr x10", 10.0, 1.0, members[-1:], factor=10.0),
    )
    return TrainingRecipe(names[0], blobs, solver, sources=(Source(names[-1], ""),)), groups


class Named(torch.nn.Module):
    """A model whose parameters may be called anything, past the checks of ``register_parameter``."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.held = {name: torch.nn.Parameter(torch.full((2,), float(i))) for i, name in enumerate(names)}
        self._parameters.update(self.held)

    def train_step(self, optimizer: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LRScheduler) -> None:
        for p in self.held.values():
            p.grad = torch.ones(2)
        optimizer.step()
        scheduler.step()


@pytest.fixture
def ruff(tmp_path: Path):
    def run(source: str, *, formatted: bool = True) -> None:
        file = tmp_path / "optimizer.py"
        file.write_text(source, encoding="utf-8")
        for command in (["check"], ["format", "--check", "--line-length", "120"])[: 1 + formatted]:
            result = subprocess.run(
                [sys.executable, "-m", "ruff", *command, "--isolated", "--no-cache", str(file)],
                capture_output=True,
                text=True,
                check=False,
            )
            assert result.returncode == 0, result.stdout + result.stderr

    return run


def test_names_are_data(ruff) -> None:
    recipe, groups = parts(NASTY)
    source = emit(recipe, groups, model_name='Model"""\\')
    assert source.isascii()
    assert all(line.isprintable() for line in source.splitlines())
    ruff(source, formatted=False)  # which would like other quotes around the quotes
    module, model, ours = load(source), Named(NASTY), Named(NASTY)
    optimizer = module.build_optimizer(model)
    scheduler = module.build_scheduler(optimizer)
    library = build_optimizer(ours, groups, SOLVER)
    library_scheduler = build_scheduler(library, SOLVER)
    assert [group["param_names"] for group in optimizer.param_groups] == [NASTY[:-1], NASTY[-1:]]
    for _ in range(8):
        model.train_step(optimizer, scheduler)
        ours.train_step(library, library_scheduler)
    for name in NASTY:
        torch.testing.assert_close(model.held[name], ours.held[name])


@given(st.lists(st.text(), min_size=2, max_size=4, unique=True))
def test_any_names_come_back_as_they_were(names: list[str]) -> None:
    recipe, groups = parts(names)
    tree = ast.parse(emit(recipe, groups, model_name=names[0]))
    assigned = next(node for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "GROUPS")
    written = [name for names in ast.literal_eval(assigned.value).values() for name in names]
    assert written == names
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert {"build_optimizer", "build_scheduler", "lr_factor", "CaffeSGD"} <= defined


SCRIPT = """
import sys

class NoCaffe2Torch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "caffe2torch":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NoCaffe2Torch())
sys.path.insert(0, sys.argv[1])
import torch
from optimizer import build_optimizer, build_scheduler

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 2))
optimizer = build_optimizer(model)
scheduler = build_scheduler(optimizer)
for _ in range(8):
    model(torch.ones(4, 3)).square().mean().backward()
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
assert not any(name.startswith("caffe2torch") for name in sys.modules)
print([p.detach().flatten().tolist() for p in model.parameters()])
"""


def test_it_trains_alike_where_caffe2torch_cannot_be_imported(tmp_path: Path) -> None:
    names = ["0.weight", "0.bias", "1.weight", "1.bias"]
    recipe, groups = parts(names)
    (tmp_path / "optimizer.py").write_text(emit(recipe, groups, model_name="Sequential"))
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 2))
    optimizer = build_optimizer(model, groups, SOLVER)
    scheduler = build_scheduler(optimizer, SOLVER)
    for _ in range(8):
        model(torch.ones(4, 3)).square().mean().backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    for theirs, p in zip(ast.literal_eval(printed), model.parameters(), strict=True):
        torch.testing.assert_close(torch.tensor(theirs), p.detach().flatten())


FORKS = LrPolicy(PolicyType.MULTISTEP, base_lr=0.1, gamma=0.1, stepvalues=(3,), warmup_iter=5, min_lr=1e-5)

FIXED = LrPolicy(PolicyType.FIXED, base_lr=0.1)
CLIP = ["CaffeOptimizer", "CaffeSGD", "ScaledSGD", "Accumulation", "Clipping"]


@pytest.mark.parametrize(
    ("solver", "classes", "functions"),
    [
        (replace(SOLVER, policy=FIXED), [], []),
        (replace(SOLVER, momentum=0.0), [], ["step_factor"]),
        (SOLVER, ["CaffeOptimizer", "CaffeSGD"], ["step_factor"]),
        (
            replace(SOLVER, policy=LrPolicy(PolicyType.MULTISTEP, base_lr=0.1)),
            ["CaffeOptimizer", "CaffeSGD"],
            ["multistep_factor"],
        ),
        (replace(SOLVER, clip_gradients=35.0), [*CLIP, "ClippedCaffeSGD"], ["step_factor", "gradient_norm"]),
        (replace(SOLVER, iter_size=4), [*CLIP[:-1], "AccumulatedCaffeSGD"], ["step_factor"]),
        (
            replace(SOLVER, regularization=Regularization.L1, policy=FIXED),
            ["CaffeOptimizer", "L1Decay", "L1SGD"],
            [],
        ),
        (replace(SOLVER, policy=FORKS), ["CaffeOptimizer", "CaffeSGD"], ["multistep_factor", "warm_up"]),
        (replace(SOLVER, type=SolverType.NESTEROV), ["CaffeOptimizer", "CaffeNesterov"], ["step_factor"]),
        (replace(SOLVER, type=SolverType.NESTEROV, policy=FIXED), [], []),
        (replace(SOLVER, type=SolverType.ADAM), ["CaffeOptimizer", "CaffeAdam"], ["step_factor"]),
        (replace(SOLVER, type=SolverType.ADAGRAD), [], ["step_factor"]),
        (replace(SOLVER, type=SolverType.RMSPROP, policy=FIXED), [], []),
    ],
)
def test_it_holds_what_its_solver_needs_and_no_more(
    solver: SolverSettings, classes: list[str], functions: list[str], ruff
) -> None:
    source = emit(*parts(["a", "b"], solver), model_name="Model")
    tree = ast.parse(source)
    assert [node.name for node in tree.body if isinstance(node, ast.ClassDef)] == classes
    defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert defined == [*functions, "build_optimizer", "build_scheduler", "lr_factor"]
    assert max(map(len, source.splitlines())) <= 120
    ruff(source)


@pytest.mark.parametrize(
    ("solver", "most"),
    [
        (replace(SOLVER, policy=FIXED), 75),
        (SOLVER, 100),
        (replace(SOLVER, clip_gradients=5.0, iter_size=2), 120),
        (replace(SOLVER, type=SolverType.ADAM), 100),
    ],
)
def test_it_is_short(solver: SolverSettings, most: int) -> None:
    """Without ``build_loss()``, whose lines ``test_loss_in_file`` counts."""
    assert code_lines(emit(*parts(["a", "b"], solver), model_name="Model")) <= most


@pytest.mark.parametrize(
    "solver",
    [
        replace(SOLVER, momentum_ramp=Ramp(0.99, 1.0, 10)),
        replace(SOLVER, iter_size=0),
        replace(SOLVER, policy=LrPolicy(PolicyType.POLY, 0.1)),
        replace(SOLVER, type=SolverType.ADAM, momentum=1.0),
        replace(SOLVER, policy=LrPolicy(PolicyType.FIXED, 0.0, warmup_iter=3)),
    ],
)
def test_what_a_file_cannot_carry_is_refused_when_it_is_written(solver: SolverSettings) -> None:
    with pytest.raises(UnsupportedError, match="cannot be written as a file of its own"):
        emit(*parts(["a", "b"], solver), model_name="Model")


def test_it_says_where_each_number_comes_from() -> None:
    stated = Stated(Statement.EXPLICIT, Statement.DEFAULTED)
    shared = replace(
        blob("c", 1, line=9, stated=stated), shared_with=(BlobUse("d", "Convolution", 1, SourceLocation("t", 1, 1)),)
    )
    members = (GroupMember("b.weight", blob("b")), GroupMember("c.bias", shared), GroupMember("extra", None))
    source = emit(
        TrainingRecipe("net", (), replace(SOLVER, weight_decay=0.0)),
        (GroupPlan("all", 1.0, 2.0, members, factor=5.0),),
        model_name="Model",
    )
    for line in (
        "BASE_LR = 0.1  # line 2",
        "MOMENTUM = 0.9  # by default",
        "WEIGHT_DECAY = 0.0  # by default",
        '        "b.weight",  # 3',
        '        "c.bias",  # 9, also d/1, decay_mult by default',
        '        "extra",  # given by hand',
    ):
        assert line in source.splitlines()


def test_it_is_the_same_text_each_time() -> None:
    code = """
from caffe2torch.emit import emit
from caffe2torch.binding.plan import GroupMember, GroupPlan
from caffe2torch.recipe import *
solver = SolverSettings(SolverType.ADAM, LrPolicy(PolicyType.POLY, 0.1, power=0.9, max_iter=9), clip_gradients=3.0)
group = GroupPlan("all", 1.0, 1.0, (GroupMember("a", None), GroupMember("b", None)))
print(emit(TrainingRecipe("net", (), solver), (group,), model_name="Model"))
"""
    command = [sys.executable, "-c", code]
    seeds = [{**os.environ, "PYTHONHASHSEED": seed} for seed in "12"]
    texts = {subprocess.run(command, capture_output=True, check=True, env=seed).stdout for seed in seeds}
    assert len(texts) == 1


def test_build_optimizer_fails_for_a_parameter_without_intention() -> None:
    recipe, groups = parts(["0.weight", "0.bias"])
    module = load(emit(recipe, groups, model_name="Sequential"))
    with pytest.raises(ValueError, match=r"the model has no 0.bias: give the unwrapped model"):
        module.build_optimizer(torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False)))
    two = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2, bias=False))
    with pytest.raises(ValueError, match=r"no group has 1.weight"):
        module.build_optimizer(two)
    module = load(emit(recipe, groups, model_name="Sequential", unclaimed=["1.weight"]))
    optimizer = module.build_optimizer(two)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2


def test_frozen_parameters_whose_gradients_caffe_clips_by_keep_them() -> None:
    unstated = Stated(Statement.SHARED, Statement.EXPLICIT)
    frozen = replace(blob("a", stated=unstated), lr_mult=0.0)
    groups = (GroupPlan("frozen", 0.0, 1.0, (GroupMember("weight", frozen), GroupMember("bias", None))),)
    model = torch.nn.Linear(2, 2)
    load(emit(TrainingRecipe("net", (), SOLVER), groups, model_name="Linear")).build_optimizer(model)
    assert (model.weight.requires_grad, model.bias.requires_grad) == (True, False)
    model = torch.nn.Linear(2, 2)
    build_optimizer(model, groups, replace(SOLVER, force_backward=True))
    assert (model.weight.requires_grad, model.bias.requires_grad) == (True, True)


def test_what_is_not_translated_is_refused_by_name_and_place_and_may_be_left_out() -> None:
    rule = Unsupported("larc", SourceLocation("solver.prototxt", 7, 1), "it sets a rate per blob from norms")
    solver = replace(SOLVER, unsupported=(rule,))
    recipe, groups = parts(["weight", "bias"], solver)
    for attempt in (
        lambda without: emit(recipe, groups, model_name="Linear", without=without),
        lambda without: build_optimizer(torch.nn.Linear(2, 2), groups, solver, without),
    ):
        with pytest.raises(UnsupportedError, match=r"solver.prototxt:7:1: larc is not translated") as error:
            attempt(())
        assert "larc" in str(error.value.hint)
        attempt(("larc",))
        with pytest.raises(UnsupportedError, match="does not ask for 'lars'"):
            attempt(("larc", "lars"))
    assert "asks for larc (solver.prototxt:7:1), which" in emit(recipe, groups, model_name="Linear", without=["larc"])


def test_emitting_does_not_import_torch() -> None:
    code = "import caffe2torch.emit.definitions, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("option", ["lr", "weight_decay", "nesterov", "maximize"])
def test_an_option_that_would_be_ignored_or_change_the_update_is_refused(option: str) -> None:
    module = load(emit(*parts(["a", "b"], SOLVER), model_name="Model"))
    model = Named(["a", "b"])
    with pytest.raises(TypeError, match=f"not an option here: {option}"):
        module.build_optimizer(model, **{option: 1.0})


def test_a_norm_of_gradients_that_a_scaler_left_scaled_is_refused() -> None:
    module = load(emit(*parts(["a", "b"], replace(SOLVER, clip_gradients=1.0)), model_name="Model"))
    model = Named(["a", "b"])
    optimizer = module.build_optimizer(model, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(sum(p.sum() for p in model.parameters())).backward()
    with pytest.raises(RuntimeError, match="GradScaler"):
        scaler.step(optimizer)
