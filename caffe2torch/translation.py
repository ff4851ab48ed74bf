"""From two prototxts and a model to a checked optimizer."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import nn

from caffe2torch.binding.bind import UnclaimedMultipliers, bind
from caffe2torch.binding.plan import Binding, GroupPlan, plan_groups
from caffe2torch.binding.skeleton import skeleton
from caffe2torch.emit import emit
from caffe2torch.errors import Caffe2TorchError, SolverError, UnsupportedError, visible
from caffe2torch.models import SegNetBasic
from caffe2torch.models.build_net import build_model, unstated_size
from caffe2torch.models.net_loss import NetLoss, build_loss
from caffe2torch.models.recognize import segnet_basic_for
from caffe2torch.optim.build import build_optimizer
from caffe2torch.optim.schedule import CaffeLRScheduler, build_scheduler
from caffe2torch.reading import read_recipe
from caffe2torch.recipe import Accumulation, NetRecipe, Note, Severity, SolverSettings, TrainingRecipe, require_solver
from caffe2torch.report.text import verdict_line
from caffe2torch.snapshot.checkpoint import load_checkpoint, save_checkpoint
from caffe2torch.snapshot.files import find_learned_net, read_caffemodel, read_solverstate
from caffe2torch.snapshot.fillers import initialize, plan_fillings
from caffe2torch.snapshot.solver_state import resume
from caffe2torch.snapshot.weights import load_weights
from caffe2torch.solver.lr_policy import rates
from caffe2torch.solver.requirements import for_accumulation, refuse_unsupported
from caffe2torch.torch_startup import compiler_not_imported
from caffe2torch.verification.check_model import check_model, read_accepted
from caffe2torch.verification.common_causes import explained
from caffe2torch.verification.compare_losses import loss_check
from caffe2torch.verification.optimizer_copy import group_names
from caffe2torch.verification.run_probe import observe
from caffe2torch.verification.verify import Report, verify

__all__ = ["Translation", "translate"]

Path = str | PathLike[str]


@dataclass(frozen=True, slots=True, repr=False)
class Translation:
    """What ``translate`` gives: the optimizer and scheduler of ``model``, how they came about, and the check of them.

    Use them in torch's own loop: ``iter_size`` times ``loss.backward()``, then ``optimizer.step()``,
    ``scheduler.step()``, ``optimizer.zero_grad()``.
    """

    recipe: TrainingRecipe
    _model: nn.Module
    binding: Binding
    groups: tuple[GroupPlan, ...]
    optimizer: torch.optim.Optimizer
    scheduler: CaffeLRScheduler
    report: Report
    without: tuple[str, ...] = ()
    finetune: tuple[str, ...] = ()
    accumulation: Accumulation = Accumulation.SUM
    _built: bool = False

    @property
    def model(self) -> nn.Module:
        """The model that was given, else the net's own; a built net takes memory and is filled when first asked for."""
        if self._built:
            _materialize(self._model, self.recipe)
        return self._model

    @property
    def solver(self) -> SolverSettings:
        """The recipe's solver, which a translation always has."""
        return self.recipe.solver

    def __repr__(self) -> str:
        net = self.recipe.net_name or "a net"
        return f"<Translation of {net} for {self.binding.model}: {verdict_line(self.report)}>"

    def _repr_html_(self) -> str:
        """The report, for notebooks."""
        return self.report._repr_html_()

    @property
    def loss(self) -> NetLoss:
        """The net's whole loss, weights included: ``loss(scores, labels)``, or ``loss({blob: tensor, ...})``.

        Raises ``NetError`` for a net without a loss, ``UnsupportedError`` for one that is not translated.
        """
        return build_loss(self.recipe)

    def rates(self, iterations: int | None = None) -> dict[str, np.ndarray]:
        """The ``lr`` of every group at each iteration of a run from the start, by the group's name.

        Args:
            iterations: How many; ``max_iter`` by default.

        Returns:
            Arrays of float64, shape ``(iterations,)``.

        Raises:
            SolverError: The solver states no ``max_iter``, and no number is given.
        """
        count = self.solver.max_iter if iterations is None else iterations
        if not count:
            raise SolverError("the solver states no max_iter", hint="say how many iterations: t.rates(1000)")
        run = np.fromiter(rates(self.solver.policy, count), np.float64, count)
        return {group.name: run * group.lr_mult for group in self.groups}

    def source(self, *, initialize: bool = False, loss: bool = True) -> str:
        """Python that builds the same optimizer, scheduler and loss with torch alone.

        With ``initialize`` it can fill the model by the prototxt's fillers, too. Raises ``NetError`` where these follow
        from a size that neither a file nor a model of yours states.
        """
        if initialize and self._built and (error := unstated_size(self.recipe)) is not None:
            raise error
        return emit(
            self.recipe,
            self.groups,
            model_name=self.binding.model,
            unclaimed=[left.name for left in self.binding.unclaimed if left.lr_mult is None],
            without=self.without,
            fillings=plan_fillings(self._model, self.recipe, self.binding)[0] if initialize else (),
            accumulation=self.accumulation,
            loss=loss,
        )

    def load_caffemodel(self, path: Path, *, new_layers: Collection[str] = ()) -> tuple[Note, ...]:
        """Copy the weights of a ``.caffemodel`` (binary of any fork, or HDF5) into ``model``, all of them or none.

        A layer that has another shape in the file, or is not there, is an error unless it has a ``finetune`` factor or
        ``new_layers`` names it: then it keeps its values. Returns what a person should know; what nobody asked for,
        such as NaN, is also a Python warning. Raises ``InputError``, ``SnapshotError``, ``MissingExtraError``.
        """
        weights, new = read_caffemodel(path), (*self.finetune, *new_layers)
        return _said(load_weights(self.model, self.recipe, self.binding, weights, new_layers=new))

    def load_solverstate(self, path: Path, weights: Path | None = None) -> tuple[Note, ...]:
        """Go on where Caffe wrote a ``.solverstate``: weights, history, iteration and the multistep counter.

        The weights are those of the ``.caffemodel`` that the state names, at its path or beside the state file;
        ``weights`` wins. Both files are checked before anything changes. Returns notes and raises as
        ``load_caffemodel`` does.
        """
        state = read_solverstate(path)
        model = read_caffemodel(find_learned_net(state) if weights is None else weights)
        return _said(resume(self.model, self.optimizer, self.scheduler, self.recipe, self.binding, state, model))

    def save(self, path: Path) -> None:
        """Write a checkpoint of model, optimizer and scheduler, by name: whole, or the older file stays.

        ``torch.load(path, weights_only=True)`` reads it. Raises ``OutputError``.
        """
        save_checkpoint(path, self.model, self.optimizer, self.scheduler, self.recipe, self.binding)

    def load(self, path: Path, finetune: bool = False, *, new_layers: Collection[str] = ()) -> tuple[Note, ...]:
        """Go on from a checkpoint bit for bit; with ``finetune`` take its weights and start the optimizer anew.

        With ``finetune``, layers that have a factor or that ``new_layers`` names may be others in the file. Returns
        notes and raises as ``load_caffemodel`` does.
        """
        parts = (self.model, self.optimizer, self.scheduler, self.recipe, self.binding)
        return _said(load_checkpoint(path, *parts, finetune=finetune, new_layers=(*self.finetune, *new_layers)))

    def initialize(self, generator: torch.Generator | None = None) -> tuple[Note, ...]:
        """Fill the parameters by the prototxt's fillers; a ``generator`` on the CPU makes it repeatable.

        Returns notes on blobs without a filler. Raises ``UnsupportedError`` for one that Caffe does not know.
        """
        return _said(initialize(self.model, self.recipe, self.binding, generator))


@compiler_not_imported()
def translate(
    net: NetRecipe | Path | None,
    solver: Path | None = None,
    model: nn.Module | None = None,
    *,
    names: Mapping[str, str] | None = None,
    finetune: Mapping[str, float] | None = None,
    skip: Collection[str] = (),
    unclaimed: UnclaimedMultipliers | None = None,
    reshaped: Collection[str] = (),
    without: Collection[str] = (),
    stages: Sequence[str] = (),
    level: int | None = None,
    inputs: Mapping[str, Sequence[int]] | None = None,
    input_shapes: Any = None,
    accumulation: str = "sum",
    fused: bool | None = None,
    accept: Collection[str] = (),
    strict: bool = False,
) -> Translation:
    """Give ``model`` the optimizer and the scheduler with which Caffe would have trained it, and check them.

    ``net`` and ``solver`` are prototxts, or ``net`` is a recipe that was read before. Without a ``model``, a net that
    is SegNetBasic gets the built-in one, any other the net that ``build_model`` makes of it, which takes memory only
    once ``Translation.model`` is asked for.

    ``names`` binds what names and structure alone do not: a Caffe layer to a module, ``LAYER/INDEX`` to a parameter.
    ``finetune`` maps a layer (exact name, else a regular expression) to a factor on its lr_mult. ``skip`` names layers
    that the model does without. ``unclaimed`` is the ``(lr_mult, decay_mult)`` of parameters that no blob stands for,
    or a mapping of their names or patterns to such pairs. ``reshaped`` names layers of another shape in the model, such
    as a head with other classes: they keep their multipliers. Whatever is left on either side, and named by neither, is
    an error. ``without`` names rules of Caffe's forks that the solver asks for, that cannot be translated, and that you
    accept to go without. ``stages``, ``level`` and ``inputs`` are as for ``read_recipe``, ``input_shapes`` (what
    ``forward`` takes) as for ``bind``.

    ``accumulation`` says what your loop does with the gradients of ``iter_size`` passes: ``"sum"`` them, as Caffe, and
    the step divides; or ``"mean"``, as Lightning, Accelerate and the HF Trainer, and the step does not divide, and
    clips at ``clip_gradients / iter_size``. ``fused`` is torch's option: ``None`` takes the fused kernel in each step
    where device, dtype and strides allow it.

    The report's check ``model`` says which settings of layers (strides, epsilons, ratios, ...) differ from the net's;
    ``strict`` makes the report not ok where some do. ``accept`` is as for ``audit``: ``model:features.3.stride``
    accepts one.

    Parameters whose lr_mult is 0 get ``requires_grad_(False)``, as Caffe computes no gradient for them. ``model`` is
    changed in no other way: a parameter that you froze stays frozen, and its row of the report says so.

    Raises a ``Caffe2TorchError`` for everything that Caffe refuses, that cannot be translated, or that does not fit.

    >>> import pathlib, tempfile, torch, caffe2torch
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> _ = (folder / "net.prototxt").write_text('''
    ...     layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 2 }
    ...             param { lr_mult: 1 } param { lr_mult: 2 decay_mult: 0 } }''')
    >>> _ = (folder / "solver.prototxt").write_text('base_lr: 0.1 lr_policy: "fixed" weight_decay: 0.0005')
    >>> model = torch.nn.Sequential()
    >>> model.add_module("ip", torch.nn.Linear(3, 2))
    >>> t = caffe2torch.translate(folder / "net.prototxt", folder / "solver.prototxt", model)
    >>> t.report.ok
    True
    >>> [(group["param_names"], round(group["lr"], 6), round(group["weight_decay"], 6))
    ...     for group in t.optimizer.param_groups]
    [(['ip.weight'], 0.1, 0.0005), (['ip.bias'], 0.2, 0.0)]
    """
    if isinstance(net, NetRecipe):
        if solver is not None:
            raise Caffe2TorchError("a recipe and a solver file are given", hint="read both files into one recipe")
        recipe = require_solver(net)
    else:
        recipe = require_solver(read_recipe(net, solver, stages=stages, level=level, inputs=inputs))
    settings = recipe.solver
    refuse_unsupported(settings, without)
    notes: tuple[Note, ...] = ()
    model_checked, built = True, False
    if model is None:
        model, note = _model_for(recipe)
        notes, model_checked, built = (note,), isinstance(model, SegNetBasic), True
    _refuse_model(model, settings)
    accepted, settings_accepted = read_accepted(accept)
    binding = bind(recipe, model, names, skip=skip, unclaimed=unclaimed, reshaped=reshaped, input_shapes=input_shapes)
    groups = plan_groups(recipe, binding, finetune)
    optimizer = build_optimizer(model, groups, settings, without, accumulation=Accumulation(accumulation), fused=fused)
    scheduler = build_scheduler(optimizer, settings)
    step = for_accumulation(settings, Accumulation(accumulation))
    seen = observe(model, optimizer, step, scheduler)
    report = verify(
        recipe,
        binding,
        groups,
        seen,
        notes=notes,
        accumulation=Accumulation(accumulation),
        translating=True,
        model_checked=model_checked,
    )
    if model_checked:
        compared = check_model(recipe, binding, strict=strict, accepted=settings_accepted)
        report = replace(report, checks=(*report.checks, compared))
    if (loss := loss_check(recipe)) is not None:
        report = replace(report, checks=(*report.checks, loss))
    report = replace(report, group_names=group_names(optimizer))
    return Translation(
        recipe,
        model,
        binding,
        groups,
        optimizer,
        scheduler,
        explained(report.accepting(accepted)),
        tuple(without),
        tuple(finetune or ()),
        Accumulation(accumulation),
        built,
    )


def _said(notes: tuple[Note, ...]) -> tuple[Note, ...]:
    for note in notes:
        if note.severity is Severity.WARNING:
            warnings.warn(visible(note.message, lines=True), stacklevel=3)
    return notes


def _refuse_model(model: nn.Module, solver: SolverSettings) -> None:
    """Refuse models that hide their parameters, or the norm of their gradients, from an optimizer."""
    if isinstance(model, torch.jit.ScriptModule):
        raise UnsupportedError("a TorchScript model is not supported", hint="give the model before torch.jit.script")
    fsdp1 = [module for module in model.modules() if type(module).__name__ == "FullyShardedDataParallel"]
    if any("_flat_param" in module._parameters for module in fsdp1):
        raise UnsupportedError(
            "FullyShardedDataParallel (FSDP1) has flattened the model's parameters",
            hint="shard it with torch.distributed.fsdp.fully_shard (FSDP2), or pass use_orig_params=True",
        )
    if fsdp1 and solver.clip_gradients is not None:
        raise UnsupportedError(
            "clip_gradients needs the norm of all gradients, and FullyShardedDataParallel (FSDP1) shows each process "
            "only a part of them",
            where=solver.places.get("clip_gradients"),
            hint="shard the model with torch.distributed.fsdp.fully_shard (FSDP2), whose gradients know their whole",
        )


def _model_for(recipe: NetRecipe) -> tuple[nn.Module, Note]:
    """The model that was not given, and which one it is."""
    built_in = segnet_basic_for(recipe)
    if built_in is not None:
        return built_in, Note(None, Severity.INFO, "no model was given; this net is SegNetBasic, so the built-in one")
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # the note says it
        try:
            with torch.device("meta"):
                model = build_model(recipe)
            if model.binding is not None:
                plan_fillings(model, recipe, model.binding)  # refuses now what cannot be filled later
        except Caffe2TorchError as error:
            text = f"no model was given, and the net cannot be built ({error.message}); bound to its blobs alone"
            return skeleton(recipe), Note(None, Severity.WARNING, text)
    text = "no model was given; bound to the net built from the prototxt"
    if model.missing:
        text += f", which cannot compute {', '.join(f'{name} ({why})' for name, why in model.missing.items())}"
    if (unstated := unstated_size(recipe)) is not None:
        text += f"; {unstated.message}, and stands as 1: {unstated.hint}"
        return model, Note(None, Severity.WARNING, text)
    return model, Note(None, Severity.INFO, text)


def _materialize(model: nn.Module, recipe: NetRecipe) -> None:
    """Give a net that was built on the meta device memory, filled; its tensors stay the optimizer's."""
    held = (*model.parameters(), *model.buffers())
    if not any(tensor.is_meta for tensor in held):
        return
    with torch.device("cpu"), warnings.catch_warnings(action="ignore", category=UserWarning):
        filled = build_model(recipe)
    for tensor, new in zip(held, (*filled.parameters(), *filled.buffers()), strict=True):
        torch.utils.swap_tensors(tensor, new.requires_grad_(tensor.requires_grad))  # type: ignore[no-untyped-call]  # torch
