"""A solver prototxt to settings: refused where Caffe refuses it, with a note where Caffe accepts what is odd.

Sources: BVLC's ``UpgradeSolverType`` (``upgrade_proto.cpp``), ``SolverRegistry`` (``solver_factory.hpp``),
``InitTrainNet`` and ``InitTestNets`` (``solver.cpp``), ``constructor_sanity_check`` (``sgd_solvers.hpp``),
``GetLearningRate`` and ``Regularize`` (``sgd_solver.cpp``). The checks stand in the order in which Caffe makes them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from heapq import merge
from itertools import islice
from typing import Any

from caffe2torch.errors import SolverError, SourceLocation, UnsupportedError
from caffe2torch.prototxt.parser import Block, Field
from caffe2torch.prototxt.schema import Parsed
from caffe2torch.recipe import LrPolicy, Note, PolicyType, Regularization, SolverSettings, SolverType, Unsupported
from caffe2torch.solver.float32 import shortest
from caffe2torch.solver.fork_rules import FORK_FIELDS, FORK_POLICIES, FORK_SOLVERS, apply_fork_rules
from caffe2torch.solver.lr_policy import POLICIES
from caffe2torch.solver.solver_warnings import solver_warnings
from caffe2torch.solver.update_rules import SOLVERS
from caffe2torch.wording import close_name

__all__ = ["read_solver"]

_MOST_MEANT = 1000  # names of which a likely one is looked for: that costs far more than to read them
_NETS = ("net", "net_param", "train_net", "train_net_param")


def read_solver(parsed: Parsed) -> tuple[SolverSettings, tuple[Note, ...]]:
    """Read a solver as Caffe would, the rules of its forks included.

    Args:
        parsed: The solver. One that names no net is read, too: the net may come from elsewhere.

    Returns:
        The settings, and notes: the schema's, without those on fields that a fork is known to read, and our own.
        ``force_backward`` is a field of the net and stays ``False``.

    Raises:
        UnsupportedError: a rate policy or solver type of a fork that is not translated.
        SolverError: Caffe (or the fork whose rule it is) refuses the solver, when it reads it, builds it or makes its
            first step. Caffe looks at the regularization type where it decays a blob; here that is wherever
            ``weight_decay`` is not 0.

    >>> from caffe2torch.prototxt.schema import parse_solver
    >>> from caffe2torch.recipe import Source
    >>> settings, notes = read_solver(parse_solver(Source("s", 'base_lr: 0.1 lr_policy: "fixed" max_iter: 9')))
    >>> settings.type, settings.policy.base_lr, notes
    (<SolverType.SGD: 'SGD'>, 0.1, ())
    """
    message: Any = parsed.message
    stated = _Stated.of(parsed)
    kind = _solver_type(message, stated)
    if message.average_loss < 1:
        raise stated.error("average_loss must be at least 1", "average_loss")
    _check_nets(message, stated)
    if "momentum" not in SOLVERS[kind].settings and message.momentum != 0:
        raise stated.error(f"momentum cannot be used with {kind}", "momentum", hint="remove it, or set it to 0")
    if "rms_decay" in SOLVERS[kind].settings and not 0 <= message.rms_decay < 1:
        raise stated.error("rms_decay must lie between 0 and 1", "rms_decay", expected="0 <= rms_decay < 1")
    settings = SolverSettings(
        type=kind,
        policy=_policy(message, stated),
        momentum=shortest(message.momentum),
        momentum2=shortest(message.momentum2),
        weight_decay=shortest(message.weight_decay),
        regularization=_regularization(message, stated),
        delta=shortest(message.delta),
        rms_decay=shortest(message.rms_decay),
        clip_gradients=None if message.clip_gradients < 0 else shortest(message.clip_gradients),
        iter_size=message.iter_size,
        max_iter=message.max_iter,
        random_seed=message.random_seed if message.random_seed >= 0 else None,
        net=message.net or message.train_net or None,
        places=stated.places,
    )
    settings, fork_notes = apply_fork_rules(settings, parsed.block.each_unknown())
    settings = replace(settings, unsupported=(*settings.unsupported, *_unknown_fields(parsed, settings.places)))
    understood = {field.where for field in parsed.block.each_unknown() if field.name in FORK_FIELDS}
    left = tuple(note for note in parsed.notes if note.where not in understood)
    return settings, (*left, *fork_notes, *solver_warnings(settings, message))


def _unknown_fields(parsed: Parsed, places: Mapping[str, SourceLocation]) -> Iterator[Unsupported]:
    """Fields that no Caffe known to us has. Caffe stops at them, since a misspelt field is a setting that is lost."""
    names = parsed.message.DESCRIPTOR.fields_by_name
    foreign = (field for field in parsed.block.each_unknown() if field.name not in FORK_FIELDS)
    for number, field in enumerate(foreign):
        what = "has a value" if field.name in names else "is a field"
        close = close_name(field.name, names) if field.name not in names and number < _MOST_MEANT else None
        reason = f"it {what} that no Caffe we know of reads" + (f"; did you mean {close!r}?" if close else "")
        first, where = places[field.name], field.where
        yield Unsupported(field.name, first if first == where else where, sys.intern(reason))


@dataclass(frozen=True, slots=True)
class _Stated:
    """What the file states, known to the schema or not: where the first field of each name is."""

    parsed: Parsed
    places: Mapping[str, SourceLocation]

    @classmethod
    def of(cls, parsed: Parsed) -> _Stated:
        places: dict[str, SourceLocation] = {}
        for field in _each(parsed):
            if field.name not in places:
                places[field.name] = field.where
        return cls(parsed, places)

    def value(self, name: str) -> str | Block:
        """What the first field of this name holds."""
        return next(field.value for field in _each(self.parsed) if field.name == name)

    def error(self, text: str, name: str, *, because: str = "", expected: str = "", hint: str = "") -> SolverError:
        """An error about the field ``name``; where that is absent, it is placed at ``because``, which asks for it."""
        where = self.places.get(name)
        if where is not None:
            value = self.value(name)
            found = f"{name}: {value}" if isinstance(value, str) else None
        else:
            where = self.places.get(because) or SourceLocation(self.parsed.source.file, 1, 1)
            found = f"no {name}"
            if misspelt := close_name(name, islice(self.places, _MOST_MEANT)):
                found += f", but {misspelt} at {self.places[misspelt]}"
        return SolverError(text, where=where, found=found, expected=expected or None, hint=hint or None)


def _each(parsed: Parsed) -> Iterator[Field]:
    """Every field in the file's order, known to the schema or not."""
    return merge(parsed.block.each(), parsed.block.each_unknown(), key=lambda field: field.row)


def _solver_type(message: Any, stated: _Stated) -> SolverType:
    if "solver_type" in stated.places and "type" in stated.places:
        raise stated.error(
            "solver_type and type say the same thing, and Caffe takes only one of them",
            "solver_type",
            hint='remove solver_type, which is the old one: type: "Adam" is solver_type: ADAM',
        )
    if "solver_type" in stated.places:
        old = {kind.upper(): kind for kind in SolverType}
        if message.HasField("solver_type"):
            descriptor = message.DESCRIPTOR.fields_by_name["solver_type"].enum_type
            return old[descriptor.values_by_number[message.solver_type].name]
        written = str(stated.value("solver_type"))
        _refuse_forks(written, "solver_type", FORK_SOLVERS, stated)
        hint = _meant(written, old)
        raise stated.error("unknown solver_type", "solver_type", expected=_either(old), hint=hint)
    try:
        return SolverType(message.type)
    except ValueError:
        _refuse_forks(message.type, "type", FORK_SOLVERS, stated)
        hint = _meant(message.type, SolverType)
        raise stated.error("unknown solver type", "type", expected=_either(SolverType), hint=hint) from None


def _check_nets(message: Any, stated: _Stated) -> None:
    nets = [name for name in _NETS if name in stated.places]
    if not nets:
        return
    if len(nets) > 1:
        raise stated.error(f"{nets[0]} and {nets[1]} both name the net to train", nets[1], hint="keep one of them")
    iters, tests = len(message.test_iter), len(message.test_net) + len(message.test_net_param)
    if iters < tests:
        raise stated.error(
            "each test net needs its test_iter",
            "test_iter",
            because="test_net",
            expected=f"{tests} test_iter, one for each test net",
        )
    if message.test_state and len(message.test_state) != iters:
        raise stated.error("test_state must be stated once for each test net, or never", "test_state")
    if iters and message.test_interval <= 0:
        raise stated.error(
            "testing needs a test_interval",
            "test_interval",
            because="test_iter",
            expected="test_interval > 0",
            hint="state test_interval, or remove test_iter: testing is not translated",
        )


def _policy(message: Any, stated: _Stated) -> LrPolicy:
    try:
        kind = PolicyType(message.lr_policy)
    except ValueError:
        _refuse_forks(message.lr_policy, "lr_policy", FORK_POLICIES, stated)
        text = "unknown lr_policy" if message.lr_policy else "Caffe needs an lr_policy"
        hint = _meant(message.lr_policy, PolicyType) or 'lr_policy: "fixed" trains with base_lr all the time'
        raise stated.error(text, "lr_policy", expected=_either(PolicyType), hint=hint) from None
    reads = POLICIES[kind].fields
    if "stepsize" in reads and message.stepsize <= 0:
        raise stated.error(
            f"lr_policy '{kind}' needs a stepsize above 0",
            "stepsize",
            because="lr_policy",
            expected="stepsize > 0",
            hint="state a number of iterations, such as stepsize: 10000",
        )
    falls = kind is PolicyType.SIGMOID and message.gamma < 0  # refused since 2017 only, and what DIGITS writes
    if "gamma" in reads and kind is not PolicyType.PLATEAU and not message.gamma >= 0 and not falls:
        raise stated.error(f"lr_policy '{kind}' takes no negative gamma", "gamma", expected="gamma >= 0")
    return LrPolicy(
        type=kind,
        base_lr=shortest(message.base_lr),
        gamma=shortest(message.gamma),
        power=shortest(message.power),
        stepsize=message.stepsize,
        stepvalues=tuple(message.stepvalue),
        max_iter=message.max_iter,
    )


def _regularization(message: Any, stated: _Stated) -> Regularization:
    try:
        return Regularization(message.regularization_type)
    except ValueError:
        if not message.weight_decay:
            return Regularization.L2  # of what is never added any kind will do
        hint = _meant(message.regularization_type, Regularization)
        text, expected = "unknown regularization_type", _either(Regularization)
        raise stated.error(text, "regularization_type", expected=expected, hint=hint) from None


def _either(names: Iterable[str]) -> str:
    return "one of " + ", ".join(names)


def _meant(written: str, names: Iterable[str]) -> str:
    """A hint at the name that was probably meant; Caffe takes upper case and lower for different."""
    close = close_name(written, names)
    return f'did you mean "{close}"?' if close else ""


def _refuse_forks(written: str, field: str, known: Mapping[str, str], stated: _Stated) -> None:
    """Refuse by name what is a fork's, whatever its case."""
    reason = known.get(written.casefold())
    if reason is not None:
        raise UnsupportedError(
            f"{field} {written!r} is a rule of Caffe's forks and not translated: {reason}",
            where=stated.places[field],
            hint="choose one of BVLC Caffe's, with what it takes",
        )
