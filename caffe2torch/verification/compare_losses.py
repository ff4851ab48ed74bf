"""A user's loss beside Caffe's: the gradients of both for the same scores and labels, and what explains the rest."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from caffe2torch.errors import ModelError, NetError, UnsupportedError
from caffe2torch.models.losses import stock_call
from caffe2torch.models.net_loss import LossTerm, NetLoss, loss_terms
from caffe2torch.recipe import NetRecipe
from caffe2torch.verification.loss_divisors import Divisor, divisor_of, divisors
from caffe2torch.verification.loss_samples import call, predictions, sample, stated_batch
from caffe2torch.verification.loss_variants import Variant, variants
from caffe2torch.verification.report import Check, Fault, FaultKind, Result

__all__ = ["LossFault", "LossFinding", "compare_losses", "describe_loss", "loss_check"]

_ANY = (Exception, SystemExit)  # the user's code may raise anything
_SAME = 1e-4  # relative: float32 sums in another order, and no mistake worth a name
_SPELLED_OUT = 3  # equal terms that are listed one by one
_HALVED = ("ContrastiveLoss", "EuclideanLoss")


@dataclass(frozen=True, slots=True)
class LossFault:
    """What is wrong with the gradient that the user's loss gives for one blob.

    ``factor`` is the user's gradient as a multiple of Caffe's: 0 where the blob has no part in the user's loss,
    ``None`` where the two are not proportional.
    """

    blob: str
    layer: str
    factor: float | None
    message: str


@dataclass(frozen=True, slots=True)
class LossFinding:
    """What came of comparing: the net's own loss in one line, and what is wrong with the user's.

    ``not_seen`` says why nothing could be compared; ``ok`` is then false. ``failed`` where it is the user's loss that
    does not run.
    """

    expected: str
    faults: tuple[LossFault, ...] = ()
    not_seen: str | None = None
    failed: bool = False

    @property
    def ok(self) -> bool:
        """Whether the user's loss trains as Caffe's."""
        return not self.faults and self.not_seen is None

    def __str__(self) -> str:
        wrong = [f"{fault.blob}: {fault.message}" for fault in self.faults] or [
            self.not_seen or "the user's loss is the same"
        ]
        return "\n".join([f"loss: {self.expected}", *(f"  {line}" for line in wrong)])


def describe_loss(recipe: NetRecipe) -> str:
    """The net's loss in one line: torch's own call where it is the same, else the layer and what it divides by."""
    parts = []
    for term in loss_terms(recipe):
        weight = "" if term.weight == 1 else f"{term.weight:g} * "
        own = divisor_of(term)
        if not term.loss_layer:
            parts.append(f"{weight}sum of {term.blobs[0]}")
        elif (stock := stock_call(term.layer)) is not None:
            parts.append(weight + stock)
        else:
            half = "half a sum" if term.layer.type in _HALVED else "a sum"
            parts.append(f"{weight}{term.layer.type}, {half} divided by {own.words} (no torch call is the same)")
    alike = Counter(parts)
    short = [f"{many} terms of {part}" if (many := alike[part]) > _SPELLED_OUT else part for part in parts]
    return " + ".join(dict.fromkeys(short) if max(alike.values()) > _SPELLED_OUT else short)


@dataclass(frozen=True)
class _Probe:
    """The user's gradients and all that is needed to explain them, for one sample."""

    blobs: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor | None]


def loss_check(recipe: NetRecipe, loss: Callable[..., object] | None = None) -> Check | None:
    """The check ``loss`` of a report: the net's own loss in one line, and the user's beside it.

    Args:
        recipe: The net of the phase that trains.
        loss: The user's loss, as ``compare_losses`` calls it; ``None`` where none was given.

    Returns:
        The check, not seen where the net's loss is not translated; ``None`` where it has none and none was given.

    Raises:
        NetError: A loss was given, and the net has none, or one that Caffe refuses.
        UnsupportedError: A loss was given, and the net's is not translated.
        ModelError: The loss that was given does not run, or a lock, which has none, was given with it.
    """
    if loss is None:
        try:
            expected = describe_loss(recipe)
        except UnsupportedError as error:
            return Check("loss", Result.NOT_SEEN, "", seen=f"{error.message}: compare yours with the fork's source")
        except NetError:
            return None
        seen = f"{expected}; translate gives it (t.loss, build_loss()), audit --loss checks yours"
        return Check("loss", Result.NOT_SEEN, expected, seen=seen)
    if not recipe.layers:
        raise ModelError("a lock does not have the net's loss, to compare yours with", hint="give the prototxts")
    finding = compare_losses(recipe, loss)
    if finding.failed:
        bottoms = ", ".join(name for term in loss_terms(recipe) for name in term.blobs)
        raise ModelError(
            str(finding.not_seen),
            expected=f"loss(scores, labels) or loss({{blob: tensor, ...}}), a scalar, of {bottoms}",
        )
    if finding.not_seen is not None:
        return Check("loss", Result.NOT_SEEN, finding.expected, seen=finding.not_seen)
    if finding.ok:
        return Check("loss", Result.OK, finding.expected, seen=f"the same gradients as {finding.expected}")
    faults = tuple(Fault(FaultKind.LOSS, f"{fault.blob}: {fault.message}") for fault in finding.faults)
    fix = f"take the net's loss, {finding.expected}: build_loss() of an emitted file, or caffe2torch.build_loss(recipe)"
    return Check("loss", Result.DIFFERS, finding.expected, faults, fix=fix)


def compare_losses(recipe: NetRecipe, loss: Callable[..., object]) -> LossFinding:
    """Run the user's loss on seeded scores and labels beside Caffe's, and name what its gradients show.

    Scores and labels have the net's own sizes, but a batch of at least 2, so that a divisor shows; where the net states
    a batch of 1, a loss that is the same for it is right. ``loss`` is called with the bottoms of the loss layer,
    ``loss(scores, labels)``; of a net with several losses with ``{blob: tensor, ...}``, else with
    ``((scores, ...), labels)``. Labels have the type and shape that torch wants.

    Args:
        recipe: The net of the phase that trains.
        loss: The user's loss; its own parameters and their gradients stay as they are.

    Raises:
        NetError: The net has no loss, or one that Caffe refuses.
        UnsupportedError: The net has a loss that is not translated.

    >>> import pathlib, tempfile, torch, caffe2torch
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "net.prototxt"
    >>> _ = file.write_text('''
    ...     layer { name: "d" type: "Input" top: "x" top: "t" input_param { shape { dim: 2 dim: 1 dim: 8 dim: 4 } } }
    ...     layer { name: "loss" type: "SigmoidCrossEntropyLoss" bottom: "x" bottom: "t" }''')
    >>> finding = compare_losses(caffe2torch.read_recipe(file), torch.nn.BCEWithLogitsLoss())
    >>> finding.ok, finding.faults[0].factor
    (False, 0.03125)
    >>> finding.faults[0].message
    "yours divides by 64 elements, Caffe's by 2 images: the effective lr is 32 times smaller"
    """
    terms = loss_terms(recipe)
    expected = describe_loss(recipe)
    if any(term.layer.type == "InfogainLoss" and len(term.blobs) == 2 for term in terms):
        return LossFinding(expected, not_seen="the matrix of InfogainLoss is in a file that is not read")
    takes = predictions(recipe, terms)
    failure = None
    try:
        probe = _probe(recipe, terms, loss, takes)
    except _ANY as error:
        failure = ": ".join((type(error).__name__, *str(error).strip().splitlines()[:1]))
        try:
            probe = _probe(recipe, terms, loss, takes, ignored=False)
        except _ANY:
            why = f"your loss fails on the net's scores and labels: {failure}"
            return LossFinding(expected, not_seen=why, failed=True)
    try:
        second = _probe(recipe, terms, loss, takes, larger=1, ignored=failure is None)
    except _ANY:  # written for one batch size
        second = probe
    single = None
    if stated_batch(recipe, terms) == 1:
        with suppress(*_ANY):  # as above
            single = _probe(recipe, terms, loss, takes, larger=-1, ignored=failure is None)
    sample_size = _sample_size(recipe, terms, probe)
    faults: list[LossFault] = []
    if failure is not None:
        what = "your loss does not ignore the label that Caffe ignores"
        faults.append(LossFault(next(iter(takes)), terms[0].layer.name, None, f"{what}, and fails on it: {failure}"))
    for blob, users in takes.items():
        said = {(fault.layer, fault.message) for fault in faults}  # of both halves of a pair, the first
        new = _faults(blob, users, terms, probe, second, single, sample_size)
        faults += [fault for fault in new if (fault.layer, fault.message) not in said]
    return LossFinding(expected, tuple(faults))


def _probe(
    recipe: NetRecipe,
    terms: tuple[LossTerm, ...],
    loss: Callable[..., object],
    takes: Mapping[str, object],
    *,
    larger: int = 0,
    ignored: bool = True,
) -> _Probe:
    blobs = sample(recipe, terms, larger=larger, ignored=ignored)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        leaves = {name: value.clone().requires_grad_(name in takes) for name, value in blobs.items()}
        given = {name: value.clone() for name, value in leaves.items()}  # which a loss may change in place
        value = call(loss, terms, given)
        if not isinstance(value, Tensor) or value.numel() != 1:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"it gives {shape} where a scalar is expected")
        if not value.requires_grad:
            raise ValueError("its value has no gradient")
        wanted = [leaves[name] for name in takes]
        gradients = torch.autograd.grad(value.sum(), wanted, allow_unused=True)
    return _Probe(blobs, dict(zip(takes, gradients, strict=True)))


def _sample_size(recipe: NetRecipe, terms: tuple[LossTerm, ...], probe: _Probe) -> str:
    """What to say of a factor that follows the batch, where the sample's is not the net's."""
    shape, stated = probe.blobs[terms[0].blobs[0]].shape, stated_batch(recipe, terms)
    if not shape or shape[0] == stated:
        return ""
    return f", in a sample of {shape[0]} images; the net's batch is {stated or 'not stated'}"


def _faults(
    blob: str,
    users: list[LossTerm],
    terms: tuple[LossTerm, ...],
    probe: _Probe,
    second: _Probe,
    single: _Probe | None,
    sample_size: str,
) -> Iterator[LossFault]:
    layer = " and ".join(term.layer.name for term in users)
    own = probe.gradients[blob]
    if own is None or not bool(own.any()):
        weight = " and ".join(f"{term.weight:g}" for term in users)
        message = f"has no part in your loss; in Caffe's {layer} has weight {weight}"
        if any(term.weight for term in users):
            yield LossFault(blob, layer, 0.0, message)
        return
    if not bool(own.isfinite().all()):
        yield LossFault(blob, layer, None, "your gradient is not finite: it has inf or nan")
        return
    same_for_one = single is not None and _is_caffes(blob, terms, single)
    if len(users) > 1:
        ratio = _ratio(own, _gradient(NetLoss(terms), probe.blobs, blob))
        if not same_for_one and (ratio is None or not math.isclose(ratio, 1, rel_tol=_SAME)):
            why = "is another function of it" if ratio is None else _effect(ratio)
            yield LossFault(blob, layer, ratio, f"feeds several losses, and your gradient {why}")
        return
    term = users[0]
    for variant in variants(term, probe.blobs, own):
        ratio = _ratio(own, _gradient(variant.loss, probe.blobs, blob), variant.tolerance)
        if ratio is None:
            continue
        again = second.gradients[blob]
        other = None if again is None else _ratio(again, _gradient(variant.loss, second.blobs, blob), variant.tolerance)
        if other is None:
            continue
        factor = ratio / term.weight if term.weight else math.inf
        same = math.isclose(factor, 1, rel_tol=max(_SAME, variant.tolerance))
        steady = math.isclose(
            other / term.weight if term.weight else math.inf, 1, rel_tol=max(_SAME, variant.tolerance)
        )
        if variant.words is None and (same_for_one or (same and (steady or not sample_size))):  # at the net's batch
            return
        words = [] if variant.words is None else [variant.words]
        if not (same and steady):
            follows = "" if math.isclose(ratio, other, rel_tol=1e-3) else sample_size
            words.append(_why(term, variant, (probe, ratio), (second, other)) + follows)
        yield LossFault(blob, layer, _tidy(factor), "; ".join(words))
        return
    yield LossFault(blob, layer, None, f"your gradient is another function of the scores than {layer}'s")


def _is_caffes(blob: str, terms: tuple[LossTerm, ...], probe: _Probe) -> bool:
    own = probe.gradients[blob]
    ratio = None if own is None else _ratio(own, _gradient(NetLoss(terms), probe.blobs, blob))
    return ratio is not None and math.isclose(ratio, 1, rel_tol=_SAME)


def _gradient(loss: Callable[[Mapping[str, Tensor]], Tensor], blobs: Mapping[str, Tensor], blob: str) -> Tensor | None:
    with torch.enable_grad():
        given = {**blobs, blob: blobs[blob].clone().requires_grad_()}
        try:
            (gradient,) = torch.autograd.grad(loss(given), given[blob], allow_unused=True)
        except (IndexError, RuntimeError):  # a variant that these labels rule out
            return None
    return gradient


def _ratio(own: Tensor, other: Tensor | None, tolerance: float = 0.0) -> float | None:
    """The factor between two gradients, if there is one."""
    if other is None or not bool(other.any()) or own.shape != other.shape:
        return None
    a, b = own.double().flatten(), other.double().flatten()
    factor = float(a @ b / (b @ b))
    rest = float((a - factor * b).norm() / a.norm())
    return factor if factor and rest <= max(_SAME, tolerance) else None


def _why(term: LossTerm, variant: Variant, first: tuple[_Probe, float], second: tuple[_Probe, float]) -> str:
    """What explains a factor that is the same in both samples, or follows their sizes in both."""
    (probe, ratio), (other, ratio_2) = first, second
    own, own_2 = divisor_of(term, probe.blobs), divisor_of(term, other.blobs)
    factor = ratio / term.weight if term.weight else math.inf
    effect = _effect(factor)
    half = term.layer.type in _HALVED
    weights = [1.0] if term.weight in (0, 1) else [1.0, 1 / term.weight]
    for missing_weight in weights:
        for missing_half in (1.0, 2.0) if half else (1.0,):
            extra = missing_weight * missing_half
            for mine, mine_2 in zip(
                divisors(term, probe.blobs, variant.ignores), divisors(term, other.blobs, variant.ignores), strict=True
            ):
                fits = math.isclose(factor, own.value / mine.value * extra, rel_tol=1e-3)
                fits_2 = math.isclose(ratio_2 / (term.weight or 1), own_2.value / mine_2.value * extra, rel_tol=1e-3)
                if fits and fits_2:
                    return f"{_causes(term, own, mine, missing_weight, missing_half)}: {effect}"
    if math.isclose(ratio, ratio_2, rel_tol=1e-3):
        if term.weight not in (0, 1):
            return f"yours has weight {_figure(ratio)}, Caffe's {term.weight:g}: {effect}"
        return f"yours is {_figure(factor)} times Caffe's: {effect}"
    here, there = (_compared(of, one) for of, one in ((factor, probe), (ratio_2 / (term.weight or 1), other)))
    return f"yours divides by something else than Caffe's {own.words}: the effective lr is {here}, and {there}"


def _compared(factor: float, probe: _Probe) -> str:
    size = next(iter(probe.blobs.values())).shape[:1]
    return f"{_times(factor)} for a batch of {size[0] if size else 1}"


def _causes(term: LossTerm, own: Divisor, mine: Divisor, missing_weight: float, missing_half: float) -> str:
    causes = []
    if not math.isclose(own.value, mine.value, rel_tol=1e-6):
        causes.append(f"yours divides by {mine.words}, Caffe's by {own.words}")
    if missing_half != 1:
        causes.append("yours lacks the factor 1/2")
    if missing_weight != 1:
        causes.append(f"yours lacks the loss_weight of {term.weight:g}")
    return " and ".join(causes)


def _effect(factor: float) -> str:
    return "training goes uphill" if factor < 0 else f"the effective lr is {_times(factor)}"


def _times(factor: float) -> str:
    if math.isclose(factor, 1, rel_tol=_SAME):
        return "the same"
    return f"{_figure(max(factor, 1 / factor))} times {'larger' if factor >= 1 else 'smaller'}"


def _figure(value: float) -> str:
    whole = round(value)
    return f"{whole:,}" if whole and math.isclose(value, whole, rel_tol=1e-4) else f"{value:.4g}"


def _tidy(factor: float) -> float:
    """The factor without the noise of float32."""
    return float(f"{factor:.5g}")
