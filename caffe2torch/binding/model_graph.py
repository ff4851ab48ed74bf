"""The wiring of a model: traced on the meta device, else symbolically, else by really running it."""

from __future__ import annotations

import contextlib
import io
import random
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import nn

from caffe2torch.binding.graph import Wiring
from caffe2torch.binding.model_copy import meta_stand_in, real_stand_in
from caffe2torch.binding.sample_inputs import Feed, InputShapes, candidate_inputs
from caffe2torch.binding.skeleton import skeleton_wiring
from caffe2torch.binding.tracing import fx_wiring, trace
from caffe2torch.errors import ModelError
from caffe2torch.recipe import TrainingRecipe

__all__ = ["ModelWiring", "model_wiring"]

_PATIENCE = 30.0  # seconds to go on trying input sizes that do not fit
_REAL_TRIES = 3  # a real run computes: not every size is worth it


@dataclass(frozen=True, slots=True)
class ModelWiring:
    """The wiring of a model, ``None`` where no way to see it worked; ``how`` says which did, or why none."""

    wiring: Wiring | None
    how: str


def model_wiring(model: nn.Module, recipe: TrainingRecipe, input_shapes: InputShapes | None = None) -> ModelWiring:
    """See how the parts of ``model`` feed each other, without touching it.

    One forward pass of a copy on the meta device, which takes no memory and no arithmetic, with the net's own input
    sizes or typical ones. If none goes through: ``torch.fx``, which needs no sizes. At last a forward pass that really
    computes, of a copy that shares the weights' memory.
    """
    carried = skeleton_wiring(model)
    if carried is not None:
        return ModelWiring(carried, "the skeleton itself, whose layers carry their net's")
    device = next(model.parameters()).device
    reasons: list[str] = []
    with _undisturbed():
        feeds = candidate_inputs(model, recipe, input_shapes)
        real_feeds = _real(model, recipe, input_shapes)
        ways: list[tuple[str, Callable[[], tuple[Wiring, str]]]] = [
            ("one forward pass on the meta device", lambda: _run(meta_stand_in(model), feeds)),
            ("torch.fx", lambda: (fx_wiring(meta_stand_in(model).train()), "")),
            ("one real forward pass", lambda: _run(real_stand_in(model), real_feeds, _REAL_TRIES)),
        ]
        for way, attempt in ways if device.type != "meta" else ways[:-1]:
            try:
                wiring, given = attempt()
            except ModelError:
                raise
            except Exception as error:  # whatever a user's forward pass raises
                reasons.append(f"{way} ({_brief(error)})")
            else:
                instead = f" instead of {'; '.join(reasons)}" if reasons else ""
                return ModelWiring(wiring, f"{way}{given}{instead}")
    return ModelWiring(None, "; ".join(reasons))


def _run(stand_in: nn.Module, feeds: Iterator[Feed], tries: int = 1000) -> tuple[Wiring, str]:
    """The wiring from the first input that goes through; raises what the first one raised if none does."""
    start = time.monotonic()
    first: Exception | None = None
    for arguments, named in islice(feeds, tries):
        for training in (True, False):  # some models want targets to train, a few cannot run without training
            try:
                wiring = trace(stand_in.train(training), arguments, named)
            except Exception as error:
                first = first or error
            else:
                shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (*arguments, *named.values()))
                return wiring, f" with {shapes}"
        if time.monotonic() - start > _PATIENCE:
            break
    raise first or ValueError("no input could be made for it")


def _real(model: nn.Module, recipe: TrainingRecipe, input_shapes: InputShapes | None) -> Iterator[Feed]:
    """The same inputs with numbers in them, on the model's device."""
    device = next(model.parameters()).device
    for arguments, named in candidate_inputs(model, recipe, input_shapes):
        yield (
            [torch.zeros_like(tensor, device=device) for tensor in arguments],
            {name: torch.zeros_like(tensor, device=device) for name, tensor in named.items()},
        )


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Neither random numbers, nor warnings, nor what a forward pass prints get out."""
    state = random.getstate()
    try:
        with (
            torch.random.fork_rng(),
            warnings.catch_warnings(action="ignore"),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            yield
    finally:
        random.setstate(state)


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}{'...' if len(text) > 160 else ''}"
