"""What to do where net and model do not bind, in words and as it is typed."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from caffe2torch.binding.attempt import Attempt
from caffe2torch.binding.names import toml_line
from caffe2torch.binding.patterns import pattern, quoted
from caffe2torch.binding.plan import Evidence

__all__ = ["Advice", "decision", "written"]

_FEW = 3  # names that are given one by one
_LONGEST = 400  # characters of a pattern in a message
_MOST_LINES = 24  # of a names file in a message


@dataclass(frozen=True, slots=True)
class Advice:
    """One thing to do.

    Attributes:
        text: What it is good for.
        names: Lines for a names file: layers to modules, or blobs to tensors.
        skip: Layers and blobs to leave out.
        reshaped: Layers that have another shape in the model.
        unclaimed: Parameters without a blob, with the ``(lr_mult, decay_mult)`` to give them; ``None``: any.
        placed: Parameters, or modules with theirs, that then have a place.
        otherwise: Layers and blobs that could be left out instead.
        about: Further layers and blobs that need no other advice.
        settles: Whether these layers need no other candidates.
        certain: Whether the names leave no choice.
    """

    text: str
    names: Mapping[str, str] = field(default_factory=dict)
    skip: Sequence[str] = ()
    reshaped: Sequence[str] = ()
    unclaimed: Mapping[str, tuple[float, float] | None] = field(default_factory=dict)
    placed: Sequence[str] = ()
    otherwise: Sequence[str] = ()
    about: Sequence[str] = ()
    settles: bool = False
    certain: bool = False


def decision(ways: Sequence[str], choices: int, rest: str = "") -> str:
    """What only a person can know: the first ways to bind one thing, of so many choices that there are.

    >>> decision(['c1 = "2"', 'c1 = "4"'], 3)
    'decide in a names file: c1 = "2"  or  c1 = "4"; its draft has 2 more such choices'
    """
    shown = [*ways[:_FEW], *(["what else its draft offers"] if len(ways) > _FEW else [])]
    more = f"; its draft has {choices - 1} more such choice{'s' if choices > 2 else ''}" if choices > 1 else ""
    return f"decide in a names file: {'  or  '.join(shown)}{rest}{more}"


def written(attempt: Attempt, advice: Iterable[Advice], *, whole: bool = False) -> str:
    """Advice as a hint: what it is good for, and what to type; ``whole`` writes what is too long for a message."""
    parts = []
    for one in advice:
        skip = _options("skip", one.skip, attempt, whole=whole)
        options = [*skip, *_options("reshaped", one.reshaped, attempt, whole=whole)]
        options += _multipliers(one.unclaimed, attempt, whole=whole)
        lines = [toml_line(*item) for item in one.names.items()]
        if len(lines) == 1:
            options.insert(0, lines[0])
            lines = []
        text = f"{one.text} ({'; '.join(options)})" if options else one.text
        if len(lines) > _MOST_LINES and not whole:
            text += f": {len(lines)} lines, which the draft of a names file has"
        elif lines:
            text += ":" + "".join(f"\n      {line}" for line in lines)
        if one.otherwise:
            what = "; ".join(_options("skip", one.otherwise, attempt, whole=whole))
            start, these = "\n   " if lines else ",", "it" if len(one.otherwise) == 1 else "them"
            text += f"{start} or leave {these} out ({what})"
        parts.append(text)
    text = parts[0]
    for before, part in itertools.pairwise(parts):
        text += ("\n    " if "\n" in before else "; ") + part
    return text


def _options(argument: str, names: Sequence[str], attempt: Attempt, *, whole: bool = False) -> Iterator[str]:
    """How to give these layers and blobs to ``argument``: each by itself, many as one pattern."""
    layers = {name for unit in attempt.net.units for name in unit.parts}
    left = [blob for number, blob in enumerate(attempt.recipe.blobs) if not _is_skipped(attempt, number)]
    of_blobs = [*layers, *(blob.name for blob in left)]
    distinct = list(dict.fromkeys(names))
    for keys, every in (
        ([name for name in distinct if name in layers], [*{blob.layer for blob in left}, *distinct]),
        ([name for name in distinct if name not in layers], of_blobs),
    ):
        if 0 < len(keys) <= _FEW:
            yield f"{argument}={keys}, {' '.join(f'--{argument} {quoted(key)}' for key in keys)}"
        elif keys:
            short = pattern(keys, every)
            yield (
                f"{argument}={[short]}, --{argument} {quoted(short)}"
                if len(short) <= _LONGEST or whole
                else f"--{argument} for {len(keys)} of them, which the draft of a names file has in full"
            )


def _is_skipped(attempt: Attempt, number: int) -> bool:
    one = attempt.assignment.blobs.get(number)
    return one is not None and one.evidence is Evidence.SKIPPED


def _multipliers(
    unclaimed: Mapping[str, tuple[float, float] | None], attempt: Attempt, *, whole: bool
) -> Iterator[str]:
    """How to give parameters multipliers: one option for each pair, and one for all that may have any."""
    named = {name for name, pair in unclaimed.items() if pair is not None}
    if not unclaimed:
        return
    if not named:
        yield "unclaimed, --unclaimed lr_mult=1,decay_mult=1"
        return
    every = [name for name, (_, trains) in attempt.model.parameters.items() if trains and name not in attempt.bound]
    pairs: dict[tuple[float, float], list[str]] = {}
    for name, pair in unclaimed.items():
        if pair is not None:
            pairs.setdefault(pair, []).append(name)
    patterns = {}
    for pair, names in pairs.items():
        keys = sorted(names, key=every.index)
        patterns.update(dict.fromkeys(keys if len(keys) <= _FEW else [pattern(keys, every)], pair))
    if max(map(len, patterns)) > _LONGEST and not whole:
        yield "--unclaimed, which the draft of a names file has in full"
        return
    texts = {key: (_number(lr), _number(decay)) for key, (lr, decay) in patterns.items()}
    mapping = [f"{key!r}: ({lr}, {decay})" for key, (lr, decay) in texts.items()]
    typed = [quoted(f"{key}:lr_mult={lr},decay_mult={decay}") for key, (lr, decay) in texts.items()]
    if len(named) < len(unclaimed):
        mapping.append("'.*': (1, 1)")
        typed.append("lr_mult=1,decay_mult=1")
    yield f"unclaimed={{{', '.join(mapping)}}}, {' '.join(f'--unclaimed {one}' for one in typed)}"


def _number(value: float) -> str:
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
