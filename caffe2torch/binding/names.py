"""Names: layers as module names, names that differ only in how they are written, and what a user states by name.

Caffe allows any text as a layer's name; torch refuses a module name that is empty, holds a dot, or hides an attribute
of ``nn.Module``. What torch refuses is written with ``%`` as in a URL:

========================  ===========================================================
``.`` and ``%``           ``%2E`` and ``%25``
the empty name            ``%``
an attribute's name       with ``%`` after it: ``type`` is ``type%``
the 2nd layer of a name   with ``%_2`` after it, the 3rd with ``%_3``, ...
========================  ===========================================================
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from os import PathLike
from pathlib import Path

import tomli_w
from torch import nn

from caffe2torch.binding.graph import TensorReference, Unit
from caffe2torch.binding.layout import stored
from caffe2torch.binding.plan import Binding, BoundBlob, Kind
from caffe2torch.binding.wrappers import WRAPPER_NAMES, unwrapped
from caffe2torch.errors import BindingError, InputError
from caffe2torch.recipe import NetRecipe
from caffe2torch.wording import did_you_mean, listed, matches, shape_text

__all__ = [
    "StatedNames",
    "check_names",
    "module_name",
    "module_names",
    "name_hints",
    "names_of",
    "normalised",
    "read_blobs",
    "read_names",
    "renumbered",
    "resolve_names",
    "toml_line",
]

_TAKEN = frozenset(dir(nn.Module())) | WRAPPER_NAMES


def module_name(layer: str, occurrence: int = 1) -> str:
    """The name of the skeleton's submodule for a layer, given that it is the n-th layer of that name.

    >>> module_name("conv1/7x7_s2"), module_name("res.1"), module_name("type"), module_name(""), module_name("ip", 2)
    ('conv1/7x7_s2', 'res%2E1', 'type%', '%', 'ip%_2')
    """
    name = layer.replace("%", "%25").replace(".", "%2E") or "%"
    if name in _TAKEN:
        name += "%"
    return name if occurrence == 1 else f"{name}%_{occurrence}"


def module_names(layers: Iterable[str]) -> list[str]:
    """``module_name`` for each layer in turn, counting the layers that share a name.

    >>> module_names(["ip", "relu", "ip"])
    ['ip', 'relu', 'ip%_2']
    """
    seen: dict[str, int] = {}
    names = []
    for layer in layers:
        seen[layer] = seen.get(layer, 0) + 1
        names.append(module_name(layer, seen[layer]))
    return names


def normalised(path: str) -> str:
    """A name in lower case without separators and wrappers.

    >>> normalised("module.Conv1_1.bn"), normalised("conv1/1.BN")
    ('conv11bn', 'conv11bn')
    """
    return re.sub(r"[\W_]", "", unwrapped(path).casefold())


# Units whose names are equal, or equal but for how they are written.


def name_hints(net: Sequence[Unit], model: Sequence[Unit]) -> tuple[dict[int, int], dict[int, int]]:
    """Pairs of units (indices) by equal names, and by names that are equal after ``normalised``.

    A name counts where exactly one unit on each side bears it. The leading segments that all modules share, or that
    one part of the model has (``backbone.``), are left out for the second if more names are equal without them; where
    that is true of two parts alike (``student.``, ``teacher.``), neither is certain.
    """
    spelled = {module_name(part) for unit in net for part in unit.parts}
    exact = [{module_name(part) for part in unit.parts} | (set(unit.parts) - spelled) for unit in net]
    equal = _agreeing(exact, [set(unit.parts) for unit in model])
    ours = [{normalised(part.replace(".", "_")) for part in unit.parts} - {""} for unit in net]
    segments = {part: unwrapped(part).split(".") for unit in model for part in unit.parts}
    spelling = {part: [normalised(segment) for segment in path] for part, path in segments.items()}
    found = []
    for prefix in _prefixes(segments.values()):
        size = len(prefix)
        short = {
            part: "".join(spelling[part][size:] if path[:size] == prefix else spelling[part])
            for part, path in segments.items()
        }
        found.append(_agreeing(ours, [{short[part] for part in unit.parts} - {""} for unit in model]))
    most = max(map(len, found), default=0)
    best = {pair for pairs in found if len(pairs) == most for pair in pairs.items()}
    return equal, _one_to_one(best)


def _agreeing(net: Sequence[set[str]], model: Sequence[set[str]]) -> dict[int, int]:
    sides: list[Mapping[str, int]] = []
    for units in (net, model):
        count = Counter(name for names in units for name in names)
        sides.append({name: number for number, names in enumerate(units) for name in names if count[name] == 1})
    certain = sides[0].keys() & sides[1].keys()
    if certain and min(map(len, sides)) > len(certain):
        moved = renumbered(*sides)
        certain -= moved.keys() | set(moved.values())
    pairs = {(sides[0][name], sides[1][name]) for name in certain}
    return _one_to_one(pairs)


def _one_to_one(pairs: Collection[tuple[int, int]]) -> dict[int, int]:
    """The pairs that share nothing with another one."""
    ones, others = Counter(one for one, _ in pairs), Counter(other for _, other in pairs)
    return {one: other for one, other in sorted(pairs) if ones[one] == others[other] == 1}


def renumbered(net: Iterable[str], model: Iterable[str]) -> dict[str, str]:
    """Names of the net to those of the model where these may be numbered from another start.

    Names that differ in their numbers alone are one series. Its equal names are not certain where they leave names over
    on both sides, and adding one number to all of them leaves none over on one.

    >>> renumbered(["conv1", "conv2", "conv3", "fc6"], ["conv0", "conv1", "conv2", "fc6"])
    {'conv1': 'conv0', 'conv2': 'conv1', 'conv3': 'conv2'}
    >>> renumbered(["conv1", "conv2", "conv3"], ["conv0", "conv1", "conv2", "conv3"])
    {}
    """
    sides: list[dict[str, dict[tuple[int, ...], str]]] = [{}, {}]
    for series, names in zip(sides, (net, model), strict=True):
        for name in names:
            stem, numbers = _numbered(name)
            if numbers:
                series.setdefault(stem, {})[numbers] = name
    found: dict[str, str] = {}
    for stem in sides[0].keys() & sides[1].keys():
        ours, theirs = sides[0][stem], sides[1][stem]
        equal, fewer = ours.keys() & theirs.keys(), min(len(ours), len(theirs))
        if not 0 < len(equal) < fewer:
            continue
        more, less = (ours, theirs) if len(ours) > fewer else (theirs, ours)
        first = min(less)
        ways = [[b - a for a, b in zip(first, other, strict=True)] for other in more]
        for steps in sorted(ways, key=lambda steps: sum(map(abs, steps))):
            moved = {one: tuple(a + step for a, step in zip(one, steps, strict=True)) for one in less}
            if all(one in more for one in moved.values()):
                pairs = {less[one]: more[target] for one, target in moved.items()}
                found.update(pairs if less is ours else {target: name for name, target in pairs.items()})
                break
    return dict(sorted(found.items()))


_DIGITS = re.compile(r"\d{1,9}")


@lru_cache(10_000)
def _numbered(name: str) -> tuple[str, tuple[int, ...]]:
    """A name without its numbers, and these."""
    return _DIGITS.sub("#", name), tuple(map(int, _DIGITS.findall(name)))


def _prefixes(paths: Iterable[Sequence[str]]) -> list[list[str]]:
    """No prefix, what all paths begin with, and that with one segment more, as far as several paths have it."""
    split = [path[:-1] for path in paths]
    common: list[str] = []
    for segments in zip(*split, strict=False):
        if len(set(segments)) > 1:
            break
        common.append(segments[0])
    longer = dict.fromkeys(path[len(common)] for path in split if len(path) > len(common))
    return [*([[]] if common else []), common, *([*common, segment] for segment in longer)]


# The names file: TOML that states which layer is which module, written by a person or by ``--write-names``.


def toml_line(layer: str, module: str) -> str:
    """The line of a names file that binds a layer to a module.

    >>> print(toml_line("conv1/7x7_s2", "features.0"))
    "conv1/7x7_s2" = "features.0"
    """
    return tomli_w.dumps({layer: module}).strip()


def read_names(path: str | PathLike[str]) -> dict[str, str]:
    """The ``names`` of a TOML file, as ``bind`` takes them.

    One line binds a layer to a module, a blob to a tensor, or a pattern to what its groups make::

        conv1 = "down.0.conv"
        "conv1/1" = "down.0.shift"
        'conv_decode(\\d)' = 'up.\\1.conv'

    Raises ``InputError`` for a file that cannot be read, ``BindingError`` for what is no such TOML.
    """
    file = Path(path)
    try:
        text = file.read_text("utf-8")
    except UnicodeDecodeError:
        raise InputError("is not UTF-8 text", where=str(path)) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", where=str(path)) from None
    try:
        entries = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, a number of 5,000 digits, 100,000 brackets
        raise BindingError(
            f"bad TOML: {error}", where=str(path), hint='one line a layer: conv1 = "down.0.conv"; quote other names'
        ) from None
    for key, value in entries.items():
        if not isinstance(value, str):
            raise BindingError(
                f"{key!r} is bound to {value!r}, not to a name", where=str(path), hint=_advice(key, value)
            )
    return entries


def _advice(key: str, value: object) -> str:
    if isinstance(value, dict):
        dotted = f"{key}.{next(iter(value), '')}"
        return f'write one line a layer, without sections; a name with dots must be quoted: "{dotted}"'
    return f'write {key!r} = "MODULE"'


def names_of(binding: Binding) -> dict[str, str]:
    """The ``names`` that lead to this very binding: layers where a module decides, blobs where it does not.

    A module decides where all it holds itself is one layer's, or a BatchNorm's and its Scale's, and some is learned.
    """
    modules: dict[str, set[str]] = {}
    held: dict[str, list[BoundBlob | None]] = {}  # by module; None: what no blob stands for
    for bound in binding.blobs:
        if bound.name is not None:
            path = bound.name.rpartition(".")[0]
            modules.setdefault(bound.blob.layer, set()).add(path)
            held.setdefault(path, []).append(bound)
    for one in binding.unclaimed:
        held.setdefault(one.name.rpartition(".")[0], []).append(None)
    names: dict[str, str] = {}
    for bound in binding.blobs:
        if bound.name is None or bound.kind is Kind.NONE:
            continue
        paths = modules[bound.blob.layer]
        path = next(iter(paths))
        if len(paths) == 1 and path and _one_unit(held[path]):
            names[bound.blob.layer] = path
        else:
            names[bound.blob.name] = bound.name
    return names


def _one_unit(held: Sequence[BoundBlob | None]) -> bool:
    known = [bound for bound in held if bound is not None]
    layers = {bound.blob.layer: bound.blob.layer_type for bound in known}
    single = len(layers) == 1 or sorted(layers.values()) == ["BatchNorm", "Scale"]
    learned = any(bound.kind is Kind.PARAMETER for bound in known)
    return single and learned and len({bound.blob.role for bound in known}) == len(held)


# What the user states by name: layers to modules, blobs to tensors, layers to do without.


@dataclass(frozen=True, slots=True)
class StatedNames:
    """Layer to module path, and blob (index into ``NetRecipe.blobs``) to tensor, as the user wrote them."""

    modules: dict[str, str] = field(default_factory=dict)
    tensors: dict[int, str] = field(default_factory=dict)


def resolve_names(
    recipe: NetRecipe, names: Mapping[str, str], modules: Collection[str], tensors: Collection[str]
) -> StatedNames:
    """Resolve ``names`` against the net's layers and the model's modules and tensors.

    A key is a layer's exact name, else ``LAYER/INDEX`` of a blob, else a regular expression that matches whole names
    of layers (or, if of none, of blobs), whose groups the value may use: ``"conv(\\d+)": r"down.\\1.conv"``. The value
    is the path of a module that holds tensors, or the name of one tensor.

    Raises ``BindingError`` for a key that matches nothing, a layer or blob that two patterns claim, and a value that
    the model does not have.
    """
    result = StatedNames()
    if not names:
        return result
    layers, blobs = _layers_and_blobs(recipe)
    claimed: dict[str, str] = {}
    for key in sorted(names, key=lambda key: key not in layers and key not in blobs):  # exact ones win
        for name, match in matches(key, layers, blobs, what="names", of="layer that learns", error=BindingError):
            if name in claimed:
                if claimed[name] in layers or claimed[name] in blobs:
                    continue
                raise BindingError(f"names claims {name!r} twice: by {claimed[name]!r} and by {key!r}")
            claimed[name] = key
            target = _known(_expanded(match, key, names[key]), modules, tensors)
            if name in layers and target in modules:
                result.modules[name] = target
            elif target in tensors:
                result.tensors[blobs[name] if name in blobs else _only_blob(layers, name)] = target
            else:
                raise BindingError(
                    f"names binds blob {name!r} to {target!r}, which is a module, not a parameter or buffer",
                    hint=f'write {name!r} = "{target}.weight", or bind the whole layer',
                )
    return result


def check_names(
    recipe: NetRecipe,
    stated: StatedNames,
    net: Sequence[Unit],
    tensors: Mapping[str, TensorReference],
    reshaped: Collection[int] = (),
) -> None:
    """Refuse names that cannot be: two layers on one module, two blobs on one tensor, shapes that do not fit.

    Layers that share their blobs, and a BatchNorm with its Scale, may be one module. Raises ``BindingError``.
    """
    claimed: dict[tuple[str, str], tuple[str, int]] = {}  # module and role -> layer and unit
    for number, unit in enumerate(net):
        for part in unit.parts:
            for one in unit.tensors if part in stated.modules else ():
                layer, other = claimed.setdefault((stated.modules[part], one.role), (part, number))
                if other != number:
                    module = stated.modules[part]
                    raise BindingError(f"names binds layers {layer!r} and {part!r} to one module, {module}")
    taken: dict[str, str] = {}
    for number, tensor in stated.tensors.items():
        blob, shape = recipe.blobs[number], tensors[tensor].sizes
        if taken.setdefault(tensor, blob.name) != blob.name:
            raise BindingError(f"names binds blobs {taken[tensor]!r} and {blob.name!r} to one tensor, {tensor}")
        if number not in reshaped and stored(recipe, blob, tensors[tensor]) is None:
            sizes = f"it is {shape_text(blob.shape)} in Caffe, {shape_text(shape)} in the model"
            raise BindingError(f"names binds blob {blob.name!r} to {tensor}: {sizes}", where=blob.where)


def read_blobs(recipe: NetRecipe, keys: Iterable[str], what: str) -> frozenset[int]:
    """The blobs (indices) of the layers and blobs that ``keys`` name, exactly or by a regular expression.

    Raises ``BindingError`` for an entry that matches nothing.
    """
    given = list(keys)
    layers, blobs = _layers_and_blobs(recipe) if given else ({}, {})
    found: set[int] = set()
    for key in given:
        for name, _ in matches(key, layers, blobs, what=what, of="layer that learns", error=BindingError):
            found.update(layers.get(name) or [blobs[name]])
    return frozenset(found)


def _layers_and_blobs(recipe: NetRecipe) -> tuple[dict[str, list[int]], dict[str, int]]:
    """Each layer's blobs, and each blob by ``LAYER/INDEX`` of every use of it."""
    layers: dict[str, list[int]] = {}
    blobs: dict[str, int] = {}
    for number, blob in enumerate(recipe.blobs):
        for layer, index in ((blob.layer, blob.index), *((use.layer, use.index) for use in blob.shared_with)):
            layers.setdefault(layer, []).append(number)
            blobs[f"{layer}/{index}"] = number
    return layers, blobs


def _expanded(match: re.Match[str] | None, key: str, value: str) -> str:
    try:
        return value if match is None else match.expand(value)
    except (re.error, IndexError) as error:
        raise BindingError(f"names: {key!r} has no such groups as {value!r} uses: {error}") from None


def _known(value: str, modules: Collection[str], tensors: Collection[str]) -> str:
    for spelling in (value, unwrapped(value)):
        if spelling in modules or spelling in tensors:
            return spelling
    inside = [path for path in modules if path.startswith(f"{value}.")]
    if inside:
        own = any(name.rpartition(".")[0] == value for name in tensors)
        held = "holds the parameters of several layers" if own else "holds no parameters itself"
        raise BindingError(f"names: module {value!r} {held}", hint=f"name one of those inside: {_some(inside)}")
    raise BindingError(
        f"names: the model has no module and no parameter {value!r}",
        hint=did_you_mean(value, [*modules, *tensors]) or f"modules with parameters: {_some([*modules])}",
    )


def _only_blob(layers: Mapping[str, Sequence[int]], layer: str) -> int:
    numbers = layers[layer]
    if len(numbers) > 1:
        raise BindingError(
            f"names binds layer {layer!r} to one tensor, but it has {len(numbers)} blobs",
            hint=f"name the module, or each blob: '{layer}/0', '{layer}/1', ...",
        )
    return numbers[0]


def _some(names: Sequence[str]) -> str:
    return ", ".join(listed(names, 8, repr))
